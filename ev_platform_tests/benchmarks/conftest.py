"""The bundled model and training rows made from the example's pages, shared by the benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from ev_platform.records import DatasetRow, to_frame
from ev_platform.tasks import EXAMPLES, Task
from ev_platform.tasks.rows import read_rows
from ev_platform.tasks.types import get_task_type
from ev_platform.training.base import BUNDLED, write_base_model
from ev_platform.training.tokens import chat_counter


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_base_model(BUNDLED, folder)
    return folder


@pytest.fixture(scope="session")
def rows(base: Path) -> pl.DataFrame:
    """32 open-book rows of the example, 60 to 400 tokens each."""
    task = Task("ev_charging", EXAMPLES / "ev_charging")
    count = chat_counter(base)
    made = []
    for index, row in enumerate(read_rows(task, "train")[:32]):
        page = EXAMPLES / "ev_charging" / "site" / Path(row.source or "").name
        text = re.sub(r"<[^>]+>|\s+", " ", page.read_text(encoding="utf-8").split("<article", 1)[1])
        context = " ".join(text.split()[: 40 + (index * 37) % 200])
        messages = get_task_type("open_book_qa").prompt(task.description, row.question, [context])
        n_tokens, n_answer = count(messages, row.answer)
        made.append(
            DatasetRow(
                example_id=str(index),
                split="train",
                question=row.question,
                answer=row.answer,
                answers=[row.answer],
                answer_start=None,
                is_answerable=True,
                context=None,
                chunk_id=None,
                document_id=None,
                cluster_id=None,
                origin="human",
                kind="human",
                context_chunk_ids=[],
                instruction=task.description,
                input=messages[-1]["content"],
                output=row.answer,
                messages=[*messages, {"role": "assistant", "content": row.answer}],
                n_tokens=n_tokens,
                n_answer_tokens=n_answer,
            )
        )
    return to_frame("training_set", made)
