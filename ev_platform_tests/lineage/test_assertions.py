"""Assertions: how a file becomes one, and that each of the shipped ones finds the row that it is there to find."""

import duckdb
import pytest

from ev_platform.errors import UserError
from ev_platform.lineage.assertions import MAX_ROWS, failing_rows
from ev_platform.lineage.models import load_assertions, load_models
from ev_platform.lineage.schema import built_in
from ev_platform.records import to_frame
from ev_platform.storage import Store
from ev_platform_tests.evaluation.stored import chunk

SHIPPED = {assertion.name: assertion for assertion in load_assertions()}


@pytest.fixture
def write(tmp_path):
    def write(sql):
        (tmp_path / "models" / "a").mkdir(parents=True)
        (tmp_path / "models" / "a" / "few.sql").write_text("SELECT task, chunk_id FROM chunks")
        (tmp_path / "tests").mkdir()
        (tmp_path / "tests" / "assert_it.sql").write_text(sql)
        return load_assertions(tmp_path)

    return write


def test_assertion_is_a_check_of_what_it_reads_first(write):
    (found,) = write("-- All is\n-- well.\nSELECT d.task FROM requests AS r, documents_history AS d, few")
    assert (found.name, found.asset, found.severity) == ("assert_it", "documents", "error")
    assert found.description == "All is well."
    assert found.reads == ("requests", "documents_history", "few")


def test_assertion_can_say_its_severity_and_its_asset(write):
    (found,) = write("-- All is well.\n-- severity: warn\n-- asset: few\nSELECT task FROM chunks JOIN few USING (task)")
    assert (found.asset, found.severity, found.description) == ("few", "warn", "All is well.")


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT chunk_id FROM chunks", "select the column `task` too"),
        ("SELECT task,\n colour FROM chunks", r'line 2: .*"colour" not found'),
        (
            "SELECT task FROM chunkz",
            r"line 1: it reads the table 'chunkz', which does not exist; did you mean 'chunks'",
        ),
        ("-- severity: fatal\nSELECT task FROM chunks", "the severity is 'fatal'; it can be error or warn"),
        ("SELECT task FROM requests", r"of requests none is an asset: name one, as `-- asset: chunks`"),
        ("-- asset: chunkz\nSELECT task FROM chunks", r"of chunkz none is an asset"),
        ("DELETE FROM chunks", "one SELECT, and nothing else"),
    ],
)
def test_assertion_that_cannot_be_asked_is_refused_by_its_file(write, sql, said):
    with pytest.raises(UserError, match=rf"tests/assert_it\.sql[:,] .*{said}"):
        write(sql)


def test_failing_rows_are_counted_and_the_first_shown_for_one_task_or_all(store, write):
    (assertion,) = write("SELECT task, chunk_id FROM chunks")
    store.publish("chunks", "cars", to_frame("chunks", [chunk(n) for n in range(MAX_ROWS + 2)]))
    store.publish("chunks", "trains", to_frame("chunks", [chunk(0)]))
    found = failing_rows(store, assertion, "cars")
    assert (found.n_rows, found.first.height, found.first.columns) == (MAX_ROWS + 2, MAX_ROWS, ["task", "chunk_id"])
    assert failing_rows(store, assertion).n_rows == MAX_ROWS + 3
    assert failing_rows(store, assertion, "no such task").n_rows == 0


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("assertions")).rebuild_catalogue()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_assertion_holds_as_it_stands_in_a_plain_client_on_an_empty_store(catalogue, name):
    with duckdb.connect(str(catalogue), read_only=True) as connection:
        assert connection.execute(SHIPPED[name].sql).fetchall() == []


def test_every_shipped_assertion_says_what_holds():
    assert len(SHIPPED) >= 12
    assert [name for name, assertion in SHIPPED.items() if not assertion.description.endswith((".", ")"))] == []


DOCUMENT = {"document_id": "doc_1", "licence": "MIT", "n_chars": 100}
CHUNK = {"chunk_id": "chk_1", "document_id": "doc_1", "start": 0, "end": 100}
ROW = {"example_id": "exm_1", "chunk_id": "chk_1", "context_chunk_ids": ["chk_1"], "cluster_id": "doc_1"}
EXAMPLE = {"example_id": "exm_1", "chunk_id": "chk_1", "origin": "generated"}
VERSION = {
    "model_version": "cars@1",
    "training_set_version": "v1",
    "training_set_fingerprint": "f1",
    "chunks_version": "v2",
    "chunks_fingerprint": "f2",
}
MADE = [
    {"table": "training_set", "version": "v1", "fingerprint": "f1"},
    {"table": "chunks", "version": "v2", "fingerprint": "f2"},
]
CALL = {"call_id": "call_1", "cost_usd": 0.0, "n_input_tokens": 0, "n_output_tokens": 0}
REQUEST = {"request_id": "req_1", "chunk_ids": ["chk_1"], "scores": [0.5]}
PROMOTED = {"decision": "promoted", "model_version": "cars@1", "failed_checks": [], "reason": "Better."}
PREDICTION = {"system": "base", "example_id": "exm_1"}
SOUND = {
    "clean_documents": [DOCUMENT],
    "clean_documents_history": [DOCUMENT | {"version": "v1"}],
    "chunks": [CHUNK],
    "chunks_history": [CHUNK | {"version": "v2"}],
    "examples": [EXAMPLE],
    "training_set": [ROW],
    "benchmark": [ROW | {"cluster_id": "doc_2"}],
    "registered_model": [VERSION, VERSION | {"model_version": "cars@2", "chunks_fingerprint": "f8"}],
    "takedowns": [{"trained_versions": ["cars@2"], "holding_versions": []}],
    "materializations": MADE,
    "teacher_calls": [CALL],
    "requests": [REQUEST, REQUEST | {"request_id": "req_2", "chunk_ids": ["chk_8"], "answer": "[taken down]"}],
    "promotions": [PROMOTED, PROMOTED | {"decision": "overridden", "failed_checks": ["latency"]}],
    "predictions": [PREDICTION],
    "dropped_documents": [
        {"document_id": "doc_1", "drop_reason": "exact_duplicate", "duplicate_of": "doc_1"},
        {"document_id": "doc_9", "drop_reason": "language"},
    ],
    "rejected_examples": [{"example_id": "exm_9", "reject_reason": "copied"}],
}
PLANTED = {
    "assert_costs_are_not_negative": {"teacher_calls": [CALL | {"cost_usd": -0.1}]},
    "assert_every_chunk_has_a_document": {"clean_documents": []},
    "assert_every_citation_resolves": {"requests": [REQUEST | {"chunk_ids": ["chk_1", "chk_9"], "scores": [0.5, 0.4]}]},
    "assert_every_document_has_a_licence": {"clean_documents": [DOCUMENT | {"licence": " "}]},
    "assert_every_generated_example_has_a_passage": {"examples": [EXAMPLE | {"chunk_id": None}]},
    "assert_every_prediction_is_of_a_test_row": {"predictions": [PREDICTION, PREDICTION]},
    "assert_every_training_passage_is_known": {"training_set": [ROW | {"context_chunk_ids": ["chk_1", "chk_9"]}]},
    "assert_no_document_is_kept_and_dropped": {
        "dropped_documents": [{"document_id": "doc_1", "drop_reason": "language"}]
    },
    "assert_no_document_is_trained_on_and_tested": {"benchmark": [ROW]},
    "assert_no_example_is_kept_and_rejected": {"rejected_examples": [{"example_id": "exm_1"}]},
    "assert_promoted_versions_passed_their_gate": {"promotions": [PROMOTED | {"failed_checks": ["latency"]}]},
    "assert_registered_versions_can_be_reopened": {"materializations": [MADE[0], MADE[1] | {"fingerprint": "f9"}]},
    "assert_spans_lie_within_their_document": {"chunks": [CHUNK | {"end": 101}]},
}


@pytest.fixture(scope="module")
def failing():
    """Return a function that runs an assertion over tables with these rows of the task `cars` and the models."""
    with duckdb.connect(":memory:") as connection:
        for table, columns in built_in().items():
            declared = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
            connection.execute(f"CREATE TABLE {table} ({declared})")
        for model in load_models():
            connection.execute(f"CREATE VIEW {model.name} AS {model.sql}")

        def run(name, rows):
            connection.execute("BEGIN")
            for table, found in rows.items():
                for row in found:
                    names = ", ".join(f'"{column}"' for column in ("task", *row))
                    marks = ", ".join("?" for _ in ("task", *row))
                    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", ["cars", *row.values()])
            rows_found = connection.execute(SHIPPED[name].sql).fetchall()
            connection.execute("ROLLBACK")
            return rows_found

        yield run


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_assertion_finds_the_planted_row_and_no_other(failing, name):
    assert failing(name, SOUND) == []
    (found,) = failing(name, SOUND | PLANTED[name])
    assert found[0] == "cars"
