"""From a question to its prompt: passages, abstention, template, window; in evaluation and in serving the same code.

What does not belong here: completing the prompt (`batching`), and who may ask how much at once (`worker`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ev_platform.engine import CTranslate2Engine
from ev_platform.serving.exchange import Ask, Citation
from ev_platform.serving.schemas import ApiError

if TYPE_CHECKING:
    from ev_platform.registry import Release


@dataclass(frozen=True, slots=True)
class Prepared:
    """A question on its way to the engine.

    Attributes:
        prompt: None where the model abstains.
        citations: Passages in the prompt, best first; also where it abstains.
        similarity: See `exchange.Reply`.
        n_prompt_tokens: Length of the prompt; 0 where the model abstains.
        max_tokens: Longest answer.
        waited_ms: From its arrival to the begin of the search.
        retrieve_ms: Finding passages.
    """

    prompt: str | None
    citations: tuple[Citation, ...]
    similarity: float | None
    n_prompt_tokens: int
    max_tokens: int
    waited_ms: float
    retrieve_ms: float


def prepare(release: Release, ask: Ask, max_tokens: int, asked_at: float) -> Prepared:
    """Find the passages, and build the prompt. Blocks.

    Args:
        release: What answers.
        ask: The question.
        max_tokens: Longest answer.
        asked_at: When it arrived, by `time.perf_counter`.

    Raises:
        ApiError: If the question brings a passage that has no place in the prompt, brings none where there is nothing
            to search, asks for a sample that cannot be repeated, or does not fit the model's window.
    """
    started = time.perf_counter()
    if ask.context is not None and not release.has_retrieval:
        raise ApiError(400, "This model answers without passages: leave the context out.", "unsupported", "context")
    if ask.context is None and release.has_retrieval and release.retriever is None:
        raise ApiError(400, "There is nothing to search here: send the passage to answer from.", "missing", "context")
    if ask.seed is not None and ask.temperature > 0 and isinstance(release.engine, CTranslate2Engine):
        # It seeds each of its threads once, when that starts.
        message = "This model's engine cannot repeat a sample: leave the seed out, or ask with temperature 0."
        raise ApiError(400, message, "unsupported", "seed")
    found = release.look_up(ask.question, needs_passages=ask.context is None)
    retrieve_ms = (time.perf_counter() - started) * 1000
    citations: tuple[Citation, ...] = ()
    does_abstain = False
    if ask.context is not None:
        # As in evaluation: a question's own passage takes the place of all that would be found.
        messages = release.task_type.prompt(release.instructions, ask.question, [ask.context])
        prompt = release.engine.render(messages)
    else:
        citations = tuple(Citation(release.chunks[hit.chunk_id], hit.score) for hit in found.hits)
        does_abstain = release.abstains(found.hits)
        prompt = release.render(ask.question, found.hits)
    n_tokens, window = release.engine.count_tokens(prompt), release.engine.window
    if not does_abstain and n_tokens + max_tokens > window:
        raise ApiError(
            400,
            f"The prompt takes {n_tokens} tokens and the answer up to {max_tokens}, which exceeds the model's window "
            f"of {window}: ask a shorter question.",
            "context_length_exceeded",
        )
    waited_ms = (started - asked_at) * 1000
    return Prepared(
        prompt=None if does_abstain else prompt,
        citations=citations,
        similarity=found.similarity,
        n_prompt_tokens=0 if does_abstain else n_tokens,
        max_tokens=max_tokens,
        waited_ms=waited_ms,
        retrieve_ms=retrieve_ms,
    )
