"""A classification release from benchmark to endpoint: real weights, real tables, no corpus, nothing faked."""

import csv
import json

import pytest

from ev_platform import registry
from ev_platform.engine import load_engine
from ev_platform.evaluation import predict
from ev_platform.evaluation.report import METRIC_NAMES
from ev_platform.evaluation.statistics import verdict
from ev_platform.evaluation.summary import deciding_metric, differences_of, summarise
from ev_platform.records import DatasetRow, ModelArtifact, to_frame
from ev_platform.storage import Store
from ev_platform.tasks import get_task
from ev_platform.tasks.rows import read_rows
from ev_platform.tasks.types import get_task_type
from ev_platform.training.base import sha256_weights
from ev_platform.training.export import export_serving_model
from ev_platform_tests.serving.server import Server
from ev_platform_tests.tiny import tiny_recipe, write_tiny_model

CLASSES = {"card": "Where the card is.", "refund": "Money back.", "limit": "How much may be spent."}
TEXTS = [
    ("Where is my card?", "card"),
    ("I want my money back.", "refund"),
    ("My card has not come yet.", "card"),
    ("How much may I spend in a day?", "limit"),
    ("The shop has not paid me back.", "refund"),
    ("Is there a limit at the cash machine?", "limit"),
]


def artifact(store, kind, artifact_id, model):
    with store.artifact(kind, lambda: artifact_id) as folder:
        export_serving_model(model, folder, tiny_recipe(), (), "")
        sha256, n_bytes = sha256_weights(folder)
    path = f"artifacts/{kind}/{artifact_id}"
    return to_frame(kind, [ModelArtifact(artifact_id, kind, path, "tiny", "{}", "{}", sha256, n_bytes, "{}")])


def dataset_row(number, row):
    known = dict.fromkeys(DatasetRow.__dataclass_fields__)
    known |= {"example_id": f"exm_{number}", "split": "test", "question": row.question, "answer": row.answer}
    known |= {"answers": [row.answer], "is_answerable": True, "context_chunk_ids": [], "messages": []}
    return DatasetRow(**known)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the root of a folder of tasks with one classification task without sources."""
    root = tmp_path_factory.mktemp("labels")
    task = root / "tasks" / "tiny"
    task.mkdir(parents=True)
    job = {"task_description": "Say what the customer writes about.", "classes_description": CLASSES}
    (task / "job_description.json").write_text(json.dumps(job))
    (task / "config.yaml").write_text("type: classification\nevaluation: {max_new_tokens: 4, bootstrap: 100}\n")
    with (task / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *TEXTS])
    return root


def test_classification_release_served_is_what_was_evaluated(folder, tmp_path_factory):
    store, task = Store(folder / "data"), get_task("tiny", folder / "tasks")
    task_type = get_task_type(task.config.type)
    models = {name: write_tiny_model(folder / name, seed=seed) for name, seed in (("base", 0), ("tuned", 1))}
    base = artifact(store, "base_serving_model", "base_1", models["base"])
    tuned = artifact(store, "serving_model", "tuned_1", models["tuned"])
    rows = to_frame("benchmark", [dataset_row(n, row) for n, row in enumerate(read_rows(task, "test"))])
    chunks = store.publish("chunks", "tiny", to_frame("chunks", []))

    instructions = task_type.instructions(task.description, task.job.classes_description)
    engines = {
        name: (frame.item(0, "artifact_id"), load_engine(store.root / frame.item(0, "path")))
        for name, frame in (("base", base), ("tuned", tuned))
    }
    predictions = predict(rows, store.read("chunks", "tiny"), engines, task_type, instructions, task.config)
    assert predictions["system"].to_list() == ["base", "tuned"] * len(TEXTS)
    metrics = summarise(predictions, resamples=100, seed=17, is_labels=not task_type.has_corpus)
    assert {"accuracy", "macro_f1"} <= set(metrics["metric"])
    metric = deciding_metric(task_type)
    judged = verdict(differences_of(metrics, metric), METRIC_NAMES[metric])
    assert judged.verdict == "inconclusive"  # neither model has learnt a label
    assert "accuracy: tuned +0.000 against base" in judged.reason

    versions = registry.register(
        store,
        "tiny",
        serving_model=tuned,
        adapter=tuned,
        training_set=("t1", "f1"),
        chunks=(chunks.version, chunks.fingerprint),
        serving=registry.serving_settings(task, judged.verdict),
        benchmark_fingerprint="b1",
        template=registry.template_fingerprint(store.artifact_path("serving_model", "tuned_1"), task_type),
        verdict=judged.verdict,
        reason=judged.reason,
        scores={},
    )
    store.publish("registered_model", "tiny", versions)
    assert registry.name_candidate(store, "tiny") == {"candidate": "tiny@1"}

    # The description changes after the evaluation; the release keeps the instructions that were evaluated.
    (task.folder / "job_description.json").write_text(json.dumps({"task_description": "Something else altogether."}))
    release = registry.load_release(store, get_task("tiny", folder / "tasks"), "candidate")
    with Server(tmp_path_factory.mktemp("keys"), release) as server:
        replies = {text: server.ask(text) for text, _ in TEXTS}
        labelled = {text: server.client.post("/v1/classify", json={"text": text}).json() for text, _ in TEXTS}
    evaluated = predictions.filter(predictions["system"] == "tuned")
    assert len(set(evaluated["prediction"])) > 1  # so that equal answers mean something
    for question, answer, n_prompt in evaluated.select("question", "prediction", "n_prompt_tokens").iter_rows():
        body = replies[question].json()
        assert body["choices"][0]["message"]["content"] == answer
        assert body["usage"]["prompt_tokens"] == n_prompt
        assert (body["model"], body["sources"]) == ("tiny@1", [])
        assert (labelled[question]["text"], labelled[question]["label"]) == (answer, None)
