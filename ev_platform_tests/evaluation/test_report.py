import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import polars as pl
import pytest
from rich.console import Console

from ev_platform.evaluation.report import ReportContext, print_table, render_report
from ev_platform.evaluation.summary import summarise
from ev_platform.storage import frame_fingerprint


class Reader(HTMLParser):
    """Collects the tags, the addresses and the text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.ids, self.words = [], [], [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("href", "src", "xlink:href")]
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_data(self, data):
        self.words.append(data)


CONTEXT = ReportContext(
    task="ev_charging",
    description="Answer questions about <charging>.",
    metric="token_f1",
    verdict="ship tuned + retrieval",
    reason="It is +0.400 against base + retrieval.",
    n_train_rows=1234,
    base_model="SmolLM2-135M-Instruct",
    recipe="smollm2-135m-cpu",
    sources={
        "chk_1": "https://plugfield.example/a?b=1&c=2",
        "chk_other": "javascript:alert(1)",
        "chk_other2": "pdfs/manual.pdf#page=3",
    },
)


@pytest.fixture(scope="module")
def metrics(predictions):
    return summarise(predictions, resamples=200, seed=17)


@pytest.fixture(scope="module")
def page(metrics, predictions):
    return render_report(metrics, predictions, context=CONTEXT)


def test_report_page_needs_nothing_from_outside(page):
    read = Reader(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)
    assert read.tags.count("svg") == 2
    # Both plots stand in one document, so their ids may not meet.
    assert len(read.ids) == len(set(read.ids))


def test_report_names_task_verdict_run_and_figures(page, metrics, predictions):
    text = Reader(page).text
    assert "Evaluation of ev_charging" in text
    assert CONTEXT.reason in text
    assert frame_fingerprint("predictions", predictions)[:12] in text
    assert "1,234" in text
    row = metrics.row(
        by_predicate=(pl.col("system") == "tuned_rag")
        & (pl.col("metric") == "token_f1")
        & (pl.col("compared_to") == "base_rag"),
        named=True,
    )
    assert f"{row['value']:+.3f} {row['low']:+.3f}, {row['high']:+.3f}" in text


def test_report_answers_best_and_worst_are_ranked_by_f1_then_gain(page):
    text = Reader(page).text
    best, worst = text.split("Best answers of tuned + retrieval")[1].split("Worst answers of tuned + retrieval")
    # Questions 0 to 16 are answered; question 0 by the base too, so it shows no gain. 17 to 19 are not, and of the
    # rest, question 0 is the one where the tuned model gains least.
    assert re.findall(r"question <(\d+)>", best) == ["1", "2", "3", "4", "5", "6"]
    assert set(re.findall(r"question <(\d+)>", worst)[:3]) == {"17", "18", "19"}
    assert re.findall(r"question <(\d+)>", worst)[3] == "0"


def test_report_text_of_models_and_sources_is_escaped(page):
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "Answer questions about &lt;charging&gt;." in page
    links = [address for address in Reader(page).addresses if not address.startswith("#")]
    assert links == ["https://plugfield.example/a?b=1&c=2"]
    assert "javascript:alert(1)" in Reader(page).text


def test_report_sources_say_which_passage_holds_the_answer(page):
    text = Reader(page).text
    assert "https://plugfield.example/a?b=1&c=2 (holds the answer) pdfs/manual.pdf#page=3" in text
    # Question 4's passage was not found, and has no known address.
    assert "the passage with the answer was not retrieved: chk_4" in text


def test_report_same_input_gives_the_same_page(page, metrics, predictions):
    assert render_report(metrics, predictions, context=CONTEXT) == page


def test_report_one_system_one_question_renders_without_differences(predictions):
    alone = predictions.filter((pl.col("system") == "base") & (pl.col("example_id") == "exm_00"))
    page = render_report(summarise(alone, resamples=100, seed=17), alone, context=CONTEXT)
    read = Reader(page)
    assert "Paired differences" not in read.text
    assert read.tags.count("svg") == 1
    assert "What is question <0>?" in read.text


def test_report_with_a_teacher_still_ranks_by_the_system_that_may_ship(predictions):
    teacher = predictions.filter(pl.col("system") == "base").with_columns(system=pl.lit("teacher"))
    rows = pl.concat([predictions, teacher])
    text = Reader(render_report(summarise(rows, resamples=100, seed=17), rows, context=CONTEXT)).text
    assert "Best answers of tuned + retrieval" in text


def test_report_of_labels_shows_accuracy_in_table_plots_and_cards(predictions):
    rows = predictions.filter(pl.col("system").is_in(["base", "tuned"]))
    metrics = summarise(rows, resamples=100, seed=17, is_labels=True)
    page = render_report(metrics, rows, context=replace(CONTEXT, metric="accuracy", verdict="ship tuned"))
    read = Reader(page)
    assert "Accuracy and macro F1" in read.text
    assert "Difference of accuracy, paired by question" in read.text
    assert read.tags.count("svg") == 2
    assert "Best answers of tuned" in read.text
    assert "tuned accuracy 1.00 about 1 kilowatt" in read.text
    assert "tuned minus base +0.250" in read.text
    assert "ROUGE-L" not in read.text.split("Below a mean stands")[0]


def test_print_table_eighty_columns_shows_every_figure_whole(metrics):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(print_table(metrics))
    text = console.export_text()
    assert "…" not in text
    for row in metrics.filter(pl.col("compared_to").is_null() & (pl.col("metric") == "token_f1")).iter_rows(named=True):
        assert f"{row['value']:.3f}" in text
        assert f"[{row['low']:.3f}, {row['high']:.3f}]" in text
    assert "20 test rows" in text
