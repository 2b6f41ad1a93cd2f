-- The scores of every system side by side.
SELECT
    task,
    system,
    max(value) FILTER (WHERE metric = 'exact_match') AS exact_match,
    max(value) FILTER (WHERE metric = 'accuracy') AS accuracy,
    max(value) FILTER (WHERE metric = 'macro_f1') AS macro_f1,
    max(value) FILTER (WHERE metric = 'token_f1') AS token_f1,
    max(value) FILTER (WHERE metric = 'rouge_l') AS rouge_l,
    max(value) FILTER (WHERE metric = 'bleu') AS bleu,
    max(value) FILTER (WHERE metric = 'gold_retrieved') AS gold_retrieved,
    max(value) FILTER (WHERE metric = 'latency_ms_p50') AS latency_ms_p50,
    max(value) FILTER (WHERE metric = 'tokens_per_second') AS tokens_per_second,
    max(n_rows) AS n_rows
FROM eval_report
WHERE compared_to IS NULL
GROUP BY task, system
ORDER BY task, system
