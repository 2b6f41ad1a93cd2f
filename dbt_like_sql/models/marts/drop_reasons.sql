-- What was set aside, at which stage and why.
SELECT task, 'documents' AS stage, drop_reason AS reason, count(*) AS n
FROM dropped_documents
GROUP BY ALL
UNION ALL
SELECT task, 'examples' AS stage, reject_reason AS reason, count(*) AS n
FROM rejected_examples
GROUP BY ALL
ORDER BY task, stage, n DESC, reason
