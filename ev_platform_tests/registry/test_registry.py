import json
from datetime import UTC, datetime

import pytest

from ev_platform import registry
from ev_platform.errors import UserError
from ev_platform.prompting import build_messages, passage_text
from ev_platform.records import Chunk, CleanDocument, ModelArtifact, to_frame
from ev_platform.tasks import get_task
from ev_platform.tasks.types import get_task_type
from ev_platform.training.export import export_serving_model
from ev_platform_tests.tiny import tiny_recipe, write_tiny_model, write_tiny_task

SHIP, HOLD = "ship tuned + retrieval", "inconclusive"


def artifact(kind, artifact_id):
    row = ModelArtifact(artifact_id, kind, f"artifacts/{kind}/{artifact_id}", "tiny", "{}", "{}", "0", 1, "{}")
    return to_frame(kind, [row])


SERVING = {
    "task_type": "open_book_qa",
    "instructions": "Answer briefly.",
    "has_retrieval": True,
    "top_k": 1,
    "candidates": 20,
    "max_new_tokens": 8,
}
OPEN_BOOK = get_task_type("open_book_qa")


def publish(store, model_id, verdict=SHIP, chunks=("c1", "c1"), template="p1", serving=SERVING):
    """Register as the asset does: compute the rows, publish them, apply the aliases."""
    rows = registry.register(
        store,
        "tiny",
        serving_model=artifact("serving_model", model_id),
        adapter=artifact("adapter", f"adapter_of_{model_id}"),
        training_set=("t1", "f1"),
        chunks=chunks,
        serving=serving,
        benchmark_fingerprint="b1",
        template=template,
        verdict=verdict,
        reason="because",
        scores={"base/token_f1": 0.1},
    )
    store.publish("registered_model", "tiny", rows)
    return registry.apply_aliases(store, "tiny")


def versions(store):
    return store.read("registered_model", "tiny")


def test_register_appends_and_leaves_earlier_versions_alone(store):
    publish(store, "m1")
    first = versions(store)
    publish(store, "m2", HOLD)
    both = versions(store)
    assert both["model_version"].to_list() == ["tiny@1", "tiny@2"]
    assert both.head(1).equals(first)
    assert both.row(1, named=True)["adapter_id"] == "adapter_of_m2"
    assert json.loads(both.item(1, "scores")) == {"base/token_f1": 0.1}


def test_register_same_model_and_passages_adds_no_version(store):
    publish(store, "m1")
    publish(store, "m1")
    assert versions(store).height == 1


@pytest.mark.parametrize(
    "change",
    [
        {"model_id": "m2"},
        {"chunks": ("c2", "c2")},
        {"verdict": HOLD},
        {"template": "p2"},
        {"serving": SERVING | {"top_k": 3}},
    ],
)
def test_register_other_weights_passages_or_verdict_adds_a_version(store, change):
    publish(store, "m1")
    publish(store, **({"model_id": "m1"} | change))
    assert versions(store)["number"].to_list() == [1, 2]


def test_aliases_first_shipped_version_is_champion_without_previous(store):
    assert publish(store, "m1") == {"candidate": "tiny@1", "champion": "tiny@1"}


def test_aliases_next_shipped_version_makes_the_old_champion_previous(store):
    publish(store, "m1")
    assert publish(store, "m2") == {"candidate": "tiny@2", "champion": "tiny@2", "previous": "tiny@1"}


def test_aliases_tuned_model_that_won_without_retrieval_is_champion_too(store):
    assert publish(store, "m1", "ship tuned") == {"candidate": "tiny@1", "champion": "tiny@1"}


@pytest.mark.parametrize("verdict", [HOLD, "ship base + retrieval"])
def test_aliases_version_that_does_not_earn_it_stays_candidate(store, verdict):
    publish(store, "m1")
    assert publish(store, "m2", verdict) == {"candidate": "tiny@2", "champion": "tiny@1"}


def test_aliases_without_a_version_to_ship_there_is_no_champion(store):
    assert publish(store, "m1", HOLD) == {"candidate": "tiny@1"}


def test_aliases_rollback_by_hand_lasts_until_a_new_version(store):
    publish(store, "m1")
    publish(store, "m2")
    file = store.root / "registry" / "tiny.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "champion": "tiny@1"}))
    assert publish(store, "m2")["champion"] == "tiny@1"  # an unchanged run
    assert registry.resolve(store, "tiny")["serving_model_id"] == "m1"
    assert publish(store, "m3")["champion"] == "tiny@3"


def test_resolve_takes_alias_or_version_and_champion_by_default(store):
    publish(store, "m1")
    publish(store, "m2", HOLD)
    wanted = {None: "m1", "champion": "m1", "candidate": "m2", "tiny@1": "m1", "tiny@2": "m2"}
    for name, model in wanted.items():
        assert registry.resolve(store, "tiny", name)["serving_model_id"] == model


def test_resolve_before_the_first_run_is_told(store):
    with pytest.raises(UserError, match="Task tiny has no model 'champion': run `ev-platform run --task tiny` first"):
        registry.resolve(store, "tiny")


def test_resolve_unknown_name_is_told_with_the_known_ones(store):
    publish(store, "m1", HOLD)
    with pytest.raises(UserError, match=r"no model 'tiny@9': choose one of candidate, tiny@1\."):
        registry.resolve(store, "tiny", "tiny@9")


def test_load_release_whose_weights_are_gone_is_told(store, tmp_path):
    publish(store, "m1")
    write_tiny_task(tmp_path / "tasks" / "tiny", tmp_path / "model")
    with pytest.raises(UserError, match=r"The weights of tiny@1 are gone from .*m1: choose another version\."):
        registry.load_release(store, get_task("tiny", tmp_path / "tasks"))


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

    release = registry.load_release(store, get_task("tiny", tmp_path / "tasks"))

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
        registry.load_release(store, get_task("tiny", tmp_path / "tasks"))


# ---- task types ----


def task_of_type(tmp_path, name, classes=None):
    folder = write_tiny_task(tmp_path / "tasks" / "tiny", tmp_path / "model")
    (folder / "config.yaml").write_text(f"type: {name}\nretrieval: {{top_k: 3}}\nevaluation: {{max_new_tokens: 8}}\n")
    job = {"task_description": "Say what the text is about."}
    (folder / "job_description.json").write_text(json.dumps(job | {"classes_description": classes or {}}))
    return get_task("tiny", tmp_path / "tasks")


@pytest.mark.parametrize(
    ("name", "verdict", "expected"),
    [
        ("open_book_qa", SHIP, True),
        ("open_book_qa", "ship tuned", False),
        ("open_book_qa", HOLD, True),
        ("closed_book_qa", SHIP, True),
        ("closed_book_qa", "ship tuned", False),
        ("closed_book_qa", HOLD, False),
        ("extractive_qa", HOLD, True),
        ("classification", "ship tuned", False),
        ("classification", HOLD, False),
    ],
)
def test_serving_settings_retrieve_as_the_winner_did_or_else_as_the_type_trains(tmp_path, name, verdict, expected):
    settings = registry.serving_settings(task_of_type(tmp_path, name), verdict)
    assert (settings["task_type"], settings["has_retrieval"]) == (name, expected)
    assert (settings["top_k"], settings["max_new_tokens"]) == (3, 8)


def test_serving_settings_hold_the_instructions_with_the_classes(tmp_path):
    task = task_of_type(tmp_path, "classification", {"refund": "Money back.", "card": "A new card."})
    instructions = registry.serving_settings(task, HOLD)["instructions"]
    assert instructions.startswith("Say what the text is about.")
    assert "refund: Money back." in instructions


def test_serving_settings_hold_the_instructions_that_were_evaluated_where_train_rows_name_the_classes(tmp_path):
    task = task_of_type(tmp_path, "classification")
    (task.folder / "train.csv").write_text("text,label\nmy money,refund\nmy plastic,card\n", encoding="utf-8")
    settings = registry.serving_settings(task, HOLD)
    assert settings["instructions"] == task.instructions
    assert settings["instructions"].endswith("- card\n- refund")


def exported(store, tmp_path):
    model = write_tiny_model(tmp_path / "model")
    with store.artifact("serving_model", lambda: "m1") as folder:
        export_serving_model(model, folder, tiny_recipe(), (), "")
    return store.artifact_path("serving_model", "m1")


def test_load_release_registered_before_there_were_types_is_open_book(store, tmp_path):
    write_tiny_task(tmp_path / "tasks" / "tiny", tmp_path / "model")
    template = registry.template_fingerprint(exported(store, tmp_path))
    text = "A resistor of 220 ohm marks a cable for 32 A."
    store.publish("clean_documents", "tiny", document("doc_1", text, "https://tiny.example/1.html"))
    chunks = store.publish("chunks", "tiny", chunk("chk_1", "doc_1", text))
    old = {"description": "Answer in a word.", "top_k": 1, "candidates": 20, "max_new_tokens": 8}
    publish(store, "m1", chunks=(chunks.version, chunks.fingerprint), template=template, serving=old)
    release = registry.load_release(store, get_task("tiny", tmp_path / "tasks"))
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
    release = registry.load_release(store, task)
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
        registry.load_release(store, task)


def test_template_fingerprint_depends_on_the_chats_that_a_type_makes(store, tmp_path):
    class Terse:
        def prompt(self, instructions, question, contexts):
            return [{"role": "user", "content": question}]

    folder = exported(store, tmp_path)
    prints = [registry.template_fingerprint(folder, kind) for kind in (None, OPEN_BOOK, Terse())]
    assert len(set(prints)) == 3
    assert registry.template_fingerprint(folder, OPEN_BOOK) == prints[1]
