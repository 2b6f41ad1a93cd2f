-- What each model version was trained on, row by row, with the page behind the passage that holds the answer.
SELECT
    m.task,
    m.model_version,
    t.example_id,
    t.question,
    t.answer,
    t.origin,
    t.kind,
    t.request_id,
    t.chunk_id,
    t.context_chunk_ids,
    t.n_tokens,
    t.document_id,
    s.url,
    s.page,
    s.licence,
    s.publisher,
    s.fetched_hour
FROM registered_model AS m
JOIN training_set_history AS t ON t.task = m.task AND t.version = m.training_set_version
LEFT JOIN chunk_sources AS s ON s.task = t.task AND s.chunk_id = t.chunk_id
