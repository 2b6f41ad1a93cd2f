-- From which address, under which licence and in which hour each passage came; passages of older versions included.
WITH passages AS (
    SELECT
        task,
        chunk_id,
        document_id,
        arg_max_null(page, version) AS page,
        arg_max(heading_path, version) AS heading_path,
        arg_max(n_tokens, version) AS n_tokens,
        any_value(text) AS text
    FROM chunks_history
    GROUP BY task, chunk_id, document_id
)
SELECT
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
FROM passages AS c
LEFT JOIN document_sources AS d ON d.task = c.task AND d.document_id = c.document_id
