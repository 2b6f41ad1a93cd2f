"""Whether people ask what a version was trained on: the questions that it was served against those it was tested with.

The figure of a question is its similarity: the cosine to the nearest question that the version was trained on. It is in
the request log also where texts are not. Were the served questions as familiar as those of the benchmark and the
validation rows, their distribution would nowhere lie below (one-sided Kolmogorov-Smirnov test), also where many of them
are more familiar than any of the test's. Cliff's delta says which of the two is the more familiar on the whole.

What does not belong here: logging (`observe`), and how good the answers are (`evaluation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ev_platform.records import QuestionDrift, to_frame
from ev_platform.registry.similarity import trained_vectors
from ev_platform.retrieval import embed_once
from ev_platform.serving.journal import read_journal
from ev_platform.serving.segments import Segments, day_of
from ev_platform.storage import Store
from ev_platform.tasks.splitting import spread_evenly

WINDOW_DAYS = 30
# Below so many questions the test finds only what anybody sees.
MIN_QUESTIONS = 20
MAX_P_VALUE = 0.01
# With thousands of questions any difference is significant; one of a fifth of the questions is worth a person's look.
MIN_KS = 0.2
MAX_REFERENCE = 2_000
MAX_SHOWN = 20
FAMILIAR_PERCENTILE = 5
# A question that was itself trained on says nothing of how near an untrained one comes.
TRAINED_ON = 0.9999

Row = Mapping[str, Any]


def recent_requests(data_root: Path, task: str, days: int) -> pl.DataFrame:
    """Return the answered requests of a task's last days, oldest first, without their texts.

    Days are counted back from the last one on which anything was logged, so that a time without requests changes
    nothing.

    Args:
        data_root: Data folder.
        task: Whose requests.
        days: How many days, UTC.
    """
    segments = Segments(data_root, "requests")
    logged = [*segments.days(), *(day_of(file.stem) for file in segments.journals())]
    since = datetime.combine(max(logged) - timedelta(days=days - 1), time(), UTC) if logged else None
    answered = (pl.col("task") == task) & (pl.col("status") == 200) & pl.col("model_version").is_not_null()
    columns = ("request_id", "asked_at", "model_version", "question_hash", "is_abstention", "similarity")
    return read_journal(data_root, "requests", since, lambda rows: rows.filter(answered).select(columns))


def reference_similarities(store: Store, task: str, version: str, questions: Sequence[str]) -> np.ndarray | None:
    """Return the similarities of questions that nobody trained on; None where the version has none to compare with.

    Args:
        store: Where the version's training rows lie.
        task: Partition.
        version: Such as `ev_charging@3`.
        questions: Of the benchmark and the validation rows; of more than `MAX_REFERENCE`, so many spread evenly.
    """
    found = store.read("registered_model", task).filter(pl.col("model_version") == version)
    known = trained_vectors(store, task, found.to_dicts()[0]) if found.height else None
    if known is None or not questions:
        return None
    similarities = (embed_once(spread_evenly(questions, MAX_REFERENCE)) @ known.T).max(axis=1)
    untrained = similarities[similarities < TRAINED_ON]
    return untrained if len(untrained) else None


def measure_drift(requests: pl.DataFrame, references: Mapping[str, np.ndarray | None]) -> pl.DataFrame:
    """Compare the questions of each version with its reference.

    A question that was asked often counts once: a page that asks the same every minute is no drift.

    Args:
        requests: As `recent_requests` returns them.
        references: Similarities to compare with, by version.

    Returns:
        The table `question_drift`, the version that was asked last at the end.
    """
    rows = []
    for (version,), own in requests.group_by("model_version", maintain_order=True):
        distinct = own.unique("question_hash", keep="last", maintain_order=True)
        similarities = distinct["similarity"].drop_nulls().to_numpy()
        reference = references.get(str(version))
        compared = compare(similarities, reference) if reference is not None and len(similarities) else {}
        n_abstained = int(own["is_abstention"].sum() or 0)
        rows.append(
            QuestionDrift(
                model_version=str(version),
                first_at=own["asked_at"][0],
                last_at=own["asked_at"][-1],
                n_requests=own.height,
                n_questions=distinct.height,
                n_abstained=n_abstained,
                abstention_share=n_abstained / own.height,
                n_reference=len(reference) if reference is not None else 0,
                similarity_p50=float(np.median(similarities)) if len(similarities) else None,
                reference_p50=float(np.median(reference)) if reference is not None else None,
                ks=compared.get("ks"),
                p_value=compared.get("p_value"),
                cliffs_delta=compared.get("cliffs_delta"),
                unfamiliar_share=compared.get("unfamiliar_share"),
                percentiles=_percentiles(similarities),
                reference_percentiles=_percentiles(reference),
            )
        )
    return to_frame("question_drift", sorted(rows, key=lambda row: row.last_at))


def compare(served: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return how two samples of similarities differ, as columns of `question_drift`."""
    from scipy.stats import ks_2samp, mannwhitneyu

    # That the served ones' distribution function is nowhere the greater one. The exact p value of thousands of
    # questions cannot be had; the asymptotic one is as good from 20 on.
    test: Any = ks_2samp(served, reference, alternative="greater", method="asymp")
    n_above = float(mannwhitneyu(served, reference).statistic)  # pairs in which the served one is larger; ties by half
    return {
        "ks": float(test.statistic),
        "p_value": float(test.pvalue),
        "cliffs_delta": 2 * n_above / (len(served) * len(reference)) - 1,
        "unfamiliar_share": float((served < np.percentile(reference, FAMILIAR_PERCENTILE)).mean()),
    }


def judge(row: Row) -> tuple[bool, str]:
    """Return whether a version is asked what it was trained for, and a sentence about it.

    Args:
        row: Of `question_drift`.
    """
    told = f"{row['model_version']}: {row['n_questions']} questions"
    if row["ks"] is None:
        return True, f"{told}, and none that they could be compared with."
    if row["n_questions"] < MIN_QUESTIONS:
        return True, f"{told}; {MIN_QUESTIONS} are needed to compare them."
    figures = f"Kolmogorov-Smirnov {row['ks']:.2f}, p = {row['p_value']:.2g}, Cliff's delta {row['cliffs_delta']:+.2f}"
    share = f"{row['unfamiliar_share']:.0%} of them are less familiar than {100 - FAMILIAR_PERCENTILE} % of the test's"
    if row["p_value"] >= MAX_P_VALUE or row["ks"] < MIN_KS:
        return True, f"{told}; {share} ({figures})."
    return False, f"{told}; {share} ({figures}): add sources or rows for the questions that question_drift names."


def least_familiar(requests: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the newest version's questions that are least like anything it was trained on.

    Args:
        requests: As `recent_requests` returns them.

    Returns:
        At most `MAX_SHOWN` rows: `similarity`, `request_id`, `asked_at`, `is_abstention`. Their text stays in the log,
        which forgets it in time.
    """
    if requests.is_empty():
        return []
    newest = requests.filter(pl.col("model_version") == pl.col("model_version").last()).drop_nulls("similarity")
    distinct = newest.unique("question_hash", keep="last", maintain_order=True).sort("similarity", "request_id")
    return distinct.head(MAX_SHOWN).select("similarity", "request_id", "asked_at", "is_abstention").to_dicts()


def drift_image(row: Row) -> str:
    """Return the two distributions of a row of `question_drift` as a Markdown image; nothing where one is missing."""
    from ev_platform.pages import AMBER, BLUE, INK, MUTED, markdown_image, new_axes

    if not (row["percentiles"] and row["reference_percentiles"]):
        return ""
    figure, axes = new_axes(2.4)
    names = (("percentiles", AMBER, "served"), ("reference_percentiles", BLUE, "benchmark and validation"))
    for column, colour, name in names:
        axes.plot(row[column], [n / 100 for n in range(101)], color=colour, linewidth=2, label=name)
    axes.set_xlabel("cosine to the nearest question trained on", fontsize=9, color=MUTED)
    axes.set_ylabel("share of questions below", fontsize=9, color=MUTED)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10, labelcolor=INK)
    return markdown_image(figure, "familiarity of the questions")


def _percentiles(similarities: np.ndarray | None) -> list[float]:
    if similarities is None or not len(similarities):
        return []
    return np.percentile(similarities, range(101)).tolist()
