-- Which document each passage is of; passages of older versions included. Its id hashes document, place and words.
SELECT DISTINCT task, chunk_id, document_id
FROM chunks_history
