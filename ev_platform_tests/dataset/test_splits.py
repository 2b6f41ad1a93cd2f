import polars as pl
import pytest

from ev_platform.dataset.splits import build_splits
from ev_platform.records import Chunk, Example, schema_of, to_frame
from ev_platform.tasks.config import DatasetConfig, RetrievalConfig
from ev_platform.tasks.types import TASK_TYPES, get_task_type
from ev_platform.training.tokens import chat_counter, chats_counter
from ev_platform_tests.tiny import write_tiny_tokenizer

NO_CHUNKS = pl.DataFrame(schema=schema_of("chunks"))
TOPICS = {
    "cable": "A charging cable has copper cores. The longest cable of a station is 10 metres.",
    "plug": "The Type 2 plug carries 43 kW. A motor locks the plug while current flows.",
    "meter": "The meter of a station is sealed. An inspector reads the meter every eight years.",
    "card": "Every station takes a payment card. A lost card is blocked within an hour.",
    "fuse": "A fuse of 32 A protects the station. Only an electrician changes the fuse.",
    "roof": "A roof over the station keeps the rain out. The roof is 3 metres high.",
}


def count_words(chats):
    return [(sum(len(m["content"].split()) for m in messages), len(answer.split())) for messages, answer in chats]


def chunk(name, text, document=None):
    document = document or name
    return Chunk(f"chk_{name}", f"doc_{document}", f"clu_{document}", 0, 0, len(text), name.title(), None, text, 20)


CHUNKS = to_frame("chunks", [chunk(name, text) for name, text in TOPICS.items()])


def example(number, question, **changes):
    plain = dict.fromkeys(Example.__dataclass_fields__) | {
        "example_id": f"exm_{number}",
        "question": question,
        "answer": "10 metres",
        "answers": ["10 metres"],
        "is_answerable": True,
        "origin": "human",
        "kind": "human",
        "split": "train",
    }
    return Example(**plain | changes)


def about(topic, number=0, **changes):
    place = {"chunk_id": f"chk_{topic}", "document_id": f"doc_{topic}", "cluster_id": f"clu_{topic}"}
    # Retrieval brings the passage of every other question first.
    question = (
        f"What about the {topic} of number {number}?" if number % 2 else f"What is it of the {topic[:2]} {number}?"
    )
    return example(f"{topic}_{number}", question, **place | changes)


def split(examples, kind="open_book_qa", chunks=CHUNKS, **config):
    return build_splits(
        to_frame("examples", examples),
        chunks,
        get_task_type(kind),
        "Answer.",
        count_words,
        DatasetConfig(**config),
        RetrievalConfig(),
    )


def trained_on(tables):
    return pl.concat([tables["training_set"], tables["validation_set"]]).to_dicts()


@pytest.fixture(scope="module")
def open_book():
    """Return four rows of each of five documents, a fifth of them held out, and two test rows of the sixth."""
    rows = [about(topic, n) for topic in list(TOPICS)[:5] for n in range(4)]
    return split([*rows, *(about("roof", n, split="test") for n in range(2))], validation_fraction=0.2, n_contexts=3)


def test_every_example_is_in_one_split_in_its_order(open_book):
    sizes = {name: open_book[name].height for name in ("training_set", "validation_set", "benchmark")}
    assert sizes == {"training_set": 16, "validation_set": 4, "benchmark": 2}
    ids = [row["example_id"] for row in open_book["training_set"].to_dicts()]
    assert ids == sorted(ids, key=lambda i: (list(TOPICS).index(i.split("_")[1]), i))
    assert open_book["benchmark"]["split"].to_list() == ["test", "test"]


def test_validation_rows_are_whole_documents(open_book):
    assert open_book["validation_set"]["cluster_id"].n_unique() == 1
    assert not set(open_book["validation_set"]["cluster_id"]) & set(open_book["training_set"]["cluster_id"])


def test_training_prompt_holds_its_passage_among_others_at_changing_places(open_book):
    places, sizes = set(), set()
    for row in trained_on(open_book):
        ids = row["context_chunk_ids"]
        assert row["chunk_id"] in ids and len(ids) == len(set(ids)) <= 3
        assert all(TOPICS[i.removeprefix("chk_")] in row["input"] for i in ids)
        assert row["messages"][0] == {"role": "system", "content": "Answer."} and row["instruction"] == "Answer."
        assert row["messages"][1]["content"] == row["input"]
        assert row["messages"][2] == {"role": "assistant", "content": row["answer"]} and row["output"] == row["answer"]
        places.add(ids.index(row["chunk_id"]))
        sizes.add(len(ids))
    assert len(places) > 1 and sizes == {1, 2, 3}


def test_passages_of_test_documents_stand_in_no_prompt_and_those_of_validation_in_none_trained_on(open_book):
    assert not [row for row in trained_on(open_book) if "chk_roof" in row["context_chunk_ids"]]
    (held,) = set(open_book["validation_set"]["chunk_id"])
    assert not [row for row in open_book["training_set"].to_dicts() if held in row["context_chunk_ids"]]


def test_test_row_is_shown_its_own_passage_only(open_book):
    assert open_book["benchmark"]["context_chunk_ids"].to_list() == [["chk_roof"], ["chk_roof"]]
    assert TOPICS["roof"] in open_book["benchmark"].item(0, "input")


def test_splits_made_again_are_the_same_and_of_another_seed_are_not():
    rows = [about(topic, n) for topic in TOPICS for n in range(4)]
    one, two = split(rows), split(rows)
    assert all(one[name].equals(two[name]) for name in one)
    assert not split(rows, seed=3)["training_set"].equals(one["training_set"])


@pytest.mark.parametrize("kind", [kind for kind, task_type in TASK_TYPES.items() if not task_type.trains_with_passages])
def test_type_that_trains_without_passages_shows_none_in_any_split(kind):
    rows = [about(topic, n, context="A text." if n else None) for topic in TOPICS for n in range(2)]
    tables = split([*rows, about("roof", 9, split="test")], kind)
    for row in [*trained_on(tables), *tables["benchmark"].to_dicts()]:
        assert row["input"] == f"Question: {row['question']}" and row["context_chunk_ids"] == []
    # What the row brought is kept for the systems that may see it.
    assert {row["context"] for row in trained_on(tables)} == {"A text.", None}


def test_row_with_its_own_context_is_asked_over_that_alone():
    own = {"context": "The mast is 10 metres high.", "answer_start": 12, "cluster_id": "ctx_1"}
    rows = [example(1, "How high?", **own), example(2, "How wide?", **own | {"split": "test"})]
    tables = split(rows, "extractive_qa", n_contexts=4)
    for name in ("training_set", "benchmark"):
        (row,) = tables[name].to_dicts()
        assert row["input"] == f"The mast is 10 metres high.\n\nQuestion: {row['question']}"
        assert (row["context"], row["answer_start"], row["answers"]) == (own["context"], 12, ["10 metres"])
        assert row["context_chunk_ids"] == [] and row["is_answerable"]


def test_unanswerable_question_is_shown_its_passage_and_none_that_may_answer_it():
    chunks = to_frame(
        "chunks",
        [
            chunk("asked", "The station stands in the yard."),
            chunk("same", "The mast of the station is grey.", document="asked"),
            chunk("answering", "The mast of the station weighs 900 kg."),
            chunk("other", "A station needs a fuse."),
        ],
    )
    question = "How much does the mast of the station weigh?"
    place = {"chunk_id": "chk_asked", "cluster_id": "clu_asked", "document_id": "doc_asked"}
    rows = [example(n, question, **place, is_answerable=False, answer="It is not said.") for n in range(20)]
    shown = [set(row["context_chunk_ids"]) for row in trained_on(split(rows, chunks=chunks, n_contexts=4))]
    assert all("chk_asked" in ids for ids in shown)
    assert set.union(*shown) == {"chk_asked", "chk_other"}
    answerable = [example(n, question, **place) for n in range(20)]
    shown = [set(row["context_chunk_ids"]) for row in trained_on(split(answerable, chunks=chunks, n_contexts=4))]
    assert set.union(*shown) == {"chk_asked", "chk_same", "chk_answering", "chk_other"}


def test_labelled_texts_are_validated_on_in_the_share_of_their_labels():
    rows = [example(n, f"Text {n}.", answer="common" if n % 4 else "rare") for n in range(80)]
    tables = split(rows, "classification", NO_CHUNKS, validation_fraction=0.1)
    assert sorted(tables["validation_set"]["answer"]) == ["common"] * 6 + ["rare"] * 2
    assert tables["training_set"].height == 72


def test_the_same_text_is_never_on_both_sides():
    rows = [example(n, f"Text {n // 4}!" if n % 2 else f"text {n // 4}", answer="ab"[n % 3 > 0]) for n in range(80)]
    for kind in ("classification", "closed_book_qa"):
        tables = split(rows, kind, NO_CHUNKS, validation_fraction=0.3)
        texts = [
            {row["question"].lower().strip("!") for row in tables[n].to_dicts()}
            for n in ("training_set", "validation_set")
        ]
        assert texts[1] and not texts[0] & texts[1]


@pytest.mark.parametrize(
    ("rows", "n_validation"),
    [
        ([example(n, f"Text {n}.") for n in range(10)], 1),
        ([example(n, f"Text {n}.") for n in range(9)], 1),
        ([about(topic, n) for topic in ("cable", "plug") for n in range(10)], 10),
        ([about("cable", n) for n in range(20)], 0),  # one document cannot stand on both sides
        ([about(topic, n) for topic in ("cable", "plug") for n in range(4)], 0),
    ],
    ids=["ten_rows", "nine_rows", "two_documents", "one_document", "eight_rows"],
)
def test_validation_is_not_empty_by_accident(rows, n_validation):
    assert split(rows)["validation_set"].height == n_validation
    assert split(rows, validation_fraction=0.0)["validation_set"].height == 0


def test_splits_without_any_example_are_empty():
    assert [table.height for table in split([], chunks=NO_CHUNKS).values()] == [0, 0, 0]


def test_many_chats_are_counted_as_one_by_one(tmp_path):
    write_tiny_tokenizer(tmp_path)
    chats = [
        ([{"role": "system", "content": "Answer."}, {"role": "user", "content": "Wo? " * n}], "in Köln " * (n + 1))
        for n in range(5)
    ]
    one = chat_counter(tmp_path)
    assert chats_counter(tmp_path)(chats) == [one(messages, answer) for messages, answer in chats]
    assert len(set(chats_counter(tmp_path)(chats))) == 5
    assert chats_counter(tmp_path)([]) == []


def test_passage_that_a_test_row_brings_as_its_own_stands_in_no_training_prompt():
    test = example(99, "How long may a cable be?", split="test", context=TOPICS["cable"], cluster_id="ctx_1")
    rows = [about(topic, number) for topic in ("plug", "meter", "roof") for number in range(10)]
    shown = {i for row in trained_on(split([*rows, test], n_contexts=4)) for i in row["context_chunk_ids"]}
    assert "chk_fuse" in shown and "chk_cable" not in shown


def sides(rows, **config):
    """Return what each side of the split shows or rests on, by seed."""
    for seed in range(20):
        tables = split(rows, seed=seed, n_contexts=1, **config)
        yield tables["training_set"].to_dicts(), tables["validation_set"].to_dicts()


@pytest.mark.parametrize("context", [TOPICS["cable"], f"{TOPICS['cable']} {'And so much more is said of it. ' * 9}"])
def test_passage_that_a_validation_row_brings_as_its_own_stands_in_no_training_prompt(context):
    rows = [about(topic, n) for topic in ("cable", "plug", "meter", "roof") for n in range(3)]
    own = [example(n, f"How long is cable {n}?", context=context, cluster_id="ctx_1") for n in range(3)]
    n_validated = 0
    for trained, validated in sides([*rows, *own], validation_fraction=0.3):
        for one, other in ((trained, validated), (validated, trained)):
            if any(row["context"] for row in one):
                assert not [row for row in other if "chk_cable" in row["context_chunk_ids"]]
        n_validated += any(row["context"] for row in validated)
    assert n_validated


def test_rows_that_bring_the_same_passage_are_on_one_side_whatever_document_they_name():
    own = [
        example(n, f"How long is cable {n}?", context="The cable is grey.", cluster_id=f"clu_{n % 2}") for n in range(4)
    ]
    rows = [about(topic, n) for topic in ("plug", "meter", "roof") for n in range(4)]
    for trained, validated in sides([*rows, *own], validation_fraction=0.3):
        assert not any(row["context"] for row in trained) or not any(row["context"] for row in validated)
