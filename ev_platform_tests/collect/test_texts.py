"""The texts that a task brings itself: files by glob, and the rows of `unstructured.csv`."""

import json

import pytest

from ev_platform.collect import collect_texts
from ev_platform.errors import UserError
from ev_platform.identity import frame_fingerprint
from ev_platform.records import schema_of, to_frame

EMPTY = to_frame("raw_texts", [])
KEYS = "# Keys\n\nThe key card is held to the pillar.\n"


def write(folder, name, text):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def write_type(task, name):
    write(task.folder, "config.yaml", f"type: {name}\n")


def bodies(frame, store):
    return [(store.root / path).read_text() for path in frame["path"].drop_nulls()]


def test_collect_texts_glob_rows_by_path_with_reasons(make_task, store):
    task = make_task(texts=["docs/*", "docs/**/*.md"], max_bytes=1000, licence="CC0", publisher="P")
    write(task.folder, "docs/keys.md", KEYS)
    write(task.folder, "docs/sub/tyres.md", "Tyres.\n")
    write(task.folder, "docs/badge.md", '<p align="center">The badge of the car.</p>\n\nAnd text.')
    write(task.folder, "docs/list.txt", "[a](b) begins with a bracket")
    write(task.folder, "docs/utf16.txt", "Zwölf Boxkämpfer".encode("utf-16"))
    write(task.folder, "docs/page.md", "<!DOCTYPE html><html><body>x</body></html>")
    write(task.folder, "docs/picture.md", b"\x89PNG\r\n\x1a\n....")
    write(task.folder, "docs/nothing.md", " \n")
    write(task.folder, "docs/large.md", "word " * 300)
    frame = collect_texts(task, store, previous=EMPTY)
    assert frame.schema == schema_of("raw_texts")
    assert frame.select("url", "drop_reason", "drop_detail").rows() == [
        ("file:docs/badge.md", None, None),
        ("file:docs/keys.md", None, None),
        ("file:docs/large.md", "too_large", "more than 1000 bytes"),
        ("file:docs/list.txt", None, None),
        ("file:docs/nothing.md", "empty_body", None),
        ("file:docs/page.md", "not_a_text", "text/html"),
        ("file:docs/picture.md", "not_a_text", "image/png"),
        ("file:docs/sub/tyres.md", None, None),
        ("file:docs/utf16.txt", None, None),
    ]
    assert (store.root / frame["path"][1]).read_text() == KEYS
    assert set(frame["kind"]) == {"text"}
    assert set(frame.select("licence", "publisher").rows()) == {("CC0", "P")}
    assert set(frame["robots"]) == {"not_applicable"}


def test_collect_texts_absolute_glob_gives_the_absolute_address(make_task, store, tmp_path):
    file = write(tmp_path, "elsewhere/keys.md", KEYS)
    frame = collect_texts(make_task(texts=[f"{tmp_path}/elsewhere/*.md"]), store, previous=EMPTY)
    assert frame["url"].to_list() == [file.as_uri()]


def test_collect_texts_glob_without_a_file_named(make_task, store):
    with pytest.raises(UserError, match=r"sources.yaml: no file matches the text glob 'docs/\*.md'"):
        collect_texts(make_task(texts=["docs/*.md"]), store, previous=EMPTY)


def test_collect_texts_vanished_file_is_gone_and_changed_file_has_a_new_hour(make_task, store):
    task = make_task(texts=["docs/*.md"])
    gone, changed = write(task.folder, "docs/gone.md", KEYS), write(task.folder, "docs/keys.md", KEYS)
    first = collect_texts(task, store, previous=EMPTY)
    assert frame_fingerprint("raw_texts", collect_texts(task, store, previous=first)) == frame_fingerprint(
        "raw_texts", first
    )
    gone.unlink()
    changed.write_text("# Keys\n\nThe phone is a key.\n")
    second = collect_texts(task, store, previous=first)
    assert second.select("url", "drop_reason").rows() == [("file:docs/gone.md", "gone"), ("file:docs/keys.md", None)]
    assert second["fetched_at"][0] == first["fetched_at"][0]
    assert second["fetched_at"][1] > first["fetched_at"][1]
    changed.unlink()
    assert collect_texts(task, store, previous=second)["drop_reason"].to_list() == ["gone", "gone"]


@pytest.mark.parametrize("name", ["open_book_qa", "closed_book_qa", "extractive_qa"])
def test_collect_texts_rows_of_unstructured_are_documents_by_file_and_row(make_task, store, name):
    task = make_task(licence="CC0", publisher="P")
    write_type(task, name)
    write(task.folder, "unstructured.csv", 'context\nOne.\n\n"Two,\nin two lines."\n   \nThree.\n')
    frame = collect_texts(task, store, previous=EMPTY)
    address = f"task:{task.name}/unstructured.csv#row="
    rows = frame.select("url", "drop_reason").rows()
    # Row 3 is an empty line; the blank one is told and the rest goes on.
    assert rows == [
        (f"{address}2", None),
        (f"{address}4", None),
        (f"{address}5", "unusable_row"),
        (f"{address}6", None),
    ]
    assert frame["drop_detail"][2].endswith("unstructured.csv row 5: context is empty.")
    assert bodies(frame, store) == ["One.", "Two,\nin two lines.", "Three."]
    assert set(frame["licence"]) == {"CC0"}


def test_collect_texts_changed_row_changes_its_own_line_only(make_task, store):
    task = make_task()
    file = write(task.folder, "unstructured.csv", "context\nOne.\nTwo.\nThree.\n")
    first = collect_texts(task, store, previous=EMPTY)
    file.write_text("context\nOne.\nTwo, changed.\n")
    second = collect_texts(task, store, previous=first)
    assert second.height == 2  # a row that a person took out is left out
    assert second["fetched_at"][0] == first["fetched_at"][0]
    assert second["fetched_at"][1] > first["fetched_at"][1]


def test_collect_texts_texts_of_a_classification_task_are_no_documents(make_task, store):
    task = make_task()
    write_type(task, "classification")
    write(task.folder, "unstructured.csv", "context\nWhere is my card?\n")
    assert collect_texts(task, store, previous=EMPTY).equals(EMPTY)


def test_collect_texts_rows_may_lie_elsewhere(make_task, store):
    task = make_task()
    write(task.folder, "more/wiki.jsonl", json.dumps({"context": "One."}) + "\n")
    write(task.folder, "config.yaml", "files: {unstructured: more/wiki.jsonl}\n")
    frame = collect_texts(task, store, previous=EMPTY)
    assert frame["url"].to_list() == [f"task:{task.name}/wiki.jsonl#row=1"]


def test_collect_texts_file_that_cannot_be_parsed_ends_with_one_sentence(make_task, store):
    task = make_task()
    write(task.folder, "unstructured.csv", "words\nOne.\n")
    with pytest.raises(UserError, match=r"unstructured.csv row 1 \(the header\) does not name one column 'context'"):
        collect_texts(task, store, previous=EMPTY)


def test_collect_texts_task_without_any_gives_the_empty_table(make_task, store):
    assert collect_texts(make_task(), store, previous=EMPTY).equals(EMPTY)
