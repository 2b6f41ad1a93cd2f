-- How many training and test rows each document has.
SELECT
    d.task,
    d.url,
    count(DISTINCT c.chunk_id) AS n_chunks,
    count(DISTINCT e.chunk_id) AS n_chunks_asked,
    count(DISTINCT e.example_id) FILTER (WHERE e.split <> 'test') AS n_training_rows,
    count(DISTINCT e.example_id) FILTER (WHERE e.split = 'test') AS n_test_rows
FROM clean_documents AS d
LEFT JOIN chunks AS c USING (task, document_id)
LEFT JOIN examples AS e ON e.task = c.task AND e.chunk_id = c.chunk_id
GROUP BY ALL
ORDER BY d.task, d.url
