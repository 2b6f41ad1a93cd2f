"""Evaluation and registry run in the graph over the rows of task types that need no corpus."""

import json

import polars as pl
import pytest

from ev_platform.records import DatasetRow, ModelArtifact, to_frame
from ev_platform.registry import load_release
from ev_platform.tasks import get_task
from ev_platform.training.base import sha256_weights
from ev_platform.training.export import export_serving_model
from ev_platform_tests.test_graph import Workspace
from ev_platform_tests.tiny import CONFIG, tiny_recipe, write_tiny_model, write_tiny_task

ROWS = {
    "classification": [("Where is my card?", "card", None), ("Money back!", "refund", None), ("No card", "card", None)],
    "extractive_qa": [
        ("Which resistor marks a cable for 32 A?", "220 ohm", "A resistor of 220 ohm marks a cable for 32 A."),
        ("Where was the plug designed?", "Japan", "The older plug was designed in Japan in 2010."),
        ("Who locks the plug?", "a motor", "While current flows, a motor in the car locks the plug."),
    ],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: write_tiny_model(root / name, seed=seed) for name, seed in (("base", 0), ("tuned", 1))}


@pytest.fixture
def workspace(tmp_path, models):
    write_tiny_task(tmp_path / "tasks" / "tiny", models["base"])
    return Workspace(tmp_path)


def publish(workspace, models, kind):
    """Publish what evaluation reads: rows, no passages, and two random models as they are served."""
    store, task = workspace.store, workspace.task
    (task / "config.yaml").write_text(CONFIG.format(model=models["base"]).replace("open_book_qa", kind))
    job = {"task_description": "Answer in one word.", "classes_description": {"card": "The card.", "refund": "Money."}}
    (task / "job_description.json").write_text(json.dumps(job))
    rows = []
    for number, (question, answer, context) in enumerate(ROWS[kind]):
        known = dict.fromkeys(DatasetRow.__dataclass_fields__)
        known |= {"example_id": f"exm_{number}", "split": "test", "question": question, "answer": answer}
        known |= {"answers": [answer], "is_answerable": True, "context": context, "context_chunk_ids": []}
        rows.append(DatasetRow(**known | {"messages": []}))
    store.publish("benchmark", "tiny", to_frame("benchmark", rows))
    for table in ("chunks", "chunk_vectors", "training_set", "validation_set", "teacher_answers"):
        store.publish(table, "tiny", to_frame(table, []))
    tuned = ("serving_model", "merged_model", "adapter")
    made = (("base_serving_model", "base"), ("base_model", "base"), *((table, "tuned") for table in tuned))
    for table, model in made:
        with store.artifact(table, lambda: "m1") as folder:
            export_serving_model(models[model], folder, tiny_recipe(), (), "")
        figures = json.dumps({"n_rows": 3})
        digest, n_bytes = sha256_weights(store.artifact_path(table, "m1"))
        row = ModelArtifact("m1", table, f"artifacts/{table}/m1", "tiny", "{}", "{}", digest, n_bytes, figures)
        store.publish(table, "tiny", to_frame(table, [row]))


@pytest.mark.parametrize(
    ("kind", "metric", "systems", "n_pairs"),
    [
        ("classification", "accuracy", ["base", "tuned"], 1),
        ("extractive_qa", "token_f1", ["first_sentence", "base", "tuned", "base_rag", "tuned_rag"], 6 + 4),
    ],
)
def test_task_without_corpus_is_evaluated_reported_and_registered(workspace, models, kind, metric, systems, n_pairs):
    publish(workspace, models, kind)
    result = workspace.run(stages=["evaluation", "registry"])
    assert set(result.computed) >= {"predictions", "eval_report", "seed_scores", "registered_model"}
    assert workspace.read("predictions")["system"].unique(maintain_order=True).to_list() == systems
    report = workspace.read("eval_report")
    deciding = report.filter((pl.col("metric") == metric) & pl.col("compared_to").is_not_null())
    assert deciding.height == n_pairs
    (row,) = workspace.read("registered_model").to_dicts()
    assert json.loads(row["serving"])["task_type"] == kind
    page = (workspace.store.root / "reports" / "tiny.html").read_text()
    assert row["verdict"] in page and ROWS[kind][0][0] in page
    assert workspace.run(stages=["evaluation", "registry"]).computed == ()
    if kind == "classification":
        release = load_release(workspace.store, get_task("tiny", workspace.root / "tasks"), "candidate")
        assert release.retriever is None and "- refund: Money." in release.instructions
