import json

import pytest

from ev_platform.errors import UserError
from ev_platform.tasks.rows import read_rows

HEADER = "question,answer\n"


def questions(rows):
    return [(row.where, row.question, row.answer) for row in rows]


def test_rows_are_numbered_as_a_spreadsheet_shows_them(read):
    assert questions(read(HEADER + "Why?,Because.\nWhen?,Now.\n")) == [
        ("train.csv row 2", "Why?", "Because."),
        ("train.csv row 3", "When?", "Now."),
    ]


def test_rows_after_a_quoted_line_break_keep_their_numbers(read, refused):
    rows = read(HEADER + '"Why\nnot?","One,\ntwo."\r\nWhen?,Now.\n')
    assert questions(rows)[0] == ("train.csv row 2", "Why\nnot?", "One,\ntwo.")
    assert questions(rows)[1] == ("train.csv row 3", "When?", "Now.")
    assert refused(HEADER + '"Why\n\nnot?",Because.\nWhen?,\n') == "row 3: answer is empty."


def test_rows_keep_optional_columns_and_leave_out_unknown_ones(read):
    (row,) = read("source,answer,level,question,context\nhttps://a.example/,Now.,easy,When?,A passage.\n")
    assert (row.question, row.answer, row.context, row.source) == ("When?", "Now.", "A passage.", "https://a.example/")


def test_rows_with_empty_optional_cells_have_none_there(read):
    (row,) = read("question,answer,source\nWhen?,Now., \n")
    assert row.source is None and row.context is None


def test_rows_of_a_file_with_a_byte_order_mark_and_blanks_are_read(read):
    assert questions(read(b"\xef\xbb\xbfquestion , answer\r\n When? , Now. \r\n"))[0][1:] == ("When?", "Now.")


def test_rows_skip_empty_lines_without_losing_count(read):
    assert questions(read(HEADER + "Why?,Because.\n\nWhen?,Now.\n\n")) == [
        ("train.csv row 2", "Why?", "Because."),
        ("train.csv row 4", "When?", "Now."),
    ]


@pytest.mark.parametrize("separator", ["\u2028", "\x0b", "\x0c", "\x85", "\x1e"])
def test_rows_are_not_broken_by_characters_that_only_python_takes_for_a_line_break(read, separator):
    assert questions(read(f"{HEADER}Why{separator}not?,Because.\n"))[0][1] == f"Why{separator}not?"


def test_rows_of_jsonl_hold_a_raw_line_separator(read):
    line = json.dumps({"question": "Why\u2028not?", "answer": "Because."}, ensure_ascii=False)
    assert questions(read(line + "\r\n\n" + line.replace("Why", "When"), "train.jsonl")) == [
        ("train.jsonl row 1", "Why\u2028not?", "Because."),
        ("train.jsonl row 3", "When\u2028not?", "Because."),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEADER + "Why?,Because.\nWhen?\n", "row 3 has 1 fields, the header has 2."),
        (HEADER + "Why?,Because, of it.\n", "row 2 has 3 fields, the header has 2."),
        (HEADER + 'Why?,Because.\n"When?,Now.\nWho?,You.\n', "row 3 is malformed CSV: unexpected end of data."),
        ('"question,answer\nWhy?,Because.\n', "row 1 is malformed CSV: unexpected end of data."),
        (HEADER + 'Why?,"Because" of it.\n', "row 2 is malformed CSV: ',' expected after '\"'."),
        (HEADER + "Why?,Because.\nWhen?,  \n", "row 3: answer is empty."),
        (HEADER + ",Because.\n", "row 2: question is empty."),
        (
            "question,reply\nWhy?,Because.\n",
            "row 1 (the header) lacks the column 'answer'; it has ['question', 'reply']: write it, or name another in "
            "config.yaml (columns: {answer: ...}).",
        ),
        (HEADER, "has no rows: write at least one question and answer."),
        ("", "has no rows: write at least one question and answer."),
        (b"question,answer\nWhy?,Caf\xe9.\n", "is not UTF-8 (byte 24): save it as UTF-8."),
        (HEADER + f"Why?,{'x' * 200_001}\n", "row 2 is malformed CSV: field larger than field limit (200000)."),
    ],
)
def test_csv_that_is_malformed_is_refused_with_its_row(refused, content, said):
    assert refused(content) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"question": "Why?", "answer": "So."}\n{"question": "Wh', "row 2 is not JSON: Unterminated string"),
        ('["Why?", "So."]', "row 1 is not a JSON object with question and answer."),
        ('{"question": "How many?", "answer": 5}', "row 1: answer is int, not text."),
        ('\n\n{"question": "Why?"}', "row 3: answer is empty."),
        ("\n", "has no rows"),
    ],
)
def test_jsonl_that_is_malformed_is_refused_with_its_row(refused, content, said):
    assert refused(content, "train.jsonl").startswith(said)


def test_rows_of_a_missing_file_say_which_file_to_write(task):
    with pytest.raises(UserError, match=r"test\.csv is missing: write a table with the columns question and answer\."):
        read_rows(task, "test")


def test_example_has_eighty_training_and_eighty_four_test_rows_with_a_source_each(example_task):
    train, test = read_rows(example_task, "train"), read_rows(example_task, "test")
    assert (len(train), len(test)) == (80, 84)
    assert all(row.source for row in [*train, *test])
    assert {row.split for row in train} == {"train"} and {row.split for row in test} == {"test"}
