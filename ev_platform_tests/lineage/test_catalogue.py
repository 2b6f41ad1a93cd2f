import duckdb
import polars as pl
import pytest

from ev_platform.lineage.catalogue import rows_of
from ev_platform.lineage.models import load_models
from ev_platform.records import TABLES, Metric, schema_of, to_frame
from ev_platform.storage import Store


def metrics(*values):
    return to_frame("eval_report", [Metric("base", None, "f1", value, None, None, 1) for value in values])


def columns(store, view):
    return [column for column, *_ in rows_of(store, f"DESCRIBE {view}", [])]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("empty"))
    store.rebuild_catalogue()
    return store


def test_catalogue_of_an_empty_store_answers_for_every_table(empty):
    for table in TABLES:
        assert columns(empty, table) == ["task", *schema_of(table)]
        # `registered_model` has a column `version` of its own, so DuckDB numbers the added one.
        added = "version_1" if "version" in schema_of(table) else "version"
        assert columns(empty, f"{table}_history") == ["task", *schema_of(table), added]
        assert rows_of(empty, f"FROM {table}", []) == []
    assert rows_of(empty, "FROM materializations", []) == []


@pytest.mark.parametrize("model", load_models(), ids=lambda model: model.name)
def test_sql_model_runs_on_an_empty_store(empty, model):
    assert rows_of(empty, f"FROM {model.name}", []) == []
    assert "task" in columns(empty, model.name)


def test_current_view_shows_the_last_version_and_the_history_all_of_them(store):
    first = store.publish("eval_report", "cars", metrics(0.25))
    second = store.publish("eval_report", "cars", metrics(0.5, 0.75))
    other = store.publish("eval_report", "trains", metrics(1.0))
    assert rows_of(store, "SELECT task, value FROM eval_report ORDER BY ALL", []) == [
        ("cars", 0.5),
        ("cars", 0.75),
        ("trains", 1.0),
    ]
    assert rows_of(store, "SELECT version, value FROM eval_report_history WHERE task = 'cars' ORDER BY ALL", []) == [
        (first.version, 0.25),
        (second.version, 0.5),
        (second.version, 0.75),
    ]
    assert rows_of(store, "SELECT version FROM eval_report_history WHERE task = 'trains'", []) == [(other.version,)]


def test_catalogue_written_step_by_step_is_the_one_written_at_once(store):
    def views():
        return rows_of(store, "SELECT view_name, sql, comment FROM duckdb_views() WHERE NOT internal ORDER BY ALL", [])

    store.publish("eval_report", "cars", metrics(0.25))
    store.catalogue.chmod(0o644)
    with duckdb.connect(str(store.catalogue)) as connection:  # as an older platform may have left it
        connection.execute("CREATE VIEW gone AS SELECT 1")
        connection.execute("CREATE OR REPLACE VIEW chunks AS SELECT 2")
    store.publish("eval_report", "cars", metrics(0.5))
    step_by_step = views()
    store.catalogue.unlink()
    store.rebuild_catalogue()
    assert views() == step_by_step


def test_unreadable_catalogue_is_written_anew(store):
    store.publish("eval_report", "cars", metrics(0.25))
    store.catalogue.unlink()
    store.catalogue.write_bytes(b"no database")
    store.publish("eval_report", "cars", metrics(0.5))
    assert rows_of(store, "SELECT value FROM eval_report", []) == [(0.5,)]


def test_history_leaves_out_a_parquet_file_that_a_killed_process_left(store):
    record = store.publish("eval_report", "cars", metrics(0.25))
    folder = store.root / "tables" / "eval_report" / "cars"
    (folder / "20990101T000000000000-aaaaaaaaaaaa.parquet").write_bytes(
        (folder / f"{record.version}.parquet").read_bytes()
    )
    store.rebuild_catalogue()
    assert rows_of(store, "SELECT count(*) FROM eval_report_history", []) == [(1,)]


def test_materializations_hold_each_record_with_its_inputs(store):
    store.publish("eval_report", "cars", metrics(0.25), inputs={"predictions": "f1"}, config={"a": 1})
    record = store.publish("eval_report", "cars", metrics(0.5), inputs={"predictions": "f2"}, code="c")
    found = rows_of(
        store,
        "SELECT \"table\", task, n_rows, inputs['predictions'] FROM materializations WHERE version = ?",
        [record.version],
    )
    assert found == [("eval_report", "cars", 1, "f2")]
    assert rows_of(store, "SELECT count(*) FROM materializations", []) == [(2,)]


def test_history_keeps_versions_that_have_columns_of_their_own(store):
    """A declaration may change; what was stored under the old one stays readable."""
    old = store.publish("eval_report", "cars", metrics(0.25))
    file = store.root / "tables" / "eval_report" / "cars" / f"{old.version}.parquet"
    pl.read_parquet(file).drop("n_rows").write_parquet(file)
    store.publish("eval_report", "cars", metrics(0.5))
    assert rows_of(store, "SELECT value, n_rows FROM eval_report_history ORDER BY ALL", []) == [(0.25, None), (0.5, 1)]


def test_catalogue_is_read_only_for_everyone(store):
    store.publish("eval_report", "cars", metrics(0.25))
    assert store.catalogue.stat().st_mode & 0o222 == 0
    with (
        duckdb.connect(str(store.catalogue), read_only=True) as connection,
        pytest.raises(duckdb.Error, match="read-only"),
    ):
        connection.execute("CREATE TABLE mine (x INT)")
