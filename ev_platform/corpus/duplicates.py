"""Pairs of texts that say nearly the same: MinHash LSH proposes pairs, the true Jaccard decides.

What belongs here: signatures, candidate pairs and their verification, for texts in memory. What does not: words and
shingles (`shingles`), which of two duplicates survives (`clean`), and lines that a site repeats (`boilerplate`).

Everything is done on blocks of documents in numpy, on as many threads as there are cores; the result does not depend
on their number. Texts of n words cost O(n) time and, beyond one block, 8 bytes a distinct shingle.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ev_platform.corpus.shingles import letter_table, mix_bits, shingle_texts
from ev_platform.errors import UserError

# A pair right at the threshold becomes a candidate with this chance, a more similar pair with a higher one.
RECALL_AT_THRESHOLD = 0.99
MAX_HASHES = 300
# In larger groups (copies of one text, or equal band keys) not every pair is formed: see `similar_pairs`.
MAX_GROUP = 50
NEIGHBOURS = 4
BLOCK_CHARS = 1 << 18  # its arrays fit the cache of a core
_BAND_BASE = np.uint64(0xD6E8FEB86659FD93)
_SEED = 1


def similar_pairs(
    texts: Sequence[str], threshold: float, *, bands: int | None = None, rows: int | None = None
) -> list[tuple[int, int, float]]:
    """Find pairs of texts whose sets of word 5-grams have at least this Jaccard similarity.

    Candidates come from MinHash LSH (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3);
    then the Jaccard of the sets themselves is computed, so no pair below the threshold is returned. `shingle_texts`
    says what a word is: texts that differ in case, white space and punctuation only have Jaccard 1 whatever their
    length, and a text without words is similar to nothing.

    All pairs are sought except in very large groups, where their number would grow with the square:

    - Of more than `MAX_GROUP` texts with the same shingles, the later ones are paired with the first, and with
      whatever comes before the first and is similar to it. Dropping each text for an earlier one, and joining pairs
      into clusters, lose nothing by it.
    - Of more than `MAX_GROUP` texts that one band cannot tell apart (pages of one template), each is compared with
      the first and with `NEIGHBOURS` others that agree with it in the next band too, in every such band. Near copies
      agree in many bands and are still found; pairs next to the threshold may be lost there.

    Args:
        texts: The documents.
        threshold: Jaccard similarity above 0, at most 1.
        bands: Bands of the index; by default `lsh_shape` chooses bands and rows.
        rows: Hashes of one band.

    Returns:
        (i, j, Jaccard) with i < j, sorted.

    Raises:
        UserError: The threshold is outside its range.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"A Jaccard threshold of {threshold} finds no duplicates: choose one above 0 and at most 1.")
    if bands is None or rows is None:
        bands, rows = lsh_shape(threshold)
    multipliers = np.random.default_rng(_SEED).integers(0, 1 << 32, bands * rows, dtype=np.uint32) | np.uint32(1)

    signatures = np.zeros((len(texts), len(multipliers)), np.uint32)

    def sketch(span: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        return _sketch(texts[slice(*span)], multipliers, signatures[slice(*span)])

    letter_table()  # once, before the threads ask for it
    shingles: list[np.ndarray] = []  # of each text: sorted, distinct
    # Texts with the same shingles are compared once: `members` maps the first of them to all of them.
    members: dict[int, list[int]] = {}
    first_of: dict[tuple[int, int], int] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for hashes, counts, fingerprints in pool.map(sketch, _blocks(texts)):
            for text, fingerprint in zip(np.split(hashes, np.cumsum(counts)[:-1]), fingerprints, strict=True):
                if text.size:
                    first = first_of.setdefault((fingerprint, text.size), len(shingles))
                    members.setdefault(first, []).append(len(shingles))
                shingles.append(text)
    if not members:
        return []
    distinct = np.fromiter(members, np.int64)
    sizes = np.array([len(hashes) for hashes in shingles])
    candidates = _likely(_candidates(signatures, distinct, bands, rows), signatures, sizes, threshold)

    found = []
    for group in members.values():
        lefts = group if len(group) <= MAX_GROUP else group[:1]
        found += [(a, b, 1.0) for position, a in enumerate(lefts) for b in group[position + 1 :]]
    for a, b, jaccard in _verified(candidates, shingles, threshold):
        lefts = members[a] if len(members[a]) <= MAX_GROUP else [a]
        found += [(min(x, y), max(x, y), jaccard) for x in lefts for y in members[b]]
    return sorted(found)


def lsh_shape(threshold: float) -> tuple[int, int]:
    """Choose bands and rows of an index that loses few pairs at the threshold.

    A pair of similarity s shares at least one of b bands of r rows with chance 1 - (1 - s^r)^b. For each r, the least
    b that reaches `RECALL_AT_THRESHOLD` at the threshold is ln(1 - recall) / ln(1 - threshold^r); the largest r
    within `MAX_HASHES` hashes proposes the fewest dissimilar pairs. 0.5 gives 72 x 4, 0.8 gives 32 x 9. Below 0.016
    the hashes do not suffice and some pairs are lost.

    Returns:
        (bands, rows).
    """
    best = (MAX_HASHES, 1)
    for rows in range(1, 17):
        chance = threshold**rows
        bands = 1 if chance == 1 else math.ceil(math.log(1 - RECALL_AT_THRESHOLD) / math.log1p(-chance))
        if bands * rows > MAX_HASHES:
            break
        best = (bands, rows)
    return best


def _blocks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    start = n_chars = 0
    for index, text in enumerate(texts):
        if index > start and n_chars + len(text) > BLOCK_CHARS:
            yield start, index
            start, n_chars = index, 0
        n_chars += len(text) + 1
    if start < len(texts):
        yield start, len(texts)


def _sketch(
    texts: Sequence[str], multipliers: np.ndarray, signatures: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Shingle texts, and fill in their signatures (texts, hashes).

    Returns:
        The shingles and their number per text, as `shingle_texts` gives them; a fingerprint of each text's set.
    """
    hashes, counts = shingle_texts(texts)
    filled = counts > 0
    starts = (np.cumsum(counts) - counts)[filled]
    fingerprints = np.zeros(len(texts), np.uint64)
    if len(starts):
        fingerprints[filled] = np.add.reduceat(hashes, starts)
        short = hashes.astype(np.uint32)
        product = np.empty_like(short)
        minima = np.empty((len(multipliers), len(starts)), np.uint32)
        # The shingles are random numbers already; an odd factor modulo 2^32 permutes them (Dietzfelbinger 1997).
        for index, multiplier in enumerate(multipliers):
            np.multiply(short, multiplier, out=product)
            np.minimum.reduceat(product, starts, out=minima[index])
        signatures[filled] = minima.T
    return hashes, counts, fingerprints.tolist()


def _candidates(signatures: np.ndarray, distinct: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Pair those texts that share a band; return pairs (a, b) with a < b as sorted, distinct codes a * n + b."""
    n = len(signatures)
    codes = np.empty(0, np.int64)
    pending: list[np.ndarray] = []
    keys = _band_keys(signatures, distinct, 0, rows)
    for band in range(bands):
        following = _band_keys(signatures, distinct, (band + 1) % bands * rows, rows)
        order = np.argsort(keys, kind="stable")
        same = keys[order[1:]] == keys[order[:-1]]
        shared = order[np.append(same, False) | np.append(False, same)]
        # Within a group, texts that agree in the next band too stand side by side.
        shared = shared[np.lexsort((shared, following[shared], keys[shared]))]
        group = np.cumsum(np.append(False, keys[shared[1:]] != keys[shared[:-1]])[: len(shared)])
        size = np.bincount(group)
        reach = np.where(size <= MAX_GROUP, size - 1, NEIGHBOURS)[group]
        for distance in range(1, int(reach.max(initial=0)) + 1):
            here = np.flatnonzero((group[distance:] == group[:-distance]) & (reach[:-distance] >= distance))
            pending.append(_pair_codes(distinct[shared[here]], distinct[shared[here + distance]], n))
        if size.max(initial=0) > MAX_GROUP:
            firsts = np.full(len(size), len(distinct))
            np.minimum.at(firsts, group, shared)
            others = (size[group] > MAX_GROUP) & (shared != firsts[group])
            pending.append(_pair_codes(distinct[firsts[group][others]], distinct[shared[others]], n))
        if sum(map(len, pending)) > 1 << 20 or band == bands - 1:
            codes = np.concatenate([codes, *pending])
            codes.sort()
            codes = codes[np.diff(codes, prepend=-1) != 0]
            pending = []
        keys = following
    return codes


def _band_keys(signatures: np.ndarray, distinct: np.ndarray, start: int, rows: int) -> np.ndarray:
    keys = np.zeros(len(distinct), np.uint64)
    for column in range(start, start + rows):
        keys = keys * _BAND_BASE + signatures[distinct, column]
    return mix_bits(keys)


def _pair_codes(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    return np.minimum(a, b) * n + np.maximum(a, b)


def _likely(codes: np.ndarray, signatures: np.ndarray, sizes: np.ndarray, threshold: float) -> np.ndarray:
    """Leave out pairs whose sizes or signatures rule the threshold out; return (pairs, 2) positions.

    The share of equal hashes estimates the Jaccard with the standard error of a proportion; a pair at the threshold
    falls four of them short with a chance of 3 in 100,000.
    """
    n, n_hashes = signatures.shape
    least = threshold - 4 * math.sqrt(threshold * (1 - threshold) / n_hashes)
    kept = [np.empty((0, 2), np.int64)]
    for start in range(0, len(codes), 1 << 13):
        pairs = np.stack(np.divmod(codes[start : start + (1 << 13)], n), axis=1)
        small, large = np.sort(sizes[pairs], axis=1).T
        pairs = pairs[small >= threshold * large * (1 - 1e-12)]
        agree = np.count_nonzero(signatures[pairs[:, 0]] == signatures[pairs[:, 1]], axis=1)
        kept.append(pairs[agree >= least * n_hashes])
    return np.concatenate(kept)


def _verified(candidates: np.ndarray, shingles: list[np.ndarray], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs of texts whose sets of shingles have at least this Jaccard, with it."""
    if not len(candidates):
        return
    used, positions = np.unique(candidates, return_inverse=True)
    sizes = np.array([len(shingles[index]) for index in used])
    # Shingles become small numbers, so that membership in the left text is one look-up in a table.
    codes = np.unique(np.concatenate([shingles[index] for index in used]), return_inverse=True)[1].astype(np.int32)
    sets = np.split(codes, np.cumsum(sizes)[:-1])
    is_left = np.zeros(int(codes.max()) + 1, bool)
    lefts, rights = positions.reshape(-1, 2).T
    starts = np.flatnonzero((np.diff(lefts, prepend=-1) != 0) | (np.arange(len(lefts)) % 256 == 0)).tolist()
    for start, end in zip(starts, [*starts[1:], len(lefts)], strict=True):
        left, others = lefts[start], rights[start:end]
        is_left[sets[left]] = True
        offsets = np.cumsum(sizes[others]) - sizes[others]
        common = np.add.reduceat(is_left[np.concatenate([sets[b] for b in others])], offsets, dtype=np.int64)
        is_left[sets[left]] = False
        jaccard = common / (sizes[left] + sizes[others] - common)
        for position in np.flatnonzero(jaccard >= threshold):
            yield int(used[left]), int(used[others[position]]), float(jaccard[position])
