-- Every prediction in force answers a test row in force, and no row twice by the same system.
SELECT p.task, p.system, p.example_id, count(*) AS n_predictions, count(b.example_id) AS n_test_rows
FROM predictions AS p
LEFT JOIN benchmark AS b ON b.task = p.task AND b.example_id = p.example_id
GROUP BY ALL
HAVING n_predictions <> 1 OR n_test_rows <> 1
