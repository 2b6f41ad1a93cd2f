-- No example is both in force and rejected.
SELECT k.task, k.example_id, k.question, r.reject_reason
FROM examples AS k
JOIN rejected_examples AS r ON r.task = k.task AND r.example_id = k.example_id
