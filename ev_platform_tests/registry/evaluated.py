"""A task `tiny` whose random model was evaluated for real: all tables that the stage `registry` reads, published."""

import polars as pl

from ev_platform.engine import load_engine
from ev_platform.evaluation import predict
from ev_platform.evaluation.summary import summarise
from ev_platform.records import Chunk, CleanDocument, DatasetRow, to_frame
from ev_platform.storage import now
from ev_platform.tasks import get_task
from ev_platform.training.export import export_serving_model
from ev_platform_tests.registry.registered import OPEN_BOOK, artifact, write_weights
from ev_platform_tests.tiny import tiny_recipe, write_tiny_model, write_tiny_task

TEXTS = {f"chk_{n}": f"A resistor of {n} ohm marks a cable for {n + 3} A." for n in range(6)}
QUESTIONS = [f"Which cable has a resistor of {n} ohm?" for n in range(24)]
BASE = {"base": 0.1, "base_rag": 0.3}
BETTER, WORSE = {"tuned": 0.2, "tuned_rag": 0.7}, {"tuned": 0.05, "tuned_rag": 0.1}


def dataset_row(split, number, question, context=None):
    """Return a row of `training_set` or `benchmark`."""
    known = dict.fromkeys(DatasetRow.__dataclass_fields__)
    known |= {"example_id": f"{split}_{number:02}", "split": split, "question": question, "answer": "32 A"}
    known |= {"answers": ["32 A"], "is_answerable": True, "context": context, "context_chunk_ids": [], "messages": []}
    return DatasetRow(**known)


def document():
    """Return the document of all passages."""
    known = dict.fromkeys(CleanDocument.__dataclass_fields__, "doc")
    known |= {"fetched_at": now(), "page_offsets": [], "n_chars": 1, "n_masked": 0, "n_boilerplate_lines": 0}
    return CleanDocument(**known | {"language_score": 1.0, "relevance": 1.0})


def write_task(root):
    """Write the task's folder and return the task."""
    write_tiny_task(root / "tasks" / "tiny", root / "model")
    return get_task("tiny", root / "tasks")


def publish_corpus(store):
    """Publish passages, training rows and test rows."""
    rows = [Chunk(key, "doc", "doc", n, 0, 9, "Cables", None, text, 9) for n, (key, text) in enumerate(TEXTS.items())]
    store.publish("chunks", "tiny", to_frame("chunks", rows))
    store.publish("clean_documents", "tiny", to_frame("clean_documents", [document()]))
    trained = [dataset_row("train", 1, "Who tests the residual current?")]
    store.publish("training_set", "tiny", to_frame("training_set", trained))
    asked = [dataset_row("test", n, question) for n, question in enumerate(QUESTIONS)]
    store.publish("benchmark", "tiny", to_frame("benchmark", asked))
    store.publish("general_answers", "tiny", to_frame("general_answers", []))
    store.publish("abstention_calibration", "tiny", to_frame("abstention_calibration", []))


def publish_model(store, task, root, seed):
    """Publish the weights of a random model, from adapter to served form, beside those of a base model."""
    for name, kind, model_seed in (("base", "base_serving_model", 0), (f"m{seed}", "serving_model", seed)):
        if not store.artifact_path(kind, name).exists():
            with store.artifact(kind, lambda name=name: name) as folder:
                model = write_tiny_model(root / f"seed_{model_seed}", seed=model_seed)
                export_serving_model(model, folder, tiny_recipe(), (), "")
    for kind in ("adapter", "merged_model"):
        write_weights(store, kind, f"m{seed}")
    adapter = artifact(
        store, "adapter", f"m{seed}", {"training_set": store.current("training_set", "tiny").fingerprint}
    )
    merged = artifact(store, "merged_model", f"m{seed}", {"adapter": adapter.item(0, "sha256")})
    served = artifact(store, "serving_model", f"m{seed}", {"model": merged.item(0, "sha256")})
    for table, frame in (("adapter", adapter), ("merged_model", merged), ("serving_model", served)):
        store.publish(table, "tiny", frame)
    store.publish("base_serving_model", "tiny", artifact(store, "base_serving_model", "base"))


def publish_evaluation(store, task, means=None, champion=None):
    """Let all systems answer, and publish that; `means` puts other scores around a mean for each system."""
    engines = {
        name: (row["artifact_id"], load_engine(store.root / row["path"]))
        for name, table in (("base", "base_serving_model"), ("tuned", "serving_model"))
        for row in store.read(table, "tiny").to_dicts()
    }
    benchmark, chunks = store.read("benchmark", "tiny"), store.read("chunks", "tiny")
    answers = predict(benchmark, chunks, engines, OPEN_BOOK, task.instructions, task.config, champion=champion)
    if means:
        # A random model has learnt nothing: scores as they would be, under the answers as they are.
        mean = pl.col("system").replace_strict({**BASE, "champion": 0.4} | means, default=0.0, return_dtype=pl.Float64)
        spread = (pl.int_range(pl.len()).over("system") % 5 - 2) * 0.02
        answers = answers.with_columns(token_f1=(mean + spread).clip(0, 1), latency_ms=pl.lit(50.0))
    inputs = {table: store.current(table, "tiny").fingerprint for table in ("benchmark", "chunks", "serving_model")}
    config = {"champion": champion.model_version if champion else None}
    record = store.publish("predictions", "tiny", answers, inputs=inputs, config=config)
    metrics = summarise(answers, resamples=200, seed=1)
    store.publish("eval_report", "tiny", metrics, inputs={"predictions": record.fingerprint})
