import numpy as np
import polars as pl
import pytest

from ev_platform.errors import UserError
from ev_platform.retrieval import METHODS, Retriever, embed, embed_chunks, embed_once

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


def test_search_by_words_alone_finds_only_what_shares_one(retriever):
    (hits,), (none,) = (retriever.search([query], 4, "lexical") for query in ("warm invoice", "submarine"))
    assert {hit.chunk_id for hit in hits} == {"chk_garden", "chk_money"} and none == []


def test_search_by_meaning_alone_follows_the_cosine(chunks):
    vectors = np.tile(embed(["anything"]), (len(PASSAGES), 1))
    vectors[2] = embed(["an invoice"])[0]
    texts = [text for _, text in PASSAGES.values()]
    (hits,) = Retriever(list(PASSAGES), texts, vectors).search(["an invoice"], 4, "embedding")
    assert hits[0].chunk_id == "chk_garden" and [hit.score for hit in hits] == sorted(
        (hit.score for hit in hits), reverse=True
    )


@pytest.mark.parametrize("method", METHODS)
def test_search_gives_passages_that_score_alike_in_their_order(method):
    # More of them than candidates, so that the cut goes through the tie, for any size of it.
    ids = [f"chk_{n:02d}" for n in range(30)]
    vectors = np.tile(embed(["an invoice"]), (len(ids), 1))
    for candidates in (1, 7, 20, 40):
        retriever = Retriever(ids, ["The invoice is due."] * len(ids), vectors, candidates)
        (hits,) = retriever.search(["invoice"], 5, method)
        assert [hit.chunk_id for hit in hits] == ids[: min(5, candidates if method == "hybrid" else 5)]


def test_search_of_many_queries_gives_what_each_gives_alone(retriever, monkeypatch):
    questions = ["XQ-7731", "tariffs", "compost", "a journey", "of the"]
    alone = [retriever.search([question], 2) for question in questions]
    monkeypatch.setattr("ev_platform.retrieval._QUERIES_AT_ONCE", 2)
    together = retriever.search(questions, 2)
    assert [[hit.chunk_id for hit in hits] for hits in together] == [[h.chunk_id for h in hits] for (hits,) in alone]


def test_search_without_queries_returns_nothing(retriever):
    assert retriever.search([], 2) == []


def test_embed_returns_unit_vectors():
    vectors = embed(["a car", "a garden"])
    assert vectors.shape == (2, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embed([]).shape == (0, 384)


def test_embed_once_embeds_each_text_once_and_gives_what_embed_gives(monkeypatch):
    asked = []
    monkeypatch.setattr("ev_platform.retrieval.embed", lambda texts: asked.extend(texts) or embed(texts))
    first = embed_once(["a car", "a garden", "a car"])
    assert np.allclose(first, embed(["a car", "a garden", "a car"]), atol=1e-5)
    assert np.array_equal(embed_once(["a garden", "a cat"])[0], first[1])
    assert asked == ["a car", "a garden", "a cat"] and embed_once([]).shape == (0, 384)
    # What is known is forgotten before it fills the memory.
    monkeypatch.setattr("ev_platform.retrieval._MAX_REMEMBERED", 3)
    assert np.allclose(embed_once(["a dog", "a car"])[1], first[0], atol=1e-5)
    assert asked[3:] == ["a dog", "a car"]


def test_build_from_no_chunks_is_told(chunks):
    with pytest.raises(UserError, match="the table chunks is empty; look at dropped_documents"):
        Retriever.build(chunks.head(0))


def test_embed_chunks_keeps_what_it_knows_and_embeds_the_rest(chunks, monkeypatch):
    asked = []
    monkeypatch.setattr("ev_platform.retrieval.embed", lambda texts: asked.extend(texts) or embed(texts))
    first = embed_chunks(chunks.head(3))
    assert len(asked) == 3
    both = embed_chunks(chunks, first)
    assert asked[3:] == ["\n".join(PASSAGES["chk_money"])]
    assert both.height == 4 and both["vector"].to_list()[:3] == first["vector"].to_list()


def test_embed_chunks_of_another_embedder_are_embedded_anew(chunks):
    foreign = embed_chunks(chunks).with_columns(embedder=pl.lit("other 1.0"), vector=pl.lit([0.0] * 384))
    assert np.linalg.norm(embed_chunks(chunks, foreign)["vector"].to_list()[0]) == pytest.approx(1, abs=1e-5)


def test_retriever_searches_the_vectors_it_is_given(chunks):
    vectors = embed_chunks(chunks)
    question = "energy for electric cars"
    turned = vectors.with_columns(vector=-pl.Series(vectors["vector"].list.to_array(384)).to_numpy())
    (plain,), (other,) = (Retriever.build(chunks, 20, v).search([question], 4) for v in (vectors, turned))
    assert {hit.chunk_id: round(-hit.score, 4) for hit in other} == {hit.chunk_id: round(hit.score, 4) for hit in plain}
