"""The model card against the tables, and its front matter as the hub's own reader takes it."""

import json

import pytest
from huggingface_hub import ModelCard

from ev_platform.dataset.export import Dataset
from ev_platform.errors import UserError
from ev_platform.records import (
    Chunk,
    DroppedDocument,
    Metric,
    ModelArtifact,
    RejectedExample,
)
from ev_platform.training.card import render_model_card
from ev_platform_tests.dataset.test_export import (
    HOUR,
    PASSAGE,
    Tables,
    blank,
    example,
    make_task,
    page,
    publish,
    row_of,
)

RECIPE = {"base_model": "bundled:smollm2-135m-instruct", "head": "causal", "method": "lora", "learning_rate": 0.001}


def artifact(kind, recipe=None, **metrics):
    recipe = RECIPE | (recipe or {})
    return ModelArtifact(
        artifact_id=f"{kind}_1",
        kind=kind,
        path=f"artifacts/{kind}/{kind}_1",
        base_model=recipe["base_model"],
        recipe=json.dumps(recipe),
        inputs=json.dumps({"training_set": "f" * 64}),
        sha256="a" * 64,
        n_bytes=1,
        metrics=json.dumps(metrics),
    )


def evaluated(metric):
    score = [("base", 0.1, 0.05, 0.15), ("tuned", 0.51239, 0.4, 0.6), ("base_rag", 0.2, 0.1, 0.3)]
    pairs = [("tuned", "base", 0.4), ("base_rag", "base", 0.1), ("tuned", "base_rag", 0.3)]
    return [
        *(Metric(name, None, metric, value, low, high, 40) for name, value, low, high in score),
        *(Metric(a, b, metric, value, value - 0.05, value + 0.05, 40, p_value=0.001) for a, b, value in pairs),
        Metric("tuned", None, "latency_ms_p50", 300.4, None, None, 40),
    ]


@pytest.fixture
def make(tmp_path):
    def make(*, recipe=None, licence="CC-BY-4.0", config="type: open_book_qa", metric="token_f1", without=()):
        store, task = Tables(tmp_path / "data"), make_task(tmp_path / "charging", config)
        rows = [row_of(1, "train"), row_of(2, "train", origin="human"), row_of(1, "test", document="d3")]
        asked = {"teacher": "anthropic:claude", "prompt_version": "pv1", "cost_usd": 0.0125}
        dropped = {"url": "u", "fetched_url": "u", "kind": "web", "publisher": "p", "licence": "l", "fetched_at": HOUR}
        tables = {
            "chunks": [Chunk(f"chk_{d}", d, f"clu_{d}", 0, 0, 99, "Home", None, PASSAGE, 30) for d in ("d1", "d3")],
            "clean_documents": [page("d1", licence=licence), page("d3", licence="proprietary")],
            "examples": [example(rows[0], **asked), *map(example, rows[1:])],
            "training_set": rows[:2],
            "benchmark": rows[2:],
            "dropped_documents": [
                blank(DroppedDocument, document_id="x", text="t", drop_reason="off_topic", **dropped)
            ],
            "rejected_examples": [
                blank(
                    RejectedExample,
                    example_id="r",
                    question="q",
                    answer="a",
                    origin="generated",
                    kind="number",
                    reject_reason="not_grounded",
                )
            ],
            "adapter": [artifact("adapter", recipe, n_rows=2, final_loss=0.75, validation_loss=None)],
            "serving_model": [
                artifact("serving_model", recipe, format="ctranslate2-int8", agreement=0.875, n_prompts=16)
            ],
            "eval_report": evaluated(metric),
        }
        publish(store, task, **{name: rows for name, rows in tables.items() if name not in without})
        return Dataset(store, task)

    return make


def test_front_matter_is_read_by_the_hub_s_own_parser(make):
    data = ModelCard(render_model_card(make())).data
    assert (data.license, data.license_name, data.language) == ("apache-2.0", None, ["en"])
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["ev-platform", "lora", "synthetic"]
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("f1", 0.5124)
    assert (result.metric_name, result.dataset_name, result.dataset_split) == ("token F1, tuned", "charging", "test")


def test_card_tells_scores_with_intervals_and_the_verdict(make):
    text = render_model_card(make())
    assert "| tuned | token F1 | 0.512 | 0.400 to 0.600 |" in text
    assert "| tuned | latency p50, ms | 300 |  |" in text
    assert "| tuned | base + retrieval | token F1 | +0.300 | +0.250 to +0.350 |" in text
    assert "Verdict by token F1: **ship tuned**." in text
    assert "It was evaluated on 40 test rows" in text
    assert "ctranslate2-int8; on 16 prompts of the validation set" in text
    assert "88 % of cases" in text


def test_card_tells_what_the_model_was_made_from_without_the_test_rows(make):
    text = render_model_card(make())
    assert "| generated | 1 |\n| human | 1 |\n" in text
    assert "| anthropic:claude | pv1 | 1 | 0.0125 |" in text
    assert "| https://a.example/d1 | Charging &lt;at&gt; home | CC-BY-4.0 | Ann \\| Co | 2026-11-21 06:00 | 2 |" in text
    assert "a.example/d3" not in text
    assert "proprietary" not in text
    assert "| documents | off_topic | 1 |\n| examples | not_grounded | 1 |" in text
    assert "| final_loss | 0.75 |" in text
    assert "validation_loss" not in text
    assert f"| training_set | `{'f' * 64}` |" in text
    assert "learning_rate: 0.001" in text
    assert "Question: Question train 1?" in text


@pytest.mark.parametrize(
    ("licence", "recipe"), [("CC-BY-SA-4.0", None), ("unknown", None), ("CC0-1.0", {"base_model": "someone/model"})]
)
def test_licence_is_left_open_where_pages_or_base_do_not_settle_it(make, licence, recipe):
    data = ModelCard(render_model_card(make(licence=licence, recipe=recipe))).data
    assert (data.license, data.license_name) == ("other", "see-below")


def test_base_model_in_a_local_folder_is_no_link(make):
    text = render_model_card(make(recipe={"base_model": "/models/own"}))
    assert ModelCard(text).data.base_model is None


def test_encoder_head_has_its_own_pipeline_and_way_to_load(make):
    config = "type: classification"
    recipe = {"base_model": "bundled:all-minilm-l6-v2", "head": "classification"}
    dataset = make(recipe=recipe, config=config, metric="accuracy")
    (dataset.task.folder / "train.csv").write_text("text,label\na,x\nb,y\n")
    text = render_model_card(dataset)
    data = ModelCard(text).data
    assert (data.pipeline_tag, data.base_model) == ("text-classification", "sentence-transformers/all-MiniLM-L6-v2")
    assert [result.metric_type for result in data.eval_results] == ["accuracy"]
    assert "load_engine(folder)" in text
    assert "AutoModelForCausalLM" not in text


@pytest.mark.parametrize(("without", "told"), [("adapter", "not trained yet"), ("eval_report", "not evaluated yet")])
def test_model_that_is_not_there_yet_is_told(make, without, told):
    with pytest.raises(UserError, match=f"The model of charging is {told}: run the task first"):
        render_model_card(make(without=(without,)))
