import pytest

from ev_platform.dataset.filters import (
    find_dependence,
    find_foreign,
    find_malformed,
    find_refusal,
    find_residue,
    find_unnatural,
    find_unsupported,
)
from ev_platform.dataset.quantities import quantities

PASSAGE = "The blue cable carries 32 A and the red cable carries 63 A. The plug is not heated. Tests last two weeks."


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("How much current does the blue cable carry?", "32 A", None),
        ("How much current does the blue cable carry?", "32A", None),
        ("How much current does the blue cable carry?", "33 A", "number_not_in_passage"),
        ("How much current does the blue cable carry?", "63 A", "number_of_something_else"),
        ("How long do tests last?", "14 days", None),
        ("Is the plug heated?", "Yes, it is heated.", "contradicts_passage"),
        ("Is the plug heated?", "No", None),
        ("Does the blue cable carry 32 A?", "Yes", None),
        ("Is the plug waterproof and fireproof?", "Yes", "claim_not_in_passage"),
        ("Who makes the plug?", "A factory near Lyon", "not_in_passage"),
    ],
)
def test_answer_against_its_passage_is_supported_or_has_a_reason(question, answer, reason):
    found = find_unsupported(question, answer, PASSAGE)
    assert (found[0] if found else None) == reason, found


RAIN = (
    "Never plug in or unplug the connector while it rains. Only a certified electrician may open the control cabinet."
)


@pytest.mark.parametrize(
    ("question", "answer", "is_supported"),
    [
        (
            "Who may open the control cabinet?",
            "No person other than the mayor of Paris or a licensed beekeeper.",
            False,
        ),
        ("Who may open the control cabinet?", "No one but the mayor of Paris or a licensed beekeeper.", False),
        ("Who may open the control cabinet?", "No-one but the mayor of Paris or a licensed beekeeper.", False),
        ("If it rains, is it allowed to plug in the connector?", "Yes, always.", False),
        ("While it rains, may the connector be unplugged?", "Yes", False),
        ("While it rains, may the connector be unplugged?", "Yes it may.", False),
        ("While it rains, may the connector be unplugged?", "No - never.", True),
        ("If it rains, is it allowed to plug in the connector?", "No, never plug it in while it rains.", True),
        ("May I plug in the connector while it rains?", "No, never plug it in while it rains.", True),
        ("Who may open the control cabinet?", "No one but a certified electrician.", True),
        ("Who may open the control cabinet?", "No person other than a certified electrician.", True),
        ("If it rains, is it forbidden to plug in the connector?", "No", True),
    ],
)
def test_answer_that_begins_with_yes_or_no_is_judged_whatever_the_question_begins_with(question, answer, is_supported):
    found = find_unsupported(question, answer, RAIN)
    assert (found is None) is is_supported, found


def test_unanswerable_question_whose_answer_the_passage_holds_is_rejected():
    found = find_unsupported("How much current does the blue cable carry?", "Unknown.", PASSAGE, is_answerable=False)
    assert found is None or found[0] == "answer_in_passage"
    held = find_unsupported("Is the plug heated?", "Unknown.", PASSAGE, is_answerable=False)
    assert held is not None and held[0] == "answer_in_passage"
    other = find_unsupported("Who invented it?", "Bob", PASSAGE, is_answerable=False, no_answer="Unknown.")
    assert other is not None and other[0] == "not_the_no_answer"


@pytest.mark.parametrize(
    "question",
    [
        "What does the passage say about plugs?",
        "According to the text, how long is it?",
        "What are the two limits mentioned above?",
        "How long was it?",
        "Why should these not be pruned?",
        "What is the value in the example?",
        "What does the author recommend for plugs?",
    ],
)
def test_question_that_leans_on_its_source_is_not_self_contained(question):
    found = find_dependence(question)
    assert found is not None and found[0] == "not_self_contained"


@pytest.mark.parametrize(
    "question",
    [
        "How long does the battery of a Lumen S last when it is cold?",
        "How long does it take to charge a Lumen S?",
        "What does it mean when the light of a charger blinks?",
        "When does copyright end after the author's death?",
        "What is the power that a Lumen S takes?",
    ],
)
def test_question_whose_pronoun_has_an_antecedent_is_self_contained(question):
    assert find_dependence(question) is None


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("What is a plug?", "...", "answer_empty"),
        ("What is " + "very " * 9 + "long?", "a", "question_too_long"),
        ("What is a plug?", "a " * 9, "answer_too_long"),
        ("Plug power", "11 kW", "not_a_question"),
        ("What?", "a plug", "question_too_vague"),
        ("What is a plug?", "What is a plug?", "answer_is_question"),
        ("What is a Type 2 plug?", "a Type 2 plug", "answer_in_question"),
        ("Is AC or DC faster?", "DC", None),
        ("Name the plug of Japan.", "CHAdeMO", None),
    ],
)
def test_form_of_a_row_is_sound_or_has_a_reason(question, answer, reason):
    found = find_malformed(question, answer, 8, 8)
    assert (found[0] if found else None) == reason, found


@pytest.mark.parametrize("text", ["<|im_start|>a", "a [/INST]", "a </s>", "Assistant: a", "```a```", "Sure! Here is a"])
def test_text_with_what_a_model_left_in_it_is_residue(text):
    found = find_residue("What is a plug?", text)
    assert found is not None and found[0] == "residue"


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I cannot say.",
        "I cannot help with that.",
        "No connector information available",
        "I don't have enough information to answer.",
        "The passage does not say.",
        "N/A",
    ],
)
def test_answer_that_declines_is_a_refusal(text):
    found = find_refusal(text)
    assert found is not None and found[0] == "refusal"


def test_plain_answers_and_texts_are_neither_residue_nor_refusal():
    for text in ("No, it is not.", "It cannot be opened below 10 °C.", "The driver, I think."):
        assert find_refusal(text) is None and find_residue(text) is None and find_unnatural(text) is None
    found = find_unnatural("As an AI language model I feel sad")
    assert found is not None and found[0] == "refusal"


def test_language_is_only_judged_where_it_is_sure():
    german = "Wie lange kann die Müdigkeit nach einer Lungenentzündung bei den Patienten noch andauern?"
    found = find_foreign(german, ["en"])
    assert found is not None and found[0] == "language" and find_foreign(german, ["en", "de"]) is None
    assert find_foreign("Wie lange?", ["en"]) is None


def test_quantities_are_read_with_their_units_in_any_spelling():
    def read(text):
        return [(q.value, q.kind) for q in quantities(text)]

    assert read("22kW") == read("22 kW") == [(22000.0, "power")]
    assert read("two weeks") == read("14 days")
    assert read("11 p.m.") == read("23:00")
    assert read("60 to 150 km") == [(60000.0, "length"), (150000.0, "length")]
    assert read("EUR 2.50") == read("€2.50")
    assert read("1,004 stars") == [(1004.0, None)]
    assert read("SHA-256 and CCS2") == []


def test_numbers_of_a_list_are_left_out_and_a_year_that_begins_a_line_is_read():
    def read(text):
        return [q.value for q in quantities(text)]

    assert read("1. Park the car.\n2) Wait 5 minutes.\n 10. Plug in.") == [300.0]
    assert read("1987. The standard was adopted in Geneva then.") == [1987.0]
    assert read("The standard is of\n2004. It was adopted.\n2005. It was changed.") == [2004.0, 2005.0]
    assert read("The number of contacts is\n12. That is all.") == [12.0]


def test_wrong_number_that_begins_an_answer_is_found():
    passage = "The standard was adopted in Geneva in 2004. It has 31 parts."
    found = find_unsupported(
        "When was the standard adopted?", "1987. The standard was adopted in Geneva then.", passage
    )
    assert found is not None and found[0] == "number_not_in_passage"
    asked = "How many parts has the standard?"
    assert find_unsupported(asked, "31. The standard has that many.", passage) is None
    found = find_unsupported(asked, "32. The standard has that many.", passage)
    assert found is not None and found[0] == "number_not_in_passage"
