-- The scores of every system side by side; those that may decide with their 95 % intervals.
SELECT
    task,
    system,
    max(value) FILTER (WHERE metric = 'accuracy') AS accuracy,
    max(low) FILTER (WHERE metric = 'accuracy') AS accuracy_low,
    max(high) FILTER (WHERE metric = 'accuracy') AS accuracy_high,
    max(value) FILTER (WHERE metric = 'macro_f1') AS macro_f1,
    max(value) FILTER (WHERE metric = 'token_f1') AS token_f1,
    max(low) FILTER (WHERE metric = 'token_f1') AS token_f1_low,
    max(high) FILTER (WHERE metric = 'token_f1') AS token_f1_high,
    max(value) FILTER (WHERE metric = 'exact_match') AS exact_match,
    max(low) FILTER (WHERE metric = 'exact_match') AS exact_match_low,
    max(high) FILTER (WHERE metric = 'exact_match') AS exact_match_high,
    max(value) FILTER (WHERE metric = 'rouge_l') AS rouge_l,
    max(low) FILTER (WHERE metric = 'rouge_l') AS rouge_l_low,
    max(high) FILTER (WHERE metric = 'rouge_l') AS rouge_l_high,
    max(value) FILTER (WHERE metric = 'meteor') AS meteor,
    max(value) FILTER (WHERE metric = 'chrf') AS chrf,
    max(value) FILTER (WHERE metric = 'bleu') AS bleu,
    max(value) FILTER (WHERE metric = 'groundedness') AS groundedness,
    max(value) FILTER (WHERE metric = 'citation_support') AS citation_support,
    max(value) FILTER (WHERE metric = 'abstention_recall') AS abstention_recall,
    max(value) FILTER (WHERE metric = 'abstention_false') AS abstention_false,
    max(value) FILTER (WHERE metric = 'gold_retrieved') AS gold_retrieved,
    max(value) FILTER (WHERE metric = 'latency_ms_p50') AS latency_ms_p50,
    max(value) FILTER (WHERE metric = 'latency_ms_p95') AS latency_ms_p95,
    max(value) FILTER (WHERE metric = 'tokens_per_second') AS tokens_per_second,
    max(n_rows) AS n_rows
FROM eval_report
WHERE compared_to IS NULL
GROUP BY task, system
ORDER BY task, system
