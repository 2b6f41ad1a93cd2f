import time
from dataclasses import replace

import polars as pl
import pytest

from ev_platform.dataset.locate import Locator, cluster_contexts, find_holders, find_shared, locate_rows
from ev_platform.records import Chunk, schema_of, to_frame
from ev_platform.tasks.rows import TaskRow

PASSAGES = {
    "plugs": "A Type 2 connector has seven contacts. A Type 1 connector has five contacts.",
    "cables": "The supply cable must withstand a pull of 500 N. A cooled cable carries 500 A.",
    "bills": "A charging detail record is the bill of one session. The tariff has three parts.",
}
NO_DROPPED = pl.DataFrame(schema=schema_of("dropped_documents"))


def chunk(name, document, text, ordinal=0, heading_path="", page=None):
    return Chunk(
        f"chk_{name}", f"doc_{document}", f"cluster_{document}", ordinal, 0, len(text), heading_path, page, text, 5
    )


def documents(urls):
    schema = schema_of("clean_documents")
    rows = [
        {**dict.fromkeys(schema), "document_id": f"doc_{name}", "url": url, "fetched_url": f"{url}?all", "kind": "web"}
        for name, url in urls.items()
    ]
    return pl.DataFrame(rows, schema=schema)


CHUNKS = to_frame("chunks", [chunk(n, n, text, heading_path=n.title()) for n, text in PASSAGES.items()])
DOCUMENTS = documents({n: f"https://a.example/{n}.html" for n in PASSAGES})


def row(question, answer="five", source=None, split="train", context=None, **more):
    return TaskRow(split, f"{split}.csv row 2", question, answer, context, source, **more)


def locate(*rows, chunks=CHUNKS, docs=DOCUMENTS, dropped=NO_DROPPED):
    return locate_rows(rows, Locator(chunks, docs, dropped))


@pytest.mark.parametrize("end", ["", "?all", "#x", "/"])
def test_row_finds_its_passage_by_its_source(end):
    (found,) = locate(row("How many contacts has a Type 1 plug?", source=f"https://a.example/plugs.html{end}"))
    assert (found.chunk_id, found.document_id, found.cluster_id) == ("chk_plugs", "doc_plugs", "cluster_plugs")
    assert (found.origin, found.kind, found.row, found.teacher) == ("human", "human", "train.csv row 2", None)


@pytest.mark.parametrize("source", ["https://a.example/gone.html", "https://b.example/plugs.html", "gone.html"])
def test_row_whose_source_is_not_in_the_corpus_has_no_passage(source):
    (found,) = locate(row("How many contacts has a Type 1 plug?", source=source))
    assert (found.chunk_id, found.document_id, found.cluster_id) == (None, None, None)


def test_row_without_a_source_takes_a_passage_only_if_it_holds_answer_and_question():
    sure = row("How many contacts has a Type 1 connector?", "five contacts")
    unsure = row("How tall is the tower in Paris?", "330 m")
    half = row("How many contacts has a Type 1 connector?", "five brass contacts")
    assert [found.chunk_id for found in locate(sure, unsure, half)] == ["chk_plugs", None, None]


def test_row_without_a_source_takes_the_first_of_equal_passages():
    twins = to_frame("chunks", [chunk(n, n, PASSAGES["plugs"]) for n in ("one", "two")])
    assert locate(row("How many contacts has a Type 1 connector?", "five"), chunks=twins)[0].chunk_id == "chk_one"


def test_empty_corpus_locates_nothing():
    (found,) = locate(row("How many?"), chunks=CHUNKS.clear(), docs=DOCUMENTS.clear())
    assert found.chunk_id is None


def test_row_whose_source_was_dropped_as_a_duplicate_counts_for_the_survivor():
    twin = dict.fromkeys(schema_of("dropped_documents"))
    twin |= {"document_id": "doc_twin", "url": "https://a.example/twin.html", "fetched_url": "https://x/twin.html"}
    twin |= {"drop_reason": "near_duplicate", "duplicate_of": "doc_bills"}
    dropped = pl.DataFrame([twin], schema=schema_of("dropped_documents"))
    (found,) = locate(row("What is it?", source="https://a.example/twin.html"), dropped=dropped)
    assert found.document_id == "doc_bills"


def test_address_of_a_document_outranks_the_same_address_of_a_dropped_twin():
    twin = dict.fromkeys(schema_of("dropped_documents"))
    twin |= {"document_id": "doc_twin", "url": "https://a.example/plugs.html", "fetched_url": "https://x/y"}
    twin |= {"drop_reason": "near_duplicate", "duplicate_of": "doc_bills"}
    dropped = pl.DataFrame([twin], schema=schema_of("dropped_documents"))
    (found,) = locate(row("What?", source="https://a.example/plugs.html"), dropped=dropped)
    assert found.document_id == "doc_plugs"


def test_page_of_a_pdf_narrows_the_passages():
    texts = {"one": ("grey and long", 1), "two": ("grey and long", 2), "four": ("grey", 4)}
    chunks = to_frame("chunks", [chunk(n, "m", f"The cable is {t}.", page=page) for n, (t, page) in texts.items()])
    manual = documents({"m": "https://a.example/pdfs/manual.pdf"})
    for source in ("https://a.example/pdfs/manual.pdf#page=4", "pdfs/manual.pdf#page=4"):
        (found,) = locate(row("What colour?", "grey and long", source), chunks=chunks, docs=manual)
        assert found.chunk_id == "chk_four"  # pages 1 and 2 answer better, but are too far away
    (found,) = locate(row("What colour?", "grey and long", "pdfs/manual.pdf#page=99"), chunks=chunks, docs=manual)
    assert found.chunk_id == "chk_one"  # the page is wrong, the document is right


@pytest.mark.parametrize(
    "source",
    [
        "docs/brakes.md",
        "../docs/brakes.md/",
        "data_v2/docs/brakes.md",
        "./manual/docs/brakes.md",
        "brakes.md",
        "docs\\brakes.md",
    ],
)
@pytest.mark.parametrize("url", ["file:docs/brakes.md", "file:///home/x/manual/docs/brakes.md", "docs/brakes.md"])
def test_path_as_source_matches_the_end_of_a_documents_address(source, url):
    docs = documents({"brakes": url, "tyres": url.replace("brakes", "tyres")})
    chunks = to_frame("chunks", [chunk(n, n, "Press the pedal.") for n in ("tyres", "brakes")])
    (found,) = locate(row("What do I press?", "the pedal", source), chunks=chunks, docs=docs)
    assert found.document_id == "doc_brakes"


def test_path_that_fits_two_documents_needs_more_of_its_parts():
    docs = documents({"a": "file:a/index.md", "b": "file:b/index.md"})
    chunks = to_frame("chunks", [chunk(n, n, "Press the pedal.") for n in "ab"])
    found = locate(row("What?", source="b/index.md"), row("What?", source="index.md"), chunks=chunks, docs=docs)
    assert [example.document_id for example in found] == ["doc_b", None]


@pytest.mark.parametrize("fragment", ["#wet-roads", "/##wet-roads", "#Wet%20Roads", "#wet_roads", "#wet:-roads"])
def test_fragment_that_names_a_heading_prefers_the_chunks_under_it(fragment):
    docs = documents({"brakes": "file:docs/brakes.md"})
    chunks = [
        chunk("dry", "brakes", "Brake early, in time and with care.", 0, "Brakes > Dry Roads"),
        chunk("wet", "brakes", "Brake early.", 1, "Brakes > Wet Roads"),
    ]
    asked = row("How do I brake?", "early, in time and with care", f"docs/brakes.md{fragment}")
    assert locate(asked, chunks=to_frame("chunks", chunks), docs=docs)[0].chunk_id == "chk_wet"
    joined = [replace(chunks[0]), chunk("both", "brakes", "## Wet Roads?\n\nBrake early.", 1, "Brakes")]
    assert locate(asked, chunks=to_frame("chunks", joined), docs=docs)[0].chunk_id == "chk_both"
    elsewhere = replace(asked, source="docs/brakes.md#no-such-heading")
    assert locate(elsewhere, chunks=to_frame("chunks", chunks), docs=docs)[0].chunk_id == "chk_dry"


def test_row_with_a_passage_of_its_own_keeps_it_with_all_its_answers():
    asked = row("Who pays?", "the driver", context="The driver pays.", answers=("the driver", "driver"), answer_start=0)
    (found,) = locate(asked)
    assert (found.context, found.chunk_id, found.answers, found.answer_start) == (
        "The driver pays.",
        None,
        ["the driver", "driver"],
        0,
    )
    (unanswered,) = locate(row("Who laughs?", "Not said.", context="The driver pays.", is_answerable=False))
    assert (unanswered.is_answerable, unanswered.answers) == (False, ["Not said."])
    assert unanswered.cluster_id == found.cluster_id


def test_row_with_a_passage_of_its_own_belongs_to_the_document_that_its_source_names():
    named, same, gone = locate(
        row("Who pays?", context="The driver pays.", source="https://a.example/bills.html"),
        row("Who laughs?", context="the driver pays"),
        row("Who pays?", context="The other pays.", source="https://a.example/gone.html"),
    )
    assert named.cluster_id == same.cluster_id == "cluster_bills"
    assert gone.cluster_id == cluster_contexts(["The other pays."])["The other pays."]
    # What it is asked over stays its own.
    assert (named.context, named.chunk_id, named.document_id) == ("The driver pays.", None, None)


def test_rows_with_the_same_passage_that_name_two_documents_belong_to_each_its_own():
    sources = [f"https://a.example/{name}.html" for name in ("bills", "plugs")]
    found = locate(*(row("Who pays?", context="The driver pays.", source=source) for source in sources))
    assert [one.cluster_id for one in found] == ["cluster_bills", "cluster_plugs"]


LONG = " ".join(f"word{n}" for n in range(60))


def test_contexts_that_say_the_same_share_a_cluster_and_others_do_not():
    near = LONG.replace("word30", "other")
    clusters = cluster_contexts(["The driver pays.", "THE DRIVER\npays", LONG, near, "Nobody pays."])
    assert clusters["The driver pays."] == clusters["THE DRIVER\npays"]
    assert clusters[LONG] == clusters[near]
    assert len(set(clusters.values())) == 3


def test_cluster_does_not_depend_on_the_other_rows_nor_on_their_order():
    near = LONG.replace("word30", "other")
    alone = cluster_contexts([LONG, near])
    among = cluster_contexts(["Nobody pays.", near, LONG])
    assert among[LONG] == alone[LONG] == alone[near]


def test_two_thousand_rows_are_located_among_three_thousand_chunks_in_seconds():
    words = [f"term{n}" for n in range(4000)]
    texts = [" ".join(["the", "of", "and", *words[n : n + 80]]) for n in range(3000)]
    chunks = to_frame("chunks", [chunk(str(n), str(n), text) for n, text in enumerate(texts)])
    # One word apart from its neighbours, each chunk is the only one that begins with its answer's first word.
    rows = [row(f"the {words[n + 40]} of {words[n + 79]}", f"{words[n]} and {words[n + 79]}") for n in range(2000)]
    start = time.perf_counter()
    found = locate_rows(rows, Locator(chunks, DOCUMENTS, NO_DROPPED))
    assert [example.chunk_id for example in found] == [f"chk_{n}" for n in range(2000)]
    assert time.perf_counter() - start < 5  # takes 0.4 s; to compare 6 million pairs of sets takes far longer


def test_text_that_says_what_another_says_is_found_with_the_one_it_shares_most_with():
    cable = "The longest cable that a station may have is 10 metres, and its cores are of copper."
    roof = "A roof keeps rain and snow from the drivers who wait below it for their cars."
    texts = [f"{roof} It is red.", "Nothing of the kind is said here about any of it at all.", "", cable[:40], cable]
    found = find_shared(texts, ["", roof, cable, f"{cable} Again."])
    assert {n: match[0] for n, match in found.items()} == {0: 1, 3: 2, 4: 2}
    assert found[4][1] == found[4][2] == 13
    assert find_shared(texts, []) == find_shared([], texts) == find_shared(texts, ["", "!"]) == {}


def test_text_is_found_in_every_other_that_holds_it_however_long():
    cable = "The longest cable that a station may have is 10 metres."
    roof = "A roof keeps rain and snow from the drivers who wait below it for their cars."
    others = [f"{roof} {cable} {roof.replace('a', 'o')}", "", cable.upper(), roof]
    assert find_holders([roof, cable, "!"], others) == [(0, 0), (0, 3), (1, 0), (1, 2)]
    assert find_holders([], others) == find_holders(others, []) == find_holders(["!"], others) == []
