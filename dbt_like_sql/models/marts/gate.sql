-- Every decision about which version answers, with the checks on that version as they last stood.
WITH checks AS (
    SELECT DISTINCT ON (task, model_version, "check") *
    FROM promotion_gate_history
    ORDER BY task, model_version, "check", version DESC
)
SELECT
    p.task,
    p.decided_at,
    p.decision,
    p.model_version,
    p.champion_before,
    p.champion_after,
    p.decided_by,
    p.reason,
    c."check",
    c.passed,
    c.value,
    c."limit",
    c.reason AS check_reason
FROM promotions AS p
LEFT JOIN checks AS c USING (task, model_version)
ORDER BY p.task, p.decided_at, c.passed, c."check"
