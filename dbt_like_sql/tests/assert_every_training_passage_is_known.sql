-- Every passage in a training prompt is stored, so that its page, licence and hour can be named.
WITH prompts AS (
    SELECT task, example_id, unnest(list_distinct(list_append(context_chunk_ids, chunk_id))) AS chunk_id
    FROM training_set
)
SELECT p.task, p.example_id, p.chunk_id
FROM prompts AS p
ANTI JOIN passage_documents AS s ON s.task = p.task AND s.chunk_id = p.chunk_id
WHERE p.chunk_id IS NOT NULL
