-- Every version that was promoted had passed its checks, and every override names them and says why.
SELECT task, decided_at, decision, model_version, failed_checks, reason
FROM promotions
WHERE (decision = 'promoted' AND len(failed_checks) > 0)
   OR (decision = 'overridden' AND coalesce(trim(reason), '') = '')
