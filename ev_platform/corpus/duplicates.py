"""Pairs of texts that say nearly the same: MinHash LSH finds candidates, the true Jaccard decides."""

from __future__ import annotations

import re
from collections.abc import Sequence

SHINGLE_WORDS = 5
NUM_PERM = 128


def similar_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    """Find pairs of texts whose sets of word 5-grams have at least this Jaccard similarity.

    Candidates come from MinHash LSH (Broder 1997; datasketch), then the true Jaccard is computed, so the threshold
    means what it says.

    Returns:
        (i, j, Jaccard) with i < j, sorted.
    """
    from datasketch import MinHash, MinHashLSH

    shingles = [_shingles(text) for text in texts]
    # The index is asked for less than the threshold so that MinHash noise loses few true pairs.
    lsh = MinHashLSH(threshold=max(0.1, threshold - 0.2), num_perm=NUM_PERM)
    pairs = set()
    for index, grams in enumerate(shingles):
        if not grams:
            continue
        signature = MinHash(num_perm=NUM_PERM, seed=1)
        signature.update_batch([gram.encode() for gram in grams])
        pairs |= {(other, index) for other in lsh.query(signature)}
        lsh.insert(index, signature)
    found = []
    for a, b in sorted(pairs):
        union = len(shingles[a] | shingles[b])
        jaccard = len(shingles[a] & shingles[b]) / union
        if jaccard >= threshold:
            found.append((a, b, jaccard))
    return found


def _shingles(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return (
        {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}
        if words
        else set()
    )
