"""The training loop that every head shares: order of the rows, looks at validation, log, checkpoints, resume, mishaps.

What does not belong here: models, tokens and losses (`causal`, `heads`).
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from ev_platform.errors import UserError
from ev_platform.records import TrainingStep
from ev_platform.training import checkpoints
from ev_platform.training.order import Plan, plan_batches
from ev_platform.training.recipes import Recipe

_STEPS_TO_MOVE_ALL = 3

Log = Callable[[dict[str, float], int], None]
Result = tuple[dict[str, Any], list[TrainingStep]]

# Two spinning OpenMP threads beside another busy process fall to a tenth of their speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# TRL tells its makers about every trainer.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        base: Model directory.
        training: The table `training_set`.
        validation: The table `validation_set`; may be empty.
        recipe: Hyper-parameters.
        labels: Classes of the task; empty where it has none.
        no_answer: What the task answers to a question that its passage does not answer.
        out: Empty folder: becomes a PEFT directory (method `full`: the whole model) with tokenizer and config.json.
        checkpoints: Folder of this very job: its name covers base weights, rows and recipe, since what lies there is
            taken as this job's. The caller removes it after success.
        log: Called with (metrics, step) at every logged step, for a tracker; after a resume the steps before it too.
    """

    base: Path
    training: pl.DataFrame
    validation: pl.DataFrame
    recipe: Recipe
    labels: tuple[str, ...]
    no_answer: str
    out: Path
    checkpoints: Path
    log: Log | None = None


def arguments(job: Job, n_rows: int) -> dict[str, Any]:
    """Return the keyword arguments common to `transformers.TrainingArguments` and `trl.SFTConfig`.

    Args:
        job: The run.
        n_rows: Training rows as the model reads them (windows, for the head `extractive`).
    """
    import torch

    recipe = job.recipe
    job.checkpoints.mkdir(parents=True, exist_ok=True)
    return {
        "output_dir": str(job.checkpoints),
        # `fit` hands out the batches of all epochs as one, so that a resumed run need only skip what was done.
        "num_train_epochs": 1,
        "per_device_train_batch_size": recipe.batch_size,
        "per_device_eval_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": min(recipe.gradient_accumulation, n_rows),
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.scheduler,
        "warmup_steps": recipe.warmup_ratio,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": recipe.optimizer,
        "activation_checkpointing": recipe.gradient_checkpointing,  # TRL sets it otherwise
        "bf16": torch.cuda.is_available(),  # a CPU emulates it, 17 times slower
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # else a NaN is logged as a mean of the losses before it
        # `fit` decides when to look at the validation set and when to save.
        "eval_strategy": "no",
        "save_strategy": "no",
        "eval_on_start": not job.validation.is_empty(),
        "prediction_loss_only": True,
        "remove_unused_columns": False,
        "report_to": "none",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }


def fit(trainer: Any, job: Job, *, n_tokens: int, n_answer_tokens: int) -> Result:
    """Train, from the last complete checkpoint if there is one; leave the chosen weights in `trainer.model`.

    Args:
        trainer: A `transformers.Trainer` made with `arguments`. Its `train_dataset` holds rows that the model reads as
            they are, each with `input_ids`; its collator joins a list of rows into a batch. Where the recipe packs,
            a row may be a pack: `input_ids` and `labels` of several rows, and `seq_lengths`.
        job: The run.
        n_tokens: Of one pass over the training rows, padding not counted.
        n_answer_tokens: Of these, those with a loss.

    Returns:
        Figures of the run, and its logged steps; after a resume those before it too.

    Raises:
        UserError: If the loss is not a number, the disk or the memory is full, or no weight has changed.
    """
    import torch
    from torch.utils.data import DataLoader
    from transformers import PrinterCallback, ProgressCallback

    args = trainer.args
    rows = trainer.train_dataset
    plan = plan_batches(
        [len(row["input_ids"]) for row in rows], job.recipe, args.gradient_accumulation_steps, args.world_size
    )

    def batches() -> Any:
        units: Any = plan.rows_of(rows)
        loader: Any = DataLoader(units, batch_sampler=plan, collate_fn=trainer.data_collator)
        return trainer.accelerator.prepare(loader)

    trainer.get_train_dataloader = batches
    # Their job is done by our bar; they would print a dictionary for each step.
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    found = checkpoints.find_last(job.checkpoints)
    if found is not None:
        args.eval_on_start = False
    recorder = _recorder(trainer, job, plan)
    trainer.add_callback(recorder)
    before = _sums(trainer.model)
    meter = _energy_meter()
    try:
        with _threads(job.recipe) as n_threads:
            trainer.train(resume_from_checkpoint=None if found is None else str(found))
    except UserError:
        raise
    except Exception as error:
        told = checkpoints.explain(error, job.checkpoints, trainer.state.global_step)
        if told is None:
            raise
        raise UserError(told) from error
    finally:
        recorder.bar.close()
        if meter is not None:
            meter.stop()
    state = trainer.state
    best = best_step(state.log_history)
    if job.recipe.early_stopping is not None and best not in (None, state.global_step):
        checkpoints.load_weights(trainer, job.checkpoints, best)
    after = _sums(trainer.model)
    n_still = sum(before[name] == after[name] for name in before)
    is_best = job.recipe.early_stopping is not None and best is not None
    kept: int = best if best is not None and is_best else state.global_step
    # The first step of a warm-up has a learning rate of 0, and the next moves one factor of an adapter only. A whole
    # model may hold tensors that its head does not use.
    if n_still == len(before) or (n_still and kept >= _STEPS_TO_MOVE_ALL and job.recipe.method != "full"):
        raise UserError(
            f"Training left {n_still} of {len(before)} trained tensors unchanged in {kept} steps: raise epochs or "
            "max_steps, or name other lora.target_modules."
        )
    steps = [_to_step(entry) for entry in state.log_history if _is_step(entry)]
    losses = [step.loss for step in steps if step.loss is not None]
    looks = [step.validation_loss for step in steps if step.validation_loss is not None]
    seconds = sum(entry["step_s"] for entry in state.log_history if "step_s" in entry)
    n_seen = plan.tokens_seen(state.global_step)
    return {
        "n_rows": len(rows),
        "n_steps": state.global_step,
        "n_planned_steps": plan.n_steps,
        "resumed_from_step": 0 if found is None else int(found.name.rpartition("-")[2]),
        "first_loss": losses[0],
        "final_loss": sum(losses[-5:]) / len(losses[-5:]),
        "validation_loss_before": looks[0] if looks else None,
        "validation_loss": (min(looks) if is_best else looks[-1]) if looks else None,
        "kept_step": kept,
        "n_tokens_seen": n_seen,
        "train_seconds": round(seconds, 1),
        "tokens_per_second": round(n_seen / seconds, 1),
        "answer_tokens_per_second": round(n_seen / n_tokens * n_answer_tokens / seconds, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "energy_kwh": None if meter is None else meter.final_emissions_data.energy_consumed,
        "n_trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "n_unchanged_tensors": n_still,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "n_threads": n_threads,
    }, steps


def count_threads() -> int:
    """Return the threads that torch has in this process, whatever another library made of them in this thread.

    CTranslate2 sets OpenMP's number for the thread that loads a model: torch then went on there with one, and trained
    other last digits than before.
    """
    import torch

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@contextmanager
def _threads(recipe: Recipe) -> Iterator[int]:
    """Let torch use the recipe's number of threads, and yield it."""
    import torch

    usual = count_threads()
    torch.set_num_threads(recipe.threads or usual)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(usual)


def make_portable(job: Job) -> None:
    """Take out of what peft saved where the base model lay on this machine; the recipe's name of it stands there."""
    (job.out / "README.md").unlink(missing_ok=True)  # an empty form of a card; ours are written with an export
    file = job.out / "adapter_config.json"
    if file.exists():
        config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": job.recipe.base_model}
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def peak_memory_bytes() -> int:
    """Return the most memory held so far: of the GPU, else of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts in kilobytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _energy_meter() -> Any:
    """Return a running meter of the whole machine's energy, since the last resume; None without the extra `energy`."""
    if find_spec("codecarbon") is None:
        return None
    from codecarbon import OfflineEmissionsTracker  # pyright: ignore[reportMissingImports]

    logging.getLogger("codecarbon").disabled = True
    # The country is for grams of carbon dioxide, which are not asked for here.
    meter = OfflineEmissionsTracker(country_iso_code="CHE", save_to_file=False, allow_multiple_runs=True)
    meter.start()
    return meter


def best_step(history: list[dict[str, Any]]) -> int | None:
    """Return the step after training began whose validation loss is the lowest, the first of equals."""
    looks = [entry for entry in history if "eval_loss" in entry and entry["step"] > 0]
    return min(looks, key=lambda entry: entry["eval_loss"])["step"] if looks else None


def _sums(model: Any) -> dict[str, float]:
    return {name: p.detach().double().abs().sum().item() for name, p in model.named_parameters() if p.requires_grad}


def _is_step(entry: dict[str, Any]) -> bool:
    return "loss" in entry or "eval_loss" in entry


def _to_step(entry: dict[str, Any]) -> TrainingStep:
    return TrainingStep(
        adapter_id="",
        step=entry["step"],
        epoch=entry["pass"],
        loss=entry.get("loss"),
        validation_loss=entry.get("eval_loss"),
        learning_rate=entry.get("learning_rate"),
        grad_norm=entry.get("grad_norm"),
        tokens_seen=entry["tokens_seen"],
        elapsed_s=entry["elapsed_s"],
        tokens_per_second=entry.get("tokens_per_second"),
        peak_memory_bytes=entry["peak_memory_bytes"],
    )


_NAMES = {
    "loss": "loss",
    "eval_loss": "validation_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens_seen": "tokens_seen",
    "elapsed_s": "elapsed_s",
    "tokens_per_second": "tokens_per_second",
    "peak_memory_bytes": "peak_memory_bytes",
}


def _recorder(trainer: Any, job: Job, plan: Plan) -> Any:
    from transformers import TrainerCallback

    recipe = job.recipe
    every = recipe.eval_steps or plan.n_steps_per_epoch

    class Recorder(TrainerCallback):
        """Keeps nothing of its own: what a resumed run must know is in `state.log_history`, saved in checkpoints."""

        bar = tqdm(desc="train", unit="step", disable=None)

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done = [entry for entry in state.log_history if _is_step(entry)]
            self.elapsed_before = done[-1]["elapsed_s"] if done else 0.0
            self.started = self.step_started = time.monotonic()
            self.bar.reset(total=plan.n_steps)
            self.bar.update(state.global_step)
            for entry in done:
                self.track(entry)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.step_started = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.step_s = time.monotonic() - self.step_started
            is_last = state.global_step == plan.n_steps
            control.should_evaluate = not job.validation.is_empty() and (is_last or state.global_step % every == 0)
            control.should_save = is_last or state.global_step % recipe.save_steps == 0

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            entry = state.log_history[-1]
            if not _is_step(entry):
                return
            step = state.global_step
            entry["pass"] = round(step / plan.n_steps_per_epoch, 4)
            entry["tokens_seen"] = plan.tokens_seen(step)
            entry["elapsed_s"] = round(self.elapsed_before + time.monotonic() - self.started, 3)
            entry["peak_memory_bytes"] = peak_memory_bytes()
            if "loss" in entry:
                entry["step_s"] = self.step_s
                n_tokens = entry["tokens_seen"] - plan.tokens_seen(step - 1)
                entry["tokens_per_second"] = round(n_tokens / self.step_s, 1)
                self.bar.update()
                self.bar.set_postfix(loss=f"{entry['loss']:.3f}")
            self.track(entry)
            checkpoints.check_numbers(entry, job.checkpoints)

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if recipe.early_stopping is None or state.global_step == 0:
                return
            looks = [entry["step"] for entry in state.log_history if "eval_loss" in entry and entry["step"] > 0]
            best = best_step(state.log_history)
            if looks[-1] == best:
                control.should_save = True
            elif len(looks) - 1 - looks.index(best) >= recipe.early_stopping:
                control.should_training_stop = True
                # From a checkpoint of this very step a resumed run would go on instead of stopping again.
                control.should_save = False

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoints.complete(trainer, job.checkpoints, state.global_step, best_step(state.log_history))

        def track(self, entry: dict[str, Any]) -> None:
            if job.log is not None:
                job.log({name: entry[key] for key, name in _NAMES.items() if key in entry}, entry["step"])

    return Recorder()
