"""The assets that measure around the benchmark, over stored rows and two random models."""

import dataclasses
import shutil
from contextlib import contextmanager

import dagster as dg
import polars as pl
import pytest

from ev_platform.records import Chunk, DatasetRow, ModelArtifact, RetrievalScore, schema_of, to_frame
from ev_platform.retrieval import embed_chunks
from ev_platform.training.export import export_serving_model
from ev_platform_tests.test_graph import Workspace
from ev_platform_tests.tiny import tiny_recipe, write_tiny_model, write_tiny_task

TEXTS = ("A resistor of 220 ohm marks a cable.", "The longest cable has 10 metres.", "Slugs come at night after rain.")
ASKED = ("Which resistor marks a cable?", "How long is the longest cable?", "When do slugs come?")
READ = ("benchmark", "chunks", "chunk_vectors", "predictions", "base_serving_model", "serving_model")


def rows(table, known):
    blank = dict.fromkeys(schema_of(table))
    return pl.DataFrame([blank | row for row in known], schema=schema_of(table))


def publish_model(store, table, model, name):
    with store.artifact(table, lambda: name) as out:
        export_serving_model(model, out, tiny_recipe(), (), "")
    known = {"artifact_id": name, "kind": table, "path": f"artifacts/{table}/{name}", "metrics": "{}"}
    blank = dict.fromkeys(field.name for field in dataclasses.fields(ModelArtifact)) | {"n_bytes": 1}
    store.publish(table, "tiny", to_frame(table, [ModelArtifact(**blank | known)]))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Everything that the measures read; nothing may change it."""
    workspace = Workspace(tmp_path_factory.mktemp("prepared"))
    write_tiny_task(workspace.task, write_tiny_model(workspace.root / "base"))
    with (workspace.task / "config.yaml").open("a") as file:
        file.write("retrieval: {top_k: 1}\n")
    store = workspace.store
    chunks = to_frame(
        "chunks",
        [Chunk(f"chk_{n}", f"doc_{n}", f"doc_{n}", 0, 0, 9, "", None, text, 9) for n, text in enumerate(TEXTS)],
    )
    blank = dict.fromkeys(field.name for field in dataclasses.fields(DatasetRow))
    blank |= {"split": "test", "answers": [], "is_answerable": True, "context_chunk_ids": [], "messages": []}
    benchmark = to_frame(
        "benchmark",
        [
            DatasetRow(
                **blank
                | {"example_id": f"exm_{n}", "question": text, "chunk_id": f"chk_{n}", "document_id": f"doc_{n}"}
            )
            for n, text in enumerate(ASKED)
        ],
    )
    answers = [
        {"example_id": f"exm_{n}", "system": system, "question": text, "context_chunk_ids": found}
        for n, text in enumerate(ASKED)
        for system, found in (("tuned", []), ("tuned_rag", [f"chk_{n}"]))
    ]
    store.publish("chunks", "tiny", chunks)
    store.publish("chunk_vectors", "tiny", embed_chunks(chunks))
    store.publish("benchmark", "tiny", benchmark)
    store.publish("predictions", "tiny", rows("predictions", answers))
    publish_model(store, "base_serving_model", workspace.root / "base", "s1")
    publish_model(store, "serving_model", write_tiny_model(workspace.root / "tuned", seed=1), "s2")
    return workspace


@pytest.fixture
def workspace(prepared, tmp_path):
    for name in ("data", "tasks"):
        shutil.copytree(prepared.root / name, tmp_path / name)
    return Workspace(tmp_path)


@contextmanager
def measures(workspace):
    """Load the assets anew: their partitions are the tasks of the workspace."""
    with workspace.graph():
        from ev_platform.defs import measures

        yield measures


def run(workspace):
    """Materialize the three; return the tables that were computed, and whether each check passed."""
    with measures(workspace) as module:
        from ev_platform.defs.resources import ParquetIOManager, StoreResource

        store = StoreResource(data_dir=str(workspace.root / "data"), tasks_dir=str(workspace.root / "tasks"))
        result = dg.materialize(
            [*module.assets, *module.checks, *(dg.AssetSpec(t, partitions_def=module.tasks_partitions) for t in READ)],
            partition_key="tiny",
            resources={"store": store, "io_manager": ParquetIOManager(store=store)},
        )
    computed = {
        event.step_materialization_data.materialization.asset_key.path[-1]
        for event in result.get_asset_materialization_events()
        if not event.step_materialization_data.materialization.metadata["unchanged"].value
    }
    return computed, {check.check_name: check for check in result.get_asset_check_evaluations()}


def test_measures_are_computed_once_and_again_only_for_what_changed(workspace):
    computed, checks = run(workspace)
    assert computed == {"retrieval_report", "general_answers", "inference_benchmark"}
    assert checks["retrieval_finds_gold"].passed
    assert workspace.read("general_answers").group_by("model", maintain_order=True).len().rows() == [
        ("base", 52),
        ("tuned", 52),
    ]
    figures = workspace.read("inference_benchmark")
    assert figures.select("model", "model_id", "concurrency").rows() == [
        (model, artifact, n) for n in (1, 4) for model, artifact in (("base", "s1"), ("tuned", "s2"))
    ]
    assert figures["first_token_ms_p50"].null_count() == 0 and figures["latency_ms_p50"].min() > 0
    assert run(workspace)[0] == set()

    # Other test rows, with the same models: what the models know of the world need not be asked again.
    benchmark = workspace.read("benchmark")
    workspace.store.publish("benchmark", "tiny", benchmark.head(2))
    computed, _ = run(workspace)
    assert "retrieval_report" in computed and "general_answers" not in computed


def test_search_that_misses_the_gold_passages_is_told(workspace):
    benchmark = workspace.read("benchmark")
    wrong = benchmark.with_columns(chunk_id=pl.col("chunk_id").shift(-1, fill_value="chk_0"))
    workspace.store.publish("benchmark", "tiny", wrong)
    check = run(workspace)[1]["retrieval_finds_gold"]
    assert not check.passed and check.severity == dg.AssetCheckSeverity.WARN
    assert check.description == ("The first 1 passages hold the right chunk of 0% of 3 test questions; 80% are wanted.")


def test_recall_of_documents_stands_in_where_no_chunk_is_known(workspace):
    scores = [
        RetrievalScore("hybrid", level, "recall@2", v, None, None, 3)
        for level, v in (("chunk", 0.5), ("document", 0.9))
    ]
    with measures(workspace) as module:
        assert module.recall_read(to_frame("retrieval_report", scores), 2)["value"] == 0.5
        assert module.recall_read(to_frame("retrieval_report", scores[1:]), 2)["value"] == 0.9
        assert module.recall_read(to_frame("retrieval_report", []), 2) is None
