-- No call to a teacher has cost less than nothing, or counts fewer tokens than none.
SELECT task, call_id, purpose, cost_usd, n_input_tokens, n_output_tokens
FROM teacher_calls
WHERE NOT (cost_usd >= 0 AND n_input_tokens >= 0 AND n_output_tokens >= 0)
