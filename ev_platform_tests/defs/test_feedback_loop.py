"""From an answer over HTTP to a training row: feedback posted, judged by a person, taken up by the next run."""

import csv
import io
import itertools
import re
import shutil
from datetime import UTC, datetime, timedelta

import dagster as dg
import duckdb
import pytest
from typer.testing import CliRunner

from ev_platform.cli import app
from ev_platform.dataset import steps
from ev_platform.records import Chunk, CleanDocument, Example, ModelArtifact, to_frame
from ev_platform.retrieval import embed_chunks
from ev_platform.serving.journal import Journal
from ev_platform.tasks import get_task
from ev_platform_tests.serving.fakes import CHUNKS, fake_release
from ev_platform_tests.serving.rows import judged, served
from ev_platform_tests.serving.server import Server
from ev_platform_tests.serving.web import SayingEngine
from ev_platform_tests.test_graph import Workspace
from ev_platform_tests.tiny import CONFIG, write_tiny_model, write_tiny_task

TEST_QUESTION = "How long may the cable of a station be?"
READ = ("qa_candidates", "generation_log", "chunks", "clean_documents", "chunk_vectors", "base_model")
LOOP = {"feedback_candidates", "examples", "rejected_examples", "coverage"}
LOOP |= {"training_set", "validation_set", "benchmark"}
NUMBERS = itertools.count()


def blank(row_class, **fields):
    return row_class(**dict.fromkeys(row_class.__dataclass_fields__) | fields)


def human(question, answer, split, document):
    return blank(
        Example,
        example_id=f"exm_{question}",
        question=question,
        answer=answer,
        answers=[answer],
        is_answerable=True,
        chunk_id=f"chk_{document}",
        document_id=document,
        cluster_id=document,
        origin="human",
        kind="human",
        split=split,
        row=f"{split}.csv row 2",
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A task with a corpus of four passages, one training row and one test row; nothing may change it."""
    workspace = Workspace(tmp_path_factory.mktemp("prepared"))
    model = write_tiny_model(workspace.root / "model")
    write_tiny_task(workspace.task, model)
    config = CONFIG.replace("validation_fraction: 0.4", "validation_fraction: 0.0").format(model=model)
    (workspace.task / "config.yaml").write_text(config)
    texts = {chunk.chunk_id: chunk.text for chunk in CHUNKS}
    texts |= {"chk_lock": "A motor in the car locks the plug.", "chk_long": "The cable may be 10 metres long."}
    ids = {chunk_id: chunk_id.removeprefix("chk_") for chunk_id in texts}
    chunks = to_frame(
        "chunks", [Chunk(c, ids[c], ids[c], n, 0, 9, "", None, text, 9) for n, (c, text) in enumerate(texts.items())]
    )
    documents = [blank(CleanDocument, document_id=name, url=f"https://a.example/{name}") for name in ids.values()]
    workspace.store.root.mkdir()
    (workspace.store.root / "base").symlink_to(model)
    tables = {
        "chunks": chunks,
        "chunk_vectors": embed_chunks(chunks),
        "clean_documents": to_frame("clean_documents", documents),
        "qa_candidates": to_frame(
            "qa_candidates",
            [
                human("What locks the plug?", "a motor", "train", "lock"),
                human(TEST_QUESTION, "10 metres", "test", "long"),
            ],
        ),
        "generation_log": to_frame("generation_log", []),
        "base_model": to_frame(
            "base_model", [blank(ModelArtifact, artifact_id="base", path="base", n_bytes=1, metrics="{}")]
        ),
    }
    for table, frame in tables.items():
        workspace.store.publish(table, "tiny", frame)
    return workspace


@pytest.fixture
def workspace(prepared, own_folders):
    for name in ("data", "tasks"):
        shutil.copytree(prepared.root / name, own_folders / name, symlinks=True)
    return Workspace(own_folders)


def run(workspace):
    """Run in Dagster what the loop takes part in; return the tables that were computed."""
    with workspace.graph() as defs:
        from ev_platform.defs import dataset, serving

        assets = [dg.AssetSpec(name) for name in READ] + [serving.feedback_candidates, dataset.validate, dataset.split]
        resources = {name: defs.resources[name] for name in ("store", "io_manager")}
        checks = [dataset.candidates_add_up, dataset.no_leakage]
        result = dg.materialize([*assets, *checks], resources=resources, partition_key="tiny")
    assert all(check.passed for check in result.get_asset_check_evaluations())
    made = [event.step_materialization_data.materialization for event in result.get_asset_materialization_events()]
    assert {each.asset_key.path[-1] for each in made} == LOOP
    return {each.asset_key.path[-1] for each in made if not each.metadata["unchanged"].value}


def take_up(workspace):
    """Do the same steps without Dagster; return the rows from feedback that became examples, and those that did not."""
    task, store = get_task("tiny", workspace.task.parent), workspace.store
    store.build(["feedback_candidates"], "tiny", inputs={}, **steps.feedback_build(task, store))
    decided = steps.decided_feedback(task, store, workspace.read("feedback_candidates"))
    others = [workspace.read(name) for name in ("qa_candidates", "generation_log")]
    corpus = [workspace.read(name) for name in ("chunks", "clean_documents")]
    made = steps.validate(task, store, "run", *others, decided, *corpus)
    for name in ("examples", "rejected_examples"):
        store.publish(name, "tiny", made[name])
    return [workspace.read(name).drop_nulls("request_id").to_dicts() for name in ("examples", "rejected_examples")]


def tell(workspace, question, rating="down", **fields):
    """Keep feedback on an answer that was made from the two passages of the fake release."""
    number = next(NUMBERS)
    row = judged(
        f"fdb_{number}",
        task="tiny",
        question=question,
        rating=rating,
        **{
            "request_id": f"req_{number}",
            "answer": "32 A",
            "correction": None,
            "chunk_ids": ["chk_cable", "chk_manual"],
        }
        | fields,
    )
    journal = Journal(workspace.store.root, "feedback")
    journal.add(row)
    journal.close()
    return row.request_id


@pytest.fixture
def client(workspace):
    """A client of a server whose model always says the same."""
    with Server(workspace.store.root, fake_release("tiny", engine=SayingEngine("32 A"))) as server:
        yield server.client


def post(client, path, status, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()["id"]


def call(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def review(workspace, decide):
    """Export the sheet, let somebody fill it in, import it; `decide` gets a row and returns the cells to fill."""
    sheet = workspace.root / "sheet.csv"
    sheet.unlink(missing_ok=True)
    call("dataset", "review-export", "--task", "tiny", "--feedback", "--out", str(sheet))
    rows = list(csv.DictReader(io.StringIO(sheet.read_text("utf-8-sig"), newline="")))
    with sheet.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | decide(row) for row in rows)
    call("dataset", "review-import", "--task", "tiny", "--reviewer", "Ada", str(sheet))
    return rows


def test_feedback_over_http_is_trained_on_by_the_next_run_once_a_person_accepts_it(workspace, client):
    cable, rcd = "For what current are Mode 3 cables rated?", "How often is the RCD tested?"
    liked, corrected = (post(client, "/v1/answers", 200, question=question) for question in (cable, rcd))
    post(client, "/v1/feedback", 201, request_id=liked, rating="up")
    assert run(workspace) == LOOP
    post(
        client,
        "/v1/feedback",
        201,
        request_id=corrected,
        rating="down",
        correction="every three months",
        comment="ask ann@firm.de",
    )
    # Nobody has read it yet: it is listed, and nothing else is computed.
    assert run(workspace) == {"feedback_candidates"}
    assert run(workspace) == set()
    assert workspace.read("training_set")["question"].to_list() == ["What locks the plug?"]

    rows = review(workspace, lambda row: {"decision": "accept"})
    assert [(row["kind"], row["answer"], row["given_answer"], row["request_id"]) for row in rows] == [
        ("liked", "32 A", "32 A", liked),
        ("corrected", "every three months", "32 A", corrected),
    ]
    assert rows[1]["users_comments"] == "ask [email]" and "Test the RCD every three months." in rows[1]["passage"]
    assert {"examples", "training_set"} <= run(workspace)
    trained = workspace.read("training_set").drop_nulls("request_id")
    assert trained.select("question", "answer", "origin", "chunk_id", "request_id", "split").rows() == [
        (cable, "32 A", "human", "chk_cable", liked, "train"),
        (rcd, "every three months", "human", "chk_manual", corrected, "train"),
    ]
    assert run(workspace) == set()

    with duckdb.connect(str(workspace.store.rebuild_catalogue()), read_only=True) as catalogue:
        found = catalogue.execute(
            "SELECT request_id, asked_question, given_answer, answer, rating, model_version, reviewer, route "
            "FROM feedback_sources ORDER BY kind DESC"
        ).fetchall()
    assert found == [
        (liked, cable, "32 A", "32 A", "up", "tiny@3", "Ada", "/v1/answers"),
        (corrected, rcd, "32 A", "every three months", "down", "tiny@3", "Ada", "/v1/answers"),
    ]


def test_feedback_that_nobody_has_decided_on_takes_no_part(workspace):
    tell(workspace, "For what current are Mode 3 cables rated?", "up")
    assert take_up(workspace) == [[], []]
    assert workspace.read("feedback_candidates").height == 1


def test_more_of_what_is_decided_changes_nothing_that_is_trained_on(workspace):
    first = tell(workspace, "How often is the RCD tested?", correction="every three months")
    review(workspace, lambda row: {"decision": "accept"})
    trained = take_up(workspace)
    assert [row["request_id"] for row in trained[0]] == [first]
    tell(workspace, "How often is the RCD tested?", correction="every three months", key_id="00000002")
    assert take_up(workspace) == trained
    # Nor does it that the journal is gone.
    shutil.rmtree(workspace.store.root / "serving" / "feedback")
    assert take_up(workspace) == trained


def test_correction_that_asks_a_test_question_is_rejected_with_that_reason(workspace):
    tell(workspace, TEST_QUESTION.upper(), correction="10 metres")
    tell(workspace, f"Please, {TEST_QUESTION.lower()}", correction="on Mars")
    review(workspace, lambda row: {"decision": "accept"})
    made, rejected = take_up(workspace)
    assert made == []
    assert {row["answer"]: row["reject_reason"] for row in rejected} == {
        "10 metres": "equals_test_question",
        "on Mars": "overlaps_test_question",
    }


def test_correction_that_no_passage_supports_is_rejected_although_it_was_accepted(workspace):
    reasons = {
        "every 7 months": "number_not_in_passage",
        "every three months <|im_end|>": "residue",
        "As an AI language model I cannot say.": "refusal",
    }
    for number, correction in enumerate(reasons):
        tell(workspace, f"How often is RCD number {number} tested?", correction=correction)
    review(workspace, lambda row: {"decision": "accept"})
    made, rejected = take_up(workspace)
    assert made == []
    assert {row["answer"]: row["reject_reason"] for row in rejected} == reasons
    assert {row["origin"] for row in rejected} == {"human"}


def test_dislike_without_a_correction_trains_on_what_the_reviewer_writes(workspace):
    asked = tell(workspace, "How often is the RCD tested?")
    tell(workspace, "Who was the first to test an RCD?")

    def decide(row):
        assert (row["kind"], row["answer"]) == ("disliked", "")
        if row["question"].startswith("Who"):
            return {"decision": "reject", "comment": "nothing we have a source for"}
        return {"decision": "edit", "edited_answer": "every three months"}

    review(workspace, decide)
    ((made,), (rejected,)) = take_up(workspace)
    assert (made["answer"], made["chunk_id"], made["request_id"]) == ("every three months", "chk_manual", asked)
    assert (rejected["reject_reason"], rejected["reject_detail"]) == (
        "rejected_by_reviewer",
        "nothing we have a source for",
    )


def test_row_without_an_answer_cannot_be_accepted(workspace):
    tell(workspace, "How often is the RCD tested?")
    with pytest.raises(AssertionError, match="there is no answer yet: write edit and the right one into edited_answer"):
        review(workspace, lambda row: {"decision": "accept"})
    assert workspace.read("reviews").is_empty()


def test_decision_on_what_its_author_took_back_meanwhile_counts_with_the_rest_of_the_sheet(workspace):
    cable = tell(workspace, "For what current are Mode 3 cables rated?", "up")
    rcd = tell(workspace, "How often is the RCD tested?", correction="every three months")

    def decide(row):
        if row["request_id"] == cable:
            tell(workspace, row["question"], "down", request_id=cable)
            take_up(workspace)
        return {"decision": "accept"}

    review(workspace, decide)
    made, rejected = take_up(workspace)
    assert ({row["request_id"] for row in made}, rejected) == ({cable, rcd}, [])


def test_another_key_s_request_of_the_same_id_does_not_take_over_the_trace(workspace):
    at, journal = datetime.now(UTC) - timedelta(minutes=2), Journal(workspace.store.root, "requests")
    asked, mine = "How often is the RCD tested?", {"task": "tiny", "answer": "32 A"}
    journal.add(served("mine", at, question=asked, **mine))
    journal.add(served("mine", at + timedelta(seconds=5), question="Another?", **mine))
    journal.add(served("mine", at + timedelta(seconds=9), key_id="mallory", question="MALLORY?", **mine))
    journal.add(served("mine", at + timedelta(seconds=9), key_id="mallory", question=asked, route="MALLORY", **mine))
    journal.close()
    tell(workspace, asked, correction="every three months", request_id="mine")
    review(workspace, lambda row: {"decision": "accept"})
    tell(workspace, "MALLORY?", "up", request_id="mine", key_id="mallory", comment="MALLORY")
    assert {"training_set"} <= run(workspace)
    with duckdb.connect(str(workspace.store.rebuild_catalogue()), read_only=True) as catalogue:
        found = catalogue.execute(
            "SELECT asked_question, asked_at, route, key_id, rating, comment FROM feedback_sources"
        ).fetchall()
    assert found == [(asked, at, "/v1/answers", "00000001", "down", None)]


def test_sheet_has_what_is_undecided_only_and_is_refused_without_any(workspace):
    def refused():
        sheet = str(workspace.root / "none.csv")
        result = CliRunner().invoke(app, ["dataset", "review-export", "--task", "tiny", "--feedback", "--out", sheet])
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        return "There is no feedback to review" in result.stderr

    assert refused()
    tell(workspace, "How often is the RCD tested?")
    assert len(review(workspace, lambda row: {"decision": "reject"})) == 1
    assert refused()
    tell(workspace, "Which RCD?", correction="=HYPERLINK(1)")
    (row,) = review(workspace, lambda row: {"decision": "reject"})
    assert row["answer"] == "'=HYPERLINK(1)"


def test_show_counts_feedback_by_whether_it_is_decided(workspace):
    tell(workspace, "For what current are Mode 3 cables rated?", "up")
    review(workspace, lambda row: {"decision": "accept"})
    tell(workspace, "How often is the RCD tested?")
    take_up(workspace)
    shown = call("dataset", "show", "--task", "tiny")
    assert re.search(r"liked\s*│ yes", shown) and re.search(r"disliked\s*│ no, see review-export --feedback", shown)
    assert re.search(r"liked\s*│ feedback\s*│ 1", shown)  # in the table of what people accepted
