"""Figures with their units: the questions whose answer is one, and figures that are wrong.

What does not belong here: other questions about a clause (`offline_clauses`).
"""

from __future__ import annotations

import re

from ev_platform.teachers.offline_grammar import Clause
from ev_platform.teachers.offline_text import tag

# Question, answer and kind.
Found = tuple[str, str, str] | None

NUMBER_WORD = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_ABOUT = (
    r"(?:(?:about|up to|at least|at most|over|under|around|only|some|roughly|nearly|approximately|between|from"
    r"|(?:no |not )?(?:more|less) than) )?"
)
FIGURE = rf"(?:\d[\d,.]*\d|\d|{NUMBER_WORD})"
_RANGE = rf"{FIGURE}(?: ?(?:to|and|or|[-–]) ?{FIGURE})?"
# What is asked for, by the unit of the answer; units of measurement and money are the same in every domain.
_UNITS = {
    r"[kMG]?W|watts?|kilowatts?|megawatts?|kVA": "How much power",
    r"[kMGT]?Wh|kilowatt-hours?|[kM]?J": "How much energy",
    r"m?A|amperes?|amps?": "What current",
    r"[mk]?V|volts?": "What voltage",
    r"[kM]?Ω|ohms?": "What resistance",
    r"[kMG]?Hz": "What frequency",
    r"k?N|newtons?": "What force",
    r"°[CF]|degrees?": "What temperature",
    r"%|per ?cent": "What percentage",
    r"[kMGT]i?B(?:/s)?|[kMG]?bit/s|bytes?": "How much data",
    r"[km]?g|kilograms?|tonnes?|pounds?|lbs?": "What weight",
    r"[km]?l|litres?|liters?|gallons?": "What volume",
    r"[ckm]?m|metres?|meters?|millimetres?|centimetres?|inch(?:es)?|feet|ft": "What distance",
    r"km|kilometres?|miles?": "What distance",
}
_MONEY = (
    rf"(?:[€$£] ?\d[\d,.]*(?: (?:million|billion))?|{FIGURE} ?(?:dollars?|euros?|cents?|EUR|USD|GBP))"
    r"(?: (?:a|an|per) [a-z-]+)?"
)
_TIME = (
    rf"{_ABOUT}(?:{_RANGE}|half an|an|a) ?"
    r"(?:milliseconds?|ms|seconds?|minutes?|min|hours?|h|days?|weeks?|months?|years?)\b"
)
QUANTITY = re.compile(
    rf"(?P<all>{_ABOUT}{_RANGE} ?(?P<unit>{'|'.join(_UNITS)})(?![\w/])(?: (?:a|an|per) [a-z-]+| (?:AC|DC))?)"
)
_COUNT = re.compile(rf"(?P<n>{_ABOUT}(?:{NUMBER_WORD}|\d[\d,]*)) (?P<noun>(?:[a-z-]+ ){{0,2}}?[a-z-]+s)(?=$|[ ,.])")
_PHRASE = re.compile(
    r" (?:in|for|under|at|on|from|to|with|without|by|per|of|when|while|after|before|during|through|between) [^,;]+"
)
_PREPOSITION = "at|to|by|from|above|below|of|with|on|for|within"
_ADJECTIVES = "long|wide|high|deep|old|thick|heavy|tall|far|large|fast|big"


def ask_number(clause: Clause) -> Found:
    """`A cable carries 500 A` asks for the current, `A plug has seven contacts` for how many."""
    if clause.is_negative:
        return None
    rest = clause.rest
    if clause.is_be and not clause.verb:
        found = re.fullmatch(
            rf"(?P<all>{_ABOUT}{_RANGE} ?[\wΩ°%]+(?: (?:to|or|and) {_RANGE} ?\w+)?) (?P<how>{_ADJECTIVES})", rest
        )
        if found:
            return clause.ask(f"How {found['how']}"), found["all"], "number"
        found = QUANTITY.match(rest) or re.match(rf"(?P<all>{_TIME}|{_ABOUT}{_MONEY})", rest)
        # "The interval is 15 minutes": "What is the interval?"
        if found and re.fullmatch(r"|(?: (?:in|for|under|at|on|from|with) [^,]+)", rest[found.end() :]):
            return clause.ask("What", rest[found.end() :].strip()), found["all"], "number"
        return None
    found = re.match(rf"(?P<all>{_TIME})(?= |$)", rest)
    if found and clause.verb in {"take", "last", "wait", "run", "stay", "need"} and _ends_well(rest[found.end() :]):
        return clause.ask("How long", rest[found.end() :].strip()), found["all"], "number"
    found = re.match(rf"(?P<all>{_ABOUT}{_MONEY})(?= |$)", rest)
    if found and clause.verb in {"cost", "pay", "save", "charge"} and _ends_well(rest[found.end() :]):
        return clause.ask("How much", rest[found.end() :].strip()), found["all"], "number"
    found = QUANTITY.match(rest)
    if found and not clause.is_be and _ends_well(rest[found.end() :]):
        return clause.ask(_ask_for(found["unit"]), rest[found.end() :].strip()), found["all"], "number"
    found = re.match(rf"(?P<prep>{_PREPOSITION}) (?=.)", rest)
    if found and clause.verb:
        value = QUANTITY.match(rest, found.end())
        tail = rest[value.end() :] if value else ""
        if value and _ends_well(tail) and not tail.startswith(" of "):
            ask = _ask_for(value["unit"])
            wh = f"{found['prep'].capitalize()} {ask[0].lower()}{ask[1:]}"
            return clause.ask(wh, rest[value.end() :].strip()), value["all"], "number"
    found = _COUNT.match(rest)
    if found and not clause.is_be and clause.verb and tag(found["noun"])[1][-1:] == "S":
        tail = rest[found.end() :]
        if _ends_well(tail) and not re.match(r" (?:of|or|to|that)\b", tail):
            return clause.ask(f"How many {found['noun']}", tail.strip()), found["n"], "number"
    return None


def _ask_for(unit: str) -> str:
    return next(ask for units, ask in _UNITS.items() if re.fullmatch(units, unit))


def _ends_well(tail: str) -> bool:
    """Say whether what follows a figure may stay in the question: nothing, or one short phrase without figures."""
    return not tail or (_PHRASE.fullmatch(tail) is not None and len(tail.split()) <= 10)


def ask_time(clause: Clause) -> Found:
    """`Cables are tested every 12 months` asks how often, `was founded in 2015` when."""
    if clause.is_negative or not clause.verb:
        return None
    found = re.search(
        rf"\b(?P<all>every (?:{FIGURE} )?(?:(?:milli)?second|minute|hour|day|week|month|quarter|year|morning|night)s?)"
        r"(?=$| )",
        clause.rest,
    )
    if found and _ends_well(clause.rest[found.end() :]):
        rest = f"{clause.rest[: found.start()].strip()} {clause.rest[found.end() :].strip()}".strip()
        return (clause.ask("How often", rest), found["all"], "number") if "," not in rest else None
    found = re.search(rf"\b(?P<all>within {_TIME.removeprefix(_ABOUT)})", clause.rest)
    if found and _ends_well(clause.rest[found.end() :]):
        rest = f"{clause.rest[: found.start()].strip()} {clause.rest[found.end() :].strip()}".strip()
        return (clause.ask("How soon", rest), found["all"], "number") if "," not in rest else None
    found = re.match(r"(?P<all>in (?:[A-Z][a-z]+ )?(?:19|20)\d\d)(?=$|[ ,])", clause.rest)
    if found and clause.aux in {"was", "were"}:
        return clause.ask("When"), found["all"], "number"
    return None


def wrong_figure(text: str) -> str | None:
    """Return a text with its only figure changed, so that it is false; None where that is not sure."""
    found = re.findall(r"\d[\d.,]*", text)
    words: list[str] = [*NUMBER_WORD.split("|")]
    if not found:
        counts = [m for m in re.finditer(rf"(?<![\w-])(?:{NUMBER_WORD})(?= [a-z-]+s\b)", text) if m[0] != "one"]
        if len(counts) != 1 or re.search(r"(?:most|least|than|to|up|within|or) $", text[: counts[0].start()]):
            return None
        start, end = counts[0].span()
        return text[:start] + words[(words.index(counts[0][0]) + 2) % 12] + text[end:]
    figure = re.search(r"(?<![\w.,-])[1-9]\d{0,3}(?= ?[a-zA-Z%Ω°€])", text)
    before = text[: figure.start()] if figure else ""
    if len(found) != 1 or figure is None or re.search(r"(?:\b[A-Z]\w*|\b(?:or|to|and|in|since)) $", before):
        return None
    n = int(figure[0])
    # Of what holds "within 30 days" one may also say "within 60 days": an upper bound is made smaller.
    is_bound = re.search(r"(?:within|most|under|than|below|until) $", before) or "%" in text
    if is_bound and n < 4:
        return None
    return text[: figure.start()] + str(n // 2 if is_bound else 2 * n) + text[figure.end() :]
