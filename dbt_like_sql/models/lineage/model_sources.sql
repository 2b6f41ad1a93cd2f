-- What each model version was trained on, address by address: the very rows of its own training set.
SELECT
    m.task,
    m.model_version,
    s.url,
    s.licence,
    s.publisher,
    min(s.fetched_hour) AS fetched_hour,
    count(DISTINCT t.example_id) AS n_training_rows,
    list(DISTINCT t.origin ORDER BY t.origin) AS origins
FROM registered_model AS m
JOIN training_set_history AS t ON t.task = m.task AND t.version = m.training_set_version
LEFT JOIN chunk_sources AS s ON s.task = t.task AND s.chunk_id = t.chunk_id
GROUP BY ALL
ORDER BY m.task, m.model_version, s.url
