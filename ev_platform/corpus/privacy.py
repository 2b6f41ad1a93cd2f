"""Masking personal data: e-mail addresses, phone numbers, payment-card numbers, bank accounts.

The rule is simple: whatever has the form goes, addresses of a company (info@...) too, since a form cannot tell a
person from a role. In a corpus of technical text the other mistake is as bad: standards, addresses of registers and
columns of figures look like phone numbers, so every form is checked (numbering plans by Google's libphonenumber, check
digits), and a number in national form counts only with a word such as "Tel." before it or written as its country
writes it.

What does not belong here: names and postal addresses, which no form gives away.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# RFC 2606 keeps these for examples; an address of documentation belongs to nobody.
_EXAMPLE = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost)$", re.IGNORECASE)
# A file such as icon@2x.png has the form of an address.
_FILE = re.compile(r"\.(?:png|jpe?g|gif|svg|webp|css|js)$", re.IGNORECASE)
_EMAIL = re.compile(
    r"\b[a-z][a-z0-9+.-]{0,15}://[^\s/@|]{0,99}@|\bgit@[\w.-]+:"  # user information of a URL, git's way to name one
    r"|(?:(?<![\w.+%@\\-])(?:\\_|[\w.+%-]){1,64}|\{[\w.+-]{1,64}(?:, ?[\w.+-]{1,64}){1,30}\})"
    r"(?:@| ?[(\[](?:at|@)[)\]] ?)(?P<host>[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,})\b",
    re.IGNORECASE,
)
_IBAN = re.compile(r"(?<![\w*-])[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?![\w*])")
# Written as one number or in the groups that stand on cards; free grouping would match columns of figures.
_CARD = re.compile(
    r"(?<![\w.,*/-])(?<!\d )(?:\d{13,19}|\d{4}(?P<s>[ -])\d{4}(?P=s)\d{4}(?P=s)\d{1,4}(?:(?P=s)\d{1,3})?"
    r"|\d{4}(?P<t>[ -])\d{6}(?P=t)\d{4,5})(?![\w*/-]|[.,]\d| \d)"
)
# First digits and lengths that are given out, ISO/IEC 7812: American Express, Diners Club, JCB, Visa, Mastercard,
# Maestro, Discover and UnionPay. Times in milliseconds and most serial numbers begin otherwise.
_ISSUER = re.compile(
    r"3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11,16}|35(?:2[89]|[3-8]\d)\d{12}|4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}"
    r"|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|(?:50|5[6-9])\d{11,17}|6(?:011|4[4-9]\d|5\d\d|2\d\d)\d{12,15}"
)

_GAP = r"[ \u00a0./()\u2010-\u2015-]"  # within a number; a line end or a table's bar ends it
_NUMBER = rf"\(?\d(?:{_GAP}{{0,3}}\d)"
_INTERNATIONAL = re.compile(rf"(?<![\w+.])(?:\+|(?<!\d )00 ?(?=[1-9]\d?\d?{_GAP})) ?{_NUMBER}{{6,16}}(?!\w)")
# North America's plan: no area begins with 0 or 1. Numbers that are never given out (555) are masked too.
_AMERICAN = re.compile(
    r"(?<![\w./-])(?<!\d )(?:1[-. ])?(?:\([2-9]\d\d\) ?|[2-9]\d\d(?P<s>[-.]))\d{3}(?(s)(?P=s)|[-. ])\d{4}"
    r"(?![\w/-]|\.\d| \d)|(?<![\w.-])1-8(?:00|33|44|55|66|77|88)-[A-Z0-9](?:-?[A-Z0-9]){6,9}(?![\w-])"
)
_NATIONAL = re.compile(rf"(?<![\w.,/+-])(?<!\d )\(?0[1-9]\d{{0,4}}\)?(?:{_GAP}\d{{2,8}}){{1,4}}(?![\w/-]|[.,]\d| \d)")
_LABELLED = re.compile(
    r"(?:\b(?:t[eé]l(?:[eé](?:fon|phone|fono|foon|fone|fax))?|phone|fax|mobil[e]?|handy|hotline|whatsapp"
    r"|tlf|tfno|call(?: us)?(?: (?:at|on))?)\b|[☎📞✆])"
    rf"(?:\s?(?:number|nr|no|n[°º]))?[ .:*|_-]{{0,8}}(?P<number>{_NUMBER}{{6,14}})(?!\w|[.,:]\d)",
    re.IGNORECASE,
)
# One signed decimal, or two, as coordinates are written (ISO 6709).
_DECIMAL = re.compile(r"\+ ?\d+\.\d+(?:$|[-+]\d+\.\d)")
# Dates and IP addresses.
_OTHER_FIGURES = re.compile(r"\d{4}-\d\d-\d\d|\d\d?([./-])\d\d?\1(?:\d{4}|\d\d)\b|\d{1,3}(?:\.\d{1,3}){3}\b")
# Countries with a leading zero whose ways of writing are told apart from other figures; of others, a label tells.
_REGIONS = ("GB", "DE", "BE", "NL", "IE", "AT", "CH", "AU")


def mask_personal_data(text: str) -> tuple[str, int]:
    """Replace personal data by marks.

    Args:
        text: Markdown; nothing is matched across a line end or a table's bar.

    Returns:
        The text with `[email]`, `[iban]`, `[card]` and `[phone]` where something was, and the number of replacements.
        Masking it again changes nothing.
    """
    n_masked = 0

    def replaced(mark: str, is_personal: _Check) -> Callable[[re.Match[str]], str]:
        def replace(found: re.Match[str]) -> str:
            nonlocal n_masked
            spans = is_personal(found)
            n_masked += len(spans)
            at, out = found.start(), ""
            for start, end in spans:
                out += found.string[at:start] + mark
                at = end
            return out + found.string[at : found.end()]

        return replace

    for pattern, mark, is_personal in _RULES:
        text = pattern.sub(replaced(mark, is_personal), text)
    return text, n_masked


_Check = Callable[[re.Match[str]], list[tuple[int, int]]]


def _find_email(found: re.Match[str]) -> list[tuple[int, int]]:
    host = found["host"]
    return [] if not host or _EXAMPLE.search(host) or _FILE.search(host) else [found.span()]


def _find_iban(found: re.Match[str]) -> list[tuple[int, int]]:
    # ISO 13616: with the first four characters at the end and letters as 10 to 35, the remainder by 97 is 1.
    code = found[0].replace(" ", "")
    number = int("".join(str(int(letter, 36)) for letter in code[4:] + code[:4]))
    return [found.span()] if 15 <= len(code) <= 34 and number % 97 == 1 else []


def _find_card(found: re.Match[str]) -> list[tuple[int, int]]:
    digits = re.sub(r"\D", "", found[0])
    # ISO/IEC 7812: every second digit from the right is doubled, and the sum of all digits ends in 0.
    total = sum(sum(divmod(int(digit) * (1 + place % 2), 10)) for place, digit in enumerate(reversed(digits)))
    return [found.span()] if _ISSUER.fullmatch(digits) and total % 10 == 0 else []


def _find_international(found: re.Match[str]) -> list[tuple[int, int]]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    number, leniency = found[0], Leniency.POSSIBLE
    if _DECIMAL.match(number):
        return []
    if number.startswith("00"):  # figures begin so too
        number, leniency = "+" + number[2:].lstrip(), Leniency.VALID
    shift = found.end() - len(number)
    spans = [(match.start, match.end) for match in PhoneNumberMatcher(number, None, leniency=leniency)]
    return [(found.start() if start == 0 else start + shift, end + shift) for start, end in spans]


def _find_labelled(found: re.Match[str]) -> list[tuple[int, int]]:
    return [] if _OTHER_FIGURES.match(found["number"]) else [found.span("number")]


def _find_national(found: re.Match[str]) -> list[tuple[int, int]]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    groups = re.findall(r"\d+", found[0])
    # A row of figures has groups of one width.
    if _OTHER_FIGURES.match(found[0]) or len("".join(groups)) < 9 or len({len(group) for group in groups}) == 1:
        return []
    for region in _REGIONS:
        for match in PhoneNumberMatcher(found[0], region, leniency=Leniency.STRICT_GROUPING):
            if match.raw_string == found[0]:
                return [found.span()]
    return []


_RULES: list[tuple[re.Pattern[str], str, _Check]] = [
    (_EMAIL, "[email]", _find_email),
    (_IBAN, "[iban]", _find_iban),
    (_CARD, "[card]", _find_card),
    (_INTERNATIONAL, "[phone]", _find_international),
    (_AMERICAN, "[phone]", lambda found: [found.span()]),
    (_LABELLED, "[phone]", _find_labelled),
    (_NATIONAL, "[phone]", _find_national),
]
