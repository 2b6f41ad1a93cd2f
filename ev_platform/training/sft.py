"""Supervised fine-tuning of a causal language model: TRL's SFTTrainer with a PEFT adapter.

The loss is on the answer and its end token only. On a CPU everything stays in float32: bf16 is emulated there and
about 17 times slower.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from ev_platform.errors import UserError
from ev_platform.records import TrainingStep
from ev_platform.training.base import hide_loading_bars, load_tokenizer
from ev_platform.training.recipes import Recipe

Log = Callable[[dict[str, float], int], None]


def train_adapter(
    base: Path, training: pl.DataFrame, validation: pl.DataFrame, recipe: Recipe, out: Path, log: Log | None = None
) -> tuple[dict[str, Any], list[TrainingStep]]:
    """Train an adapter and save it with the tokenizer.

    Args:
        base: Model directory.
        training: The `training_set` table.
        validation: The `validation_set` table; may be empty.
        recipe: Hyper-parameters.
        out: Empty folder for the adapter.
        log: Called with (metrics, step) at every logged step, for a tracker.

    Returns:
        Figures of the run (losses, seconds, tokens a second, rows left out), and the logged steps.

    Raises:
        UserError: If no row fits the recipe's `max_length`, or the loss is not a number.
    """
    # Two spinning OpenMP threads beside another busy process fall to a tenth of their speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForCausalLM,
        BitsAndBytesConfig,
        PrinterCallback,
        ProgressCallback,
        TrainerCallback,
        set_seed,
    )
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    hide_loading_bars()
    fits = training.filter(pl.col("n_tokens") <= recipe.max_length)
    if fits.is_empty():
        raise UserError(
            f"No training row fits max_length {recipe.max_length}: {training.height} rows, the shortest has "
            f"{training['n_tokens'].min() if training.height else 'no'} tokens; raise max_length or shorten contexts."
        )
    set_seed(recipe.seed)
    is_gpu = torch.cuda.is_available()
    tokenizer = load_tokenizer(base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    dtype = torch.bfloat16 if is_gpu else torch.float32
    quantization = None
    if recipe.method == "qlora":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=quantization)
    if quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=is_gpu)
    modules, last = recipe.lora.target_modules, recipe.lora.last_layers
    n_layers = model.config.num_hidden_layers
    if last is not None and last > n_layers:
        raise UserError(f"lora.last_layers is {last}, but {recipe.base_model} has {n_layers} layers.")
    lora = LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        layers_to_transform=None if last is None else list(range(n_layers - last, n_layers)),
        task_type="CAUSAL_LM",
    )

    started = time.monotonic()
    steps: list[TrainingStep] = []
    tokens_per_step = fits["n_tokens"].mean() * recipe.batch_size  # type: ignore[operator]

    bar = tqdm(desc="train", unit="step", disable=None)

    class Recorder(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            bar.reset(total=state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            logs = logs or {}
            if "loss" not in logs and "eval_loss" not in logs:
                return
            row = TrainingStep(
                adapter_id="",
                step=state.global_step,
                epoch=round(float(state.epoch or 0.0), 4),
                loss=_number(logs.get("loss")),
                validation_loss=_number(logs.get("eval_loss")),
                learning_rate=_number(logs.get("learning_rate")),
                grad_norm=_number(logs.get("grad_norm")),
                tokens_seen=int(state.global_step * tokens_per_step),
                elapsed_s=round(time.monotonic() - started, 3),
            )
            steps.append(row)
            if row.loss is not None:
                bar.update()
                bar.set_postfix(loss=f"{row.loss:.3f}")
            if row.loss is not None and row.loss != row.loss:
                control.should_training_stop = True
            if log is not None:
                named = {"loss": row.loss, "validation_loss": row.validation_loss, "learning_rate": row.learning_rate}
                log({k: v for k, v in named.items() if v is not None}, state.global_step)

    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch,
            num_train_epochs=recipe.epochs,
            max_steps=recipe.max_steps or -1,
            per_device_train_batch_size=recipe.batch_size,
            per_device_eval_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.scheduler,
            warmup_steps=recipe.warmup_ratio,
            max_length=recipe.max_length,
            completion_only_loss=True,
            # Rows of like length share a batch, so little of it is padding.
            train_sampling_strategy="group_by_length",
            bf16=is_gpu,
            gradient_checkpointing=is_gpu,
            logging_steps=1,
            logging_nan_inf_filter=False,  # else a NaN is logged as a mean of the losses before it
            eval_strategy="epoch" if validation.height else "no",
            eval_on_start=bool(validation.height),
            save_strategy="no",
            report_to="none",
            seed=recipe.seed,
            data_seed=recipe.seed,
            dataloader_pin_memory=False,
        )
        trainer: Any = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(_chats(fits)),
            eval_dataset=Dataset.from_list(_chats(validation)) if validation.height else None,
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[Recorder()],
        )
        # Their job is done by the bar above; they would print a dictionary for each step.
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        result = trainer.train()
        bar.close()
        trainer.model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    losses = [row.loss for row in steps if row.loss is not None]
    if not losses or any(loss != loss for loss in losses):
        raise UserError(f"The training loss became NaN at step {len(losses)}: lower learning_rate in the recipe.")
    validation_losses = [row.validation_loss for row in steps if row.validation_loss is not None]
    seconds = float(result.metrics["train_runtime"])
    n_epochs = float(result.metrics.get("epoch", recipe.epochs))
    n_tokens = int(sum(fits["n_tokens"].to_list()) * n_epochs)
    n_answer_tokens = int(sum(fits["n_answer_tokens"].to_list()) * n_epochs)
    return {
        "n_rows": fits.height,
        "n_rows_too_long": training.height - fits.height,
        "n_steps": len(losses),
        "first_loss": losses[0],
        "final_loss": sum(losses[-5:]) / len(losses[-5:]),
        "validation_loss_before": validation_losses[0] if validation_losses else None,
        "validation_loss": validation_losses[-1] if validation_losses else None,
        "train_seconds": round(seconds, 1),
        "tokens_per_second": round(n_tokens / seconds, 1),
        "answer_tokens_per_second": round(n_answer_tokens / seconds, 1),
        "n_trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name() if is_gpu else "cpu",
    }, steps


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _chats(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in rows["messages"].to_list()]
