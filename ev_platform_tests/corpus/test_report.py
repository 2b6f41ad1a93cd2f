import re

import polars as pl
import pytest

from ev_platform.corpus.report import MAX_DROPPED_SHOWN, summarise_corpus, write_corpus_report
from ev_platform.records import schema_of
from ev_platform.storage import now
from ev_platform.tasks import Task


def table(name, *rows):
    filled = {
        "fetched_at": now(),
        "publisher": "A",
        "licence": "MIT",
        "kind": "web",
        "language": "en",
        "text": "x" * 600,
    }
    rows = [{**dict.fromkeys(schema_of(name)), **filled, **row} for row in rows]
    rows = [{key: row[key] for key in schema_of(name)} for row in rows]
    return pl.DataFrame(rows, schema=schema_of(name))


def kept(n, host="a.example", **more):
    row = {"fetched_url": f"https://{host}/{n}", "url": f"https://{host}/{n}", "document_id": f"doc_{n}"}
    return {**row, "n_chars": 600, "n_masked": 1, "n_boilerplate_lines": 2, "relevance": 0.5, **more}


def gone(n, reason, **more):
    return {"fetched_url": f"https://b.example/{n}", "drop_reason": reason, **more}


@pytest.fixture
def frames():
    return {
        "clean_documents": table("clean_documents", kept(1), kept(2, licence="CC0-1.0")),
        "dropped_documents": table(
            "dropped_documents",
            gone(3, "language", language="de", drop_detail="de (0.99)"),
            gone(4, "off_topic", relevance=0.1),
            gone(5, "http_404", text="", language=None),
        ),
        "chunks": table("chunks", {"n_tokens": 19, "text": "c" * 60}, {"n_tokens": 20}, {"n_tokens": 900}),
    }


def bars(report, section):
    return report.filter(pl.col("section") == section).select("name", "n", "n_kept", "n_chars").rows()


def test_summary_counts_what_came_in_and_what_stayed(frames):
    report = summarise_corpus(*frames.values())
    assert report.schema == schema_of("corpus_report")
    assert bars(report, "outcome") == [
        ("kept", 2, 2, 1200),
        ("http_404", 1, 0, 0),
        ("language", 1, 0, 0),
        ("off_topic", 1, 0, 0),
    ]
    assert bars(report, "source") == [("b.example", 3, 0, 0), ("a.example", 2, 2, 1200)]
    assert bars(report, "language") == [("en", 3, 2, 1200), ("de", 1, 0, 0)]
    assert bars(report, "licence") == [("MIT", 4, 1, 600), ("CC0-1.0", 1, 1, 600)]
    assert bars(report, "n_chars") == [("500 to 999", 4, 2, 1200)]


def test_summary_of_chunks_goes_by_ascending_tokens(frames):
    names = [name for name, *_ in bars(summarise_corpus(*frames.values()), "chunk_n_tokens")]
    assert names == ["0 to 19", "20 to 39", "500 or more"]


def test_summary_of_files_names_no_host():
    frame = table("clean_documents", kept(1, fetched_url="pdfs/guide.pdf"))
    report = summarise_corpus(frame, table("dropped_documents"), table("chunks"))
    assert bars(report, "source") == [("files", 1, 1, 600)]


@pytest.fixture
def task(tmp_path):
    (tmp_path / "job_description.json").write_text('{"task_description": "Answer <questions> on cables."}')
    return Task("cables", tmp_path)


def test_page_shows_every_reason_and_needs_nothing_from_outside(frames, task, store):
    page, plots = write_corpus_report(store, task, summarise_corpus(*frames.values()), frames)
    html = page.read_text()
    assert page.name == "cables-corpus.html"
    assert "Answer &lt;questions&gt; on cables." in html
    assert all(text in html for text in ("de (0.99)", "off_topic", "http_404", "https://b.example/5"))
    assert not re.findall(r'(?:src|link[^>]+href)="http', html)
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 0
    assert set(plots) == {"outcome", "source", "language", "licence", "n_chars", "chunk_n_tokens", "relevance"}
    assert all(image.startswith("![") for image in plots.values())


def test_page_same_tables_give_the_same_page(frames, task, store):
    report = summarise_corpus(*frames.values())
    first = write_corpus_report(store, task, report, frames)[0].read_bytes()
    assert write_corpus_report(store, task, report, frames)[0].read_bytes() == first


def test_page_of_nothing_says_so(task, store):
    frames = {name: table(name) for name in ("clean_documents", "dropped_documents", "chunks")}
    page, plots = write_corpus_report(store, task, summarise_corpus(*frames.values()), frames)
    assert "Nothing was set aside." in page.read_text() and plots == {}


def test_page_of_very_many_dropped_shows_the_first_and_counts_the_rest(task, store):
    dropped = table("dropped_documents", *(gone(n, "too_short") for n in range(MAX_DROPPED_SHOWN + 7)))
    frames = {"clean_documents": table("clean_documents"), "dropped_documents": dropped, "chunks": table("chunks")}
    page, _ = write_corpus_report(store, task, summarise_corpus(*frames.values()), frames)
    assert f"The first {MAX_DROPPED_SHOWN} of {MAX_DROPPED_SHOWN + 7}" in page.read_text()


def test_script_in_an_address_or_a_reason_stays_text(frames, task, store):
    evil = gone("<script>alert(1)</script>", "language", drop_detail="<img src=x onerror=alert(1)>")
    frames["dropped_documents"] = table("dropped_documents", evil, gone(1, "x", fetched_url="javascript:alert(1)"))
    html = write_corpus_report(store, task, summarise_corpus(*frames.values()), frames)[0].read_text()
    assert "<script>" not in html and "<img" not in html and 'href="javascript' not in html


def test_licence_with_dollar_signs_is_a_label_and_no_formula(task, store):
    clean = table("clean_documents", kept(1, licence="$5 for 10%_ and $9"))
    frames = {"clean_documents": clean, "dropped_documents": table("dropped_documents"), "chunks": table("chunks")}
    page, _ = write_corpus_report(store, task, summarise_corpus(*frames.values()), frames)
    assert "$5 for 10%_ and $9" in page.read_text()
