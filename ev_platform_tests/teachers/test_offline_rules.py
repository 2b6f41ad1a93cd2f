"""Each rule on the smallest text that trips it, and what must give nothing."""

import pytest

from ev_platform.teachers.offline_blocks import block_drafts
from ev_platform.teachers.offline_rules import sentence_drafts

TOPIC = "Charging stations"


def asked(text, heading_path=TOPIC, *, kinds=None):
    drafts = sentence_drafts(heading_path, text)
    return [(d.question, d.answer, d.kind) for d in drafts if d.kind in (kinds or {d.kind} - {"yes_no"})]


def blocks(text, heading_path=TOPIC, *, is_first=True):
    return [(d.question, d.answer, d.kind) for d in block_drafts(heading_path, text, is_first_of_heading=is_first)]


@pytest.mark.parametrize(
    ("sentence", "question", "answer", "kind"),
    [
        ("A Type 2 connector has seven contacts.", "How many contacts does a Type 2 connector have?", "seven",
         "number"),
        ("Tethered wall units need 2 anchors in brick.", "How many anchors do tethered wall units need in brick?", "2",
         "number"),
        ("A liquid-cooled CCS2 cable carries 500 A without fans.", "What current does a liquid-cooled CCS2 cable carry"
         " without fans?", "500 A", "number"),
        ("A full charge at home takes about 8 hours.", "How long does a full charge at home take?", "about 8 hours",
         "number"),
        ("A session at the Harbour hub costs 12 dollars.", "How much does a session at the Harbour hub cost?",
         "12 dollars", "number"),
        ("The J1772 breaker trips at 6 mA.", "At what current does the J1772 breaker trip?", "6 mA", "number"),
        ("Typical tethered cables are 5 m long.", "How long are typical tethered cables?", "5 m", "number"),
        ("The limit of a Mode 2 cable is 32 A.", "What is the limit of a Mode 2 cable?", "32 A", "number"),
        ("The CharIN association was founded in 2015 by carmakers.", "When was the CharIN association founded?",
         "in 2015", "number"),
        ("Long DC cables are tested every 12 months.", "How often are long DC cables tested?", "every 12 months",
         "number"),
        ("A damaged DC cable must be replaced within 48 hours.", "How soon must a damaged DC cable be replaced?",
         "within 48 hours", "number"),
        ("A 250 A device is the next standard size.", None, None, None),
        ("The long supply cable must withstand a pull of 500 N.", "What must the long supply cable withstand?",
         "a pull of 500 N", "requirement"),
        ("The letter on the inlet has to match the letter on the plug.", "What does the letter on the inlet have to"
         " match?", "the letter on the plug", "requirement"),
        ("Cables in the yard must hang clear of the wet ground.", "What must cables in the yard do?",
         "hang clear of the wet ground", "requirement"),
        ("A mechanical latch under a lever holds the connector.", "What does a mechanical latch under a lever hold?",
         "the connector", "fact"),
        ("Every OCPP session depends on a stable connection.", None, None, None),
        ("An OCPP session depends on a stable connection.", "What does an OCPP session depend on?",
         "a stable connection", "fact"),
        ("SAE J3400 adapters are certified to UL 2252.", "What are SAE J3400 adapters certified to?", "UL 2252",
         "fact"),
        ("A charging detail record is the bill of one session.", "What is a charging detail record?",
         "the bill of one session", "definition"),
        ("NACS, the North American standard, is an old company plug.", "What is NACS?", "an old company plug",
         "definition"),
        ("Bare copper conductors are common in chargers because copper bends well.", "Why are bare copper conductors"
         " common in chargers?", "because copper bends well", "reason"),
        ("Loose CCS contacts get warm, so a CCS inlet must measure its temperature.", None, None, None),
        ("Loose contacts of the plug get warm, so a CCS inlet must have a sensor.", "Why must a CCS inlet have a"
         " sensor?", "Loose contacts of the plug get warm", "reason"),
        ("Controller boards in stock are updated each quarter, so that a swapped board is current.", "Why are"
         " controller boards in stock updated each quarter?", "so that a swapped board is current", "reason"),
        ("The DC station fan starts when the heat sink is hot.", "When does the DC station fan start?",
         "when the heat sink is hot", "fact"),
        ("If a DC cable is damaged, take it out of use.", "What should be done if a DC cable is damaged?",
         "take it out of use", "procedure"),
        ("If an OCPP link breaks, the OCPP server must store the messages.", "What must the OCPP server do if an OCPP"
         " link breaks?", "store the messages", "requirement"),
        ("To reset a Plugfield station, hold the red button.", "What should be done to reset a Plugfield station?",
         "hold the red button", "procedure"),
        ("Isolate the supply before a DC cable is cut.", "What should be done before a DC cable is cut?",
         "Isolate the supply", "procedure"),
        ("A Type 1 plug is smaller than a Type 2 plug.", "Which is smaller, a Type 1 plug or a Type 2 plug?",
         "a Type 1 plug", "comparison"),
        ("J3400 allows AC up to 277 V, while J1772 ends at 240 V.", "How does J3400 differ from J1772?",
         "J3400 allows AC up to 277 V, while J1772 ends at 240 V", "comparison"),
    ],
)  # fmt: skip
def test_sentence_gives_the_question_of_its_rule(sentence, question, answer, kind):
    found = asked(sentence)
    assert found == [] if question is None else (question, answer, kind) in found


def test_two_sentences_about_two_of_a_kind_ask_for_the_difference():
    text = "Part 1 holds the terms of the field. Part 2 holds the messages of the link."
    assert asked(text, "ISO 15118", kinds={"comparison"}) == [
        (
            "In the context of ISO 15118, what is the difference between Part 1 and Part 2?",
            "Part 1 holds the terms of the field. Part 2 holds the messages of the link",
            "comparison",
        )
    ]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("A Type 2 connector has seven contacts.", [
            ("Does a Type 2 connector have seven contacts?", "Yes, a Type 2 connector has seven contacts"),
            ("Does a Type 2 connector have nine contacts?", "No, a Type 2 connector has seven contacts")]),
        ("A type B switch must not be used behind a type A switch.", [
            ("Must a type B switch be used behind a type A switch?",
             "No, a type B switch must not be used behind a type A switch")]),
        ("The Mode 1 plug does not carry a pilot contact.", [
            ("Does the Mode 1 plug carry a pilot contact?", "No, the Mode 1 plug does not carry a pilot contact")]),
        ("A damaged DC cable must be replaced within 48 hours.", [
            ("Must a damaged DC cable be replaced within 48 hours?",
             "Yes, a damaged DC cable must be replaced within 48 hours"),
            ("Must a damaged DC cable be replaced within 24 hours?",
             "No, a damaged DC cable must be replaced within 48 hours")]),
        ("A wide CCS bay has between 3 and 4 metres of room.", [
            ("Does a wide CCS bay have between 3 and 4 metres of room?",
             "Yes, a wide CCS bay has between 3 and 4 metres of room")]),
    ],
)  # fmt: skip
def test_statement_is_asked_with_its_own_figure_and_with_a_wrong_one(sentence, expected):
    assert asked(sentence, kinds={"yes_no"}) == [(question, answer, "yes_no") for question, answer in expected]


@pytest.mark.parametrize(
    "sentence",
    [
        "It has five contacts for power and signals.",
        "This connector has seven contacts.",
        "Such a cable carries 500 A without getting hot.",
        "The other connector has seven contacts.",
        "The former has two contacts for direct current.",
        "Its latch is a steel pin with a spring.",
        "The cable of our car park is a heavy one.",
        "Two things spoil the sum of a month.",
        "No contact carries the alternating current.",
        "The second part is the demand charge.",
        "If it is damaged, take the cable out of use.",
        "Is the cable a heavy one?",
        "A connector has seven contacts",
        "It is.",
        "The cover (grey is a common colour.",
        "Retrieve the date when the data were updated.",
        "You should keep the cable dry.",
        "The CCS plug won't change for the next edition.",
    ],
)
def test_sentence_that_cannot_stand_alone_gives_nothing(sentence):
    assert asked(sentence) == []
    assert asked(sentence, kinds={"yes_no"}) == []


def test_sentence_of_more_than_forty_five_words_gives_nothing():
    assert asked("A plug is the part " + "of the part " * 15 + "of metal.") == []


def test_question_about_a_definite_thing_names_the_topic_of_the_headings():
    sentence = "The vehicle sends a discovery request."
    expected = ("In the context of CHAdeMO, what does the vehicle send?", "a discovery request", "fact")
    assert asked(sentence, "CHAdeMO > How a session starts") == [expected]
    assert asked(sentence, "How it all begins, and why") == []


@pytest.mark.parametrize(
    ("heading_path", "sentence", "question"),
    [
        ("CHAdeMO", "The vehicle holds a list of limits.", "In the context of CHAdeMO, what does the vehicle hold?"),
        ("Charging connectors compared > Type 1 (SAE J1772)", "The lever holds the latch.",
         "In the context of Type 1, what does the lever hold?"),
        ("Demand charges and how to keep them down", "The meter records the load.",
         "In the context of demand charges, what does the meter record?"),
        ("Demand charges", "The demand charge follows the peak.", "What does the demand charge follow?"),
        ("OCPP 2.0.1: what is new", "Profile 2 adds the TLS layer.",
         "In the context of OCPP 2.0.1, what does Profile 2 add?"),
    ],
)  # fmt: skip
def test_topic_is_the_noun_phrase_of_a_heading(heading_path, sentence, question):
    assert [q for q, _, _ in asked(sentence, heading_path, kinds={"fact"})] == [question]


def test_names_keep_their_capitals_and_other_words_lose_theirs():
    text = "OCPP messages have three parts. Long cables have two layers. Combo 2 has nine pins. "
    text += "China uses two inlets. British homes have two fuses."
    assert [q for q, _, _ in asked(text, "Combo 2", kinds={"number"})] == [
        "How many parts do OCPP messages have?",
        "In the context of Combo 2, how many layers do long cables have?",
        "How many pins does Combo 2 have?",
        "How many inlets does China use?",
        "How many fuses do British homes have?",
    ]


def test_answer_and_evidence_are_spans_of_the_text():
    text = (
        "- A **Type 2** [connector](https://a.example/2) has seven contacts. The metal box is the shell of a charger."
    )
    plain = text.replace("**", "").replace("[connector](https://a.example/2)", "connector")
    drafts = list(sentence_drafts(TOPIC, text))
    assert {d.kind for d in drafts} == {"number", "yes_no", "definition"}
    assert all(d.evidence in text for d in drafts)
    assert all(d.answer in plain for d in drafts if d.kind != "yes_no")


TABLE = """
| Connector | Contacts | Highest power | Detects |
| --- | --- | --- | --- |
| Type 1 | five | 19 kW | - |
| Type 2 | seven | 43 kW | faults |
"""


def test_table_is_asked_for_its_cells_and_compared_by_its_figures():
    assert blocks(TABLE) == [
        ("In the context of charging stations, what are the contacts for the connector Type 1?", "five", "table"),
        ("In the context of charging stations, what are the contacts for the connector Type 2?", "seven", "table"),
        ("In the context of charging stations, what is the highest power for the connector Type 1?", "19 kW", "table"),
        ("In the context of charging stations, what is the highest power for the connector Type 2?", "43 kW", "table"),
        (
            "In the context of charging stations, which connector has the greater highest power, Type 1 or Type 2?",
            "Type 2",
            "comparison",
        ),
    ]


def test_table_with_numbered_rows_is_known_by_its_second_column():
    table = "| No. | Check | Acceptance value |\n|---|---|---|\n| A1 | Air clearance | 0.4 m |\n"
    assert [(q, a) for q, a, _ in blocks(table)] == [
        ("In the context of charging stations, what is the acceptance value for the check Air clearance?", "0.4 m")
    ]


def test_table_whose_key_is_a_figure_says_where_it_holds():
    table = "| Resistor | Cable rating |\n|---|---|\n| 220 Ω | 32 A |\n"
    assert [q for q, _, _ in blocks(table)] == [
        "In the context of charging stations, what is the cable rating where the resistor is 220 Ω?"
    ]


def test_table_rows_with_the_same_key_are_not_asked_for():
    assert {a for _, a, kind in blocks(TABLE + "| Type 1 | six | 7 kW | - |\n") if kind == "table"} == {
        "seven",
        "43 kW",
    }


@pytest.mark.parametrize(
    "table",
    [
        TABLE.replace("| --- | --- | --- | --- |\n", ""),
        TABLE.replace("| Connector | Contacts | Highest power | Detects |\n", ""),
        TABLE.replace("Connector", ""),
        TABLE.replace("Contacts", "").replace("Highest power", "What it brings"),
        "| Connector |\n|---|\n| Type 1 |\n",
        "| Option | Description |\n|---|---|\n| true | Only open stations |\n| N | No station |\n",
        "| Option | Description |\n|---|---|\n| FIRE_STATION | Fire station |\n",
    ],
    ids=["no rule", "no header", "key without a name", "columns without a name", "one column", "common", "repeated"],
)
def test_table_that_is_not_understood_gives_nothing(table):
    assert blocks(table) == []


def test_table_below_a_heading_that_names_nothing_gives_nothing():
    assert blocks(TABLE, "How it all begins, and why") == []


@pytest.mark.parametrize(
    ("text", "term", "answer"),
    [
        ("**Roaming hub.** A clearing house to which firms connect once.", "roaming hub",
         "A clearing house to which firms connect once"),
        ("- **Equal share**: A rule by which cars get the same current.", "equal share",
         "A rule by which cars get the same current"),
    ],
)  # fmt: skip
def test_bold_term_asks_what_it_means(text, term, answer):
    assert blocks(text) == [(f'What does the term "{term}" mean?', answer, "definition")]


def test_list_of_terms_and_meanings_in_turn_asks_what_they_mean():
    text = "- EVSE\n- The part of a station that serves one car.\n- Tethered station\n- A station with a fixed cable.\n"
    assert [(q, a) for q, a, _ in blocks(text)] == [
        ('What does the term "EVSE" mean?', "The part of a station that serves one car"),
        ('What does the term "tethered station" mean?', "A station with a fixed cable"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "**Queue times:** Popular stops can have long waits.",
        "**Note.** We are working on it with others.",
        "**Warning.** Do not open the cover of a station.",
        "- EVSE\n- A part\n- Station\n- A post\n",
    ],
)
def test_label_that_is_no_definition_gives_nothing(text):
    assert blocks(text) == []


STEPS = "1. Switch the station off.\n2. Open the cover.\n3. Replace the fuse.\n"


def test_numbered_list_below_a_goal_asks_for_its_steps():
    assert blocks(STEPS, "Stations > Replacing the fuse of a station") == [
        ("What is the first step in replacing the fuse of a station?", "Switch the station off", "procedure"),
        (
            "What are the steps in replacing the fuse of a station?",
            "Switch the station off; Open the cover; Replace the fuse",
            "procedure",
        ),
    ]
    assert blocks(STEPS, "How to replace a fuse")[0][0] == "What is the first step to replace a fuse?"


@pytest.mark.parametrize(
    ("text", "heading"),
    [(STEPS, "Fuses"), (STEPS.replace("1.", "4."), "Replacing a fuse"), ("1. Replace the fuse.\n", "Replacing a fuse")],
    ids=["no goal", "second half of a list", "one step"],
)
def test_list_that_is_no_procedure_gives_nothing(text, heading):
    assert blocks(text, heading) == []


def test_heading_that_asks_is_answered_by_the_first_sentence_of_its_section():
    text = "A home station gives 11 kW in most houses. More is rare.\n"
    heading = "FAQ > How much power does a home station give?"
    assert blocks(text, heading) == [
        ("How much power does a home station give?", "A home station gives 11 kW in most houses", "number")
    ]
    assert blocks(text, heading, is_first=False) == []


@pytest.mark.parametrize(
    ("heading", "text"),
    [
        ("FAQ > How much power does a home station give?", "A home station is a small box on a wall."),
        ("FAQ > Can a home station get wet?", "A home station is built for rain."),
        ("FAQ > What does it cost?", "A home station costs 900 dollars."),
        ("FAQ > Why do home stations fail?", "Ask an electrician before the winter."),
    ],
    ids=["no figure", "no yes or no", "dangling", "off the question"],
)
def test_heading_whose_answer_does_not_fit_gives_nothing(heading, text):
    assert blocks(text, heading) == []
