"""Real pages against the labels people gave them: language, relevance and spam, however the task is worded.

`pytest -m real_data -s ev_platform_tests/test_real_labels.py` prints the figures and the pages nearest to the bounds.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest

from ev_platform.corpus import clean_documents
from ev_platform.corpus.extract import extract_documents
from ev_platform.corpus.relevance import relevances
from ev_platform.records import RawBody, to_frame
from ev_platform.storage import Store
from ev_platform.tasks import get_task
from ev_platform.tasks.config import CorpusConfig

SHARED = Path(__file__).parents[2] / "shared" / "data"
CONFIG = CorpusConfig()
DESCRIPTIONS = {
    "issue": "Answer questions about electric vehicle charging stations: connectors, protocols, installation, pricing.",
    "example": get_task("ev_charging", Path("no-such-folder")).description,
    "protocols": "Give short factual answers about charging infrastructure for electric cars, including OCPP, OCPI "
    "and home wallboxes.",
    "help desk": "A help desk for drivers and site owners who want to know how EV chargers work, what they cost and "
    "how they are installed.",
}
# The first 20 pages tell what a specification is about; the layout of all 150 takes minutes.
PDFS = {"OCPI_2.1.1.pdf": True, "ocpp-2.0.1-part4-ocppj.pdf": True, "offtopic-tracemonkey-pldi09.pdf": False}
PDF_PAGES = 20


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, dict[str, dict[str, str]]]:
    """Return the `documents` of the labelled pages, and the manifest's rows by address."""
    if not (SHARED / "ev_web" / "manifest.csv").exists():
        pytest.skip("the real pages are not beside this checkout")
    with (SHARED / "ev_web" / "manifest.csv").open(newline="") as file:
        rows = {f"https://{quote(row['file'])}": row for row in csv.DictReader(file)}
    store = Store(tmp_path_factory.mktemp("labels"))
    bodies = []
    for url, row in rows.items():
        data = (SHARED / "ev_web" / row["file"]).read_bytes()
        path = store.root / row["sha1"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        bodies.append(_body(url, row["sha1"], len(data)))
    return extract_documents(to_frame("raw_pages", bodies), store), rows


def _body(url: str, name: str, n_bytes: int) -> RawBody:
    values: dict[str, Any] = dict.fromkeys(RawBody.__dataclass_fields__)
    hour = datetime(2026, 1, 1, tzinfo=UTC)
    values |= {"url": url, "final_url": url, "kind": "web", "content_sha256": name, "path": name, "n_bytes": n_bytes}
    values |= {"fetched_at": hour, "checked_at": hour, "licence": "unknown", "publisher": "unknown", "depth": 0}
    return RawBody(**values | {"robots": "allowed"})


@pytest.mark.real_data
def test_language_of_labelled_pages_is_right_on_97_percent(labelled) -> None:
    documents, rows = labelled
    found = dict(documents.select("fetched_url", "language").rows())
    wrong = [u for u, row in rows.items() if found[u] != row["detected_lang"]]
    kept_wrongly = [u for u, row in rows.items() if (found[u] == "en") != (row["detected_lang"] == "en")]
    print(f"\nlanguage: {len(rows) - len(wrong)} of {len(rows)} as labelled; wrong {wrong}")
    print(f"language decision (English or not): {len(rows) - len(kept_wrongly)} of {len(rows)}")
    assert len(wrong) <= 0.03 * len(rows)
    assert len(kept_wrongly) <= 0.01 * len(rows)


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DESCRIPTIONS if name != "issue"])  # that is `test_real_data`'s
def test_filter_keeps_labelled_ev_pages_and_drops_the_others(labelled, name: str) -> None:
    documents, rows = labelled
    check_labels(name, clean_documents(documents, DESCRIPTIONS[name], CONFIG), rows)


def check_labels(name: str, tables: Mapping[str, pl.DataFrame], rows: dict[str, dict[str, str]]) -> None:
    """Hold what was kept and dropped against the labels.

    Args:
        name: Of the wording in `DESCRIPTIONS`.
        tables: Of `clean_documents`.
        rows: The manifest's, by address.
    """
    dropped = tables["dropped_documents"]
    # A duplicate passed every judgement on what it says.
    reason = {u: why for u, why in dropped.select("fetched_url", "drop_reason").rows() if "duplicate" not in why}
    detail = dict(dropped.select("fetched_url", "drop_detail").rows())
    english: dict[str, list[str]] = {}
    for url, row in rows.items():
        if row["detected_lang"] == "en":
            english.setdefault(row["topic"], []).append(url)
    kept = {topic: [url for url in urls if url not in reason] for topic, urls in english.items()}
    print(f"\n{name}: {DESCRIPTIONS[name]}")
    for topic, urls in english.items():
        print(f"  {topic:12} {len(kept[topic]):3} of {len(urls):3} kept ({len(kept[topic]) / len(urls):.0%})")
    for url in english["ev"]:
        if url in reason:
            print(f"  lost: {url} {reason[url]} {detail[url]}")
    relevance = dict(tables["clean_documents"].select("fetched_url", "relevance").rows())
    print(f"  kept though off topic: {kept['off_topic']}")
    nearest = sorted((relevance[u], u) for u in english["ev"] if u in relevance)[:3]
    print(f"  nearest to {CONFIG.min_relevance}: {nearest}")
    near_misses = sorted((detail[u], u) for u in english["off_topic"] if reason.get(u) == "off_topic")[-3:]
    print(f"  and below it: {near_misses}")

    # Three of 52 cannot be told by what they say: one is empty but for its menu, one sets up an editor, and one is on a
    # list of stations for alternative fuels, without a word on charging; the wording decides which of the last two go.
    assert len(english["ev"]) - len(kept["ev"]) <= 0.06 * len(english["ev"])
    assert len(kept["off_topic"]) <= 0.1 * len(english["off_topic"])
    assert kept["spam"] == []


@pytest.mark.real_data
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_relevance_of_protocol_specifications_is_high_and_of_another_paper_low(name: str) -> None:
    import pymupdf

    for file, is_about in PDFS.items():
        if not (SHARED / "ev_pdf" / file).exists():
            pytest.skip("the real PDFs are not beside this checkout")
        with pymupdf.open(SHARED / "ev_pdf" / file) as pdf:
            text = "\n\n".join(pdf[n].get_text() for n in range(min(PDF_PAGES, pdf.page_count)))
        (figure,) = relevances([{"text": text, "title": file.removesuffix(".pdf")}], DESCRIPTIONS[name])
        print(f"\n{name}: {file} {figure:.2f}")
        assert (figure >= CONFIG.min_relevance) == is_about
