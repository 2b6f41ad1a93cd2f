-- From which address, under which licence and in which hour each passage came; passages of older versions included.
SELECT DISTINCT ON (c.task, c.chunk_id)
    c.task,
    c.chunk_id,
    c.document_id,
    d.url,
    c.page,
    d.title,
    c.heading_path,
    d.licence,
    d.publisher,
    date_trunc('hour', d.fetched_at) AS fetched_hour,
    c.n_tokens,
    c.text
FROM chunks_history AS c
JOIN document_sources AS d USING (task, document_id)
ORDER BY c.task, c.chunk_id, c.version DESC
