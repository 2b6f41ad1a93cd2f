-- What each evaluated answer was made from: one row for each prediction and passage, and one where it had no passage.
WITH cited AS (
    SELECT
        *,
        unnest(CASE WHEN len(context_chunk_ids) = 0 THEN [NULL] ELSE context_chunk_ids END) AS chunk_id,
        unnest(CASE WHEN len(context_chunk_ids) = 0 THEN [NULL] ELSE range(1, len(context_chunk_ids) + 1) END) AS rank
    FROM predictions
),
versions AS (
    SELECT task, serving_model_id, max(number) AS number
    FROM registered_model
    GROUP BY task, serving_model_id
)
SELECT
    c.task,
    c.prediction_id,
    c.system,
    c.example_id,
    c.question,
    c.reference,
    c.prediction,
    c.token_f1,
    c.model_id,
    c.task || '@' || v.number AS model_version,
    c.rank,
    c.chunk_id,
    c.chunk_id = c.gold_chunk_id AS is_gold,
    s.url,
    s.page,
    s.licence,
    s.publisher,
    s.fetched_hour
FROM cited AS c
LEFT JOIN versions AS v ON v.task = c.task AND v.serving_model_id = c.model_id
LEFT JOIN chunk_sources AS s ON s.task = c.task AND s.chunk_id = c.chunk_id
