import re

import numpy as np
import pytest

from ev_platform.evaluation.benchmarks import announce, announcement, version_of
from ev_platform_tests.evaluation.stored import (
    N_ROWS,
    TASK,
    LazyStore,
    Stored,
    chunk,
    dataset_row,
    document,
    write_task,
)


def embed(texts):
    """Give every question a direction of its own, by its split and its number: none resembles another."""
    places = [int(re.search(r"<(\d+)>", text)[1]) + 100 * ("train" in text) for text in texts]
    return np.eye(200, dtype=np.float32)[places]


def announced(stored, **options):
    """Announce the current rows as the asset does, and return all versions."""
    record = stored.store.current("benchmark", TASK)
    versions = announce(stored.store, stored.task, record.version, record.fingerprint, embed=embed, **options)
    stored.publish("benchmark_versions", versions, "benchmark")
    return versions.to_dicts()


@pytest.fixture
def stored(tmp_path):
    made = Stored(LazyStore(tmp_path / "data"), write_task(tmp_path / "tasks" / TASK))
    made.publish("clean_documents", [document(n) for n in range(3)])
    made.publish("chunks", [chunk(n) for n in range(3)])
    made.publish("benchmark", [dataset_row(n) for n in range(N_ROWS)])
    made.publish("training_set", [])
    made.publish("validation_set", [])
    return made


def test_first_rows_become_version_1(stored):
    (version,) = announced(stored)
    assert (version["benchmark"], version["number"]) == ("charging-bench@1", 1)
    assert (version["n_rows"], version["n_documents"], version["n_added"], version["n_removed"]) == (24, 3, 24, 0)
    assert version["benchmark_fingerprint"] == stored.fingerprint("benchmark")
    # The very rows can be reopened by the version.
    rows = stored.store.read("benchmark", TASK, version["benchmark_version"])
    assert rows.equals(stored.read("benchmark"))


def test_unchanged_rows_are_not_announced_again(stored):
    first = announced(stored)
    stored.publish("benchmark", stored.read("benchmark"))  # materialized anew, with the same rows
    assert announced(stored) == first


def test_other_rows_become_the_next_version_that_says_what_changed(stored):
    announced(stored)
    stored.publish("benchmark", [dataset_row(n) for n in range(4, N_ROWS + 2)])
    first, second = announced(stored)
    assert (second["benchmark"], second["number"]) == ("charging-bench@2", 2)
    assert (second["n_rows"], second["n_added"], second["n_removed"]) == (22, 2, 4)
    assert second["note"] == "2 rows were added and 4 removed; 20 are as in charging-bench@1."
    assert first["benchmark_fingerprint"] != second["benchmark_fingerprint"]


def test_same_questions_with_other_prompts_are_a_version_too(stored):
    announced(stored)
    stored.publish("benchmark", [dataset_row(n, input="Asked otherwise.", n_tokens=9) for n in range(N_ROWS)])
    version = announced(stored)[-1]
    assert (version["n_added"], version["n_removed"]) == (0, 0)
    said = "The same 24 questions and answers as charging-bench@1, with another input, n_tokens."
    assert version["note"] == said


def test_earlier_rows_that_come_back_keep_their_version(stored):
    first = announced(stored)
    before = stored.read("benchmark")
    stored.publish("benchmark", before.head(20))
    both = announced(stored)
    stored.publish("benchmark", before)
    versions = announced(stored)
    assert versions == both
    in_force = version_of(stored.read("benchmark_versions"), stored.fingerprint("benchmark"))
    assert in_force["benchmark"] == first[0]["benchmark"]


def test_announcement_names_both_versions_only_where_rows_changed(stored):
    announced(stored)
    old = stored.fingerprint("benchmark")
    stored.publish("benchmark", [dataset_row(n) for n in range(20)])
    announced(stored)
    versions, new = stored.read("benchmark_versions"), stored.fingerprint("benchmark")
    said = announcement(versions, new, old)
    assert said == (
        "The test rows are now those of charging-bench@2: 0 rows were added and 4 removed; 20 are as in "
        "charging-bench@1. Figures that were measured on charging-bench@1 do not compare with new ones."
    )
    assert announcement(versions, new, new) == "charging-bench@2, with 20 rows."


def test_card_tells_what_is_in_it_and_where_it_is_from(stored):
    (version,) = announced(stored)
    card = version["card"]
    assert card.startswith("# charging-bench@1\n")
    assert "24 rows, of which 20 have an answer" in card
    assert "| number | 12 |" in card and "| reason | 12 |" in card
    assert "| words of the answer | 3 | 3 | 3 |" in card
    assert "| tokens of prompt and answer | 50 | 61.5 | 73 |" in card
    # Held-out documents with their licences; what would break the table is taken away.
    assert (
        "| https://plugs.example/0?a=1&amp;b=2 | Plugs \\| 0 | CC-BY-4.0 | Plug Press | 2026-11-21 16:00 | doc_0 | 8 |"
        in card
    )
    assert "| CC-BY-4.0 | 3 | Plug Press |" in card
    assert 'rows of origin "human": people wrote them' in card
    assert "0 of 0 training and validation rows met a test row." in card
    assert "- Each row accepts one answer" in card
    assert "With 24 rows, a true difference" in card


def test_card_lists_documents_that_say_the_same_as_held_out_ones(stored):
    rows = [dataset_row(n, document_id="doc_0", cluster_id="doc_0") for n in range(N_ROWS)]
    stored.publish("benchmark", rows)
    near = stored.read("clean_documents").to_dicts()
    near[1] |= {"cluster_id": "doc_0"}
    frame = stored.read("clean_documents")
    stored.publish("clean_documents", type(frame)(near, schema=frame.schema))
    (version,) = announced(stored)
    assert version["n_documents"] == 1
    assert "these 2 documents" in version["card"]
    assert "| doc_0 | 24 |" in version["card"] and "| doc_0 | 0 |" in version["card"]


def test_card_tells_of_training_rows_that_meet_test_rows(stored):
    stored.publish("training_set", [dataset_row(0, "train", chunk_id="chk_t", document_id="doc_t", cluster_id="doc_0")])
    (version,) = announced(stored)
    assert "1 of 1 training and validation rows met a test row (document_of_test)." in version["card"]


def test_card_of_few_rows_says_that_nothing_can_be_concluded(stored):
    stored.publish("benchmark", [dataset_row(n) for n in range(8)])
    (version,) = announced(stored)
    assert "Fewer than 20 rows: every verdict on them is inconclusive." in version["card"]


def test_card_of_labels_counts_them(tmp_path):
    stored = Stored(LazyStore(tmp_path / "data"), write_task(tmp_path / "tasks" / TASK, "classification"))
    labels = ["card"] * 20 + ["refund"] * 4
    rows = [dataset_row(n, answer=label, document_id=None, cluster_id=None) for n, label in enumerate(labels)]
    for table, content in (("benchmark", rows), ("training_set", []), ("validation_set", []), ("chunks", [])):
        stored.publish(table, content)
    stored.publish("clean_documents", [])
    (version,) = announced(stored)
    assert "| card | 20 |" in version["card"] and "| refund | 4 |" in version["card"]
    assert "1 labels have fewer than 5 rows" in version["card"]
    assert "No collected document stands behind a row" in version["card"]
