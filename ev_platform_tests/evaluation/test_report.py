import io
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import polars as pl
import pytest
from rich.console import Console

from ev_platform.evaluation.figures import Subject, describe_evaluation
from ev_platform.evaluation.report import gate_title, print_table, render_report
from ev_platform.evaluation.sections import sections_of
from ev_platform.evaluation.statistics import Verdict
from ev_platform.evaluation.summary import summarise
from ev_platform.evaluation.surroundings import describe_surroundings
from ev_platform.records import GateCheck, PairJudgement, Promotion, to_frame

SUBJECT = Subject(
    task="ev_charging",
    description="Answer questions about <charging>.",
    task_type="open_book_qa",
    metric="token_f1",
    verdict=Verdict("ship tuned + retrieval", "It is +0.400 against base + retrieval."),
    addresses={
        "chk_1": "https://plugfield.example/a?b=1&c=2",
        "chk_other": "javascript:alert(1)",
        "chk_other2": "pdfs/manual.pdf#page=3",
    },
    documents={},
)
PROVENANCE = {
    "run": "eb7f7e85fb59",
    "answered_at": "2026-11-21",
    "host": "here",
    "git_commit": None,
    "libraries": {"sacrebleu": "1.2"},
    "fingerprints": {"predictions": "eb7f7e85fb59"},
}


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


def tell(metrics, predictions, subject=SUBJECT):
    """Return a report that knows of nothing but predictions and their scores."""
    return {
        "model_version": None,
        "champion": None,
        **describe_evaluation(subject, metrics, predictions, pl.DataFrame()),
        **describe_surroundings({}, None, None),
        "recipe": "smollm2-135m-cpu",
        "provenance": PROVENANCE,
    }


def with_verdict(verdict):
    return Subject(**{name: getattr(SUBJECT, name) for name in Subject.__dataclass_fields__} | {"verdict": verdict})


@pytest.fixture(scope="module")
def metrics(predictions):
    return summarise(predictions, resamples=200, seed=17)


@pytest.fixture(scope="module")
def page(metrics, predictions):
    return render_report(tell(metrics, predictions))


def test_report_page_needs_nothing_from_outside(page):
    read = Reader(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)
    assert read.tags.count("svg") == 2
    # Both plots stand in one document, so their ids may not meet.
    assert len(read.ids) == len(set(read.ids))
    assert {address[1:] for address in read.addresses if address.startswith("#s")} <= set(read.ids)


def test_report_names_task_verdict_run_and_figures(page, metrics):
    text = Reader(page).text
    assert "Evaluation of ev_charging" in text
    assert SUBJECT.verdict.reason in text
    assert "eb7f7e85fb59" in text
    assert "sacrebleu 1.2" in text
    row = metrics.row(
        by_predicate=(pl.col("system") == "tuned_rag")
        & (pl.col("metric") == "token_f1")
        & (pl.col("compared_to") == "base_rag"),
        named=True,
    )
    chance = "p < 0.001" if row["p_value"] < 0.001 else f"p {row['p_value']:.3f}"
    assert f"{row['value']:+.3f} {row['low']:+.3f}, {row['high']:+.3f} {chance}" in text


def test_report_answers_best_and_worst_are_ranked_by_f1_then_gain(page):
    text = Reader(page).text.split("Paired differences")[1]
    worst, best = text.split("Worst answers of tuned + retrieval")[1].split("Best answers of tuned + retrieval")
    # Questions 0 to 16 are answered; question 0 by the base too, so it shows no gain. 17 to 19 are not, and of the
    # rest, question 0 is the one where the tuned model gains least.
    assert re.findall(r"question <(\d+)>", best) == ["1", "2", "3", "4", "5", "6"]
    assert set(re.findall(r"question <(\d+)>", worst)[:3]) == {"17", "18", "19"}
    assert re.findall(r"question <(\d+)>", worst)[3] == "0"


def test_report_text_of_models_and_sources_is_escaped(page):
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "Answer questions about &lt;charging&gt;." in page
    links = {address for address in Reader(page).addresses if not address.startswith("#")}
    assert links == {"https://plugfield.example/a?b=1&c=2"}
    assert "javascript:alert(1)" in Reader(page).text


def test_report_sources_say_which_passage_holds_the_answer(page):
    text = Reader(page).text
    assert "https://plugfield.example/a?b=1&c=2 (holds the answer) pdfs/manual.pdf#page=3" in text
    # Question 4's passage was not found, and has no known address.
    assert "the passage with the answer was not retrieved: chk_4" in text


def test_report_same_input_gives_the_same_page(page, metrics, predictions):
    assert render_report(tell(metrics, predictions)) == page


def test_report_one_system_one_question_renders_without_differences(predictions):
    alone = predictions.filter((pl.col("system") == "base") & (pl.col("example_id") == "exm_00"))
    read = Reader(render_report(tell(summarise(alone, resamples=100, seed=17), alone)))
    assert "Paired differences" not in read.text
    assert read.tags.count("svg") == 1
    assert "What is question <0>?" in read.text


def test_report_with_a_teacher_still_ranks_by_the_system_that_may_ship(predictions):
    teacher = predictions.filter(pl.col("system") == "base").with_columns(system=pl.lit("teacher"))
    rows = pl.concat([predictions, teacher])
    text = Reader(render_report(tell(summarise(rows, resamples=100, seed=17), rows))).text
    assert "Best answers of tuned + retrieval" in text


def test_report_looks_at_the_system_that_the_verdict_ships(metrics, predictions):
    told = tell(metrics, predictions, with_verdict(Verdict("ship base + retrieval", "Retrieval alone does it.")))
    assert told["favourite"] == "base_rag"
    text = Reader(render_report(told)).text
    assert "Best answers of base + retrieval" in text
    # The pair is stored as tuned + retrieval minus base + retrieval, and shown as it is stored.
    assert "tuned + retrieval minus base + retrieval" in text


def test_report_difference_without_significance_is_not_green(metrics, predictions):
    weak = metrics.with_columns(p_value=pl.when(pl.col("compared_to").is_not_null()).then(0.2))
    green = ('class="good"', "#1b7f4b; stroke")  # in the table, and in the plot
    assert all(mark in render_report(tell(metrics, predictions)) for mark in green)
    assert not any(mark in render_report(tell(weak, predictions)) for mark in green)


@pytest.mark.parametrize(
    ("decisions", "title"),
    [
        ([], "Not decided yet: ev@2"),
        (["promoted ev@1 ev@2"], "Promoted: ev@2 answers now"),
        (["kept ev@1 ev@1"], "Not promoted: ev@1 goes on"),
        (["kept ev@1 ev@1", "promoted ev@1 ev@3"], "Not promoted: ev@3 answers now"),
        (["overridden ev@1 ev@2"], "Promoted by a person against the gate: ev@2 answers now"),
        (
            ["promoted ev@1 ev@2", "rolled_back ev@2 ev@1"],
            "Promoted, then rolled back: ev@1 answers now, not ev@2",
        ),
        (["promoted ev@1 ev@2", "promoted ev@2 ev@3"], "Promoted, then replaced: ev@3 answers now, not ev@2"),
        (["promoted ev@1 ev@2", "promoted ev@2 ev@3", "rolled_back ev@3 ev@2"], "Brought back by a rollback: ev@2"),
    ],
)
def test_gate_title_says_who_answers_now(decisions, title):
    at = datetime(2026, 11, 2, tzinfo=UTC)
    rows = [
        Promotion(at, decision, "ev@2" if decision == "kept" else after, before, after, "Why.", [], "gate")
        for decision, before, after in map(str.split, decisions)
    ]
    check = to_frame("promotion_gate", [GateCheck("ev@2", "ev@1", "latency", True, 1.0, 1.0, "")])
    tables = {"promotions": to_frame("promotions", rows), "promotion_gate": check}
    assert gate_title(describe_surroundings(tables, "ev@2", None)["gate"]).startswith(title)


def test_gate_title_without_any_champion_says_so():
    told = {"decision": "kept", "champion_after": None}
    gate = {"model_version": "ev@1", "decision": told, "champion": None, "was_rolled_back": False}
    assert gate_title(gate) == "Not promoted: there is no champion"


def test_print_table_eighty_columns_shows_every_figure_whole(metrics):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(print_table(metrics))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for row in metrics.filter(pl.col("compared_to").is_null() & (pl.col("metric") == "token_f1")).iter_rows(named=True):
        assert f"{row['value']:.3f}" in text
        assert f"[{row['low']:.3f}, {row['high']:.3f}]" in text
    for row in metrics.filter(pl.col("metric") == "bleu").iter_rows(named=True):
        assert f"{row['value']:.1f}" in text
    assert "20 test rows" in text


def test_print_table_nine_systems_fit_into_eighty_columns(metrics):
    scores = metrics.filter(pl.col("compared_to").is_null())
    others = ("majority", "linear_probe", "first_sentence", "champion", "teacher")
    base = scores.filter(pl.col("system") == "base_rag")
    many = pl.concat([scores, *(base.with_columns(system=pl.lit(name)) for name in others)])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(print_table(many))
    text = console.export_text()
    assert "…" not in text
    names = ("commonest label", "linear probe", "first sentence found", "base + retrieval", "champion", "teacher")
    assert all(text.count(name) == 3 for name in names)  # scores, further scores, what an answer takes


def test_report_errors_are_counted_by_what_is_asked(metrics, predictions):
    asked = ("How many are there?", "For how long does it last?", "Why?", "Name it.")
    number = pl.col("example_id").str.slice(4).cast(pl.Int64)
    rows = predictions.with_columns(question=number.mod(4).replace_strict(dict(enumerate(asked))))
    groups = {line["name"]: line["n_rows"] for line in tell(metrics, rows)["errors"]["asked"]}
    assert groups == {"how many": 5, "how long": 5, "why": 5, "other": 5}


def test_report_without_a_system_to_ship_says_so(metrics, predictions):
    told = tell(metrics, predictions, with_verdict(Verdict("inconclusive", "No system has earned its place.")))
    text = Reader(render_report(told)).text
    assert "inconclusive: ship nothing new on this evidence" in text


def judgements_of(status, pairs):
    """Return the section of pairs of which the teacher and a person said something."""
    rows = [PairJudgement("exm", "tuned", "base", said, None, status, human, [], 0.0) for said, human in pairs]
    tables = {"pair_judgements": to_frame("pair_judgements", rows)}
    (section,) = sections_of({"judgements": describe_surroundings(tables, None, None)["judgements"]})
    return section


def test_report_pairs_that_only_people_judged_show_what_they_said():
    section = judgements_of("unsupported", [(None, "better"), (None, "better"), (None, "tie")])
    assert section.head == ["pair", "better", "tie", "worse"]
    assert section.rows == [["tuned against base", "2", "1", "0"]]
    assert section.note == "People judged these pairs; the teacher judged none, since it is no language model."


def test_report_pairs_that_the_teacher_judged_show_what_it_said():
    section = judgements_of("ok", [("better", "worse"), ("inconsistent", None), (None, "tie")])
    assert section.rows == [["tuned against base", "1", "0", "0", "1", "1"]]
    assert section.note.startswith("The teacher compared both answers twice")
