"""Which passages each system is given, and which answers count, told by an engine that shows its prompt."""

import polars as pl
import pytest

from ev_platform.engine import Completion
from ev_platform.errors import UserError
from ev_platform.evaluation import predict
from ev_platform.records import Chunk, DatasetRow, schema_of, to_frame
from ev_platform.tasks import TaskConfig
from ev_platform.tasks.types import TASK_TYPES, get_task_type

CHUNKS = to_frame(
    "chunks",
    [
        Chunk(f"chk_{name}", f"doc_{name}", f"doc_{name}", 0, 0, len(text), name.title(), None, text, 9)
        for name, text in (
            ("cable", "A resistor of 220 ohm marks a cable for 32 A."),
            ("plug", "The Type 2 connector is the usual AC plug in Europe."),
            ("lock", "A motor in the car locks the connector while current flows."),
        )
    ],
)
NO_CHUNKS = CHUNKS.clear()
CONFIG = TaskConfig.model_validate({"retrieval": {"top_k": 1}, "evaluation": {"max_new_tokens": 8}})


class Engine:
    """Answers every prompt alike and remembers them."""

    window = 1000

    def __init__(self, answer="220 ohm"):
        self.answer = answer
        self.prompts = []

    def render(self, messages):
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)

    def count_tokens(self, text):
        return len(text.split())

    def generate(self, prompts, *, max_new_tokens, temperature=0.0, seed=0):
        self.prompts += prompts
        return [Completion(self.answer, self.count_tokens(prompt), 2, 1.0, "stop") for prompt in prompts]


def row(number, question, answer, **changes):
    known = dict.fromkeys(DatasetRow.__dataclass_fields__)
    known |= {"example_id": f"exm_{number:03d}", "split": "test", "question": question, "answer": answer}
    known |= {"answers": [answer], "is_answerable": True, "context_chunk_ids": [], "messages": [], "origin": "human"}
    return DatasetRow(**known | changes)


def run(rows, task_type, chunks=CHUNKS, engine=None, config=CONFIG):
    """Return the predictions, and the prompts by system."""
    engine = engine or Engine()
    kind = get_task_type(task_type)
    engines = {"base": ("base_1", engine), "tuned": ("tuned_1", engine)}
    frame = predict(to_frame("benchmark", rows), chunks, engines, kind, "Be brief.", config)
    assert frame.schema == schema_of("predictions")
    systems = [name for name, _, _ in kind.systems() if name in set(frame["system"])]
    assert frame["system"].to_list() == systems * (frame.height // len(systems))
    return frame, dict(zip(frame.select("example_id", "system").iter_rows(), engine.prompts, strict=True))


QUESTION = "Which resistor marks a cable for 32 A?"


@pytest.mark.parametrize("name", sorted(TASK_TYPES))
def test_predict_every_type_gives_retrieved_passages_to_its_systems_with_retrieval_only(name):
    frame, prompts = run([row(1, QUESTION, "220 ohm", chunk_id="chk_cable")], name)
    for system, model, retrieves in get_task_type(name).systems():
        (answer,) = frame.filter(pl.col("system") == system).to_dicts()
        assert answer["context_chunk_ids"] == (["chk_cable"] if retrieves else [])
        assert answer["gold_chunk_id"] == "chk_cable"
        assert answer["model_id"] == f"{model}_1"
        assert ("Cable\nA resistor of 220 ohm" in prompts["exm_001", system]) == retrieves
        assert prompts["exm_001", system].startswith("system: Be brief.\nuser: ")


def test_predict_row_with_its_own_context_is_given_that_and_nothing_retrieved():
    own = "In Japan the resistor has 100 ohm."
    rows = [row(1, QUESTION, "100 ohm", context=own, chunk_id="chk_cable"), row(2, QUESTION, "220 ohm")]
    frame, prompts = run(rows, "extractive_qa")
    assert prompts["exm_001", "tuned_rag"].endswith(f"user: {own}\n\nQuestion: {QUESTION}")
    assert own not in prompts["exm_001", "tuned"]
    assert "220 ohm" in prompts["exm_002", "tuned_rag"] and own not in prompts["exm_002", "tuned_rag"]
    given = frame.filter(pl.col("system") == "tuned_rag")
    assert given["context_chunk_ids"].to_list() == [[], ["chk_cable"]]
    # Whether retrieval found the passage is no question where nothing was retrieved.
    assert given["gold_chunk_id"].to_list() == [None, None]


def test_predict_rows_that_all_bring_contexts_need_no_corpus():
    frame, prompts = run([row(1, QUESTION, "100 ohm", context="It has 100 ohm.")], "open_book_qa", NO_CHUNKS)
    assert frame.height == 4
    assert "It has 100 ohm." in prompts["exm_001", "base_rag"]


def test_predict_question_without_context_and_without_corpus_is_told():
    with pytest.raises(UserError, match="There is nothing to search: the table chunks is empty"):
        run([row(1, QUESTION, "220 ohm")], "open_book_qa", NO_CHUNKS)


def test_predict_closed_book_without_a_corpus_is_asked_without_passages():
    frame, _ = run([row(1, QUESTION, "220 ohm")], "closed_book_qa", NO_CHUNKS)
    assert frame["system"].to_list() == ["base", "tuned"]


def test_predict_any_accepted_answer_counts():
    rows = [row(1, QUESTION, "a resistor", answers=["a resistor", "220 Ohm"]), row(2, QUESTION, "a resistor")]
    frame, _ = run(rows, "extractive_qa")
    tuned = frame.filter(pl.col("system") == "tuned")
    assert tuned["exact_match"].to_list() == [1.0, 0.0]
    assert tuned["token_f1"].to_list() == [1.0, 0.0]
    assert tuned["reference"].to_list() == ["a resistor", "a resistor"]


def test_predict_row_that_cannot_be_answered_accepts_the_sentence_that_says_so_only():
    silent = "The passages do not say."
    rows = [row(1, QUESTION, silent, answers=["220 ohm"], is_answerable=False, context="Nothing here.")]
    assert set(run(rows, "extractive_qa")[0]["exact_match"]) == {0.0}
    assert set(run(rows, "extractive_qa", engine=Engine("the passages do not say"))[0]["exact_match"]) == {1.0}


def test_predict_labels_are_compared_whole_and_no_retriever_is_built():
    rows = [row(1, "Where is my card?", "A"), row(2, "I was charged twice.", "B")]
    frame, prompts = run(rows, "classification", NO_CHUNKS, Engine("A."))
    assert frame.filter(pl.col("system") == "tuned")["exact_match"].to_list() == [1.0, 0.0]
    assert "Where is my card?" in prompts["exm_001", "base"]
    assert set(run(rows, "classification", NO_CHUNKS, Engine("the"))[0]["exact_match"]) == {0.0}


def test_predict_fewer_rows_than_there_are_are_spread_over_the_file():
    rows = [row(n, f"Text {n}", "label") for n in range(100)]
    config = TaskConfig.model_validate({"evaluation": {"max_rows": 4}})
    frame, _ = run(rows, "classification", NO_CHUNKS, config=config)
    assert frame["example_id"].unique(maintain_order=True).to_list() == ["exm_000", "exm_025", "exm_050", "exm_075"]


def test_predict_same_rows_give_the_same_ids():
    rows = [row(1, QUESTION, "220 ohm"), row(2, "Which plug is usual in Europe?", "Type 2")]
    assert run(rows, "open_book_qa")[0].equals(run(rows, "open_book_qa")[0])
