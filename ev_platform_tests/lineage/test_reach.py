"""What is counted behind a model: the same whether it is followed or stands beside the index, and after each change."""

import polars as pl
import pytest

from ev_platform.lineage.reach import MAX_DEPTH
from ev_platform.lineage.trace import trace
from ev_platform.serving.journal import Journal
from ev_platform_tests.evaluation.stored import LazyStore
from ev_platform_tests.lineage.test_trace import TASK, A, B, publish, publish_source
from ev_platform_tests.serving.rows import served

MADE = {"example_id": "exm_0", "chunk_id": "chk_a0", "context_chunk_ids": ["chk_a0", "chk_a1"]}
ASKED = {"example_id": "exm_1", "chunk_id": "chk_a1", "context_chunk_ids": ["chk_a1"], "request_id": "req_1"}
OLDER, NEWER = f"{TASK}@1", f"{TASK}@2"
BEHIND_OLDER = {"url": 1, "body": 1, "document": 1, "chunk": 2, "example": 1, "row": 1}
BEHIND_OLDER |= {"dataset": 1, "adapter": 1, "weights": 1}


@pytest.fixture
def store(tmp_path):
    """Return a store in which the second model was also trained on a question that the first was asked."""
    store = LazyStore(tmp_path)
    body, document, passages = publish_source(store, "a", A, 3)
    publish(store, "raw_pages", body)
    publish(store, "documents", document)
    publish(store, "chunks", *passages)
    models = []
    for number, examples in enumerate(([MADE], [MADE, ASKED]), start=1):
        trained = publish(store, "training_set", *examples)
        publish(store, "adapter", {"artifact_id": f"adapter_{number}"}, inputs={"training_set": trained.fingerprint})
        models.append(
            {
                "model_version": f"{TASK}@{number}",
                "adapter_id": f"adapter_{number}",
                "serving_model_id": f"serving_{number}",
                "benchmark_fingerprint": "0" * 64,
                "chunks_fingerprint": "0" * 64,
            }
        )
    publish(store, "registered_model", *models)
    return store


def counts(store, name, depth=MAX_DEPTH):
    (found,) = trace(store, name, direction="back", depth=depth)
    assert found.back is not None
    return found.back.counts


def counts_both_ways(store, name):
    """Return the counts, which are the same followed step by step, the first time they are kept, and from then on."""
    followed = counts(store, name, depth=MAX_DEPTH - 1)
    assert counts(store, name) == counts(store, name) == followed
    return followed


def kept(store):
    return {file.name: file.stat().st_mtime_ns for file in (store.root / "lineage").rglob("*.keys")}


def test_model_counts_what_is_behind_the_model_whose_answer_it_learned_from(store):
    assert counts_both_ways(store, OLDER) == BEHIND_OLDER
    journal = Journal(store.root, "requests")
    journal.add(served("req_1", task=TASK, chunk_ids=["chk_a2"], scores=[0.5], model_version=OLDER))
    journal.close()
    assert counts_both_ways(store, NEWER) == {
        **BEHIND_OLDER,
        "chunk": 3,  # one is only behind the answer
        "example": 2,
        "row": 3,
        "dataset": 2,
        "adapter": 2,
        "weights": 2,
        "model": 1,
        "request": 1,
    }


def test_what_is_kept_stays_while_other_tables_change_and_goes_with_what_was_read(store):
    counts(store, OLDER)
    before = kept(store)
    assert len(before) == 1
    publish(store, "predictions", {"prediction_id": "prd_1", "example_id": "exm_0", "context_chunk_ids": []})
    counts(store, OLDER)
    assert kept(store) == before
    publish(store, "chunks", *publish_source(store, "b", B, 1)[2])
    assert counts_both_ways(store, OLDER) == BEHIND_OLDER
    assert len(kept(store)) == 1
    assert not kept(store).keys() & before.keys()


def test_version_rewritten_in_its_place_is_counted_anew(store):
    assert counts(store, OLDER)["row"] == 1
    for file in (store.root / "tables" / "training_set" / TASK).glob("*.parquet"):
        pl.read_parquet(file).filter(pl.col("example_id") != "exm_0").write_parquet(file)
    assert counts_both_ways(store, OLDER) == {"dataset": 1, "adapter": 1, "weights": 1}
