-- No document is both in force and set aside. (The same page under a second address is set aside for the first.)
SELECT k.task, k.document_id, k.url, d.drop_reason
FROM clean_documents AS k
JOIN dropped_documents AS d ON d.task = k.task AND d.document_id = k.document_id
WHERE d.duplicate_of IS DISTINCT FROM k.document_id
