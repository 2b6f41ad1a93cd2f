"""A made-up corpus of any size, and what a model that reads it honestly would reply to each of the platform's prompts.

Every sentence that states something is made from a form, and is found again by it, so that the answers really stand in
the passages. What does not belong here: serving the replies (`teachers.anthropic_server`).
"""

import json
import random
import re

from ev_platform_tests.teachers.answers import last_text

# What a passage says, what is asked of it, and the answer. `name` and `place` occur once in the whole corpus.
FORMS = [
    (
        "The {name} pump in {place} moves {number} litres of {stuff} every minute.",
        "How much {stuff} does the {name} pump in {place} move every minute?",
        "{number} litres",
    ),
    (
        "{name} Bridge was opened in {place} in the year {number}.",
        "In which year was {name} Bridge opened in {place}?",
        "{number}",
    ),
    (
        "In {place}, the {name} workshop repairs {stuff} for the whole county.",
        "What does the {name} workshop in {place} repair?",
        "{stuff}",
    ),
    (
        "Whoever visits the {name} archive of {place} must bring {stuff} along.",
        "What must visitors of the {name} archive of {place} bring along?",
        "{stuff}",
    ),
    (
        "The {name} tower of {place} is {number} metres high.",
        "How high is the {name} tower of {place}?",
        "{number} metres",
    ),
    (
        "One filling of {stuff} lets a {name} lamp from {place} burn for {number} hours.",
        "For how many hours does a {name} lamp from {place} burn on one filling?",
        "{number} hours",
    ),
    (
        "The ferry {name} sails from {place} with at most {number} passengers.",
        "How many passengers may sail from {place} on the ferry {name}?",
        "{number} passengers",
    ),
    (
        "Bread of the {name} bakery in {place} is made with {stuff}.",
        "What is the bread of the {name} bakery in {place} made with?",
        "{stuff}",
    ),
    (
        "The guild of {place} teaches its apprentices {stuff} in {name} Hall.",
        "What does the guild of {place} teach its apprentices in {name} Hall?",
        "{stuff}",
    ),
    (
        "Doctor {name} of {place} filled {number} pages with notes on {stuff}.",
        "How many pages did Doctor {name} of {place} fill with notes on {stuff}?",
        "{number} pages",
    ),
]
UNKNOWN = "Which painter decorated the ceiling that belongs to {name} in {place}?"
STUFF = """salt water/copper wire/river clay/wooden ladders/old clocks/fishing nets/barley flour/lamp oil/
wool blankets/iron hinges/glass bottles/leather boots/garden seeds/slate tiles/paper maps/church bells/apple cider/
stone carving/rope making/linen shirts"""
REMARKS = """Nobody in {place} speaks of it without a smile./On market days the road to {place} is full by noon./
Old letters from {place} praise the quiet evenings./A small sign near {place} shows the way./
Painters come to {place} for the light in September./The council of {place} looks after the roof and the garden."""
FIELDS = {"name": r"[A-Z]\w+", "place": r"[A-Z]\w+", "number": r"\d+", "stuff": r"\w+ \w+"}
SYLLABLES = "bar/cel/dor/fen/gol/har/iv/jun/kel/lom/mar/nev/or/pel/quin/ras/sol/tarn/ul/vor/wen/yar/zim"


def _phrases(text):
    return [phrase.strip() for phrase in text.split("/")]


def _pattern(sentence):
    escaped = re.escape(sentence)
    for field, pattern in FIELDS.items():
        escaped = escaped.replace(re.escape("{" + field + "}"), rf"(?P<{field}>{pattern})")
    return re.compile(escaped)


PATTERNS = [(_pattern(sentence), question, answer) for sentence, question, answer in FORMS]


def read_facts(passage):
    """Return (question, answer, sentence, fields) of everything that a passage states, in its order."""
    found = []
    for pattern, question, answer in PATTERNS:
        for match in pattern.finditer(passage):
            fields = match.groupdict()
            found.append((match.start(), question.format(**fields), answer.format(**fields), match[0], fields))
    return [fact[1:] for fact in sorted(found, key=lambda fact: fact[0])]


def write_pages(n_pages, n_passages=4, seed=5):
    """Return pages, each a list of passages of two facts and two remarks; a longer list begins with the same pages.

    Every fact has names of its own, so that no question is asked of two passages.
    """
    rng, syllables = random.Random(seed), _phrases(SYLLABLES)
    taken = set()

    def name():
        while True:
            made = "".join(rng.choice(syllables) for _ in range(4)).capitalize()
            if made not in taken:
                taken.add(made)
                return made

    def passage():
        sentences = []
        for sentence, _, _ in rng.sample(FORMS, 2):
            place = name()
            fields = {"number": rng.randint(12, 1980), "stuff": rng.choice(_phrases(STUFF))}
            sentences.append(sentence.format(name=name(), place=place, **fields))
            sentences.append(rng.choice(_phrases(REMARKS)).format(place=place))
        return " ".join(sentences)

    return [[passage() for _ in range(n_passages)] for _ in range(n_pages)]


# ---- replies ----


def purpose_of(request):
    """Return what a request of the platform is for, by the form of the reply that it asks."""
    fields = request["output_config"]["format"]["schema"]["properties"]
    known = {
        "questions": "generate",
        "is_supported": "check",
        "score": "judge",
        "better": "compare",
        "answer": "answer",
    }
    return next(purpose for field, purpose in known.items() if field in fields)


def parts_of(request, name):
    """Return the data of a prompt that stand between marks of a name."""
    return [text for _, text in re.findall(rf"<{name}-(\w+)>\n(.*?)\n</{name}-\1>", last_text(request), re.DOTALL)]


def reply(request, read=read_facts):
    """Return the JSON of an honest reply.

    Args:
        request: As the API gets it.
        read: Returns the facts of a passage.
    """
    facts = [fact for passage in parts_of(request, "passage") for fact in read(passage)]
    return json.dumps(globals()[f"_{purpose_of(request)}"](request, facts))


def _generate(request, facts):
    written, left = [], list(facts)
    for number, kind in re.findall(r"^(\d+)\. kind (\w+), difficulty", last_text(request), re.MULTILINE):
        if not left:
            break
        question, answer, sentence, fields = left.pop(0)
        if kind == "unanswerable":
            question, answer = UNKNOWN.format(**fields), "Not said."
        written.append(
            {"plan": int(number), "kind": kind, "evidence": sentence, "question": question, "answer": answer}
        )
    return {"questions": written}


def _answer(request, facts):
    (asked,) = parts_of(request, "question")
    system = request["system"][0]["text"]
    unknown = re.search(r"answer with exactly these words: (.*)", system)[1]
    return {"answer": next((answer for question, answer, _, _ in facts if question == asked), unknown)}


def _judge(request, facts):
    (reference,), (answer,) = parts_of(request, "reference"), parts_of(request, "answer")
    return {"reasoning": f"{answer} stands beside {reference}.", "score": 4 if reference in answer else 0}


def _compare(request, facts):
    (reference,), answers = parts_of(request, "reference"), parts_of(request, "answer")
    first, second = (reference in answer for answer in answers)
    return {"reasoning": "Compared with the reference.", "better": ["second", "tie", "first"][1 + first - second]}


def _check(request, facts):
    (asked,), answers = parts_of(request, "question"), parts_of(request, "answer")
    known = {question: answer for question, answer, _, _ in facts}
    is_supported = known.get(asked) == answers[0] if answers else asked not in known
    return {"reason": "Compared with the passage.", "is_supported": is_supported, "is_self_contained": True}
