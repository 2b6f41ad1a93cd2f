-- What each task paid its teachers for, and what came of it.
SELECT
    task,
    teacher,
    model,
    purpose,
    prompt_version,
    status,
    count(*) AS n_calls,
    sum(n_input_tokens + n_cache_write_tokens + n_cache_read_tokens) AS n_input_tokens,
    sum(n_output_tokens) AS n_output_tokens,
    sum(cost_usd) AS cost_usd
FROM teacher_calls
GROUP BY ALL
ORDER BY task, cost_usd DESC, purpose, status
