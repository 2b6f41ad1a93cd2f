-- What was made from what: one row for each stored version of a table and each input that its sidecar record names.
WITH made AS (
    SELECT
        task,
        "table",
        version,
        version = max(version) OVER (PARTITION BY task, "table") AS is_current,
        unnest(map_entries(inputs)) AS input
    FROM materializations
)
SELECT
    m.task,
    m.input.key AS from_table,
    max(s.version) AS from_version,
    m.input.value AS fingerprint,
    m."table" AS to_table,
    m.version AS to_version,
    m.is_current
FROM made AS m
LEFT JOIN materializations AS s
    ON s.task = m.task AND s."table" = m.input.key AND s.fingerprint = m.input.value AND s.version < m.version
GROUP BY ALL
ORDER BY m.task, m.version, from_table
