import os

import pytest

from ev_platform.collect import collect_pdfs
from ev_platform.errors import UserError
from ev_platform.records import schema_of, to_frame
from ev_platform.storage import frame_fingerprint

EMPTY = to_frame("raw_pdfs", [])
PDF = b"%PDF-1.7\n1 0 obj\n"


def write(folder, name, data):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def test_collect_pdfs_relative_glob_rows_by_path_with_reasons(make_task, store):
    task = make_task(pdfs=["pdfs/*.pdf", "pdfs/a.*"], max_bytes=1000, licence="CC0", publisher="P")
    write(task.folder, "pdfs/b.pdf", PDF)
    write(task.folder, "pdfs/a.pdf", b"\n\n" + PDF)
    write(task.folder, "pdfs/page.pdf", b"<!DOCTYPE html><html></html>")
    write(task.folder, "pdfs/nothing.pdf", b"")
    write(task.folder, "pdfs/large.pdf", PDF * 100)
    write(task.folder, "pdfs/notes.txt", b"notes")
    frame = collect_pdfs(task, store, previous=EMPTY)
    assert frame.schema == schema_of("raw_pdfs")
    assert frame.select("url", "drop_reason", "drop_detail").rows() == [
        ("pdfs/a.pdf", None, None),
        ("pdfs/b.pdf", None, None),
        ("pdfs/large.pdf", "too_large", "more than 1000 bytes"),
        ("pdfs/nothing.pdf", "empty_body", None),
        ("pdfs/page.pdf", "not_a_pdf", "text/html"),
    ]
    assert (store.root / frame["path"][1]).read_bytes() == PDF
    assert set(frame["licence"]) == {"CC0"}
    assert set(frame["kind"]) == {"pdf"}


def test_collect_pdfs_absolute_glob_gives_file_address(make_task, store, tmp_path):
    file = write(tmp_path, "elsewhere/sub/x y.pdf", PDF)
    frame = collect_pdfs(make_task(pdfs=[f"{tmp_path}/elsewhere/**/*.pdf"]), store, previous=EMPTY)
    assert frame["url"].to_list() == [file.as_uri()]
    assert file.as_uri().startswith("file:///")


def test_collect_pdfs_again_touched_file_same_rows_changed_file_new_hour(make_task, store):
    task = make_task(pdfs=["*.pdf"])
    same, changed = write(task.folder, "same.pdf", PDF), write(task.folder, "changed.pdf", PDF)
    first = collect_pdfs(task, store, previous=EMPTY)
    os.utime(same, (1, 1))
    second = collect_pdfs(task, store, previous=first)
    assert frame_fingerprint("raw_pdfs", first) == frame_fingerprint("raw_pdfs", second)
    changed.write_bytes(PDF + b"more")
    third = collect_pdfs(task, store, previous=second)
    assert third["fetched_at"][0] > first["fetched_at"][0]
    assert third["fetched_at"][1] == first["fetched_at"][1]


def test_collect_pdfs_glob_without_a_file_named(make_task, store):
    with pytest.raises(UserError, match=r"sources.yaml: no file matches the PDF glob 'papers/\*.pdf'"):
        collect_pdfs(make_task(pdfs=["papers/*.pdf"]), store, previous=EMPTY)


def test_collect_pdfs_no_globs_gives_empty_table(make_task, store):
    assert collect_pdfs(make_task(), store, previous=EMPTY).equals(EMPTY)
