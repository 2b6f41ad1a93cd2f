"""Addresses that were taken down are not fetched again, in whatever way they are met."""

from datetime import UTC, datetime

import pytest

from ev_platform.collect import collect_pdfs, collect_texts
from ev_platform.collect.refused import refused_addresses
from ev_platform.records import Takedown, to_frame
from ev_platform_tests.registry.registered import PlainStore

from .conftest import PDF, by_path, page


@pytest.fixture
def store(tmp_path):
    return PlainStore(tmp_path / "data")


def take_down(store, *addresses, task="a_task", **changes):
    fields = {"takedown_id": "tkd_1", "url": addresses[0], "reason": "asked to", "decided_by": "Ada"}
    fields |= {"state": "done", "for_all_tasks": False, "touched": "{}", "trained_versions": [], "holding_versions": []}
    row = Takedown(addresses=list(addresses), decided_at=datetime.now(UTC), **fields | changes)
    store.publish("takedowns", task, to_frame("takedowns", [row]))


def test_refused_address_is_set_aside_and_never_asked_for(site, crawl, store):
    site.routes = {"/": page("/kept", "/gone?b=2&a=1"), "/kept": page(), "/gone?b=2&a=1": page()}
    take_down(store, f"{site.root}/gone?a=1&b=2&utm_source=x")
    rows = by_path(crawl(site.root), site.root)
    assert rows["/gone?b=2&a=1"]["drop_reason"] == "taken_down"
    assert rows["/gone?b=2&a=1"]["path"] is None
    assert rows["/kept"]["drop_reason"] is None
    assert site.asked() == ["/", "/kept"]


def test_refused_address_is_not_reached_by_a_redirect(site, crawl, store):
    site.routes = {"/": page("/old"), "/old": (301, {"Location": "/gone"}, b""), "/gone": page()}
    take_down(store, f"{site.root}/gone")
    row = by_path(crawl(site.root), site.root)["/old"]
    assert (row["drop_reason"], row["path"]) == ("taken_down", None)
    assert "/gone" not in site.asked()


def test_page_that_names_a_refused_address_as_its_own_is_not_stored(site, crawl, store):
    copy = page(head='<link href="/gone#top" rel="canonical">')
    site.routes = {
        "/": page("/print", "/other"),
        "/print": copy,
        "/other": page(head='<link rel="canonical" href="/">'),
    }
    take_down(store, f"{site.root}/gone")
    rows = by_path(crawl(site.root), site.root)
    assert (rows["/print"]["drop_reason"], rows["/print"]["path"]) == ("taken_down", None)
    assert rows["/other"]["drop_reason"] is None


def test_refused_address_that_an_interrupted_crawl_has_in_its_journal_is_dropped(site, crawl, store, monkeypatch):
    site.routes = {"/": page("/a"), "/a": page()}
    with monkeypatch.context() as killed, pytest.raises(RuntimeError):
        killed.setattr(store, "sync_blobs", lambda: (_ for _ in ()).throw(RuntimeError("killed")))
        crawl(site.root)
    take_down(store, f"{site.root}/a")
    assert by_path(crawl(site.root), site.root)["/a"]["drop_reason"] == "taken_down"
    assert site.asked().count("/a") == 1


def test_files_and_rows_that_were_taken_down_are_set_aside(make_task, store):
    task = make_task(pdfs=["*.pdf"], texts=["*.md"])
    (task.folder / "manual.pdf").write_bytes(PDF)
    (task.folder / "keys.md").write_text("The key card is held to the pillar.")
    (task.folder / "unstructured.csv").write_text("context\nThe first text.\nThe second text.\n")
    (task.folder / "job_description.json").write_text('{"task_description": "Say it."}')
    take_down(store, "manual.pdf", "file:keys.md", "task:a_task/unstructured.csv#row=2")
    rows = collect_pdfs(task, store, previous=to_frame("raw_pdfs", [])).rows(named=True)
    rows += collect_texts(task, store, previous=to_frame("raw_texts", [])).rows(named=True)
    assert {row["url"]: (row["drop_reason"], row["path"] is None) for row in rows} == {
        "manual.pdf": ("taken_down", True),
        "file:keys.md": ("taken_down", True),
        "task:a_task/unstructured.csv#row=2": ("taken_down", True),
        "task:a_task/unstructured.csv#row=3": (None, False),
    }


def test_refused_addresses_are_those_of_the_task_and_those_for_all_until_they_are_allowed_again(store):
    take_down(store, "own.pdf")
    take_down(store, "everywhere.pdf", task="b_task", for_all_tasks=True)
    take_down(store, "elsewhere.pdf", task="c_task")
    assert refused_addresses(store, "a_task") == {"own.pdf", "everywhere.pdf"}
    take_down(store, "own.pdf", state="undone")
    assert refused_addresses(store, "a_task") == {"everywhere.pdf"}
