-- What each answer was made from: one row for each request and passage, with the page, licence and hour behind it.
WITH cited AS (
    SELECT
        task,
        request_id,
        key_id,
        asked_at,
        model_version,
        is_abstention,
        generate_subscripts(chunk_ids, 1) AS rank,
        unnest(chunk_ids) AS chunk_id,
        unnest(scores) AS score
    FROM requests
)
SELECT
    c.task,
    c.request_id,
    c.key_id,
    c.asked_at,
    c.model_version,
    c.is_abstention,
    c.rank,
    c.chunk_id,
    c.score,
    s.document_id,
    s.url,
    s.page,
    s.title,
    s.heading_path,
    s.licence,
    s.publisher,
    s.fetched_hour
FROM cited AS c
LEFT JOIN chunk_sources AS s ON s.task = c.task AND s.chunk_id = c.chunk_id
ORDER BY c.asked_at, c.request_id, c.rank
