"""A sample goes to a spreadsheet and comes back: what is chosen, what a spreadsheet does to it, what is refused."""

import csv
import io
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from ev_platform.dataset.agreement import agreement, merge_reviews, winning_reviews
from ev_platform.dataset.review import COLUMNS, export_sample, read_review
from ev_platform.errors import UserError
from ev_platform.records import Chunk, CleanDocument, Example, Review, schema_of, to_frame

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def example(number, *, kind="number", origin="generated", document="d0", split="train", **changes):
    fields = dict.fromkeys(Example.__dataclass_fields__) | {
        "example_id": f"exm_{number}",
        "question": f"Question {number}?",
        "answer": f"{number} kW",
        "answers": [f"{number} kW"],
        "is_answerable": True,
        "chunk_id": f"chk_{document}",
        "document_id": document,
        "origin": origin,
        "kind": kind,
        "split": split,
    }
    return Example(**(fields | changes))  # type: ignore[arg-type]


def frame_of(*rows):
    return to_frame("examples", rows)


def chunks(*documents):
    rows = [
        Chunk(f"chk_{name}", name, name, 0, 0, 9, "Guide > Power", None, f"The passage of {name}.", 5)
        for name in documents
    ]
    return to_frame("chunks", rows)


def pages(*documents):
    fields = dict.fromkeys(CleanDocument.__dataclass_fields__)
    rows = [CleanDocument(**(fields | {"document_id": d, "url": f"https://a.example/{d}"})) for d in documents]
    return to_frame("clean_documents", rows)  # type: ignore[arg-type]


def export(path, *rows, n=100, seed=1, documents=("d0",)):
    return export_sample(frame_of(*rows), chunks(*documents), pages(*documents), path, n=n, seed=seed)


def rows_in(path):
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))


def save(path, rows, columns=COLUMNS, encoding="utf-8", delimiter=","):
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, delimiter=delimiter, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(buffer.getvalue().encode(encoding))
    return path


def filled(number, decision, **cells):
    asked = {"example_id": f"exm_{number}", "question": f"Question {number}?", "answer": f"{number} kW"}
    return dict.fromkeys(COLUMNS, "") | asked | {"decision": decision, "reviewer": "Ada"} | cells


def read(path, *numbers, **options):
    return read_review(path, frame_of(*(example(n) for n in numbers)), NOON, **options)


# ---- what goes out ----


def test_export_row_shows_its_passage_and_page_and_leaves_the_decision_open(tmp_path):
    own = example(2, chunk_id=None, document_id=None, context="The row's own passage.")
    assert export(tmp_path / "s.csv", example(1), own) == 2
    first, second = rows_in(tmp_path / "s.csv")
    assert tuple(first) == COLUMNS
    assert first["passage"] == "Guide > Power\nThe passage of d0."
    assert first["url"] == "https://a.example/d0"
    assert (second["passage"], second["url"]) == ("The row's own passage.", "")
    assert {first[name] for name in COLUMNS[7:]} == {""}


def test_export_gives_every_stratum_a_row_and_the_rest_by_share(tmp_path):
    rows = [example(n) for n in range(80)]
    rows += [example(n, kind="yes_no") for n in range(80, 119)]
    rows += [example(119, kind="definition")]
    export(tmp_path / "s.csv", *rows, n=12)
    drawn = Counter(row["kind"] for row in rows_in(tmp_path / "s.csv"))
    assert drawn == {"number": 7, "yes_no": 4, "definition": 1}


def test_export_of_fewer_rows_than_strata_takes_the_largest(tmp_path):
    rows = [example(1, kind="rare"), *(example(n, kind="often") for n in range(2, 9)), example(9, origin="labelled")]
    export(tmp_path / "s.csv", *rows, n=1)
    assert [row["kind"] for row in rows_in(tmp_path / "s.csv")] == ["often"]


def test_export_goes_round_the_documents_before_it_takes_a_second_row_of_one(tmp_path):
    rows = [example(n, document="large") for n in range(50)]
    rows += [example(50 + n, document=f"small{n}") for n in range(5)]
    names = ("large", *(f"small{n}" for n in range(5)))
    export(tmp_path / "s.csv", *rows, n=6, documents=names)
    assert sorted(row["url"].rsplit("/", 1)[1] for row in rows_in(tmp_path / "s.csv")) == sorted(names)


def test_export_leaves_test_rows_out(tmp_path):
    export(tmp_path / "s.csv", example(1), example(2, split="test", origin="human"))
    assert [row["example_id"] for row in rows_in(tmp_path / "s.csv")] == ["exm_1"]


def test_export_is_the_same_for_the_same_seed_whatever_the_order_of_the_rows(tmp_path):
    rows = [example(n, document=f"d{n % 7}") for n in range(60)]
    shuffled = random.Random(3).sample(rows, 60)
    for name, own, seed in (("a", rows, 1), ("b", rows, 1), ("c", rows, 2), ("d", shuffled, 1)):
        export(tmp_path / f"{name}.csv", *own, n=9, seed=seed)
    a, b, c, d = ((tmp_path / f"{name}.csv") for name in "abcd")
    ids = [{row["example_id"] for row in rows_in(file)} for file in (a, b, c, d)]
    assert a.read_bytes() == b.read_bytes()
    assert ids[0] == ids[3] != ids[2]


def test_export_to_parquet_holds_what_the_csv_holds(tmp_path):
    rows = (example(1, answer="=1+1"), example(2))
    export(tmp_path / "s.parquet", *rows)
    export(tmp_path / "s.csv", *rows)
    table = pl.read_parquet(tmp_path / "s.parquet").to_dicts()
    assert [row["answer"] for row in table] == ["=1+1", "2 kW"]
    assert table[1] == rows_in(tmp_path / "s.csv")[1]


def test_export_never_overwrites_a_file(tmp_path):
    export(tmp_path / "s.csv", example(1))
    before = (tmp_path / "s.csv").read_bytes()
    with pytest.raises(UserError, match="may hold somebody's decisions"):
        export(tmp_path / "s.csv", example(2))
    assert (tmp_path / "s.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "rows", "told"),
    [("s.xlsx", [example(1)], r"ends neither in \.csv nor in \.parquet"), ("s.csv", [], "no training examples")],
)
def test_export_that_cannot_be_is_told(tmp_path, name, rows, told):
    with pytest.raises(UserError, match=told):
        export(tmp_path / name, *rows)
    assert list(tmp_path.iterdir()) == []


# ---- what comes back ----


def test_review_of_each_decision_comes_back_as_rows(tmp_path):
    rows = [
        filled(1, "accept", comment="good"),
        filled(2, "Edit ", edited_answer="2.0 kW"),
        filled(3, "edit", edited_question="How much power?"),
        filled(4, "reject"),
        filled(5, ""),
    ]
    reviews = read(save(tmp_path / "r.csv", rows), 1, 2, 3, 4, 5)
    assert reviews.schema == schema_of("reviews")
    assert reviews.rows() == [
        ("exm_1", "accept", "Question 1?", "1 kW", "Ada", "good", NOON),
        ("exm_2", "edit", "Question 2?", "2.0 kW", "Ada", None, NOON),
        ("exm_3", "edit", "How much power?", "3 kW", "Ada", None, NOON),
        ("exm_4", "reject", "Question 4?", "4 kW", "Ada", None, NOON),
    ]


def test_review_of_one_example_by_two_people_gives_two_rows(tmp_path):
    rows = [filled(1, "accept"), filled(1, "reject", reviewer="Grace")]
    assert read(save(tmp_path / "r.csv", rows), 1)["reviewer"].to_list() == ["Ada", "Grace"]


def test_review_without_a_name_is_of_whom_the_caller_names(tmp_path):
    path = save(tmp_path / "r.csv", [filled(1, "accept", reviewer=""), filled(2, "accept")])
    assert read(path, 1, 2, default_reviewer="Grace")["reviewer"].to_list() == ["Grace", "Ada"]


DANGEROUS = ['=HYPERLINK("http://x")', "+1", "-5 °C", "@SUM(A1)", "'=1", "''-1", "'tis", "'", "\t=1", "plain"]


@pytest.mark.parametrize("text", DANGEROUS)
def test_cell_that_a_spreadsheet_would_run_goes_out_harmless_and_comes_back_unchanged(tmp_path, text):
    export(tmp_path / "s.csv", example(1, question=text, answer=text))
    (row,) = rows_in(tmp_path / "s.csv")
    assert row["question"] == row["answer"]
    assert not row["question"].startswith(("=", "+", "-", "@", "\t", "\r"))
    path = save(tmp_path / "r.csv", [row | {"decision": "edit", "edited_answer": row["answer"], "reviewer": "Ada"}])
    (review,) = read_review(path, frame_of(example(1, question=text, answer=text)), NOON).to_dicts()
    assert (review["question"], review["answer"]) == (text, text.strip())


def test_null_byte_that_a_model_wrote_does_not_block_the_sheet(tmp_path):
    row = example(1, question="Which\0 plug?")
    export(tmp_path / "s.csv", row)
    path = save(tmp_path / "r.csv", [rows_in(tmp_path / "s.csv")[0] | {"decision": "reject", "reviewer": "Ada"}])
    assert read_review(path, frame_of(row), NOON)["decision"].to_list() == ["reject"]


def test_edit_that_a_person_begins_with_a_minus_is_taken_as_it_is(tmp_path):
    path = save(tmp_path / "r.csv", [filled(1, "edit", edited_answer="-5 °C")])
    assert read(path, 1)["answer"].to_list() == ["-5 °C"]


def test_review_with_a_byte_order_mark_and_a_column_of_its_own_is_read(tmp_path):
    path = save(tmp_path / "r.csv", [filled(1, "accept", mood="fine")], (*COLUMNS, "mood"), encoding="utf-8-sig")
    assert read(path, 1).height == 1


def test_review_from_parquet_is_read(tmp_path):
    export(tmp_path / "s.parquet", example(1), example(2))
    table = pl.read_parquet(tmp_path / "s.parquet").with_columns(
        pl.Series("decision", ["reject", None]), pl.lit("Ada").alias("reviewer")
    )
    table.write_parquet(tmp_path / "r.parquet")
    assert read(tmp_path / "r.parquet", 1, 2).rows() == [("exm_1", "reject", "Question 1?", "1 kW", "Ada", None, NOON)]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (filled(1, "maybe"), "decision 'maybe' is none of accept, edit, reject."),
        (filled(1, "edit"), "edited_question and edited_answer are empty: write the new text."),
        (filled(1, "accept", edited_answer="x"), "decision is accept, but edited_answer is filled in"),
        (filled(1, "reject", edited_question="x"), "decision is reject, but edited_question is filled in"),
        (filled(1, "", edited_answer="x"), "edited_answer is filled in, but decision is empty: write edit."),
        (filled(9, "accept"), "example_id 'exm_9' is no example of this task"),
        (filled(1, "accept", reviewer=" "), "reviewer is empty: write who decided, or give --reviewer"),
        (filled(1, "accept", question="Another?"), "question differs from what was exported: write a new text into"),
        (filled(1, "accept", answer="01. Jan"), "empty the cell answer if a spreadsheet changed it."),
        (filled(2, "accept"), "Ada has decided on this example in row 2 already: keep one of them."),
    ],
)
def test_review_row_that_cannot_be_used_names_file_row_and_column(tmp_path, row, told):
    path = save(tmp_path / "r.csv", [filled(2, "reject"), row])
    with pytest.raises(UserError) as caught:
        read(path, 1, 2)
    assert str(caught.value).startswith(f"{path} row 3: ")
    assert told in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_review_with_the_exported_cell_emptied_is_read(tmp_path):
    assert read(save(tmp_path / "r.csv", [filled(1, "accept", answer="")]), 1)["answer"].to_list() == ["1 kW"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"delimiter": ";"}, "separated by ';': save the file with commas."),
        ({"delimiter": "\t"}, "save the file with commas."),
        ({"encoding": "utf-16"}, "is not UTF-8"),
        ({"columns": COLUMNS[:7]}, "lacks the column 'decision': leave the columns as they were exported."),
        ({"columns": (*COLUMNS, "decision")}, "names more than once the column 'decision'"),
    ],
)
def test_file_that_a_spreadsheet_saved_another_way_is_told(tmp_path, options, told):
    path = save(tmp_path / "r.csv", [filled(1, "accept")], **options)
    with pytest.raises(UserError) as caught:
        read(path, 1)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_file_that_is_missing_or_broken_is_told(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    for name, told in (("none.csv", "is missing"), ("broken.parquet", "is no Parquet file"), ("r.ods", "ends neither")):
        with pytest.raises(UserError, match=told):
            read(tmp_path / name, 1)


# ---- what it comes to ----


def review(number, decision, reviewer, minutes=0, answer="x"):
    return Review(f"exm_{number}", decision, "q", answer, reviewer, None, NOON + timedelta(minutes=minutes))


def reviews(*rows):
    return to_frame("reviews", rows)


def test_merge_keeps_earlier_reviews_and_lets_a_person_change_their_mind():
    earlier = reviews(review(1, "accept", "Ada"), review(2, "accept", "Ada"))
    new = reviews(review(1, "reject", "Ada", 5), review(1, "edit", "Grace", 5))
    merged = merge_reviews(earlier, new)
    assert merged.select("example_id", "decision", "reviewer").rows() == [
        ("exm_2", "accept", "Ada"),
        ("exm_1", "reject", "Ada"),
        ("exm_1", "edit", "Grace"),
    ]


def test_merge_of_the_same_file_twice_changes_nothing():
    earlier = reviews(review(1, "accept", "Ada"), review(2, "edit", "Ada"))
    later = reviews(review(1, "accept", "Ada", 9), review(2, "edit", "Ada", 9))
    assert merge_reviews(earlier, later).equals(earlier)


def test_winning_review_is_the_majority_s():
    rows = [review(1, "accept", "A"), review(1, "accept", "B"), review(1, "reject", "C", 9)]
    assert winning_reviews(reviews(*rows)).select("decision", "reviewer").rows() == [("accept", "B")]


def test_winning_review_among_equals_is_the_latest():
    rows = [review(1, "reject", "A", 9), review(1, "accept", "B"), review(2, "accept", "A"), review(2, "edit", "B")]
    assert winning_reviews(reviews(*rows)).select("example_id", "decision").rows() == [
        ("exm_1", "reject"),
        ("exm_2", "edit"),
    ]


def test_winning_edit_has_the_latest_text():
    rows = [review(1, "edit", "A", 5, "new"), review(1, "edit", "B", 1, "old"), review(1, "accept", "C", 9)]
    assert winning_reviews(reviews(*rows))["answer"].to_list() == ["new"]


def test_agreement_counts_shares_by_kind_and_origin():
    examples = frame_of(example(1), example(2), example(3, kind="yes_no"), example(4, origin="labelled"), example(5))
    rows = [review(1, "accept", "A"), review(2, "reject", "A"), review(3, "edit", "A"), review(4, "accept", "A")]
    assert agreement(reviews(*rows), examples)["by_kind"].rows() == [
        ("number", "generated", 2, 0.5, 0.0, 0.5),
        ("number", "labelled", 1, 1.0, 0.0, 0.0),
        ("yes_no", "generated", 1, 0.0, 1.0, 0.0),
        ("all", "all", 4, 0.5, 0.25, 0.25),
    ]


def test_agreement_of_two_people_is_cohen_s_kappa_worked_out_by_hand():
    # Cohen's own form: 50 items, yes/yes 20, yes/no 5, no/yes 10, no/no 15; observed 0.7, expected 0.5, kappa 0.4.
    pairs = [("accept", "accept")] * 20 + [("accept", "reject")] * 5 + [("reject", "accept")] * 10
    pairs += [("reject", "reject")] * 15
    rows = [review(n, d, who) for n, pair in enumerate(pairs) for d, who in zip(pair, ("Ada", "Grace"), strict=True)]
    rows.append(review(99, "accept", "Linus"))
    ((one, other, n, alike, kappa),) = agreement(reviews(*rows), frame_of())["between"].rows()
    assert (one, other, n) == ("Ada", "Grace", 50)
    assert alike == pytest.approx(0.7)
    assert kappa == pytest.approx(0.4)


def test_agreement_of_two_people_who_only_ever_accept_has_no_kappa():
    rows = [review(n, "accept", who) for n in range(4) for who in ("A", "B")]
    assert agreement(reviews(*rows), frame_of())["between"].rows() == [("A", "B", 4, 1.0, None)]


def test_agreement_without_reviews_is_empty():
    figures = agreement(reviews(), frame_of(example(1)))
    assert figures["between"].is_empty()
    assert figures["by_kind"].rows() == [("all", "all", 0, None, None, None)]
