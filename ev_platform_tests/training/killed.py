"""Runs a job in a process of its own, which may be killed at a chosen moment."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict
from functools import cache
from pathlib import Path

from ev_platform.training import checkpoints
from ev_platform.training.loop import Job


def run(job: Job, result: Path, moment: tuple[str, int] | None = None, limit_bytes: int | None = None) -> int:
    """Train; return the process's exit code, -9 if it was killed. Figures, steps or the error go into `result`."""
    result.unlink(missing_ok=True)
    shutil.rmtree(job.out, ignore_errors=True)  # what the store does with a folder that was never finished
    job.out.mkdir()
    host = _host()
    pickle.dump((job, result, moment, limit_bytes), host.stdin)
    host.stdin.flush()
    return pickle.load(host.stdout)


@cache
def _host() -> subprocess.Popen:
    """Start a process that imports the heavy libraries once; every run is forked from it. It ends with its input.

    The server of multiprocessing's `forkserver` is one for all: a test of extraction may have begun it without them.
    """
    return subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a run, or an import, prints is no reply
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401

    with contextlib.suppress(EOFError):
        while True:
            call = pickle.load(sys.stdin.buffer)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    _train(*call)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                os._exit(code)
            _, status = os.waitpid(pid, 0)
            pickle.dump(os.waitstatus_to_exitcode(status), replies)
            replies.flush()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _train(job: Job, result: Path, moment: tuple[str, int] | None, limit_bytes: int | None) -> None:
    import gc
    import resource

    import torch

    from ev_platform.errors import UserError
    from ev_platform.training.causal import train_causal

    gc.freeze()  # what was imported is not looked through again for every run
    torch.set_num_threads(1)
    if moment is not None:
        job = _MOMENTS[moment[0]](job, moment[1]) or job
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    try:
        figures, steps = train_causal(job)
    except UserError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
        result.write_text(json.dumps({"error": str(error)}))
    else:
        result.write_text(json.dumps({"figures": figures, "steps": [asdict(step) for step in steps]}))


def _after_step(job: Job, step: int) -> Job:
    def log(metrics, at):
        if at == step and "loss" in metrics:
            _kill()

    return Job(**{**vars(job), "log": log})


def _after_look(job: Job, step: int) -> Job:
    def log(metrics, at):
        if at == step and "validation_loss" in metrics:
            _kill()

    return Job(**{**vars(job), "log": log})


def _in_the_middle_of_the_file(job: Job, number: int) -> None:
    import io

    import torch

    save, calls = torch.save, []

    def half(data, file, *args, **kwargs):
        calls.append(file)
        if len(calls) < number:
            return save(data, file, *args, **kwargs)
        whole = io.BytesIO()
        save(data, whole)
        Path(file).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        return _kill()

    torch.save = half


def _before_it_is_complete(job: Job, step: int) -> None:
    complete = checkpoints.complete

    def killed(trainer, folder, at, best):
        if at == step:
            _kill()
        complete(trainer, folder, at, best)

    checkpoints.complete = killed


def _while_an_old_one_is_removed(job: Job, step: int) -> None:
    rmtree = shutil.rmtree

    def killed(folder, *args, **kwargs):
        if Path(folder).name == f"checkpoint-{step}":
            (Path(folder) / "optimizer.pt").unlink()
            _kill()
        rmtree(folder, *args, **kwargs)

    shutil.rmtree = killed


def _while_the_result_is_saved(job: Job, _: int) -> None:
    import peft

    peft.PeftModel.save_pretrained, save = None, peft.PeftModel.save_pretrained

    def killed(model, folder, *args, **kwargs):
        if Path(folder) == job.out:
            _kill()
        return save(model, folder, *args, **kwargs)

    peft.PeftModel.save_pretrained = killed


def _on_threads(job: Job, number: int) -> None:
    import torch

    torch.set_num_threads(number)


_MOMENTS = {
    "on threads": _on_threads,
    "after step": _after_step,
    "after look": _after_look,
    "in the middle of file": _in_the_middle_of_the_file,
    "before it is complete": _before_it_is_complete,
    "while an old one is removed": _while_an_old_one_is_removed,
    "while the result is saved": _while_the_result_is_saved,
}


if __name__ == "__main__":
    _serve()
