-- Every document that ever passed the filters, as it was last seen.
SELECT
    task,
    document_id,
    arg_max(url, version) AS url,
    arg_max(fetched_url, version) AS fetched_url,
    arg_max(kind, version) AS kind,
    arg_max_null(title, version) AS title,
    arg_max_null(publisher, version) AS publisher,
    arg_max_null(licence, version) AS licence,
    arg_max_null(published_on, version) AS published_on,
    arg_max(fetched_at, version) AS fetched_at,
    arg_max_null(content_sha256, version) AS content_sha256
FROM clean_documents_history
GROUP BY task, document_id
