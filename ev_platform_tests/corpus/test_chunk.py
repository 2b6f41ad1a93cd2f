import re
from itertools import pairwise

import polars as pl
import pytest

from ev_platform.corpus.chunk import chunk_documents
from ev_platform.records import schema_of
from ev_platform.tasks import CorpusConfig

SMALL = CorpusConfig(chunk_tokens=32, chunk_min_tokens=8)


def count_words(texts):
    return [len(text.split()) for text in texts]


def documents(*texts, title="Cables", page_offsets=()):
    """Return `clean_documents` of the given texts; what chunking does not read is empty."""
    rows = [
        {
            "document_id": f"doc_{n}",
            "cluster_id": f"doc_{n}",
            "title": title,
            "text": text,
            "page_offsets": list(page_offsets),
        }
        for n, text in enumerate(texts)
    ]
    schema = schema_of("clean_documents")
    return pl.DataFrame([{**dict.fromkeys(schema), **row} for row in rows], schema=schema)


def chunk(text, config=SMALL, **fields):
    return list(chunk_documents(documents(text, **fields), count_words, config).iter_rows(named=True))


def words(n, first=0):
    return " ".join(f"w{i}" for i in range(first, first + n))


def sentences(n, length=8):
    return " ".join(f"S{i} {words(length - 2, 10 * i)} end." for i in range(n))


# ---- rules, one by one ----


def test_paragraphs_of_a_section_are_packed_up_to_the_limit():
    chunks = chunk(f"{words(15)}\n\n{words(15, 20)}\n\n{words(5, 40)}")
    assert [c["n_tokens"] for c in chunks] == [30, 5]


def test_heading_ends_a_chunk_although_there_is_room():
    chunks = chunk(f"## Type 1\n\n{words(10)}\n\n## Type 2\n\n{words(10, 20)}")
    assert [c["heading_path"] for c in chunks] == ["Cables > Type 1", "Cables > Type 2"]
    assert [c["text"] for c in chunks] == [words(10), words(10, 20)]


def test_short_section_joins_the_next_one_under_the_same_parent():
    (one,) = chunk(f"# Plugs\n\n## Type 1\n\n{words(4)}\n\n## Type 2\n\n{words(10, 20)}")
    assert one["heading_path"] == "Cables > Plugs"
    assert one["text"] == f"{words(4)}\n\n## Type 2\n\n{words(10, 20)}"


def test_joined_sections_count_the_heading_between_them():
    (one,) = chunk(f"## Type 1\n\n{words(4)}\n\n## Type 2\n\n{words(10, 20)}")
    assert one["n_tokens"] == 4 + 3 + 10
    heading = words(18, 60)  # with it the joined span would be too long
    assert len(chunk(f"## Type 1\n\n{words(4)}\n\n## {heading}\n\n{words(12, 20)}")) == 2


def test_short_section_does_not_join_one_under_another_parent():
    chunks = chunk(f"# A\n\n## B\n\n{words(4)}\n\n# C\n\n## D\n\n{words(10, 20)}")
    assert [c["heading_path"] for c in chunks] == ["Cables > A > B", "Cables > C > D"]


def test_long_paragraph_is_cut_between_sentences():
    text = sentences(9)
    chunks = chunk(text)
    assert [c["n_tokens"] for c in chunks] == [32, 32, 8]
    assert all(c["text"].endswith("end.") and re.match(r"S\d", c["text"]) for c in chunks)


@pytest.mark.parametrize("abbreviation", ["e.g. Type", "i.e. Type", "No. 5", "approx. 5", "vs. Type"])
def test_abbreviation_does_not_end_a_sentence(abbreviation):
    text = f"{words(19)} {abbreviation} {words(9, 30)}. {words(1, 50).upper()} {words(15, 60)}."
    first = chunk(text)[0]["text"]
    assert abbreviation in first


def test_sentence_longer_than_the_limit_is_cut_between_words_within_the_limit():
    chunks = chunk(words(100))
    assert all(c["n_tokens"] <= 32 for c in chunks)
    assert " ".join(c["text"] for c in chunks) == words(100)


def test_word_longer_than_the_limit_is_cut_within_it():
    def count_characters(texts):
        return [len(text) for text in texts]

    frame = chunk_documents(documents("x" * 100 + "y"), count_characters, SMALL)
    assert frame["n_tokens"].max() <= 32
    assert "".join(frame["text"]) == "x" * 100 + "y"


def test_table_rows_stay_whole():
    rows = [f"| {words(4, 10 * i)} | {words(4, 10 * i + 5)} |" for i in range(12)]
    text = f"Before it.\n\n| a | b |\n| --- | --- |\n{chr(10).join(rows)}\n\nAfter it."
    chunks = chunk(text)
    assert len(chunks) > 3
    assert all(sum(row in c["text"] for c in chunks) == 1 for row in rows)
    assert all(c["n_tokens"] <= 32 for c in chunks)


def test_list_items_stay_whole():
    items = [f"- {words(10, 20 * i)}\n  {words(5, 20 * i + 10)}" for i in range(6)]
    chunks = chunk("\n".join(items))
    assert all(sum(item in c["text"] for c in chunks) == 1 for item in items)


def test_title_that_the_first_heading_repeats_is_left_out():
    assert chunk(f"# Cables compared\n\n## Type 1\n\n{words(9)}")[0]["heading_path"] == "Cables compared > Type 1"
    assert chunk(f"# Plugs\n\n{words(9)}")[0]["heading_path"] == "Cables > Plugs"
    # "AC" stands in "Vacuum" as letters only, not as a word.
    assert chunk(f"# AC\n\n{words(9)}", title="Vacuum lifts")[0]["heading_path"] == "Vacuum lifts > AC"
    assert chunk(words(9), title=None)[0]["heading_path"] == ""


def test_headings_lose_their_marks():
    assert chunk(f"## **Type 1** ##\n\n{words(9)}")[0]["heading_path"] == "Cables > Type 1"


def test_document_of_headings_alone_gives_no_chunk():
    assert chunk("# One\n\n## Two") == []


def test_no_documents_give_the_empty_table():
    frame = chunk_documents(documents("x").clear(), count_words, SMALL)
    assert frame.is_empty() and frame.schema == schema_of("chunks")


def test_pages_are_those_on_which_chunks_begin():
    pages = [f"{words(30, 100 * n)}" for n in range(4)]
    pages[2] = ""
    offsets, at = [], 0
    for page in pages:
        offsets.append(at)
        at += len(page) + 2
    chunks = chunk("\n\n".join(pages), page_offsets=offsets)
    assert [(c["page"], c["text"].split()[0]) for c in chunks] == [(1, "w0"), (2, "w100"), (4, "w300")]
    assert chunk(words(9))[0]["page"] is None
    (across,) = chunk(f"{words(9)}\n\n{words(9)}", page_offsets=[0, len(words(9)) + 2])
    assert across["page"] == 1


def test_chunk_ids_are_the_same_twice_and_differ_where_the_same_text_stands_elsewhere():
    text = "\n\n".join(f"## H{i}\n\nThe very same sentence of nine words stands here." for i in range(3))
    ids = [c["chunk_id"] for c in chunk(text)]
    assert ids == [c["chunk_id"] for c in chunk(text)]
    assert len(set(ids)) == 3


# ---- what holds for every document ----

ODD = {
    "windows lines": "# A\n\nOne two.\n\nThree four five.",
    "headings in a row": "# A\n\n## B\n\n### C\n\nOne two three.\n\n## D",
    "table first": "| a | b |\n|---|---|\n| c | d |\n\n# A\n\nOne.",
    "list in a list": "- one two\n  - three four\n  - five\n- six\n1. seven\n2) eight",
    "hash that is no heading": "#5 is the fifth.\n\n#hashtag words",
    "blank lines of blanks": "One.\n   \nTwo.\n\t\nThree.",
    "long": f"# A\n\n{sentences(40)}\n\n## B\n\n{words(200)}\n\n## C\n\nTail.",
    "line separators": "One two\u2028three four\x85five six\x0cseven.",
}


def check(document, chunks, config):
    """Assert what holds for the chunks of any document."""
    text, end = document["text"], 0
    covered = bytearray(len(text))
    for ordinal, c in enumerate(chunks):
        assert c["text"] == text[c["start"] : c["end"]] and c["text"] == c["text"].strip() != ""
        assert c["start"] >= end and c["ordinal"] == ordinal
        end = c["end"]
        assert c["n_tokens"] == count_words([c["text"]])[0] <= config.chunk_tokens
        covered[c["start"] : c["end"]] = b"\x01" * (c["end"] - c["start"])
        if document["page_offsets"]:
            bounds = [*document["page_offsets"], len(text) + 1]
            assert bounds[c["page"] - 1] <= c["start"] < bounds[c["page"]]
        else:
            assert c["page"] is None
    for word in re.finditer(r"\S+", text):
        line = text[text.rfind("\n", 0, word.start()) + 1 :].partition("\n")[0].strip()
        if not re.match(r"#{1,6}\s", line):
            inside = set(covered[word.start() : word.end()])
            assert inside == {1}, f"{word[0]!r} of {line!r}"
    assert len({c["chunk_id"] for c in chunks}) == len(chunks)


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_chunks_of_an_odd_document_hold_every_word_once(text):
    frame = documents(text)
    check(frame.row(0, named=True), list(chunk_documents(frame, count_words, SMALL).iter_rows(named=True)), SMALL)


@pytest.mark.parametrize(("limit", "least"), [(32, 8), (64, 40), (160, 40), (1000, 200)])
def test_chunks_of_the_example_hold_every_word_once(example_documents, limit, least):
    config = CorpusConfig(chunk_tokens=limit, chunk_min_tokens=least)
    usable = example_documents.filter(pl.col("drop_reason").is_null())
    frame = (
        documents("x")
        .clear()
        .vstack(
            usable.with_columns(
                relevance=pl.lit(1.0), cluster_id="document_id", n_boilerplate_lines=pl.lit(0, pl.Int64)
            ).select(list(schema_of("clean_documents")))
        )
    )
    chunks = chunk_documents(frame, count_words, config)
    assert (
        chunks["document_id"].unique(maintain_order=True).to_list()
        == frame["document_id"].unique(maintain_order=True).to_list()
    )
    seen = set()
    for row in frame.iter_rows(named=True):
        if row["document_id"] not in seen:
            own = chunks.filter(pl.col("document_id") == row["document_id"]).unique("chunk_id", maintain_order=True)
            check(row, list(own.iter_rows(named=True)), config)
            seen.add(row["document_id"])
    assert len(seen) > 30


def test_table_rows_of_the_example_stay_whole(example_documents):
    config = CorpusConfig()
    n_rows = 0
    for row in example_documents.filter(pl.col("drop_reason").is_null()).iter_rows(named=True):
        chunks = chunk(row["text"], config)
        spans = [(c["start"], c["end"]) for c in chunks]
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
        for line in re.finditer(r"^\|.*\|$", row["text"], re.MULTILINE):
            n_rows += 1
            assert any(start <= line.start() and line.end() <= end for start, end in spans), line[0]
    assert n_rows > 50
