-- What each model version was trained on, address by address: the passages in the prompts of its own training set.
WITH prompts AS (
    SELECT
        m.task,
        m.model_version,
        t.example_id,
        t.origin,
        unnest(list_distinct(list_append(t.context_chunk_ids, t.chunk_id))) AS chunk_id
    FROM registered_model AS m
    JOIN training_set_history AS t ON t.task = m.task AND t.version = m.training_set_version
)
SELECT
    p.task,
    p.model_version,
    s.url,
    s.licence,
    s.publisher,
    min(s.fetched_hour) AS fetched_hour,
    count(DISTINCT p.example_id) AS n_training_rows,
    list(DISTINCT p.origin ORDER BY p.origin) AS origins
FROM prompts AS p
LEFT JOIN chunk_sources AS s ON s.task = p.task AND s.chunk_id = p.chunk_id
GROUP BY ALL
ORDER BY p.task, p.model_version, s.url
