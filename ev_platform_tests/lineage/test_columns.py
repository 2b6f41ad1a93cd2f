"""Where columns come from: on models that show one way each, and on the shipped ones."""

import pytest

from ev_platform.lineage.columns import column_lineage, described_columns
from ev_platform.lineage.models import load_models
from ev_platform.lineage.schema import built_in


def origins(root, sql, **others):
    for name, text in {**others, "shown": sql}.items():
        file = root / "models" / "a" / f"{name}.sql"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = column_lineage(load_models(root))["shown"]
    return {column: [".".join(origin) for origin in pairs] for column, pairs in found.items()}


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("SELECT chunk_id AS id FROM chunks", {"id": ["chunks.chunk_id"]}),
        ("SELECT start + page AS x FROM chunks", {"x": ["chunks.page", "chunks.start"]}),
        ("SELECT count(*) AS n, 'a' AS kind FROM chunks", {"n": [], "kind": []}),
        ("WITH few AS (SELECT text AS t FROM chunks) SELECT t FROM few", {"t": ["chunks.text"]}),
        ("SELECT unnest(chunk_ids) AS chunk_id FROM requests", {"chunk_id": ["requests.chunk_ids"]}),
        (
            "SELECT d.url, c.page FROM chunks AS c LEFT JOIN documents_history AS d USING (document_id)",
            {"url": ["documents_history.url"], "page": ["chunks.page"]},
        ),
        (
            "SELECT question AS q FROM examples UNION ALL SELECT question FROM benchmark",
            {"q": ["benchmark.question", "examples.question"]},
        ),
        (
            "SELECT max(n_rows) FILTER (task = 'a') AS n FROM eval_report",
            {"n": ["eval_report.n_rows", "eval_report.task"]},
        ),
        (
            "SELECT DISTINCT ON (url) url, title FROM documents",
            {"url": ["documents.url"], "title": ["documents.title"]},
        ),
    ],
)
def test_columns_are_followed_to_what_the_model_reads(tmp_path, sql, wanted):
    assert origins(tmp_path, sql) == wanted


def test_columns_are_followed_to_the_next_model_and_no_further(tmp_path):
    found = origins(tmp_path, "SELECT * FROM middle", middle="SELECT task, upper(text) AS loud FROM chunks")
    assert found == {"task": ["middle.task"], "loud": ["middle.loud"]}


def test_every_origin_of_a_shipped_model_is_a_column_of_what_it_reads():
    models = {model.name: model for model in load_models()}
    known = {name: set(columns) for name, columns in built_in().items()}
    known |= {name: {column.name for column in model.columns} for name, model in models.items()}
    for name, model in models.items():
        found = column_lineage()[name]
        assert list(found) == [column.name for column in model.columns]
        for table, column in (origin for pairs in found.values() for origin in pairs):
            assert table in model.reads
            assert column in known[table]


def test_licence_of_a_citation_leads_back_to_the_document():
    lineage, at, column = column_lineage(), "request_citations", "licence"
    path = []
    while at in lineage:
        (origin,) = [o for o in lineage[at][column] if o[1] != "version"]
        path.append(at)
        at, column = origin
    assert path == ["request_citations", "chunk_sources", "document_sources"]
    assert (at, column) == ("clean_documents_history", "licence")


def test_copied_column_keeps_the_words_of_its_table():
    models = {model.name: model for model in load_models()}
    said = {column.name: column.description for column in described_columns(models["document_sources"])}
    assert said["document_id"] is None  # `clean_documents` has none either
    assert said["url"] is None
    kept = {column.name: column.description for column in described_columns(models["request_citations"])}
    assert kept["rank"] == "place of the passage, from 1"
    assert kept["fetched_hour"].startswith("hour in which")  # as `chunk_sources` says
    assert kept["is_abstention"] == 'whether the answer is the task\'s sentence for "no answer"'
