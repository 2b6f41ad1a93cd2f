"""What travels between the gateway, which speaks HTTP, and the replicas, which hold the models.

Plain frozen dataclasses, so that they cross processes, and the one protocol that the HTTP application is written
against: in front of Ray it is `app`, in one process `worker`.

What does not belong here: HTTP (`api`), Ray (`app`), answering (`worker`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ev_platform.registry import SourceChunk


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to one model.

    Attributes:
        request_id: Names it in logs.
        question: The user's message: a question, or a text to label.
        context: Passage that the question brings along; None where passages are retrieved, or none are needed.
        max_tokens: Longest answer; None is the evaluated length.
        temperature: 0 is greedy.
        seed: For a temperature above 0; None where any sample will do.
        stop: Texts that end the answer before they are written.
        version: The version that was asked for by name; a replica that holds another one refuses with 404.
    """

    request_id: str
    question: str
    context: str | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that the model was given.

    Attributes:
        chunk: What it says, and where it comes from.
        score: Cosine of question and passage, -1 to 1.
    """

    chunk: SourceChunk
    score: float


@dataclass(frozen=True, slots=True)
class Found:
    """First event of a streamed answer: what it will be made from.

    Attributes:
        n_prompt_tokens: 0 where nothing will be generated.
    """

    model_version: str
    citations: tuple[Citation, ...]
    n_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """Next piece of a streamed answer; the pieces joined are the answer's text, but for white space at its ends."""

    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer; last event of a streamed one.

    Attributes:
        text: The answer; the task's sentence for "no answer" where the model abstains.
        finish_reason: `stop` or `length`; `cancelled` of what a client had of a stream that it left, or that broke.
        model_version: What answered.
        citations: What it was given, best first; also where it abstains.
        n_prompt_tokens: 0 where nothing was generated.
        n_completion_tokens: 0 where nothing was generated.
        is_abstention: Its text is the task's sentence for "no answer": no passage was near enough to the question, so
            that nothing was generated, or the model itself says that the passages do not hold the answer.
        similarity: Cosine of the question and the nearest question that the model was trained on; None where there is
            none to compare with.
        label: Of a classification task; None elsewhere, and where the text is none of the labels.
        queue_ms: From its arrival at the replica until its turn.
        retrieve_ms: Finding passages.
        first_token_ms: From its turn to the first token; None where nobody looked.
        generate_ms: From its turn to the last token.
        batch_size: Prompts that were completed together with it, itself counted; 0 where nothing was generated.
    """

    text: str
    finish_reason: str
    model_version: str
    citations: tuple[Citation, ...] = ()
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0
    is_abstention: bool = False
    similarity: float | None = None
    label: str | None = None
    queue_ms: float = 0.0
    retrieve_ms: float = 0.0
    first_token_ms: float | None = None
    generate_ms: float = 0.0
    batch_size: int = 0


@dataclass(frozen=True, slots=True)
class Described:
    """What a replica serves now.

    Attributes:
        model: Name under which it is asked for, such as `ev_charging` or `ev_charging@candidate`.
        model_version: Such as `ev_charging@3`.
        task: Task.
        task_type: Name of the task type.
        labels: Of a classification task; empty elsewhere.
        max_new_tokens: Longest answer, as evaluated.
        window: Tokens of prompt and answer together.
        loaded_at: Unix seconds.
        waiting: Questions that wait for their turn.
    """

    model: str
    model_version: str
    task: str
    task_type: str
    labels: tuple[str, ...]
    max_new_tokens: int
    window: int
    loaded_at: int
    waiting: int


class Backend(Protocol):
    """The models that one HTTP application answers with.

    A refusal is a `schemas.ApiError`, whichever process it arose in. An awaitable that is cancelled, or an iterator
    that is closed, stops the generation.

    Attributes:
        models: Names under which they are asked for, the one for requests that name none first.
    """

    models: Sequence[str]

    async def describe(self, model: str) -> Described:
        """Say what stands behind a name now."""
        ...

    async def answer(self, model: str, ask: Ask) -> Reply:
        """Answer."""
        ...

    def stream(self, model: str, ask: Ask) -> AsyncIterator[Found | Delta | Reply]:
        """Answer piece by piece: one `Found`, any number of `Delta`, one `Reply`."""
        ...
