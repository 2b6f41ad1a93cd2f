import shutil
from datetime import UTC, datetime

import polars as pl
import pytest

from ev_platform import registry
from ev_platform.errors import UserError
from ev_platform.prompting import build_messages, passage_text
from ev_platform.records import Chunk, CleanDocument, to_frame
from ev_platform.tasks import get_task
from ev_platform.tasks.types import get_task_type
from ev_platform.training.base import sha256_weights
from ev_platform.training.export import export_serving_model
from ev_platform_tests.registry.registered import OPEN_BOOK, SHIP, exported, publish, task_of_type
from ev_platform_tests.tiny import tiny_recipe, write_tiny_model, write_tiny_task


def test_load_release_whose_weights_are_gone_is_told(store, tmp_path):
    publish(store, "m1")
    shutil.rmtree(store.artifact_path("serving_model", "m1"))
    write_tiny_task(tmp_path / "tasks" / "tiny", tmp_path / "model")
    with pytest.raises(UserError, match=r"The weights of tiny@1 are gone from .*m1: choose another version\."):
        registry.load_release(store, get_task("tiny", tmp_path / "tasks"), "tiny@1")


def document(document_id, text, url):
    names = dict.fromkeys(CleanDocument.__dataclass_fields__)
    hour = datetime(2026, 11, 2, 8, 30, tzinfo=UTC)
    known = {"document_id": document_id, "url": url, "fetched_url": url, "kind": "web", "title": "Cables"}
    known |= {"publisher": "Tiny Press", "licence": "CC0-1.0", "fetched_at": hour, "text": text, "page_offsets": []}
    known |= {
        "n_chars": len(text),
        "language": "en",
        "language_score": 1.0,
        "relevance": 0.5,
        "cluster_id": document_id,
    }
    return to_frame("clean_documents", [CleanDocument(**names | known)])


def chunk(chunk_id, document_id, text):
    return to_frame("chunks", [Chunk(chunk_id, document_id, document_id, 0, 0, len(text), "Cables", None, text, 9)])


def test_load_release_answers_from_the_passages_of_its_own_version(store, tmp_path):
    model = write_tiny_model(tmp_path / "model")
    write_tiny_task(tmp_path / "tasks" / "tiny", model)
    old, new = "A resistor of 220 ohm marks a cable for 32 A.", "A resistor of 100 ohm marks a cable for 63 A."
    store.publish("clean_documents", "tiny", document("doc_old", old, "https://tiny.example/old.html"))
    chunks = store.publish("chunks", "tiny", chunk("chk_old", "doc_old", old))
    with store.artifact("serving_model", lambda: "m1") as folder:
        export_serving_model(model, folder, tiny_recipe(), (), "")
    template = registry.template_fingerprint(store.artifact_path("serving_model", "m1"), OPEN_BOOK)
    publish(store, "m1", chunks=(chunks.version, chunks.fingerprint), template=template)
    # The site moves on after the version was registered; the old document is no longer in the current table.
    store.publish("clean_documents", "tiny", document("doc_new", new, "https://tiny.example/new.html"))
    store.publish("chunks", "tiny", chunk("chk_new", "doc_new", new))

    release = registry.load_release(store, get_task("tiny", tmp_path / "tasks"), "tiny@1")

    hits = release.retrieve("Which resistor marks a cable?")
    assert [hit.chunk_id for hit in hits] == ["chk_old"]
    source = release.chunks["chk_old"]
    assert (source.url, source.licence, source.publisher) == ("https://tiny.example/old.html", "CC0-1.0", "Tiny Press")
    assert source.fetched_at == datetime(2026, 11, 2, 8, 30, tzinfo=UTC)
    prompt = release.render("Which resistor?", hits)
    passage = passage_text(source.heading_path, source.text)
    assert prompt == release.engine.render(build_messages("Answer briefly.", "Which resistor?", [passage]))
    (completion,) = release.engine.generate([prompt], max_new_tokens=release.max_new_tokens)
    assert (release.model_version, release.max_new_tokens) == ("tiny@1", 8)
    assert completion.n_prompt_tokens == release.engine.count_tokens(prompt)


def test_load_release_refuses_a_version_that_was_evaluated_with_another_template(store, tmp_path):
    model = write_tiny_model(tmp_path / "model")
    write_tiny_task(tmp_path / "tasks" / "tiny", model)
    with store.artifact("serving_model", lambda: "m1") as folder:
        export_serving_model(model, folder, tiny_recipe(), (), "")
    publish(store, "m1", template="of another day")
    with pytest.raises(UserError, match="tiny@1 was evaluated with another prompt template"):
        registry.load_release(store, get_task("tiny", tmp_path / "tasks"), "tiny@1")


def test_load_release_registered_before_there_were_types_is_open_book(store, tmp_path):
    write_tiny_task(tmp_path / "tasks" / "tiny", tmp_path / "model")
    template = registry.template_fingerprint(exported(store, tmp_path))
    text = "A resistor of 220 ohm marks a cable for 32 A."
    store.publish("clean_documents", "tiny", document("doc_1", text, "https://tiny.example/1.html"))
    chunks = store.publish("chunks", "tiny", chunk("chk_1", "doc_1", text))
    old = {"description": "Answer in a word.", "top_k": 1, "candidates": 20, "max_new_tokens": 8}
    publish(store, "m1", chunks=(chunks.version, chunks.fingerprint), template=template, serving=old)
    release = registry.load_release(store, get_task("tiny", tmp_path / "tasks"), "tiny@1")
    assert (release.task_type.name, release.instructions) == ("open_book_qa", "Answer in a word.")
    hits = release.retrieve("Which resistor?")
    assert [hit.chunk_id for hit in hits] == ["chk_1"]
    assert "Cables\nA resistor of 220 ohm" in release.render("Which resistor?", hits)


def test_load_release_that_won_without_retrieval_has_no_passages(store, tmp_path):
    task, closed_book = task_of_type(tmp_path, "closed_book_qa"), get_task_type("closed_book_qa")
    template = registry.template_fingerprint(exported(store, tmp_path), closed_book)
    text = "A resistor of 220 ohm marks a cable for 32 A."
    store.publish("clean_documents", "tiny", document("doc_1", text, "https://tiny.example/1.html"))
    chunks = store.publish("chunks", "tiny", chunk("chk_1", "doc_1", text))
    settings = registry.serving_settings(task, "ship tuned")
    publish(store, "m1", "ship tuned", (chunks.version, chunks.fingerprint), template, settings)
    release = registry.load_release(store, task, "tiny@1")
    assert release.retrieve("Which resistor?") == []
    assert release.render("Which resistor?", []) == release.engine.render(
        closed_book.prompt("Say what the text is about.", "Which resistor?", [])
    )


def test_load_release_that_answers_from_passages_without_a_corpus_is_told(store, tmp_path):
    task = task_of_type(tmp_path, "extractive_qa")
    template = registry.template_fingerprint(exported(store, tmp_path), get_task_type("extractive_qa"))
    chunks = store.publish("chunks", "tiny", to_frame("chunks", []))
    settings = registry.serving_settings(task, SHIP)
    publish(store, "m1", SHIP, (chunks.version, chunks.fingerprint), template, settings)
    with pytest.raises(UserError, match="tiny@1 answers from passages, but its task has no documents to search"):
        registry.load_release(store, task, "tiny@1")


def release_of_labels(store, tmp_path):
    """Register a real model that labels texts; return its folder and its task."""
    task, kind = task_of_type(tmp_path, "classification", {"card": "A card."}), get_task_type("classification")
    folder = exported(store, tmp_path)
    chunks = store.publish("chunks", "tiny", to_frame("chunks", []))
    template = registry.template_fingerprint(folder, kind)
    settings = registry.serving_settings(task, "ship tuned")
    publish(store, "m1", "ship tuned", (chunks.version, chunks.fingerprint), template, settings)
    return folder, task


def test_load_release_whose_weight_file_was_altered_is_refused(store, tmp_path):
    folder, task = release_of_labels(store, tmp_path)
    assert registry.load_release(store, task, "tiny@1").model_version == "tiny@1"
    content = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"files of tiny@1 in .*m1 are not those that were registered"):
        registry.load_release(store, task, "tiny@1")


def test_load_release_whose_chat_template_was_altered_is_refused(store, tmp_path):
    folder, task = release_of_labels(store, tmp_path)
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("assistant", "bot"))
    with pytest.raises(UserError, match=r"files of tiny@1 in .*m1 are not those that were registered"):
        registry.load_release(store, task, "tiny@1")
    set_digest(store, sha256_weights(folder)[0])  # as earlier releases did: the template is compared all the same
    with pytest.raises(UserError, match="tiny@1 was evaluated with another prompt template"):
        registry.load_release(store, task, "tiny@1")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "window.txt", "added_tokens.json"])
def test_load_release_whose_other_files_were_altered_or_added_is_refused(store, tmp_path, name):
    folder, task = release_of_labels(store, tmp_path)
    file = folder / name
    file.write_text((file.read_text() if file.exists() else "{}") + " ")
    with pytest.raises(UserError, match=r"files of tiny@1 in .*m1 are not those that were registered"):
        registry.load_release(store, task, "tiny@1")


def set_digest(store, digest):
    """Let the version have another digest, or none."""
    rows = store.read("registered_model", "tiny")
    store.publish("registered_model", "tiny", rows.with_columns(weights_sha256=pl.lit(digest)).cast(rows.schema))


@pytest.mark.parametrize("has_digest", [True, False])
def test_load_release_of_an_earlier_release_is_loaded_and_checked_by_the_digest_that_it_has(
    store, tmp_path, has_digest
):
    folder, task = release_of_labels(store, tmp_path)
    set_digest(store, sha256_weights(folder)[0] if has_digest else None)
    (folder / "notes.txt").write_text("Of no weight.")
    assert registry.load_release(store, task, "tiny@1").model_version == "tiny@1"
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"The tokenizer of tiny@1 in .*m1 cannot be loaded"):
        registry.load_release(store, task, "tiny@1")


def test_load_release_whose_questions_bring_their_passages_needs_no_corpus(store, tmp_path):
    task = task_of_type(tmp_path, "extractive_qa")
    template = registry.template_fingerprint(exported(store, tmp_path), get_task_type("extractive_qa"))
    chunks = store.publish("chunks", "tiny", to_frame("chunks", []))
    settings = registry.serving_settings(task, SHIP)
    publish(store, "m1", SHIP, (chunks.version, chunks.fingerprint), template, settings)
    release = registry.load_release(store, task, "tiny@1", needs_corpus=False)
    assert (release.retriever, release.has_retrieval) == (None, True)
