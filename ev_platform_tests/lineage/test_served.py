"""What was served, as DuckDB shows it: at once, once, and with the pages behind it."""

from datetime import UTC, datetime, timedelta

import duckdb
import polars as pl
import pytest

from ev_platform.lineage.catalogue import rows_of, show_query
from ev_platform.records import SERVED, schema_of, to_frame
from ev_platform.serving import segments as files
from ev_platform.serving.journal import Journal, keep_up, read_journal
from ev_platform.serving.segments import Segments
from ev_platform.storage import Store
from ev_platform_tests.evaluation.stored import chunk, document
from ev_platform_tests.serving.rows import judged, served

NOW = datetime.now(UTC)


@pytest.fixture
def catalogue(store):
    store.rebuild_catalogue()
    return store


def ids(store):
    return sorted(row[0] for row in rows_of(store, "SELECT request_id FROM requests", []))


def test_catalogue_without_requests_has_their_views(catalogue):
    for table in SERVED:
        assert rows_of(catalogue, f"FROM {table}", []) == []
        columns = rows_of(catalogue, f"DESCRIBE {table}", [])
        assert [column[0] for column in columns] == list(schema_of(table))


def test_views_show_what_was_added_a_moment_ago_and_what_is_rolled(catalogue):
    requests, feedback = Journal(catalogue.root, "requests"), Journal(catalogue.root, "feedback")
    row, said = served(question="Größe?\n„x“"), judged()
    requests.add(row)
    feedback.add(said)
    for _ in range(2):
        for table, wanted in (("requests", row), ("feedback", said)):
            (found,) = rows_of(catalogue, f"FROM {table}", [])
            assert list(found) == [getattr(wanted, name) for name in schema_of(table)]
        requests.close()
        feedback.close()


def test_views_have_the_types_of_the_rows(catalogue):
    types = {name: kind for name, kind, *_ in rows_of(catalogue, "DESCRIBE requests", [])}
    assert types["asked_at"] == "TIMESTAMP WITH TIME ZONE"
    assert types["chunk_ids"] == "VARCHAR[]"
    assert types["scores"] == "FLOAT[]"
    assert (types["status"], types["is_streamed"], types["total_ms"]) == ("BIGINT", "BOOLEAN", "DOUBLE")


def test_row_is_shown_once_while_its_segment_lies_in_three_files(catalogue, monkeypatch):
    """As it does for a while after its day is over."""
    journal = Journal(catalogue.root, "requests", max_rows=2)
    for n in range(6):
        journal.add(served(f"req_{n}"))
    journal.close()
    wanted = [f"req_{n}" for n in range(6)]
    segments = Segments(catalogue.root, "requests")
    for file in segments.journals():
        file.rename(file.with_suffix(".aside"))
    monkeypatch.setattr(files, "now", lambda: NOW + timedelta(days=1))
    segments.compact()
    for file in (catalogue.root / "serving" / "requests" / "journal").glob("*.aside"):
        file.rename(file.with_suffix(".jsonl"))
    assert len(segments.journals()) == 3
    assert len(segments.parquet(NOW.date())) == 4
    assert ids(catalogue) == wanted
    assert read_journal(catalogue.root, "requests").height == 6


def test_line_that_is_being_written_is_no_row_yet(catalogue):
    journal = Journal(catalogue.root, "requests")
    journal.add(served("whole"))
    (file,) = Segments(catalogue.root, "requests").journals()
    with file.open("ab") as lines:
        lines.write(b'{"request_id": "half", "asked')
    assert ids(catalogue) == ["whole"]
    file.write_bytes(file.read_bytes()[: -len(b'{"request_id": "half", "asked')])
    journal.close()


def test_columns_that_an_older_server_did_not_know_are_null(catalogue):
    journal = Journal(catalogue.root, "requests")
    journal.add(served())
    journal.close()
    (file,) = Segments(catalogue.root, "requests").parquet(NOW.date())
    for left in Segments(catalogue.root, "requests").journals():
        left.unlink()
    pl.read_parquet(file).drop("similarity").write_parquet(file)
    assert rows_of(catalogue, "SELECT request_id, similarity FROM requests", []) == [("req_1", None)]
    assert read_journal(catalogue.root, "requests")["similarity"].to_list() == [None]


def test_data_folder_may_have_a_name_that_looks_like_a_partition_or_ends_a_string(tmp_path):
    store = Store(tmp_path / "env=prod" / "it's")
    store.rebuild_catalogue()
    journal = Journal(store.root, "requests")
    journal.add(served("before"))
    journal.close()
    journal = Journal(store.root, "requests")
    journal.add(served("after"))
    assert ids(store) == ["after", "before"]
    assert sorted(read_journal(store.root, "requests")["request_id"]) == ["after", "before"]
    journal.close()


def test_queries_never_miss_a_row_nor_see_one_twice_while_they_are_rolled(catalogue):
    journal = Journal(catalogue.root, "requests", max_rows=5)
    with duckdb.connect(str(catalogue.catalogue), read_only=True) as connection:
        for n in range(90):
            journal.add(served(f"req_{n}"))
            if n % 3 == 0:
                found = connection.execute("SELECT count(*), count(DISTINCT request_id) FROM requests").fetchone()
                assert found == (n + 1, n + 1)
    journal.close()
    assert len(Segments(catalogue.root, "requests").parquet(NOW.date())) == 18
    assert len(ids(catalogue)) == 90


def test_view_follows_what_is_deleted(catalogue, monkeypatch):
    journal = Journal(catalogue.root, "requests")
    journal.add(served())
    journal.close()
    monkeypatch.setattr(files, "now", lambda: NOW + timedelta(days=31))
    keep_up(Segments(catalogue.root, "requests"), 30)
    assert ids(catalogue) == []


def test_citations_name_the_page_behind_each_passage(store):
    chunks, documents = [chunk(0), chunk(1)], [document(0), document(1)]
    store.publish("clean_documents", "charging", to_frame("clean_documents", documents))
    store.publish("chunks", "charging", to_frame("chunks", chunks))
    journal = Journal(store.root, "requests")
    journal.add(served("req_1", task="charging", chunk_ids=["chk_1", "chk_0"], scores=[0.75, 0.5]))
    journal.add(served("req_2", task="charging", chunk_ids=["chk_gone"], scores=[0.25]))
    journal.add(served("req_3", task=None, chunk_ids=[], scores=[]))
    found = rows_of(
        store, "SELECT request_id, rank, chunk_id, score, url, licence, publisher, title FROM request_citations", []
    )
    journal.close()
    behind = {n: (d.url, d.licence, d.publisher, d.title) for n, d in enumerate(documents)}
    assert found == [
        ("req_1", 1, "chk_1", 0.75, *behind[1]),
        ("req_1", 2, "chk_0", 0.5, *behind[0]),
        ("req_2", 1, "chk_gone", 0.25, None, None, None, None),
    ]


def test_days_add_up_what_was_served_and_said(catalogue):
    requests, feedback = Journal(catalogue.root, "requests"), Journal(catalogue.root, "feedback")
    requests.add(served("a", NOW, total_ms=100.0))
    requests.add(served("b", NOW, total_ms=300.0, is_abstention=True))
    requests.add(served("c", NOW, route="/v1/models", task=None, model_version=None))
    requests.add(served("d", NOW, status=503, model_version=None, is_abstention=None, n_prompt_tokens=None))
    requests.add(served("e", NOW, status=499, error="client_left", total_ms=9e6))
    requests.add(served("f", NOW, error="timeout", total_ms=9e6))
    feedback.add(judged("f1", NOW, request_id="a", rating="down"))
    feedback.add(judged("f2", NOW + timedelta(seconds=1), request_id="a", rating="up"))
    found = rows_of(
        catalogue,
        "SELECT task, model_version, day, n_requests, n_failed, n_abstentions, n_up, n_down, total_ms_p50, "
        "n_prompt_tokens FROM serving_days ORDER BY model_version NULLS LAST",
        [],
    )
    requests.close()
    feedback.close()
    assert found == [
        ("fake_task", "fake_task@3", NOW.date(), 4, 1, 1, 1, 0, 200.0, 400),
        ("fake_task", None, NOW.date(), 1, 1, 0, 0, 0, None, None),
    ]


def test_catalogue_of_an_older_platform_gets_the_views_that_it_lacks(catalogue, capsys):
    catalogue.catalogue.chmod(0o644)
    with duckdb.connect(str(catalogue.catalogue)) as connection:
        connection.execute("DROP VIEW serving_days")
    show_query(catalogue, "SELECT count(*) AS n_days FROM serving_days", max_rows=5, max_width=80)
    assert "n_days" in capsys.readouterr().out
    assert catalogue.catalogue.stat().st_mode & 0o222 == 0
