import os
import time

import pytest

from ev_platform.collect import collect_pdfs, inbox_state
from ev_platform.errors import UserError
from ev_platform.identity import frame_fingerprint
from ev_platform.records import schema_of, to_frame

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


# ---- gone ----


def test_collect_pdfs_vanished_file_is_gone_and_names_its_last_bytes(make_task, store):
    task = make_task(pdfs=["pdfs/**/*.pdf"])
    file = write(task.folder, "pdfs/sub/a.pdf", PDF)
    first = collect_pdfs(task, store, previous=EMPTY)
    file.unlink()
    second = collect_pdfs(task, store, previous=first)
    hour = f"{first['fetched_at'][0]:%Y-%m-%dT%H:%MZ}"
    assert second.select("url", "drop_reason", "drop_detail").rows() == [
        ("pdfs/sub/a.pdf", "gone", f"the file does not exist; last fetched {hour}")
    ]
    assert second.select("path", "content_sha256", "fetched_at").equals(
        first.select("path", "content_sha256", "fetched_at")
    )
    third = collect_pdfs(task, store, previous=second)
    assert frame_fingerprint("raw_pdfs", second) == frame_fingerprint("raw_pdfs", third)
    write(task.folder, "pdfs/sub/a.pdf", PDF)
    back = collect_pdfs(task, store, previous=third)
    assert frame_fingerprint("raw_pdfs", back) == frame_fingerprint("raw_pdfs", first)


def test_collect_pdfs_vanished_file_of_absolute_glob_is_gone(make_task, store, tmp_path):
    file = write(tmp_path, "elsewhere/x y.pdf", PDF)
    task = make_task(pdfs=[f"{tmp_path}/elsewhere/*.pdf"])
    first = collect_pdfs(task, store, previous=EMPTY)
    file.unlink()
    assert collect_pdfs(task, store, previous=first)["drop_reason"].to_list() == ["gone"]


def test_collect_pdfs_glob_that_never_matched_named_beside_one_that_did(make_task, store):
    file = write(make_task().folder, "pdfs/a.pdf", PDF)
    first = collect_pdfs(make_task(pdfs=["pdfs/*.pdf"]), store, previous=EMPTY)
    file.unlink()
    with pytest.raises(UserError, match=r"no file matches the PDF glob 'papers/\*.pdf'"):
        collect_pdfs(make_task(pdfs=["pdfs/*.pdf", "papers/*.pdf"]), store, previous=first)


def test_collect_pdfs_file_left_out_on_purpose_not_carried(make_task, store):
    task = make_task(pdfs=["*.pdf"])
    write(task.folder, "a.pdf", PDF)
    write(task.folder, "b.pdf", PDF)
    first = collect_pdfs(task, store, previous=EMPTY)
    assert collect_pdfs(make_task(pdfs=["a.pdf"]), store, previous=first)["url"].to_list() == ["a.pdf"]


# ---- drop folder ----


@pytest.fixture
def drop(store):
    """Return a function that puts a file into the drop folder, as old as told."""

    def put(name, data, age_s=60.0):
        file = write(store.root / "inbox" / "a_task", name, data)
        os.utime(file, (time.time() - age_s, time.time() - age_s))
        return file

    return put


def test_collect_pdfs_drop_folder_taken_with_its_own_addresses(make_task, store, drop):
    task = make_task()
    assert collect_pdfs(task, store, previous=EMPTY).equals(EMPTY)
    drop("b.PDF", PDF)
    drop("sub/a.pdf", b"not one")
    for name in ("notes.txt", ".a.pdf", ".rsync/c.pdf", "d.pdf.part", "e.pdf.crdownload"):
        drop(name, PDF)
    drop("half.pdf", PDF, age_s=0)
    drop("whole.pdf", PDF + b"%%EOF\n", age_s=0)
    frame = collect_pdfs(task, store, previous=EMPTY)
    assert frame.select("url", "drop_reason").rows() == [
        ("inbox/b.PDF", None),
        ("inbox/sub/a.pdf", "not_a_pdf"),
        ("inbox/whole.pdf", None),
    ]
    (store.root / "inbox" / "a_task" / "b.PDF").unlink()
    again = collect_pdfs(task, store, previous=frame)
    assert again["drop_reason"].to_list() == ["gone", "not_a_pdf", None]


def test_collect_pdfs_drop_folder_name_of_no_encoding_taken(make_task, store, drop):
    folder = store.root / "inbox" / "a_task"
    folder.mkdir(parents=True)
    with open(os.fsencode(folder) + b"/caf\xe9.pdf", "wb") as file:  # noqa: PTH123
        file.write(PDF + b"%%EOF")
    assert collect_pdfs(make_task(), store, previous=EMPTY)["url"].to_list() == ["inbox/caf\ufffd.pdf"]


def test_collect_pdfs_drop_folder_and_glob_of_one_address_named(make_task, store, drop):
    task = make_task(pdfs=["inbox/*.pdf"])
    write(task.folder, "inbox/a.pdf", PDF)
    drop("a.pdf", PDF)
    with pytest.raises(UserError, match=r"a\.pdf has the address inbox/a\.pdf, as a file of .* has: rename one"):
        collect_pdfs(task, store, previous=EMPTY)


def test_inbox_state_changes_with_each_file_that_is_whole(make_task, store, drop):
    task = make_task()
    states = [inbox_state(task, store)]
    assert states == [""]
    file = drop("a.pdf", PDF)
    states.append(inbox_state(task, store))
    assert inbox_state(task, store) == states[-1]
    drop("b.pdf", PDF, age_s=0)
    assert inbox_state(task, store) == states[-1]  # still being written
    drop("b.pdf", PDF, age_s=3)
    states.append(inbox_state(task, store))
    file.write_bytes(PDF + b"%%EOF")
    states.append(inbox_state(task, store))
    file.unlink()
    states.append(inbox_state(task, store))
    assert len(set(states)) == 5
