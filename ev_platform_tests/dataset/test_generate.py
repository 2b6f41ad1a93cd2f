import json
import re
from collections import Counter

import polars as pl
import pytest

from ev_platform.dataset.generate import make_brief, make_candidates, plan_candidates, prompt_rows
from ev_platform.dataset.labelling import TEXTS_PER_LABEL
from ev_platform.dataset.sampling import plan_questions, text_id
from ev_platform.errors import UserError
from ev_platform.records import Chunk, schema_of, to_frame
from ev_platform.tasks import Task
from ev_platform.tasks.config import DatasetConfig, Price, TeacherConfig
from ev_platform.tasks.rows import TaskRow
from ev_platform.teachers import UNANSWERABLE
from ev_platform.teachers.ask import Budget, Ledger
from ev_platform.teachers.calls import Reply, Usage
from ev_platform.teachers.language_model import LanguageModelTeacher

NO_DROPPED = pl.DataFrame(schema=schema_of("dropped_documents"))
CLASSES = {"fee": "Asks about a fee.", "loss": "Something is lost.", "thanks": "Says thank you."}


# ---- a task, a corpus and a teacher, all small ----


@pytest.fixture
def task(tmp_path):
    """Return a function that writes a task folder with these settings of `dataset`."""

    def write(type="open_book_qa", classes=None, sources=True, **dataset):
        folder = tmp_path / "plugs"
        folder.mkdir(exist_ok=True)
        job = {"task_description": "Answer questions about charging.", "classes_description": classes or {}}
        (folder / "job_description.json").write_text(json.dumps(job))
        (folder / "config.yaml").write_text(json.dumps({"type": type, "no_answer": "Not said.", "dataset": dataset}))
        (folder / "sources.yaml").write_text(json.dumps({"texts": ["docs/*.md"]} if sources else {}))
        return Task("plugs", folder)

    return write


def passage(page, number, version=""):
    """Return a passage whose words are its own."""
    return " ".join(f"p{page}n{number}w{word}{version}" for word in range(30))


def corpus(n_pages=10, n_chunks=4, changed=()):
    """Return chunks and documents; the pages of `changed` have another version of their second chunk."""
    schema, chunks, documents = schema_of("clean_documents"), [], []
    for page in range(n_pages):
        version = "new" if page in changed else ""
        document_id = f"doc_{page}{version}"
        url = f"https://a.example/{page}.html"
        documents.append({**dict.fromkeys(schema), "document_id": document_id, "url": url, "fetched_url": url})
        for n in range(n_chunks):
            text = passage(page, n, version if n == 1 else "")
            chunk_id = f"chk_{page}_{n}{version}"
            chunks.append(Chunk(chunk_id, document_id, document_id, n, 0, len(text), f"Page {page}", None, text, 30))
    return to_frame("chunks", chunks), pl.DataFrame(documents, schema=schema)


def row(question, answer="an answer", split="train", number=2, **more):
    return TaskRow(split, f"{split}.csv row {number}", question, answer, more.pop("context", None), None, **more)


def test_row(page, number=2):
    where = f"https://a.example/{page}.html"
    return TaskRow("test", f"test.csv row {number}", "What is it?", passage(page, 0).split()[0], None, where)


test_row.__test__ = False


class Scripted:
    """A client that writes what each plan wants, or labels by the first word, and remembers its calls."""

    provider = "scripted"
    has_batches = False

    def __init__(self, label=None, silent=()):
        self.calls, self.label, self.silent = [], label, silent

    async def send(self, call):
        self.calls.append(call)
        data = re.search(r"<(?:passage|text)-(\w+)>\n(.*?)\n</", call.prompt, re.DOTALL)
        if call.purpose == "label":
            said = self.label(data[2])
        elif any(word in data[2] for word in self.silent):
            said = {"questions": []}
        else:
            plans = re.findall(r"^(\d+)\. kind (\w+)", call.prompt, re.MULTILINE)
            said = {"questions": [self.question(data[2], int(number), kind) for number, kind in plans]}
        return Reply("ok", json.dumps(said), usage=Usage(1000, 100), model=call.model)

    def question(self, text, number, kind):
        word = text.split()[-number]
        return {"plan": number, "kind": kind, "question": f"What of {word}?", "answer": word, "evidence": word}

    async def aclose(self):
        pass


@pytest.fixture
def teacher(tmp_path):
    def make(client, name="ledger"):
        config = TeacherConfig(provider="anthropic", model="m-1", use_batches=False, max_tokens=200)
        ledger = Ledger(tmp_path / f"{name}.sqlite")
        ledger._db.execute(
            "PRAGMA synchronous=OFF"
        )  # nothing here survives a power cut, and syncing is most of the time
        return LanguageModelTeacher(client, ledger, config, Price(input=1, output=10), Budget(100))

    return make


@pytest.fixture
def make(teacher):
    """Return a function that makes candidates; it gives both tables and the scripted client."""

    def run(task, rows=(), texts=(), chunks=None, documents=None, client=None, ledger="ledger"):
        if chunks is None:
            chunks, documents = corpus()
        client = client or Scripted()
        made = make_candidates(task, rows, texts, chunks, documents, NO_DROPPED, teacher(client, ledger))
        return made["qa_candidates"], made["generation_log"], client

    return run


# ---- questions about passages ----


def test_every_chunk_gets_its_share_and_a_row_in_the_log(task, make):
    candidates, log, _ = make(task(max_examples=1000, max_per_chunk=3))
    chunks, _ = corpus()
    assert log["source_id"].to_list() == chunks["chunk_id"].to_list()
    assert set(log.select("status", "n_asked", "n_made").rows()) == {("ok", 3, 3)}
    assert candidates["chunk_id"].value_counts()["count"].to_list() == [3] * 40
    assert candidates["document_id"].unique_counts().to_list() == [12] * 10


@pytest.mark.parametrize(("limit", "least", "most"), [(40, 1, 1), (50, 1, 2), (100, 2, 3), (13, 0, 1), (0, 0, 0)])
def test_limit_takes_an_even_share_of_all_chunks(task, make, limit, least, most):
    candidates, log, client = make(task(max_examples=limit, max_per_chunk=3))
    assert candidates.height == limit
    assert (log["n_asked"].min(), log["n_asked"].max()) == (least, most)
    assert len(client.calls) == min(limit, 40)
    left = log.filter(status="not_sampled")
    assert left.height == max(0, 40 - limit)
    assert set(left["detail"]) <= {f"dataset.max_examples {limit} is too few for 40 passages"}


def test_limit_takes_chunks_of_all_parts_of_the_corpus(task, make):
    chunks, documents = corpus(n_pages=40)
    candidates, _, _ = make(task(max_examples=40, max_per_chunk=1), chunks=chunks, documents=documents)
    numbers = [int(i.removeprefix("doc_")) for i in candidates["document_id"]]
    assert all(sum(low <= n < low + 10 for n in numbers) >= 4 for low in (0, 10, 20, 30))


def plans_of(task, n_pages):
    chunks, documents = corpus(n_pages)
    plan = plan_candidates(task, [], [], chunks, documents, NO_DROPPED, "teacher")
    return [plan for job in plan.questions for plan in job.plans]


def test_kinds_difficulties_and_registers_occur_evenly(task):
    plans = plans_of(task(max_examples=720, max_per_chunk=3), 60)
    assert len(plans) == 720
    for attribute, names in (
        ("kind", DatasetConfig().kinds),
        ("difficulty", DatasetConfig().difficulties),
        ("register", DatasetConfig().registers),
    ):
        counts = Counter(getattr(plan, attribute) for plan in plans)
        assert set(counts) == set(names)
        assert min(counts.values()) > 0.75 * 720 / len(names)
        assert max(counts.values()) < 1.25 * 720 / len(names)


def test_share_of_unanswerable_questions_is_what_the_task_wants(task):
    plans = plans_of(task(max_examples=720, max_per_chunk=3, unanswerable_fraction=0.2), 60)
    assert 0.17 < sum(plan.kind == UNANSWERABLE for plan in plans) / len(plans) < 0.23
    others = Counter(plan.kind for plan in plans if plan.kind != UNANSWERABLE)
    assert min(others.values()) > 0.7 * max(others.values())


def test_unanswerable_candidates_are_answered_in_the_tasks_own_words(task, make):
    candidates, _, _ = make(task(max_examples=60, max_per_chunk=3, unanswerable_fraction=0.3), chunks=None)
    unanswerable = candidates.filter(kind=UNANSWERABLE)
    assert 0 < unanswerable.height < 60
    assert unanswerable["chunk_id"].is_unique().all()  # a third of at most two questions is at most one of them
    assert set(unanswerable["answer"]) == {"Not said."}
    assert not unanswerable["is_answerable"].any() and unanswerable["evidence"].null_count() == unanswerable.height
    assert candidates.filter(pl.col("kind") != UNANSWERABLE)["is_answerable"].all()


def test_type_that_needs_answers_asks_no_unanswerable_question(task, make):
    candidates, _, _ = make(task("closed_book_qa", max_examples=200, unanswerable_fraction=0.5))
    assert UNANSWERABLE not in candidates["kind"].to_list()


def test_plans_depend_on_the_passage_and_more_of_them_begin_with_the_same():
    config = DatasetConfig()
    three, five = (plan_questions("A passage.", n, config, 0.3) for n in (3, 5))
    assert five[:3] == three
    assert len({plan_questions(f"Passage {n}.", 3, config, 0.3) for n in range(20)}) > 10


def test_rerun_asks_nothing_and_gives_the_same_rows(task, make):
    settings = {"max_examples": 50, "max_per_chunk": 2, "unanswerable_fraction": 0.2}
    first = make(task(**settings), [test_row(3)])
    again = make(task(**settings), [test_row(3)])
    assert len(first[2].calls) == 36 and again[2].calls == []
    assert first[0].equals(again[0]) and first[1].equals(again[1])


@pytest.mark.parametrize("limit", [1000, 60, 25])
def test_page_that_changed_is_all_that_is_asked_about_again(task, make, limit):
    settings = {"max_examples": limit, "max_per_chunk": 2, "unanswerable_fraction": 0.2}
    before, log, asked = make(task(**settings))
    chunks, documents = corpus(changed={6})
    after, new_log, again = make(task(**settings), chunks=chunks, documents=documents)
    new = {call.call_id for call in again.calls} - {call.call_id for call in asked.calls}
    assert len(new) == len(again.calls) <= 1  # the one passage whose words changed, if it is among those asked about
    assert all("p6n1w0new" in call.prompt for call in again.calls)
    others = pl.col("document_id").str.starts_with("doc_6").not_()
    assert before.filter(others).equals(after.filter(others))
    assert log.filter(pl.col("source_id").str.starts_with("chk_6").not_()).equals(
        new_log.filter(pl.col("source_id").str.starts_with("chk_6").not_())
    )
    if limit == 1000:
        assert len(again.calls) == 1


def test_row_put_before_others_of_its_file_changes_no_other_choice(task, make):
    def of_file(numbers):
        chunks, documents = corpus(n_pages=20, n_chunks=1)
        at = dict(zip(documents["document_id"], numbers, strict=True))
        urls = documents["document_id"].replace_strict(at).cast(pl.String)
        return chunks, documents.with_columns(url="task:plugs/unstructured.csv#row=" + urls)

    chosen = []
    for first in (2, 3):  # in the second file all rows stand one further down
        chunks, documents = of_file(range(first, first + 20))
        chosen.append(make(task(max_examples=8, max_per_chunk=1), chunks=chunks, documents=documents)[0]["chunk_id"])
    assert chosen[0].equals(chosen[1])


def test_documents_of_test_rows_and_their_near_duplicates_are_held_out(task, make):
    chunks, documents = corpus()
    twin = pl.when(document_id="doc_7").then(pl.lit("doc_3")).otherwise("cluster_id")
    candidates, log, client = make(
        task(max_examples=1000), [test_row(3)], chunks=chunks.with_columns(cluster_id=twin), documents=documents
    )
    held = log.filter(status="held_out")
    assert held["source_id"].to_list() == [f"chk_{page}_{n}" for page in (3, 7) for n in range(4)]
    assert set(held["detail"]) == {
        "its document, or a near-duplicate of it, holds the answer to test.csv row 2",
    }
    assert not {"doc_3", "doc_7"} & set(candidates.filter(origin="generated")["document_id"])
    assert not [call for call in client.calls if re.search(r"p[37]n", call.prompt)]


def test_passage_that_says_what_a_test_document_says_is_held_out_wherever_it_stands(task, make):
    chunks, documents = corpus()
    copied = f"{passage(3, 2)} and some more words of its own"
    chunks = chunks.with_columns(text=pl.when(chunk_id="chk_8_0").then(pl.lit(copied)).otherwise("text"))
    _, log, _ = make(task(max_examples=1000), [test_row(3)], chunks=chunks, documents=documents)
    held = dict(log.filter(status="held_out").select("source_id", "detail").rows())
    assert held.pop("chk_8_0") == "26 of its 33 word 5-grams stand in passages of test rows"
    assert set(held) == {f"chk_3_{n}" for n in range(4)}


def test_passage_inside_a_test_rows_own_context_is_held_out(task, make):
    asked = row("What is it?", split="test", context=f"Before it. {passage(5, 1)} After it.")
    _, log, _ = make(task(max_examples=1000), [asked])
    assert log.filter(status="held_out")["source_id"].to_list() == ["chk_5_1"]


def test_equal_passages_are_asked_about_once(task, make):
    chunks, documents = corpus()
    same = pl.col("chunk_id").is_in(["chk_2_1", "chk_9_3"])
    chunks = chunks.with_columns(
        text=pl.when(same).then(pl.lit("The same words.")).otherwise("text"),
        heading_path=pl.when(same).then(pl.lit("Same")).otherwise("heading_path"),
    )
    _, log, client = make(task(max_examples=1000), chunks=chunks, documents=documents)
    outcomes = dict(log.select("source_id", "detail").rows())
    first, second = sorted(("chk_2_1", "chk_9_3"), key=lambda i: outcomes[i] is not None)
    assert (outcomes[first], outcomes[second]) == (None, f"its words are those of {first}")
    assert len(client.calls) == 39


def test_question_carries_its_origin_teacher_and_share_of_the_cost(task, make):
    candidates, log, client = make(task(max_examples=40, max_per_chunk=1))
    one = candidates.filter(chunk_id="chk_4_2").row(0, named=True)
    assert (one["document_id"], one["cluster_id"], one["split"]) == ("doc_4", "doc_4", "train")
    assert (one["origin"], one["teacher"], one["evidence"]) == ("generated", "scripted:m-1", one["answer"])
    assert one["answers"] == [one["answer"]]
    call = next(call for call in client.calls if passage(4, 2) in call.prompt)
    assert (one["call_id"], one["prompt_version"]) == (call.call_id, call.prompt_version)
    assert candidates["cost_usd"].sum() == pytest.approx(log["cost_usd"].sum()) == pytest.approx(40 * 0.002)
    three, _, _ = make(task(max_examples=1000, max_per_chunk=3), ledger="other")
    assert three["cost_usd"].to_list() == pytest.approx([0.002 / 3] * 120)


def test_chunk_of_which_nothing_can_be_asked_says_so(task, make):
    candidates, log, _ = make(task(max_examples=40, max_per_chunk=1), client=Scripted(silent=("p1n2w",)))
    silent = log.filter(status="nothing_found").row(0, named=True)
    assert (silent["source_id"], silent["n_asked"], silent["n_made"]) == ("chk_1_2", 1, 0)
    assert silent["cost_usd"] > 0 and candidates.height == 39


def test_passages_that_give_nothing_are_made_up_for_by_others(task, make):
    settings = {"max_examples": 20, "max_per_chunk": 1}
    _, _, first = make(task(**settings))
    asked = [re.search(r"(p\d+n\d+)w0", call.prompt)[1] for call in first.calls]
    candidates, log, client = make(
        task(**settings), client=Scripted(silent=[f"{a}w" for a in asked[:5]]), ledger="other"
    )
    assert candidates.height == 20 and len(client.calls) == 25
    assert Counter(log["status"]) == {"ok": 20, "nothing_found": 5, "not_sampled": 15}
    chunks, _ = corpus()
    order = chunks["chunk_id"].to_list()
    assert candidates["chunk_id"].to_list() == sorted(candidates["chunk_id"], key=order.index)


def test_calls_that_failed_are_not_made_up_for(task, make):
    class Refusing(Scripted):
        async def send(self, call):
            self.calls.append(call)
            return Reply("refused", detail="no", usage=Usage(10, 1))

    candidates, log, client = make(task(max_examples=20, max_per_chunk=1), client=Refusing())
    assert candidates.is_empty() and len(client.calls) == 20
    assert Counter(log["status"]) == {"refused": 20, "not_sampled": 20}


def test_human_rows_come_first_and_in_the_files_order(task, make):
    rows = [row("Second?", number=3), test_row(3), row("First?", number=2)]
    candidates, _, _ = make(task(max_examples=10), rows)
    assert candidates["row"][:3].to_list() == ["train.csv row 3", "test.csv row 2", "train.csv row 2"]
    assert candidates["origin"].to_list()[3:] == ["generated"] * 10


# ---- what a teacher is told ----


def test_shots_are_train_rows_from_all_over_the_file_and_none_that_is_tested(task):
    rows = [row(f"Train {n}?", f"a{n}", number=n + 2) for n in range(100)]
    rows += [row("TRAIN 62", "leaked", split="test"), row("Test?", split="test", number=3)]
    shots = make_brief(task(n_shots=4), rows).shots
    assert [shot.question for shot in shots] == ["Train 12?", "Train 37?", "Train 61?", "Train 87?"]
    assert make_brief(task(n_shots=4), rows[100:]).shots == ()
    assert len(make_brief(task(n_shots=20), rows[:3]).shots) == 3


def test_brief_holds_the_tasks_own_words(task):
    brief = make_brief(task("extractive_qa", max_question_words=11, max_answer_words=7), [])
    assert (brief.description, brief.no_answer, brief.language) == (
        "Answer questions about charging.",
        "Not said.",
        "en",
    )
    assert (brief.max_question_words, brief.max_answer_words, brief.classes) == (11, 7, {})
    assert "letter by letter" in brief.answer_rule


def test_classes_without_descriptions_are_the_labels_of_the_train_rows(task):
    rows = [row("a", "loss"), row("b", "fee"), row("c", "odd", split="test")]
    assert make_brief(task("classification"), rows).classes == {"fee": "", "loss": ""}
    assert make_brief(task("classification", CLASSES), rows).classes == CLASSES


# ---- labels ----


def labels(text):
    """Label a text such as `fee likely 3` by its first two words."""
    label, certainty = text.split()[:2]
    return {"reason": "it says so", "label": label, "certainty": certainty}


def texts_of(**counts):
    return [f"{label} certain {n}" for label, count in counts.items() for n in range(count)]


def label(make, task, texts, rows=(), **settings):
    chunks, documents = corpus(0)
    return make(
        task("classification", CLASSES, **settings), rows, texts, chunks, documents, client=Scripted(label=labels)
    )


def test_labels_are_used_in_even_shares_of_the_classes(task, make):
    texts = texts_of(fee=60, loss=20, thanks=4)
    candidates, log, _ = label(make, task, texts, max_examples=30)
    assert Counter(candidates["answer"]) == {"fee": 10, "loss": 10, "thanks": 4}
    assert log["source_id"].to_list() == [text_id(text) for text in texts]
    reasons = Counter(log.filter(n_made=0).select("status", "detail").rows())
    assert reasons == {
        ("not_sampled", "labelled 'fee', a class that has its share of 10"): 50,
        ("not_sampled", "labelled 'loss', a class that has its share of 10"): 10,
    }
    kept = candidates.row(0, named=True)
    assert (kept["origin"], kept["kind"], kept["confidence"], kept["chunk_id"]) == ("labelled", "label", 1.0, None)
    assert kept["question"].startswith(kept["answer"]) and kept["cost_usd"] == pytest.approx(0.002)


def test_remainder_of_the_shares_goes_to_the_classes_with_most_texts(task, make):
    candidates, _, _ = label(make, task, texts_of(thanks=20, fee=9, loss=8), max_examples=11)
    assert Counter(candidates["answer"]) == {"thanks": 4, "fee": 4, "loss": 3}


def test_used_labels_are_not_the_first_of_the_file_and_stay_when_texts_are_added(task, make):
    texts = texts_of(fee=40)
    before, _, _ = label(make, task, texts, max_examples=15)
    assert before["question"].to_list() != texts[:5]
    after, _, _ = label(make, task, ["fee certain new", *texts], max_examples=15)
    assert len(set(before["question"]) & set(after["question"])) >= 4


def test_label_that_is_unsure_or_no_class_is_left_out_with_its_reason(task, make):
    texts = ["fee unsure 1", "loss none_fits 2", "greeting certain 3", "thanks likely 4"]
    candidates, log, _ = label(make, task, texts)
    assert candidates.select("answer", "confidence").rows() == [("thanks", 0.75)]
    assert log.select("status", "detail").rows()[:3] == [
        ("not_sampled", "labelled 'fee' with confidence 0.40 < 0.50"),
        ("not_sampled", "labelled 'loss' with confidence 0.10 < 0.50"),
        ("invalid", "the label 'greeting' is none of the task's 3 classes"),
    ]
    assert all(cost > 0 for cost in log["cost_usd"])


def test_texts_that_rows_hold_and_repeated_texts_are_not_labelled(task, make):
    rows = [row("Fee certain 1!", "fee"), row("loss certain 2", "loss", split="test", number=7)]
    texts = ["fee certain 1", "loss  certain 2", "thanks certain 3", "thanks certain 3", "Thanks certain 3."]
    candidates, log, client = label(make, task, texts, rows)
    assert len(client.calls) == 1 and candidates.filter(origin="labelled").height == 1
    details = dict(log.select("source_id", "detail").rows())
    assert details.pop(text_id("fee certain 1")) == "it stands in train.csv row 2"
    assert details.pop(text_id("loss  certain 2")) == "it stands in test.csv row 7"
    assert len(details) == 2  # exactly equal texts are one
    assert set(details.values()) in (
        {None, f"its words are those of {text_id('thanks certain 3')}"},
        {None, f"its words are those of {text_id('Thanks certain 3.')}"},
    )


def test_no_more_texts_are_labelled_than_the_limit_is_worth(task, make):
    candidates, log, client = label(make, task, texts_of(fee=50), max_examples=6)
    assert len(client.calls) == TEXTS_PER_LABEL * 6 and candidates.height == 2
    assert Counter(log["detail"])["30 other texts are enough for dataset.max_examples 6"] == 20


def test_classification_rows_are_joined_to_no_passage(task, make):
    asked = row(f"What is {passage(3, 0)}?", passage(3, 0))
    candidates, log, _ = make(task("classification", CLASSES), [asked])
    assert candidates["chunk_id"].to_list() == [None] and log.is_empty()


# ---- estimates and refusals ----


def test_plan_names_what_will_be_asked_and_asks_nothing(task, make, teacher):
    chunks, documents = corpus()
    folder = task(max_examples=30)
    asked = LanguageModelTeacher.plan_generation
    plan = plan_candidates(folder, [test_row(3)], [], chunks, documents, NO_DROPPED, "scripted:m-1")
    client = Scripted()
    planned = asked(teacher(client), plan.brief, plan.questions)
    assert client.calls == []
    _, log, used = make(folder, [test_row(3)])
    assert {call.call_id for call in planned} == {call.call_id for call in used.calls}
    assert len(plan.log) + len(plan.spare) == log.filter(n_asked=0).height


def test_corpus_that_was_filtered_away_is_refused(task, make):
    chunks, documents = corpus(0)
    with pytest.raises(UserError, match=r"The corpus is empty: .* dropped_documents"):
        make(task(), [row("Why?")], chunks=chunks, documents=documents)


@pytest.mark.parametrize("settings", [{"max_examples": 0}, {"sources": False}])
def test_hand_written_rows_alone_are_fine(task, make, settings):
    chunks, documents = corpus(0)
    candidates, log, client = make(task(**settings), [row("Why?")], chunks=chunks, documents=documents)
    assert (candidates.height, log.height, client.calls) == (1, 0, [])


@pytest.mark.parametrize(
    ("type", "settings", "said"),
    [
        ("open_book_qa", {"max_examples": 0}, "The corpus is empty"),
        ("open_book_qa", {"sources": False}, "no sources, no unlabelled texts and no train rows: write sources.yaml"),
        ("classification", {}, "has no train rows and no unlabelled texts"),
    ],
)
def test_task_with_nothing_to_train_on_is_refused(task, make, type, settings, said):
    chunks, documents = corpus(0)
    with pytest.raises(UserError, match=said):
        make(task(type, **settings), [row("Why?", split="test")], chunks=chunks, documents=documents)


def test_texts_without_any_class_are_refused(task, make):
    with pytest.raises(UserError, match=r"job_description\.json: write the classes into classes_description"):
        make(task("classification"), [], ["a text"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kinds": []}, "dataset.kinds is empty"),
        ({"registers": []}, "dataset.registers is empty"),
        ({"kinds": ["number", UNANSWERABLE]}, "set dataset.unanswerable_fraction instead"),
    ],
)
def test_configuration_that_leaves_nothing_to_ask_for_is_refused(task, make, settings, said):
    with pytest.raises(UserError, match=said):
        make(task(**settings))


def test_candidate_ids_differ_between_passages_and_repeat_between_runs(task, make):
    candidates, _, _ = make(task(max_examples=40, max_per_chunk=1))
    assert candidates["example_id"].is_unique().all()
    moved, documents = corpus()
    moved = moved.with_columns(chunk_id=pl.col("chunk_id") + "_moved")
    again, _, client = make(task(max_examples=40, max_per_chunk=1), chunks=moved, documents=documents)
    assert client.calls == []  # the passages are the same, whatever their chunks are called
    assert not set(again["example_id"]) & set(candidates["example_id"])


def test_every_field_of_a_row_is_part_of_what_candidates_depend_on():
    one = row("What?", context="Here.", answers=("a", "b"), answer_start=3)
    assert json.loads(json.dumps(prompt_rows([one]))) == [
        ["train", "train.csv row 2", "What?", "an answer", "Here.", None, ["a", "b"], 3, True]
    ]
