"""Finding the section of a real manual that answers a question: words, meaning, and both together.

`pytest -m real_data -s ev_platform_tests/test_real_retrieval.py` prints the table. Nothing was fitted to these
questions: the retriever is the one of every task, with its default settings. Stemming, other k1 and b, deeper or
weighted fusion were tried on half of the questions; none gave more than a point of recall at 5 on the other half.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ev_platform.corpus.chunk import chunk_documents
from ev_platform.corpus.text import read_text
from ev_platform.evaluation.retrieval_report import as_table, score_retrieval
from ev_platform.records import DatasetRow, schema_of, to_frame
from ev_platform.tasks import Task
from ev_platform.tasks.config import CorpusConfig, RetrievalConfig
from ev_platform.tasks.rows import read_rows

MANUAL = Path(__file__).parents[2] / "shared" / "data" / "vehicle_manual"
pytestmark = [pytest.mark.real_data, pytest.mark.timeout(900)]


def count_words(texts: Any) -> list[int]:
    """Stand in for a student's tokenizer, which makes 1.4 tokens of an English word."""
    return [round(1.4 * len(text.split())) for text in texts]


@pytest.mark.slow
def test_hybrid_search_finds_the_section_of_a_manual_that_answers_a_question(tmp_path: Path) -> None:
    if not (MANUAL / "questions.json").exists():
        pytest.skip("the real data sets are not beside this checkout")
    (tmp_path / "config.yaml").write_text(f"files: {{rows: '{MANUAL / 'questions.json'}'}}\n")
    asked = [row for split in ("train", "test") for row in read_rows(Task("manual", tmp_path), split)]
    blank = dict.fromkeys(schema_of("clean_documents"))
    documents = [
        blank | {"document_id": file.stem, "cluster_id": file.stem, "text": read_text(file.read_bytes()).text}
        for file in sorted((MANUAL / "docs").glob("*.md"))
    ]
    chunks = chunk_documents(pl.DataFrame(documents, schema=schema_of("clean_documents")), count_words, CorpusConfig())
    empty = dict.fromkeys(DatasetRow.__dataclass_fields__)
    empty |= {"answers": [], "context_chunk_ids": [], "messages": [], "is_answerable": True}
    # An address may go on below the file: "…/alerts_p3.md/##alert:-dif_a251-/-dir_a251".
    benchmark = to_frame(
        "benchmark",
        [
            DatasetRow(**empty | {"question": row.question, "document_id": Path(row.source.partition(".md/")[0]).stem})
            for row in asked
        ],
    )
    scores = score_retrieval(benchmark, chunks, RetrievalConfig(), resamples=2000, seed=17)
    print(f"\n== vehicle_manual: {len(documents)} sections, {chunks.height} chunks")
    with pl.Config(tbl_cols=-1, tbl_width_chars=200, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        print(as_table(scores))
    assert set(scores["n_rows"]) == {len(asked)} and len(asked) > 2000
    recall = {row["method"]: row["value"] for row in scores.filter(metric="recall@5", level="document").to_dicts()}
    assert recall["hybrid"] >= 0.90
    # It finds more than meaning alone and, within a point, no less than words alone, which such questions favour: they
    # were written with the section in front.
    assert recall["hybrid"] > recall["embedding"] and recall["hybrid"] > recall["lexical"] - 0.01
