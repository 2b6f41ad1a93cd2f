"""Answer tokens trained per second: our recipe against plain TRL, and NF4 against float32, on this machine."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl

from ev_platform.tasks import EXAMPLES, Task
from ev_platform.training.recipes import load_recipe
from ev_platform.training.sft import train_adapter


def _plain_trl(base: Path, rows: pl.DataFrame, out: Path, batch_size: int) -> float:
    """Train the same rows with TRL's SFTTrainer as its documentation shows it, in float32; return seconds."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"prompt": m[:-1], "completion": m[-1:]} for m in rows["messages"].to_list()])
    config = SFTConfig(
        output_dir=str(out),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
        seed=17,
    )
    trainer = SFTTrainer(
        model=str(base),
        args=config,
        train_dataset=data,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def test_training_speed(base: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    recipe = load_recipe(Task("ev_charging", EXAMPLES / "ev_charging")).model_copy(update={"epochs": 1})
    n_answer_tokens = int(rows["n_answer_tokens"].sum())
    empty = rows.clear()
    figures: dict[str, float] = {
        "plain TRL, float32": n_answer_tokens / _plain_trl(base, rows, tmp_path, recipe.batch_size)
    }
    for name, method in (("recipe smollm2-135m-cpu", "lora"), ("the same with NF4 (qlora)", "qlora")):
        out = tmp_path / method
        out.mkdir()
        metrics, _ = train_adapter(base, rows, empty, recipe.model_copy(update={"method": method}), out)
        figures[name] = metrics["answer_tokens_per_second"]
    plain = figures["plain TRL, float32"]
    print(f"\n{'training':<32} answer tokens/s   ratio")
    for name, value in figures.items():
        print(f"{name:<32} {value:15.2f} {value / plain:7.2f}")
