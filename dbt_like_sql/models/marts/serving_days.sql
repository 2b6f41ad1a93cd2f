-- How each version served, day by day (UTC): requests, failures, abstentions, times, tokens, and what people said.
-- Feedback counts for the day of the answer, the last one of a key on a request. A stream that broke has failed, though
-- its status came before. Times are those of whole answers; tokens also of those that were cut, since they were spent.
WITH said AS (
    SELECT DISTINCT ON (request_id, key_id) request_id, key_id, question, rating
    FROM feedback
    ORDER BY request_id, key_id, given_at DESC
),
asked AS (
    SELECT
        r.*,
        s.rating,
        r.status = 200 AND r.error IS NULL AS is_whole,
        list_max(r.scores) AS top_score
    FROM requests AS r
    LEFT JOIN said AS s
        ON s.request_id = r.request_id AND s.key_id = r.key_id AND s.question = coalesce(r.question, s.question)
    WHERE r.route IN ('/v1/chat/completions', '/v1/answers', '/v1/classify', '/v1/extract')
)
SELECT
    task,
    model_version,
    CAST(asked_at AT TIME ZONE 'UTC' AS DATE) AS day,
    count(*) AS n_requests,
    count(*) FILTER (status >= 500 OR (status = 200 AND error IS NOT NULL)) AS n_failed,
    count(*) FILTER (status = 499) AS n_left,
    count(*) FILTER (is_abstention) AS n_abstentions,
    count(*) FILTER (rating = 'up') AS n_up,
    count(*) FILTER (rating = 'down') AS n_down,
    quantile_cont(total_ms, 0.5) FILTER (is_whole) AS total_ms_p50,
    quantile_cont(total_ms, 0.95) FILTER (is_whole) AS total_ms_p95,
    quantile_cont(first_token_ms, 0.5) FILTER (is_whole) AS first_token_ms_p50,
    sum(n_prompt_tokens) AS n_prompt_tokens,
    sum(n_completion_tokens) AS n_completion_tokens,
    avg(top_score) AS mean_top_score,
    avg(similarity) AS mean_similarity
FROM asked
GROUP BY ALL
ORDER BY task, day, model_version
