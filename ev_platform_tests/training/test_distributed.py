import os
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ev_platform.errors import UserError
from ev_platform.training import distributed
from ev_platform.training.loop import Job
from ev_platform.training.train import train
from ev_platform_tests.tiny import CONNECTORS, TRAIN, tiny_recipe

from .conftest import make_rows

TOLERANCE = 1e-5


@pytest.fixture
def job(tiny_base, tmp_path):
    """Return a job whose 11 rows fill neither the last step of a pass, nor every worker's share of it."""
    context = " ".join([CONNECTORS] * 2)  # steps long enough for a worker to be killed between two of them
    rows = make_rows(tiny_base, [(question, answer) for question, answer, _ in TRAIN] * 2, context).head(11)
    recipe = tiny_recipe(batch_size=2, max_steps=None, epochs=6, save_steps=5, learning_rate=0.002)
    return job_in(tmp_path / "one", Job(tiny_base, rows, rows.head(4), recipe, (), "", tmp_path, tmp_path))


def job_in(folder: Path, job: Job) -> Job:
    (folder / "out").mkdir(parents=True)
    return replace(job, out=folder / "out", checkpoints=folder / "checkpoints")


def ray_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if any("ray" in part for part in p.cmdline())]


@pytest.mark.slow  # a minute and a half each on two cores, most of it Ray and imports
@pytest.mark.parametrize("is_killed", [False, True])
def test_two_workers_even_if_one_is_killed_give_the_losses_and_weights_of_one(job, tmp_path, monkeypatch, is_killed):
    from safetensors.torch import load_file

    # Ray reads on its first import where to listen, and a test of serving may have been first.
    is_first = "ray" not in sys.modules
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(distributed, "_POLL_S", 0.05)
    running, folders, mkdtemp = ray_processes(), [], tempfile.mkdtemp

    def make(*args, **options):
        folders.append(Path(mkdtemp(*args, **options)))
        return str(folders[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", make)
    told, seen, listening = [], [], set()

    def log(metrics, step):
        told.append((step, set(metrics)))
        if step >= 6 and not seen:
            workers = [p for p in ray_processes() if "RayTrainWorker" in "".join(p.cmdline())]
            assert len(workers) == 2
            for process in ray_processes():
                sockets = process.net_connections("tcp")
                listening.update(
                    s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN and process not in workers
                )
            seen.extend(workers)
            if is_killed:
                os.kill(workers[0].pid, signal.SIGKILL)

    figures, steps = train(job)
    shared = replace(job_in(tmp_path / "two", job), log=log)
    shared_figures, shared_steps = distributed.train_distributed(shared, 2)

    assert seen
    assert figures["n_steps"] == shared_figures["n_steps"] == 36
    assert shared_figures["resumed_from_step"] in (range(5, 36) if is_killed else [0])
    assert [row.step for row in shared_steps] == [row.step for row in steps]
    for one, two in zip(steps, shared_steps, strict=True):
        if one.loss is not None:
            assert two.loss == pytest.approx(one.loss, abs=TOLERANCE)
        else:
            assert two.validation_loss == pytest.approx(one.validation_loss, abs=TOLERANCE)
        assert (two.tokens_seen, two.learning_rate) == (one.tokens_seen, one.learning_rate)
    one, two = (load_file(folder.out / "adapter_model.safetensors") for folder in (job, shared))
    assert sorted(one) == sorted(two)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < TOLERANCE
    assert max(float(one[name].abs().max()) for name in one if "lora_B" in name) > 100 * TOLERANCE
    # The first worker saves, and each of its logged steps was told once.
    assert sorted(file.name for file in shared.out.iterdir()) == sorted(file.name for file in job.out.iterdir())
    assert [step for step, _ in told] == [row.step for row in steps]
    assert listening
    assert not is_first or {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert not sys.modules["ray"].is_initialized()
    assert set(ray_processes()) <= set(running)  # another test may have begun some
    ours = [folder for folder in folders if folder.name.startswith("ev-")]
    assert ours and not any(folder.exists() for folder in ours)


@pytest.mark.slow  # Ray and imports
def test_one_worker_gives_the_weights_of_this_process_byte_by_byte(job, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    train(job)
    other = job_in(tmp_path / "ray", job)
    distributed.train_distributed(other, 1)
    one, two = (folder.out / "adapter_model.safetensors" for folder in (job, other))
    assert one.read_bytes() == two.read_bytes()


def test_batch_that_workers_cannot_share_equally_is_told_before_anything_starts(job):
    with pytest.raises(UserError, match=r"batch_size of 2 cannot be shared equally by 3 workers: set EV_TRAIN_WORKERS"):
        distributed.train_distributed(job, 3)
    assert not job.checkpoints.exists()


def test_missing_ray_is_told_with_the_extra_to_install(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray Train is not installed .* pip install 'ev-platform\[cluster\]'"):
        distributed.train_distributed(job, 2)


def fail_with(monkeypatch, error: Exception) -> list[Exception]:
    """Let every attempt of a worker group fail; return the list in which attempts are counted."""
    import ray.train.torch

    attempts = []

    class Failing:
        def __init__(self, *_, **__): ...

        def fit(self):
            attempts.append(error)
            raise error

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Failing)
    return attempts


def test_sentence_of_a_worker_is_passed_on_and_the_run_not_repeated(job, monkeypatch):
    from ray.train import WorkerGroupError

    failures = {0: RuntimeError("Connection closed by peer"), 1: UserError("The disk is full: free some space.")}
    attempts = fail_with(monkeypatch, WorkerGroupError("two", failures))
    with pytest.raises(UserError, match=r"^The disk is full: free some space\.$"):
        distributed._run(job, 2, {"CPU": 1})
    assert len(attempts) == 1


def test_workers_that_die_again_and_again_are_told_in_one_sentence(job, monkeypatch):
    from ray.train import WorkerGroupError

    attempts = fail_with(monkeypatch, WorkerGroupError("one", {1: RuntimeError("a trace\nNode went away.")}))
    with pytest.raises(
        UserError, match="on 2 workers failed 3 times, at last with worker 1: RuntimeError: Node went away;"
    ):
        distributed._run(job, 2, {"CPU": 1})
    assert len(attempts) == 3


def test_cluster_without_room_is_told(job, monkeypatch):
    from ray.train import ControllerError

    fail_with(monkeypatch, ControllerError(TimeoutError("no placement")))
    with pytest.raises(UserError, match=r"no room for 2 workers with {'GPU': 1} each .* lower EV_TRAIN_WORKERS or add"):
        distributed._run(job, 2, {"GPU": 1})
