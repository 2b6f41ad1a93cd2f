"""Ray for the duration of one piece of work: connecting to a cluster, and functions spread over the rows of a table.

What belongs here: which machines work (`EV_ENGINE`, Ray's own `RAY_ADDRESS`). What does not: what is computed (the
stages, which are given a `Spread` and never see Ray), training on several workers (`training.distributed`) and serving.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import polars as pl
from tqdm import tqdm

from ev_platform.errors import UserError, user_error_in

# Returns as many rows as it is given, in their order; those of one row do not depend on the others. It is pickled.
RowFunction = Callable[[pl.DataFrame], pl.DataFrame]
# Calls a row function for all rows of a frame.
Spread = Callable[[RowFunction, pl.DataFrame], pl.DataFrame]

# Some seconds of work for one processor, so that handing it over costs little and losing it costs little.
ROWS_PER_TASK = 64
# Ray's sockets lie up to 66 characters below its folder (/session_<date>_<time>_<pid>/sockets/plasma_store), and a
# socket's path may have 103 bytes on macOS, 107 on Linux.
_LONGEST_FOLDER = 103 - 66
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def here(function: RowFunction, frame: pl.DataFrame) -> pl.DataFrame:
    """Call the function in this process, for all rows at once."""
    return function(frame)


def on_ray(function: RowFunction, frame: pl.DataFrame) -> pl.DataFrame:
    """Call the function for `ROWS_PER_TASK` rows at a time, by Ray Data; what a lost machine had is done by another.

    Fewer rows than that are not worth a cluster. Files that the function reads must be there on every machine.

    Raises:
        UserError: If Ray Data is missing, the cluster cannot be reached, or the function raises it.
    """
    if frame.height <= ROWS_PER_TASK:
        return here(function, frame)
    with connected():
        import ray.data
        from ray.exceptions import RayTaskError

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        blocks = [block.to_arrow() for block in frame.iter_slices(ROWS_PER_TASK)]
        data: Any = ray.data.from_arrow(blocks)
        data = data.map_batches(_of_arrow, fn_args=(function,), batch_size=None, batch_format="pyarrow", num_cpus=1)
        done = []
        try:
            with tqdm(total=frame.height, desc="on Ray", unit="row") as bar:
                for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    done.append(pl.DataFrame(pl.from_arrow(batch)))
                    bar.update(batch.num_rows)
        except RayTaskError as error:
            # What a function raises arrives as the text of its traceback.
            told = user_error_in(str(error))
            if told is None:
                raise
            raise told from error
        return pl.concat(done)


def _of_arrow(batch: Any, function: RowFunction) -> Any:
    return function(pl.DataFrame(pl.from_arrow(batch))).to_arrow()


@contextlib.contextmanager
def connected(n_workers: int = 1) -> Iterator[dict[str, float]]:
    """Connect to the cluster that `RAY_ADDRESS` names, or start Ray on this machine and stop it again.

    Args:
        n_workers: Processes that are to work side by side.

    Yields:
        The resources of one of them: a GPU where there is one for each.

    Raises:
        UserError: If Ray is missing, cannot be started, or the cluster cannot be reached.
    """
    is_local = not os.environ.get("RAY_ADDRESS")
    # Both are read when Ray is imported, or inherited by what it starts.
    os.environ["RAY_TRAIN_METRICS_ENABLED"] = "0"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    _prepare(is_local)
    try:
        import ray
        import ray.data
        import ray.train
    except ImportError as error:
        raise UserError(
            f"Ray Data or Ray Train is not installed ({error}): pip install 'ev-platform[cluster]', or unset EV_ENGINE "
            "and EV_TRAIN_WORKERS."
        ) from error

    in_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if in_main else {}
    with contextlib.ExitStack() as stack:
        for number, handler in handlers.items():
            stack.callback(signal.signal, number, handler)
        try:
            n_cpus_each = 1
            if is_local:
                n_cpus_each = stack.enter_context(local_ray(n_workers)) // n_workers
            else:
                stack.callback(ray.shutdown)
                ray.init(**_QUIET)
        except (ConnectionError, RuntimeError) as error:
            where = "start Ray on this machine" if is_local else f"reach the cluster at {os.environ['RAY_ADDRESS']}"
            raise UserError(
                f"Could not {where} ({last_line(error)}): check it, or unset EV_ENGINE and EV_TRAIN_WORKERS to work in "
                "one process."
            ) from error
        if callable(handlers.get(signal.SIGTERM)):
            signal.signal(signal.SIGTERM, handlers[signal.SIGTERM])  # Ray has taken it over, and SIGINT in training
        if ray.cluster_resources().get("GPU", 0) >= n_workers:
            yield {"CPU": 1, "GPU": 1}
        else:
            yield {"CPU": n_cpus_each}


@contextlib.contextmanager
def local_ray(n_processes: int) -> Iterator[int]:
    """Start Ray on this machine only, for the duration of the block.

    Args:
        n_processes: Processes that are to work side by side.

    Yields:
        Its number of CPUs.
    """
    _prepare(is_local=True)
    import ray

    n_cpus = max(os.cpu_count() or 1, n_processes)  # Ray counts CPUs, it does not measure them
    is_short = len(tempfile.gettempdir()) + len("/ev-12345678") <= _LONGEST_FOLDER
    folder = tempfile.mkdtemp(prefix="ev-", dir=None if is_short else f"{os.sep}tmp")
    start = partial(ray.init, address="local", num_cpus=n_cpus, include_dashboard=False, _temp_dir=folder, **_QUIET)
    try:
        try:
            start()
        except Exception as error:  # Ray's own bare one, on a machine under heavy load: it waits for 30 seconds
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            start()
        yield n_cpus
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(is_local: bool) -> None:
    """Say what Ray reads when it is imported."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if is_local:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # elsewhere too: Ray then listens on loopback only


def last_line(error: BaseException) -> str:
    """Return the kind of an error and the last line of what it says; Ray's own errors are pages long."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' if lines else ''}{lines[-1].rstrip('.') if lines else ''}"
