import pytest

from ev_platform.decoding import Draft, Prompt, cut_at

END = 999_999


class Bytes:
    """A tokenizer of which each token is a byte, as the rare characters of a byte-level one are."""

    def decode(self, ids, **_):
        return bytes(ids).decode("utf-8", errors="replace")


class Words:
    """A tokenizer whose words bring their space along, but for the first, as SentencePiece has it."""

    def decode(self, ids, **_):
        return " ".join(f"w{token}" for token in ids)


def write(tokens, tokenizer=None, **options):
    pieces = []
    prompt = Prompt("prompt", **{"max_new_tokens": 100, "on_text": pieces.append} | options)
    draft = Draft(prompt, 3, tokenizer or Bytes(), END, 0.0)
    for n, token in enumerate(tokens, 1):
        if draft.add(token):
            return draft.completion, pieces, n
    raise AssertionError("the answer is not complete")


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "  spaces around  ",
        "größer als 11 kW",
        "漢字と🔌 plugs",
        "\n\ntwo\n\nparagraphs\n\n",
        "end 🔌",
        " ",
    ],
)
def test_pieces_joined_are_the_answer_and_none_is_taken_back(text):
    made, pieces, _ = write([*text.encode(), END])
    assert "".join(pieces) == made.text == text.strip()
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_words_keep_the_spaces_between_them():
    made, pieces, _ = write([1, 2, 3, END], Words())
    assert made.text == "w1 w2 w3" and pieces == ["w1", " w2", " w3"]


def test_bytes_that_are_no_character_are_shown_at_the_end():
    made, pieces, _ = write([*b"ab\xff", END])
    assert "".join(pieces) == made.text == "ab\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("stop", [("STOP",), ("STOP", "P!"), ("S", "STOP"), ("TOP!", "STOP")])
def test_no_part_of_a_stop_text_is_shown(stop):
    made, pieces, n_read = write([*b"one SO STOP! two", END], stop=stop)
    expected = b"one SO STOP! two".decode()
    place = min(expected.find(text) for text in stop if text in expected)
    assert "".join(pieces) == made.text == expected[:place].strip()
    assert made.finish_reason == "stop" and n_read <= place + max(map(len, stop)) + 1


def test_what_only_began_like_a_stop_text_is_shown():
    made, pieces, _ = write([*b"a STO", END], stop=("STOP",))
    assert "".join(pieces) == made.text == "a STO"
    assert pieces[-1].endswith("STO") and pieces[:-1] == ["a"]


def test_a_stop_text_at_the_limit_counts():
    made, pieces, _ = write(b"abSTOP", stop=("STOP",), max_new_tokens=6)
    assert (made.text, made.finish_reason, pieces) == ("ab", "stop", ["a", "b"])


def test_limit_ends_it_and_the_end_token_is_not_counted():
    limited, _, _ = write(b"abcdef", max_new_tokens=4)
    assert (limited.text, limited.n_completion_tokens, limited.finish_reason) == ("abcd", 4, "length")
    ended, _, _ = write([*b"abc", END])
    assert (ended.text, ended.n_completion_tokens, ended.finish_reason) == ("abc", 3, "stop")


def test_cancelled_it_ends_at_the_next_token_and_shows_no_more():
    asked = iter([False, False, True])
    made, pieces, n_read = write(b"abcdef", is_cancelled=lambda: next(asked))
    assert (made.finish_reason, n_read, pieces) == ("cancelled", 3, ["a", "b"])


def test_tokens_after_the_end_change_nothing():
    ends = []
    draft = Draft(Prompt("p", 2, on_end=ends.append), 1, Bytes(), END, 0.0)
    assert [draft.add(token) for token in b"abcd"] == [False, True, True, True]
    assert draft.completion is not None and draft.completion.text == "ab" and ends == [draft.completion]


def test_cut_at_the_first_of_several():
    assert cut_at("one two three", ("three", "two")) == ("one ", True)
    assert cut_at("one", ("two", "")) == ("one", False)
