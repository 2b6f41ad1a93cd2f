-- What each model version cost: what its training rows were paid for, and the time and energy of its training.
WITH paid AS (
    SELECT task, example_id, arg_max_null(cost_usd, version) AS cost_usd
    FROM examples_history
    GROUP BY task, example_id
),
trained AS (
    SELECT
        m.task,
        m.model_version,
        m.adapter_id,
        m.registered_at,
        count(t.example_id) AS n_training_rows,
        count(*) FILTER (p.cost_usd > 0) AS n_paid_rows,
        coalesce(sum(p.cost_usd), 0) AS training_rows_usd
    FROM registered_model AS m
    LEFT JOIN training_set_history AS t ON t.task = m.task AND t.version = m.training_set_version
    LEFT JOIN paid AS p ON p.task = t.task AND p.example_id = t.example_id
    GROUP BY ALL
),
measured AS (
    SELECT task, artifact_id, arg_max(metrics, version) AS metrics
    FROM adapter_history
    GROUP BY task, artifact_id
)
SELECT
    t.task,
    t.model_version,
    t.registered_at,
    t.n_training_rows,
    t.n_paid_rows,
    t.training_rows_usd,
    CAST(a.metrics ->> '$.train_seconds' AS DOUBLE) AS train_seconds,
    CAST(a.metrics ->> '$.energy_kwh' AS DOUBLE) AS energy_kwh,
    CAST(a.metrics ->> '$.n_tokens_seen' AS BIGINT) AS n_tokens_seen
FROM trained AS t
LEFT JOIN measured AS a ON a.task = t.task AND a.artifact_id = t.adapter_id
ORDER BY t.task, t.registered_at
