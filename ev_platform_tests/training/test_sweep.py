"""A sweep: which recipes it tries, which one it chooses, what it stores, and what a rerun leaves undone."""

import dataclasses
import errno
import inspect
import json

import polars as pl
import pytest
import yaml

from ev_platform.errors import UserError
from ev_platform.records import to_frame
from ev_platform.tasks import Task
from ev_platform.tasks.folders import check_folder
from ev_platform.training import checkpoints, sweep
from ev_platform.training.loop import Job
from ev_platform.training.recipes import load_recipe
from ev_platform.training.sweep import SweepTrial, Trial, chosen_recipe, override, plan_trials, run_trials
from ev_platform.training.train import train
from ev_platform_tests.tiny import tiny_recipe

IDENTITY = {"base_model": "b", "training_set": "t", "validation_set": "v"}


def task_with(folder, sweep, **config):
    (folder / "config.yaml").write_text(yaml.safe_dump({"sweep": sweep} | config))
    return Task("t", folder)


def told(task):
    with pytest.raises(UserError) as caught:
        plan_trials(task)
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".")
    return said.removeprefix(f"{task.folder}/")


def trials_of(*rates):
    return [
        Trial(number, {"learning_rate": rate}, tiny_recipe(learning_rate=rate))
        for number, rate in enumerate(rates, start=1)
    ]


def job_of(folder, n_validation=2, base=None):
    rows = to_frame("training_set", [])
    if n_validation:
        rows = pl.DataFrame({"n_tokens": [3] * n_validation})
    return Job(base or folder, rows, rows, tiny_recipe(), (), "Not said.", folder, folder)


class Descent:
    """Minimises (w - 1)^2 by as many steps as it is told, from w = 0: diverges from a learning rate of 1 on."""

    def __init__(self):
        self.runs = []

    def __call__(self, job):
        rate = job.recipe.learning_rate * 100
        self.runs.append(job.recipe.learning_rate)
        weight = 0.0
        for _ in range(20):
            weight += rate * 2 * (1 - weight)
        if abs(weight) > 1e6:
            raise UserError("The training loss became NaN at step 20: lower learning_rate in the recipe.")
        return {"validation_loss": (weight - 1) ** 2, "n_steps": 20, "train_seconds": 0.1}, []


# ---- which recipes are tried ----


def test_task_without_a_sweep_tries_nothing(tmp_path):
    assert plan_trials(Task("t", tmp_path)) == []


def test_trials_go_through_the_whole_grid_in_order(tmp_path):
    task = task_with(tmp_path, {"learning_rate": ["1e-3", 5.0e-4], "lora.r": [8, 32]})
    trials = plan_trials(task)
    assert [(trial.number, trial.overrides) for trial in trials] == [
        (1, {"learning_rate": 0.001, "lora.r": 8}),
        (2, {"learning_rate": 0.001, "lora.r": 32}),
        (3, {"learning_rate": 0.0005, "lora.r": 8}),
        (4, {"learning_rate": 0.0005, "lora.r": 32}),
    ]
    own = load_recipe(task)
    for trial in trials:
        assert (trial.recipe.learning_rate, trial.recipe.lora.r) == tuple(trial.overrides.values())
        back = {"learning_rate": own.learning_rate, "lora.r": own.lora.r}
        assert override(trial.recipe, back, "test") == own


def test_trials_of_a_larger_grid_are_the_same_sample_each_time_and_in_order(tmp_path):
    grid = {"learning_rate": [n / 10_000 for n in range(1, 11)], "lora.r": list(range(1, 11)), "max_trials": 5}
    first, again = (plan_trials(task_with(tmp_path, grid)) for _ in range(2))
    pairs = [tuple(trial.overrides.values()) for trial in first]
    assert first == again
    assert len(set(pairs)) == 5 and pairs == sorted(pairs)
    (tmp_path / "own.yaml").write_text("extends: smollm2-135m-cpu\nseed: 18\n")
    other = plan_trials(task_with(tmp_path, grid, recipe="own.yaml"))
    assert [tuple(trial.overrides.values()) for trial in other] != pairs


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ({"lr": [1e-3]}, "config.yaml: sweep: there is no key lr: write learning_rate."),
        (
            {"lora.rr": [8]},
            "config.yaml: sweep: there is no key lora.rr (did you mean lora.r?).",
        ),
        ({"lora": [{"r": 8}]}, "config.yaml: sweep: lora holds several keys: name one of them, such as lora.alpha."),
        ({"seed": [1, 2]}, "config.yaml: sweep: seed cannot be tried, since the best of several seeds is luck; remove"),
        ({"max_length": [256]}, "config.yaml: sweep: max_length cannot be tried, since it decides which validation"),
        ({"lora.r": 8}, "config.yaml: sweep: value error, lora.r should have a list of values to try, such as"),
        ({"lora.r": []}, "config.yaml: sweep: value error, lora.r should have a list of values to try, such as"),
        ({"max_trials": 4}, "config.yaml: sweep: value error, it names no key of the recipe: write one with a list"),
        ({"lora.r": [8], "max_trials": 0}, "config.yaml: sweep.max_trials: input should be greater than or equal to 1"),
        (
            {"learning_rate": [1e-3, 20]},
            "config.yaml: sweep, trial 2 (learning_rate 20): learning_rate is 20, but should be less than 1.",
        ),
        (
            {"lora.last_layers": [15, 31]},
            "config.yaml: sweep, trial 2 (lora.last_layers 31): lora.last_layers is 31, but bundled:smollm2-135m-",
        ),
        (
            {"learning_rate": [1e-3, "1e-3"]},
            "config.yaml: sweep, trial 2 (learning_rate 1e-3) is the same as trial 1 (learning_rate 0.001): remove one",
        ),
    ],
)
def test_sweep_that_cannot_be_is_told_before_anything_is_trained(grid, sentence, tmp_path):
    assert told(task_with(tmp_path, grid)).startswith(sentence)


def test_sweep_without_validation_rows_to_come_is_told(tmp_path):
    task = task_with(tmp_path, {"lora.r": [8]}, dataset={"validation_fraction": 0})
    assert told(task) == (
        "config.yaml: sweep: the validation set chooses, and dataset.validation_fraction is 0: raise it."
    )


def test_task_check_tells_a_wrong_sweep(tmp_path):
    findings = check_folder(task_with(tmp_path, {"seed": [1]}).folder).findings
    (finding,) = [finding for finding in findings if finding.kind == "sweep"]
    assert finding.stops and "the best of several seeds is luck" in finding.message


# ---- what comes of them ----


def test_lowest_validation_loss_is_chosen_and_the_first_of_equals(tmp_path):
    descent = Descent()
    rows = run_trials(trials_of(0.001, 0.002, 0.008, 0.004), job_of(tmp_path), tmp_path / "sweeps", IDENTITY, descent)
    assert [row.is_chosen for row in rows] == [False, False, False, True]
    # At rates of 0.25 and 0.75 half of the distance is left after each step, on one side or on either in turn.
    equal = run_trials(trials_of(0.0075, 0.0025), job_of(tmp_path), tmp_path / "equal", IDENTITY, descent)
    assert equal[0].validation_loss == equal[1].validation_loss
    assert [row.is_chosen for row in equal] == [True, False]


def test_trial_that_fails_is_recorded_with_its_reason_and_the_sweep_goes_on(tmp_path):
    rows = run_trials(trials_of(0.5, 0.004), job_of(tmp_path), tmp_path / "sweeps", IDENTITY, Descent())
    failed, finished = rows
    assert (failed.status, failed.validation_loss, failed.is_chosen) == ("failed", None, False)
    assert failed.reason.startswith("The training loss became NaN at step 20")
    assert (finished.status, finished.reason, finished.is_chosen, finished.n_steps) == ("finished", None, True, 20)
    assert json.loads(finished.overrides) == {"learning_rate": 0.004}


def test_sweep_in_which_every_trial_fails_says_so_with_a_reason(tmp_path):
    with pytest.raises(UserError, match=r"None of the 2 trials of the sweep .* first: The training loss became NaN"):
        run_trials(trials_of(0.5, 0.6), job_of(tmp_path), tmp_path / "sweeps", IDENTITY, Descent())


def test_sweep_without_validation_rows_trains_nothing_and_says_what_to_do(tmp_path):
    descent = Descent()
    with pytest.raises(UserError, match=r"there are no validation rows: raise dataset.validation_fraction in config"):
        run_trials(trials_of(0.004), job_of(tmp_path, 0), tmp_path / "sweeps", IDENTITY, descent)
    assert descent.runs == []


def test_killed_sweep_goes_on_after_its_finished_trials(tmp_path):
    descent, folder = Descent(), tmp_path / "sweeps"

    def killed(job):
        if job.recipe.learning_rate == 0.003:
            (job.out / "half").write_text("")
            job.checkpoints.mkdir()
            raise KeyboardInterrupt
        return descent(job)

    with pytest.raises(KeyboardInterrupt):
        run_trials(trials_of(0.001, 0.002, 0.003), job_of(tmp_path), folder, IDENTITY, killed)
    assert descent.runs == [0.001, 0.002]
    seen = []

    def resumed(job):
        seen.append((list(job.out.iterdir()), job.checkpoints.exists()))
        return descent(job)

    rows = run_trials(trials_of(0.001, 0.002, 0.003), job_of(tmp_path), folder, IDENTITY, resumed)
    assert descent.runs == [0.001, 0.002, 0.003]
    assert seen == [([], True)]  # an empty folder for the weights, and the checkpoints of before
    undisturbed = run_trials(trials_of(0.001, 0.002, 0.003), job_of(tmp_path), tmp_path / "other", IDENTITY, Descent())
    assert rows == undisturbed
    assert [path.suffix for path in folder.iterdir()] == [".json"] * 3


@pytest.mark.parametrize("what", IDENTITY)
def test_trials_are_trained_again_for_other_weights_and_rows(what, tmp_path):
    descent = Descent()
    for identity in (IDENTITY, IDENTITY | {what: "other"}):
        run_trials(trials_of(0.004), job_of(tmp_path), tmp_path / "sweeps", identity, descent)
    assert descent.runs == [0.004, 0.004]


def test_full_disk_stops_the_sweep_and_is_no_verdict_on_the_trial(tmp_path):
    def full(job):
        raise UserError(str(checkpoints.explain(OSError(errno.ENOSPC, "No space left"), job.checkpoints, 3)))

    with pytest.raises(UserError, match="The disk is full"):
        run_trials(trials_of(0.004), job_of(tmp_path), tmp_path / "sweeps", IDENTITY, full)
    (row,) = run_trials(trials_of(0.004), job_of(tmp_path), tmp_path / "sweeps", IDENTITY, Descent())
    assert row.status == "finished"


def test_finished_trials_are_told_to_a_tracker(tmp_path):
    told = []
    job = dataclasses.replace(job_of(tmp_path), log=lambda metrics, step: told.append((metrics, step)))
    rows = run_trials(trials_of(0.5, 0.004), job, tmp_path / "sweeps", IDENTITY, Descent())
    assert told == [({"trial_validation_loss": rows[1].validation_loss}, 2)]


def test_nothing_of_the_sweep_takes_test_rows():
    taken = {
        name
        for _, function in inspect.getmembers(sweep, inspect.isfunction)
        if function.__module__ == sweep.__name__
        for name in inspect.signature(function).parameters
    }
    assert not taken & {"benchmark", "test", "store"}
    assert {field.name for field in dataclasses.fields(Job)} & {"benchmark", "test"} == set()


def test_chosen_recipe_is_the_task_s_own_with_the_chosen_values(tmp_path):
    task = task_with(tmp_path, {"lora.r": [8, 32]})
    rows = [
        SweepTrial(trial.number, json.dumps(trial.overrides), 1.0, 3, 0.1, "finished", None, trial.number == 2)
        for trial in plan_trials(task)
    ]
    recipe = load_recipe(task)
    assert chosen_recipe(recipe, pl.DataFrame(rows)) == plan_trials(task)[1].recipe
    assert chosen_recipe(recipe, pl.DataFrame(rows).clear()) is recipe


def test_sweep_trains_a_model_for_each_trial_and_takes_the_one_that_learned_most(tmp_path, tiny_base, rows):
    trials = [
        Trial(n, {"learning_rate": rate}, tiny_recipe(base_model=str(tiny_base), learning_rate=rate, max_steps=2))
        for n, rate in enumerate([1e-6, 0.01], start=1)
    ]
    job = Job(tiny_base, rows, rows, trials[0].recipe, (), "Not said.", tmp_path, tmp_path)
    found = run_trials(trials, job, tmp_path / "sweeps", IDENTITY, train)
    assert [row.is_chosen for row in found] == [False, True]
    assert found[1].validation_loss < found[0].validation_loss
    assert all(row.n_steps == 2 and row.status == "finished" for row in found)
    assert run_trials(trials, job, tmp_path / "sweeps", IDENTITY, train) == found
    assert {path.suffix for path in (tmp_path / "sweeps").iterdir()} == {".json"}
