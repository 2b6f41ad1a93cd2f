"""Which passages each system is given, and which answers count, told by an engine that shows its prompt."""

import dataclasses
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from ev_platform.decoding import Completion
from ev_platform.errors import UserError
from ev_platform.evaluation import floors, predict
from ev_platform.evaluation.floors import LinearProbe, first_sentence
from ev_platform.evaluation.summary import summarise
from ev_platform.prompting import passage_text
from ev_platform.records import Chunk, DatasetRow, TeacherAnswer, schema_of, to_frame
from ev_platform.registry import Release, SourceChunk
from ev_platform.retrieval import Retriever, embed
from ev_platform.tasks.config import TaskConfig
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
        self.limits = set()

    def render(self, messages):
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)

    def count_tokens(self, text):
        return len(text.split())

    def generate(self, prompts, *, max_new_tokens, temperature=0.0, seed=0):
        self.prompts += prompts
        self.limits.add(max_new_tokens)
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


TRAINED = [row(n, text, label) for n, (text, label) in enumerate([("My card is lost.", "card"), ("Pay me.", "money")])]


def test_predict_labels_have_floors_where_there_are_training_rows():
    training_set = to_frame("training_set", [*TRAINED, row(9, "Give me the money back.", "money")])
    rows = [row(1, "Where is my card?", "card"), row(2, "I want my money.", "money")]
    kind = get_task_type("classification")
    engines = {"base": ("base_1", Engine("card")), "tuned": ("tuned_1", Engine("card"))}
    frame = predict(
        to_frame("benchmark", rows), NO_CHUNKS, engines, kind, "Be brief.", CONFIG, training_set=training_set
    )
    assert frame.schema == schema_of("predictions")
    assert frame["system"].to_list() == ["majority", "linear_probe", "base", "tuned"] * 2
    answers = {name: frame.filter(pl.col("system") == name)["prediction"].to_list() for name in set(frame["system"])}
    assert answers["majority"] == ["money", "money"]
    assert answers["linear_probe"] == ["card", "money"]
    assert frame.filter(pl.col("system") == "linear_probe")["exact_match"].to_list() == [1.0, 1.0]
    assert frame["is_abstention"].null_count() == frame.height


def test_predict_labels_without_training_rows_or_of_one_class_have_the_floors_that_there_can_be():
    rows = [row(1, "Where is my card?", "card")]
    kind, engines = get_task_type("classification"), {"base": ("base_1", Engine()), "tuned": ("tuned_1", Engine())}

    def systems(trained):
        given = to_frame("training_set", trained)
        frame = predict(to_frame("benchmark", rows), NO_CHUNKS, engines, kind, "Be brief.", CONFIG, training_set=given)
        return frame["system"].to_list()

    assert systems([]) == ["base", "tuned"]
    assert systems(TRAINED[:1]) == ["majority", "base", "tuned"]


def predict_qa(rows, chunks=CHUNKS, **others):
    engine = others.pop("engine", None) or Engine()
    engines = {"base": ("base_1", engine), "tuned": ("tuned_1", engine)}
    kind = get_task_type("open_book_qa")
    trained = to_frame("training_set", [])
    return predict(
        to_frame("benchmark", rows), chunks, engines, kind, "Be brief.", CONFIG, training_set=trained, **others
    )


def test_predict_first_sentence_of_what_was_found_or_brought_is_a_floor():
    own = "## Cables\n\nThe cable is 10 m long. It is blue."
    rows = [row(1, QUESTION, "220 ohm", chunk_id="chk_cable"), row(2, "How long?", "10 m", context=own)]
    frame = predict_qa(rows)
    floor = frame.filter(pl.col("system") == "first_sentence")
    assert floor["prediction"].to_list() == [
        "A resistor of 220 ohm marks a cable for 32 A.",
        "The cable is 10 m long.",
    ]
    assert floor["context_chunk_ids"].to_list() == [["chk_cable"], []]
    assert floor["groundedness"].to_list() == [1.0, 1.0]
    assert floor["n_completion_tokens"].to_list() == [None, None]
    # Its turn costs the models nothing: it is no model.
    assert frame["system"].to_list() == ["first_sentence", "base", "tuned", "base_rag", "tuned_rag"] * 2


def test_predict_answers_tell_whether_they_abstain_and_what_stands_in_their_passages():
    silent = "The passages do not say."
    rows = [row(1, QUESTION, "220 ohm"), row(2, QUESTION, silent, is_answerable=False, context="Nothing of it here.")]
    frame = predict_qa(rows, engine=Engine("It has 220 ohm."))
    tuned = {name: frame.filter(pl.col("system") == name) for name in ("tuned", "tuned_rag")}
    assert tuned["tuned_rag"]["groundedness"].to_list() == [1.0, 0.0]
    assert tuned["tuned"]["groundedness"].to_list() == [None, None]
    assert frame.filter(pl.col("example_id") == "exm_002")["is_answerable"].to_list() == [False] * 5
    assert set(tuned["tuned_rag"]["is_abstention"]) == {False}
    declined = predict_qa(rows, engine=Engine(silent)).filter(pl.col("system") == "tuned_rag")
    assert set(declined["is_abstention"]) == {True} and declined["exact_match"].to_list() == [0.0, 1.0]
    assert frame.select("rouge_1", "rouge_2", "chrf", "meteor").null_count().row(0) == (0, 0, 0, 0)


FAR = "Who won the football match last night?"


def test_predict_question_with_no_passage_near_enough_is_declined_without_asking_the_model():
    silent = CONFIG.no_answer
    engine = Engine("It has 220 ohm.")
    rows = [
        row(1, QUESTION, "220 ohm"),
        row(2, FAR, silent, is_answerable=False),
        row(3, FAR, "220 ohm", context="The winner has 220 ohm."),  # its own passage is near enough, whatever it is
    ]
    frame = predict_qa(rows, engine=engine, min_score=0.4)
    with_passages = frame.filter(pl.col("system").is_in(["base_rag", "tuned_rag"]))
    for _, own in with_passages.group_by("system"):
        assert own["prediction"].to_list() == ["It has 220 ohm.", silent, "It has 220 ohm."]
        assert own["is_abstention"].to_list() == [False, True, False]
        assert own["n_completion_tokens"].to_list()[1] == own["n_prompt_tokens"].to_list()[1] == 0
        assert len(own["context_chunk_ids"][1]) > 0  # what was looked at stays known
    assert set(frame.filter(pl.col("system") == "tuned")["prediction"]) == {"It has 220 ohm."}
    assert len(engine.prompts) == 3 * 4 - 2
    unanswerable = summarise(frame, resamples=100, seed=1).filter(pl.col("metric") == "abstention_recall")
    assert dict(unanswerable.select("system", "value").rows())["tuned_rag"] == 1.0
    assert dict(unanswerable.select("system", "value").rows())["tuned"] == 0.0


def test_predict_champion_declines_by_its_own_score_and_in_its_own_words():
    engine = Engine("100 ohm")
    champion = dataclasses.replace(make_champion(engine), min_score=0.15, no_answer="Ask somebody else.")
    frame = predict_qa([row(1, QUESTION, "100 ohm"), row(2, FAR, "x")], champion=champion)
    answers = frame.filter(pl.col("system") == "champion")
    assert answers["prediction"].to_list() == ["100 ohm", "Ask somebody else."]
    assert answers["is_abstention"].to_list() == [False, True]
    assert len(engine.prompts) == 1
    assert set(frame.filter(pl.col("system") == "tuned_rag")["is_abstention"]) == {False}  # it has no such score


def teacher_answers(rows, **changes):
    known = dict.fromkeys(TeacherAnswer.__dataclass_fields__)
    return to_frame(
        "teacher_answers",
        [
            TeacherAnswer(**known | {"example_id": r.example_id, "prediction": "220 ohm", "status": "ok"} | changes)
            for r in rows
        ],
    )


def test_predict_teacher_takes_part_where_it_answered_every_row():
    rows = [row(1, QUESTION, "220 ohm"), row(2, QUESTION, "Type 2")]
    frame = predict_qa(rows, teacher_answers=teacher_answers([*rows, row(3, "Another?", "x")]))
    teacher = frame.filter(pl.col("system") == "teacher")
    assert teacher["exact_match"].to_list() == [1.0, 0.0]
    assert teacher.select("latency_ms", "n_prompt_tokens", "n_completion_tokens").null_count().row(0) == (2, 2, 2)


@pytest.mark.parametrize("changes", [{"status": "refused", "prediction": None}, {"prediction": None}])
def test_predict_teacher_that_left_a_row_out_takes_no_part(changes):
    rows = [row(1, QUESTION, "220 ohm"), row(2, QUESTION, "Type 2")]
    answered = pl.concat([teacher_answers(rows[:1]), teacher_answers(rows[1:], **changes)])
    for given in (answered, answered.head(1), answered.clear()):
        assert "teacher" not in set(predict_qa(rows, teacher_answers=given)["system"])


def make_champion(engine):
    chunk = SourceChunk("chk_old", "An older page says 100 ohm.", "Old", "Old", "u", None, "l", "p", datetime.now(UTC))
    vectors = embed([passage_text("Old", chunk.text)])
    return Release(
        model_version="tiny@1",
        task_type=get_task_type("closed_book_qa"),
        instructions="Be old.",
        engine=engine,
        retriever=Retriever(["chk_old"], [chunk.text], vectors),
        chunks={"chk_old": chunk},
        top_k=1,
        max_new_tokens=3,
        has_retrieval=True,
    )


def test_predict_champion_that_refuses_a_row_takes_no_part_at_all(caplog):
    class Narrow(Engine):
        def generate(self, prompts, **options):
            if "It has 200 ohm" in prompts[0]:
                raise UserError("A prompt of 9 tokens exceeds the window: shorten it.")
            return super().generate(prompts, **options)

    rows = [row(1, QUESTION, "100 ohm"), row(2, QUESTION, "200 ohm", context="It has 200 ohm.")]
    frame = predict_qa(rows, champion=make_champion(Narrow()))
    assert frame["system"].to_list() == ["first_sentence", "base", "tuned", "base_rag", "tuned_rag"] * 2
    assert "refuses a row: A prompt of 9 tokens" in caplog.text
    with pytest.raises(UserError, match="A prompt of 9 tokens"):
        predict_qa(rows, engine=Narrow())


def test_predict_champion_answers_with_its_own_passages_prompt_and_settings():
    older = Engine("100 ohm")
    champion = make_champion(older)
    rows = [row(1, QUESTION, "100 ohm"), row(2, QUESTION, "200 ohm", context="It has 200 ohm.")]
    frame = predict_qa(rows, champion=champion)
    assert frame["system"].to_list() == ["first_sentence", "base", "tuned", "base_rag", "tuned_rag", "champion"] * 2
    answers = frame.filter(pl.col("system") == "champion")
    assert set(answers["model_id"]) == {"tiny@1"} and set(answers["prediction"]) == {"100 ohm"}
    assert answers["context_chunk_ids"].to_list() == [["chk_old"], []]
    assert older.prompts[0] == champion.render(QUESTION, champion.retrieve(QUESTION))
    assert older.prompts[1] == f"system: Be old.\nuser: It has 200 ohm.\n\nQuestion: {QUESTION}"
    assert older.limits == {3}
    without = dataclasses.replace(champion, has_retrieval=False, retriever=None, chunks={})
    assert predict_qa(rows, champion=without).filter(pl.col("system") == "champion")["context_chunk_ids"].to_list() == [
        [],
        [],
    ]


def test_predict_row_that_cannot_be_answered_has_no_supporting_passage():
    rows = [row(1, QUESTION, "Nobody knows.", is_answerable=False, chunk_id="chk_cable")]
    frame, _ = run(rows, "open_book_qa")
    assert frame["gold_chunk_id"].to_list() == [None] * 4


def test_predict_champion_has_a_supporting_passage_only_where_it_answers_from_it():
    rows = [row(1, QUESTION, "100 ohm", chunk_id="chk_cable"), row(2, QUESTION, "100 ohm", chunk_id="chk_old")]
    frame = predict_qa(rows, champion=make_champion(Engine()))
    gold = {name: rows["gold_chunk_id"].to_list() for (name,), rows in frame.group_by("system")}
    assert gold["champion"] == [None, "chk_old"]
    assert gold["tuned_rag"] == ["chk_cable", "chk_old"]


def test_predict_models_take_turns_row_by_row():
    engine = Engine()
    predict_qa([row(1, "First?", "a"), row(2, "Second?", "b")], engine=engine)
    asked = [prompt.rpartition("Question: ")[2] for prompt in engine.prompts]
    assert asked == ["First?"] * 4 + ["Second?"] * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Title\n\nOne thing. Another.", "One thing."),
        ("It takes e.g. two hours. Then it is full.", "It takes e.g. two hours."),
        ("A line\nthat goes on! Next.", "A line that goes on!"),
        ("| a | b |\n| 1 | 2 |", "| a | b | | 1 | 2 |"),
        ("no end", "no end"),
        ("", ""),
    ],
)
def test_first_sentence_is_prose(text, expected):
    assert first_sentence(text) == expected


def test_linear_probe_of_no_rows_answers_nothing():
    training = to_frame("training_set", [row(1, "sunny", "good"), row(2, "rainy", "bad")])
    assert LinearProbe(training).answer([]) == []


def test_linear_probe_many_rows_are_spread_over_the_file():
    rows = [row(n, f"text {n}", "early" if n < 4 else "late") for n in range(floors.PROBE_ROWS + 4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floors, "PROBE_ROWS", 4)
        seen = []
        patch.setattr(floors, "embed_once", lambda texts: seen.extend(texts) or np.arange(8.0).reshape(4, 2))
        floors.LinearProbe(to_frame("training_set", rows[:8]))
    assert seen == ["text 0", "text 2", "text 4", "text 6"]


def test_code_of_the_answers_covers_every_module_that_scores_them():
    """What is imported by asking and scoring decides the answers; `defs` names it for the code version."""
    code = "import sys, ev_platform.evaluation; print(*(m for m in sys.modules if m.startswith('ev_platform.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    own = {name for name in loaded if name.startswith("ev_platform.evaluation.")}
    from ev_platform.defs.evaluation import ANSWERING

    assert {module.__name__ for module in ANSWERING} == own


def test_predict_same_rows_give_the_same_ids():
    rows = [row(1, QUESTION, "220 ohm"), row(2, "Which plug is usual in Europe?", "Type 2")]
    assert run(rows, "open_book_qa")[0].equals(run(rows, "open_book_qa")[0])
