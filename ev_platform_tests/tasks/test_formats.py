import json

import pytest

from ev_platform.errors import UserError
from ev_platform.tasks import Task, formats
from ev_platform.tasks.formats import Problem
from ev_platform.tasks.rows import scan_rows, scan_texts


def triples(rows):
    return [(row.question, row.answer, row.context) for row in rows]


@pytest.mark.parametrize("label", ["label", "category"])
def test_rows_of_text_and_label_are_questions_and_answers(read, label):
    assert triples(read(f"text,{label}\nWhere is my card?,card_arrival\n", "train.csv")) == [
        ("Where is my card?", "card_arrival", None)
    ]


def test_rows_of_foreign_columns_are_read_by_the_names_in_config(read):
    config = "columns: {question: utterance, answer: intent, context: page, source: url}\n"
    rows = read("id,utterance,intent,page,url\n1,Hi?,greet,A page.,https://a.example/\n", "train.csv", config)
    assert triples(rows) == [("Hi?", "greet", "A page.")]
    assert rows[0].source == "https://a.example/"


def test_rows_of_foreign_columns_may_name_one_column_only(read):
    assert triples(read("text,answer\nHi?,Yes.\n", "train.csv", "columns: {question: text}")) == [("Hi?", "Yes.", None)]


@pytest.mark.parametrize("name", ["train.json", "train.jsonl", "train.csv"])
def test_instructions_that_differ_are_questions_over_their_input(read, name):
    rows = [("Who?", "Ada wrote it.", "Ada"), ("How many?", "", "3")]
    if name == "train.csv":
        content = "instruction,input,output\n" + "\n".join(",".join(row) for row in rows)
    else:
        found = [dict(zip(("instruction", "input", "output"), row, strict=True)) for row in rows]
        content = found if name == "train.json" else "\n".join(map(json.dumps, found))
    assert triples(read(content, name)) == [("Who?", "Ada", "Ada wrote it."), ("How many?", "3", None)]


def test_instruction_that_all_rows_share_leaves_the_input_as_the_question(read):
    rows = [{"instruction": "Name the topic.", "input": text, "output": text[0]} for text in ("a b", "c d")]
    assert triples(read(rows, "train.json")) == [("a b", "a", None), ("c d", "c", None)]


def test_instruction_rows_follow_the_config_where_it_names_their_columns(read):
    row = {"instruction": "Name the topic.", "input": "a b", "output": "a"}
    config = "columns: {question: input, answer: output}"
    assert triples(read([row], "train.json", config)) == [("a b", "a", None)]


def test_chat_messages_are_one_question_and_its_answer(read):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ]
    lines = "\n".join(json.dumps({"messages": own}) for own in (turns, turns[1:]))
    assert triples(read(lines, "train.jsonl")) == [("Why?", "So.", None)] * 2


def test_csv_with_crlf_bom_and_quoted_break_in_other_columns_is_read(read):
    content = b'\xef\xbb\xbfquestion,note,answer\r\nWhy?,"a\r\nb",So.\r\n'
    assert triples(read(content, "train.csv")) == [("Why?", "So.", None)]


def test_csv_may_repeat_header_names_that_are_not_read(read):
    assert triples(read(",question,,answer\n0,Why?,1,So.\n", "train.csv")) == [("Why?", "So.", None)]


@pytest.mark.parametrize(
    ("content", "config", "said"),
    [
        ("question,answer,answer\nWhy?,So.,No.\n", "", "row 1 (the header) names the column 'answer' twice"),
        ("question;answer\nWhy?;So.\n", "", "row 1 (the header) is separated by ';': save the file with commas."),
        ("question\tanswer\nWhy?\tSo.\n", "", "row 1 (the header) is separated by '\\t': save the file with commas."),
        (
            "text,category\nWhy?,So.\n",
            "columns: {answer: labl}",
            "row 1 (the header) lacks the column 'labl', which config.yaml names for answer; it has ['text', 'catego",
        ),
        (
            "question,answer\nWhy?,So.\n",
            "columns: {context: page}",
            "row 1 (the header) lacks the column 'page', which config.yaml names for context",
        ),
        ("text,label\nWhy?,\n", "", "row 2: label is empty."),
        ("question,answer\nWhy?,S\0o.\n", "", "line 2 holds a NUL byte: save the file as UTF-8 text without it."),
        (
            "question,answer\nWhy?,So.\n".encode("utf-16-le"),
            "",
            "line 1 holds a NUL byte: save the file as UTF-8 text without it.",
        ),
        ("question,answer\nWhy?,So.\n".encode("utf-16"), "", "is not UTF-8 (byte 0): save it as UTF-8."),
    ],
)
def test_csv_that_cannot_be_used_names_row_and_column(refused, content, config, said):
    assert refused(content, "train.csv", config).startswith(said)


def chat(*roles, content="Why?"):
    return json.dumps({"messages": [{"role": role, "content": content} for role in roles]})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (chat("user", "assistant", "user", "assistant"), "row 1: messages has the turns user, assistant, user, assis"),
        (chat("assistant"), "row 1: messages has the turns assistant: only one of user and one of assistant"),
        (chat(), "row 1: messages has the turns none:"),
        ('{"messages": "Why?"}', "row 1: messages is not a list of objects with role and content."),
        (chat("user", "assistant", content=""), "row 1: question is empty."),
        (chat("user", "assistant", content=[1]), "row 1: question is list, not text."),
        (
            '{"prompt": "Why?", "completion": "So."}',
            "row 1 has neither 'question' nor 'answer', but ['completion', 'prompt']: name its columns in config.yaml",
        ),
        ('{"question": "Why?", "answer": "a\\u0000b"}', "row 1: answer holds a NUL character: remove it."),
        ('{"question": "Why?", "answer": "a\\ud800b"}', "row 1: answer holds half a character (a lone surrogate)"),
        (
            json.dumps({"question": "Why?", "answer": "x" * 200_001}),
            "row 1: answer has 200,001 characters, more than 200,000: shorten it.",
        ),
        ("[" * 100_000, "row 1 is not JSON that can be read: "),
        ('{"question": "Why?", "answer": ' + "1" * 5000 + "}", "row 1 is not JSON that can be read: "),
        ('{"question": "Why?", "answer": "So.", "source": 3}', "row 1: source is int, not text."),
    ],
)
def test_jsonl_that_cannot_be_used_names_row_and_column(refused, content, said):
    assert refused(content, "train.jsonl").startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"question": "Why?"},\n {"question"]', "is not JSON: Expecting ':' delimiter at line 2 column 13."),
        ("", "is not JSON: Expecting value at column 1."),
        ('{"rows": []}', "is neither a list of objects nor a SQuAD file with data, paragraphs and qas."),
        ("[]", "has no rows: write at least one question and answer."),
        ('[{"question": "Why?", "answer": "So."}, 3]', "row 2 is not a JSON object with question and answer."),
        ('[{"text": "Why?", "label": 3}]', "row 1: label is int, not text."),
    ],
)
def test_json_that_cannot_be_used_names_row_and_column(refused, content, said):
    assert refused(content, "train.json") == said


def test_file_that_is_too_large_is_refused_before_it_is_read(refused, monkeypatch):
    monkeypatch.setattr(formats, "MAX_FILE_BYTES", 20)
    assert refused("question,answer\nWhy?,So.\n", "train.csv") == "has 25 bytes, more than 20: leave rows out."


def test_file_that_may_not_be_read_says_so(refused, monkeypatch):
    def deny(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(formats.Path, "read_bytes", deny)
    assert refused("x", "train.csv") == "cannot be read (Permission denied): change its permissions."


def test_csv_is_read_where_there_is_a_jsonl_and_a_json_too(task, read):
    (task.folder / "train.json").write_text("[]")
    (task.folder / "train.jsonl").write_text("")
    assert triples(read("question,answer\nWhy?,So.\n", "train.csv")) == [("Why?", "So.", None)]


def test_scan_goes_on_after_a_wrong_row_and_keeps_the_order(task):
    (task.folder / "train.csv").write_text("question,answer\nWhy?,\nWho?,Me.\nWhen?\nHow?,So.\n")
    found = list(scan_rows(task, "train"))
    assert [(row.place, row.column) if isinstance(row, Problem) else row.question for row in found] == [
        ("row 2", "answer"),
        "Who?",
        ("row 4", None),
        "How?",
    ]


def test_texts_of_unstructured_are_read_with_what_is_wrong_in_place(task):
    (task.folder / "unstructured.csv").write_text(',context\n0,"One,\ntwo."\n1,\n2,Three.\n')
    one, wrong, three = scan_texts(task)
    assert (one, three) == ("One,\ntwo.", "Three.")
    assert isinstance(wrong, Problem) and wrong.sentence.endswith("unstructured.csv row 3: context is empty.")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"unstructured\.csv is missing: write a table with the column context\."),
        ("text\nHi.\n", r"row 1 \(the header\) does not name one column 'context'; it has \['text'\]\."),
        ("context,context\nHi.,Ho.\n", r"does not name one column 'context'"),
    ],
)
def test_texts_that_cannot_be_read_say_why(task, content, said):
    if content is not None:
        (task.folder / "unstructured.csv").write_text(content)
    with pytest.raises(UserError, match=said):
        list(scan_texts(task))


def test_context_that_is_a_list_is_read_as_its_passages(read):
    row = {"question": "Why?", "answer": "So.", "context": ["One. ", "Two."]}
    assert triples(read([row], "train.json")) == [("Why?", "So.", "One.\n\nTwo.")]
    # As HotpotQA writes it: a title and its sentences.
    row["context"] = [["Ada", ["She wrote.", " She slept."]], ["Bob", ["He sang."]]]
    assert triples(read([row], "train.json")) == [("Why?", "So.", "Ada\nShe wrote. She slept.\n\nBob\nHe sang.")]


def test_context_that_is_a_list_of_other_things_is_refused(refused):
    row = {"question": "Why?", "answer": "So.", "context": ["One.", 2]}
    assert refused([row], "train.json") == "row 1: context is list, not text."


def test_texts_are_read_from_the_column_that_config_names(task):
    (task.folder / "unstructured.csv").write_text("text,category\nHi.,a\n")
    (task.folder / "config.yaml").write_text("columns: {question: text}")
    assert list(scan_texts(Task("cars", task.folder))) == ["Hi."]
