-- Every passage that a served answer cites is stored, so that its page can be named.
SELECT task, request_id, asked_at, model_version, chunk_id
FROM request_citations
WHERE document_id IS NULL
