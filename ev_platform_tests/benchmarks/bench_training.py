"""Answer tokens trained per second: our loop against plain TRL, and NF4 against float32, on this machine.

Every line trains the same rows with the same batch size. Plain TRL is SFTTrainer with its own settings, but in float32:
its default, bf16, is emulated on a CPU. The ratios are to it; the seconds depend on who else uses the machine.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.tasks import EXAMPLES, Task
from ev_platform.training.causal import load_model, train_causal
from ev_platform.training.loop import Job
from ev_platform.training.recipes import Recipe, load_recipe

_N_ROWS = 8


def _plain_trl(base: Path, rows: pl.DataFrame, out: Path, recipe: Recipe, **settings: Any) -> float:
    """Train as TRL's documentation shows it, in float32; return seconds."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"prompt": m[:-1], "completion": m[-1:]} for m in rows["messages"].to_list()])
    config = SFTConfig(
        output_dir=str(out),
        num_train_epochs=1,
        per_device_train_batch_size=recipe.batch_size,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
        seed=17,
        **settings,
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


def _ours(base: Path, rows: pl.DataFrame, folder: Path, recipe: Recipe) -> float:
    (folder / "out").mkdir(parents=True)
    job = Job(base, rows, rows.clear(), recipe, (), "", folder / "out", folder / "checkpoints")
    return train_causal(job)[0]["train_seconds"]


def _megabytes(base: Path, recipe: Recipe) -> float:
    return load_model(base, recipe).get_memory_footprint() / 1e6


def test_training_speed(base: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    recipe = load_recipe(Task("ev_charging", EXAMPLES / "ev_charging")).model_copy(update={"epochs": 1})
    rows = rows.filter(pl.col("n_tokens") <= recipe.max_length).head(_N_ROWS)
    assert recipe.lora is not None
    same = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"last_layers": None})})
    nf4 = recipe.model_copy(update={"method": "qlora"})
    runs = {
        "plain TRL, float32": lambda f: _plain_trl(base, rows, f, recipe),
        "plain TRL, no checkpointing": lambda f: _plain_trl(base, rows, f, recipe, gradient_checkpointing=False),
        "ours, the same LoRA layers": lambda f: _ours(base, rows, f, same),
        "the same, packed": lambda f: _ours(base, rows, f, same.model_copy(update={"batching": "packed"})),
        "recipe (the upper half)": lambda f: _ours(base, rows, f, recipe),
        "recipe with NF4 (qlora)": lambda f: _ours(base, rows, f, nf4),
    }
    n_answer_tokens = int(rows["n_answer_tokens"].sum())
    speeds = {name: n_answer_tokens / run(tmp_path / str(number)) for number, (name, run) in enumerate(runs.items())}
    plain = speeds["plain TRL, float32"]
    print(f"\n{'training':<32} answer tokens/s   ratio")
    for name, value in speeds.items():
        print(f"{name:<32} {value:15.2f} {value / plain:7.2f}")
    print(f"weights: float32 {_megabytes(base, recipe):.0f} MB, NF4 {_megabytes(base, nf4):.0f} MB")
