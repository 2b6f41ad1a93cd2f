"""Teachers: who writes questions, labels texts, answers test rows, and judges and checks what others wrote.

Here are the words that every teacher shares. `offline` needs no key; `language_model` asks any model that a `Client`
reaches (`anthropic`, `openai_compatible`, `recorded`) through `ask`, which keeps the ledger, the cap and the replies.
What does not belong here: which chunks are asked about (`dataset.generate`) and what is kept (`dataset.validate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

Value = TypeVar("Value")

# How one job can end. All but "ok" leave its `value` empty and its `detail` filled.
STATUSES = (
    "ok",
    "refused",  # the model declined
    "truncated",  # the reply hit its length limit
    "invalid",  # the reply does not fit its schema
    "failed",  # the provider failed, also after retries
    "over_budget",  # asking might have passed the cap; it was not asked
    "interrupted",  # a run was killed while it was under way; asked again only on request, since it may be paid
    "unsupported",  # this teacher cannot do that
)
UNANSWERABLE = "unanswerable"  # the kind of a question whose passage does not hold the answer


@dataclass(frozen=True, slots=True)
class Shot:
    """A hand-written train row, shown as an example of what is wanted."""

    question: str
    answer: str
    context: str | None = None


@dataclass(frozen=True, slots=True)
class Brief:
    """What a teacher knows of the task.

    Attributes:
        description: The task in words.
        task_type: Name of the task type.
        classes: Label to its description; empty where there are no classes.
        no_answer: What is answered where a passage does not hold the answer.
        language: ISO 639-1; questions and answers are in it.
        shots: Hand-written train rows.
        answer_rule: What form an answer has, in a sentence; the task type's.
        max_question_words: Of a generated question.
        max_answer_words: Of any answer.
    """

    description: str
    task_type: str
    classes: dict[str, str] = field(default_factory=dict)
    no_answer: str = "The passages do not say."
    language: str = "en"
    shots: tuple[Shot, ...] = ()
    answer_rule: str = ""
    max_question_words: int = 40
    max_answer_words: int = 60


@dataclass(frozen=True, slots=True)
class QuestionPlan:
    """One question that is wanted.

    Attributes:
        kind: Such as `definition`, `number`, `comparison`, `procedure`, `yes_no`, `reason` or `unanswerable`.
        difficulty: Such as `easy`.
        register: In whose words, such as `driver`.
    """

    kind: str
    difficulty: str
    register: str


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """Questions wanted about one passage.

    Attributes:
        source_id: The chunk.
        heading_path: `Title > Section`.
        text: The passage.
        plans: One for each question; a teacher may return fewer, or of other kinds, where the passage gives no such.
        topics: What questions should prefer, if the passage is about it.
    """

    source_id: str
    heading_path: str
    text: str
    plans: tuple[QuestionPlan, ...]
    topics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """One generated question."""

    question: str
    answer: str
    kind: str
    difficulty: str | None = None
    register: str | None = None
    evidence: str | None = None
    is_answerable: bool = True


@dataclass(frozen=True, slots=True)
class TextJob:
    """One text to label."""

    source_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Label:
    """One label, and how sure the teacher is of it, 0 to 1."""

    label: str
    confidence: float


@dataclass(frozen=True, slots=True)
class AnswerJob:
    """One test question; `contexts` are the passages to answer from."""

    source_id: str
    question: str
    contexts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgeJob:
    """One answer to judge against its reference."""

    source_id: str
    question: str
    reference: str
    prediction: str
    contexts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """A score from 0 to 1, and why."""

    score: float
    reason: str


@dataclass(frozen=True, slots=True)
class PairJob:
    """Two answers to one question, to say which is better; `contexts` are what the reference rests on."""

    source_id: str
    question: str
    reference: str
    first: str
    second: str
    contexts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """Which of two answers is better, and why."""

    better: Literal["first", "second", "tie"]
    reason: str


@dataclass(frozen=True, slots=True)
class CheckJob:
    """One candidate to check with its source in front."""

    source_id: str  # example_id
    passage: str
    question: str
    answer: str
    is_answerable: bool = True


@dataclass(frozen=True, slots=True)
class Check:
    """What a teacher says of a candidate."""

    is_supported: bool  # the passage says so; of an unanswerable question: the passage does not answer it
    is_self_contained: bool  # the question is understood without the passage
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Value]):
    """How one job ended.

    Attributes:
        source_id: The job's.
        status: One of `STATUSES`.
        value: There with status "ok" only.
        detail: What went wrong, in words.
        call_id: Of the ledger; None where nothing was paid.
        cost_usd: Of the call, also where its reply was of no use; 0 for an offline teacher. The same for a stored
            reply: it is what the row cost when it was paid for.
        prompt_version: Of the template that asked.
    """

    source_id: str
    status: str
    value: Value | None = None
    detail: str | None = None
    call_id: str | None = None
    cost_usd: float = 0.0
    prompt_version: str | None = None


class Teacher(Protocol):
    """Every method yields one outcome a job, in the order of the jobs, and raises only for what no job can cure."""

    name: str

    def generate(self, brief: Brief, jobs: Sequence[GenerationJob]) -> Iterator[Outcome[tuple[Draft, ...]]]:
        """Write questions with answers."""
        ...

    def label(self, brief: Brief, jobs: Sequence[TextJob]) -> Iterator[Outcome[Label]]:
        """Label texts with one of the brief's classes."""
        ...

    def answer(self, brief: Brief, jobs: Sequence[AnswerJob]) -> Iterator[Outcome[str]]:
        """Answer test questions."""
        ...

    def judge(self, brief: Brief, jobs: Sequence[JudgeJob]) -> Iterator[Outcome[Judgement]]:
        """Judge answers against their references."""
        ...

    def compare(self, brief: Brief, jobs: Sequence[PairJob]) -> Iterator[Outcome[Preference]]:
        """Say which of two answers is better; models prefer a place, so ask in both orders."""
        ...

    def check(self, brief: Brief, jobs: Sequence[CheckJob]) -> Iterator[Outcome[Check]]:
        """Check candidates with their source in front."""
        ...
