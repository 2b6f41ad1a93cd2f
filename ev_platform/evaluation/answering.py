"""What every evaluated system has in common: the rows it is asked, the passages it is given, what it answers.

What does not belong here: the systems themselves (`systems`, `floors`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ev_platform.prompting import passage_text
from ev_platform.retrieval import Retriever, best_score, is_too_far

Row = Mapping[str, Any]  # of the table `benchmark`


@dataclass(frozen=True, slots=True)
class Passage:
    """What a system may answer from.

    Attributes:
        chunk_id: None of a row's own context.
        text: Without headings.
        shown: As it stands in a prompt.
    """

    chunk_id: str | None
    text: str
    shown: str

    @classmethod
    def of(cls, chunk_id: str, heading_path: str, text: str) -> Passage:
        """Return the passage of a chunk."""
        return cls(chunk_id, text, passage_text(heading_path, text))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system answers to one row.

    Attributes:
        text: The answer.
        passages: What it was given to answer from.
        n_prompt_tokens: None where it reads none, or nobody knows.
        n_completion_tokens: None where it writes none, or nobody knows.
        latency_ms: None where nobody knows.
        is_refusal: Whether no passage was near enough, so that nothing was generated.
    """

    text: str
    passages: tuple[Passage, ...] = ()
    n_prompt_tokens: int | None = None
    n_completion_tokens: int | None = None
    latency_ms: float | None = None
    is_refusal: bool = False


class System(Protocol):
    """Answers rows of the benchmark.

    Attributes:
        name: As `statistics.SYSTEMS` has it.
        model_id: Which model, or which rule, it is.
        takes_turns: Whether its speed is compared, so that it is asked in turn with the others, row by row.
    """

    name: str
    model_id: str
    takes_turns: bool

    def answer(self, batch: Sequence[Row]) -> list[Answer]:
        """Return an answer to each row, in order."""
        ...


class Search:
    """What a retriever finds for the questions of a benchmark.

    They are looked up all at once, before any is answered: embedding them one by one takes several times as long.

    Args:
        retriever: Searches the passages; None where every row brings its own.
        passages: By chunk_id.
        top_k: Passages for a question.
        rows: Of the benchmark; those with a context of their own need no search.
        min_score: Cosine of a question and its nearest passage below which there is no answer; None: there always is.
    """

    def __init__(
        self,
        retriever: Retriever | None,
        passages: Mapping[str, Passage],
        top_k: int,
        rows: Sequence[Row],
        min_score: float | None = None,
    ):
        asked = list(dict.fromkeys(row["question"] for row in rows if not row["context"]))
        hits = retriever.search(asked, top_k) if retriever is not None else [[] for _ in asked]
        self._found = {
            question: tuple(passages[hit.chunk_id] for hit in best) for question, best in zip(asked, hits, strict=True)
        }
        is_searched = retriever is not None
        self._too_far = {
            question
            for question, best in zip(asked, hits, strict=True)
            if is_searched and is_too_far(best_score(best), min_score)
        }

    def __call__(self, row: Row) -> tuple[Passage, ...]:
        """Return the passages of a row, best first: its own context where it has one."""
        if row["context"]:
            return (Passage(None, row["context"], row["context"]),)
        return self._found[row["question"]]

    def is_too_far(self, row: Row) -> bool:
        """Return whether no passage is near enough to answer a row from; its own context always is."""
        return not row["context"] and row["question"] in self._too_far
