import pytest

from ev_platform.errors import UserError
from ev_platform.evaluation.judgements import fold, key_of, read_judgements, verdict_of, write_sheet

HEADER = "question,answer_a,answer_b,better\n"


@pytest.fixture
def read(tmp_path):
    """Return a function that reads a file of some text."""

    def read(text):
        file = tmp_path / "judgements.csv"
        file.write_text(text, encoding="utf-8")
        return read_judgements(file)

    return read


def test_judgement_is_found_by_its_texts_in_either_order(read):
    (found,) = (read(HEADER + '"How  long?",10 m,"ten\nmetres",b\n')[key_of("how long?", "Ten metres", "10 m")],)
    assert (found.better, found.place) == ("ten metres", "row 2")
    assert (verdict_of(found, "ten metres"), verdict_of(found, "10 m")) == ("better", "worse")
    assert verdict_of(None, "10 m") is None


def test_tie_is_one_for_both_and_rows_without_a_choice_are_none(read):
    found = read(HEADER + "q,one,two,TIE\nq,one,three,\n\n")
    assert {verdict_of(judged, text) for judged in found.values() for text in ("one", "two")} == {"tie"}
    assert len(found) == 1


def test_further_columns_are_not_read_and_empty_answers_can_be_judged(read):
    found = read("note,question,reference,answer_b,answer_a,better\n?,q,r,,something,a\n")
    assert found[key_of("q", "", "something")].better == "something"


def test_no_file_is_no_judgement(tmp_path):
    assert read_judgements(tmp_path / "judgements.csv") == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("question,answer_a,answer_b\n", "row 1 (the header) lacks the column 'better'"),
        (
            "question,answer_a,answer_a,answer_b,better\n",
            "row 1 (the header) names more than once the column 'answer_a'",
        ),
        ("question;answer_a;answer_b;better\n", "row 1 (the header) is separated by ';': save the file with commas."),
        ("", "row 1 (the header) lacks the column 'question'"),
        (HEADER + "q,one,two,a\nq,one,other,system\n", "row 3: better 'system' is none of a, b, tie."),
        (HEADER + " ,one,two,a\n", "row 2: question is empty: write the test row's question."),
        (HEADER + "q,one,two,a\nQ,two,ONE,b\n", "row 3: this pair is judged in row 2 already: keep one of the two."),
        (HEADER + "q,one,One,a\n", "row 2: better is 'a', but answer_a and answer_b are the same: write tie."),
        (HEADER + "q,one,two\n", "row 2 has 3 fields, the header has 4."),
        (HEADER + 'q,"one" x,two,a\n', "row 2 is malformed CSV"),
    ],
)
def test_file_that_cannot_be_used_is_refused_by_row_and_column(read, tmp_path, text, sentence):
    with pytest.raises(UserError) as raised:
        read(text)
    assert str(raised.value).startswith(f"{tmp_path / 'judgements.csv'} {sentence}")


def test_case_and_blanks_tell_no_answers_apart_but_signs_do():
    assert fold(" No,\n never") == fold("no, NEVER")
    assert fold("-5 °C") != fold("5 °C")


def test_sheet_with_what_an_untrained_model_wrote_can_be_read_and_written_again(tmp_path):
    pairs = [{"question": "Q?", "reference": "r", "answer": '\0a\r\x1b,"', "other": "b\n\0"}]
    file = tmp_path / "sheet.csv"
    assert write_sheet(file, pairs) and write_sheet(file, pairs)
    assert read_judgements(file) == {}
