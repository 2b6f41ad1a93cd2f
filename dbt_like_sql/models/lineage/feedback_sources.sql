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
        c.example_id AS candidate_id,
        c.chunk_ids AS given_chunk_ids,
        c.feedback_id,
        c.key_id,
        c.given_at,
        string_agg(DISTINCT r.reviewer, ', ' ORDER BY r.reviewer) AS reviewer,
        max(r.reviewed_at) AS reviewed_at
    FROM trained AS t
    JOIN feedback_candidates AS c ON c.task = t.task AND c.request_id = t.request_id
    JOIN reviews AS r ON r.task = c.task AND r.example_id = c.example_id AND r.question = t.question
        AND r.answer = t.answer AND r.decision <> 'reject'
    GROUP BY ALL
),
said AS (
    SELECT a.task, a.candidate_id, f.question, f.rating, f.correction, f.comment, f.given_at
    FROM accepted AS a
    JOIN feedback AS f ON f.feedback_id = a.feedback_id
),
asked AS (
    -- Clients choose request ids: another key may have used the same one. An administrator's judgement alone is of a
    -- request of another key.
    SELECT DISTINCT ON (a.task, a.candidate_id) a.task, a.candidate_id, r.asked_at, r.route, r.question, r.answer
    FROM accepted AS a
    JOIN requests AS r ON r.request_id = a.request_id AND r.model_version = a.model_version
        AND r.chunk_ids = a.given_chunk_ids AND r.asked_at <= a.given_at
    LEFT JOIN said AS f ON f.task = a.task AND f.candidate_id = a.candidate_id
    WHERE f.question IS NULL OR r.question IS NULL OR r.question = f.question
    ORDER BY a.task, a.candidate_id, r.key_id = a.key_id DESC, r.asked_at DESC
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
    a.given_chunk_ids,
    a.key_id,
    f.rating,
    f.correction,
    f.comment,
    f.given_at
FROM accepted AS a
LEFT JOIN asked AS q ON q.task = a.task AND q.candidate_id = a.candidate_id
LEFT JOIN said AS f ON f.task = a.task AND f.candidate_id = a.candidate_id
ORDER BY a.task, a.reviewed_at, a.example_id
