-- Every document in force has a licence, so that somebody can say whether it may be used.
-- severity: warn
SELECT task, document_id, url, publisher, licence
FROM clean_documents
WHERE coalesce(trim(licence), '') = ''
