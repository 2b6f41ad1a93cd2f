"""What a language model replies: the form of each reply, and what is read from it.

Fields stand in the order in which a model should think: evidence before the question, reasons before a score. What
does not belong here: asking for them (`language_model`).
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal

from pydantic import BaseModel, WithJsonSchema, create_model

from ev_platform.teachers import UNANSWERABLE, Brief, Draft, GenerationJob, Label

# What the kinds of `dataset.kinds` mean; a kind of a task's own means what its name says.
KINDS = {
    "definition": "what something is, or what a term means",
    "number": "an amount, a limit, a date or a count, with its unit",
    "comparison": "how two named things differ, or which of them is more of something",
    "procedure": "how something is done, or which step comes when",
    "reason": "why something is so, or what it is for",
    "yes_no": "answered by yes or no, and after that by the fact that decides it in a few words",
    "requirement": "what must be so, who must do it, or under which condition it holds",
    UNANSWERABLE: "see below",
}
CERTAINTIES = {"certain": 1.0, "likely": 0.75, "unsure": 0.4, "none_fits": 0.1}


class WrittenQuestion(BaseModel):
    """One question of a reply to `generate`."""

    plan: int
    kind: str
    evidence: str
    question: str
    answer: str


class GenerateReply(BaseModel):
    """Reply to `generate`."""

    questions: list[WrittenQuestion]


class LabelReply(BaseModel):
    """Reply to `label`."""

    reason: str
    label: str
    certainty: Literal["certain", "likely", "unsure", "none_fits"]


class AnswerReply(BaseModel):
    """Reply to `answer`."""

    answer: str


class JudgeReply(BaseModel):
    """Reply to `judge`; the prompt names what each score means."""

    reasoning: str
    score: Literal[0, 1, 2, 3, 4]


class CompareReply(BaseModel):
    """Reply to `compare`."""

    reasoning: str
    better: Literal["first", "second", "tie"]


class CheckReply(BaseModel):
    """Reply to `check`."""

    reason: str
    is_supported: bool
    is_self_contained: bool


REPLIES: dict[str, type[BaseModel]] = {
    "generate": GenerateReply,
    "label": LabelReply,
    "answer": AnswerReply,
    "judge": JudgeReply,
    "compare": CompareReply,
    "check": CheckReply,
}


@cache
def label_reply(classes: tuple[str, ...]) -> type[BaseModel]:
    """Return `LabelReply` with the classes in its JSON schema, for providers that decode by it.

    The type stays a string: a reply that strays is told by the label in it and not by a list of all classes.
    """
    name = Annotated[str, WithJsonSchema({"type": "string", "enum": list(classes)})]
    return create_model("LabelReply", __base__=LabelReply, label=(name, ...))


def read_drafts(brief: Brief, job: GenerationJob, reply: GenerateReply) -> tuple[tuple[Draft, ...], str | None]:
    """Return the questions that fit their plans, in the plans' order, and a remark on those that do not."""
    drafts: dict[int, Draft] = {}
    for written in reply.questions:
        question, answer = written.question.strip(), written.answer.strip()
        if not 1 <= written.plan <= len(job.plans) or written.plan in drafts or not question:
            continue
        plan = job.plans[written.plan - 1]
        is_answerable = plan.kind != UNANSWERABLE
        if is_answerable and (written.kind == UNANSWERABLE or not answer):
            continue
        if not is_answerable and written.kind != UNANSWERABLE:
            continue
        drafts[written.plan] = Draft(
            question=question,
            answer=answer if is_answerable else brief.no_answer,
            kind=written.kind if written.kind in KINDS else plan.kind,
            difficulty=plan.difficulty,
            register=plan.register,
            evidence=(written.evidence.strip() or None) if is_answerable else None,
            is_answerable=is_answerable,
        )
    n_left = len(reply.questions) - len(drafts)
    remark = f"{n_left} of {len(reply.questions)} questions of the reply do not fit a plan" if n_left else None
    return tuple(drafts[number] for number in sorted(drafts)), remark


def read_label(brief: Brief, reply: LabelReply) -> Label:
    """Return the label; names of classes are met without regard to case and blanks, as models write them.

    Raises:
        ValueError: If the brief has no such class.
    """
    known = {" ".join(label.casefold().split()): label for label in brief.classes}
    label = known.get(" ".join(reply.label.casefold().split()))
    if label is None:
        raise ValueError(f"the label {reply.label[:100]!r} is none of the task's {len(brief.classes)} classes")
    return Label(label, CERTAINTIES[reply.certainty])
