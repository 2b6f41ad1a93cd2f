-- Every passage begins before it ends, and ends no later than its document.
SELECT c.task, c.chunk_id, c.start, c."end", d.n_chars
FROM chunks AS c
JOIN clean_documents AS d ON d.task = c.task AND d.document_id = c.document_id
WHERE c.start < 0 OR c."end" <= c.start OR c."end" > d.n_chars
