import re
from itertools import pairwise
from random import Random

import polars as pl
import pytest

from ev_platform.corpus.chunk import chunk_documents
from ev_platform.records import schema_of
from ev_platform.tasks.config import CorpusConfig

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


def test_paragraphs_of_a_section_are_packed_into_few_chunks_of_even_length():
    # Filled up to the limit they would leave a scrap of five words behind.
    chunks = chunk(f"{words(15)}\n\n{words(15, 20)}\n\n{words(5, 40)}")
    assert [c["n_tokens"] for c in chunks] == [15, 20]
    assert [c["n_tokens"] for c in chunk(f"{words(15)}\n\n{words(15, 20)}")] == [30]


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
    assert [c["n_tokens"] for c in chunks] == [24, 24, 24]
    assert all(c["text"].endswith("end.") and re.match(r"S\d", c["text"]) for c in chunks)


@pytest.mark.parametrize(
    "within",
    [
        "plugs e.g. Type 2",
        "plugs i.e. Type 2",
        "fuse No. 5",
        "see Fig. 3",
        "for approx. 5 minutes",
        "Type 1 vs. Type 2",
        "asked Mr. Smith",
        "the U.S. Department",
        "at max. 350 kW",
        "Ed. 3.0 applies",
        "chapter 4.3.2 says",
        "bis z. B. Typ 2",
        "step 1. Open",
    ],
)
def test_sentence_does_not_end_within(within):
    # The sentence ends between two cuts, so one of them would fall on the abbreviation if that ended a sentence.
    text = f"{words(14)} {within} {words(3, 30)}. Then {words(24, 50)}."
    first, second = chunk(text)
    assert first["text"].endswith("w32.") and within in first["text"] and second["text"].startswith("Then")


def test_number_of_a_step_stays_with_the_step():
    first, second = chunk(f"{words(15)}. 2. Close {words(16, 30)}.")  # behind the number the halves would be more even
    assert first["text"].endswith("w14.") and second["text"].startswith("2. Close")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("It is rated at 32 A.", "Use another."),
        ('She said "Charge it."', "Then she left."),
        ("Is it so?", "It is."),
        ("Wait for it...", "Then it starts."),
        ("¿Cómo se carga?", "Se conecta así."),
        ("请稍候！", "充电桩已连接。"),
        ("充電が終わりました。", "次に抜きます。"),
        ("यह पहला है।", "यह दूसरा है।"),
    ],
)
def test_sentence_ends_between(one, two):
    def count(texts):
        return [len(text) for text in texts]

    config = CorpusConfig(chunk_tokens=max(32, len(one) + len(two)), chunk_min_tokens=1)
    padding = "a" * (config.chunk_tokens - len(two) - 1)
    frame = chunk_documents(documents(f"{one} {two[:-1]} {padding}"), count, config)
    assert frame["text"][0] == one and frame["text"][1].startswith(two[:-1])


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


def test_table_that_fits_into_a_chunk_is_not_cut():
    # Two chunks would hold it all, but only with a cut between rows.
    table = "| a | b |\n| --- | --- |\n" + "\n".join(f"| r{i} | s{i} |" for i in range(4))
    chunks = chunk(f"{words(10)}\n\n{table}\n\n{words(10, 20)}")
    assert [c["text"] for c in chunks] == [words(10), table, words(10, 20)]


def test_table_too_long_is_cut_evenly():
    table = "| a | b |\n| --- | --- |\n" + "\n".join(f"| r{i} | s{i} |" for i in range(8))
    chunks = chunk(f"{words(24)}\n\n{table}")
    assert [c["n_tokens"] for c in chunks] == [24, 25, 25]
    assert chunks[1]["text"].startswith("| a | b |") and "| a |" not in chunks[2]["text"]


def test_header_of_a_table_is_not_parted_from_its_first_row():
    rows = [f"| {words(6, 20 * i)} | {words(7, 20 * i + 10)} |" for i in range(2)]
    # Paragraph and header would fill one chunk and the rows the other.
    chunks = chunk(f"{words(22, 90)}\n\n| a | b |\n| --- | --- |\n{rows[0]}\n{rows[1]}")
    assert [c["text"] for c in chunks] == [words(22, 90), f"| a | b |\n| --- | --- |\n{rows[0]}", rows[1]]


def test_table_without_the_line_below_its_header_is_cut_between_rows():
    rows = [f"| {words(5, 10 * i)} | {words(5, 10 * i + 5)} |" for i in range(6)]
    chunks = chunk("Before it:\n" + "\n".join(rows))
    assert all(sum(row in c["text"] for c in chunks) == 1 for row in rows)


def test_introduction_stays_with_what_it_introduces():
    chunks = chunk(f"{words(22)}\n\nProceed as follows:\n\n- {words(10, 30)}\n- {words(10, 50)}")
    assert chunks[1]["text"].startswith("Proceed as follows:\n\n- w30")


def test_code_is_not_cut_where_it_fits_and_its_comments_are_no_headings():
    code = "```sh\n# Install it\nrun one\n\n# Start it\nrun two\n```"
    chunks = chunk(f"# Setup\n\n{words(25)}\n\n{code}\n\n{words(25, 30)}")
    assert [c["heading_path"] for c in chunks] == ["Cables > Setup"] * 3
    assert chunks[1]["text"] == code


def test_code_too_long_is_cut_between_lines():
    lines = [f"set w{i} to {i} # comment {i}." for i in range(20)]
    chunks = chunk("```\n" + "\n".join(lines) + "\n```")
    assert all(sum(line in c["text"].split("\n") for c in chunks) == 1 for line in lines)


def test_fence_that_never_closes_does_not_hide_the_headings_after_it():
    chunks = chunk(f"# A\n\n```\n{words(20)}\n\n# B\n\n{words(20, 30)}", title="")
    assert [c["heading_path"] for c in chunks] == ["A", "B"]


def test_underlined_headings_are_headings():
    chunks = chunk(f"Type 1\n======\n\n{words(20)}\n\nPins\n----\n\n{words(20, 30)}")
    assert [c["heading_path"] for c in chunks] == ["Cables > Type 1", "Cables > Type 1 > Pins"]
    assert [c["text"] for c in chunks] == [words(20), words(20, 30)]


def test_text_that_only_looks_underlined_stays_text():
    # CommonMark makes a heading of each: a paragraph above a rule, and a cell's figure above a dash.
    assert [c["text"] for c in chunk(f"{words(9)}\n{words(9, 20)}\n---")] == [f"{words(9)}\n{words(9, 20)}\n---"]
    assert [c["text"] for c in chunk(f"20\n-\n{words(9)}")] == [f"20\n-\n{words(9)}"]


def test_heading_as_long_as_a_paragraph_is_text():
    (one,) = chunk(f"# {'x' * 250} said\n\n{words(9)}")
    assert one["text"].startswith("# xxx") and one["heading_path"] == "Cables"


def test_short_last_section_joins_the_one_before_it_under_the_same_parent():
    (one,) = chunk(f"# Plugs\n\n## Type 1\n\n{words(10, 20)}\n\n## Type 2\n\n{words(4)}")
    assert one["heading_path"] == "Cables > Plugs"
    assert one["text"] == f"{words(10, 20)}\n\n## Type 2\n\n{words(4)}"


def test_short_section_joins_the_neighbour_that_it_fits_to():
    parts = f"## A\n\n{words(20)}\n\n## B\n\n{words(4, 30)}\n\n## C\n\n{words(30, 40)}"
    chunks = chunk(parts)
    assert [c["heading_path"] for c in chunks] == ["Cables", "Cables > C"]
    assert chunks[0]["text"].endswith(words(4, 30))


def test_short_section_joins_none_that_would_be_too_long():
    parts = f"## A\n\n{words(30)}\n\n## B\n\n{words(4, 30)}\n\n## C\n\n{words(30, 40)}"
    assert [c["n_tokens"] for c in chunk(parts)] == [30, 4, 30]


def test_short_introduction_of_a_section_joins_its_first_subsection():
    (one,) = chunk(f"# Plugs\n\n{words(4)}\n\n## Type 1\n\n{words(10, 20)}")
    assert one["heading_path"] == "Cables > Plugs"


def test_sections_of_the_same_name_are_not_one_section():
    chunks = chunk(f"## Example\n\n{words(10)}\n\n## Example\n\n{words(10, 20)}")
    assert [c["text"] for c in chunks] == [words(10), words(10, 20)]


def test_heading_followed_by_a_subheading_is_in_the_path():
    (one,) = chunk(f"# Plugs\n\n## AC\n\n### Type 1\n\n{words(10)}")
    assert one["heading_path"] == "Cables > Plugs > AC > Type 1" and one["text"] == words(10)


def test_heading_at_the_end_without_text_gives_no_chunk():
    chunks = chunk(f"# Plugs\n\n{words(10)}\n\n# Comments")
    assert [c["text"] for c in chunks] == [words(10)]


def test_headings_in_a_row_without_text_are_text_of_the_section_above():
    # Cards of a page: each plug is a heading, and nothing stands below it.
    chunks = chunk(f"# Plugs\n\n{words(30)}\n\n## Type 2\n\n## CCS\n\n## NACS\n\n# More\n\n{words(30, 40)}")
    assert chunks[1]["text"] == "## Type 2\n\n## CCS\n\n## NACS"
    assert [c["heading_path"] for c in chunks] == ["Cables > Plugs", "Cables > Plugs", "Cables > More"]


def test_change_in_one_section_leaves_the_chunks_of_other_sections():
    def page(middle):
        return "\n\n".join(f"## H{i}\n\n{middle if i == 2 else sentences(8 + i)}" for i in range(5))

    before, after = ({c["text"] for c in chunk(page(middle))} for middle in (sentences(9), sentences(4, 13)))
    others = {c["text"] for i in (0, 1, 3, 4) for c in chunk(f"## H{i}\n\n{sentences(8 + i)}")}
    assert others <= before and others <= after and before != after


def test_item_too_long_is_cut_at_the_items_within_it():
    inner = [f"  - {words(12, 20 * i)}" for i in range(4)]
    chunks = chunk(f"- {words(10, 100)}\n" + "\n".join(inner) + f"\n- {words(5, 200)}")
    assert all(sum(item.strip() in c["text"] for c in chunks) == 1 for item in inner)
    assert len(chunks) > 1


def test_long_text_without_blanks_is_cut_within_the_limit():
    def count_characters(texts):
        return [len(text) for text in texts]

    cjk = "充电桩已连接请稍候" * 40
    for text in (cjk, "QmFzZTY0" * 100, "e\u0301" * 100):
        frame = chunk_documents(documents(text), count_characters, SMALL)
        assert frame["n_tokens"].max() <= 32 and "".join(frame["text"]) == text
        assert not any(body.startswith("\u0301") for body in frame["text"])


def test_tokens_are_counted_in_few_calls_however_many_documents():
    calls = []

    def count(texts):
        calls.append(len(texts))
        return count_words(texts)

    texts = [f"# A\n\n{sentences(20)}\n\n{words(70, i)}\n\n- {words(40)}\n- {words(3)}" for i in range(200)]
    assert chunk_documents(documents(*texts), count, SMALL).height > 200 * 6
    assert len(calls) <= 6


def test_pieces_longer_than_their_blocks_counted_apart_are_packed_again():
    def count(texts):  # a tokenizer for which a whole has more tokens than its parts: two for every line break
        return [len(text.split()) + 2 * text.strip().count("\n") for text in texts]

    frame = chunk_documents(documents("\n\n".join(words(7, 10 * i) for i in range(40))), count, SMALL)
    assert frame["n_tokens"].max() <= 32 and frame.height < 40


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
        if not re.match(r"#{1,6}\s|---$", line):
            inside = set(covered[word.start() : word.end()])
            assert inside == {1}, f"{word[0]!r} of {line!r}"
    assert len({c["chunk_id"] for c in chunks}) == len(chunks)


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_chunks_of_an_odd_document_hold_every_word_once(text):
    frame = documents(text)
    check(frame.row(0, named=True), list(chunk_documents(frame, count_words, SMALL).iter_rows(named=True)), SMALL)


def random_document(random):
    """Return Markdown of random blocks, nested, broken and odd ones among them."""
    number = iter(range(10**6))

    def some(low, high):
        return " ".join(f"x{next(number)}" for _ in range(random.randint(low, high)))

    def block():
        kind = random.choice(
            ["heading", "text", "text", "list", "nested", "table", "bare", "code", "quote", "rule", "odd"]
        )
        if kind == "heading":
            return f"{'#' * random.randint(1, 4)} {some(1, 5)}"
        if kind == "text":
            return " ".join(f"Say {some(1, 30)}{random.choice('.!?:')}" for _ in range(random.randint(1, 8)))
        if kind == "list":
            return "\n".join(f"{random.choice(['-', '*', '1.'])} {some(1, 40)}" for _ in range(random.randint(1, 9)))
        if kind == "nested":
            return "\n".join(f"{'  ' * random.randint(0, 3)}- {some(1, 20)}" for _ in range(random.randint(2, 9)))
        if kind == "table":
            rows = [f"| {some(1, 6)} | {some(1, 6)} |" for _ in range(random.randint(0, 12))]
            return "\n".join([f"| {some(1, 2)} | {some(1, 2)} |", "| --- | --- |", *rows])
        if kind == "bare":
            return "\n".join(f"| {some(1, 6)} | {some(1, 6)} |" for _ in range(random.randint(1, 9)))
        if kind == "code":
            return "```\n" + "\n".join(some(1, 9) for _ in range(random.randint(1, 9))) + "\n```"
        if kind == "quote":
            return "\n".join(f"> {some(1, 20)}" for _ in range(random.randint(1, 5)))
        return (
            "---" if kind == "rule" else random.choice(["- ", "> > -", "||", "    x", "<div>", "[a]: b", "\t* c", "1)"])
        )

    return "\n\n".join(block() for _ in range(random.randint(1, 25)))


@pytest.mark.parametrize("seed", range(60))
def test_chunks_of_a_random_document_hold_every_word_once_and_rows_whole(seed):
    text = random_document(Random(seed))
    frame = documents(text)
    chunks = list(chunk_documents(frame, count_words, SMALL).iter_rows(named=True))
    check(frame.row(0, named=True), chunks, SMALL)
    for row in re.finditer(r"^\|.*\|$", text, re.MULTILINE):
        assert any(c["start"] <= row.start() and row.end() <= c["end"] for c in chunks), row[0]


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
