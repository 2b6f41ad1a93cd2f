"""Candidates, their validation, and the splits; every rejected row keeps its reason."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
from tqdm import tqdm

from ev_platform.dataset import extractive
from ev_platform.errors import UserError
from ev_platform.prompting import Messages, passage_text
from ev_platform.records import DatasetRow, Example, RejectedExample, to_frame
from ev_platform.retrieval import Retriever
from ev_platform.storage import short_id
from ev_platform.tasks import DatasetConfig, RetrievalConfig
from ev_platform.tasks.rows import TaskRow
from ev_platform.tasks.types import TaskType

# A question that shares this share of its word 3-grams with a test question asks the same thing. Measured on the
# example: the closest honest pair of a train and a test question shares 0.4.
MAX_QUESTION_OVERLAP = 0.6
MAX_ANSWER_WORDS = 40

CountTokens = Callable[[Messages, str], tuple[int, int]]


def words(text: str) -> list[str]:
    """Return the lower-case words and numbers of a text; the unit of every overlap here."""
    return re.findall(r"\w+", text.lower())


def make_candidates(
    rows: Sequence[TaskRow],
    chunks: pl.DataFrame,
    documents: pl.DataFrame,
    dropped: pl.DataFrame,
    config: DatasetConfig,
) -> pl.DataFrame:
    """Join the hand-written rows to the passages that support them, and generate more from the rest.

    Documents that a test row comes from, and their near-duplicates, are left out of generation altogether.

    Args:
        rows: Rows of both splits.
        chunks: The `chunks` table.
        documents: The `clean_documents` table.
        dropped: The `dropped_documents` table; a row whose source was dropped as a duplicate counts for the survivor.
        config: Limits and seed.

    Returns:
        The `qa_candidates` table: human rows in file order, then generated rows in the order of the chunks.

    Raises:
        UserError: If there are no chunks, or the teacher is unknown.
    """
    if config.teacher != extractive.TEACHER:
        raise UserError(f"config.yaml: dataset.teacher {config.teacher!r} is unknown; use {extractive.TEACHER!r}.")
    if chunks.is_empty():
        raise UserError("The corpus is empty: no document passed the filters; the reasons are in dropped_documents.")
    locate = _Locator(chunks, documents, dropped)
    human = [_from_row(row, locate) for row in rows]
    held_out = {example.cluster_id for example in human if example.split == "test" and example.cluster_id}
    generated: list[list[Example]] = []
    for chunk in tqdm(chunks.iter_rows(named=True), total=chunks.height, desc="generate", unit="chunk", disable=None):
        if chunk["cluster_id"] in held_out:
            continue
        made = [
            Example(
                example_id=short_id("exm", c.question, c.answer, chunk["chunk_id"]),
                question=c.question,
                answer=c.answer,
                chunk_id=chunk["chunk_id"],
                document_id=chunk["document_id"],
                cluster_id=chunk["cluster_id"],
                context=None,
                origin="extractive",
                teacher=extractive.TEACHER,
                kind=c.kind,
                split="train",
                row=None,
            )
            for c in extractive.generate(chunk["text"])
        ]
        random.Random(f"{config.seed}:{chunk['chunk_id']}").shuffle(made)  # noqa: S311 - sampling, not secrets
        generated.append(made[: config.max_per_chunk])
    # Round robin over the chunks, so that a limit takes a share of each and not the first pages only.
    rounds = [batch[i] for i in range(config.max_per_chunk) for batch in generated if i < len(batch)]
    chosen = {example.example_id for example in rounds[: config.max_examples]}
    kept = [example for batch in generated for example in batch if example.example_id in chosen]
    return to_frame("qa_candidates", [*human, *kept])


class _Locator:
    """Finds the chunk that supports a hand-written row."""

    def __init__(self, chunks: pl.DataFrame, documents: pl.DataFrame, dropped: pl.DataFrame):
        self._by_document: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for chunk in chunks.iter_rows(named=True):
            self._by_document[chunk["document_id"]].append(chunk)
        self._documents: dict[str, str] = {}
        twins = dropped.filter(pl.col("duplicate_of").is_not_null()).drop("document_id")
        twins = twins.rename({"duplicate_of": "document_id"})
        # Documents come last, so that an address which is both names the document itself.
        for table in (twins, documents):
            for row in table.select("url", "fetched_url", "kind", "document_id").iter_rows(named=True):
                for address in (row["url"], row["fetched_url"]):
                    self._documents[address.rstrip("/")] = row["document_id"]
                    if row["kind"] == "pdf":
                        # People name a PDF by its path: pdfs/manual.pdf
                        self._documents["/".join(address.split("/")[-2:])] = row["document_id"]

    def __call__(self, row: TaskRow) -> dict[str, Any] | None:
        if row.source is None:
            pool = [chunk for chunks in self._by_document.values() for chunk in chunks]
        else:
            address, _, fragment = row.source.partition("#")
            document = self._documents.get(address.rstrip("/"))
            pool = self._by_document.get(document or "", [])
            page = re.fullmatch(r"page=(\d+)", fragment)
            if page:
                # A passage may begin on the page before; where the page is wrong, the document is still right.
                near = [c for c in pool if c["page"] is None or abs(c["page"] - int(page[1])) <= 1]
                pool = near or pool
        answer, question = set(words(row.answer)), set(words(row.question))
        best, best_score = None, -1.0
        for chunk in pool:
            have = set(words(passage_text(chunk["heading_path"], chunk["text"])))
            score = 2 * len(answer & have) / max(1, len(answer)) + len(question & have) / max(1, len(question))
            if score > best_score:
                best, best_score = chunk, score
        # Without a named source, a passage counts only if it holds most of the answer and of the question.
        return best if row.source is not None or best_score >= 2.2 else None


def _from_row(row: TaskRow, locate: _Locator) -> Example:
    chunk = None if row.context else locate(row)
    return Example(
        example_id=short_id("exm", row.question, row.answer, chunk["chunk_id"] if chunk else row.context),
        question=row.question,
        answer=row.answer,
        chunk_id=chunk["chunk_id"] if chunk else None,
        document_id=chunk["document_id"] if chunk else None,
        cluster_id=chunk["cluster_id"] if chunk else None,
        context=row.context,
        origin="human",
        teacher=None,
        kind="human",
        split=row.split,
        row=row.where,
    )


def validate_candidates(candidates: pl.DataFrame, chunks: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Split candidates into examples and rejected ones.

    A test row is kept whatever it looks like, unless it repeats another test row: it is the yardstick. A training row
    is rejected if it is malformed, not supported by its passage, asked before, or meets a test row.

    Returns:
        The tables `examples` and `rejected_examples`; their rows add up to the input's.
    """
    texts = {c["chunk_id"]: c["text"] for c in chunks.iter_rows(named=True)}
    rows = list(candidates.iter_rows(named=True))
    tests = [row for row in rows if row["split"] == "test"]
    test_clusters: dict[str, str] = {row["cluster_id"]: row["row"] for row in tests if row["cluster_id"]}
    test_grams = [(word_trigrams(row["question"]), row["row"]) for row in tests]
    examples: list[Example] = []
    rejected: list[RejectedExample] = []
    asked: dict[str, str] = {}
    for row in [*tests, *(row for row in rows if row["split"] != "test")]:
        verdict = _judge(row, texts, asked, test_clusters, test_grams)
        if verdict is None:
            asked[" ".join(words(row["question"]))] = row["row"] or row["example_id"]
            examples.append(Example(**row))
        else:
            names = ("example_id", "question", "answer", "chunk_id", "document_id", "origin", "kind")
            reason, detail = verdict
            rejected.append(RejectedExample(**{n: row[n] for n in names}, reject_reason=reason, reject_detail=detail))
    return {"examples": to_frame("examples", examples), "rejected_examples": to_frame("rejected_examples", rejected)}


def _judge(
    row: dict[str, Any],
    texts: dict[str, str],
    asked: dict[str, str],
    test_clusters: dict[str, str],
    test_grams: list[tuple[set[str], str]],
) -> tuple[str, str] | None:
    question, answer = row["question"], row["answer"]
    is_test = row["split"] == "test"
    before = asked.get(" ".join(words(question)))
    if before is not None:
        reason = "repeats_test_question" if not is_test and "test" in before else "repeated_question"
        return reason, f"asked in {before}"
    if is_test:
        return None
    if row["chunk_id"] is None and row["context"] is None:
        return "no_source", f"{row['row']}: its source is not in the corpus; look for it in dropped_documents"
    met = test_clusters.get(row["cluster_id"])
    if met is not None:
        return "document_of_test", f"its document also holds {met}"
    grams = word_trigrams(question)
    for other, where in test_grams:
        shared = len(grams & other) / max(1, min(len(grams), len(other)))
        if shared > MAX_QUESTION_OVERLAP:
            return "overlaps_test_question", f"{shared:.2f} of the word 3-grams of {where}"
    if len(words(answer)) > MAX_ANSWER_WORDS:
        return "answer_too_long", f"{len(words(answer))} words > {MAX_ANSWER_WORDS}"
    if row["origin"] != "human":
        if " ".join(words(answer)) not in " ".join(words(texts[str(row["chunk_id"])])):
            return "not_grounded", "the answer does not stand in its passage"
        if set(words(answer)) <= set(words(question)):
            return "answer_in_question", answer[:100]
    return None


def word_trigrams(text: str) -> set[str]:
    """Return the word 3-grams of a text; a shorter text is one gram."""
    tokens = words(text)
    return {" ".join(tokens[i : i + 3]) for i in range(max(1, len(tokens) - 2))}


def leaking_rows(training: pl.DataFrame, benchmark: pl.DataFrame, chunks: pl.DataFrame) -> list[tuple[str, str, str]]:
    """Return (reason, training question, test question) for every training row that meets a test row.

    Looks at what is really trained on, apart from `validate_candidates`: shared documents, equal or overlapping
    questions, and passages of test documents inside training prompts.
    """
    leaks = []
    test_rows = list(benchmark.iter_rows(named=True))
    clusters = {row["cluster_id"]: row["question"] for row in test_rows if row["cluster_id"]}
    held_out = {row["chunk_id"]: row["question"] for row in test_rows if row["chunk_id"]}
    for chunk, cluster in chunks.select("chunk_id", "cluster_id").iter_rows():
        if cluster in clusters:
            held_out.setdefault(chunk, clusters[cluster])
    grams = [(word_trigrams(row["question"]), row["question"]) for row in test_rows]
    for row in training.iter_rows(named=True):
        if row["cluster_id"] in clusters:
            leaks.append(("document_of_test", row["question"], clusters[row["cluster_id"]]))
        leaks += [("passage_of_test", row["question"], held_out[c]) for c in row["context_chunk_ids"] if c in held_out]
        own = word_trigrams(row["question"])
        leaks += [
            ("overlaps_test_question", row["question"], question)
            for other, question in grams
            if len(own & other) / max(1, min(len(own), len(other))) > MAX_QUESTION_OVERLAP
        ]
    return leaks


def build_splits(
    examples: pl.DataFrame,
    chunks: pl.DataFrame,
    description: str,
    task_type: TaskType,
    count_tokens: CountTokens,
    config: DatasetConfig,
    retrieval: RetrievalConfig,
    vectors: pl.DataFrame | None = None,
) -> dict[str, pl.DataFrame]:
    """Turn examples into training, validation and test rows.

    A training prompt holds what retrieval would bring for its question, with the supporting passage among it: the
    model learns to read the prompts that it will meet. The number of passages varies, so that neither one nor several
    become a habit. Passages of test documents never appear in one. Validation
    rows are whole documents too.

    Args:
        examples: The `examples` table.
        chunks: The `chunks` table.
        description: The task in words.
        task_type: Makes the prompt.
        count_tokens: Returns (tokens of the whole chat, tokens of the answer) for a chat and its answer.
        config: Splits and contexts.
        retrieval: The retriever's configuration.
        vectors: The `chunk_vectors` table.

    Returns:
        The tables `training_set`, `validation_set` and `benchmark`.
    """
    test = examples.filter(pl.col("split") == "test")
    train = examples.filter(pl.col("split") != "test")
    clusters = sorted(set(train["cluster_id"].drop_nulls().to_list()))
    random.Random(config.seed).shuffle(clusters)  # noqa: S311
    n_validation = round(len(clusters) * config.validation_fraction)
    validation_clusters = set(clusters[:n_validation])
    test_clusters = set(test["cluster_id"].drop_nulls().to_list())
    visible = chunks.filter(~pl.col("cluster_id").is_in(list(test_clusters)))
    passages = {c["chunk_id"]: passage_text(c["heading_path"], c["text"]) for c in chunks.iter_rows(named=True)}
    retriever = Retriever.build(visible, retrieval.candidates, vectors) if visible.height else None
    hits = retriever.search(train["question"].to_list(), config.n_contexts) if retriever else [[]] * train.height

    def row_of(example: dict[str, Any], split: str, context_ids: list[str]) -> DatasetRow:
        contexts = [example["context"]] if example["context"] else [passages[c] for c in context_ids]
        messages = task_type.prompt(description, example["question"], contexts)
        n_tokens, n_answer = count_tokens(messages, example["answer"])
        return DatasetRow(
            example_id=example["example_id"],
            split=split,
            question=example["question"],
            answer=example["answer"],
            chunk_id=example["chunk_id"],
            document_id=example["document_id"],
            cluster_id=example["cluster_id"],
            origin=example["origin"],
            kind=example["kind"],
            context_chunk_ids=context_ids,
            instruction=description,
            input=messages[-1]["content"],
            output=example["answer"],
            messages=[*messages, {"role": "assistant", "content": example["answer"]}],
            n_tokens=n_tokens,
            n_answer_tokens=n_answer,
        )

    rows: dict[str, list[DatasetRow]] = {"train": [], "validation": [], "test": []}
    for example, found in zip(train.iter_rows(named=True), hits, strict=True):
        chance = random.Random(f"{config.seed}:{example['example_id']}")  # noqa: S311
        n_contexts = chance.randint(1, config.n_contexts)
        # A row that brings its own passage is asked over that one.
        ids, gold = [hit.chunk_id for hit in found if not example["context"]][:n_contexts], example["chunk_id"]
        if gold and gold not in ids:
            # The passage that retrieval missed takes a random place among those it found.
            place = chance.randrange(n_contexts)
            ids = [*ids[:place], gold, *ids[place:]][:n_contexts]
        split = "validation" if example["cluster_id"] in validation_clusters else "train"
        rows[split].append(row_of(example, split, ids))
    for example in test.iter_rows(named=True):
        rows["test"].append(row_of(example, "test", [example["chunk_id"]] if example["chunk_id"] else []))
    return {
        "training_set": to_frame("training_set", rows["train"]),
        "validation_set": to_frame("validation_set", rows["validation"]),
        "benchmark": to_frame("benchmark", rows["test"]),
    }
