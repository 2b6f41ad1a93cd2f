"""What training on the public folders gives, by configuration alone; each test prints the table of scores.

The rows are those that came with the folders, and the offline teacher's. The test rows are looked at once, at the end.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from ev_platform.evaluation.report import print_table
from ev_platform_tests.test_graph import Workspace

DATA = Path(__file__).parents[2] / "shared" / "data"
TASKS = DATA / "tasks"
SQUAD = {"train": "train-subset-v1.1.json", "test": "dev-v1.1.json"}
pytestmark = [pytest.mark.real_data, pytest.mark.real_model, pytest.mark.slow, pytest.mark.timeout(3600)]


def train(root: Path, name: str, config: dict[str, Any], texts: str = "", job: str = "") -> pl.DataFrame:
    """Run the whole graph over a task folder; print its scores and return `eval_report`.

    Args:
        root: For the task's folder and the data.
        name: Of the task; of the public folder whose files are linked into it, where there is no `job`.
        config: `config.yaml`.
        texts: Glob of text files to collect.
        job: `task_description`.
    """
    workspace = Workspace(root)
    folder = root / "tasks" / name
    folder.mkdir(parents=True, exist_ok=True)
    if job:
        (folder / "job_description.json").write_text(json.dumps({"task_description": job}))
    else:
        for file in (TASKS / name).iterdir():
            (folder / file.name).symlink_to(file)
    (folder / "config.yaml").write_text(json.dumps(config))
    if texts:
        (folder / "sources.yaml").write_text(json.dumps({"texts": [texts]}))
    started = time.perf_counter()
    print(f"\n== {name}, {config['recipe']}")
    workspace.run(task=name)
    report = workspace.store.read("eval_report", name)
    figures = json.loads(workspace.store.read("adapter", name).item(0, "metrics"))
    print(f"  {time.perf_counter() - started:.0f} s, of them training {figures['train_seconds']} s")
    print(f"  { ({k: v for k, v in figures.items() if v is not None}) }")
    Console(width=140).print(print_table(report))
    return report


def score(report: pl.DataFrame, system: str, metric: str) -> float:
    rows = report.filter(pl.col("compared_to").is_null())
    (value,) = rows.filter((pl.col("system") == system) & (pl.col("metric") == metric))["value"]
    return value


def needs(*files: Path) -> None:
    if not all(file.exists() for file in files):
        pytest.skip("the real data sets are not beside this checkout")


@pytest.mark.parametrize(
    ("name", "least"), [("distil_banking_routing", 0.85), ("distil_ecommerce", 0.88), ("distil_mental_health", 0.78)]
)
def test_encoder_learns_a_public_folder_s_classes(name: str, least: float, tmp_path: Path) -> None:
    needs(TASKS / name)
    config = {"type": "classification", "recipe": "minilm-classification-full", "dataset": {"max_examples": 1000}}
    report = train(tmp_path, name, config)
    assert score(report, "tuned", "accuracy") > max(least, score(report, "base", "accuracy"))


def test_encoder_learns_to_find_spans_of_squad(tmp_path: Path) -> None:
    files = {split: TASKS / "squad" / name for split, name in SQUAD.items()}
    needs(*files.values())
    config = {
        "type": "extractive_qa",
        "recipe": "minilm-extractive-full",
        "files": {split: str(file) for split, file in files.items()},
        "dataset": {"max_examples": 0},
        "evaluation": {"max_rows": 1000},
    }
    report = train(tmp_path, "squad", config, job="Answer the question with a span of the passage.")
    assert score(report, "tuned_rag", "token_f1") > 0.5


def test_bundled_model_learns_open_book_answers(tmp_path: Path) -> None:
    name = "distil_question_answering"
    needs(TASKS / name)
    # 50 human rows and 400 generated ones; an adapter in every layer, since few rows alone cannot use it.
    recipe = {"extends": "smollm2-135m-cpu", "epochs": 2, "lora": {"dropout": 0.05, "last_layers": None}}
    (tmp_path / "tasks" / name).mkdir(parents=True)
    (tmp_path / "tasks" / name / "own.yaml").write_text(json.dumps(recipe))
    config = {"type": "open_book_qa", "recipe": "own.yaml", "dataset": {"max_examples": 400, "max_per_chunk": 1}}
    report = train(tmp_path, name, config)
    assert score(report, "tuned_rag", "token_f1") > 0.35 > score(report, "base_rag", "token_f1")


def test_bundled_model_learns_a_manual_by_heart(tmp_path: Path) -> None:
    source = DATA / "vehicle_manual"
    needs(source / "questions.json")
    config = {
        "type": "closed_book_qa",
        "recipe": "smollm2-135m-cpu",
        "files": {"rows": str(source / "questions.json"), "test_fraction": 0.1},
        "dataset": {"max_examples": 0},
        "evaluation": {"max_rows": 100, "max_new_tokens": 64},
    }
    job = "Answer questions about operating the car."
    report = train(tmp_path, "vehicle_manual", config, texts=f"{source / 'docs'}/*.md", job=job)
    assert score(report, "tuned", "rouge_l") > score(report, "base", "rouge_l")
