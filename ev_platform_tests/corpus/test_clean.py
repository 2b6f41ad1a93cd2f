import random
from itertools import pairwise

import polars as pl
import pytest

from ev_platform.corpus.clean import CLUSTER_JACCARD, clean_documents
from ev_platform.corpus.duplicates import similar_pairs
from ev_platform.corpus.language import detect_language
from ev_platform.corpus.relevance import relevances
from ev_platform.identity import short_id
from ev_platform.records import schema_of
from ev_platform.storage import now
from ev_platform.tasks.config import CorpusConfig

ABOUT = "Answer questions about electric vehicle charging stations, cables and connectors."
CONFIG = CorpusConfig(min_words=20)
CHARGING = (
    "An electric car charges at a station through a cable with a connector at each end. The station tells the car over "
    "the control pilot how much current the cable and the supply can carry. The car then draws that current or less. "
    "A charging station at home gives seven to eleven kilowatts, one at the motorway gives several hundred kilowatts. "
    "The connector locks into the inlet while the vehicle charges, so that nobody can pull it out under load."
)
PUBLIC = (
    "Public charging stations bill by the kilowatt hour or by the minute. Drivers start a charging session with a "
    "card, an app or the car itself. The charge point sends a meter value at the start and another at the end of the "
    "session, and the operator of the station works out the price of the energy that flowed into the electric vehicle."
)
GARDEN = (
    "Tomatoes want a sunny bed and rich soil. Sow the seeds indoors in March and plant the seedlings out when the last "
    "frost has passed in May. Water the roots and not the leaves, pinch out the side shoots, and tie the stems to a "
    "stick as they grow. The first fruit ripens in July and the last one in the warm days of October."
)
GERMAN = (
    "Ein Elektroauto lädt an einer Ladestation über ein Kabel mit einem Stecker an jedem Ende. Die Station teilt dem "
    "Auto mit, wie viel Strom das Kabel und der Anschluss tragen können. Das Auto nimmt dann diesen Strom oder weniger."
)


def documents(*rows):
    """Return `documents` of texts, or of (url, text), or of dicts with more columns."""
    made = []
    for n, row in enumerate(rows):
        if isinstance(row, str):
            row = (f"https://a.example/page-{n}.html", row)
        if isinstance(row, tuple):
            row = {"url": row[0], "text": row[1]}
        row = {"fetched_url": row["url"], "kind": "web", "fetched_at": now(), "licence": "MIT"} | row
        row |= {"document_id": short_id("doc", row["url"], row["text"]), "n_chars": len(row["text"]), "publisher": "A"}
        language, score = detect_language(row["text"])
        row |= {"language": language, "language_score": score, "robots": "allowed", "n_masked": 0}
        made.append({**dict.fromkeys(schema_of("documents")), "page_offsets": [], **row})
    return pl.DataFrame(made, schema=schema_of("documents"))


def clean(*rows, **config):
    frame = documents(*rows)
    tables = clean_documents(frame, ABOUT, CONFIG.model_copy(update=config))
    kept, dropped = tables["clean_documents"], tables["dropped_documents"]
    assert kept.height + dropped.height == frame.height
    assert sorted([*kept["fetched_url"], *dropped["fetched_url"]]) == sorted(frame["fetched_url"])
    return kept, dropped


def reasons(dropped):
    return {row["fetched_url"]: row["drop_reason"] for row in dropped.iter_rows(named=True)}


def reworded(text, n_changed, seed=0):
    """Return a text with some words replaced."""
    words = text.split()
    for at in random.Random(seed).sample(range(len(words)), n_changed):
        words[at] = f"other{at}"
    return " ".join(words)


# ---- the whole filter ----


def test_each_reason_is_given_once_and_the_rest_is_kept():
    copy, near = "https://a.example/charging-copy.html", "https://a.example/charging-print.html"
    kept, dropped = clean(
        ("https://a.example/charging.html", CHARGING),
        (copy, CHARGING),
        (near, CHARGING + " Printed from the guide."),
        ("https://a.example/public.html", PUBLIC),
        ("https://a.example/garden.html", GARDEN),
        ("https://a.example/de.html", GERMAN),
        ("https://a.example/short.html", "This page about charging is much too short to be of any use."),
        {"url": "https://a.example/gone.html", "text": "", "drop_reason": "http_404", "drop_detail": "gone"},
    )
    assert kept["fetched_url"].to_list() == ["https://a.example/charging.html", "https://a.example/public.html"]
    assert reasons(dropped) == {
        copy: "exact_duplicate",
        near: "near_duplicate",
        "https://a.example/garden.html": "off_topic",
        "https://a.example/de.html": "language",
        "https://a.example/short.html": "too_short",
        "https://a.example/gone.html": "http_404",
    }
    details = dict(dropped.select("fetched_url", "drop_detail").rows())
    assert details["https://a.example/gone.html"] == "gone"
    assert details["https://a.example/de.html"].startswith("de (")
    assert details["https://a.example/garden.html"].endswith("< 0.5")
    assert details[near].endswith("with https://a.example/charging.html")
    survivors = dict(dropped.drop_nulls("duplicate_of").select("fetched_url", "duplicate_of").rows())
    assert survivors == dict.fromkeys((copy, near), kept["document_id"][0])


def test_relevance_that_is_known_is_not_measured_again(monkeypatch):
    measured = []
    monkeypatch.setattr(
        "ev_platform.corpus.clean.relevances",
        lambda pages, about: measured.extend(page["text"] for page in pages) or relevances(pages, about),
    )
    first = clean_documents(documents(CHARGING, GARDEN), ABOUT, CONFIG)
    again = clean_documents(documents(CHARGING, GARDEN, PUBLIC), ABOUT, CONFIG, list(first.values()))
    assert measured == [CHARGING, GARDEN, PUBLIC]
    fresh = clean_documents(documents(CHARGING, GARDEN, PUBLIC), ABOUT, CONFIG)
    for table, frame in again.items():
        assert frame.drop("fetched_at").equals(fresh[table].drop("fetched_at"))


def test_clean_of_nothing_gives_both_tables_empty():
    kept, dropped = clean()
    assert kept.schema == schema_of("clean_documents") and dropped.schema == schema_of("dropped_documents")


def test_clean_of_documents_that_all_fall_at_the_first_filter_gives_no_kept_row():
    kept, dropped = clean(GERMAN)
    assert kept.is_empty() and reasons(dropped) == {"https://a.example/page-0.html": "language"}


def test_clean_does_not_depend_on_the_order_of_the_documents():
    rows = [("https://a.example/b.html", CHARGING), ("https://a.example/a.html", CHARGING), PUBLIC, GARDEN]
    frame = documents(*rows).with_columns(fetched_at=pl.lit(now()))
    one, other = (clean_documents(f, ABOUT, CONFIG) for f in (frame, frame.reverse()))
    for table in one:
        assert one[table].equals(other[table])


def test_language_of_the_configuration_is_kept():
    kept, _ = clean(GERMAN, languages=("de",), min_relevance=0.0)
    assert kept["language"].to_list() == ["de"]


# ---- duplicates ----


@pytest.mark.parametrize("turn", [1, -1])
def test_survivor_of_duplicates_is_the_one_with_the_shortest_address(turn):
    addresses = ["https://a.example/home.html", "https://a.example/home.html?print=1", "https://a.example/zz/home.html"]
    texts = [CHARGING, CHARGING + " And some words more than the page itself.", CHARGING]
    kept, dropped = clean(*list(zip(addresses, texts, strict=True))[::turn])
    assert kept["url"].to_list() == [addresses[0]]
    assert set(dropped["duplicate_of"]) == {kept["document_id"].item()}


def test_duplicates_of_equal_length_addresses_leave_the_first_by_name():
    kept, _ = clean(("https://a.example/b.html", CHARGING), ("https://a.example/a.html", CHARGING))
    assert kept["url"].to_list() == ["https://a.example/a.html"]


def test_duplicate_of_a_duplicate_that_is_no_duplicate_of_the_survivor_stays():
    """A document goes for its likeness to one that stays, never to one that goes itself."""
    base = CHARGING + " " + PUBLIC
    middle, far = reworded(base, 3), reworded(reworded(base, 3), 3, seed=5)
    pairs = {(a, b): jaccard for a, b, jaccard in similar_pairs([base, middle, far], 0.3)}
    bound = (pairs[0, 2] + min(pairs[0, 1], pairs[1, 2])) / 2
    assert pairs[0, 2] < bound < min(pairs[0, 1], pairs[1, 2])
    kept, dropped = clean(
        ("https://a.example/1", base),
        ("https://a.example/22", middle),
        ("https://a.example/333", far),
        near_duplicate_jaccard=bound,
    )
    assert kept["url"].to_list() == ["https://a.example/1", "https://a.example/333"]
    assert dropped["url"].to_list() == ["https://a.example/22"]


def test_similar_documents_that_both_stay_share_a_cluster():
    like = reworded(CHARGING, 4)
    ((_, _, jaccard),) = similar_pairs([CHARGING, like], 0.01)
    assert CLUSTER_JACCARD < jaccard < CONFIG.near_duplicate_jaccard
    kept, _ = clean(
        ("https://a.example/1", CHARGING), ("https://a.example/22", like), ("https://a.example/333", PUBLIC)
    )
    first, second, other = kept["cluster_id"]
    assert first == second == kept["document_id"][0] and other == kept["document_id"][2]


def test_cluster_joins_a_chain_of_similar_documents():
    texts = [CHARGING]
    for seed in range(3):
        texts.append(reworded(texts[-1], 4, seed=seed))
    chain = [similar_pairs(list(pair), 0.01)[0][2] for pair in pairwise(texts)]
    assert all(CLUSTER_JACCARD <= jaccard < CONFIG.near_duplicate_jaccard for jaccard in chain)
    assert similar_pairs([texts[0], texts[-1]], 0.01)[0][2] < CLUSTER_JACCARD
    kept, _ = clean(*texts, min_relevance=0.0)
    assert kept.height == 4 and kept["cluster_id"].n_unique() == 1


def test_example_drops_what_its_authors_planted_and_nothing_else(example_documents, example_clean):
    found = {
        url.removeprefix("https://plugfield.example/"): reason
        for url, reason in reasons(example_clean["dropped_documents"]).items()
    }
    assert found == {
        "index.html": "exact_duplicate",
        "old-network-map.html": "http_404",
        "ladestationen.html": "language",
        "home-charging-print.html": "near_duplicate",
        "office-garden.html": "off_topic",
    }
    assert example_clean["clean_documents"].height == example_documents.height - len(found)
