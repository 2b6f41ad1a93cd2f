import json
from datetime import UTC, datetime

import pytest

from ev_platform import registry
from ev_platform.errors import UserError
from ev_platform.prompting import build_messages
from ev_platform.records import Chunk, CleanDocument, ModelArtifact, to_frame
from ev_platform.tasks import get_task
from ev_platform.training.export import export_serving_model
from ev_platform_tests.tiny import write_tiny_model, write_tiny_task

SHIP, HOLD = "ship tuned + retrieval", "inconclusive"


def artifact(kind, artifact_id):
    row = ModelArtifact(artifact_id, kind, f"artifacts/{kind}/{artifact_id}", "tiny", "{}", "{}", "0", 1, "{}")
    return to_frame(kind, [row])


SERVING = {"description": "Answer briefly.", "top_k": 1, "candidates": 20, "max_new_tokens": 8}


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
        export_serving_model(model, folder)
    template = registry.template_fingerprint(store.artifact_path("serving_model", "m1"))
    publish(store, "m1", chunks=(chunks.version, chunks.fingerprint), template=template)
    # The site moves on after the version was registered; the old document is no longer in the current table.
    store.publish("clean_documents", "tiny", document("doc_new", new, "https://tiny.example/new.html"))
    store.publish("chunks", "tiny", chunk("chk_new", "doc_new", new))

    release = registry.load_release(store, get_task("tiny", tmp_path / "tasks"))

    (hits,) = release.retriever.search(["Which resistor marks a cable?"], release.top_k)
    assert [hit.chunk_id for hit in hits] == ["chk_old"]
    source = release.chunks["chk_old"]
    assert (source.url, source.licence, source.publisher) == ("https://tiny.example/old.html", "CC0-1.0", "Tiny Press")
    assert source.fetched_at == datetime(2026, 11, 2, 8, 30, tzinfo=UTC)
    prompt = release.engine.render(build_messages(release.description, "Which resistor?", [source.text]))
    (completion,) = release.engine.generate([prompt], max_new_tokens=release.max_new_tokens)
    assert (release.model_version, release.max_new_tokens) == ("tiny@1", 8)
    assert completion.n_prompt_tokens == release.engine.count_tokens(prompt)


def test_load_release_refuses_a_version_that_was_evaluated_with_another_template(store, tmp_path):
    model = write_tiny_model(tmp_path / "model")
    write_tiny_task(tmp_path / "tasks" / "tiny", model)
    with store.artifact("serving_model", lambda: "m1") as folder:
        export_serving_model(model, folder)
    publish(store, "m1", template="of another day")
    with pytest.raises(UserError, match="tiny@1 was evaluated with another prompt template"):
        registry.load_release(store, get_task("tiny", tmp_path / "tasks"))
