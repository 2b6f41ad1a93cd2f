-- Every document that ever passed the filters, as it was last seen.
SELECT DISTINCT ON (task, document_id)
    task,
    document_id,
    url,
    fetched_url,
    kind,
    title,
    publisher,
    licence,
    published_on,
    fetched_at,
    content_sha256
FROM clean_documents_history
ORDER BY task, document_id, version DESC
