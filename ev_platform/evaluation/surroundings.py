"""What the report says of other tables than predictions and scores: gate, retrieval, retention, speed, training, costs.

A part whose table has no rows is None. What does not belong here: the evaluation itself (`figures`), and
which version of a table goes in (`pages`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

Row = dict[str, Any]
Tables = Mapping[str, pl.DataFrame]


def describe_surroundings(tables: Tables, model_version: str | None, benchmark_fingerprint: str | None) -> Row:
    """Return what tables beside the evaluation tell about it, as JSON values.

    Args:
        tables: By name; those that are missing are taken to be empty.
        model_version: Under which the evaluated model is registered, if it is.
        benchmark_fingerprint: Of the rows that were answered.
    """
    found = {
        "gate": _gate(tables, model_version),
        "benchmark": _benchmark(tables, benchmark_fingerprint),
        "judgements": _judgements(tables),
        "seeds": _seeds(tables),
        "retrieval": _rows(tables, "retrieval_report"),
        "abstention": _abstention(tables),
        "retention": _retention(tables),
        "speed": _rows(tables, "inference_benchmark"),
        "coverage": _coverage(tables),
        "training": _training(tables),
        "teacher": _teacher(tables),
    }
    return {name: told or None for name, told in found.items()}


def _rows(tables: Tables, name: str) -> list[Row]:
    return tables[name].to_dicts() if name in tables else []


def _gate(tables: Tables, model_version: str | None) -> Row | None:
    """Return the checks on the evaluated version, what was last decided about it, and who answers now.

    The aliases follow the last decision, so that its champion is the one that answers.
    """
    checks = [row for row in _rows(tables, "promotion_gate") if row["model_version"] == model_version]
    history = _rows(tables, "promotions")
    decisions = [row for row in history if row["model_version"] == model_version]
    if model_version is None or not (checks or decisions):
        return None
    decision = decisions[-1] if decisions else None
    if decision:
        decision = decision | {"decided_at": decision["decided_at"].isoformat()}
    left = [row for row in history if row["champion_before"] == model_version != row["champion_after"]]
    champion = history[-1]["champion_after"] if history else None
    return {
        "model_version": model_version,
        "decision": decision,
        "champion": champion,
        "was_rolled_back": bool(left) and left[-1]["decision"] == "rolled_back" and champion != model_version,
        "checks": checks,
    }


def _benchmark(tables: Tables, fingerprint: str | None) -> Row | None:
    named = [row for row in _rows(tables, "benchmark_versions") if row["benchmark_fingerprint"] == fingerprint]
    columns = ("benchmark", "n_rows", "n_documents", "n_added", "n_removed", "note")
    return {name: named[-1][name] for name in columns} if named else None


def _judgements(tables: Tables) -> Row | None:
    """Return how often a judge preferred one system's answer, by pair, and whether the judge can be believed.

    Where the teacher judges nothing, since it is no language model, it is people whose judgements are counted.
    """
    frame = tables.get("pair_judgements")
    if frame is None or frame.is_empty():
        return None
    from ev_platform.evaluation.judge_agreement import agree, find_flaw

    is_by_people = (frame["status"] == "unsupported").all()
    pairs = []
    for (system, other), rows in frame.group_by("system", "compared_to", maintain_order=True):
        verdicts = rows["human" if is_by_people else "verdict"].to_list()
        counts = {name: verdicts.count(name) for name in ("better", "worse", "tie", "inconsistent")}
        pairs.append(
            {"system": system, "compared_to": other, "n_rows": rows.height, **counts, "unjudged": verdicts.count(None)}
        )
    return {
        "pairs": pairs,
        "is_by_people": is_by_people,
        "people": dataclasses.asdict(agree(frame)),
        "flaw": find_flaw(frame),
        "cost_usd": float(frame["cost_usd"].sum()),
    }


def _seeds(tables: Tables) -> list[Row]:
    """Return how far each score of the tuned systems moves with the seed of the training."""
    frame = tables.get("seed_scores")
    if frame is None or frame.is_empty():
        return []
    from ev_platform.evaluation.seeds import spread_over_seeds

    return spread_over_seeds(frame).to_dicts()


def _abstention(tables: Tables) -> Row | None:
    """Return the score below which the model abstains, what share of each group that is, and which it treats wrongly.

    Beside the shares stand the scores of all questions, the test questions that are refused, and those outside the task
    that are answered, nearest first.
    """
    shares, scores = _rows(tables, "abstention_calibration"), _rows(tables, "abstention_scores")
    if not shares or not scores:
        return None
    scores = sorted(scores, key=lambda row: -row["score"])
    return {
        "min_score": shares[0]["min_score"],
        "reason": shares[0]["reason"],
        "shares": [{name: row[name] for name in ("group", "n", "n_refused", "value", "low", "high")} for row in shares],
        "refused": [row for row in reversed(scores) if row["is_refused"] and row["group"] in ("trained", "answerable")],
        "answered": [row for row in scores if not row["is_refused"] and row["group"] == "strange_held_out"],
        "scores": [{name: row[name] for name in ("group", "score")} for row in scores],
    }


def _retention(tables: Tables) -> Row | None:
    frame = tables.get("general_answers")
    if frame is None or frame.is_empty():
        return None
    from ev_platform.evaluation.retention import summary

    return summary(frame)


def _coverage(tables: Tables) -> Row | None:
    """Return how much of the corpus has an example, and what became of the rest."""
    frame = tables.get("coverage")
    if frame is None or frame.is_empty():
        return None
    status = frame.group_by("status").agg(pl.len().alias("n"), pl.col("n_examples").sum()).sort("n", "status")
    is_covered = frame["n_examples"] > 0
    return {
        "n": frame.height,
        "n_covered": int(is_covered.sum()),
        "n_held_out": frame.filter(pl.col("status") == "held_out").height,
        "n_examples": int(frame["n_examples"].sum()),
        "by_status": status.reverse().to_dicts(),
    }


def _training(tables: Tables) -> Row | None:
    rows = _rows(tables, "adapter")
    if not rows:
        return None
    figures = {name: value for name, value in json.loads(rows[0]["metrics"]).items() if value is not None}
    return {"base_model": rows[0]["base_model"], "n_bytes": rows[0]["n_bytes"], **figures}


def _teacher(tables: Tables) -> Row | None:
    """Return what was paid for and how the teacher was judged before."""
    calls, examined = tables.get("teacher_calls"), _rows(tables, "teacher_evaluation")
    purposes: Sequence[Row] = []
    if calls is not None and calls.height:
        grouped = calls.group_by("purpose", "model").agg(pl.len().alias("n_calls"), pl.col("cost_usd").sum())
        purposes = grouped.sort("purpose", "model").to_dicts()
    if not purposes and not examined:
        return None
    columns = ("teacher", "verdict", "reason", "metric", "value", "n_rows", "n_answered", "cost_usd")
    return {
        "cost_usd": sum(row["cost_usd"] for row in purposes),
        "calls": list(purposes),
        "examined": {name: examined[0][name] for name in columns} if examined else None,
    }
