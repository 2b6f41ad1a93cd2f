"""Collect and corpus run in the graph for tasks that bring texts of their own, or nothing at all."""

import csv

import pytest

from ev_platform.errors import UserError
from ev_platform.records import Coverage, to_frame
from ev_platform_tests.test_graph import Workspace
from ev_platform_tests.tiny import BASE_URL, CONFIG, PAGES, write_tiny_model, write_tiny_task

TABLES = ("raw_pages", "raw_pdfs", "raw_texts", "documents", "clean_documents", "dropped_documents", "chunks")
EMPTY = ("raw_pages", "raw_pdfs", "documents", "clean_documents", "chunks", "chunk_vectors", "corpus_report")
STAGES = ["collect", "corpus"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def workspace(tmp_path, model):
    write_tiny_task(tmp_path / "tasks" / "tiny", model)
    return Workspace(tmp_path)


def write_config(workspace, model, kind):
    (workspace.task / "config.yaml").write_text(CONFIG.format(model=model).replace("open_book_qa", kind))


def write_rows(workspace, *texts):
    with (workspace.task / "unstructured.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["context"], *([text] for text in texts)])


@pytest.mark.parametrize("kind", ["classification", "extractive_qa"])
def test_task_without_sources_has_empty_tables_and_fails_no_check(workspace, model, kind):
    write_config(workspace, model, kind)
    (workspace.task / "sources.yaml").unlink()
    if kind == "classification":
        write_rows(workspace, "Where is my card?")  # to be labelled, and no document
    workspace.run(stages=STAGES)
    assert {table: workspace.read(table).height for table in EMPTY} == dict.fromkeys(EMPTY, 0)
    assert workspace.run(stages=STAGES).computed == ()


def test_task_of_which_every_document_was_dropped_still_fails(workspace, model):
    (workspace.task / "sources.yaml").unlink()
    write_rows(workspace, "  ")
    with pytest.raises(UserError, match=r"The corpus is empty: 1 documents were dropped \(unusable_row: 1\)"):
        workspace.run(stages=STAGES)


def test_task_with_texts_of_its_own_beside_pages_counts_all_and_traces_each(workspace):
    docs = workspace.task / "docs"
    docs.mkdir()
    garden, cables = PAGES["garden.html"][2], PAGES["cables.html"][2]
    (docs / "garden.md").write_text(f"# Our garden\n\n{garden}\n")
    with (workspace.task / "sources.yaml").open("a") as file:
        file.write("texts: [docs/*.md]\n")
    write_rows(workspace, "The lock has a key.", " ", cables)
    workspace.run(stages=STAGES)

    kept = workspace.read("clean_documents")
    dropped = dict(workspace.read("dropped_documents").select("url", "drop_reason").iter_rows())
    # A person put the garden into the task; the same words on a page of the site are off topic.
    assert {"file:docs/garden.md", "task:tiny/unstructured.csv#row=2"} <= set(kept["url"])
    assert dropped[BASE_URL + "garden.html"] == "off_topic"
    assert dropped["task:tiny/unstructured.csv#row=3"] == "unusable_row"
    copies = {BASE_URL + "cables.html", "task:tiny/unstructured.csv#row=4"}
    assert len(copies & set(kept["url"])) == 1
    assert {dropped[url] for url in copies & dropped.keys()} <= {"exact_duplicate", "near_duplicate"}
    n = {table: workspace.read(table).height for table in TABLES}
    assert n["raw_pages"] + n["raw_texts"] == n["documents"] == n["clean_documents"] + n["dropped_documents"]

    before = {row["document_id"]: row for row in kept.to_dicts()}
    chunks = workspace.read("chunks")
    (garden_id,) = kept.filter(kept["url"] == "file:docs/garden.md")["document_id"]
    assert set(chunks.filter(chunks["document_id"] == garden_id)["heading_path"]) == {"Our garden"}
    assert workspace.run(stages=STAGES).computed == ()

    # One changed row changes its own document and no other.
    write_rows(workspace, "The lock has two keys.", " ", cables)
    workspace.run(stages=STAGES)
    after = {row["document_id"]: row for row in workspace.read("clean_documents").to_dicts()}
    changed = [before.get(key, after.get(key))["url"] for key in before.keys() ^ after.keys()]
    assert changed == ["task:tiny/unstructured.csv#row=2"] * 2
    for key in before.keys() & after.keys():
        assert after[key] == before[key]


def test_coverage_of_texts_that_no_tokens_were_counted_of_is_described():
    from ev_platform.defs.shown import describe

    row = Coverage("txt_1", None, None, None, None, 1, 1, 0, 1, "covered", None)
    assert describe("coverage", to_frame("coverage", [row])).keys() == {"status/covered", "preview"}
