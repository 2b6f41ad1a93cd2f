"""Texts that a person brought: what becomes of them between their bytes and `clean_documents`."""

from dataclasses import replace

import polars as pl
import pytest

from ev_platform.collect.bodies import blank_row
from ev_platform.corpus import chunk_documents, clean_documents, extract_documents
from ev_platform.corpus import extract as extract_module
from ev_platform.corpus.extracted import UnusableError
from ev_platform.corpus.text import read_text, title_of
from ev_platform.records import to_frame
from ev_platform.tasks.config import CorpusConfig
from ev_platform.tasks.sources import Sources

ABOUT = "Answer questions about electric vehicle charging stations, cables and connectors."
WIPERS = (
    "# Wipers\n\nPress the button at the end of the left stalk once for a single wipe. Hold it to spray washer fluid "
    "on the windscreen. In winter the wipers are parked in the service position before they are replaced."
)
SEATS = "The front seats are heated in three steps, and each passenger chooses a step on the touchscreen of the car."


def texts(store, *files):
    """Store texts, given as (url, text), and return their rows of `raw_texts`."""
    sources = Sources(licence="CC0-1.0", publisher="A. Publisher")
    rows = []
    for url, text in files:
        data = text.encode()
        sha, path = store.put_blob(data)
        rows.append(replace(blank_row(url, "text", sources), content_sha256=sha, path=path, n_bytes=len(data)))
    return to_frame("raw_texts", rows)


def clean(documents, **config):
    tables = clean_documents(documents, ABOUT, CorpusConfig(**config))
    kept, dropped = tables["clean_documents"], tables["dropped_documents"]
    assert kept.height + dropped.height == documents.height
    return kept, {row["url"]: (row["drop_reason"], row["drop_detail"]) for row in dropped.iter_rows(named=True)}


# ---- titles ----


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# About *Autopilot*\n\nText.", "About Autopilot"),
        ("A paragraph.\n\n## [Keys](keys.md) ##\n\nText.", "Keys"),
        ("```\n# a comment\n```\n\n# Wipers\n\nText.", "Wipers"),
        ("The BFG (2016 film)\nThe BFG is a 2016 American fantasy adventure film.", "The BFG (2016 film)"),
        ("Seat heating\n\nShort.", "Seat heating"),
        # Lines wrapped at a width, a paragraph, a sentence, one line alone, a line too long for a title.
        ("A charging station gives energy to the\nbattery of the electric car, and waits.", None),
        ("One paragraph of words, and no line after it.", None),
        ("It is a sentence.\n\nAnd another one that is a good deal longer than it.", None),
        ("Alone", None),
        ("#1 of the charts was a song that nobody remembers today", None),
        ("word " * 40 + "\n\nText.", None),
    ],
)
def test_title_is_the_first_heading_or_a_first_line_that_is_one(text, title):
    assert title_of(text) == title


def test_title_of_a_file_without_one_is_its_name_and_a_row_has_none(store):
    documents = extract_documents(texts(store, ("file:docs/seats.md", SEATS), ("task:t/u.csv#row=2", SEATS)), store)
    assert documents.select("url", "title").rows() == [("file:docs/seats.md", "seats"), ("task:t/u.csv#row=2", None)]


# ---- text ----


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_read_text_takes_the_encodings_that_files_have(encoding):
    assert read_text("# Öl\n\nDer Motor braucht fünf Liter Öl.".encode(encoding)).title == "Öl"


def test_read_text_of_blanks_is_told():
    with pytest.raises(UnusableError) as caught:
        read_text("\u200b \n".encode())
    assert caught.value.reason == "no_text"


def test_extract_text_stays_as_it_stands_with_its_source_and_personal_data_masked(store):
    raw = texts(store, ("file:docs/wipers.md", WIPERS + "\n\nWrite to jane.doe@wipers-shop.com for parts."))
    (row,) = extract_documents(raw, store).iter_rows(named=True)
    assert row["text"].startswith(WIPERS)
    assert "jane.doe" not in row["text"] and row["n_masked"] == 1
    assert (row["kind"], row["language"], row["drop_reason"]) == ("text", "en", None)
    assert (row["licence"], row["publisher"], row["robots"]) == ("CC0-1.0", "A. Publisher", "not_applicable")
    assert row["fetched_at"] == raw["fetched_at"].item()


def test_extract_thousands_of_texts_starts_no_process(store, monkeypatch):
    monkeypatch.setattr("pebble.ProcessPool.schedule", lambda *_, **__: pytest.fail("a process was used"))
    raw = texts(store, *[(f"task:t/u.csv#row={n}", f"Text {n}. {SEATS}") for n in range(2, 2002)])
    documents = extract_documents(raw, store)
    assert documents.height == 2000 and documents["drop_reason"].null_count() == 2000


def test_extract_long_text_is_read_in_a_worker(store):
    (row,) = extract_documents(texts(store, ("file:docs/log.md", f"{SEATS}\n\n" * 3000)), store).iter_rows(named=True)
    assert len(row["text"].encode()) > extract_module.MAX_BYTES_HERE
    assert row["drop_reason"] is None


def test_extract_text_that_is_gone_from_the_store_is_set_aside_and_the_others_go_on(store):
    raw = texts(store, ("file:a.md", SEATS), ("file:b.md", WIPERS))
    (store.root / raw["path"][0]).unlink()
    documents = extract_documents(raw, store)
    assert documents["drop_reason"].to_list() == ["extraction_failed", None]
    assert documents["drop_detail"][0].startswith("FileNotFoundError: ")


def test_extract_known_text_is_not_read_again(store, monkeypatch):
    raw = texts(store, ("file:a.md", SEATS))
    first = extract_documents(raw, store)
    monkeypatch.setattr(extract_module, "read_text", lambda _: pytest.fail("a text was read"))
    assert extract_documents(raw, store, first).equals(first)


# ---- filters ----


def test_clean_keeps_texts_that_a_page_would_be_dropped_for(store):
    documents = extract_documents(
        texts(store, ("file:wipers.md", WIPERS), ("task:t/u.csv#row=2", "The seats are heated in three steps.")), store
    )
    kept, dropped = clean(documents)
    assert dropped == {}
    assert kept["relevance"].to_list() == [None, None]
    pages = documents.with_columns(kind=documents["kind"].str.replace("text", "web"))
    assert {reason for reason, _ in clean(pages)[1].values()} == {"too_short"}
    assert clean(pages, min_words=5)[1]["file:wipers.md"][0] == "off_topic"


def test_clean_drops_texts_in_another_language_and_duplicates(store):
    german = "Der Scheibenwischer wird mit dem Knopf am linken Hebel einmal betätigt, und das Wasser spritzt dabei."
    documents = extract_documents(
        texts(
            store,
            ("task:t/u.csv#row=2", SEATS),
            ("task:t/u.csv#row=3", german),
            ("task:t/u.csv#row=4", SEATS.upper()),
            ("task:t/u.csv#row=5", f"{WIPERS} {SEATS}"),
            ("task:t/u.csv#row=6", f"{WIPERS} {SEATS} Printed."),
        ),
        store,
    )
    kept, dropped = clean(documents)
    assert kept["url"].to_list() == ["task:t/u.csv#row=2", "task:t/u.csv#row=5"]
    assert {url: reason for url, (reason, _) in dropped.items()} == {
        "task:t/u.csv#row=3": "language",
        "task:t/u.csv#row=4": "exact_duplicate",
        "task:t/u.csv#row=6": "near_duplicate",
    }
    assert dropped["task:t/u.csv#row=4"][1].endswith("with task:t/u.csv#row=2")


def test_clean_drops_a_text_for_its_language_only_where_that_is_sure(store):
    names = "MyAnna Buring\nMyAnna Buring, born Anna Margaretha My Rantapää, 22 September 1979, is a Swedish actress."
    documents = extract_documents(texts(store, ("file:names.md", names), ("file:numbers.md", "1 2 3\n\n4 5 6")), store)
    # As a page in this language would be; what the detector says of names differs from release to release.
    unsure = documents.with_columns(
        language=pl.when(pl.col("language") == "und").then("language").otherwise(pl.lit("pcm")),
        language_score=pl.when(pl.col("language") == "und").then(0.0).otherwise(0.5577),
    )
    kept, dropped = clean(unsure)
    assert kept["url"].to_list() == ["file:names.md"]
    assert dropped == {"file:numbers.md": ("language", "und (0.00)")}
    assert clean(unsure.with_columns(kind=pl.lit("web")))[1]["file:names.md"] == ("language", "pcm (0.56)")
    assert clean(unsure.with_columns(language_score=0.9))[1]["file:names.md"] == ("language", "pcm (0.90)")


def test_clean_texts_beside_pages_are_measured_apart(store):
    """A page is judged as ever where texts stand beside it."""
    text = extract_documents(texts(store, ("file:wipers.md", WIPERS)), store)
    page = text.with_columns(
        kind=text["kind"].str.replace("text", "web"), url=text["url"].str.replace("wipers", "page")
    ).with_columns(text=text["text"].str.replace("Press", "Then press") + " And so on." * 3)
    kept, dropped = clean(text.vstack(page), min_words=5)
    assert kept["url"].to_list() == ["file:wipers.md"]
    assert dropped["file:page.md"][0] == "off_topic"


def test_chunks_of_a_text_are_its_spans_under_its_headings(store):
    documents = extract_documents(texts(store, ("file:docs/wipers.md", WIPERS)), store)
    kept, _ = clean(documents)
    (chunk,) = chunk_documents(kept, lambda some: [len(text.split()) for text in some], CorpusConfig()).to_dicts()
    assert chunk["heading_path"] == "Wipers"
    assert kept["text"].item()[chunk["start"] : chunk["end"]] == chunk["text"]
    assert chunk["page"] is None
