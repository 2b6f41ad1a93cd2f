"""Whether an answer declines: says that the passages hold no answer, or that it does not know.

What does not belong here: whether it was right to decline; that is in the row (`is_answerable`).
"""

from __future__ import annotations

import re

_THE = r"(?:the |this |these |that |those |any of the |my |your )?"
_WHICH = r"(?:(?:above|provided|given|available|supplied|retrieved|following|source) )?"
_PARTS = {
    # What models call that which they were given; and by which names they mean nothing else.
    "passages": _THE
    + _WHICH
    + r"(?:passages?|contexts?|texts?|documents?|documentation|manuals?|articles?|excerpts?|sources?|paragraphs?"
    r"|snippets?|(?:provided|given|available|supplied|retrieved) (?:information|details|data|material|content))",
    "given": _THE + r"(?:passages?|context|excerpts?|snippets?"
    r"|(?:provided|given|supplied|retrieved) (?:passages?|context|texts?|documents?|information|details|content))",
    "do_not": r"(?:do not|does not|did not|don't|doesn't|didn't|never|fails? to)",
    "cannot": r"(?:cannot|can not|can't|could not|couldn't)",
    "is_not": r"(?:is not|isn't|are not|aren't|was not|wasn't|were not|weren't)",
    "really": r"(?:(?:explicitly|specifically|directly|clearly|actually|really) )?",
    "say": r"(?:say|mention|state|specify|tell|indicate|disclose|reveal|answer|address|discuss|clarify|note)",
    "says": r"(?:says?|mentions?|states?|specif(?:y|ies)|tells?|indicates?|answers?|provides?)",
    "hold": r"(?:contain|provide|include|give|have|offer|hold)s?",
    "said": r"(?:said|mentioned|stated|specified|given|provided|indicated|disclosed|answered|addressed|discussed"
    r"|found|included|contained|available|described|known|clear)",
    "stated": r"(?:said|mentioned|stated|specified|given|indicated|disclosed|answered)",
    "find": r"(?:answer|determine|find|tell|say|infer)",
    "found": r"(?:answered|determined|found|told|said|inferred|known|established)",
    "enough": r"(?:(?:any|an|the|enough|sufficient|such|this|that|specific|relevant|more|further|direct|clear|a) )*",
    "no": r"(?:no|not enough|insufficient|too little|not any)",
    "facts": r"(?:information|info|answers?|details?|data|mention|explanation|evidence|reference)",
}
# Each is looked for in the first sentence, in lower case and without what only introduces it.
_DECLINES = tuple(
    re.compile(pattern.format(**_PARTS))
    for pattern in (
        # I don't know; we do not have enough information; I cannot answer this
        r"^(?:i|we) (?:{do_not}|{cannot}) {really}(?:know|have {enough}(?:{facts}|idea)|{find})\b",
        r"^(?:(?:i'm|i am|we're|we are) )?(?:not sure|unsure|not certain|unable to {find}|not able to {find})\b",
        r"^(?:don't know|do not know|no idea|unknown|unanswerable|not answerable|no answer|none given|n/?a)$",
        # The passages do not say; the text doesn't contain the answer; the context is silent; it has no information
        r"^{passages} {do_not} {really}(?:{say}|{hold} (?:(?:me|us|you) )?{enough}{facts})\b",
        r"^{given} {do_not} {really}{hold}\b(?! to\b)",
        r"^{passages} (?:is|are) silent\b",
        r"^{passages} (?:{hold}|{says}|has|makes?) {no} (?:\w+ )?{facts}\b",
        r"^{passages} {says} nothing\b",
        r"^(?:none of|nothing in|neither of|nowhere in|no) {passages}\b.* {says}\b",
        # It is not mentioned in the context; not stated; the answer is not in the text
        r"\b(?:{is_not}|never|not) {really}{said}(?: anywhere)? (?:in|by|from|within) {passages}\b",
        r"^(?:(?:it|this|that|the answer) )?(?:{is_not}|not) {really}{stated}(?: here| anywhere)?$",
        r"^(?:it|this|the answer) {is_not} (?:in|within) {passages}\b",
        # The question cannot be answered; it can't be determined from the passages
        r"^(?:(?:it|this|that|the answer|(?:the|this|your) question) )?{cannot} be {found}\b",
        r"\b{cannot} be {found} (?:based on|from|with|by|using|in|within) {passages}\b",
        # There is no information; no answer is given; not enough information
        r"^there(?: is|'s| was) {no} (?:\w+ )?{facts}\b(?!-)",
        r"^{no} (?:\w+ )?{facts}(?:$| (?:is|are|was|were) {said}\b| (?:in|about|on|regarding|to answer)\b)",
    )
)
# "I'm sorry, but", "Based on the passages,", "It seems that"
_INTRODUCES = re.compile(
    (
        r"^(?:(?:(?:i'm|i am|we're|we are) )?(?:very |so )?(?:sorry|afraid|unfortunately)|answer|but|that|well|however"
        r"|it (?:seems|appears)|(?:(?:based|going|relying) on|according to|from|in) {passages})\b[\s,:;.-]*"
    ).format(**_PARTS)
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_HOWEVER = re.compile(r"\b(?:but|however|although|though|nevertheless)\b")
_MARKS = " \t\n\"'`*_“”‘’.,;:!?()[]-"


def is_abstention(answer: str, no_answer: str) -> bool:
    """Return whether an answer says that there is none.

    It does if it is empty (as in SQuAD 2.0), if it begins with the task's own sentence, or if its first sentence
    declines in the usual English words. An answer that declines and then answers all the same ("The passages do not
    say, but ...") is an answer. A negation in an answer ("VAT is not included in the price") is none either.

    Args:
        answer: What a system answered.
        no_answer: What the task answers to a question whose passages do not hold the answer, in any language.
    """
    said, own = _introduced(_plain(answer)), _introduced(_plain(no_answer))
    if not said or said == own:
        return True
    if _HOWEVER.search(said.removeprefix(own)):
        return False
    # A short one ("None", "No answer") may begin a real answer.
    if len(own.split()) > 2 and re.match(rf"{re.escape(own)}\b", said):
        return True
    sentence = _introduced(_plain(_SENTENCE_END.split(answer.strip(), maxsplit=1)[0]))
    return any(pattern.search(sentence) for pattern in _DECLINES)


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("’", "'").split()).strip(_MARKS)


def _introduced(text: str) -> str:
    """Return what an introduction such as "I'm sorry, but" introduces."""
    while (match := _INTRODUCES.match(text)) and match.end() < len(text):
        text = text[match.end() :]
    return text
