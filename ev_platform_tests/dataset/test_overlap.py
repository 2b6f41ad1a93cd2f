from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from ev_platform.dataset.overlap import Vectors, find_overlaps, near_duplicates, normalise, word_trigrams, words
from ev_platform.records import Chunk, Example, schema_of, to_frame
from ev_platform.tasks.config import DatasetConfig
from ev_platform.tasks.rows import read_rows
from ev_platform_tests.test_real_tasks import TASKS, Task, needs

NO_CHUNKS = pl.DataFrame(schema=schema_of("chunks"))
EMBED = Vectors()
FIELDS: dict[str, Any] = dict.fromkeys(schema_of("examples")) | {
    "is_answerable": True,
    "origin": "human",
    "kind": "human",
    "split": "train",
}
BLANK = Example(**FIELDS)


def example(question, answer="five", **changes):
    fields = {"example_id": f"{question}|{changes.get('context')}", "answers": [answer]} | changes
    return replace(BLANK, question=question, answer=answer, **fields)


def reasons(train, test, chunks=NO_CHUNKS):
    frames = [to_frame("examples", rows) for rows in (train, test)]
    return [overlap.reason for overlap in find_overlaps(frames[0], frames[1], chunks, DatasetConfig(), embed=EMBED)]


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        ("How many contacts has the plug?", "how many contacts has a plug", "equals_test_question"),
        ("Which two plugs are there?", "Which 2 plugs are there?", "equals_test_question"),
        ("lost card", "Lost card!", "equals_test_question"),
        ("I lost my phone, what should I do?", "I lost my phone!", "overlaps_test_question"),
        ("How can I cancel a transfer?", "What do I do to cancel a transfer?", "resembles_test_question"),
        ("What is the name of the song?", "What is the name of the Norman castle?", None),
    ],
)
def test_training_question_like_a_test_question_is_found_by_its_strongest_likeness(train, test, reason):
    assert reasons([example(train)], [example(test)]) == ([reason] if reason else [])


def test_same_words_over_another_passage_are_another_question():
    test = [example("When did it start?", "1931", context="It began in 1931.")]
    assert reasons([example("When did it start?", "in May", context="In May it rained.")], test) == []
    assert reasons([example("When did it start?", "in 1931", context="In May it rained.")], test) == [
        "equals_test_question"
    ]
    long = "Why did the Roman economy decline in the third century?"
    assert reasons([example(long, "war", context="a")], [example(long, "inflation", context="b")])


def test_documents_and_passages_of_test_rows_are_found():
    test = [example("Who pays?", chunk_id="chk_1", cluster_id="doc_1")]
    assert reasons([example("How tall is it?", cluster_id="doc_1")], test) == ["document_of_test"]
    own = [example("Who pays?", context="The driver pays.")]
    assert reasons([example("How tall is it?", context="the driver pays")], own) == ["passage_of_test"]
    chunk = Chunk("chk_2", "doc_2", "doc_1", 0, 0, 1, "", None, "a", 1)
    prompt = to_frame("examples", [example("How tall is it?")]).with_columns(context_chunk_ids=pl.lit(["chk_2"]))
    found = find_overlaps(prompt, to_frame("examples", test), to_frame("chunks", [chunk]), DatasetConfig(), embed=EMBED)
    assert [overlap.reason for overlap in found] == ["passage_of_test"]


def test_passage_of_the_corpus_that_a_test_row_brings_as_its_own_is_found():
    text = "A charging cable has cores of copper. The longest cable that a station may have is 10 metres."
    chunk = to_frame("chunks", [Chunk("chk_1", "doc_1", "doc_1", 0, 0, 9, "Cables", None, text, 9)])
    test = [example("How long is a cable?", context=f"{text} It is red.", cluster_id="ctx_1")]
    assert reasons([example("What are cores of?", chunk_id="chk_1", cluster_id="doc_1")], test, chunk) == [
        "passage_of_test"
    ]


CABLE = "A charging cable has cores of copper. The longest cable that a station may have is 10 metres."
ROOF = "A roof keeps rain and snow from the drivers who wait below it until their cars are full again."


@pytest.mark.parametrize("brought", [CABLE, f"{CABLE} {ROOF}", f"{ROOF} {CABLE} {ROOF.replace('a', 'o')}"])
def test_context_of_a_training_row_that_says_what_a_test_row_rests_on_is_found(brought):
    train = [example("What are cores of?", context=brought, cluster_id="ctx_1")]
    chunk = to_frame("chunks", [Chunk("chk_1", "doc_1", "clu_1", 0, 0, 9, "Cables", None, CABLE, 9)])
    assert reasons(train, [example("How long?", chunk_id="chk_1", cluster_id="clu_1")], chunk) == ["passage_of_test"]
    assert reasons(train, [example("How long?", context=CABLE, cluster_id="ctx_2")]) == ["passage_of_test"]
    other = [example("What are cores of?", context=ROOF, cluster_id="ctx_3")]
    assert reasons(other, [example("How long?", chunk_id="chk_1", cluster_id="clu_1")], chunk) == []


def test_every_training_row_whose_context_holds_the_passage_of_a_test_row_is_found():
    train = [example(f"What is {n}?", context=f"{ROOF} {n} {CABLE} {ROOF.replace('a', 'o')}") for n in range(3)]
    assert reasons(train, [example("How long?", context=CABLE)]) == ["passage_of_test"] * 3


def test_context_of_a_training_row_from_the_document_of_a_test_row_is_found():
    chunks = [Chunk(f"chk_{n}", "doc_1", "clu_1", n, 0, 9, "", None, text, 9) for n, text in enumerate((CABLE, ROOF))]
    test = [example("How long?", chunk_id="chk_0", cluster_id="clu_1")]
    train = [example("Where do drivers wait?", context=ROOF, cluster_id="ctx_1")]
    assert reasons(train, test, to_frame("chunks", chunks)) == ["passage_of_test"]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (
            ("What is the maximum power of a Lumen S?", "11 kW"),
            ("What is the highest power of a Lumen S?", "11 kW"),
            True,
        ),
        (("How much current does Type 1 carry?", "32 A"), ("How much current does Type 2 carry?", "32 A"), False),
        (
            ("What does the left button do?", "It opens the door"),
            ("What does the right button do?", "It opens the door"),
            False,
        ),
        (("When was the tower built?", "1931"), ("Who built the tower?", "Ann"), False),
        (("How is the front tyre checked?", "cold"), ("How is the rear tyre checked?", "warm"), False),
    ],
)
def test_near_duplicates_merge_rewordings_and_not_neighbours(one, other, is_same):
    rows = [
        {"question": q, "answer": a, "answers": [a], "is_answerable": True, "context": None} for q, a in (one, other)
    ]
    assert (list(near_duplicates(rows, DatasetConfig(), EMBED)) == [1]) is is_same


def test_near_duplicates_looks_at_the_judged_rows_only():
    asked = [
        "How many contacts has the plug?",
        "How many contacts does the plug have?",
        "The plug has how many contacts?",
    ]
    rows = to_frame("examples", [example(question) for question in asked]).to_dicts()
    everything = near_duplicates(rows, DatasetConfig(), EMBED)
    assert sorted(everything) == [1, 2]
    assert near_duplicates(rows, DatasetConfig(), EMBED, judged=[2]) == {2: everything[2]}
    assert near_duplicates(rows, DatasetConfig(), EMBED, judged=[]) == {}


def test_words_and_grams_of_short_texts_are_whole():
    assert words("A Type-2 plug") == ["a", "type", "2", "plug"]
    assert word_trigrams("lost card") == {"lost card"} and len(word_trigrams("a b c d")) == 2
    assert normalise("The  Café, 22kW!") == normalise("cafe 22 kW")


def test_embedder_is_asked_once_for_each_text():
    asked = []

    def embed(texts):
        asked.extend(texts)
        return EMBED(texts)

    vectors = Vectors(embed)
    assert (vectors(["a", "b", "a"])[0] == vectors(["a"])[0]).all() and asked == ["a", "b"]


@pytest.mark.real_data
def test_nine_leaked_test_questions_and_the_shared_passages_of_a_public_folder_are_found():
    needs(TASKS / "distil_rag" / "train.csv")
    task = Task("distil_rag", TASKS / "distil_rag")
    train, test = (
        [example(r.question, r.answer, context=r.context, example_id=r.where) for r in read_rows(task, split)]
        for split in ("train", "test")
    )
    frames = [to_frame("examples", rows) for rows in (train, test)]
    found = find_overlaps(frames[0], frames[1], NO_CHUNKS, DatasetConfig(), embed=EMBED)
    equal = {overlap.test_example_id for overlap in found if overlap.reason == "equals_test_question"}
    asked = {overlap.test_example_id for overlap in found if overlap.reason != "passage_of_test"}
    assert len(equal) == 9 and len(asked) == 11
    # Its contexts are cut from one article, half over the next.
    assert len({overlap.example_id for overlap in found if overlap.reason == "passage_of_test"}) == 38
