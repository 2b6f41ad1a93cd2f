"""What every asset shares: retries that end at a `UserError`, and what a table shows of itself."""

import dagster as dg
import polars as pl
import pytest

from ev_platform.defs import shown, stage
from ev_platform.errors import UserError
from ev_platform.records import TABLES

FAST = dg.RetryPolicy(max_retries=2)


def run_failing(error):
    """Materialize an asset that fails with an error; return the result and how often it was tried."""
    tried = []

    @dg.asset(retry_policy=FAST)
    @stage.final_user_errors
    def page(context: dg.AssetExecutionContext):
        tried.append(context.run_id)
        if len(tried) == 1:
            raise error
        yield dg.Output(1)

    return dg.materialize([page], raise_on_error=False), len(tried)


def test_outage_is_tried_again():
    result, n_tried = run_failing(ConnectionResetError("gone"))
    assert (result.success, n_tried) == (True, 2)


def test_user_error_is_not_tried_again_and_its_sentence_is_the_failure():
    result, n_tried = run_failing(UserError("train.csv is missing: write it."))
    assert (result.success, n_tried) == (False, 1)
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data.description == "train.csv is missing: write it."


@pytest.mark.parametrize("table", TABLES)
def test_page_of_every_table_says_what_a_row_and_its_columns_are(table):
    told = stage.spec(table, "A table.", "corpus")
    assert told["description"].startswith("A table.\n\nA row: ")
    columns = told["metadata"]["dagster/column_schema"].columns
    assert [column.name for column in columns] == list(TABLES[table].__dataclass_fields__)
    assert all(len(column.type) <= 24 for column in columns)


def test_words_of_strangers_become_no_image_link_or_html_in_a_table():
    text = shown.markdown_table(pl.DataFrame({"text": ["![x](https://a.example/b.png) <img src=x> a|b\nc"]}))
    assert "![" not in text and "<img" not in text
    assert len(text.splitlines()) == 3


def test_counts_become_numbers_and_a_plot():
    frame = pl.DataFrame({"drop_reason": ["language", "language", "off_topic", None], "n_chars": [10, 20, 30, 40]})
    told = shown.describe("dropped_documents", frame)
    assert (told["drop_reason/language"], told["drop_reason/off_topic"], told["n_chars_mean"]) == (2, 1, 25.0)
    for plot in ("plot_of_drop_reason", "plot_of_n_chars"):
        assert told[plot].value.startswith("![") and "data:image/png;base64," in told[plot].value


def test_wide_rows_stand_on_end_in_a_window():
    frame = pl.DataFrame({f"column_{n}": ["x" * 100] * 4 for n in range(6)})
    text = shown.describe("documents", frame)["preview"].value
    lines = text.rstrip().splitlines()
    assert lines[0] == "| column | row 1 | row 2 | row 3 |"
    assert len(lines) == 2 + 6
    assert len(text) >= 1000  # shorter Markdown is shown in place, where it would be cut
    assert max(map(len, lines)) < 130
