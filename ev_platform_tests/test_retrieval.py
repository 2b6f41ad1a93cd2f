import numpy as np
import polars as pl
import pytest

from ev_platform.errors import UserError
from ev_platform.retrieval import Retriever, embed

PASSAGES = {
    "chk_code": ("Cables", "Part number XQ-7731 is the spare sheath."),
    "chk_car": ("Vehicles", "An automobile with a flat battery must be recharged before the journey."),
    "chk_garden": ("Garden", "Tomatoes want a warm wall and deep compost."),
    "chk_money": ("Tariffs", "The invoice is due within fourteen days."),
}


@pytest.fixture(scope="module")
def chunks():
    rows = [(chunk, headings, text) for chunk, (headings, text) in PASSAGES.items()]
    return pl.DataFrame(rows, schema=["chunk_id", "heading_path", "text"], orient="row")


@pytest.fixture(scope="module")
def retriever(chunks):
    return Retriever.build(chunks)


def best(retriever, question):
    return retriever.search([question], 1)[0][0].chunk_id


def test_search_finds_a_passage_by_a_rare_word(retriever):
    assert best(retriever, "XQ-7731") == "chk_code"


def test_search_words_outweigh_a_nearer_meaning(chunks):
    # The vectors of all passages are alike, so only the words can tell.
    vectors = np.tile(embed(["anything"]), (len(PASSAGES), 1))
    texts = [text for _, text in PASSAGES.values()]
    assert best(Retriever(list(PASSAGES), texts, vectors), "an invoice") == "chk_money"


def test_search_finds_a_passage_by_meaning_without_a_shared_word(retriever):
    question = "energy for electric cars"
    headings, text = PASSAGES["chk_car"]
    assert not set(question.split()) & set(f"{headings} {text}".lower().replace(".", "").split())
    assert best(retriever, question) == "chk_car"


def test_search_finds_a_passage_by_its_heading(retriever):
    assert best(retriever, "tariffs") == "chk_money"


def test_search_returns_no_more_than_there_is_and_each_once(retriever):
    (hits,) = retriever.search(["warm compost in a car"], 16)
    assert len({hit.chunk_id for hit in hits}) == len(hits) <= len(PASSAGES)


def test_search_score_is_the_cosine_of_question_and_passage(retriever):
    (hits,) = retriever.search(["automobile"], 1)
    question, passage = embed(["automobile", "\n".join(PASSAGES["chk_car"])])
    assert hits[0].score == pytest.approx(float(question @ passage), abs=1e-4)


def test_search_without_queries_returns_nothing(retriever):
    assert retriever.search([], 2) == []


def test_embed_returns_unit_vectors():
    vectors = embed(["a car", "a garden"])
    assert vectors.shape == (2, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embed([]).shape == (0, 384)


def test_build_from_no_chunks_is_told(chunks):
    with pytest.raises(UserError, match="the table chunks is empty; look at dropped_documents"):
        Retriever.build(chunks.head(0))
