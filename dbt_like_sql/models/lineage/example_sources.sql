-- Every example in force with the passage, page, licence, hour, teacher, prompt and cost behind it.
SELECT
    e.task,
    e.example_id,
    e.split,
    e.question,
    e.answer,
    e.origin,
    e.kind,
    e.teacher,
    t.model AS teacher_model,
    e.prompt_version,
    e.call_id,
    e.cost_usd,
    e.row AS task_row,
    e.chunk_id,
    s.url,
    s.page,
    s.licence,
    s.publisher,
    s.fetched_hour
FROM examples AS e
LEFT JOIN chunk_sources AS s USING (task, chunk_id)
LEFT JOIN teacher_calls AS t ON t.task = e.task AND t.call_id = e.call_id
