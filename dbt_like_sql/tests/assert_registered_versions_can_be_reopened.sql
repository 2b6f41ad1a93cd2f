-- The training rows and passages that a registered version names are stored, with the fingerprints it names, but for
-- versions from which something was taken down since.
WITH named AS (
    SELECT
        task, model_version, 'training_set' AS "table", training_set_version AS version,
        training_set_fingerprint AS fingerprint
    FROM registered_model
    UNION ALL
    SELECT task, model_version, 'chunks', chunks_version, chunks_fingerprint
    FROM registered_model
),
tainted AS (
    SELECT task, unnest(list_concat(trained_versions, holding_versions)) AS model_version
    FROM takedowns
)
SELECT n.task, n.model_version, n."table", n.version
FROM named AS n
ANTI JOIN materializations AS m
    ON m.task = n.task AND m."table" = n."table" AND m.version = n.version AND m.fingerprint = n.fingerprint
ANTI JOIN tainted AS t ON t.task = n.task AND t.model_version = n.model_version
