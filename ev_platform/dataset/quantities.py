"""Numbers in texts, with their units, so that `two weeks` is `14 days` and `22kW` is `22 kW`.

What belongs here: reading numbers. What does not: what a number that does not fit means (`grounding`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SMALL = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
_TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred")
NUMBER_WORDS = {word: value for value, word in enumerate(_SMALL.split())}
NUMBER_WORDS |= dict(zip(_TENS, range(30, 110, 10), strict=True))
# What a unit measures, how many of the base unit it is, and its names. A name of one capital is never a word.
_UNITS = {
    name: (kind, factor)
    for kind, factor, names in (
        ("length", 1e-3, "mm millimetre millimeter"),
        ("length", 1e-2, "cm centimetre centimeter"),
        ("length", 1.0, "m metre meter"),
        ("length", 1e3, "km kilometre kilometer"),
        ("miles", 1.0, "mi mile"),
        ("mass", 1e-3, "mg milligram"),
        ("mass", 1.0, "g gram gramme"),
        ("mass", 1e3, "kg kilo kilogram"),
        ("volume", 1.0, "ml millilitre milliliter"),
        ("volume", 1e3, "l L litre liter"),
        ("time", 1e-3, "ms millisecond"),
        ("time", 1.0, "s sec second"),
        ("time", 60.0, "min minute"),
        ("time", 3600.0, "h hr hour"),
        ("days", 1.0, "day"),
        ("days", 7.0, "week"),
        ("months", 1.0, "month"),
        ("months", 12.0, "year"),
        ("percent", 1.0, "% percent"),
        ("celsius", 1.0, "°c °C celsius"),
        ("fahrenheit", 1.0, "°f °F fahrenheit"),
        ("power", 1.0, "W watt"),
        ("power", 1e3, "kw kilowatt"),
        ("energy", 1.0, "kwh"),
        ("voltage", 1.0, "V volt"),
        ("current", 1.0, "A amp ampere"),
        ("pressure", 1.0, "bar"),
        ("psi", 1.0, "psi"),
        ("torque", 1.0, "nm"),
        ("euro", 1.0, "€ eur euro"),
        ("dollar", 1.0, "$ usd dollar"),
        ("sterling", 1.0, "£ gbp"),
        ("bytes", 1.0, "kb kib"),
        ("bytes", 1e3, "mb mib"),
        ("bytes", 1e6, "gb gib"),
    )
    for name in names.split()
}
_DURATIONS = {"time", "days", "months"}
# A number that is part of a name (SHA-256, CCS2, 1.2.3) is none.
_NUMBER = re.compile(
    r"(?<![\w.,:])(?<![A-Za-z]-)(?P<number>\d{1,2}:\d\d(?!\d)|\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:[.,]\d+)?(?![\d.]\d)"
    rf"|(?i:{'|'.join(NUMBER_WORDS)})\b)"
)
_ITEM = re.compile(r"(?m)^[^\S\n]*\d{1,2}(?=[.)]\s)")
_BEFORE = re.compile(r"(€|\$|£|\bEUR|\bUSD|\bGBP)\s?$")
_AFTER = re.compile(r"[\s-]?(%|°\s?[CF]|€|per cent\b|[A-Za-z]+)")
_HALF_OF_DAY = re.compile(r"\s?([ap])\.?\s?m\b", re.IGNORECASE)
_RANGE = re.compile(r"\s*(?:to|and|or|-|–)\s*(?:[€$£]\s?)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as a text gives it.

    Attributes:
        value: In the base unit of what it measures.
        plain: As it is written, in its own unit.
        kind: What it measures; None without a unit that is known.
        noun: The word after it, such as `eggs`; empty where there is none.
        start: Of the number in the text, in characters.
        end: Of the number, without its unit.
        text: The number as it stands.
    """

    value: float
    plain: float
    kind: str | None
    noun: str
    start: int
    end: int
    text: str

    def agrees(self, other: Quantity) -> bool:
        """Whether the two can be the same; a unit that is not there contradicts none."""
        if self.kind is None or other.kind is None:
            return self.plain == other.plain
        return self.kind == other.kind and abs(self.value - other.value) <= 1e-9 * max(1.0, abs(self.value))

    def rivals(self, other: Quantity) -> bool:
        """Whether the two are of one kind, so that one could be taken for the other."""
        if self.kind and other.kind:
            return self.kind == other.kind or {self.kind, other.kind} <= _DURATIONS
        is_alike = self.noun in ("", other.noun) and (1000 <= self.value <= 2100) == (1000 <= other.value <= 2100)
        return self.kind == other.kind and is_alike  # a year is no count


def quantities(text: str) -> list[Quantity]:
    """Return the numbers of a text, in its order; the numbers of a list's items are left out."""
    if len(_ITEM.findall(text)) > 1:  # a single one is more likely a number that begins a line
        text = _ITEM.sub(lambda match: " " * len(match[0]), text)
    found: list[Quantity] = []
    for match in _NUMBER.finditer(text):
        number, rest = match["number"], text[match.end() : match.end() + 40]
        before, after, half = (
            _BEFORE.search(text[max(0, match.start() - 5) : match.start()]),
            _AFTER.match(rest),
            _HALF_OF_DAY.match(rest),
        )
        noun = after[1].replace(" ", "") if after else ""
        kind, factor = _unit(before[1]) if before else _unit(noun)
        if ":" in number or (half and number.isdigit()):
            hours, _, minutes = number.partition(":")
            value, kind, factor = (int(hours) + 12 * _is_later(half, int(hours))) * 60 + int(minutes or 0), "clock", 1.0
        elif number.lower() in NUMBER_WORDS:
            if number.lower() == "one" and kind is None:
                continue  # more often a pronoun than a number
            value = NUMBER_WORDS[number.lower()]
        else:
            value = float(number.replace(",", "" if re.search(r",\d{3}(?!\d)", number) else "."))
        found.append(Quantity(value * factor, value, kind, noun.lower(), match.start(), match.end(), number))
    for i in range(len(found) - 2, -1, -1):  # "60 to 150 km": the first is in km too
        one, next_one = found[i], found[i + 1]
        if one.kind is None and next_one.kind and _RANGE.fullmatch(text[one.end : next_one.start]):
            factor = next_one.value / next_one.plain if next_one.plain else 1.0
            found[i] = Quantity(
                one.plain * factor, one.plain, next_one.kind, next_one.noun, one.start, one.end, one.text
            )
    return found


def _unit(name: str) -> tuple[str | None, float]:
    if name.lower() == "percent":
        name = "%"
    if len(name) == 1:
        return _UNITS.get(name, (None, 1.0))
    low = name.lower()
    return _UNITS.get(low) or _UNITS.get(low.removesuffix("s")) or (None, 1.0)


def _is_later(half: re.Match[str] | None, hours: int) -> bool:
    return half is not None and half[1].lower() == "p" and hours < 12
