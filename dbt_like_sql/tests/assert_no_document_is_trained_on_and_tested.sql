-- No text stands behind a training row and a test row; near-duplicates count as one text.
SELECT DISTINCT t.task, t.cluster_id, t.document_id, t.example_id
FROM training_set AS t
SEMI JOIN benchmark AS b ON b.task = t.task AND b.cluster_id = t.cluster_id
