-- How each version served, day by day (UTC): requests, failures, abstentions, times, tokens, and what people said.
-- Feedback counts for the day of the answer, the last one of a key on a question of a request. A stream that broke has
-- failed, though its status came before. Times are those of whole answers; tokens also of those that were cut, since
-- they were spent.
WITH asked AS (
    SELECT
        *,
        status = 200 AND error IS NULL AS is_whole,
        list_max(scores) AS top_score
    FROM requests
    WHERE route IN ('/v1/chat/completions', '/v1/answers', '/v1/classify', '/v1/extract')
),
said AS (
    SELECT DISTINCT ON (request_id, key_id, question) request_id, key_id, question, model_version, given_at, rating
    FROM feedback
    ORDER BY request_id, key_id, question, given_at DESC
),
judged AS (
    -- Clients choose request ids, and may send a request again under the one it had: a rating is of the newest answer
    -- before it. An administrator's judgement alone may be of a request of another key.
    SELECT DISTINCT ON (s.request_id, s.key_id, s.question) a.request_id, a.key_id, a.asked_at, s.rating
    FROM said AS s
    JOIN asked AS a ON a.request_id = s.request_id AND a.model_version = s.model_version AND a.asked_at <= s.given_at
    WHERE a.status IN (200, 499) AND (a.question IS NULL OR a.question = s.question)
    ORDER BY s.request_id, s.key_id, s.question, a.key_id = s.key_id DESC, a.asked_at DESC
),
rated AS (
    SELECT
        request_id,
        key_id,
        asked_at,
        count(*) FILTER (rating = 'up') AS n_up,
        count(*) FILTER (rating = 'down') AS n_down
    FROM judged
    GROUP BY ALL
)
SELECT
    a.task,
    a.model_version,
    CAST(a.asked_at AT TIME ZONE 'UTC' AS DATE) AS day,
    count(*) AS n_requests,
    count(*) FILTER (a.status >= 500 OR (a.status = 200 AND a.error IS NOT NULL)) AS n_failed,
    count(*) FILTER (a.status = 499) AS n_left,
    count(*) FILTER (a.is_abstention) AS n_abstentions,
    CAST(coalesce(sum(r.n_up), 0) AS BIGINT) AS n_up,
    CAST(coalesce(sum(r.n_down), 0) AS BIGINT) AS n_down,
    quantile_cont(a.total_ms, 0.5) FILTER (a.is_whole) AS total_ms_p50,
    quantile_cont(a.total_ms, 0.95) FILTER (a.is_whole) AS total_ms_p95,
    quantile_cont(a.first_token_ms, 0.5) FILTER (a.is_whole) AS first_token_ms_p50,
    sum(a.n_prompt_tokens) AS n_prompt_tokens,
    sum(a.n_completion_tokens) AS n_completion_tokens,
    avg(a.top_score) AS mean_top_score,
    avg(a.similarity) AS mean_similarity
FROM asked AS a
LEFT JOIN rated AS r ON r.request_id = a.request_id AND r.key_id = a.key_id AND r.asked_at = a.asked_at
GROUP BY ALL
ORDER BY a.task, day, a.model_version
