"""The same training run on several workers: `train` in every worker of a Ray Train group, on this machine or a cluster.

Every worker holds the whole model and reads its share of each batch. Losses are normalised over all tokens of a step
that have one, and the order of the rows is drawn from the seed alone, so the loss curve is that of one worker.

What does not belong here: the training loop and what it saves (`loop`, `checkpoints`); neither knows Ray.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ev_platform.cluster import connected, last_line
from ev_platform.errors import UserError
from ev_platform.training.loop import Job, Result, count_threads

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

# A worker may die with its machine, or for want of memory; the group then starts anew, from the last checkpoint.
_ATTEMPTS = 3
# Minutes that a cluster has to make room: an autoscaler may first have to start machines.
_START_MINUTES = 10
_POLL_S = 1.0
_LOG = "log.jsonl"


def train_distributed(job: Job, n_workers: int) -> Result:
    """Train on several workers, with the recipe's batches shared among them.

    With `RAY_ADDRESS` set the workers run on that cluster, and the job's folders must be the same to all its machines;
    else Ray is started on this machine and stopped again. Workers use GPUs (nccl) where there is one for each, else
    CPUs (gloo).

    Args:
        job: The run.
        n_workers: Workers; a divisor of the recipe's `batch_size`.

    Returns:
        What one worker would return; speed and memory are those of the first worker.

    Raises:
        UserError: If the batch cannot be shared equally, Ray Train is missing, the cluster cannot be reached or has no
            room, workers die again and again, or for what `train` raises it.
    """
    size = job.recipe.batch_size
    if size % n_workers:
        raise UserError(
            f"A batch_size of {size} cannot be shared equally by {n_workers} workers: set EV_TRAIN_WORKERS to a "
            "divisor of it, or change batch_size in the recipe."
        )
    with connected(n_workers) as resources:
        return _run(job, n_workers, resources)


def _run(job: Job, n_workers: int, resources: dict[str, float]) -> Result:
    """Train on the Ray that is connected; `resources` are those of one worker."""
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer

    is_gpu = "GPU" in resources
    if n_workers == 1:  # it stands for this process, and trains its bytes: Ray would give it as many threads as CPUs
        job = dataclasses.replace(
            job, recipe=job.recipe.model_copy(update={"threads": job.recipe.threads or count_threads()})
        )
    folders = {name: getattr(job, name).resolve() for name in ("base", "out", "checkpoints")}
    folders["checkpoints"].mkdir(parents=True, exist_ok=True)
    run = ray_train.RunConfig(
        # Every machine must see it. Ray leaves no more there than a marker, which goes with the checkpoints.
        storage_path=str(folders["checkpoints"]),
        name="ray",
        failure_config=ray_train.FailureConfig(controller_failure_limit=_START_MINUTES),
        logging_config=ray_train.LoggingConfig(log_level="ERROR"),
    )
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": dataclasses.replace(job, log=None, **folders), "is_gpu": is_gpu},
        scaling_config=ray_train.ScalingConfig(num_workers=n_workers, use_gpu=is_gpu, resources_per_worker=resources),
        run_config=run,
    )
    follower = _Follower(job)
    # Ray's own attempts, FailureConfig.max_failures, would repeat a UserError too.
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return follower.fit(trainer)
        except ray_train.ControllerError as error:
            raise UserError(
                f"Ray found no room for {n_workers} workers with {resources} each in {_START_MINUTES} minutes: lower "
                f"EV_TRAIN_WORKERS or add machines ({last_line(error.controller_failure)})."
            ) from error
        except ray_train.WorkerGroupError as error:
            failures = error.worker_failures
            told = next((failure for failure in failures.values() if isinstance(failure, UserError)), None)
            if told is not None:
                raise UserError(str(told)) from error
            if attempt == _ATTEMPTS:
                reasons = "; ".join(f"worker {rank}: {last_line(failure)}" for rank, failure in failures.items())
                raise UserError(
                    f"Training on {n_workers} workers failed {_ATTEMPTS} times, at last with {reasons}; run it again "
                    "to go on from its last checkpoint, or in one process with EV_TRAIN_WORKERS=1."
                ) from error
            logging.getLogger(__name__).warning("Attempt %d failed, the next goes on from its checkpoint.", attempt)
    raise AssertionError("the last attempt returns or raises")


def _work(config: dict[str, Any]) -> Result | None:
    """Train in one worker; only the first one saves, logs, and returns the result."""
    from ray import train as ray_train

    from ev_platform.training.train import train

    context = ray_train.get_context()
    if not config["is_gpu"]:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # else accelerate takes a worker without a GPU for one alone
    job: Job = config["job"]
    share = job.recipe.model_copy(update={"batch_size": job.recipe.batch_size // context.get_world_size()})
    if context.get_world_rank() > 0:
        with tempfile.TemporaryDirectory() as folder:
            train(dataclasses.replace(job, recipe=share, out=Path(folder)))
        return None
    with (job.checkpoints / _LOG).open("w", encoding="utf-8") as file:

        def log(metrics: dict[str, float], step: int) -> None:
            file.write(json.dumps([metrics, step]) + "\n")
            file.flush()

        return train(dataclasses.replace(job, recipe=share, log=log))


class _Follower:
    """Waits for a run, and hands on to the job's log what the first worker logs, while it does so."""

    def __init__(self, job: Job):
        self._log = job.log
        self._file = job.checkpoints / _LOG
        self._n_told = 0

    def fit(self, trainer: TorchTrainer) -> Result:
        is_over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            telling = pool.submit(self._tell_until, is_over)
            try:
                result = trainer.fit().return_value
            except SystemExit as error:
                if error.code == signal.SIGTERM:
                    raise
                result = None
            finally:
                is_over.set()
        telling.result()
        if result is None:  # Ray has ended it after Ctrl-C, by itself or by leaving the process
            raise KeyboardInterrupt
        return result

    def _tell_until(self, is_over: threading.Event) -> None:
        while not is_over.wait(_POLL_S):
            self._tell()
        self._tell()

    def _tell(self) -> None:
        """Hand on new lines; after a resume the file begins again with the same lines, which are not told twice."""
        if self._log is None or not self._file.exists():
            return
        *lines, _ = self._file.read_text(encoding="utf-8").split("\n")  # the last one may be half written
        for line in lines[self._n_told :]:
            self._log(*json.loads(line))
        self._n_told = max(self._n_told, len(lines))
