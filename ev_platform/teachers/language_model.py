"""The teacher that asks a language model: its prompts and its calls.

The wording is data, in `prompts/*.md` (Jinja2, one block for the system part and one for the user part). What does not
belong here: the form of replies (`replies`), how calls are sent, paid, kept and capped (`ask`), and which passages are
asked about (`dataset.sampling`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from ev_platform.prompting import passage_text
from ev_platform.tasks.config import Price, TeacherConfig
from ev_platform.teachers import (
    AnswerJob,
    Brief,
    Check,
    CheckJob,
    Draft,
    GenerationJob,
    JudgeJob,
    Judgement,
    Label,
    Outcome,
    PairJob,
    Preference,
    TextJob,
)
from ev_platform.teachers.ask import Answered, Budget, Ledger, ask
from ev_platform.teachers.calls import Call, Client, shape_of
from ev_platform.teachers.replies import KINDS, REPLIES, label_reply, read_drafts, read_label

PROMPTS = Path(__file__).parent / "prompts"
Value = TypeVar("Value")


# ---- prompts ----


def fence(text: str, name: str) -> str:
    """Put data between marks that it cannot hold: they carry 64 bits of the data's own hash."""
    mark = f"{name}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:16]}"
    return f"<{mark}>\n{text}\n</{mark}>"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PROMPTS),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - prompts are no HTML, and evidence must be quoted letter by letter
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data"] = fence
    return environment


@cache
def prompt_version(purpose: str) -> str:
    """Hash the template of a purpose, the rule on data that each one includes, and the form of the reply."""
    parts = [(PROMPTS / f"{name}.md").read_text(encoding="utf-8") for name in (purpose, "data_rule")]
    parts.append(shape_of(REPLIES[purpose]))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _render(purpose: str, part: str, **values: Any) -> str:
    template = _environment().get_template(f"{purpose}.md")
    return "".join(template.blocks[part](template.new_context(values))).strip()


class LanguageModelTeacher:
    """A teacher behind a `Client`.

    Args:
        client: Reaches the model.
        ledger: Keeps the calls, what they cost, and their replies.
        config: The model, and how it is asked.
        price: Of the model.
        budget: What may be spent.
    """

    def __init__(self, client: Client, ledger: Ledger, config: TeacherConfig, price: Price, budget: Budget):
        self._client, self._ledger, self._config, self._price, self._budget = client, ledger, config, price, budget
        self._model = config.model or client.provider
        self._source: str = getattr(client, "source", "")
        self.name = f"{client.provider}:{self._model}"

    # ---- what a teacher does ----

    def generate(self, brief: Brief, jobs: Sequence[GenerationJob]) -> Iterator[Outcome[tuple[Draft, ...]]]:
        """Write questions with answers; jobs with the same passage and plans share one call."""
        calls = self._generation_calls(brief, jobs)
        return self._outcomes("generate", jobs, calls, lambda job, reply: read_drafts(brief, job, reply))

    def plan_generation(self, brief: Brief, jobs: Sequence[GenerationJob]) -> list[Call]:
        """Return the calls that `generate` would make of these jobs, each once, for an estimate."""
        return list({call.call_id: call for call in self._generation_calls(brief, jobs)}.values())

    def label(self, brief: Brief, jobs: Sequence[TextJob]) -> Iterator[Outcome[Label]]:
        """Label texts with one of the brief's classes."""
        calls = self._label_calls(brief, [job.text for job in jobs])
        return self._outcomes("label", jobs, calls, lambda _, reply: (read_label(brief, reply), None))

    def plan_labels(self, brief: Brief, jobs: Sequence[TextJob]) -> list[Call]:
        """Return the calls that `label` would make of these jobs, each once, for an estimate."""
        calls = self._label_calls(brief, [job.text for job in jobs])
        return list({call.call_id: call for call in calls}.values())

    def answer(self, brief: Brief, jobs: Sequence[AnswerJob]) -> Iterator[Outcome[str]]:
        """Answer test questions; where there are classes, by the very prompt that will label."""
        if brief.classes:
            calls = self._label_calls(brief, [job.question for job in jobs])
            return self._outcomes("label", jobs, calls, lambda _, reply: (read_label(brief, reply).label, None))
        calls = self._calls("answer", brief, jobs)
        return self._outcomes("answer", jobs, calls, lambda _, reply: (reply.answer.strip(), None))

    def judge(self, brief: Brief, jobs: Sequence[JudgeJob]) -> Iterator[Outcome[Judgement]]:
        """Judge answers against their references: the prompt's scale of 0 to 4, as 0 to 1."""
        calls = self._calls("judge", brief, jobs)
        return self._outcomes("judge", jobs, calls, lambda _, r: (Judgement(r.score / 4, r.reasoning.strip()), None))

    def compare(self, brief: Brief, jobs: Sequence[PairJob]) -> Iterator[Outcome[Preference]]:
        """Say which of two answers is better."""
        calls = self._calls("compare", brief, jobs)
        return self._outcomes("compare", jobs, calls, lambda _, r: (Preference(r.better, r.reasoning.strip()), None))

    def check(self, brief: Brief, jobs: Sequence[CheckJob]) -> Iterator[Outcome[Check]]:
        """Check candidates with their source in front."""
        calls = self._calls("check", brief, jobs)
        return self._outcomes(
            "check", jobs, calls, lambda _, r: (Check(r.is_supported, r.is_self_contained, r.reason.strip()), None)
        )

    # ---- calls ----

    # Calls are made as they are asked for: the prompts of a large corpus need not be held all at once.

    def _calls(self, purpose: str, brief: Brief, jobs: Sequence[Any]) -> Iterator[Call]:
        """Yield the call of each job; its fields are what the purpose's prompt is filled with."""
        system = _render(purpose, "system", brief=brief)
        for job in jobs:
            values = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
            yield self._call(purpose, system, _render(purpose, "user", **values))

    def _generation_calls(self, brief: Brief, jobs: Sequence[GenerationJob]) -> Iterator[Call]:
        system = _render("generate", "system", brief=brief, kinds=KINDS)
        for job in jobs:
            # Headings come from the same page as the text, so they are data too.
            passage = passage_text(job.heading_path, job.text)
            prompt = _render("generate", "user", passage=passage, plans=job.plans, topics=job.topics)
            yield self._call("generate", system, prompt)

    def _label_calls(self, brief: Brief, texts: Iterable[str]) -> Iterator[Call]:
        system = _render("label", "system", brief=brief)
        schema = label_reply(tuple(brief.classes))
        for text in texts:
            yield self._call("label", system, _render("label", "user", text=text), schema)

    def _call(self, purpose: str, system: str, prompt: str, schema: type[BaseModel] | None = None) -> Call:
        return Call(
            purpose=purpose,
            model=self._model,
            prompt_version=prompt_version(purpose),
            system=system,
            prompt=prompt,
            schema=schema or REPLIES[purpose],
            max_tokens=self._config.max_tokens,
            source=self._source,
        )

    def _outcomes(
        self,
        purpose: str,
        jobs: Sequence[Any],
        calls: Iterable[Call],
        read: Callable[[Any, Any], tuple[Value, str | None]],
    ) -> Iterator[Outcome[Value]]:
        """Yield an outcome for each job, in their order; equal calls are asked once.

        Args:
            purpose: Of the calls, for the progress bar.
            jobs: What is wanted.
            calls: The call of each job.
            read: Returns what a job's reply says, and a remark on it; raises ValueError where it is of no use.
        """
        if not jobs:
            return
        answers = ask(
            calls,
            self._client,
            self._ledger,
            self._config,
            teacher=self.name,
            price=self._price,
            spent=self._budget,
            description=purpose,
            total=len(jobs),
        )
        for job, answered in zip(jobs, answers, strict=True):
            yield _outcome(job, answered, read)


def _outcome(job: Any, answered: Answered, read: Callable[[Any, Any], tuple[Value, str | None]]) -> Outcome[Value]:
    status, value, detail = answered.status, None, answered.detail
    if status == "ok":
        try:
            value, detail = read(job, answered.value)
        except ValueError as error:
            status, detail = "invalid", str(error)
    return Outcome(
        source_id=job.source_id,
        status=status,
        value=value,
        detail=detail,
        call_id=None if status == "over_budget" else answered.call_id,  # such a call is not in the ledger
        cost_usd=answered.cost_usd,
        prompt_version=answered.call.prompt_version,
    )
