"""The assets of the stage `evaluation` over stored rows and two random models: what is computed, and when again."""

import dataclasses
import importlib.metadata
import json
import shutil

import dagster as dg
import polars as pl
import pytest

from ev_platform.records import DatasetRow, ModelArtifact, TeacherAnswer, to_frame
from ev_platform.registry import register, serving_settings, template_fingerprint
from ev_platform.registry.aliases import alias_file
from ev_platform.tasks import get_task
from ev_platform.tasks.types import get_task_type
from ev_platform.training.base import sha256_weights
from ev_platform.training.export import export_serving_model
from ev_platform_tests.test_graph import Workspace
from ev_platform_tests.tiny import CONFIG, tiny_recipe, write_tiny_model, write_tiny_task

ASSETS = ("predictions", "eval_report", "seed_scores")
MODELS = ("base_model", "adapter", "base_serving_model", "serving_model")
ROWS = (
    "training_set",
    "validation_set",
    "benchmark",
    "chunks",
    "chunk_vectors",
    "teacher_answers",
    "abstention_calibration",
)
READ = (*MODELS, *ROWS)
TEXTS = (("Where is my card?", "card"), ("Money back!", "refund"), ("The card is lost.", "card"), ("Pay me.", "refund"))
N_TEST_ROWS = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two random models and a third for a champion, as they are and as they are served."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "tuned", "older")):
        write_tiny_model(root / name, seed=seed)
        (root / f"{name}_served").mkdir()
        export_serving_model(root / name, root / f"{name}_served", tiny_recipe(), (), "")
    return root


def rows(split, n):
    made = []
    for number in range(n):
        text, label = TEXTS[number % len(TEXTS)]
        known = dict.fromkeys(field.name for field in dataclasses.fields(DatasetRow))
        known |= {"example_id": f"exm_{split}_{number}", "split": split, "question": f"{text} {number}"}
        known |= {"answer": label, "answers": [label], "is_answerable": True, "context_chunk_ids": [], "n_tokens": 60}
        messages = get_task_type("classification").prompt("Answer in one word.", text, [])
        known |= {"output": label, "messages": [*messages, {"role": "assistant", "content": label}]}
        made.append(DatasetRow(**known))
    return to_frame("benchmark", made)


def publish_model(store, table, folder, name, inputs=None):
    with store.artifact(table, lambda: name) as out:
        for file in folder.iterdir():
            (out / file.name).write_bytes(file.read_bytes())
    recipe = tiny_recipe(base_model=str(folder), max_steps=2).model_dump_json()
    digest, n_bytes = sha256_weights(folder)
    figures = json.dumps({"n_rows": 8})
    row = ModelArtifact(
        name, table, f"artifacts/{table}/{name}", "tiny", recipe, json.dumps(inputs or {}), digest, n_bytes, figures
    )
    return store.publish(table, "tiny", to_frame(table, [row]))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, models):
    """A classification task with everything that evaluation reads; nothing may change it."""
    workspace = Workspace(tmp_path_factory.mktemp("prepared"))
    write_tiny_task(workspace.task, models / "base")
    config = CONFIG.format(model=models / "base").replace("open_book_qa", "classification")
    (workspace.task / "config.yaml").write_text(config)
    job = {"task_description": "Answer in one word.", "classes_description": {"card": "The card.", "refund": "Money."}}
    (workspace.task / "job_description.json").write_text(json.dumps(job))
    store = workspace.store
    trained_on = {}
    for table, split in (("training_set", "train"), ("validation_set", "validation"), ("benchmark", "test")):
        record = store.publish(table, "tiny", rows(split, N_TEST_ROWS))
        trained_on[table] = record.fingerprint
    del trained_on["benchmark"]
    for table in ("chunks", "chunk_vectors", "teacher_answers", "abstention_calibration"):
        store.publish(table, "tiny", to_frame(table, []))
    publish_model(store, "base_model", models / "base", "b1")
    publish_model(store, "adapter", models / "tuned", "a1", trained_on)
    publish_model(store, "base_serving_model", models / "base_served", "s1")
    publish_model(store, "serving_model", models / "tuned_served", "s2")
    return workspace


@pytest.fixture(scope="module")
def stage(prepared):
    """The stage's module, loaded anew: its partitions are the tasks of the workspace."""
    with prepared.graph():
        from ev_platform.defs import evaluation

        yield evaluation


@pytest.fixture
def workspace(prepared, stage, tmp_path):
    """A copy of the prepared workspace, with the stage that runs over it."""
    for name in ("data", "tasks"):
        shutil.copytree(prepared.root / name, tmp_path / name)
    workspace = Workspace(tmp_path)
    workspace.stage = stage
    return workspace


def resources(workspace):
    from ev_platform.defs.resources import ParquetIOManager, StoreResource

    store = StoreResource(data_dir=str(workspace.root / "data"), tasks_dir=str(workspace.root / "tasks"))
    return {"store": store, "io_manager": ParquetIOManager(store=store)}


def run(workspace, *selected):
    """Materialize assets of this stage; return the metadata of each, and the checks by name."""
    stage = workspace.stage
    result = dg.materialize(
        [*stage.assets, *stage.checks, *(dg.AssetSpec(t, partitions_def=stage.tasks_partitions) for t in READ)],
        selection=dg.AssetSelection.assets(*(selected or ASSETS)),
        partition_key="tiny",
        resources=resources(workspace),
    )
    made = [event.step_materialization_data.materialization for event in result.get_asset_materialization_events()]
    metadata = {event.asset_key.path[-1]: event.metadata for event in made}
    return metadata, {check.check_name: check for check in result.get_asset_check_evaluations()}


def computed(metadata):
    return {name for name, known in metadata.items() if not known["unchanged"].value}


def test_stage_answers_scores_and_does_it_once(workspace):
    metadata, checks = run(workspace)
    assert computed(metadata) == set(ASSETS)
    predictions = workspace.read("predictions")
    assert predictions["system"].unique(maintain_order=True).to_list() == ["majority", "linear_probe", "base", "tuned"]
    assert set(predictions["example_id"]) == set(workspace.read("benchmark")["example_id"])
    # Each label has as many training rows: the first by name is answered.
    assert set(predictions.filter(pl.col("system") == "majority")["prediction"]) == {"card"}
    assert workspace.read("seed_scores").is_empty()
    assert checks["every_system_answered"].passed and not checks["tuned_beats_base"].passed
    # 8 rows decide nothing, whatever they say.
    assert metadata["eval_report"]["verdict"].value == "inconclusive"
    assert "too few rows: 8 of at least 20" in metadata["eval_report"]["reason"].value
    assert computed(run(workspace)[0]) == set()


def test_stage_upgraded_metric_library_scores_everything_anew(workspace, monkeypatch):
    def versions():
        return {table: workspace.store.current(table, "tiny").version for table in ("predictions", "eval_report")}

    run(workspace, "predictions", "eval_report")
    before, known = versions(), importlib.metadata.version
    run(workspace, "predictions", "eval_report")
    assert versions() == before
    monkeypatch.setattr(
        "ev_platform.evaluation.metrics.version", lambda name: "99.0" if name == "sacrebleu" else known(name)
    )
    run(workspace, "predictions", "eval_report")
    assert not set(versions().values()) & set(before.values())
    config = workspace.store.current("eval_report", "tiny").config
    assert config["libraries"]["sacrebleu"] == "99.0" and config["libraries"]["nltk"] == known("nltk")


def teacher_says(workspace, n):
    answers = [
        TeacherAnswer(row["example_id"], row["question"], row["answer"], row["answer"], "ok", *[None] * 9, cost_usd=0.0)
        for row in workspace.read("benchmark").head(n).iter_rows(named=True)
    ]
    workspace.store.publish("teacher_answers", "tiny", to_frame("teacher_answers", answers))


def test_stage_teacher_takes_part_only_if_it_answered_every_row(workspace):
    run(workspace, "predictions")
    teacher_says(workspace, N_TEST_ROWS - 1)
    # Answers that take no part make nothing stale.
    assert computed(run(workspace, "predictions")[0]) == set()
    teacher_says(workspace, N_TEST_ROWS)
    metadata, checks = run(workspace, "predictions", "eval_report")
    assert computed(metadata) == {"predictions", "eval_report"} and checks["every_system_answered"].passed
    report = workspace.read("eval_report").filter(pl.col("system") == "teacher")
    scores = dict(report.select("metric", "value").iter_rows())
    assert scores["accuracy"] == 1.0 and "latency_ms_p50" not in scores


def make_champion(workspace, models):
    """Register the older model as tiny@1 and make it champion."""
    store, task = workspace.store, get_task("tiny", workspace.root / "tasks")
    publish_model(store, "serving_model", models / "older_served", "s0")
    kind = get_task_type("classification")
    folder = store.artifact_path("serving_model", "s0")
    versions = register(
        store,
        "tiny",
        serving_model=store.read("serving_model", "tiny"),
        adapter=store.read("adapter", "tiny"),
        training_set=("v", "f"),
        chunks=(store.current("chunks", "tiny").version, store.current("chunks", "tiny").fingerprint),
        serving=serving_settings(task, "ship tuned"),
        benchmark_fingerprint=store.current("benchmark", "tiny").fingerprint,
        template=template_fingerprint(folder, kind),
        verdict="ship tuned",
        reason="It is better.",
        scores={},
    )
    store.publish("registered_model", "tiny", versions)
    alias_file(store, "tiny").parent.mkdir(parents=True, exist_ok=True)
    alias_file(store, "tiny").write_text(json.dumps({"champion": "tiny@1"}))
    publish_model(store, "serving_model", models / "tuned_served", "s2")


def test_stage_champion_answers_beside_the_new_model(workspace, models):
    make_champion(workspace, models)
    run(workspace, "predictions", "eval_report")
    assert workspace.store.current("predictions", "tiny").config["champion"] == "tiny@1"
    predictions = workspace.read("predictions")
    answers = {
        name: predictions.filter(pl.col("system") == name)["prediction"].to_list() for name in ("champion", "tuned")
    }
    assert answers["champion"] != answers["tuned"]
    assert set(predictions.filter(pl.col("system") == "champion")["model_id"]) == {"tiny@1"}
    compared = workspace.read("eval_report").filter(pl.col("compared_to") == "champion")
    assert set(compared["system"]) == {"base", "tuned"} and compared["p_value"].null_count() == 0


def test_stage_altered_champion_takes_no_part_and_says_so(workspace, models):
    make_champion(workspace, models)
    with (workspace.store.artifact_path("serving_model", "s0") / "model.bin").open("ab") as file:
        file.write(b"x")
    metadata, checks = run(workspace, "predictions")
    assert "champion" not in set(workspace.read("predictions")["system"])
    assert "SHA-256" in metadata["predictions"]["champion_left_out"].value
    assert checks["every_system_answered"].passed
    assert computed(run(workspace, "predictions")[0]) == set()


def test_stage_champion_whose_files_are_back_takes_part_again(workspace, models):
    make_champion(workspace, models)
    weights = workspace.store.artifact_path("serving_model", "s0") / "model.bin"
    kept = weights.read_bytes()
    weights.write_bytes(kept + b"x")
    run(workspace, "predictions")
    weights.write_bytes(kept)
    assert computed(run(workspace, "predictions")[0]) == {"predictions"}
    assert "champion" in set(workspace.read("predictions")["system"])
    assert computed(run(workspace, "predictions")[0]) == set()


def set_seeds(workspace):
    file = workspace.task / "config.yaml"
    file.write_text(file.read_text().replace("evaluation: {", "evaluation: {seeds: [5], "))


def test_seed_scores_recipe_is_trained_with_each_seed_once(workspace):
    set_seeds(workspace)
    metadata, _ = run(workspace, "predictions", "seed_scores")
    assert computed(metadata) == {"predictions", "seed_scores"}
    scores = workspace.read("seed_scores").select("seed", "system", "metric", "n_rows").rows()
    assert scores == [(seed, "tuned", metric, N_TEST_ROWS) for seed in (17, 5) for metric in ("accuracy", "macro_f1")]
    assert "| tuned | accuracy | 2 |" in metadata["seed_scores"]["spread"].value
    assert computed(run(workspace, "predictions", "seed_scores")[0]) == set()
    # Another champion has the model answer again; the seed is not trained again for that.
    (kept,) = (workspace.store.root / "seeds").glob("*.json")
    workspace.store.publish("predictions", "tiny", workspace.read("predictions").reverse())
    before = kept.stat().st_mtime_ns
    run(workspace, "seed_scores")
    assert kept.stat().st_mtime_ns == before and len(list(kept.parent.iterdir())) == 1


def test_seed_scores_of_a_kept_model_are_of_the_rows_that_it_was_trained_on(workspace, monkeypatch):
    set_seeds(workspace)
    run(workspace, "predictions")
    behind, jobs = {}, []
    for table in ("training_set", "validation_set"):
        behind[table] = workspace.store.current(table, "tiny").fingerprint
        workspace.store.publish(table, "tiny", rows("train", 3))
    score_seeds = workspace.stage.seeds.score_seeds
    monkeypatch.setattr(
        workspace.stage.seeds,
        "score_seeds",
        lambda seeds, job, *rest, **named: jobs.append(job) or score_seeds(seeds, job, *rest, **named),
    )
    assert computed(run(workspace, "seed_scores")[0]) == {"seed_scores"}
    assert workspace.read("seed_scores")["seed"].unique().sort().to_list() == [5, 17]
    assert [(job.training.height, job.validation.height) for job in jobs] == [(N_TEST_ROWS, N_TEST_ROWS)]
    assert behind.items() <= workspace.store.current("seed_scores", "tiny").inputs.items()
    # Nothing that they depend on is another when a further row changes.
    workspace.store.publish("training_set", "tiny", rows("train", 4))
    assert computed(run(workspace, "seed_scores")[0]) == set()


@pytest.mark.parametrize("table", ["training_set", "validation_set"])
def test_seed_scores_are_refused_where_the_rows_behind_the_model_are_no_longer_stored(workspace, table):
    set_seeds(workspace)
    run(workspace, "predictions")
    before = workspace.store.current(table, "tiny").version
    workspace.store.publish(table, "tiny", rows("train", 3))
    (workspace.root / "data" / "tables" / table / "tiny" / f"{before}.json").unlink()
    told = (
        f"The rows of {table} that the model was trained on are no longer stored, .+: run `ev-platform run --task tiny`"
    )
    with pytest.raises(Exception, match=told):
        run(workspace, "seed_scores")


def test_benchmark_can_decide_tells_what_the_rows_can_show(workspace):
    check = benchmark_check(workspace)
    assert not check.passed
    assert "8 test rows of at least 20: every verdict will be inconclusive; write more." in check.description
    assert check.metadata["sd"] == dg.FloatMetadataValue(0.5) and "assumed" in check.description
    (workspace.task / "config.yaml").open("a").write("promotion: {min_rows: 8}\n")
    run(workspace, "predictions")
    predictions = workspace.read("predictions").with_columns(
        exact_match=pl.when(pl.col("example_id") == "exm_test_3", pl.col("system") == "tuned").then(1.0).otherwise(0.0)
    )
    workspace.store.publish("predictions", "tiny", predictions)
    check = benchmark_check(workspace)
    assert check.passed
    # One of 8 rows differs by 1: the standard deviation is sqrt(1/8).
    assert check.metadata["sd"].value == pytest.approx(0.125**0.5)
    assert check.metadata["minimum_detectable_effect"].value == pytest.approx(0.41, abs=0.01)


def benchmark_check(workspace):
    from ev_platform.defs.resources import Table

    table = Table(workspace.store, workspace.store.current("benchmark", "tiny"))
    return workspace.stage.benchmark_can_decide(store=resources(workspace)["store"], benchmark=table)
