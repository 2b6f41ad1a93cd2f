"""Why a generated row cannot be an example: its form, its language, what a model left in it, what it leans on.

Every filter is a pure function that returns a reason with the figure or the words that tripped it, or None. What does
not belong here: whether the passage says so (`grounding`), rows that resemble each other (`overlap`), or in what order
filters are asked (`validate`). The phrases are English; rules on form hold for every language.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ev_platform.dataset.grounding import Flaw, content_stems, find_held_answer, find_ungrounded
from ev_platform.dataset.overlap import words

# Below this many letters the language detector takes one of two English questions with a foreign name for another
# language, and below this share it is unsure of itself.
MIN_LANGUAGE_CHARS = 40
MIN_LANGUAGE_SHARE = 0.9

_SOURCE = r"(?:passages?|texts?|documents?|documentation|excerpts?|paragraphs?|articles?|snippets?|contexts?|source)"
_GIVEN = r"(?:given|provided|above|following|preceding|previous|present|current|supplied|attached|aforementioned)"
_REFERENCES = re.compile(
    "|".join(
        (
            # the passage; the given text; this excerpt. "The text of the treaty" and "the document type" are not meant.
            rf"\b(?:the|this|that|these)\s+(?:{_GIVEN}\s+)?(?:passage|excerpt|snippet)s?\b(?!\s+of\b)",
            rf"\b(?:the|this|that|these)\s+{_GIVEN}\s+(?:{_SOURCE}|sections?|chapters?|information|content|table|figure|list)\b",
            rf"\b(?:according to|based on|from|in|by|per|does|do|did|of|as)\s+(?:the|this)\s+{_SOURCE}\b(?=\s*[,?.;]|\s*$|\s+"  # noqa: E501
            r"(?:say|state|mention|describe|recommend|suggest|explain|give|list|define|claim|advise|tell|refer|indicate|provide))",
            rf"\b(?:mentioned|described|listed|stated|discussed|given|shown|named|outlined|specified|presented|noted|"
            rf"explained|provided|covered|cited|referenced)\s+(?:above|below|earlier|here|previously|"
            rf"(?:in|by|within)\s+(?:the|this|that)\s+(?:{_GIVEN}\s+)?(?:{_SOURCE}|sections?|chapters?|table|figure|list|example|author))\b",
            r"\b(?:this|that|the above|the following|the aforementioned)\s+(?:section|chapter|table|figure|example|list|case|"  # noqa: E501
            r"situation|page|part|topic|method|command|step|procedure|guide|manual)\b",
            r"\b(?:in|of|by|from)\s+(?:the|this)\s+example\b(?!\s+of\b)",
            r"\bthe authors?\s+(?:say|state|mention|describe|recommend|suggest|explain|argue|claim|advise|think|mean|"
            r"believe|note|warn|give|use|list|refer|compare|conclude|point)\w*\b",
            r"\b(?:based on|according to|from|given)\s+the\s+(?:\w+\s+)?information\b(?=\s*(?:[,?.]|$|provided|given|above|in the))",  # noqa: E501
            r"\b(?:as\s+)?(?:mentioned|stated|described|noted|discussed|listed|shown)\s+(?:above|below|earlier|here)\b",
            r"\baforementioned\b|\bthe (?:former|latter)\b|\b(?:the|this|that)\s+(?:above|below)\b",
            r"\b(?:the following|these|the) (?:two|three|four|both)\b(?=\s*[?.,]|\s*$)",
            r"\bthe \w+ (?:above|below)(?=\s*(?:[,?.]|$))",
            r"\botherwise\s*\?\s*$",
        )
    ),
    re.IGNORECASE,
)
_PRONOUN = re.compile(
    r"\b(?:it|its|itself|they|them|their|theirs|he|him|his|she|her|hers|"
    r"this|these(?!\s+days)|those(?!\s+(?:who|that|which|whose|with|without|of|in|on|for|from|under|above|below|\w+ing|\w+ed)))\b",
    re.IGNORECASE,
)
# It rains, it takes an hour, it is safe to: the word stands for nothing.
_IMPERSONAL = re.compile(
    r"\bit\s+(?:take|cost|rain|snow|get\s+(?:dark|cold|warm|hot)|happen|matter|make\s+sense)s?\b"
    r"|\b(?:is|was|be|would|will|can|could|may|might|should)\s+it\s+(?:be\s+)?(?:not\s+)?(?!have\b)(?:\w+\s+){1,2}(?:to|that|for|if|when)\b"
    r"|\bdoes\s+it\s+(?:take|cost|mean|matter)\b"
    r"|\bit\s+(?:is|was|be|becomes?)\s+(?:not\s+)?(?:\w+\s+)?(?:to|that|if|when|for)\b",
    re.IGNORECASE,
)
_AUXILIARY = r"(?:is|are|was|were|do|does|did|can|could|may|might|must|shall|should|will|would|has|have|had)"
_DETERMINER = re.compile(
    r"\b(?:a|an|the|each|every|any|some|no|one|another|two|three|\w+'s)\s+(?!most\b|same\b)\w+", re.IGNORECASE
)
_BEFORE_NOUN = re.compile(
    rf"\b(?:{_AUXILIARY}|of|to|in|on|at|for|with|by|from|about|into|between|during)\s+(?:not\s+)?(?P<noun>\w+)",
    re.IGNORECASE,
)
_SUBORDINATOR = re.compile(
    r"\b(?:when|if|because|while|that|before|after|once|since|although|whose|which|as)\b|[,;:.]", re.IGNORECASE
)
_NEVER_NAMED = """
    it they them he she this these those be not you we i there one been also what which who whom whose
"""
_NO_ANTECEDENT = frozenset(_NEVER_NAMED.split())

_RESIDUE = re.compile(
    r"<\|[\w ]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<\|?(?:im_start|im_end|eot_id)\|?>|<unk>|<pad>"  # noqa: E501
    r"|```|^\s*#{1,6}\s|###\s*\w+|\[/?(?:ASSISTANT|USER|SYSTEM)\]|</?think>"
    r"|^\s*\**(?:assistant|user|system|human|ai|bot|question|answer|response|output|input|q|a)\**\s*:"
    r"|\n\s*\**(?:assistant|user|human|question|answer|response)\**\s*:"
    r"|^\s*(?:sure|certainly|of course|absolutely|great question|okay|ok)\b\s*[!,.:]\s*(?:here|i|the|let|below|as)\b"
    r"|^\s*(?:here is|here's|here are|below is)\s+(?:the|a|an|your|one|my)\s+(?:\w+\s+)?(?:answer|question|response|summary|list|json|label)"  # noqa: E501
    r"|\blet me know if\b|\bi hope this helps\b|^\s*[\[{]\s*\"\w+\"\s*:",
    re.IGNORECASE,
)
_MACHINE = r"\bas an? (?:ai\b(?: (?:language )?model| assistant)?|artificial intelligence|(?:large )?language model)"
_REFUSAL = re.compile(
    rf"{_MACHINE}"
    r"|^\W*(?:i['’]m |i am )?(?:sorry|afraid)\b.*\b(?:cannot|can['’]?t|unable|not able|don['’]?t|no information)\b"
    r"|^\W*i(?:['’]m| am)? (?:cannot|can['’]?t|could not|couldn['’]t|unable to|not able to|won['’]t|must decline)\b"
    r"|\bi (?:do not|don['’]t) (?:have|see|find|possess)\b.{0,40}\b(?:information|access|answer|details|data|context)\b"
    r"|^\W*i (?:do not|don['’]t) know\b"
    r"|^\W*(?:there is |there['’]s )?(?:no|not enough|insufficient) (?:\w+ ){0,4}(?:information|details?|data|context)\b"  # noqa: E501
    r"(?:\s+(?:is|was|are|has been))?.{0,30}\b(?:available|provided|given|mentioned|found|specified|in the|about|on|to answer)\b"  # noqa: E501
    r"|^\W*(?:the )?(?:provided |given )?(?:passages?|texts?|contexts?|documents?|documentation|information) (?:does|do|did) (?:not|n['’]t) "  # noqa: E501
    r"|\b(?:is|are|was|were) not (?:mentioned|specified|stated|provided|given|described|available|addressed) (?:in|by|within) "  # noqa: E501
    r"(?:the|this) (?:\w+ )?(?:passages?|texts?|contexts?|documents?|documentation|excerpt)"
    r"|^\W*(?:not (?:mentioned|specified|stated|provided|available|applicable|given)|unknown|n/?a|none|null|nan)\W*$"
    r"|^.{0,40}\b(?:cannot|can['’]t|could not) be (?:determined|answered)\b.{0,60}$",
    re.IGNORECASE,
)
_TEMPLATE = re.compile(
    r"<\|[\w ]{1,40}\|>|\[/?INST\]|<</?SYS>>|</s>|<(?:start|end)_of_turn>|^\s*(?:assistant|system)\s*:|^###\s*\w+",
    re.IGNORECASE,
)
_IMPERATIVE = re.compile(
    r"^(?:name|list|give|describe|explain|define|state|identify|compare|tell|summari[sz]e|outline|specify|say|calculate|find)\b",
    re.IGNORECASE,
)


def find_residue(*texts: str) -> Flaw | None:
    """Return what a chat template or a talkative model left in a text."""
    for text in texts:
        match = _RESIDUE.search(text)
        if match:
            return "residue", repr(match[0].strip())
    return None


def find_unnatural(text: str) -> Flaw | None:
    """Return what shows that a text to label was not written by a person: a chat template, a model that speaks of itself.

    Such a text is found, not generated, so what only a model is likely to write in an answer may well stand in it.
    """  # noqa: E501
    match = _TEMPLATE.search(text)
    if match:
        return "residue", repr(match[0].strip())
    match = re.search(_MACHINE, text, re.IGNORECASE)
    return ("refusal", repr(match[0])) if match else None


def find_refusal(answer: str) -> Flaw | None:
    """Return the words with which an answer declines to answer, or says that nothing is known."""
    match = _REFUSAL.search(answer.strip())
    return ("refusal", repr(match[0][:80])) if match else None


def find_foreign(text: str, languages: Sequence[str]) -> Flaw | None:
    """Return the language of a text, if it is surely none of those wanted; a short text is never sure."""
    from ev_platform.corpus.language import detect_language

    if sum(map(str.isalpha, text)) < MIN_LANGUAGE_CHARS:
        return None
    language, share = detect_language(text)
    is_wrong = language not in languages and share >= MIN_LANGUAGE_SHARE
    return ("language", f"{language}, {share:.2f} of the text") if is_wrong else None


def find_malformed(question: str, answer: str, max_question_words: int, max_answer_words: int) -> Flaw | None:
    """Return what is wrong with the form of a question or of its answer."""
    n_question, n_answer = len(words(question)), len(words(answer))
    if not re.search(r"\w", answer):
        return "answer_empty", repr(answer[:40])
    if n_question > max_question_words:
        return "question_too_long", f"{n_question} words > {max_question_words}"
    if n_answer > max_answer_words:
        return "answer_too_long", f"{n_answer} words > {max_answer_words}"
    if not question.rstrip(" \"')”»").endswith(("?", "？", "؟")) and not _IMPERATIVE.match(question.strip()):
        return "not_a_question", repr(question.strip()[-40:])
    if not content_stems(question):
        return "question_too_vague", "it has no word that says what is meant"
    asked, said = words(question), words(answer)
    if asked == said:
        return "answer_is_question", repr(answer[:40])
    is_inside = any(asked[i : i + len(said)] == said for i in range(len(asked) - len(said) + 1))
    if is_inside and not _offers(question, answer) and said[0] not in ("yes", "no"):
        return "answer_in_question", repr(answer[:40])
    return None


def _offers(question: str, answer: str) -> bool:
    """Whether a question offers its answer as a choice, such as A or B."""
    return bool(re.search(r"\bor\b", question)) and len(words(answer)) <= 6


def find_dependence(question: str) -> Flaw | None:
    """Return the words of a question that lean on a text that its reader does not have."""
    match = _REFERENCES.search(question)
    if match:
        return "not_self_contained", repr(match[0].strip())
    for match in _PRONOUN.finditer(question):
        if any(m.start() <= match.start() < m.end() for m in _IMPERSONAL.finditer(question)):
            continue
        if not _has_antecedent(question[: match.start()]):
            return "not_self_contained", f"{match[0]!r} stands for nothing that was named"
    return None


def _has_antecedent(before: str) -> bool:
    """Whether something was named that a pronoun can stand for: a noun with its article, a name, a subject."""
    text = before.strip()
    if _DETERMINER.search(text) or re.search(r"(?<=\w)[\s(\"'`]+(?:[A-Z]\w*|[`\"]\S)", text):
        return True
    for match in _BEFORE_NOUN.finditer(text):
        if match["noun"].lower() not in _NO_ANTECEDENT:
            return True
    # Which cells die because they ...: in a clause of its own a pronoun may stand for what is asked about.
    clauses = _SUBORDINATOR.split(text)
    return len(clauses) > 1 and any(content_stems(clause) for clause in clauses[:-1])


def find_unsupported(
    question: str, answer: str, passage: str, *, is_answerable: bool = True, no_answer: str | None = None
) -> Flaw | None:
    """Return why a passage does not support a row.

    Args:
        question: What is asked.
        answer: What is answered.
        passage: The source, with its headings.
        is_answerable: Whether the passage is said to hold the answer.
        no_answer: What is answered where it does not.
    """
    if is_answerable:
        return find_ungrounded(question, answer, passage)
    if no_answer is not None and words(answer) != words(no_answer):
        return "not_the_no_answer", f"an unanswerable question is answered with {answer[:60]!r}"
    return find_held_answer(question, passage)
