"""What a teacher is asked about: which passages, how often, for which questions; and the log of what became of each.

Everything is chosen by hashes, of a passage's own words or of its place in its own document, and never by its number
in the corpus: a page that changes must not change what is asked, and paid for, about other pages. What does not belong
here: asking, and what is made of the replies (`generate`, `labelling`).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import polars as pl

from ev_platform.dataset.locate import find_shared
from ev_platform.identity import short_id
from ev_platform.prompting import passage_text
from ev_platform.records import Example, GenerationOutcome
from ev_platform.tasks.config import DatasetConfig
from ev_platform.teachers import UNANSWERABLE, GenerationJob, Outcome, QuestionPlan

Item = TypeVar("Item")


def text_id(text: str) -> str:
    """Return the id of an unlabelled text."""
    return short_id("txt", text)


@dataclass(frozen=True)
class Passage:
    """One chunk as something to ask about.

    Attributes:
        chunk: The row of `chunks`.
        place: What stays the same when the page around it changes.
    """

    chunk: dict[str, Any]
    place: str

    @property
    def source_id(self) -> str:
        """The chunk's id."""
        return self.chunk["chunk_id"]

    @property
    def words(self) -> str:
        """Headings and text, as a teacher reads them."""
        return passage_text(self.chunk["heading_path"], self.chunk["text"])


def list_passages(chunks: pl.DataFrame, documents: pl.DataFrame) -> list[Passage]:
    """Return the chunks as passages, in their order.

    The place of a chunk is its number in its document. Rows of a file are documents too, but a new row moves those
    behind it, so the place of their chunks is what they say.
    """
    urls = dict(documents.select("document_id", "url").iter_rows())
    found = []
    for chunk in chunks.iter_rows(named=True):
        url = urls.get(chunk["document_id"], chunk["document_id"])
        found.append(Passage(chunk, chunk["text"] if "#row=" in url else f"{url}#{chunk['ordinal']}"))
    return found


def in_seeded_order(items: Sequence[Item], keys: Sequence[str], seed: int) -> list[Item]:
    """Return items in the order of the hashes of their keys: new items fall between the others and move none."""
    hashes = [hashlib.sha256(f"{seed}:{key}".encode(errors="surrogatepass")).digest() for key in keys]
    return [items[number] for number in sorted(range(len(items)), key=lambda n: (hashes[n], n))]


def held_out(passages: Sequence[Passage], human: Sequence[Example]) -> dict[str, str]:
    """Return why passages may not be asked about, by their source_id."""
    tests = [example for example in human if example.split == "test"]
    rows_of = {example.cluster_id: example.row for example in reversed(tests) if example.cluster_id}
    why = {
        passage.source_id: f"its document, or a near-duplicate of it, holds the answer to {rows_of[cluster]}"
        for passage in passages
        if (cluster := passage.chunk["cluster_id"]) in rows_of
    }
    tested = [passage.chunk["text"] for passage in passages if passage.source_id in why]
    tested += [example.context for example in tests if example.context]
    others = [passage for passage in passages if passage.source_id not in why]
    shared = find_shared([passage.chunk["text"] for passage in others], tested)
    for n, (_, n_shared, count) in shared.items():
        why[others[n].source_id] = f"{n_shared} of its {count} word 5-grams stand in passages of test rows"
    return why


def plan_jobs(
    passages: Sequence[Passage],
    why_held_out: dict[str, str],
    config: DatasetConfig,
    unanswerable_fraction: float,
    teacher: str,
) -> tuple[list[GenerationJob], list[GenerationJob], dict[str, GenerationOutcome]]:
    """Choose what a teacher is asked to write.

    Every passage gets its share: questions are dealt out in rounds over all of them, so that a limit shortens each
    one's share and, where it is smaller than the corpus, leaves passages out here and there.

    Args:
        passages: All chunks.
        why_held_out: As `held_out` says.
        config: Limits, kinds and seed.
        unanswerable_fraction: Share of the questions whose passage is not to hold the answer.
        teacher: Its name, for the log.

    Returns:
        The jobs, in the order of the passages; spare ones for one question each, in the order in which they step in
        where passages give less than was hoped for; and by source_id, why the other passages get none.
    """
    log: dict[str, GenerationOutcome] = {}
    distinct: dict[str, Passage] = {}  # by its words, in the order of sampling
    for passage in in_seeded_order(passages, [passage.place for passage in passages], config.seed):
        source_id = passage.source_id
        if source_id in why_held_out:
            log[source_id] = not_asked(teacher, source_id, "held_out", why_held_out[source_id])
        elif (first := distinct.setdefault(passage.words, passage)) is not passage:
            log[source_id] = not_asked(teacher, source_id, "not_sampled", f"its words are those of {first.source_id}")
    n_wanted = min(config.max_examples, len(distinct) * config.max_per_chunk)
    each, n_more = divmod(n_wanted, max(1, len(distinct)))
    jobs: dict[str, GenerationJob] = {}
    for rank, passage in enumerate(distinct.values()):
        plans = plan_questions(passage.words, max(1, each + (rank < n_more)), config, unanswerable_fraction)
        heading_path, text = passage.chunk["heading_path"], passage.chunk["text"]
        jobs[passage.source_id] = GenerationJob(passage.source_id, heading_path, text, plans, config.topics)
    spare = list(jobs.values())[n_wanted:]
    out = {job.source_id for job in spare}
    return [jobs[i] for passage in passages if (i := passage.source_id) in jobs and i not in out], spare, log


def plan_questions(
    passage: str, n_plans: int, config: DatasetConfig, unanswerable_fraction: float
) -> tuple[QuestionPlan, ...]:
    """Return the questions that are wanted about a passage; a larger number of them begins with the same ones.

    Kinds, difficulties and registers come in turn, from where the hash of the passage says, so that over a corpus all
    of them occur about equally often. Of n questions about n times the fraction are unanswerable, rounded up or down.
    """
    kinds = list(config.kinds)
    random.Random(config.seed).shuffle(kinds)  # noqa: S311 - sampling, not secrets
    digest = hashlib.sha256(f"{config.seed}:{passage}".encode(errors="surrogatepass")).digest()
    kind, difficulty, register, phase = (int.from_bytes(digest[at : at + 6], "big") for at in (0, 6, 12, 18))
    # A line of this slope, begun at a random height, crosses so many whole numbers: systematic sampling.
    heights = [math.floor(phase / 2**48 + number * unanswerable_fraction) for number in range(n_plans + 1)]
    plans: list[QuestionPlan] = []
    n_unanswerable = 0
    for number, (before, after) in enumerate(pairwise(heights)):
        is_unanswerable = after > before
        plans.append(
            QuestionPlan(
                kind=UNANSWERABLE if is_unanswerable else kinds[(kind + number - n_unanswerable) % len(kinds)],
                difficulty=config.difficulties[(difficulty + number) % len(config.difficulties)],
                register=config.registers[(register + number) % len(config.registers)],
            )
        )
        n_unanswerable += is_unanswerable
    return tuple(plans)


def not_asked(teacher: str, source_id: str, status: str, detail: str) -> GenerationOutcome:
    """Return the log's row of a source that a teacher was not asked about."""
    return GenerationOutcome(source_id, status, detail, 0, 0, teacher, None, 0.0)


def was_asked(
    teacher: str, outcome: Outcome[Any], n_asked: int, n_made: int, why_unused: str | None = None
) -> GenerationOutcome:
    """Return the log's row of a source that a teacher was asked about.

    Args:
        teacher: Its name.
        outcome: Of the job.
        n_asked: Questions or labels that were wanted.
        n_made: Candidates that came of it.
        why_unused: Why there are none, although the teacher gave something.
    """
    status, detail = outcome.status, outcome.detail
    if status == "ok" and not n_made:
        status, detail = ("not_sampled", why_unused) if why_unused else ("nothing_found", detail)
    return GenerationOutcome(
        outcome.source_id, status, detail, n_asked, n_made, teacher, outcome.call_id, outcome.cost_usd
    )
