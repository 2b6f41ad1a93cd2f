from dataclasses import dataclass

import polars as pl
import pytest

from ev_platform import records
from ev_platform.records import Metric, RawBody, schema_of, stable_columns, to_frame
from ev_platform.records.comments import column_texts, row_text


@pytest.mark.parametrize("table", records.TABLES)
def test_table_without_rows_has_the_schema_of_its_row_class(table):
    frame = to_frame(table, [])
    assert frame.schema == schema_of(table)
    assert frame.columns == list(records.TABLES[table].__dataclass_fields__)


def test_to_frame_keeps_rows_in_order_and_nulls_in_place():
    rows = [Metric("tuned", None, "f1", 0.5, 0.4, 0.6, 84), Metric("base", "tuned", "p95", 1.5, None, None, 84)]
    assert [Metric(**row) for row in to_frame("eval_report", rows).iter_rows(named=True)] == rows


def test_to_frame_of_a_value_of_another_type_is_refused():
    with pytest.raises((TypeError, pl.exceptions.PolarsError)):
        to_frame("eval_report", [Metric("tuned", None, "f1", "high", None, None, 84)])  # type: ignore[arg-type]


def test_stable_columns_leave_out_what_only_says_when_a_page_was_checked():
    left_out = set(schema_of("raw_pages")) - set(stable_columns("raw_pages"))
    assert left_out == {"fetched_at", "checked_at", "etag", "last_modified"}
    assert stable_columns("chunks") == list(schema_of("chunks"))


def test_schema_of_an_undeclared_table_is_refused():
    with pytest.raises(KeyError, match="leftovers"):
        schema_of("leftovers")


def test_schema_of_a_column_without_a_polars_type_names_the_column(monkeypatch):
    @dataclass
    class Odd:
        name: str
        weights: dict[str, float]

    monkeypatch.setitem(records.TABLES, "odd", Odd)
    with pytest.raises(TypeError, match=r"odd\.weights"):
        schema_of("odd")


@pytest.mark.parametrize("table", records.TABLES)
def test_row_of_every_table_is_told_in_a_sentence(table):
    text = row_text(records.TABLES[table])
    assert text.endswith(".") and "\n" not in text and len(text) > 15
    assert f"`{table}`" not in text or table in ("training_set", "validation_set", "benchmark")


def test_comments_beside_columns_are_their_texts():
    texts = column_texts(RawBody)
    assert texts["kind"] == '"web", "pdf", or "text" for what the task brings itself'
    assert texts["robots"].startswith("what robots.txt said: ")  # beside a type over several lines
    assert "n_bytes" not in texts
    assert set(texts) < set(schema_of("raw_pages"))
