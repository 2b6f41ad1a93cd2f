"""Hand-written rows and the passages that support them: by the address that a row names, else by its words.

What belongs here: which chunk a row rests on, and which rows share their context. What does not: reading rows
(`tasks.rows`) and writing more of them (`generate`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import polars as pl

from ev_platform.corpus.clean import CLUSTER_JACCARD
from ev_platform.corpus.duplicates import similar_pairs
from ev_platform.corpus.shingles import shingle_texts
from ev_platform.identity import short_id
from ev_platform.prompting import passage_text
from ev_platform.records import Example
from ev_platform.tasks.rows import TaskRow

# A row that names no source takes a passage only if it holds most of the row's words: the score is twice the share of
# the answer's plus the share of the question's, so 2.2 is the whole answer and a fifth of the question.
MIN_SCORE = 2.2
# A passage says what another text says if that holds half of its word 5-grams, or, of a longer one, 60 of them, which
# is a paragraph.
MAX_SHARE = 0.5
MAX_SHINGLES = 60


def words(text: str) -> list[str]:
    """Return the lower-case words and numbers of a text."""
    return re.findall(r"\w+", text.lower())


def plain(text: str) -> str:
    """Return the words of a text with single blanks between them; texts that agree in it say the same."""
    return " ".join(words(text))


def locate_rows(rows: Sequence[TaskRow], locator: Locator) -> list[Example]:
    """Return the rows as examples, each with the chunk that supports it, where it has no passage of its own.

    A row that has one belongs to the document that it, or else another row with that passage, names as its source.

    Args:
        rows: Of both splits.
        locator: Over the corpus.

    Returns:
        One example a row, in their order.
    """
    clusters = cluster_contexts([row.context for row in rows if row.context])
    chunks = [None if row.context and row.source is None else locator.find(row) for row in rows]
    documents: dict[str, str] = {}
    for row, chunk in zip(rows, chunks, strict=True):
        if row.context and chunk:
            documents.setdefault(clusters[row.context], chunk["cluster_id"])
    clusters = {text: documents.get(name, name) for text, name in clusters.items()}
    return [_example(row, chunk, clusters) for row, chunk in zip(rows, chunks, strict=True)]


def cluster_contexts(contexts: Sequence[str]) -> dict[str, str]:
    """Return the cluster of each context: those that agree in their words share one, and so do near-duplicates.

    The name of a cluster is made from the words of its members, so that rows elsewhere do not change it.
    """
    names = {text: short_id("ctx", plain(text)) for text in dict.fromkeys(contexts)}
    first: dict[str, str] = {}  # of each name; the others have the same words
    for text, name in names.items():
        first.setdefault(name, text)
    distinct = list(first)
    parent = {name: name for name in distinct}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for a, b, _ in similar_pairs([first[name] for name in distinct], CLUSTER_JACCARD):
        low, high = sorted((root(distinct[a]), root(distinct[b])))
        parent[high] = low
    return {text: root(name) for text, name in names.items()}


def find_shared(texts: Sequence[str], others: Sequence[str]) -> dict[int, tuple[int, int, int]]:
    """Return the texts that say what other texts say, wholly or in a paragraph.

    Returns:
        Number of the text to the number of the other text with which it shares the most, how many of its word 5-grams
        stand in any of the others, and how many it has.
    """
    if not texts or not others:
        return {}
    known, counts = shingle_texts(others)
    known, first = np.unique(known, return_index=True)
    owners = np.repeat(np.arange(len(others)), counts)[first]
    hashes, counts = shingle_texts(texts)
    places = np.minimum(np.searchsorted(known, hashes), max(0, len(known) - 1))
    is_known = known[places] == hashes if len(known) else np.zeros(len(hashes), bool)
    found: dict[int, tuple[int, int, int]] = {}
    end = 0
    for n, count in enumerate(counts.tolist()):
        end += count
        own = places[end - count : end][is_known[end - count : end]]
        if len(own) and len(own) >= min(MAX_SHARE * count, MAX_SHINGLES):
            found[n] = int(np.bincount(owners[own]).argmax()), len(own), count
    return found


def find_holders(texts: Sequence[str], others: Sequence[str]) -> list[tuple[int, int]]:
    """Return every pair of a text and another text that holds it, wholly or in a paragraph, among whatever else."""
    if not texts or not others:
        return []
    hashes, counts = shingle_texts(texts)
    other_hashes, other_counts = shingle_texts(others)
    owners: dict[int, list[int]] = defaultdict(list)
    for n, value in zip(np.repeat(np.arange(len(texts)), counts).tolist(), hashes.tolist(), strict=True):
        owners[value].append(n)
    is_known = np.isin(other_hashes, hashes)
    holders = np.repeat(np.arange(len(others)), other_counts)[is_known].tolist()
    shared: Counter[tuple[int, int]] = Counter()
    for k, value in zip(holders, other_hashes[is_known].tolist(), strict=True):
        shared.update((n, k) for n in owners[value])
    return sorted((n, k) for (n, k), count in shared.items() if count >= min(MAX_SHARE * counts[n], MAX_SHINGLES))


def _example(row: TaskRow, chunk: dict[str, Any] | None, clusters: dict[str, str]) -> Example:
    cluster_id = chunk["cluster_id"] if chunk else clusters[row.context] if row.context else None
    if row.context:
        chunk = None
    return Example(
        example_id=short_id("exm", row.question, row.answer, chunk["chunk_id"] if chunk else row.context),
        question=row.question,
        answer=row.answer,
        answers=list(row.answers) or [row.answer],
        answer_start=row.answer_start,
        is_answerable=row.is_answerable,
        chunk_id=chunk["chunk_id"] if chunk else None,
        document_id=chunk["document_id"] if chunk else None,
        cluster_id=cluster_id,
        context=row.context,
        origin="human",
        teacher=None,
        kind="human",
        difficulty=None,
        register=None,
        evidence=None,
        confidence=None,
        split=row.split,
        row=row.where,
        call_id=None,
        prompt_version=None,
        cost_usd=None,
    )


class Locator:
    """Finds the chunk that supports a hand-written row.

    Args:
        chunks: The `chunks` table.
        documents: The `clean_documents` table.
        dropped: The `dropped_documents` table; an address that was dropped as a duplicate stands for the survivor.
    """

    def __init__(self, chunks: pl.DataFrame, documents: pl.DataFrame, dropped: pl.DataFrame):
        self._chunks = chunks.to_dicts()
        self._by_document: dict[str, list[int]] = defaultdict(list)
        holders: dict[str, list[int]] = defaultdict(list)
        for number, chunk in enumerate(self._chunks):
            self._by_document[chunk["document_id"]].append(number)
            for word in set(words(passage_text(chunk["heading_path"], chunk["text"]))):
                holders[word].append(number)
        self._holders = {word: np.array(numbers) for word, numbers in holders.items()}
        self._documents: dict[str, str] = {}
        self._by_path_end: dict[tuple[str, ...], set[str]] = defaultdict(set)
        twins = dropped.filter(pl.col("duplicate_of").is_not_null()).drop("document_id")
        twins = twins.rename({"duplicate_of": "document_id"})
        # Documents come last, so that an address which is both names the document itself.
        for table in (twins, documents):
            for row in table.select("url", "fetched_url", "document_id").iter_rows(named=True):
                for address in (row["url"], row["fetched_url"]):
                    self._documents[address.rstrip("/")] = row["document_id"]
                    parts = _path_parts(address)
                    for n in range(1, len(parts) + 1):
                        self._by_path_end[parts[-n:]].add(row["document_id"])

    def find(self, row: TaskRow) -> dict[str, Any] | None:
        """Return the chunk that supports a row, or None where its source is not in the corpus or nothing fits."""
        if row.source is None:
            pool = np.arange(len(self._chunks))
        else:
            address, _, fragment = row.source.partition("#")
            # A row of a file of texts is a document of its own: task:NAME/unstructured.csv#row=12
            document = self._documents.get(row.source) or self._document(address)
            pool = np.array(self._narrowed(self._by_document.get(document or "", []), fragment), dtype=np.int64)
        if not pool.size:
            return None
        scores = self._scores(row)[pool]
        best = int(scores.argmax())
        # In a named document the best passage is good enough; the row's author knows that the answer is there.
        if row.source is None and scores[best] < MIN_SCORE:
            return None
        return self._chunks[pool[best]]

    def _document(self, address: str) -> str | None:
        known = self._documents.get(address.rstrip("/"))
        if known or "://" in address:
            return known
        # People name a file by its path, from wherever they stand: pdfs/manual.pdf, ../docs/brakes.md
        parts = _path_parts(address)
        for n in range(len(parts), 0, -1):
            found = self._by_path_end.get(parts[-n:])
            if found:
                return next(iter(found)) if len(found) == 1 else None
        return None

    def _narrowed(self, pool: list[int], fragment: str) -> list[int]:
        """Leave the chunks of the page or under the heading that a source names; all, if none are."""
        page = re.fullmatch(r"page=(\d+)", fragment)
        if page:
            # A passage may begin on the page before; where the page is wrong, the document is still right.
            near = [n for n in pool if (at := self._chunks[n]["page"]) is None or abs(at - int(page[1])) <= 1]
            return near or pool
        slug = _slug(unquote(fragment.strip("#")))
        return [n for n in pool if slug and slug in _heading_slugs(self._chunks[n])] or pool

    def _scores(self, row: TaskRow) -> np.ndarray:
        """Return of each chunk how much of the row's words it holds, 0 to 3."""
        score = np.zeros(len(self._chunks))
        for weight, text in ((2, row.answer), (1, row.question)):
            asked = set(words(text))
            count = np.zeros(len(self._chunks), dtype=np.int64)
            for word in asked:
                holders = self._holders.get(word)
                if holders is not None:
                    count[holders] += 1
            score += weight * count / max(1, len(asked))
        return score


def _path_parts(address: str) -> tuple[str, ...]:
    path = urlsplit(address).path if "://" in address or address.startswith("file:") else address
    return tuple(unquote(part) for part in re.split(r"[/\\]", path) if part not in ("", ".", ".."))


def _heading_slugs(chunk: dict[str, Any]) -> set[str]:
    """Return the slugs of the headings over a chunk, and of those in it: short sections are joined into one chunk."""
    inside = re.findall(r"^#{1,6}\s+(.+?)\s*#*$", chunk["text"], re.MULTILINE)
    return {_slug(heading) for heading in [*chunk["heading_path"].split(" > "), *inside]}


def _slug(heading: str) -> str:
    """Return a heading as Markdown renderers write it into addresses: `Automatic Car Wash` as `automatic-car-wash`."""
    return "-".join(re.findall(r"[\w]+", heading.casefold().replace("_", "-")))
