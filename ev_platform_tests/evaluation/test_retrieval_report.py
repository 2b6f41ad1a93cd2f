import numpy as np
import polars as pl
import pytest

from ev_platform.evaluation.retrieval_report import as_table, recall_plot, score_retrieval
from ev_platform.records import Chunk, DatasetRow, to_frame
from ev_platform.retrieval import embed_chunks
from ev_platform.tasks.config import RetrievalConfig

TEXTS = {
    "cable": ("doc_cable", "A resistor of 220 ohm marks a cable for 32 A."),
    "plug": ("doc_plug", "The Type 2 connector is the usual AC plug in Europe."),
    "plug2": ("doc_plug", "The Type 2 connector is also the plug of most cars in Europe."),
    "garden": ("doc_garden", "Tomatoes want a warm wall and deep compost."),
}
ASKED = {
    "Which resistor marks a cable for 32 A?": "cable",
    "Which is the usual AC plug in Europe?": "plug",
    "What do tomatoes want?": "garden",
}
FEW = {"resamples": 100, "seed": 17}


@pytest.fixture(scope="module")
def chunks():
    rows = [
        Chunk(f"chk_{name}", document, document, 0, 0, len(text), "", None, text, 9)
        for name, (document, text) in TEXTS.items()
    ]
    return to_frame("chunks", rows)


@pytest.fixture(scope="module")
def vectors(chunks):
    return embed_chunks(chunks)


def row(question, gold, **changes):
    known = dict.fromkeys(DatasetRow.__dataclass_fields__)
    known |= {"example_id": f"exm_{question}", "question": question, "answer": "x", "answers": ["x"], "split": "test"}
    known |= {"is_answerable": True, "context_chunk_ids": [], "messages": [], "origin": "human"}
    if gold:
        known |= {"chunk_id": f"chk_{gold}", "document_id": TEXTS[gold][0] if gold in TEXTS else f"doc_{gold}"}
    return DatasetRow(**known | changes)


def score(rows, chunks, vectors, top_k=2):
    return score_retrieval(to_frame("benchmark", rows), chunks, RetrievalConfig(top_k=top_k), vectors, **FEW)


def value(scores, method, level, metric):
    (found,) = scores.filter(method=method, level=level, metric=metric)["value"]
    return found


@pytest.fixture(scope="module")
def scores(chunks, vectors):
    return score([row(*asked) for asked in ASKED.items()], chunks, vectors)


def test_report_has_every_method_and_level_with_recall_also_at_top_k(scores):
    assert scores.select("method", "level").unique(maintain_order=True).rows() == [
        (method, level) for method in ("lexical", "embedding", "hybrid") for level in ("chunk", "document")
    ]
    assert scores["metric"].unique(maintain_order=True).to_list() == [
        "recall@1",
        "recall@2",
        "recall@5",
        "recall@10",
        "mrr",
    ]
    assert set(scores["n_rows"]) == {3} and value(scores, "hybrid", "chunk", "recall@1") == 1.0


def test_report_tells_a_search_that_finds_the_wrong_passages(chunks, vectors):
    turned = vectors.with_columns(vector=pl.Series(-vectors["vector"].list.to_array(384).to_numpy()))
    # What was nearest is farthest now.
    found = score([row(*asked) for asked in ASKED.items()], chunks, turned)
    assert value(found, "embedding", "chunk", "recall@1") == 0.0
    assert value(found, "lexical", "chunk", "recall@1") == 1.0
    assert 1 / 4 <= value(found, "embedding", "chunk", "mrr") <= 1 / 2


def test_report_counts_a_document_once_and_where_its_best_passage_stands(chunks, vectors):
    # Both passages of the plug come before the garden's, which is the second document.
    found = score([row("Type 2 connector plug in Europe", "garden")], chunks, vectors)
    assert value(found, "embedding", "document", "recall@1") == 0.0
    assert value(found, "embedding", "chunk", "recall@2") == 0.0
    by_document, by_chunk = (value(found, "embedding", level, "mrr") for level in ("document", "chunk"))
    assert by_document > by_chunk > 0


def test_report_leaves_out_rows_that_no_passage_can_answer(chunks, vectors):
    question = "Which resistor marks a cable for 32 A?"
    rows = [
        row(question, "cable"),
        row(question, "cable", context="Its own passage."),
        row(question, "cable", is_answerable=False),
        row(question, None),
        row(question, "vanished"),
    ]
    assert set(score(rows, chunks, vectors)["n_rows"]) == {1}
    assert score(rows[1:], chunks, vectors).is_empty()
    assert score([], chunks.clear(), None).is_empty()


def test_report_takes_a_row_whose_document_alone_is_known_at_that_level(chunks, vectors):
    rows = [row("What do tomatoes want?", "garden"), row("Which plug?", None, document_id="doc_plug")]
    found = score(rows, chunks, vectors)
    assert dict(found.select("level", "n_rows").iter_rows()) == {"chunk": 1, "document": 2}
    only = score(rows[1:], chunks, vectors)
    assert set(only["level"]) == {"document"}


def test_report_is_the_same_again(scores, chunks, vectors):
    assert scores.equals(score([row(*asked) for asked in ASKED.items()], chunks, vectors))


def test_table_and_plot_show_every_method(scores):
    table = as_table(scores)
    assert table.select("find", "by").rows()[:3] == [("chunk", m) for m in ("lexical", "embedding", "hybrid")]
    assert table.height == 6 and table.item(0, "recall@1").startswith("1.000 (")
    lines = recall_plot(scores).axes[0].get_lines()
    assert [line.get_label() for line in lines][:2] == ["lexical, chunk", "lexical, document"] and len(lines) == 6
    assert np.allclose(lines[0].get_xdata(), [1, 2, 5, 10])
