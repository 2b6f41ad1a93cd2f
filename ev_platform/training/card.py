"""The model card: what a model is for, how good it is, what it was made from, and how to follow an answer back.

Every figure is read from the stored tables when the card is written. What does not belong here: the card of the data
alone (`dataset.card`, whose parts are used here), and sending it anywhere (`publish`).
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from ev_platform.dataset.card import count_licences, count_reasons, count_sources, count_teachers
from ev_platform.dataset.export import Dataset, Row
from ev_platform.errors import UserError
from ev_platform.evaluation.report import DIFFERENCES, METRIC_NAMES, SCORES
from ev_platform.evaluation.statistics import SYSTEMS
from ev_platform.evaluation.summary import deciding_metric, judge
from ev_platform.pages import render_markdown
from ev_platform.tasks.types import get_task_type
from ev_platform.training.base import BUNDLED, BUNDLED_ENCODER

# The hub's name and licence of base models that recipes name; of others the hub's page says it.
_BASES = {
    BUNDLED: ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    BUNDLED_ENCODER: ("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "apache-2.0"),
    "mistralai/Mistral-7B-Instruct-v0.3": ("mistralai/Mistral-7B-Instruct-v0.3", "apache-2.0"),
    "meta-llama/Llama-2-7b-chat-hf": ("meta-llama/Llama-2-7b-chat-hf", "llama2"),
}
# Licences of pages that ask for no more than a name; with others the model's licence is for a person to settle.
_PERMISSIVE = ("apache-2.0", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "mit")
# A head's task on the hub, and the hub's names of the metrics that it knows.
_PIPELINES = {
    "causal": "text-generation",
    "extractive": "question-answering",
    "classification": "text-classification",
}
_HUB_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "exact_match": "exact_match",
    "token_f1": "f1",
    "rouge_l": "rouge",
    "bleu": "bleu",
}


class _TrainedOn(Dataset):
    """A dataset without its test rows, which are no part of what a model was made from."""

    @cached_property
    def splits(self) -> dict[str, list[Row]]:
        return {split: rows for split, rows in super().splits.items() if split != "test"}


def render_model_card(dataset: Dataset) -> str:
    """Return the card of a task's model in Markdown, with the front matter that the Hugging Face hub reads.

    It follows the hub's model card specification; the results stand in its `model-index` too.

    Args:
        dataset: The task's tables as they are stored now.

    Raises:
        UserError: If the model is not trained or not evaluated yet.
    """
    adapter, report = dataset.table("adapter"), dataset.table("eval_report")
    if adapter.is_empty() or report.is_empty():
        missing = "trained" if adapter.is_empty() else "evaluated"
        raise UserError(f"The model of {dataset.task.name} is not {missing} yet: run the task first.")
    trained = _TrainedOn(dataset.store, dataset.task)
    sources, n_own = count_sources(trained)
    model = adapter.to_dicts()[0]
    recipe = json.loads(model["recipe"])
    rows = pl.DataFrame({"origin": [row["origin"] for rows in trained.splits.values() for row in rows]})
    task_type = get_task_type(dataset.task.config.type)
    metric = deciding_metric(task_type)
    exported = dataset.table("serving_model")
    example = next((row for rows in trained.splits.values() for row in rows), None)
    return render_markdown(
        Path(__file__).parent,
        "card.md.j2",
        front_matter=_front_matter(dataset, model, recipe, sources, set(rows["origin"])),
        name=dataset.task.name,
        description=dataset.task.description,
        task_type=dataset.task.config.type,
        model=model,
        base=_BASES.get(model["base_model"], (model["base_model"], None)),
        head=recipe.get("head", "causal"),
        method=recipe["method"],
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        figures={k: v for k, v in json.loads(model["metrics"]).items() if v is not None and not isinstance(v, dict)},
        inputs=json.loads(model["inputs"]),
        agreement=json.loads(exported["metrics"][0]) if exported.height else {},
        instructions=dataset.task.instructions,
        question=example["input"] if example else None,
        systems=SYSTEMS,
        scores=_figures(report.filter(pl.col("compared_to").is_null()), SCORES),
        differences=_figures(report.filter(pl.col("compared_to").is_not_null()), DIFFERENCES),
        n_test=report["n_rows"].max(),
        metric=METRIC_NAMES[metric],
        verdict=judge(report, task_type, dataset.task.config.promotion.min_rows),
        counts=rows.group_by("origin").len("n").sort("origin").to_dicts(),
        sources=sources,
        licences=count_licences(sources),
        n_own=n_own,
        dropped=count_reasons(dataset.table("dropped_documents"), "drop_reason"),
        rejected=count_reasons(dataset.table("rejected_examples"), "reject_reason"),
        teachers=count_teachers(trained),
    )


def _figures(report: pl.DataFrame, shown: tuple[tuple[str, str, str], ...]) -> list[Row]:
    """Return a line for each figure: systems, name of the metric, value and interval as text."""
    names = {metric: (name, form) for metric, name, form in shown}
    lines = []
    for row in report.iter_rows(named=True):
        if row["metric"] not in names:
            continue
        name, form = names[row["metric"]]
        bounds = "" if row["low"] is None else f"{form.format(row['low'])} to {form.format(row['high'])}"
        lines.append(row | {"name": name, "value": form.format(row["value"]), "interval": bounds})
    return lines


def _front_matter(dataset: Dataset, model: Row, recipe: Row, sources: list[Row], origins: set[str]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    name = dataset.task.name
    base, licence = _BASES.get(model["base_model"], (model["base_model"], None))
    is_settled = all(source["licence"].lower() in _PERMISSIVE for source in sources)
    pipeline = _PIPELINES[recipe.get("head", "causal")]
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=name,
            dataset_name=name,
            dataset_split="test",
            metric_type=_HUB_METRICS[row["metric"]],
            metric_name=f"{METRIC_NAMES[row['metric']]}, {SYSTEMS[row['system']]}",
            metric_value=round(row["value"], 4),
        )
        for row in dataset.table("eval_report").iter_rows(named=True)
        if row["compared_to"] is None and row["system"].startswith("tuned") and row["metric"] in _HUB_METRICS
    ]
    used = {row["document_id"] for rows in dataset.splits.values() for row in rows}
    languages = sorted({document["language"] for key, document in dataset.documents.items() if key in used})
    data: Any = ModelCardData(
        language=languages or None,
        license=licence if licence and is_settled else "other",
        license_name=None if licence and is_settled else "see-below",
        # A local folder is nothing that the hub could link to.
        base_model=base if base.count("/") == 1 and not Path(base).is_absolute() else None,
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["ev-platform", recipe["method"], *(["synthetic"] if origins & {"generated", "labelled"} else [])],
        model_name=name,
        eval_results=results,
    )
    return data.to_yaml()
