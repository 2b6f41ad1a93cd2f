-- Every example in force with the passage, page, licence, hour and teacher behind it.
SELECT
    e.task,
    e.example_id,
    e.split,
    e.question,
    e.answer,
    e.origin,
    e.teacher,
    e.row AS task_row,
    e.chunk_id,
    s.url,
    s.page,
    s.licence,
    s.publisher,
    s.fetched_hour
FROM examples AS e
LEFT JOIN chunk_sources AS s USING (task, chunk_id)
