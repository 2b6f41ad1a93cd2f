-- How often each search finds what the test rows rest on, with 95 % intervals.
SELECT
    task,
    level,
    method,
    max(value) FILTER (WHERE metric = 'recall@1') AS recall_at_1,
    max(value) FILTER (WHERE metric = 'recall@5') AS recall_at_5,
    max(low) FILTER (WHERE metric = 'recall@5') AS recall_at_5_low,
    max(high) FILTER (WHERE metric = 'recall@5') AS recall_at_5_high,
    max(value) FILTER (WHERE metric = 'recall@10') AS recall_at_10,
    max(value) FILTER (WHERE metric = 'mrr') AS mrr,
    max(low) FILTER (WHERE metric = 'mrr') AS mrr_low,
    max(high) FILTER (WHERE metric = 'mrr') AS mrr_high,
    max(n_rows) AS n_rows
FROM retrieval_report
GROUP BY task, level, method
ORDER BY task, level, method
