-- Every example that a teacher generated rests on a passage that is stored.
SELECT e.task, e.example_id, e.question, e.chunk_id
FROM examples AS e
ANTI JOIN passage_documents AS s ON s.task = e.task AND s.chunk_id = e.chunk_id
WHERE e.origin = 'generated'
