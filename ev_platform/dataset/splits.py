"""Training, validation and test rows: which example goes where, and which passages stand in its prompt.

What does not belong here: what makes an example (`validate`), and what meets a test row (`overlap`).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from ev_platform.dataset.locate import find_holders, find_shared
from ev_platform.dataset.overlap import words
from ev_platform.identity import fingerprint, short_id
from ev_platform.prompting import Messages, passage_text
from ev_platform.records import DatasetRow, to_frame
from ev_platform.retrieval import Retriever
from ev_platform.tasks.config import DatasetConfig, RetrievalConfig
from ev_platform.tasks.splitting import choose_groups
from ev_platform.tasks.types import TaskType

# From this many training rows on something is validated on, however few the documents are.
MIN_ROWS_TO_VALIDATE = 10

CountTokens = Callable[[Sequence[tuple[Messages, str]]], list[tuple[int, int]]]


def build_splits(
    examples: pl.DataFrame,
    chunks: pl.DataFrame,
    task_type: TaskType,
    instructions: str,
    count_tokens: CountTokens,
    config: DatasetConfig,
    retrieval: RetrievalConfig,
    vectors: pl.DataFrame | None = None,
) -> dict[str, pl.DataFrame]:
    """Turn examples into training, validation and test rows.

    Where the task type trains with passages, a training prompt holds what retrieval would bring for its question, with
    the supporting passage among it: the model learns to read the prompts that it will meet, distractors included
    (RAFT, Zhang et al. 2024). The number of passages varies, so that neither one nor several become a habit. A row
    that brings its own context is asked over that one. An unanswerable question is shown the passage it was asked of,
    which does not hold the answer, and of what retrieval brings only passages that fit the question less well.

    Validation rows are whole documents, with the rows that bring what a document says as their own context; of labelled
    texts, every label gives its share. Passages of test documents
    stand in no prompt that is trained on or validated with, passages of validation documents in none trained on.

    Args:
        examples: The `examples` table.
        chunks: The `chunks` table; empty where the task has no corpus.
        task_type: Makes the prompt.
        instructions: The system message.
        count_tokens: Returns (tokens of the whole chat, tokens of the answer) of each chat and its answer.
        config: Splits and contexts.
        retrieval: The retriever's configuration.
        vectors: The `chunk_vectors` table.

    Returns:
        The tables `training_set`, `validation_set` and `benchmark`, rows in the order of the examples.
    """
    test = examples.filter(pl.col("split") == "test").to_dicts()
    train = examples.filter(pl.col("split") != "test").to_dicts()
    is_validation = _choose_validation(train, chunks, config, stratify=task_type.has_classes)
    passages = {c["chunk_id"]: passage_text(c["heading_path"], c["text"]) for c in chunks.iter_rows(named=True)}
    context_ids: list[list[str]] = [[] for _ in train]
    if task_type.trains_with_passages:
        held_out = [row for row, held in zip(train, is_validation, strict=True) if held]
        hidden = {"test": _chunks_behind(test, chunks), "validation": _chunks_behind(held_out, chunks)}
        context_ids = _choose_passages(train, is_validation, chunks, hidden, config, retrieval, vectors)
    splits = ["validation" if held else "train" for held in is_validation] + ["test"] * len(test)
    gold = [[row["chunk_id"]] if row["chunk_id"] and not row["context"] else [] for row in test]
    context_ids += gold if task_type.trains_with_passages else [[] for _ in test]

    prompts = []
    for example, ids in zip([*train, *test], context_ids, strict=True):
        own = [example["context"]] if example["context"] and task_type.trains_with_passages else []
        contexts = own or [passages[i] for i in ids]
        prompts.append(task_type.prompt(instructions, example["question"], contexts))
    answers = [example["answer"] for example in [*train, *test]]
    counts = count_tokens(list(zip(prompts, answers, strict=True)))
    rows: dict[str, list[DatasetRow]] = {"train": [], "validation": [], "test": []}
    for example, split, ids, messages, (n_tokens, n_answer) in zip(
        [*train, *test], splits, context_ids, prompts, counts, strict=True
    ):
        rows[split].append(_row(example, split, ids, instructions, messages, n_tokens, n_answer))
    return {
        "training_set": to_frame("training_set", rows["train"]),
        "validation_set": to_frame("validation_set", rows["validation"]),
        "benchmark": to_frame("benchmark", rows["test"]),
    }


def _row(
    example: dict[str, Any],
    split: str,
    context_ids: list[str],
    instructions: str,
    messages: Messages,
    n_tokens: int,
    n_answer_tokens: int,
) -> DatasetRow:
    return DatasetRow(
        example_id=example["example_id"],
        split=split,
        question=example["question"],
        answer=example["answer"],
        answers=example["answers"],
        answer_start=example["answer_start"],
        is_answerable=example["is_answerable"],
        context=example["context"],
        chunk_id=example["chunk_id"],
        document_id=example["document_id"],
        cluster_id=example["cluster_id"],
        origin=example["origin"],
        kind=example["kind"],
        context_chunk_ids=context_ids,
        instruction=instructions,
        input=messages[-1]["content"],
        output=example["answer"],
        messages=[*messages, {"role": "assistant", "content": example["answer"]}],
        n_tokens=n_tokens,
        n_answer_tokens=n_answer_tokens,
        request_id=example["request_id"],
    )


def _choose_validation(
    train: Sequence[dict[str, Any]], chunks: pl.DataFrame, config: DatasetConfig, *, stratify: bool
) -> list[bool]:
    """Return for each training row whether it is held out: by its document, else by its question."""
    groups = _group_documents(train, chunks)
    in_order = sorted(set(groups), key=lambda group: fingerprint([config.seed, group]))
    if stratify:
        label = {group: row["answer"] for group, row in zip(reversed(groups), reversed(train), strict=True)}
        in_order.sort(key=lambda group: label[group])  # stable: by the hash within a label
        # Every n-th of them: each label gives its share, and the whole does too, also where a label has few rows.
        fraction = config.validation_fraction
        chosen = {group for n, group in enumerate(in_order) if int((n + 1) * fraction + 0.5) > int(n * fraction + 0.5)}
    else:
        chosen = choose_groups(groups, config.validation_fraction, config.seed)
    if not chosen and config.validation_fraction > 0 and len(train) >= MIN_ROWS_TO_VALIDATE and len(in_order) > 1:
        sizes = Counter(groups)
        chosen = {min(in_order, key=lambda group: sizes[group])}
    return [group in chosen for group in groups]


def _group_documents(train: Sequence[dict[str, Any]], chunks: pl.DataFrame) -> list[str]:
    """Return the document of each row, else its question; one for all the documents that say what one context says."""
    groups = [row["cluster_id"] or short_id("qst", " ".join(words(row["question"]))) for row in train]
    bringing: dict[str, list[str]] = defaultdict(list)
    resting: dict[tuple[str, str], None] = {}
    texts = dict(chunks.select("chunk_id", "text").iter_rows())
    for row, group in zip(train, groups, strict=True):
        if row["context"]:
            bringing[row["context"]].append(group)
        elif row["chunk_id"] in texts:
            resting[texts[row["chunk_id"]], group] = None
    contexts, rests = list(bringing), list(resting)
    same = [(own[0], group) for own in bringing.values() for group in own[1:]]
    best = find_shared(contexts, chunks["text"].to_list())
    same += [(bringing[contexts[k]][0], chunks["cluster_id"][n]) for k, (n, _, _) in best.items()]
    # The passage that a row rests on is never taken out of its prompt, so it must not be one that is held out.
    held = find_holders([text for text, _ in rests], contexts)
    same += [(bringing[contexts[k]][0], rests[n][1]) for n, k in held]
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while group in parent:
            group = parent[group]
        return group

    for pair in same:
        low, high = sorted(map(root, pair))
        if low != high:
            parent[high] = low
    return [root(group) for group in groups]


def _chunks_behind(rows: Sequence[dict[str, Any]], chunks: pl.DataFrame) -> set[str]:
    """Return the chunks of the rows' documents, and those that say what rows bring as their own context."""
    clusters = {row["cluster_id"] for row in rows}
    said = find_shared(chunks["text"].to_list(), list(dict.fromkeys(row["context"] for row in rows if row["context"])))
    ids = chunks.select("chunk_id", "cluster_id").iter_rows()
    return {chunk_id for n, (chunk_id, cluster_id) in enumerate(ids) if cluster_id in clusters or n in said}


def _choose_passages(
    rows: Sequence[dict[str, Any]],
    is_validation: Sequence[bool],
    chunks: pl.DataFrame,
    hidden: dict[str, set[str]],
    config: DatasetConfig,
    retrieval: RetrievalConfig,
    vectors: pl.DataFrame | None,
) -> list[list[str]]:
    """Return the chunks in the prompt of each row that does not bring its own context."""
    visible = chunks.filter(~pl.col("chunk_id").is_in(list(hidden["test"])))
    asking = [n for n, row in enumerate(rows) if not row["context"]]
    chosen: list[list[str]] = [[] for _ in rows]
    if not asking:
        return chosen
    found: list[list[str]] = [[] for _ in asking]
    if visible.height:
        retriever = Retriever.build(visible, retrieval.candidates, vectors)
        # More than a prompt holds, since some may not stand in it.
        hits = retriever.search([rows[n]["question"] for n in asking], config.n_contexts + retrieval.candidates)
        found = [[hit.chunk_id for hit in own] for own in hits]
    cluster = dict(chunks.select("chunk_id", "cluster_id").iter_rows())
    held = {c: set(words(passage_text(h, t))) for c, h, t in chunks["chunk_id", "heading_path", "text"].iter_rows()}
    for n, own in zip(asking, found, strict=True):
        row, gold = rows[n], rows[n]["chunk_id"]
        if not is_validation[n]:
            own = [c for c in own if c not in hidden["validation"]]
        if not row["is_answerable"]:
            own = _without_answers(row, own, cluster, held)
        chosen[n] = _mix(row, own, gold, config)
    return chosen


def _without_answers(
    row: dict[str, Any], found: Sequence[str], cluster: dict[str, str], held: dict[str, set[str]]
) -> list[str]:
    """Leave out what may answer an unanswerable question: its own document, and what holds as much of its words."""
    asked, gold = set(words(row["question"])), row["chunk_id"]
    n_gold = len(asked & held[gold]) if gold else len(asked)
    return [c for c in found if cluster[c] != row["cluster_id"] and len(asked & held[c]) < n_gold]


def _mix(row: dict[str, Any], found: Sequence[str], gold: str | None, config: DatasetConfig) -> list[str]:
    """Return a random number of passages, the row's own among them."""
    chance = random.Random(f"{config.seed}:{row['example_id']}")  # noqa: S311 - sampling, not secrets
    n_contexts = chance.randint(1, config.n_contexts)
    ids = list(found[:n_contexts])
    if gold and gold not in ids:
        # The passage that retrieval missed takes a random place among those it found.
        place = chance.randrange(n_contexts)
        ids = [*ids[:place], gold, *ids[place:]][:n_contexts]
    return ids
