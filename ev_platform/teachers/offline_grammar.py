"""One clause taken apart: subject, auxiliary, verb and what follows, and the questions that can be made by turning it.

What does not belong here: parts of speech (`offline_text`), and which questions are asked (`offline_clauses`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ev_platform.teachers.offline_text import ADVERB, DANGLING, NOUN_PHRASE, lower_first, plain, tag

# "a cable", "a cable of copper", "a cable laid in sand", "a cable that carries 32 A", "a cable and a plug"
_SUBJECT = re.compile(
    rf"(?P<head>{NOUN_PHRASE})(?P<rest>(?:i{NOUN_PHRASE})*(?:V(?:i{NOUN_PHRASE})+|w[ZHB](?:{NOUN_PHRASE})?(?:i{NOUN_PHRASE})*)?)(?P<joined>(?:,{NOUN_PHRASE})*A{NOUN_PHRASE}(?:i{NOUN_PHRASE})*)?"
)
# What these name is known only to who has read on: "two things", "the second part", "most makers".
_COUNTED = re.compile(
    r"(?:the )?(?:no|two|three|four|five|six|seven|eight|nine|ten|first|second|third|next|last|most|more|less|few|many"
    r"|several|some|any|every|what|like)\b",
    re.IGNORECASE,
)
FORMS_OF_BE = {"is": "is", "are": "are", "was": "was", "were": "were"}
_IRREGULAR = {"has": "have", "does": "do", "goes": "go"}


@dataclass(frozen=True, slots=True)
class Clause:
    """`lead, subject [aux] [adverb] verb rest`, as in `In Europe, a post | may | usually | deliver | 22 kW`.

    Attributes:
        subject: A noun phrase, its first word in lower case unless it is a name.
        aux: A form of `be`, a modal, or `do`/`does` where the verb stands alone in the sentence.
        adverb: Between auxiliary and verb, or empty.
        verb: Base form, past participle after `be`, or empty where `be` is the verb.
        surface: The verb as it stands in the sentence.
        rest: What follows the verb.
        lead: A place or condition before the subject, without its comma; empty in most clauses.
        is_negative: Whether it says that something is not so.
        is_plural: Whether the subject is.
        tags: The letters of `rest`.
    """

    subject: str
    aux: str
    adverb: str
    verb: str
    surface: str
    rest: str
    tags: str
    lead: str = ""
    is_negative: bool = False
    is_plural: bool = False

    @property
    def is_be(self) -> bool:
        """Whether the auxiliary is a form of `be`."""
        return self.aux in FORMS_OF_BE

    def ask(self, wh: str, rest: str = "") -> str:
        """Return the question that begins with `wh` and leaves the asked part out; an empty `wh` asks yes or no."""
        words = [wh, self.aux, self.subject, self.adverb, self.verb, rest, self.lead]
        question = re.sub(r"\s+", " ", " ".join(word for word in words if word)).strip(" ,")
        return question[0].upper() + question[1:] + "?"

    def tell(self, *, negated: bool | None = None) -> str:
        """Return the clause as a statement, in lower case."""
        is_negative = self.is_negative if negated is None else negated
        aux = "" if self.aux in {"do", "does"} and not is_negative else self.aux
        verb = self.verb if aux or is_negative else self.surface
        no = "not" if is_negative else ""
        return " ".join(word for word in (self.subject, aux, no, self.adverb, verb, self.rest, self.lead) if word)


def parse_clause(text: str) -> Clause | None:
    """Take a sentence apart; None where it is not a plain statement with a noun phrase for its subject."""
    text = _main_clause(text)
    lead = ""
    found = re.match(
        r"((?:In|On|At|Under|For|With|Without|During|Before|After|Between|Above|Below|Since) [^,]{2,60}), ", text
    )
    if found:
        lead, text = found[1], text[found.end() :]
    else:
        # "In Germany every wallbox ...": the next article begins the subject.
        places, letters = tag(text)
        place = re.match(r"iD?[JNC]*[NS](?=D)", letters) if text.split(" ")[0] in {"In", "On", "At", "Under"} else None
        if place:
            start = places[place.end()][1]
            lead, text = text[: start - 1], text[start:]
    if lead:
        if not re.fullmatch(rf"[iIG]{NOUN_PHRASE}(?:i{NOUN_PHRASE})*", tag(lead)[1]) or DANGLING.search(lead):
            return None
        lead, text = lower_first(lead), text[0].upper() + text[1:]
    found_tokens, letters = tag(text)
    letters = _with_verb(letters)
    match = _SUBJECT.match(letters)
    if match is None or match.end() >= len(letters):
        return None
    end, at = match.end(), match.end()
    # An apposition: "NACS, the North American Charging Standard, is ..."
    if letters[at] == ",":
        close = letters.find(",", at + 1)
        if not (at < close <= at + 9 and letters[at + 1] in "DV" and close + 1 < len(letters)):
            return None
        at = close + 1
    subject = text[: found_tokens[end - 1][2]]
    if DANGLING.search(subject) or not re.match(r"[\w(]", subject):
        return None
    if _COUNTED.match(subject):
        return None
    head = letters[match.end("head") - 1]
    words = [token for token, _, _ in found_tokens]
    closing = letters.find(")", 0, match.end("head"))
    if closing > 0:
        head = letters[letters.rfind("(", 0, closing) - 1]
    is_plural = head == "S" or bool(match["joined"])
    verb = _verb_group(words, letters, at, is_plural)
    if verb is None:
        return None
    clause, next_token = verb
    stop = re.search(
        r",?A[R!]*[ZMT]" if clause.aux == "does" or clause.is_be else r",?A[R!]*[ZMTB]", letters[next_token:]
    )
    until = found_tokens[next_token + stop.start()][1] if stop else len(text)
    rest = text[found_tokens[next_token - 1][2] : until].strip()
    if rest.startswith(","):
        return None
    letters = letters[: next_token + stop.start()] if stop else letters
    return replace(clause, subject=lower_first(subject), rest=rest, tags=letters[next_token:], lead=lead)


def _main_clause(text: str) -> str:
    """Cut off what follows a semicolon, a colon or a comma with another statement behind it."""
    text = re.split(r"\s*[;:](?=\s)|\s+[–—-]\s+", text)[0]
    for found in re.finditer(
        r",? (?:so that|although|while|whereas|which|who|whose|since|as)\b|, (?:and|but|so|or|with)\b", text
    ):
        if not found[0].startswith(","):
            continue
        word, after = found[0].lstrip(", "), tag(text[found.end() :].strip())[1]
        has_verb = re.match(rf"(?:[QD]|{NOUN_PHRASE}(?:i{NOUN_PHRASE})*)?[R!]*[ZHM]", after) is not None
        if has_verb or word in {"which", "who", "whose", "so", "so that", "although", "whereas", "while", "since"}:
            return text[: found.start()]
    return text


def _with_verb(letters: str) -> str:
    """Every statement has a verb: where none was seen, a word that looks like a noun is it.

    A noun in front of an article or a number is a verb, `a session costs 12 dollars`; so is the only plural noun behind
    a singular one, `a breaker trips at 6 mA`.
    """
    clause = letters.partition(",")[0]
    if re.search(r"[ZHMTVBw]", clause[1:]):
        return letters
    found = re.findall(r"(?<=N)S(?=[DCO])|(?<=S)N(?=[DCO])", clause)
    if len(found) == 1:
        return re.sub(r"^([^,]*?)(?:(?<=N)(S)|(?<=S)N)(?=[DCO])", lambda m: m[1] + ("Z" if m[2] else "H"), letters)
    if not found and clause.count("S") == 1:
        return re.sub(r"^([^,S]*N)S(?=i)", r"\1Z", letters)
    return letters


def _verb_group(words: list[str], letters: str, at: int, is_plural: bool) -> tuple[Clause, int] | None:
    adverb = ""
    if at < len(letters) and letters[at] == "R":
        adverb = words[at] if re.fullmatch(ADVERB, words[at]) else "?"
        at += 1
    if at >= len(letters) or adverb == "?" or re.search(r"['’]", words[at]):
        return None
    word, letter = words[at].lower(), letters[at]
    if word in FORMS_OF_BE or letter == "M":
        aux, at = word, at + 1
        is_negative = aux == "cannot" or (at < len(letters) and letters[at] == "!")
        at += aux != "cannot" and is_negative
        if aux == "cannot":
            aux = "can"
        if at < len(letters) and letters[at] == "R":
            if not re.fullmatch(ADVERB, words[at]):
                return None
            adverb, at = words[at], at + 1
        if at >= len(letters) or (word in {"is", "was"} and is_plural) or (word in {"are", "were"} and not is_plural):
            return None
        verb = ""
        if letter == "M":
            if words[at] == "be" and at + 1 < len(letters) and letters[at + 1] in "VT":
                verb, at = f"be {words[at + 1]}", at + 2
            elif words[at] == "be" or (
                re.fullmatch(r"[a-z]+(?<!ed)(?<!ing)(?<!ly)", words[at]) and letters[at] in "BHNVJT"
            ):
                verb, at = words[at], at + 1
            else:
                return None
        elif letters[at] in "VT":
            verb, at = words[at], at + 1
        return Clause("", aux, adverb, verb, verb, "", "", is_negative=is_negative, is_plural=is_plural), at
    if word in {"do", "does"} and at + 2 < len(letters) and letters[at + 1] == "!" and words[at + 2].isalpha():
        if (word == "do") != is_plural:
            return None
        return Clause("", word, adverb, words[at + 2], "", "", "", is_negative=True, is_plural=is_plural), at + 3
    is_verb = (letter == "Z" and not is_plural) or (letter in "HB" and is_plural)
    if not is_verb or not word.isalpha() or word in {"be", "being"}:
        return None
    if word in {"has", "have", "needs", "need"} and re.match(r"iB", letters[at + 1 :]) and words[at + 1] == "to":
        verb = words[at + 2]
        # "has to be wired" asks as "must be wired" does.
        n = 2 if verb == "be" and letters[at + 3 : at + 4] in {"V", "T"} else 1
        verb = " ".join(words[at + 2 : at + 2 + n])
        aux = "do" if is_plural else "does"
        base = base_form(word) if not is_plural else word
        return Clause(
            "", aux, adverb, f"{base} to {verb}", f"{word} to {verb}", "", "", is_plural=is_plural
        ), at + 2 + n
    if word == "has" and at + 1 < len(letters) and letters[at + 1] in "VR":
        return None
    base = word if is_plural else base_form(word)
    return Clause("", "do" if is_plural else "does", adverb, base, word, "", "", is_plural=is_plural), at + 1


def base_form(verb: str) -> str:
    """Return the base of a third person singular: `carries` gives `carry`."""
    low = verb.lower()
    if low in _IRREGULAR:
        return _IRREGULAR[low]
    if low.endswith("ies") and len(low) > 4:
        return low[:-3] + "y"
    if re.search(r"(ss|sh|ch|x|zz|o)es$", low):
        return low[:-2]
    return low[:-1] if low.endswith("s") and not low.endswith("ss") else low


def is_order(text: str) -> bool:
    """Say whether a clause tells somebody to do something: `set a lower limit`."""
    first, letters = text.partition(" ")[0], tag(text)[1]
    # A noun or adjective before an article is a verb in truth: "open the board".
    return first.isalpha() and first.islower() and (letters[0] == "B" or re.match(r"[VJNH][DO]", letters) is not None)


def first_phrase(text: str) -> str:
    """Return the noun phrase that a text begins with; the text itself where it begins with none."""
    places, letters = tag(text)
    found = _SUBJECT.match(letters)
    return text[: places[found.end() - 1][2]] if found else text


def topic_of(heading_path: str) -> str | None:
    """Return the noun phrase that a passage's headings name as its subject; a name is preferred to a common noun."""
    headings = heading_path.split(" > ")
    phrases = []
    for heading in dict.fromkeys((headings[0], headings[-1])):
        phrase = re.split(r"[,:|(–—?]| - ", re.sub(r"^[\d.]+\s+", "", plain(heading)))[0].strip()
        if not phrase:
            continue
        phrase = lower_first(phrase)
        places, letters = tag(phrase)
        # "Charging connectors compared", "Demand charges and how to keep them down": what comes before is the subject.
        found = re.match(
            rf"(?:(?:G(?=D))?{NOUN_PHRASE}(?:A{NOUN_PHRASE})?|J*N(?:AN)?G)(?:i{NOUN_PHRASE})?(?=$|[VTWR]|A[WR])",
            letters,
        )
        if found:
            phrase = phrase[: places[found.end() - 1][2]]
            if len(phrase.split()) <= 6 and not DANGLING.search(phrase):
                phrases.append(phrase)
    names = [phrase for phrase in phrases if re.search(r"[A-Z0-9]", phrase)]
    return next(iter(names or phrases), None)
