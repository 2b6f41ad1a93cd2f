-- Every row in force that comes from feedback: the request behind it, what people said of the answer, who accepted it.
WITH trained AS (
    SELECT task, split, example_id, question, answer, chunk_id, request_id
    FROM (FROM training_set UNION ALL BY NAME FROM validation_set)
    WHERE request_id IS NOT NULL
),
accepted AS (
    -- One request may have given several candidates: which of them became the row, its reviewed words tell.
    SELECT
        t.*,
        c.kind,
        c.model_version,
        c.request_ids,
        string_agg(DISTINCT r.reviewer, ', ' ORDER BY r.reviewer) AS reviewer,
        max(r.reviewed_at) AS reviewed_at
    FROM trained AS t
    JOIN feedback_candidates AS c ON c.task = t.task AND c.request_id = t.request_id
    JOIN reviews AS r ON r.task = c.task AND r.example_id = c.example_id AND r.question = t.question
        AND r.answer = t.answer AND r.decision <> 'reject'
    GROUP BY ALL
),
said AS (
    SELECT DISTINCT ON (request_id) request_id, key_id, rating, correction, comment, given_at
    FROM feedback
    WHERE request_id IN (SELECT request_id FROM trained)
    ORDER BY request_id, given_at DESC
),
asked AS (
    SELECT DISTINCT ON (request_id) request_id, asked_at, route, question, answer, chunk_ids
    FROM requests
    WHERE request_id IN (SELECT request_id FROM trained)
    ORDER BY request_id, asked_at DESC
)
SELECT
    a.task,
    a.example_id,
    a.split,
    a.question,
    a.answer,
    a.kind,
    a.chunk_id,
    a.reviewer,
    a.reviewed_at,
    a.request_id,
    a.request_ids,
    a.model_version,
    q.asked_at,
    q.route,
    q.question AS asked_question,
    q.answer AS given_answer,
    q.chunk_ids AS given_chunk_ids,
    f.key_id,
    f.rating,
    f.correction,
    f.comment,
    f.given_at
FROM accepted AS a
LEFT JOIN asked AS q ON q.request_id = a.request_id
LEFT JOIN said AS f ON f.request_id = a.request_id
ORDER BY a.task, a.reviewed_at, a.example_id
