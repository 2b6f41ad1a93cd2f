import pytest

from ev_platform.dataset.extractive import generate


def asked(text):
    return [(c.question, c.answer, c.kind) for c in generate(text)]


@pytest.mark.parametrize(
    ("sentence", "question", "answer", "kind"),
    [
        (
            "A Type 2 connector has seven contacts.",
            "How many contacts does a Type 2 connector have?",
            "seven",
            "number",
        ),
        ("Tethered units need 2 anchors in brick.", "How many anchors do tethered units need?", "2", "number"),
        (
            "The CharIN association was founded in 2015 by carmakers.",
            "When was the CharIN association founded?",
            "in 2015",
            "number",
        ),
        (
            "A liquid-cooled cable carries 500 A without getting hot.",
            "How much does a liquid-cooled cable carry?",
            "500 A",
            "number",
        ),
        (
            "A full charge at home takes about 8 hours overnight.",
            "How long does a full charge at home take?",
            "about 8 hours",
            "number",
        ),
        (
            "Aluminium conductors are rare in chargers, because they creep under screws.",
            None,
            None,
            None,
        ),
        (
            "Aluminium conductors are rare in chargers because aluminium creeps under screws.",
            "Why are aluminium conductors rare in chargers?",
            "because aluminium creeps under screws",
            "reason",
        ),
        (
            "The supply cable must withstand a pull of 500 N.",
            "What must the supply cable withstand?",
            "a pull of 500 N",
            "requirement",
        ),
        (
            "The isolation of a charger must be confirmed by an electrician.",
            "By what must the isolation of a charger be confirmed?",
            "by an electrician",
            "requirement",
        ),
        (
            "A charging detail record is the bill of one session.",
            "What is a charging detail record?",
            "the bill of one session",
            "definition",
        ),
        (
            "The proximity contact is open while no plug is inserted.",
            "What is open while no plug is inserted?",
            "the proximity contact",
            "subject",
        ),
    ],
)
def test_sentence_gives_the_question_of_its_rule(sentence, question, answer, kind):
    expected = [] if question is None else [(question, answer, kind)]
    assert asked(sentence) == expected


@pytest.mark.parametrize(
    "sentence",
    [
        "It has five contacts for power and signals.",
        "This connector has seven contacts.",
        "They must withstand a pull of 500 N.",
        "Such a cable carries 500 A without getting hot.",
        "The other connector has seven contacts.",
        "Its latch is a steel pin with a spring.",
        "The cable of our car park is a heavy one.",
        "A plug is rated lower because it gets hot.",
        "The former has two contacts for direct current.",
    ],
)
def test_sentence_that_points_outside_itself_gives_no_dangling_question(sentence):
    for question, answer, _ in asked(sentence):
        words = {word.strip("?,.").lower() for word in f"{question} {answer}".split()}
        assert not words & {"it", "its", "this", "these", "they", "such", "other", "former", "our"}, question


@pytest.mark.parametrize(
    "sentence",
    [
        "It has five contacts for power and signals.",
        "This connector has seven contacts.",
        "Such a cable carries 500 A without getting hot.",
        "The other connector has seven contacts.",
        "The former has two contacts for direct current.",
        "Such a contact is open while no plug is inserted.",
        "If the cable is long, the fuse must withstand a surge.",
        "Because of rain the box must withstand water jets.",
        "Check the cable before each use.",
        "A connector has seven contacts",
        "Is the cable a heavy one?",
        "It is.",
        "The cover (grey is a common colour.",
    ],
)
def test_sentence_that_fits_no_rule_gives_nothing(sentence):
    assert asked(sentence) == []


def test_sentence_of_more_than_forty_words_gives_nothing():
    assert asked("A plug is the part " + "of the part " * 13 + "here.") == []


def test_questions_come_in_the_order_of_the_text_one_for_a_sentence():
    text = "A Type 2 connector has seven contacts. The supply cable must withstand a pull of 500 N."
    text += "\n\n- A Type 1 plug has five contacts."
    assert [answer for _, answer, _ in asked(text)] == ["seven", "a pull of 500 N", "five"]


def test_names_keep_their_capitals_and_other_words_lose_theirs():
    questions = [
        q for q, _, _ in asked("OCPP messages have three parts. Long cables have two layers. Combo 2 has nine pins.")
    ]
    assert questions == [
        "How many parts do OCPP messages have?",
        "How many layers do long cables have?",
        "How many pins does Combo 2 have?",
    ]


def test_answer_is_a_span_of_the_text():
    text = "A [Type 2](https://a.example/type-2) connector has seven contacts. The metal box is the shell of a charger."
    plain = text.replace("[Type 2](https://a.example/type-2)", "Type 2")
    found = asked(text)
    assert len(found) == 2
    assert all(answer in plain for _, answer, _ in found)


TABLE = """
| Connector | Contacts | Use |
| --- | --- | --- |
| Type 1 | five | AC |
| Type 2 | seven | AC |
"""


def test_table_asks_for_the_second_column_of_each_row():
    assert asked(TABLE) == [
        ("What is the contacts for the connector Type 1?", "five", "table"),
        ("What is the contacts for the connector Type 2?", "seven", "table"),
    ]


def test_table_rows_with_the_same_key_are_not_asked_for():
    assert [answer for _, answer, _ in asked(TABLE + "| Type 1 | six | AC |\n")] == ["seven"]


@pytest.mark.parametrize(
    "table",
    [
        TABLE.replace("| --- | --- | --- |\n", ""),
        TABLE.replace("| Connector | Contacts | Use |\n", ""),
        TABLE.replace("Connector", ""),
        TABLE.replace("five", "").replace("seven", ""),
        TABLE.replace("Type 1", "1").replace("Type 2", "2"),
        TABLE.replace(" | AC |", " |"),
    ],
    ids=["no rule", "no header", "column without a name", "empty cells", "numbered rows", "too few cells"],
)
def test_table_that_is_not_understood_gives_nothing(table):
    assert asked(table) == []


def test_generate_is_the_same_twice_on_the_whole_example(example_documents):
    n = 0
    for text in example_documents["text"]:
        first = asked(text)
        assert first == asked(text)
        for question, answer, _ in first:
            assert question.endswith("?") and answer.strip() == answer != ""
        n += len(first)
    assert n > 80
