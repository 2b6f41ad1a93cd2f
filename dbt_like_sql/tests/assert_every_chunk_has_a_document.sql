-- Every passage in force is of a document in force.
SELECT c.task, c.chunk_id, c.document_id
FROM chunks AS c
ANTI JOIN clean_documents AS d ON d.task = c.task AND d.document_id = c.document_id
