-- Under which licences and of whom each task holds documents, passages and training rows, which versions were trained
-- on them, and how many answers cited them. What has no licence, or no known document, is "unknown".
WITH documents_known AS (
    SELECT
        task,
        document_id,
        coalesce(nullif(trim(arg_max_null(licence, version)), ''), 'unknown') AS licence,
        coalesce(nullif(trim(arg_max_null(publisher, version)), ''), 'unknown') AS publisher
    FROM clean_documents_history
    GROUP BY task, document_id
),
-- Millions of rows are grouped by the number of the terms, which costs less than by their words.
sources AS MATERIALIZED (
    SELECT
        *,
        CASE
            WHEN licence = 'unknown' AND publisher = 'unknown' THEN 0
            ELSE dense_rank() OVER (ORDER BY licence, publisher)
        END AS terms
    FROM documents_known
),
in_force AS (
    SELECT task, document_id, 1 AS n_documents, 0 AS n_chunks
    FROM clean_documents
    UNION ALL
    SELECT task, document_id, 0 AS n_documents, count(*) AS n_chunks
    FROM chunks
    GROUP BY task, document_id
),
held AS (
    SELECT
        f.task,
        coalesce(s.terms, 0) AS terms,
        CAST(sum(f.n_documents) AS BIGINT) AS n_documents,
        CAST(sum(f.n_chunks) AS BIGINT) AS n_chunks
    FROM in_force AS f
    LEFT JOIN sources AS s ON s.task = f.task AND s.document_id = f.document_id
    GROUP BY ALL
),
prompts AS (
    SELECT
        m.task,
        m.model_version,
        t.example_id,
        unnest(
            CASE
                WHEN list_contains(t.context_chunk_ids, t.chunk_id) THEN t.context_chunk_ids
                ELSE list_append(t.context_chunk_ids, t.chunk_id)
            END
        ) AS chunk_id
    FROM registered_model AS m
    JOIN training_set_history AS t ON t.task = m.task AND t.version = m.training_set_version
),
citations AS (
    SELECT task, key_id, request_id, unnest(chunk_ids) AS chunk_id
    FROM requests
),
-- Only the passages that are used: a store holds many more, in several versions each.
used AS (
    SELECT task, chunk_id FROM prompts WHERE chunk_id IS NOT NULL
    UNION
    SELECT task, chunk_id FROM citations
),
used_sources AS MATERIALIZED (
    SELECT u.task, u.chunk_id, coalesce(max(s.terms), 0) AS terms
    FROM used AS u
    LEFT JOIN chunks_history AS c ON c.task = u.task AND c.chunk_id = u.chunk_id
    LEFT JOIN sources AS s ON s.task = c.task AND s.document_id = c.document_id
    GROUP BY ALL
),
trained AS (
    SELECT
        p.task,
        s.terms,
        count(DISTINCT p.example_id) AS n_training_rows,
        list(DISTINCT p.model_version ORDER BY p.model_version) AS model_versions
    FROM prompts AS p
    JOIN used_sources AS s ON s.task = p.task AND s.chunk_id = p.chunk_id
    GROUP BY ALL
),
cited AS (
    SELECT r.task, s.terms, count(DISTINCT (r.key_id, r.request_id)) AS n_requests
    FROM citations AS r
    JOIN used_sources AS s ON s.task = r.task AND s.chunk_id = r.chunk_id
    GROUP BY ALL
),
names AS (
    SELECT DISTINCT terms, licence, publisher FROM sources
)
SELECT
    task,
    coalesce(n.licence, 'unknown') AS licence,
    coalesce(n.publisher, 'unknown') AS publisher,
    coalesce(h.n_documents, 0) AS n_documents,
    coalesce(h.n_chunks, 0) AS n_chunks,
    coalesce(t.n_training_rows, 0) AS n_training_rows,
    coalesce(t.model_versions, []) AS model_versions,
    coalesce(r.n_requests, 0) AS n_requests
FROM held AS h
FULL JOIN trained AS t USING (task, terms)
FULL JOIN cited AS r USING (task, terms)
LEFT JOIN names AS n USING (terms)
ORDER BY task, licence, publisher
