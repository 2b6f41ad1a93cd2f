"""A dataset of the made-up corpus by a teacher behind a local Anthropic server; as a process, so that it can be killed.

`python -m ev_platform_tests.dataset.paid FOLDER` makes the dataset of a task folder that `write_task` wrote.
"""

import csv
import json
import sys
from pathlib import Path

import polars as pl

from ev_platform.dataset import steps
from ev_platform.identity import short_id
from ev_platform.prompting import passage_text
from ev_platform.records import Chunk, schema_of, to_frame
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform_tests.dataset.honest import read_facts, write_pages

TEST_PAGES = 2  # hand-written test rows rest on these, so that nothing may be asked about them
N_TRAIN = 4


def write_task(folder, n_pages, teacher, dataset):
    """Write a task folder with a few hand-written rows; those for the test rest on the first pages."""
    folder.mkdir(parents=True)
    (folder / "job_description.json").write_text(
        json.dumps({"task_description": "Answer the question about the county from the passages."})
    )
    config = {"no_answer": "Not said.", "teacher": teacher, "dataset": dataset, "retrieval": {"top_k": 1}}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "sources.yaml").write_text(json.dumps({"texts": ["pages/*.md"]}))
    (folder / "pages.json").write_text(json.dumps(n_pages))
    test = [
        (*read_facts(passage)[0][:2], url_of(page))
        for page, passages in enumerate(write_pages(TEST_PAGES))
        for passage in passages
    ]
    # Train rows bring passages of their own, so that they are no examples of the corpus'.
    train = [(*read_facts(passage)[0][:2], passage) for passage in write_pages(1, N_TRAIN, seed=6)[0]]
    for split, place, rows in (("train", "context", train), ("test", "source", test)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("question", "answer", place), *rows])
    return Task(folder.name, folder)


def url_of(page):
    return f"https://county.example/{page}.html"


def read_corpus(task):
    """Return the tables `chunks`, `clean_documents` and `dropped_documents`."""
    schema, chunks, documents = schema_of("clean_documents"), [], []
    for page, passages in enumerate(write_pages(json.loads((task.folder / "pages.json").read_text()))):
        heading, start, document_id = f"County > Part {page}", 0, short_id("doc", url_of(page), passages)
        for n, text in enumerate(passages):
            chunk_id = short_id("chk", passage_text(heading, text))
            chunks.append(
                Chunk(chunk_id, document_id, document_id, n, start, start + len(text), heading, None, text, 60)
            )
            start += len(text) + 2
        documents.append(
            dict.fromkeys(schema)
            | {
                "document_id": document_id,
                "url": url_of(page),
                "fetched_url": url_of(page),
                "cluster_id": document_id,
                "text": "\n\n".join(passages),
            }
        )
    nothing = pl.DataFrame(schema=schema_of("dropped_documents"))
    return to_frame("chunks", chunks), pl.DataFrame(documents, schema=schema), nothing


def make_dataset(task, data, run_id):
    """Return the tables of generation and validation, as the graph makes them."""
    chunks, documents, dropped = read_corpus(task)
    store = Store(data)
    made = steps.generate(task, store, run_id, chunks, documents, dropped)
    tables = made["qa_candidates"], made["generation_log"], to_frame("feedback_candidates", []), chunks, documents
    return made | steps.validate(task, store, run_id, *tables)


if __name__ == "__main__":
    given = Path(sys.argv[1])
    make_dataset(Task(given.name, given), Path(sys.argv[2]), "killed")
