import polars as pl
import pytest

from ev_platform.dataset.coverage import build_coverage
from ev_platform.dataset.sampling import text_id
from ev_platform.records import Chunk, GenerationOutcome, schema_of, to_frame

CHUNKS = to_frame(
    "chunks",
    [Chunk(f"chk_{n}", f"doc_{n}", f"doc_{n}", 0, 0, 9, f"Page {n}", None, "A passage", 7) for n in "abcd"],
)
DOCUMENTS = pl.DataFrame(
    [
        {**dict.fromkeys(schema_of("clean_documents")), "document_id": f"doc_{n}", "url": f"https://a.example/{n}"}
        for n in "abcd"
    ],
    schema=schema_of("clean_documents"),
)


def log(*rows):
    return to_frame("generation_log", [GenerationOutcome(*row, "teacher", None, 0.0) for row in rows])


def frame(table, *rows):
    schema = schema_of(table)
    return pl.DataFrame([{**dict.fromkeys(schema), **row} for row in rows], schema=schema)


def example(number, chunk_id, split="train", **more):
    return {"example_id": f"exm_{number}", "chunk_id": chunk_id, "split": split, "question": f"q{number}", **more}


def rejected(number, reason):
    return {"example_id": f"exm_{number}", "reject_reason": reason}


def cover(outcomes, examples=(), rejections=(), candidates=()):
    rejected_ids = {row["example_id"] for row in rejections}
    candidates = candidates or examples
    return build_coverage(
        log(*outcomes),
        frame("qa_candidates", *candidates),
        frame("examples", *(row for row in examples if row["example_id"] not in rejected_ids)),
        frame("rejected_examples", *rejections),
        CHUNKS,
        DOCUMENTS,
    )


def test_coverage_has_a_row_for_every_row_of_the_log_in_its_order():
    outcomes = [(f"chk_{n}", "ok", None, 1, 0) for n in "dbac"]
    found = cover(outcomes)
    assert found["source_id"].to_list() == ["chk_d", "chk_b", "chk_a", "chk_c"]
    one = found.row(1, named=True)
    assert (one["document_id"], one["url"], one["heading_path"], one["n_tokens"]) == (
        "doc_b",
        "https://a.example/b",
        "Page b",
        7,
    )


def test_chunk_with_examples_is_covered_and_counts_what_was_rejected():
    examples = [example(n, "chk_a") for n in range(4)]
    found = cover([("chk_a", "ok", None, 5, 4)], examples, [rejected(3, "not_grounded")]).row(0, named=True)
    assert (found["n_asked"], found["n_made"], found["n_rejected"], found["n_examples"]) == (5, 4, 1, 3)
    assert (found["status"], found["detail"]) == ("covered", "not_grounded (1 of 1)")


def test_chunk_of_which_all_was_rejected_names_the_commonest_reason():
    examples = [example(n, "chk_a") for n in range(4)]
    reasons = ["repeated_question", "not_grounded", "not_grounded", "dangling"]
    found = cover([("chk_a", "ok", None, 4, 4)], examples, [rejected(n, why) for n, why in enumerate(reasons)])
    assert found.select("status", "detail", "n_rejected").rows() == [("all_rejected", "not_grounded (2 of 4)", 4)]


@pytest.mark.parametrize("status", ["held_out", "not_sampled", "nothing_found", "refused", "over_budget"])
def test_chunk_without_examples_keeps_the_reason_of_its_generation(status):
    found = cover([("chk_a", status, "because", 0, 0)])
    assert found.select("status", "detail", "n_examples", "n_rejected").rows() == [(status, "because", 0, 0)]


def test_test_rows_do_not_cover_the_chunk_that_is_held_out_for_them():
    rows = [example(1, "chk_a", split="test"), example(2, "chk_a")]
    found = cover([("chk_a", "held_out", "test.csv row 2", 0, 0)], rows, [rejected(2, "document_of_test")])
    assert found.select("status", "n_examples", "n_rejected").rows() == [("held_out", 0, 1)]


def test_hand_written_and_reviewed_rows_cover_a_chunk_that_was_not_sampled():
    rows = [example(1, "chk_a", origin="human"), example(2, "chk_b", origin="reviewed")]
    outcomes = [("chk_a", "not_sampled", "few", 0, 0), ("chk_b", "refused", "no", 1, 0)]
    found = cover(outcomes, rows, candidates=rows[:1])
    assert found.select("status", "n_examples").rows() == [("covered", 1), ("covered", 1)]


def test_texts_are_covered_by_their_labels():
    texts = ["Where is my card?", "What is this fee?"]
    rows = [example(n, None, question=text, origin="labelled") for n, text in enumerate(texts)]
    outcomes = [(text_id(text), "ok", None, 1, 1) for text in texts]
    found = cover(outcomes, rows, [rejected(1, "noisy_label")])
    assert found.select("status", "detail", "document_id", "url").rows() == [
        ("covered", None, None, None),
        ("all_rejected", "noisy_label (1 of 1)", None, None),
    ]
