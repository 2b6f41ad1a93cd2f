-- Every passage that a served answer cites is stored, so that its page can be named, or was taken down with the answer.
-- asset: request_citations
WITH cited AS (
    SELECT task, request_id, asked_at, model_version, answer, unnest(chunk_ids) AS chunk_id
    FROM requests
)
SELECT c.task, c.request_id, c.asked_at, c.model_version, c.chunk_id
FROM cited AS c
ANTI JOIN passage_documents AS s ON s.task = c.task AND s.chunk_id = c.chunk_id
WHERE c.answer IS DISTINCT FROM '[taken down]'
