"""Questions about sentences: their clauses, conditions, orders, purposes, reasons and contrasts.

A sentence that fits no rule gives nothing, because a bad question costs more than a missing one. What does not belong
here: tables, lists and headings (`offline_blocks`), and questions about a single clause (`offline_clauses`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from ev_platform.teachers import Draft
from ev_platform.teachers.offline_clauses import CLAUSE_RULES, NESTED, yes_no_drafts
from ev_platform.teachers.offline_grammar import Clause, first_phrase, is_order, parse_clause, topic_of
from ev_platform.teachers.offline_text import (
    DANGLING,
    PRONOUN,
    Sentence,
    is_common_noun,
    lower_first,
    prose_lines,
    split_sentences,
    tag,
)


def sentence_drafts(heading_path: str, text: str) -> Iterator[Draft]:
    """Yield the questions that the sentences of a passage give, in the order of the text.

    A question about "the vehicle" is understood only where its topic is known, so that it names the topic of the
    headings; where they name none, it is left out.
    """
    topic = topic_of(heading_path)
    for line in prose_lines(text):
        previous: tuple[Sentence, Clause | None] | None = None
        for sentence in split_sentences(line):
            clause = parse_clause(re.sub(r", (?=because\b)", " ", sentence.text).partition(" because ")[0])
            for subject, draft in chain(_drafts_of(sentence, clause), _pair(previous, sentence, clause)):
                question = _with_topic(draft.question, subject, topic)
                if question and is_sound(draft):
                    yield replace(draft, question=question)
            previous = sentence, clause


def _drafts_of(sentence: Sentence, clause: Clause | None) -> Iterator[tuple[str, Draft]]:
    """Yield (what the question is about, the question)."""
    for rule in (_condition, _order, _purpose, _contrast, _consequence):
        yield from rule(sentence)
    if clause is None or DANGLING.search(clause.rest):
        return
    for rule in CLAUSE_RULES:
        found = rule(clause)
        if found is not None and not PRONOUN.search(found[1]):
            question, answer, kind = found
            yield clause.subject, Draft(question, answer, kind, evidence=sentence.raw)
    why = sentence.text.partition(" because ")[2]
    if why and not PRONOUN.search(why) and not clause.is_negative and not NESTED.search(clause.rest):
        question = clause.ask("Why", clause.rest)
        yield clause.subject, Draft(question, f"because {why}", "reason", evidence=sentence.raw)
    # "..., so that a fault is seen", "..., since few cars accept 22 kW"
    found = re.match(
        r"[^,;:]+,? (?P<why>so that (?P<end>[^,;:]+)|(?<=, )since (?!\d|[A-Z][a-z]+ \d)(?P<since>[^,;:]+))$",
        sentence.text,
    )
    if (
        found
        and not PRONOUN.search(found[0])
        and not clause.is_negative
        and clause.rest
        and not NESTED.search(clause.rest)
    ):
        rest = clause.rest.removesuffix(found["why"]).strip(" ,")
        if re.search(r"[ZHMTB]", tag(found["end"] or found["since"])[1]):
            yield clause.subject, Draft(clause.ask("Why", rest), found["why"], "reason", evidence=sentence.raw)
    for draft in yes_no_drafts(clause, sentence):
        yield clause.subject, draft


def _with_topic(question: str, subject: str, topic: str | None) -> str | None:
    """Name the topic in a question about a thing that no name, figure or closer word tells apart."""
    thing = re.sub(r"^(?:the|a|an) ", "", subject)
    is_vague = len(thing.split()) <= 2 and not re.search(r"[A-Z0-9]", thing)
    # "Part 2", "profile 1", "C": numbered within something.
    is_numbered = is_common_noun(thing.split()[0].lower()) and re.fullmatch(r"\w+ [\dA-Z]\S*", thing)
    if not (is_vague or is_numbered or len(thing) == 1):
        return question
    if topic is None:
        return None
    if set(_content_words(topic)) & set(_content_words(question)) and not subject.startswith("the "):
        return question
    if set(_content_words(topic)) <= set(_content_words(question)):
        return question
    return f"In the context of {topic}, {question[0].lower()}{question[1:]}"


def _content_words(text: str) -> list[str]:
    return [word.lower().rstrip("s") for word in re.findall(r"[\w.-]+", text) if len(word) > 3 or not word.islower()]


def _condition(sentence: Sentence) -> Iterator[tuple[str, Draft]]:
    """`If the cable is damaged, take it out of use` asks what should be done if it is."""
    found = re.match(
        r"(?P<when>If|When|Before|After|Where|Once|As soon as|While|Unless) (?P<if>[^,;:]+), (?P<then>[^;:]+)$",
        sentence.text,
    )
    if found is None or DANGLING.search(found["if"]) or not 2 <= len(found["if"].split()) <= 14:
        return
    when, then = f"{found['when'].lower()} {lower_first(found['if'])}", found["then"].removeprefix("then ")
    condition = tag(found["if"])[1]
    has_verb = re.search(r"[ZHMTB]", condition) is not None
    # "If necessary", "When dry" say nothing; three words have a verb, seen or not.
    if (found["when"] not in {"Before", "After"} or condition[0] not in "GDJNSV") and not (
        has_verb or len(condition) > 2
    ):
        return
    if re.search(r"\b(?:and|or|but)\b", then) and len(then.split()) > 22:
        return
    if re.search(r"\s[–—-]\s", then):
        return
    # The pronouns of an order or a consequence mean what the condition names.
    if re.search(r"\b(?:this|these|we|our|that is|such|as above)\b", then):
        return
    if is_order(then):
        yield first_phrase(found["if"]), Draft(f"What should be done {when}?", then, "procedure", evidence=sentence.raw)
        return
    clause = parse_clause(then[0].upper() + then[1:])
    if (
        clause is None
        or (found["when"] in {"Before", "After"} and not has_verb)
        or (re.search(r"\b(?:can|may|must|should)\b", then) and clause.aux in {"do", "does"})
    ):
        return
    if clause.aux in {"must", "should"} and clause.verb and not clause.verb.startswith("be") and not clause.is_negative:
        action = then[then.index(clause.aux) + len(clause.aux) :].strip()
        yield (
            clause.subject,
            Draft(f"What {clause.aux} {clause.subject} do {when}?", action, "requirement", evidence=sentence.raw),
        )
    elif not clause.is_negative and found["when"] in {"If", "When", "Once", "Unless"} and not clause.is_be:
        yield first_phrase(found["if"]), Draft(f"What happens {when}?", then, "fact", evidence=sentence.raw)


def _order(sentence: Sentence) -> Iterator[tuple[str, Draft]]:
    """`Lock the cabinet before the fuse is drawn` asks what should be done before."""
    found = re.match(
        r"(?P<then>[A-Z][a-z]+ [^,;:]+?),? (?P<when>before|after|if|when|as soon as|once) (?P<if>[^,;:]+)$",
        sentence.text,
    )
    if (
        found is None
        or not is_order(lower_first(found["then"]))
        or DANGLING.search(found[0])
        or len(found["if"].split()) < 2
    ):
        return
    if re.search(r"[ZHM]", tag(found["then"])[1]) or re.search(
        r"\b(?:date|time|day|year|moment|case|point)$", found["then"]
    ):
        return
    yield (
        first_phrase(found["if"]),
        Draft(f"What should be done {found['when']} {found['if']}?", found["then"], "procedure", evidence=sentence.raw),
    )


def _purpose(sentence: Sentence) -> Iterator[tuple[str, Draft]]:
    """`To reset the station, hold the button for five seconds` asks how."""
    found = re.match(r"(?:To|In order to) (?P<aim>[a-z]+ [^,;:]+), (?P<then>[^;:]+)$", sentence.text)
    if found is None or DANGLING.search(found["aim"]) or not 2 <= len(found["aim"].split()) <= 14:
        return
    then = re.split(r"\s[–—-]\s", found["then"])[0]
    if tag(found["aim"])[1][0] in "BHN" and is_order(then):
        yield found["aim"], Draft(f"What should be done to {found['aim']}?", then, "procedure", evidence=sentence.raw)


def _contrast(sentence: Sentence) -> Iterator[tuple[str, Draft]]:
    """`X is longer than Y` asks which is; `X does this, whereas Y does that` asks how they differ."""
    text = re.split(r";\s", sentence.text)[0]
    found = re.fullmatch(r"(?P<one>.+), (?:whereas|while) (?P<two>.+)", text)
    if found:
        one, two = parse_clause(found["one"]), parse_clause(found["two"][0].upper() + found["two"][1:])
        is_plain = one is not None and not one.lead and len(text.split()) <= 32 and not DANGLING.search(found[0])
        if one and two and is_plain and one.subject != two.subject:
            do = "do" if one.is_plural else "does"
            yield (
                one.subject,
                Draft(f"How {do} {one.subject} differ from {two.subject}?", text, "comparison", evidence=sentence.raw),
            )
        return
    clause = parse_clause(text)
    if clause is None or not clause.is_be or clause.verb or clause.is_negative or clause.lead:
        return
    found = re.match(
        r"(?:(?:much|far|slightly) )?(?P<how>(?:more|less) [a-z]+|[a-z]+er) than (?P<other>[^,]+)$", clause.rest
    )
    if (
        found
        and not DANGLING.search(found["other"])
        and re.fullmatch(r"D?[RJKVGCNS]*[NSC](?:i[DJNSCGV]+)?", tag(found["other"])[1])
    ):
        pair = sorted((clause.subject, found["other"]), key=str.casefold)
        yield (
            clause.subject,
            Draft(
                f"Which {clause.aux} {found['how']}, {pair[0]} or {pair[1]}?",
                clause.subject,
                "comparison",
                evidence=sentence.raw,
            ),
        )


def _pair(
    before: tuple[Sentence, Clause | None] | None, sentence: Sentence, two: Clause | None
) -> Iterator[tuple[str, Draft]]:
    """Two sentences that say the same of two of a kind, `Part 1 holds ... Part 2 holds ...`, ask how they differ."""
    one = before[1] if before else None
    if before is None or one is None or two is None or (one.verb, one.aux) != (two.verb, two.aux):
        return
    shared = set(one.subject.split()) & set(two.subject.split()) - {"the", "a", "an", "of", "and", "in", "for"}
    if not shared or one.subject == two.subject or DANGLING.search(f"{before[0].text} {sentence.text}"):
        return
    answer, evidence = f"{before[0].text}. {sentence.text}", f"{before[0].raw} {sentence.raw}"
    question = f"What is the difference between {one.subject} and {two.subject}?"
    yield one.subject, Draft(question, answer, "comparison", evidence=evidence)


def _consequence(sentence: Sentence) -> Iterator[tuple[str, Draft]]:
    """`A is rated by its output, so losses must be added` asks why they must."""
    found = re.match(r"(?P<why>[^;:]+?), so (?!that\b|far\b|much\b)(?P<fact>[^;:]+)$", sentence.text)
    if found is None or PRONOUN.search(found["why"].replace(" its ", " ")) or not 4 <= len(found["why"].split()) <= 28:
        return
    if re.match(r"(?:If|When|In|At|Both|All|Then|For|And|But)\b", found["why"]) or ", and " in found["fact"]:
        return
    clause = parse_clause(found["fact"][0].upper() + found["fact"][1:])
    if clause is None or DANGLING.search(clause.rest) or clause.is_negative:
        return
    yield clause.subject, Draft(clause.ask("Why", clause.rest), found["why"], "reason", evidence=sentence.raw)


def is_sound(draft: Draft) -> bool:
    """Say whether a question can stand alone and its answer is short and complete."""
    question, answer = draft.question, draft.answer
    asked = question.split(" ", 1)[-1]
    words = answer.split()
    return (
        3 <= len(question.split()) <= 32
        and 1 <= len(words) <= 45
        and not DANGLING.search(re.sub(r"\b(?:one of|it take)\b", "", asked))
        and all(text.count("(") == text.count(")") and text.count('"') % 2 == 0 for text in (question, answer))
        and not re.search(r"\b(?:of|to|and|or|the|a|an|with|for|in|at|by|than|that|not)$", answer)
        and not re.search(r"[|<>{}\\]|https?:|www\.", question + answer)
        and not re.search(r"\b(?:the|a|an|and|or|not)\?$", question)
    )
