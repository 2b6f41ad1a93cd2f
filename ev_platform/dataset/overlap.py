"""Which questions are the same: of train and test rows (leakage), and within a dataset (near-duplicates).

What belongs here: measures of likeness and the pairs that they find, fast enough for ten thousand rows against ten
thousand. What does not: which row of a pair goes (`validate`), and what stops a run (the asset checks).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from ev_platform.dataset.grounding import content_stems, opposites
from ev_platform.dataset.locate import find_holders, find_shared
from ev_platform.dataset.quantities import NUMBER_WORDS
from ev_platform.tasks.config import DatasetConfig

Row = Mapping[str, Any]
Embed = Callable[[Sequence[str]], np.ndarray]

# A training question that shares more than this share of the shorter one's word 3-grams with a test question may ask
# the same; "what is the name of the" alone reaches it, so the embeddings have to confirm it. Of 171 such pairs between
# SQuAD's train subset and its dev set, none asks the same and one has a cosine over 0.72; of 4,260
# in Banking77, the same ask lies above 0.75 ("I lost my phone!" and "I lost my phone, what should I do?", 0.78).
MAX_QUESTION_OVERLAP = 0.6
MIN_CONFIRMING_COSINE = 0.75
# Two rows of SQuAD's dev set ask the same words of another passage and are answered otherwise ("where does the rhine
# begin"): they have two and three words that carry meaning.
MIN_SPECIFIC = 4
MIN_ANSWER_F1 = 0.5
# Rewordings in the labelled set lie at 0.93 and above; so do questions about another part ("single-phase" and
# "three-phase", 0.93; "left" and "right scroll button" in the vehicle manual, 0.99), which their answers tell apart.
NEAR_COSINE = 0.92
_ASKING = "who whom whose when where why how what which long many much often far old"
_ASKS = frozenset(_ASKING.split())
_REASONS = (
    "document_of_test",
    "passage_of_test",
    "equals_test_question",
    "overlaps_test_question",
    "resembles_test_question",
)
_BLOCK = 2048  # rows of one product: 2048 x 10,570 cosines are 87 MB


class Overlap(NamedTuple):
    """A training row that meets a test row.

    Attributes:
        reason: `document_of_test`, `passage_of_test`, `equals_test_question`, `overlaps_test_question` or
            `resembles_test_question`.
        training_question: The one.
        test_question: The other.
        figure: Share of word 3-grams, or cosine; 1 where something is equal.
        example_id: Of the training row.
        test_example_id: Of the test row.
    """

    reason: str
    training_question: str
    test_question: str
    figure: float
    example_id: str
    test_example_id: str


class Vectors:
    """An embedder that embeds each text once, however often it is asked.

    Args:
        embed: Returns unit vectors, one row for each text; the bundled MiniLM where None.
    """

    def __init__(self, embed: Embed | None = None):
        self._embed = embed
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of some texts, (n, d)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            if self._embed is None:
                from ev_platform.retrieval import embed_once

                self._embed = embed_once
            self._known |= dict(zip(new, self._embed(new), strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else np.zeros((0, 1), np.float32)


def words(text: str) -> list[str]:
    """Return the lower-case words and numbers of a text; the unit of every overlap here."""
    return re.findall(r"\w+", text.lower())


def word_trigrams(text: str) -> set[str]:
    """Return the word 3-grams of a text; a shorter text is one gram."""
    tokens = words(text)
    return {" ".join(tokens[i : i + 3]) for i in range(max(1, len(tokens) - 2))}


def normalise(text: str) -> str:
    """Return the words of a text without case, accents, punctuation and articles, numbers as digits."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    plain = re.sub(r"(?<=\w)['’](?=\w)", "", plain)
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
    plain = re.sub(r"(\d)(?=[^\W\d])", r"\1 ", plain)  # 22kW, 22 kW
    kept = [str(NUMBER_WORDS.get(w, w)) for w in re.findall(r"\w+", plain) if w not in ("a", "an", "the")]
    return " ".join(kept) or " ".join(text.split()).casefold()


def gram_overlaps(one: Sequence[str], other: Sequence[str], least: float) -> Iterator[tuple[int, int, float, float]]:
    """Yield (row of one, row of other, share of the shorter's grams, share of the longer's) for pairs that share grams.

    Args:
        one: Texts.
        other: Texts.
        least: Lowest share of the shorter text's word 3-grams.
    """
    from scipy.sparse import csr_matrix

    numbers: dict[str, int] = {}
    matrices, sizes = [], []
    for texts in (one, other):
        grams = [word_trigrams(text) for text in texts]
        columns = [numbers.setdefault(gram, len(numbers)) for own in grams for gram in sorted(own)]
        n_grams = np.array([len(own) for own in grams], dtype=np.int32)
        matrices.append((columns, np.concatenate([[0], np.cumsum(n_grams)])))
        sizes.append(n_grams)
    left, right = (
        csr_matrix((np.ones(len(columns), np.float32), columns, starts), shape=(len(starts) - 1, max(1, len(numbers))))
        for columns, starts in matrices
    )
    for start in range(0, left.shape[0], _BLOCK):  # pyright: ignore[reportOptionalSubscript]
        shared = (left[start : start + _BLOCK] @ right.T).tocoo()
        rows, columns = shared.row + start, shared.col
        short = np.minimum(sizes[0][rows], sizes[1][columns])
        long = np.maximum(sizes[0][rows], sizes[1][columns])
        for i in np.flatnonzero(shared.data >= least * short):
            yield int(rows[i]), int(columns[i]), float(shared.data[i] / short[i]), float(shared.data[i] / long[i])


def cosine_overlaps(one: np.ndarray, other: np.ndarray, least: float) -> Iterator[tuple[int, int, float]]:
    """Yield (row of one, row of other, cosine) for the pairs of unit vectors from a cosine on."""
    for start in range(0, len(one), _BLOCK):
        cosines = one[start : start + _BLOCK] @ other.T
        for row, column in zip(*np.nonzero(cosines >= least), strict=True):
            yield int(row) + start, int(column), float(cosines[row, column])


def find_overlaps(
    training: pl.DataFrame,
    benchmark: pl.DataFrame,
    chunks: pl.DataFrame,
    config: DatasetConfig,
    *,
    embed: Embed | None = None,
) -> list[Overlap]:
    """Return every way in which a training row meets a test row.

    Two rows that bring passages of their own may ask the same words of different passages (`When did it start?`). There
    a question counts as the same only if the passage is the same, or the answers agree, or it is word for word the same
    and has MIN_SPECIFIC words that carry meaning.

    Args:
        training: Rows of `training_set`, or of `qa_candidates` before there is one.
        benchmark: Test rows, likewise.
        chunks: The `chunks` table.
        config: `max_test_similarity`.
        embed: Embeds questions; give a `Vectors` to share its work. The bundled MiniLM where None.

    Returns:
        In the order of the training rows; for each pair of questions only the strongest likeness.
    """
    rows, tests = training.to_dicts(), benchmark.to_dicts()
    found = [*_shared_documents(rows, tests, chunks), *_same_questions(rows, tests, config, embed or Vectors())]
    found.sort(key=lambda x: (x[0], _REASONS.index(x[2]), -x[3], x[1]))
    return [
        Overlap(
            reason, rows[i]["question"], tests[j]["question"], figure, rows[i]["example_id"], tests[j]["example_id"]
        )
        for i, j, reason, figure in found
    ]


def _shared_documents(
    rows: list[dict], tests: list[dict], chunks: pl.DataFrame
) -> Iterator[tuple[int, int, str, float]]:
    clusters: dict[str, int] = {}
    passages: dict[str, int] = {}
    contexts: dict[str, int] = {}
    for j, test in enumerate(tests):
        for known, key in (
            (clusters, test["cluster_id"]),
            (passages, test["chunk_id"]),
            (contexts, normalise(test["context"] or "")),
        ):
            if key:
                known.setdefault(key, j)
    for chunk_id, cluster_id in chunks.select("chunk_id", "cluster_id").iter_rows():
        if cluster_id in clusters:
            passages.setdefault(chunk_id, clusters[cluster_id])
    # A test row may bring as its own what stands in the corpus too.
    bringing = [j for j, test in enumerate(tests) if test["context"]]
    for n, (k, _, _) in find_shared(chunks["text"].to_list(), [tests[j]["context"] for j in bringing]).items():
        passages.setdefault(chunks["chunk_id"][n], bringing[k])
    brought = _brought_passages(rows, tests, passages, chunks)
    for i, row in enumerate(rows):
        if row["cluster_id"] in clusters:
            yield i, clusters[row["cluster_id"]], "document_of_test", 1.0
        shown = (row["chunk_id"], *(row.get("context_chunk_ids") or ()))
        met = {passages[chunk] for chunk in shown if chunk in passages}
        own = normalise(row["context"] or "")
        met |= {contexts[own]} if own in contexts else brought.get(row["context"], set())
        for j in sorted(met):
            yield i, j, "passage_of_test", 1.0


def _brought_passages(
    rows: list[dict], tests: list[dict], passages: dict[str, int], chunks: pl.DataFrame
) -> dict[str, set[int]]:
    """Return, of the contexts that training rows bring, the test rows whose passages they say or hold."""
    brought = list(dict.fromkeys(row["context"] for row in rows if row["context"]))
    texts = dict(chunks.select("chunk_id", "text").iter_rows())
    said = {test["context"]: j for j, test in reversed(list(enumerate(tests))) if test["context"]}
    # What a test row rests on itself may stand among other text; of the rest of its document, a context that merely
    # holds a line of it says nothing of the kind.
    rested = said | {texts[i]: j for j, test in enumerate(tests) if (i := test["chunk_id"]) in texts}
    known = rested | {texts[i]: j for i, j in passages.items() if i in texts and texts[i] not in rested}
    met: dict[str, set[int]] = defaultdict(set)
    for n, (k, _, _) in find_shared(brought, list(known)).items():
        met[brought[n]].add(list(known.values())[k])
    for k, n in find_holders(list(rested), brought):
        met[brought[n]].add(list(rested.values())[k])
    return met


def _same_questions(
    rows: list[dict], tests: list[dict], config: DatasetConfig, embed: Embed
) -> Iterator[tuple[int, int, str, float]]:
    one, other = [row["question"] for row in rows], [test["question"] for test in tests]
    found: dict[tuple[int, int], tuple[str, float]] = {}
    same: dict[str, list[int]] = defaultdict(list)
    for j, question in enumerate(other):
        same[normalise(question)].append(j)
    for i, question in enumerate(one):
        found |= {(i, j): ("equals_test_question", 1.0) for j in same.get(normalise(question), ())}
    left, right = embed(one), embed(other)
    if len(one) and len(other):
        for i, j, shared, _ in gram_overlaps(one, other, MAX_QUESTION_OVERLAP):
            if shared > MAX_QUESTION_OVERLAP and float(left[i] @ right[j]) >= MIN_CONFIRMING_COSINE:
                found.setdefault((i, j), ("overlaps_test_question", round(shared, 3)))
        for i, j, cosine in cosine_overlaps(left, right, config.max_test_similarity):
            found.setdefault((i, j), ("resembles_test_question", round(cosine, 3)))
    for (i, j), (reason, figure) in found.items():
        if _is_same_pair(rows[i], tests[j], is_equal=reason == "equals_test_question"):
            yield i, j, reason, figure


def _is_same_pair(one: Row, other: Row, *, is_equal: bool) -> bool:
    """Whether two rows with the same, or nearly the same, question ask the same thing."""
    if not (one["context"] and other["context"]):
        return True
    if normalise(one["context"]) == normalise(other["context"]) or answers_agree(one, other):
        return True
    return is_equal and len(set(content_stems(one["question"]))) >= MIN_SPECIFIC


def answers_agree(one: Row, other: Row) -> bool:
    """Whether two rows are answered alike: one answer holds the other, or they share half of their words.

    Yes and no agree with each other by chance, so they never count; nor do rows that hold no answer.
    """
    if not (one["is_answerable"] and other["is_answerable"]):
        return False
    for mine in _accepted(one):
        for theirs in _accepted(other):
            a, b = mine.split(), theirs.split()
            n_shared = sum((Counter(a) & Counter(b)).values())
            if a[0] in ("yes", "no") or b[0] in ("yes", "no"):
                if a[0] == b[0] and min(len(a), len(b)) > 3 and 2 * n_shared >= MIN_ANSWER_F1 * (len(a) + len(b)):
                    return True
                continue
            if f" {mine} " in f" {theirs} " or f" {theirs} " in f" {mine} ":
                return True
            if 2 * n_shared >= MIN_ANSWER_F1 * (len(a) + len(b)):
                return True
    return False


def _accepted(row: Row) -> set[str]:
    return {normalised for answer in (row["answer"], *(row["answers"] or ())) if (normalised := normalise(answer))}


def near_duplicates(
    rows: Sequence[Row], config: DatasetConfig, embed: Embed | None = None, judged: Collection[int] | None = None
) -> dict[int, list[tuple[int, float]]]:
    """Return, for each row, the earlier rows whose question is nearly the same, with how much.

    Two questions are the same if their words are (in any order, endings apart), or if they share
    `near_duplicate_question` of their word 3-grams both ways, or if their cosine reaches NEAR_COSINE and they are
    answered alike. They are not if they differ in a number, a name or an opposite, or if each has a word that
    the other lacks and nothing but the wording speaks for them: `How much current does X carry?` is asked of X only.

    Args:
        rows: Rows with `question`, `answer`, `answers`, `is_answerable` and `context`.
        config: `near_duplicate_question`.
        embed: Embeds questions; the bundled MiniLM where None.
        judged: Numbers of the rows that are looked at; all where None. The others are only what they may repeat: among
            ten thousand hand-written rows, the pairs that nothing asks for took minutes.

    Returns:
        Row number to (earlier row number, share or cosine), earliest first; rows without one are left out.
    """
    questions = [row["question"] for row in rows]
    wanted = sorted(range(len(rows)) if judged is None else judged)
    if not wanted:
        return {}
    is_wanted = set(wanted)
    traits = [_Traits.of(question) for question in questions]
    found: dict[tuple[int, int], float] = {}
    equal: dict[Any, list[int]] = defaultdict(list)
    for i, own in enumerate(traits):
        key = own.stems or normalise(questions[i])
        for j in equal[key] if i in is_wanted else ():
            is_asked_alike = traits[j].asks == own.asks or answers_agree(rows[i], rows[j])
            if is_asked_alike and not traits[j].conflicts(own):
                found[i, j] = 1.0
        equal[key].append(i)
    own = [questions[i] for i in wanted]
    for n, j, _, shared in gram_overlaps(own, questions, config.near_duplicate_question):
        i = wanted[n]
        is_reworded = bool(traits[i].stems - traits[j].stems) and bool(traits[j].stems - traits[i].stems)
        if (
            j < i
            and shared >= config.near_duplicate_question
            and not is_reworded
            and not traits[i].conflicts(traits[j])
        ):
            found.setdefault((i, j), round(shared, 3))
    vectors = (embed or Vectors())(questions)
    for n, j, cosine in cosine_overlaps(vectors[wanted], vectors, NEAR_COSINE):
        i = wanted[n]
        if j < i and (i, j) not in found and not traits[i].conflicts(traits[j]) and answers_agree(rows[i], rows[j]):
            found[i, j] = round(cosine, 3)
    pairs: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for (i, j), figure in sorted(found.items()):
        if _is_same_pair(rows[i], rows[j], is_equal=normalise(questions[i]) == normalise(questions[j])):
            pairs[i].append((j, figure))
    return dict(pairs)


class _Traits(NamedTuple):
    """What must not differ between two wordings of one question."""

    text: str
    stems: frozenset[str]
    names: frozenset[str]  # words with a capital, a digit or an underscore inside the question
    asks: frozenset[str]  # when, why

    @classmethod
    def of(cls, question: str) -> _Traits:
        found = re.findall(r"[\w.-]*\w", question)
        names = {w.casefold() for w in found[1:] if re.search(r"[A-Z\d_]", w)} | {
            w for w in found[:1] if re.search(r"\d", w)
        }
        asks = _ASKS & set(words(question))
        return cls(question, frozenset(content_stems(question)), frozenset(names), frozenset(asks))

    def conflicts(self, other: _Traits) -> bool:
        """Whether each names what the other does not, or one holds the opposite of a word of the other."""
        numbers = {s for s in self.stems if s.isdigit()}, {s for s in other.stems if s.isdigit()}
        return (
            numbers[0] != numbers[1]
            or bool(self.names - other.names and other.names - self.names)
            or bool(opposites(self.text, other.text))
        )
