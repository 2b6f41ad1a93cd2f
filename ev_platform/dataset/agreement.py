"""What reviews come to: earlier ones with new ones, whose decision wins, and how far people agree.

What does not belong here: the files that people fill in (`review`), and what reviews change in the dataset
(`validate`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import polars as pl

from ev_platform.dataset.review import DECISIONS
from ev_platform.records import Review, to_frame


def merge_reviews(earlier: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """Return earlier reviews with new ones: of the same person on the same example the new one counts.

    A review that says what it said before keeps its time, so that importing a file twice changes nothing.
    """
    merged: dict[tuple[str, str], Review] = {}
    for row in (*earlier.iter_rows(named=True), *new.iter_rows(named=True)):
        review = Review(**row)
        key = (review.example_id, review.reviewer)
        before = merged.get(key)
        if before is None or _said(before) != _said(review):
            merged.pop(key, None)  # goes to the end, where the latest are
            merged[key] = review
    return to_frame("reviews", merged.values())


def _said(review: Review) -> tuple[Any, ...]:
    return review.decision, review.question, review.answer, review.comment


def winning_reviews(reviews: pl.DataFrame) -> pl.DataFrame:
    """Return one review for each example: the decision that most reviewers took; among equals, the latest review's.

    Of several reviews with that decision, the latest one gives the text. Of two at the same time the later row counts.
    """
    by_example: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in reviews.iter_rows(named=True):
        by_example[row["example_id"]].append(row)
    winners = []
    for rows in by_example.values():
        votes = Counter(row["decision"] for row in rows)
        most = [row for row in rows if votes[row["decision"]] == max(votes.values())]
        winners.append(Review(**max(enumerate(most), key=lambda item: (item[1]["reviewed_at"], item[0]))[1]))
    return to_frame("reviews", winners)


def agreement(reviews: pl.DataFrame, examples: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Measure what people say of the examples, and how far they agree with each other.

    Args:
        reviews: The `reviews` table.
        examples: What was judged, as `examples` and `qa_candidates` hold it.

    Returns:
        `by_kind`: of each kind and origin the number of judged examples and the shares that were accepted, edited and
        rejected, after the rule of `winning_reviews`; a last row for all of them. `between`: of each two reviewers with
        examples in common, how many, the share on which they decided alike, and Cohen's kappa (1960), None where it is
        undefined because both only ever took one and the same decision.
    """
    names = ("kind", "origin")
    judged = winning_reviews(reviews).join(examples.select("example_id", *names).unique("example_id"), on="example_id")
    shares = [
        (pl.col("decision") == decision).mean().alias(name)
        for decision, name in zip(DECISIONS, ("accepted", "edited", "rejected"), strict=True)
    ]
    by_kind = judged.group_by(names).agg(pl.len().cast(pl.Int64).alias("n"), *shares).sort(names)
    total = judged.select(
        pl.lit("all").alias("kind"), pl.lit("all").alias("origin"), pl.len().cast(pl.Int64).alias("n"), *shares
    ).head(1)
    return {"by_kind": pl.concat([by_kind, total]), "between": _between(reviews)}


def _between(reviews: pl.DataFrame) -> pl.DataFrame:
    from sklearn.metrics import cohen_kappa_score

    decisions: dict[str, dict[str, str]] = defaultdict(dict)
    for row in reviews.iter_rows(named=True):
        decisions[row["reviewer"]][row["example_id"]] = row["decision"]
    rows = []
    for one, other in combinations(sorted(decisions), 2):
        both = sorted(decisions[one].keys() & decisions[other].keys())
        if not both:
            continue
        first, second = [decisions[one][i] for i in both], [decisions[other][i] for i in both]
        alike = sum(a == b for a, b in zip(first, second, strict=True)) / len(both)
        kappa = float(cohen_kappa_score(first, second)) if len({*first, *second}) > 1 else None
        rows.append((one, other, len(both), alike, kappa))
    schema = {"reviewer": pl.String, "other": pl.String, "n": pl.Int64, "agreement": pl.Float64, "kappa": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")
