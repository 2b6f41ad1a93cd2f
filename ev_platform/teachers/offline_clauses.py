"""Questions about one clause: each rule turns one shape of statement into a question and its answer.

What does not belong here: figures (`offline_numbers`), and sentences of several clauses (`offline_rules`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from ev_platform.teachers import Draft
from ev_platform.teachers.offline_grammar import Clause
from ev_platform.teachers.offline_numbers import FIGURE, QUANTITY, Found, ask_number, ask_time, wrong_figure
from ev_platform.teachers.offline_text import PRONOUN, Sentence, tag

_OBJECT_VERBS = (
    "depend on|consist of|ask for|rely on|lead to|refer to|apply to|belong to|stand for|allow for"
    "|account for|point to|correspond to|deal with|result in|serve as|act as|look at|differ from"
    "|comply with|begin with|end with|start with|end in|pass through|connect to|come from|come with"
    "|conform to|fall under"
)
NESTED = re.compile(r"\b(?:that|whether|which|who|how|what)\b")
# Verbs whose object alone says little: "What does the station put?" wants to know where.
_LIGHT = {
    "have",
    "take",
    "be",
    "make",
    "go",
    "put",
    "let",
    "ask",
    "get",
    "set",
    "keep",
    "cause",
    "help",
    "see",
    "leave",
    "bring",
    "give",
    "say",
    "think",
    "come",
    "do",
    "look",
    "place",
    "turn",
}
# An object that a question can leave open: a noun phrase to the end of the clause, with no more than phrases after it.
_OBJECT = re.compile(r"D?[RJKVGCNS]*[NSC][NSCJKVGRDiIA,()]*$")


def _definition(clause: Clause) -> Found:
    """`A charging detail record is the bill of one session` asks what it is."""
    if not clause.is_be or clause.verb or clause.is_negative or clause.adverb:
        return None
    if not re.match(r"(?:a|an|the)\b", clause.rest) or not 3 <= len(clause.rest.split()) <= 22:
        return None
    if re.match(
        r"(?:a|the) (?:lot|matter|case|reason|result|same|way|time|problem|first|last|only|most|best|worst|more|key"
        r"|main|right|usual|next|ones?)\b",
        clause.rest,
    ) or not re.match(r"D[RJKVGCNS]*[NS]", clause.tags):
        return None
    return clause.ask("What"), clause.rest, "definition"


def _requirement(clause: Clause) -> Found:
    """`The cable must withstand a pull of 500 N` asks what it must withstand."""
    is_due = re.match(r"(?:have|need) to ", clause.verb) is not None
    if (not is_due and clause.aux not in {"must", "should", "shall", "may", "can"}) or clause.is_negative:
        return None
    verb = re.sub(r"^(?:have|need) to ", "", clause.verb)
    if verb.startswith("be ") or verb in _LIGHT:
        return None
    found = _object(clause, "requirement")
    # "Cables must hang clear of the ground": "What must cables do?"
    if (
        found is None
        and not is_due
        and clause.aux in {"must", "should", "shall"}
        and 3 <= len(clause.rest.split()) <= 16
    ):
        return replace(clause, verb="do", adverb="").ask("What"), f"{clause.verb} {clause.rest}", "requirement"
    return found


def _fact(clause: Clause) -> Found:
    """`A latch holds the connector in the inlet` asks what a latch holds."""
    if clause.aux not in {"do", "does"} or clause.is_negative or clause.verb in _LIGHT or " " in clause.verb:
        return None
    return _object(clause, "fact")


def _object(clause: Clause, kind: str) -> Found:
    rest, tags = clause.rest, clause.tags[: len(tag(clause.rest)[0])]
    if kind == "fact" and clause.verb == "mean" and re.match(r"[a-z]+ing ", rest):
        return clause.ask("What"), rest, "definition"
    found = re.match(r"(?P<prep>[a-z]+) ", rest)
    if found and re.fullmatch(_OBJECT_VERBS, f"{clause.verb} {found['prep']}"):
        rest, tags = rest[found.end() :], tags[1:]
        if ", and" not in rest and _OBJECT.fullmatch(tags) and len(rest.split()) <= 14:
            return clause.ask("What", found["prep"]), rest, kind
        return None
    if re.search(r"\bas\b|, and\b", rest):
        return None
    if _OBJECT.fullmatch(tags) and len(rest.split()) <= 14 and not QUANTITY.match(rest) and _is_single(rest, tags):
        return clause.ask("What"), rest, kind
    return None


def _is_single(rest: str, tags: str) -> bool:
    """Say whether an object is one thing and no expression of time or manner: `every day`, `the same way`."""
    return (
        not re.match(
            r"(?:every|each|once|twice|more|less|much|many|little|well|far|back|up|down|out|off|on|over|in|part|place"
            r"|rise|way|as|the rest|a lot)\b",
            rest,
        )
        and (tags[-1] in "NSCG)")
        and ("," not in rest or (re.fullmatch(r"[^,]+(?:, [^,]+)* and [^,]+", rest) is not None and "Ai" not in tags))
    )


def _passive(clause: Clause) -> Found:
    """`Adapters are certified to UL 2252` asks what they are certified to."""
    verb = clause.verb.removeprefix("be ")
    is_passive = (clause.is_be and clause.verb) or clause.verb.startswith("be ")
    found = re.match(r"(?P<prep>to|with|as|for|from|through|into|by) (?P<what>(?!\w+ing\b).+)", clause.rest)
    if not is_passive or clause.is_negative or found is None or verb in _LIGHT:
        return None
    tags = tag(found["what"])[1]
    if len(tags) > 10 or not _OBJECT.fullmatch(tags) or not _is_single(found["what"], tags) or " to " in found["what"]:
        return None
    if QUANTITY.match(found["what"]) or re.match(rf"{FIGURE}\b", found["what"]):
        return None
    kind = "requirement" if clause.aux in {"must", "should", "shall"} else "fact"
    if found["prep"] == "by":
        return clause.ask("By whom or by what"), found["what"], kind
    return clause.ask("What", found["prep"]), found["what"], kind


def _when(clause: Clause) -> Found:
    """`The fan starts when the heat sink is hot` asks when it starts."""
    found = re.search(
        r",? (?P<cond>(?:only )?(?:when|if|once|as soon as|after|until|unless) (?P<if>.+))$", f" {clause.rest}"
    )
    if found is None or clause.is_negative or (not clause.verb and clause.is_be):
        return None
    before = f" {clause.rest}"[: found.start()].strip()
    if (
        NESTED.search(before)
        or re.search(r"\b(?:if|when|until|unless)\b|,", found["if"])
        or not re.search(r"[ZHMT]", tag(found["if"])[1])
        or len(before.split()) > 12
        or "," in before
    ):
        return None
    wh = "Until when" if found["cond"].startswith("until") else "When"
    if found["cond"].startswith("unless"):
        return None
    return clause.ask(wh, before), found["cond"], "fact"


CLAUSE_RULES: tuple[Callable[[Clause], Found], ...] = (
    ask_number,
    ask_time,
    _definition,
    _requirement,
    _when,
    _fact,
    _passive,
)


def yes_no_drafts(clause: Clause, sentence: Sentence) -> Iterator[Draft]:
    """Ask whether a clause holds; a figure in it gives a second question, whose figure is wrong, answered by no."""
    is_list = re.fullmatch(r"[^,]+(?:, [^,]+)+ (?:and|or) [^,]+", clause.rest) is not None
    if PRONOUN.search(clause.tell()) or re.search(r"\bthat \w+$", clause.rest) or ("," in clause.rest and not is_list):
        return
    if not 2 <= len(clause.rest.split()) <= 16 or (
        len(clause.subject.split()) < 2 and not clause.subject[:1].isupper()
    ):
        return
    if re.search(r"\b(?:no|nothing|none|never|nobody|hardly)\b", f"{clause.subject} {clause.rest} {clause.adverb}"):
        return
    question = clause.ask("", clause.rest)
    yield Draft(question, f"{'No' if clause.is_negative else 'Yes'}, {clause.tell()}", "yes_no", evidence=sentence.raw)
    wrong = None if clause.is_negative else wrong_figure(clause.rest)
    if wrong:
        yield Draft(clause.ask("", wrong), f"No, {clause.tell()}", "yes_no", evidence=sentence.raw)
