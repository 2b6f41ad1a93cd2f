"""Real pages and PDFs through collection and corpus: everything ends in the corpus or in the dropped table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from urllib.parse import quote

import polars as pl
import pytest

from ev_platform.collect import collect_pages, collect_pdfs
from ev_platform.collect.site import serve_folder
from ev_platform.corpus import clean_documents, extract_documents
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform_tests.test_real_labels import DESCRIPTIONS, check_labels

SHARED = Path(__file__).parents[2] / "shared" / "data"
# The long specifications take minutes; these files hold every kind of trouble in the collection.
PDFS = (
    "NOT-A-PDF-statediagram.pdf",
    "ev-siting-simulation-IMAGE-ONLY.pdf",
    "pdf-test-ENCRYPTED.pdf",
    "smartevse-v3-build.pdf",
    "tesla-wall-connector-datasheet-ENCRYPTED.pdf",
    "tr-iec61851-log-anomali.pdf",
)


@pytest.mark.real_data
def test_corpus_of_real_sources_accounts_for_every_page_and_file(tmp_path: Path) -> None:
    if not (SHARED / "ev_web" / "manifest.csv").exists():
        pytest.skip("the real pages are not beside this checkout")
    with (SHARED / "ev_web" / "manifest.csv").open(newline="") as file:
        manifest = list(csv.DictReader(file))
    with serve_folder(SHARED / "ev_web") as root:
        rows = {root.rstrip("/") + "/" + quote(row["file"]): row for row in manifest}
        folder = tmp_path / "task"
        folder.mkdir()
        (folder / "job_description.json").write_text(json.dumps({"task_description": DESCRIPTIONS["issue"]}))
        sources = {
            "seeds": list(rows),
            "max_depth": 0,
            "pdfs": [str(SHARED / "ev_pdf" / name) for name in PDFS],
        }
        (folder / "sources.yaml").write_text(json.dumps(sources))
        task, store = Task("real", folder), Store(tmp_path / "data")
        pages = collect_pages(task, store, previous=store.read("raw_pages", "real"), user_agent="ev-platform tests")
        pdfs = collect_pdfs(task, store, previous=store.read("raw_pdfs", "real"))
    documents = extract_documents(pl.concat([pages, pdfs]), store)
    tables = clean_documents(documents, DESCRIPTIONS["issue"], task.config.corpus)
    clean, dropped = tables["clean_documents"], tables["dropped_documents"]

    seen = clean["fetched_url"].to_list() + dropped["fetched_url"].to_list()
    assert sorted(seen) == sorted([*pages["url"], *pdfs["url"]])
    assert pages.height == len(manifest)
    assert dropped["drop_reason"].null_count() == 0
    reason = {Path(url).name: why for url, why in dropped.select("fetched_url", "drop_reason").rows()}
    assert reason["NOT-A-PDF-statediagram.pdf"] == "not_a_pdf"
    assert reason["ev-siting-simulation-IMAGE-ONLY.pdf"] == "image_only_pdf"
    assert reason["tr-iec61851-log-anomali.pdf"] == "language"
    print(f"\nreal sources: {clean.height} kept, {dropped['drop_reason'].value_counts(sort=True).rows()}")
    check_labels("issue", tables, rows)
