"""What a version says to questions outside its task: whether it declines, by score or in its own words.

What does not belong here: the questions (`evaluation.calibration`) and how many may be answered (`gate`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ev_platform.errors import UserError
from ev_platform.evaluation.abstention import is_abstention
from ev_platform.evaluation.calibration import strange_questions
from ev_platform.registry.releases import Release, load_release
from ev_platform.storage import Store
from ev_platform.tasks import Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Strangers:
    """How often questions outside the task are declined.

    Attributes:
        n: Questions asked; none of them had a say in the score below which a version abstains.
        declined: Share that the version declines.
        champion_declined: Share that the champion declines; None where there is none, or it cannot be asked.
    """

    n: int
    declined: float
    champion_declined: float | None = None


def ask_strangers(store: Store, task: Task, version: str, champion: str | None) -> Strangers | None:
    """Ask a version and the champion the held-out questions outside the task.

    Args:
        store: Where they lie.
        task: Whose models.
        version: To be judged.
        champion: That it is compared with.

    Returns:
        None where the version cannot be asked.
    """
    questions = [it.question for it in strange_questions(task) if it.is_held_out]
    try:
        release = load_release(store, task, version, needs_corpus=False)
    except UserError:
        return None  # other checks say why
    share = _share(release, questions)
    if share is None:
        return None
    return Strangers(len(questions), share, _share_of_champion(store, task, champion, questions) if champion else None)


def _share_of_champion(store: Store, task: Task, champion: str, questions: Sequence[str]) -> float | None:
    try:
        return _share(load_release(store, task, champion, needs_corpus=False), questions)
    except Exception:
        # What is already in place must not keep its successor from being judged, whatever is wrong with it.
        _log.warning("The champion %s could not be asked what is outside the task:", champion, exc_info=True)
        return None


def _share(release: Release, questions: Sequence[str]) -> float | None:
    declined = declines(release, questions)
    return sum(declined) / len(declined) if declined else None


def declines(release: Release, questions: Sequence[str]) -> list[bool] | None:
    """Ask a version questions as they are served, greedily; return for each whether it declines.

    Args:
        release: The version.
        questions: Without passages of their own.

    Returns:
        None where that cannot be asked: its answers are labels, or it answers from passages and has none to search.
    """
    if release.task_type.has_classes or (release.has_retrieval and release.retriever is None):
        return None
    hits = [release.retrieve(question) for question in questions]
    declined = [release.abstains(found) for found in hits]
    asked = [place for place, is_declined in enumerate(declined) if not is_declined]
    made = release.engine.generate(
        [release.render(questions[place], hits[place]) for place in asked], max_new_tokens=release.max_new_tokens
    )
    for place, one in zip(asked, made, strict=True):
        declined[place] = is_abstention(one.text, release.no_answer)
    return declined
