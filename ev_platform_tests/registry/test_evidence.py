"""What the gate judges by, gathered from a real store: descent of the weights, leaks, answers of the endpoint."""

import dataclasses
import shutil

import polars as pl
import pytest

from ev_platform import registry
from ev_platform.records import to_frame
from ev_platform.registry import strangers
from ev_platform.registry.aliases import write_aliases
from ev_platform.registry.digests import digest_of
from ev_platform.registry.evidence import SAMPLE, collect, descent_flaw, replay_sample
from ev_platform.registry.gate import judge
from ev_platform.registry.releases import Release
from ev_platform.registry.strangers import declines
from ev_platform.tasks import get_task
from ev_platform_tests.registry.evaluated import (
    QUESTIONS,
    dataset_row,
    publish_corpus,
    publish_evaluation,
    publish_model,
    write_task,
)
from ev_platform_tests.registry.registered import OPEN_BOOK, PlainStore, artifact, write_weights

# ---- descent of the weights ----


def chain(store, **changes):
    """Return the tables of the weights from adapter to served model, in order but what is named, and their version."""
    for kind in ("adapter", "merged_model", "serving_model", "base_serving_model"):
        write_weights(store, kind, "m1", changes.pop(f"{kind}_bytes", None))
    adapter = artifact(store, "adapter", "m1", {"training_set": "f1"})
    merged = artifact(store, "merged_model", "m1", {"adapter": changes.get("merged_from", adapter.item(0, "sha256"))})
    serving = artifact(store, "serving_model", "m1", {"model": changes.get("served_from", merged.item(0, "sha256"))})
    version = {
        "model_version": "tiny@1",
        "serving_model_id": "m1",
        "adapter_id": "m1",
        "training_set_fingerprint": "f1",
        "weights_sha256": serving.item(0, "sha256"),
    }
    return version | changes, adapter, merged, serving, artifact(store, "base_serving_model", "m1")


def test_descent_of_weights_that_follow_from_the_adapter_has_no_flaw(store):
    assert descent_flaw(*chain(store)) is None
    digest = digest_of(store.artifact_path("serving_model", "m1"))
    assert descent_flaw(*chain(store, weights_sha256=digest)) is None


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"merged_from": "an adapter of last week"}, "made from another adapter (a stale one)"),
        ({"served_from": "merged weights of last week"}, "made from another merged model"),
        ({"training_set_fingerprint": "f2"}, "trained on other rows than it names"),
        ({"adapter_id": "m0"}, "another one than it names"),
        ({"weights_sha256": "0"}, "not those that were evaluated"),
        ({"serving_model_id": "m0"}, "not those that were evaluated"),
        ({"serving_model_bytes": "same", "base_serving_model_bytes": "same"}, "the adapter is not in them"),
    ],
)
def test_descent_of_a_stale_or_unmerged_adapter_is_told(store, fault, told):
    flaw = descent_flaw(*chain(store, **fault))
    assert flaw is not None
    assert flaw.startswith("tiny@1 is not what it says it is: ")
    assert told in flaw


# ---- leaks and the endpoint ----

TABLES = (
    "eval_report",
    "predictions",
    "benchmark",
    "general_answers",
    "adapter",
    "merged_model",
    "serving_model",
    "base_serving_model",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a task whose random model was evaluated and registered."""
    root = tmp_path_factory.mktemp("evidence")
    store, task = PlainStore(root / "data"), write_task(root)
    publish_corpus(store)
    publish_model(store, task, root, seed=1)
    publish_evaluation(store, task)
    made_of = {name: store.current(name, "tiny") for name in ("training_set", "chunks", "benchmark")}
    versions = registry.register(
        store,
        "tiny",
        serving_model=store.read("serving_model", "tiny"),
        adapter=store.read("adapter", "tiny"),
        training_set=(made_of["training_set"].version, made_of["training_set"].fingerprint),
        chunks=(made_of["chunks"].version, made_of["chunks"].fingerprint),
        serving=registry.serving_settings(task, "inconclusive"),
        benchmark_fingerprint=made_of["benchmark"].fingerprint,
        template=registry.template_fingerprint(store.artifact_path("serving_model", "m1"), OPEN_BOOK),
        verdict="inconclusive",
        reason="because",
        scores={},
    )
    store.publish("registered_model", "tiny", versions)
    return root


@pytest.fixture
def evaluated(made, store, tmp_path):
    """Return the task and the tables, in folders of the test's own."""
    shutil.copytree(made / "data", store.root)
    shutil.copytree(made / "tasks", tmp_path / "tasks")
    return get_task("tiny", tmp_path / "tasks"), {name: store.read(name, "tiny") for name in TABLES}


def test_strangers_are_declined_by_score_and_else_asked(store, evaluated, monkeypatch):
    task, _ = evaluated
    release = registry.load_release(store, task, "tiny@1")
    asked = []
    generate = type(release.engine).generate
    monkeypatch.setattr(
        type(release.engine), "generate", lambda self, p, **o: asked.extend(p) or generate(self, p, **o)
    )
    questions = ["Which cable has a resistor of 3 ohm?", "Who won the football match last night?"]
    scored = dataclasses.replace(release, min_score=0.5)
    assert declines(scored, questions) == [False, True]
    assert asked == [scored.render(questions[0], scored.retrieve(questions[0]))]
    (prompt,) = asked
    says_no = dataclasses.replace(
        release, no_answer=release.engine.generate([prompt], max_new_tokens=release.max_new_tokens)[0].text
    )
    assert declines(says_no, questions[:1]) == [True]
    assert declines(dataclasses.replace(release, retriever=None, has_retrieval=True), questions) is None


def test_champion_that_cannot_answer_does_not_keep_its_successor_from_being_judged(
    store, evaluated, monkeypatch, caplog
):
    task, _ = evaluated
    load = strangers.load_release

    def load_broken(store, task, name, **options):
        release = load(store, task, "tiny@1", **options)
        return release if name == "tiny@1" else dataclasses.replace(release, engine=None)

    monkeypatch.setattr(strangers, "load_release", load_broken)
    found = strangers.ask_strangers(store, task, "tiny@1", "tiny@0")
    assert found is not None and 0 <= found.declined <= 1 and found.champion_declined is None
    assert "The champion tiny@0 could not be asked" in caplog.text
    with pytest.raises(AttributeError):  # what is to be judged has to answer
        strangers.ask_strangers(store, task, "tiny@0", None)


def replayed(store, task, tables):
    (version,) = store.read("registered_model", "tiny").to_dicts()
    answered = tables["predictions"].filter(pl.col("system") == "tuned_rag")
    return replay_sample(store, task, version, tables["benchmark"], answered)


def test_replay_of_what_was_evaluated_agrees_on_a_spread_of_the_rows(store, evaluated):
    task, tables = evaluated
    found = replayed(store, task, tables)
    assert (found.n, found.n_same, found.difference, found.error) == (SAMPLE, SAMPLE, None, None)
    assert tables["predictions"].filter(pl.col("system") == "tuned_rag")["prediction"].n_unique() > 1


def test_replay_with_another_prompt_at_serving_is_caught(store, evaluated, monkeypatch):
    task, tables = evaluated
    render = Release.render
    monkeypatch.setattr(Release, "render", lambda self, question, hits: f"<s>[INST]{render(self, question, hits)}")
    found = replayed(store, task, tables)
    assert found.n_same < found.n
    assert found.difference is not None and "in place of" in found.difference


@pytest.mark.parametrize("has_context", [False, True])
def test_replay_with_another_chat_template_in_the_served_folder_is_caught(store, evaluated, has_context):
    task, tables = evaluated
    if has_context:  # then nothing is replayed, but the template is compared all the same
        tables["benchmark"] = tables["benchmark"].with_columns(context=pl.lit("A passage of its own."))
        assert replayed(store, task, tables).error is None
    file = store.artifact_path("serving_model", "m1") / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_start|>", "[INST]"))
    found = replayed(store, task, tables)
    assert found.error is not None and "are not those that were registered" in found.error


def test_replay_leaves_out_rows_that_the_endpoint_does_not_accept_and_counts_them(store, evaluated):
    task, tables = evaluated
    long = tables["benchmark"].item(0, "example_id")
    question = pl.when(pl.col("example_id") == long).then(pl.lit("x " * 4001)).otherwise("question")
    tables["predictions"] = tables["predictions"].with_columns(question=question)
    found = replayed(store, task, tables)
    assert (found.n, found.n_same, found.n_left_out, found.error) == (SAMPLE, SAMPLE, 1, None)
    tables["predictions"] = tables["predictions"].with_columns(question=pl.lit("x " * 4001))
    found = replayed(store, task, tables)
    assert (found.n, found.n_left_out, found.error) == (0, len(QUESTIONS), None)


@pytest.mark.parametrize("champion", [None, "tiny@1", "tiny@0"])
def test_collect_knows_the_champions_own_weights(store, evaluated, champion):
    task, tables = evaluated
    (version,) = store.read("registered_model", "tiny").to_dicts()
    with registry.locked(store, "tiny"):
        write_aliases(store, "tiny", {"champion": champion} if champion else {})
    found = collect(store, task, None, version=version, tables=tables)
    assert found.is_champions_own == (champion == "tiny@1")


def test_collect_finds_a_leaked_training_row_of_the_version(store, evaluated):
    task, tables = evaluated
    (version,) = store.read("registered_model", "tiny").to_dicts()
    clean = collect(store, task, None, version=version, tables=tables)
    assert (clean.leaks, clean.n_training_rows, clean.general) == ([], 1, {})
    assert (clean.replayed.n_same, clean.token_agreement, clean.flaw) == (SAMPLE, None, None)
    leaked = [dataset_row("train", 1, QUESTIONS[3].lower())]
    trained = store.publish("training_set", "tiny", to_frame("training_set", leaked))
    found = collect(store, task, None, version=version | {"training_set_version": trained.version}, tables=tables)
    gate = {row["check"]: row for row in judge(found, OPEN_BOOK, task.config.promotion).to_dicts()}
    assert not gate["nothing_leaked"]["passed"]
    assert QUESTIONS[3] in gate["nothing_leaked"]["reason"]
