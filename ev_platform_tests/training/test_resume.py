import json

import pytest

from ev_platform.records import schema_of, stable_columns
from ev_platform.training.base import sha256_weights
from ev_platform.training.loop import Job
from ev_platform_tests.tiny import TRAIN, tiny_recipe

from .conftest import make_rows
from .killed import run

# Nine steps of two batches, a checkpoint after every second one, dropout and a look at every step.
COMMON = {
    "epochs": 5,
    "max_steps": 9,
    "batch_size": 1,
    "gradient_accumulation": 2,
    "save_steps": 2,
    "eval_steps": 1,
    "lora": {"dropout": 0.2},
}
RECIPES = {
    "grouped": {},
    "packed": {"batching": "packed", "max_length": 200},
    # The look at step 2 is the best one, and its checkpoint the only one; the two looks after it end the run.
    "stopped": {"early_stopping": 2, "save_steps": 4, "learning_rate": 0.3, "scheduler": "constant_with_warmup"},
}


@pytest.fixture(scope="module")
def many_rows(tiny_base):
    return make_rows(tiny_base, [(question, answer) for question, answer, _ in TRAIN] + [("Which car?", "A red one")])


def make_job(base, rows, folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    recipe = tiny_recipe(**{**COMMON, **RECIPES[name]})
    return Job(base, rows.head(6), rows.tail(2), recipe, (), "", folder / "out", folder / "checkpoints")


def stable(file):
    columns = stable_columns("training_log")
    assert set(columns) < set(schema_of("training_log"))
    return [[step[name] for name in columns] for step in json.loads(file.read_text())["steps"]]


@pytest.fixture(scope="module")
def undisturbed(tiny_base, many_rows, tmp_path_factory):
    """Return a function that gives (weights, steps, figures) of a recipe's run that nothing disturbs."""
    done = {}

    def get(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            job = make_job(tiny_base, many_rows, folder, name)
            assert run(job, folder / "result.json") == 0
            figures = json.loads((folder / "result.json").read_text())["figures"]
            done[name] = sha256_weights(job.out), stable(folder / "result.json"), figures
        return done[name]

    return get


@pytest.mark.parametrize(
    ("name", "moment", "resumed_from"),
    [
        ("grouped", ("after step", 1), 0),
        ("grouped", ("after step", 5), 4),
        ("grouped", ("in the middle of file", 9), 4),  # each checkpoint has four files of torch.save
        ("grouped", ("before it is complete", 8), 6),
        ("grouped", ("while an old one is removed", 4), 6),
        ("grouped", ("while the result is saved", 0), 9),
        ("packed", ("after step", 4), 2),
        ("packed", ("in the middle of file", 15), 6),
        ("stopped", ("after step", 3), 2),
        ("stopped", ("after look", 4), 2),
        ("stopped", ("while the result is saved", 0), 2),
    ],
)
def test_run_killed_and_started_again_gives_the_undisturbed_bytes_and_steps(
    tiny_base, many_rows, tmp_path, undisturbed, name, moment, resumed_from
):
    weights, steps, _ = undisturbed(name)
    job = make_job(tiny_base, many_rows, tmp_path, name)
    assert run(job, tmp_path / "result.json", moment) == -9
    assert run(job, tmp_path / "result.json") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["figures"]["resumed_from_step"] == resumed_from
    assert sha256_weights(job.out) == weights
    assert stable(tmp_path / "result.json") == steps
    elapsed = [step["elapsed_s"] for step in result["steps"]]
    assert elapsed == sorted(elapsed)


def test_early_stopping_keeps_the_weights_of_the_best_look(undisturbed):
    _, steps, figures = undisturbed("stopped")
    looks = {row[1]: row[4] for row in steps if row[4] is not None and row[1] > 0}
    best = min(looks, key=looks.get)
    assert figures["kept_step"] == best == 2
    assert figures["n_steps"] == best + 2 < figures["n_planned_steps"]
    assert figures["validation_loss"] == looks[best]


def test_full_disk_is_told_and_the_run_goes_on_from_the_last_checkpoint(tiny_base, many_rows, tmp_path, undisturbed):
    weights, steps, _ = undisturbed("grouped")
    job = make_job(tiny_base, many_rows, tmp_path, "grouped")
    assert run(job, tmp_path / "result.json", ("after step", 3)) == -9
    assert run(job, tmp_path / "result.json", limit_bytes=12_000) == 0
    assert json.loads((tmp_path / "result.json").read_text())["error"] == (
        f"The disk is full: the checkpoint of step 4 did not fit into {job.checkpoints}; free some space. "
        "The same recipe goes on from step 2."
    )
    assert [folder.name for folder in job.checkpoints.glob("checkpoint-*")] == ["checkpoint-2"]
    assert run(job, tmp_path / "result.json") == 0
    assert (sha256_weights(job.out), stable(tmp_path / "result.json")) == (weights, steps)
