from dataclasses import replace

import polars as pl
import pytest

from ev_platform.corpus import chunk_documents
from ev_platform.dataset.build import build_splits, leaking_rows, make_candidates, validate_candidates, words
from ev_platform.errors import UserError
from ev_platform.prompting import passage_text
from ev_platform.records import Chunk, DatasetRow, Example, schema_of, to_frame
from ev_platform.tasks import DatasetConfig
from ev_platform.tasks.rows import TaskRow, read_rows
from ev_platform.tasks.types import get_task_type

# ---- small passages ----

PASSAGES = {
    "plugs": "A Type 2 connector has seven contacts. A Type 1 connector has five contacts.",
    "cables": "The supply cable must withstand a pull of 500 N. A cooled cable carries 500 A.",
    "bills": "A charging detail record is the bill of one session. The tariff has three parts.",
}


NO_DROPPED = pl.DataFrame(schema=schema_of("dropped_documents"))


def chunks(passages=PASSAGES, **changes):
    rows = [
        Chunk(f"chk_{n}", f"doc_{n}", f"doc_{n}", 0, 0, len(text), n.title(), None, text, len(text.split()))
        for n, text in passages.items()
    ]
    return to_frame("chunks", [replace(row, **changes.get(row.chunk_id, {})) for row in rows])


def documents(passages=PASSAGES):
    schema = schema_of("clean_documents")
    rows = [
        {
            **dict.fromkeys(schema),
            "document_id": f"doc_{n}",
            "url": f"https://a.example/{n}.html",
            "fetched_url": f"https://a.example/{n}.html?all",
            "kind": "web",
            "text": text,
        }
        for n, text in passages.items()
    ]
    return pl.DataFrame(rows, schema=schema)


def row(question, answer="five", source=None, split="train", number=2, context=None):
    return TaskRow(split, f"{split}.csv row {number}", question, answer, context, source)


def candidates(*rows, config=DatasetConfig(), passages=PASSAGES, **changes):  # noqa: B008
    return make_candidates(rows, chunks(passages, **changes), documents(passages), NO_DROPPED, config)


# ---- candidates ----


def test_test_row_with_a_wrong_page_still_holds_its_document_out(corpus):
    clean, chunks = corpus
    pdf = chunks.filter(pl.col("page").is_not_null())
    document = pdf.item(0, "document_id")
    url = clean.filter(pl.col("document_id") == document).item(0, "url")
    row = TaskRow("test", "test.csv row 2", "Who checks the seals?", "nobody ever", None, f"{url}#page=99")
    made_of = make_candidates([row], chunks, clean, NO_DROPPED, DatasetConfig(max_examples=500))
    assert made_of.row(0, named=True)["document_id"] == document
    assert document not in made_of.filter(pl.col("origin") == "extractive")["document_id"].to_list()


def test_row_whose_source_was_dropped_as_a_duplicate_counts_for_the_survivor(corpus):
    clean, chunks = corpus
    survivor = clean.row(0, named=True)
    twin = {name: survivor.get(name) for name in schema_of("dropped_documents")}
    twin |= {
        "document_id": "doc_twin",
        "url": "https://plugfield.example/twin.html",
        "fetched_url": "https://x/twin.html",
    }
    twin |= {"drop_reason": "near_duplicate", "duplicate_of": survivor["document_id"]}
    dropped = pl.DataFrame([twin], schema=schema_of("dropped_documents"))
    row = TaskRow(
        "test", "test.csv row 2", "What is it about?", "charging", None, "https://plugfield.example/twin.html"
    )
    found = make_candidates([row], chunks, clean, dropped, DatasetConfig(max_examples=0))
    assert found.item(0, "document_id") == survivor["document_id"]


def test_hand_written_row_finds_its_passage_by_its_source():
    for source in (
        "https://a.example/plugs.html",
        "https://a.example/plugs.html?all",
        "https://a.example/plugs.html#x",
    ):
        found = candidates(row("How many contacts has a Type 1 plug?", source=source)).row(0, named=True)
        assert (found["chunk_id"], found["document_id"], found["origin"]) == ("chk_plugs", "doc_plugs", "human")


def test_hand_written_row_whose_source_is_not_in_the_corpus_has_no_passage():
    assert candidates(row("How many contacts?", source="https://a.example/gone.html"))["chunk_id"][0] is None


def test_hand_written_row_without_a_source_takes_a_passage_only_if_it_holds_answer_and_question():
    sure = row("How many contacts has a Type 1 connector?", "five contacts")
    unsure = row("How tall is the tower in Paris?", "330 m", number=3)
    assert candidates(sure, unsure)["chunk_id"][:2].to_list() == ["chk_plugs", None]


def test_hand_written_row_with_a_passage_of_its_own_keeps_it():
    found = candidates(row("Who pays?", "the driver", context="The driver pays.")).row(0, named=True)
    assert (found["context"], found["chunk_id"]) == ("The driver pays.", None)


def test_page_of_a_pdf_narrows_the_passages():
    texts = {"one": "The cable is grey and long.", "two": "The cable is grey and long.", "four": "The cable is grey."}
    rows = [
        Chunk(f"chk_{name}", "doc_m", "doc_m", n, 0, len(text), "", page, text, 5)
        for n, ((name, text), page) in enumerate(zip(texts.items(), (1, 2, 4), strict=True))
    ]
    manual = documents({"m": "x"}).with_columns(
        url=pl.lit("https://a.example/pdfs/manual.pdf"), fetched_url=pl.lit("pdfs/manual.pdf"), kind=pl.lit("pdf")
    )
    for source in ("https://a.example/pdfs/manual.pdf#page=4", "pdfs/manual.pdf#page=4"):
        asked = row("What colour is the cable?", "grey and long", source=source)
        frame = make_candidates([asked], to_frame("chunks", rows), manual, NO_DROPPED, DatasetConfig(max_examples=0))
        assert frame["chunk_id"].item() == "chk_four"  # pages 1 and 2 answer better, but are too far away


def test_documents_of_test_rows_are_left_out_of_generation():
    everything = candidates()
    assert set(everything["document_id"]) == {"doc_plugs", "doc_cables", "doc_bills"}
    test = row("How many contacts has a Type 1?", source="https://a.example/plugs.html", split="test")
    assert set(candidates(test).filter(origin="extractive")["document_id"]) == {"doc_cables", "doc_bills"}


def test_near_duplicates_of_test_documents_are_left_out_of_generation():
    test = row("How many contacts has a Type 1?", source="https://a.example/plugs.html", split="test")
    frame = candidates(test, chk_cables={"cluster_id": "doc_plugs"})
    assert set(frame.filter(origin="extractive")["document_id"]) == {"doc_bills"}


def test_limits_take_a_share_of_every_passage():
    assert candidates(config=DatasetConfig(max_per_chunk=1))["chunk_id"].to_list() == [f"chk_{n}" for n in PASSAGES]
    assert candidates(config=DatasetConfig(max_examples=3))["chunk_id"].n_unique() == 3
    assert candidates(config=DatasetConfig(max_examples=0)).is_empty()


def test_candidates_are_the_same_twice_and_another_seed_chooses_others():
    one = DatasetConfig(max_per_chunk=1)
    assert candidates(config=one).equals(candidates(config=one))
    chosen = {tuple(candidates(config=DatasetConfig(max_per_chunk=1, seed=s))["example_id"]) for s in range(6)}
    assert len(chosen) > 1


def test_teacher_that_is_unknown_is_refused():
    with pytest.raises(UserError, match=r"dataset\.teacher 'oracle' is unknown; use 'extractive'"):
        candidates(config=DatasetConfig(teacher="oracle"))


def test_corpus_without_chunks_is_refused():
    with pytest.raises(UserError, match=r"The corpus is empty: .* dropped_documents"):
        make_candidates([], chunks().clear(), documents(), NO_DROPPED, DatasetConfig())


# ---- validation ----

GOOD = Example(
    example_id="exm_good",
    question="How many contacts does a Type 2 connector have?",
    answer="seven",
    chunk_id="chk_plugs",
    document_id="doc_plugs",
    cluster_id="doc_plugs",
    context=None,
    origin="extractive",
    teacher="extractive",
    kind="number",
    split="train",
    row=None,
)
TEST = replace(
    GOOD,
    example_id="exm_test",
    question="What pull must the supply cable at the wall withstand?",
    answer="500 N",
    chunk_id="chk_cables",
    document_id="doc_cables",
    cluster_id="doc_cables",
    origin="human",
    split="test",
    row="test.csv row 2",
)
HUMAN = replace(GOOD, example_id="exm_human", origin="human", teacher=None, row="train.csv row 9")


def verdicts(*examples):
    """Return the reason of each example by id (None: kept)."""
    tables = validate_candidates(to_frame("qa_candidates", examples), chunks())
    kept, rejected = tables["examples"], tables["rejected_examples"]
    assert kept.height + rejected.height == len(examples)
    return dict.fromkeys(kept["example_id"]) | {
        r["example_id"]: (r["reject_reason"], r["reject_detail"]) for r in rejected.iter_rows(named=True)
    }


def test_sound_candidate_is_kept():
    assert verdicts(GOOD, TEST) == {"exm_good": None, "exm_test": None}


@pytest.mark.parametrize(
    ("candidate", "reason", "detail"),
    [
        (replace(GOOD, question=TEST.question.upper()), "repeats_test_question", "asked in test.csv row 2"),
        (
            replace(HUMAN, chunk_id=None, document_id=None, cluster_id=None),
            "no_source",
            "train.csv row 9: its source is not in the corpus; look for it in dropped_documents",
        ),
        (replace(GOOD, cluster_id="doc_cables"), "document_of_test", "its document also holds test.csv row 2"),
        (
            replace(GOOD, question="What pull must the supply cable at the wall withstand in rain?", answer="seven"),
            "overlaps_test_question",
            "1.00 of the word 3-grams of test.csv row 2",
        ),
        (replace(GOOD, answer="seven " * 41), "answer_too_long", "41 words > 40"),
        (replace(GOOD, answer="eight"), "not_grounded", "the answer does not stand in its passage"),
        (replace(GOOD, answer="Type 2 connector"), "answer_in_question", "Type 2 connector"),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value and " " not in value else "",
)
def test_candidate_is_rejected_with_its_reason_and_figure(candidate, reason, detail):
    assert verdicts(candidate, TEST)[candidate.example_id] == (reason, detail)


def test_second_candidate_with_the_same_question_is_rejected_and_names_the_first():
    again = replace(GOOD, example_id="exm_again", question="how many contacts does a TYPE-2 connector have")
    assert verdicts(GOOD, again) == {"exm_good": None, "exm_again": ("repeated_question", "asked in exm_good")}
    assert verdicts(HUMAN, again)["exm_again"] == ("repeated_question", "asked in train.csv row 9")


def test_test_row_is_kept_whatever_it_looks_like_unless_it_repeats_another():
    odd = replace(TEST, example_id="exm_odd", question="Why?", answer="x " * 90, chunk_id=None, row="test.csv row 3")
    again = replace(odd, example_id="exm_again", row="test.csv row 4")
    assert verdicts(odd, again) == {"exm_odd": None, "exm_again": ("repeated_question", "asked in test.csv row 3")}


def test_training_row_that_comes_before_the_test_row_it_repeats_is_the_one_that_goes():
    early = replace(GOOD, example_id="exm_early", question=TEST.question)
    assert verdicts(early, TEST) == {
        "exm_early": ("repeats_test_question", "asked in test.csv row 2"),
        "exm_test": None,
    }


def test_human_answer_need_not_stand_in_the_passage_word_for_word():
    assert verdicts(replace(HUMAN, answer="It has 7 of them."))["exm_human"] is None


def test_short_question_that_a_training_question_contains_is_an_overlap():
    short = replace(TEST, question="What is OCPP?")
    longer = replace(GOOD, question="What is OCPP used for in a charger?")
    assert verdicts(longer, short)["exm_good"][0] == "overlaps_test_question"
    assert verdicts(GOOD, short)["exm_good"] is None


# ---- the example's own rows, from fetched bytes to prompts ----


def count_words(texts):
    return [len(text.split()) for text in texts]


def count_chat(messages, answer):
    return sum(count_words([message["content"] for message in messages])), len(answer.split())


@pytest.fixture(scope="module")
def corpus(example_clean, example_task):
    clean = example_clean["clean_documents"]
    return clean, chunk_documents(clean, count_words, example_task.config.corpus)


@pytest.fixture(scope="module")
def made(corpus, example_task):
    """Return every table of the stage, by name, with its chunks."""
    clean, chunks = corpus
    rows = [*read_rows(example_task, "train"), *read_rows(example_task, "test")]
    config = example_task.config
    tables = {"chunks": chunks, "qa_candidates": make_candidates(rows, chunks, clean, NO_DROPPED, config.dataset)}
    tables |= validate_candidates(tables["qa_candidates"], chunks)
    task_type = get_task_type(config.type)
    description = example_task.description
    return tables | build_splits(
        tables["examples"], chunks, description, task_type, count_chat, config.dataset, config.retrieval
    )


def trained_on(made):
    return pl.concat([made["training_set"], made["validation_set"]])


def test_example_keeps_all_test_rows_and_finds_the_passage_of_each(made):
    assert made["benchmark"].height == 84
    assert made["benchmark"]["chunk_id"].null_count() == 0
    texts = {c["chunk_id"]: words(passage_text(c["heading_path"], c["text"])) for c in made["chunks"].to_dicts()}
    shares = [
        len(set(words(r["answer"])) & set(texts[r["chunk_id"]])) / len(set(words(r["answer"])))
        for r in made["benchmark"].iter_rows(named=True)
    ]
    # Answers are written in a person's words, so not each word stands in the passage; of most answers most do.
    assert sum(share >= 0.5 for share in shares) > 0.9 * len(shares)


def test_example_counts_add_up(made):
    assert made["examples"].height + made["rejected_examples"].height == made["qa_candidates"].height
    splits = [made[name] for name in ("training_set", "validation_set", "benchmark")]
    assert sum(split.height for split in splits) == made["examples"].height
    assert pl.concat(splits)["example_id"].n_unique() == made["examples"].height
    assert made["training_set"].height > 80 and made["validation_set"].height > 0


def test_example_trains_on_nothing_that_is_tested(made):
    assert leaking_rows(trained_on(made), made["benchmark"], made["chunks"]) == []


def test_example_trains_on_no_passage_of_a_tested_document_nor_of_its_near_duplicates(made):
    """Written apart from `leaking_rows`, from the texts themselves."""
    cluster = dict(made["chunks"].select("chunk_id", "cluster_id").rows())
    text = {c["chunk_id"]: c["text"] for c in made["chunks"].iter_rows(named=True)}
    tested = set(made["benchmark"]["cluster_id"])
    hidden = [text[chunk] for chunk, owner in cluster.items() if owner in tested]
    assert len(hidden) > 20
    for r in trained_on(made).iter_rows(named=True):
        assert r["cluster_id"] not in tested
        assert not {cluster[chunk] for chunk in r["context_chunk_ids"]} & tested
        assert not [passage for passage in hidden if passage in r["input"]]


def test_example_validates_on_documents_that_it_does_not_train_on(made):
    assert not set(made["validation_set"]["cluster_id"]) & set(made["training_set"]["cluster_id"])


def test_example_training_prompts_hold_the_supporting_passage_and_the_question(made, example_task):
    text = {c["chunk_id"]: c["text"] for c in made["chunks"].iter_rows(named=True)}
    places, sizes = set(), set()
    for r in trained_on(made).iter_rows(named=True):
        ids = r["context_chunk_ids"]
        assert r["chunk_id"] in ids and len(ids) == len(set(ids)) <= example_task.config.dataset.n_contexts
        assert all(text[chunk] in r["input"] for chunk in ids) and r["question"] in r["input"]
        assert r["messages"][-1] == {"role": "assistant", "content": r["answer"]}
        assert r["messages"][0]["content"] == r["instruction"] == example_task.description
        assert r["messages"][1]["content"] == r["input"]
        places.add(ids.index(r["chunk_id"]))
        sizes.add(len(ids))
    assert len(places) > 1, "the supporting passage always stands at the same place"
    assert len(sizes) > 1, "every prompt has the same number of passages"


def test_example_answers_of_the_teacher_stand_in_their_passage(made):
    text = {c["chunk_id"]: c["text"] for c in made["chunks"].iter_rows(named=True)}
    generated = made["examples"].filter(origin="extractive")
    assert generated.height > 20
    for r in generated.iter_rows(named=True):
        assert " ".join(words(r["answer"])) in " ".join(words(text[r["chunk_id"]]))


def test_example_made_again_has_the_same_ids_in_the_same_order(made, corpus, example_task):
    clean, chunks = corpus
    config = example_task.config
    assert chunk_documents(clean, count_words, config.corpus).equals(chunks)
    rows = [*read_rows(example_task, "train"), *read_rows(example_task, "test")]
    again = make_candidates(rows, chunks, clean, NO_DROPPED, config.dataset)
    assert again.equals(made["qa_candidates"])
    assert validate_candidates(again, chunks)["examples"].equals(made["examples"])


# ---- planted leaks ----


def dataset_row(**changes):
    plain = dict.fromkeys(DatasetRow.__dataclass_fields__, "") | {
        "question": "How many contacts does a Type 2 connector have?",
        "chunk_id": "chk_plugs",
        "cluster_id": "doc_plugs",
        "context_chunk_ids": ["chk_plugs"],
        "messages": [],
        "n_tokens": 1,
        "n_answer_tokens": 1,
    }
    return to_frame("training_set", [DatasetRow(**plain | changes)])


TESTED = dataset_row(
    question="What pull must the supply cable at the wall withstand?",
    chunk_id="chk_cables",
    cluster_id="doc_cables",
    context_chunk_ids=["chk_cables"],
)


NO_CHUNKS = pl.DataFrame(schema=schema_of("chunks"))


def test_another_passage_of_a_tested_document_in_a_prompt_is_a_leak(made):
    tested = made["benchmark"].row(0, named=True)
    same_document = made["chunks"].filter(
        (pl.col("cluster_id") == tested["cluster_id"])
        & ~pl.col("chunk_id").is_in(made["benchmark"]["chunk_id"].to_list())
    )
    row = dataset_row(context_chunk_ids=[same_document.item(0, "chunk_id")])
    assert [reason for reason, _, _ in leaking_rows(row, made["benchmark"], made["chunks"])] == ["passage_of_test"]


def test_honest_row_is_no_leak():
    assert leaking_rows(dataset_row(), TESTED, NO_CHUNKS) == []


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        ({"cluster_id": "doc_cables"}, "document_of_test"),
        ({"context_chunk_ids": ["chk_plugs", "chk_cables"]}, "passage_of_test"),
        ({"question": "what pull must the supply cable at the wall withstand"}, "overlaps_test_question"),
        ({"question": "What pull must the supply cable at the wall withstand in rain?"}, "overlaps_test_question"),
    ],
)
def test_planted_leak_is_found_and_named(planted, reason):
    row = dataset_row(**planted)
    assert leaking_rows(row, TESTED, NO_CHUNKS) == [(reason, row["question"].item(), TESTED["question"].item())]


def test_leak_planted_among_the_examples_own_rows_is_found(made):
    stolen = made["benchmark"].head(1).with_columns(split=pl.lit("train"))
    leaks = leaking_rows(pl.concat([trained_on(made), stolen]), made["benchmark"], made["chunks"])
    assert {reason for reason, _, _ in leaks} == {"document_of_test", "passage_of_test", "overlaps_test_question"}
    assert {question for _, question, _ in leaks} == {stolen["question"].item()}


def test_rows_without_documents_are_compared_by_their_questions():
    """Rows that bring their own passage have neither document nor cluster; None must not equal None."""
    own = {"chunk_id": None, "cluster_id": None, "context_chunk_ids": []}
    assert (
        leaking_rows(
            dataset_row(**own), dataset_row(**own, question="Who pays for the energy of a session?"), NO_CHUNKS
        )
        == []
    )
    assert leaking_rows(dataset_row(**own), dataset_row(**own), NO_CHUNKS)[0][0] == "overlaps_test_question"
