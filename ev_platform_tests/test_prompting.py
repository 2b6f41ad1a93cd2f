from ev_platform.prompting import build_messages, passage_text


def test_messages_with_passages_put_them_before_the_question():
    assert build_messages("Answer.", "Why?", ["Cables > Cores\nCopper.", "Air."]) == [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": "Cables > Cores\nCopper.\n\nAir.\n\nQuestion: Why?"},
    ]


def test_messages_without_passages_hold_the_question_only():
    assert build_messages("Answer.", "Why?", [])[1] == {"role": "user", "content": "Question: Why?"}


def test_passage_without_headings_is_its_text():
    assert passage_text("", "Copper.") == "Copper."
    assert passage_text("Cables", "Copper.") == "Cables\nCopper."
