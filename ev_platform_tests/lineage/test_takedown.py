"""A takedown names what hangs on an address, removes it from every place that keeps words, and nothing else."""

import contextlib
import json
import shutil
from dataclasses import replace

import dagster as dg
import duckdb
import polars as pl
import pytest
from typer.testing import CliRunner

from ev_platform.cli import app
from ev_platform.collect.bodies import blank_row
from ev_platform.collect.journal import Journal as CrawlJournal
from ev_platform.collect.journal import journal_path
from ev_platform.collect.refused import refused_addresses
from ev_platform.defs.run import dagster_home
from ev_platform.identity import frame_fingerprint
from ev_platform.lineage import erase
from ev_platform.registry.takedown import tainted_versions
from ev_platform.serving.journal import Journal, read_journal
from ev_platform.settings import get_settings
from ev_platform.storage import Store
from ev_platform.tasks.sources import Sources
from ev_platform_tests.lineage import planted
from ev_platform_tests.lineage.planted import (
    AT,
    CHUNK,
    COPY_URL,
    DOC,
    EXAMPLE,
    KEPT,
    KEPT_CHUNK,
    KEPT_DOC,
    KEPT_EXAMPLE,
    SENTENCES,
    TASK,
    URL,
    files_with_planted,
)
from ev_platform_tests.object_store import s3_server
from ev_platform_tests.serving.rows import judged, served

TABLES = ("raw_pages", "documents", "clean_documents", "chunks", "chunk_vectors", "qa_candidates", "examples")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Nothing may change it."""
    root = tmp_path_factory.mktemp("planted") / "data"
    planted.plant(root)
    return root


@pytest.fixture
def store(filled, own_folders):
    shutil.copytree(filled, own_folders / "data")
    return Store(own_folders / "data")


def take_down(*arguments, code=0):
    result = CliRunner().invoke(app, ["takedown", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def applied(*arguments):
    return take_down(URL, "--apply", "--reason", "asked to", *arguments)


def test_listing_names_exactly_the_dependants_and_changes_nothing(store):
    files = [file for file in store.root.rglob("*") if file.is_file() and not {"dagster", "teacher"} & set(file.parts)]
    before = {file: file.read_bytes() for file in files}  # opening a SQLite file may already change it
    found = json.loads(take_down(URL, "--json"))["tasks"][TASK]
    assert (found["documents"], found["chunks"], found["examples"]) == ([DOC], [CHUNK], [EXAMPLE])
    assert (found["trained_versions"], found["holding_versions"]) == (["tiny@1"], ["tiny@1", "tiny@2"])
    assert found["touched"]["training_set"] == "4 removed in 2 versions"
    assert found["touched"]["predictions"] == "1 masked in 1 version"
    assert {file: file.read_bytes() for file in before} == before


def test_after_apply_no_file_holds_a_planted_sentence_and_what_is_kept_is_as_it_was(store):
    held = files_with_planted(store.root)
    for place in (
        "blobs",
        "tables",
        "serving/requests",
        "serving/feedback",
        "serving/server.log",
        "teacher",
        "reports",
    ):
        assert any(name.startswith(place) for name in held), place  # the search does find what is there
    assert any(name.startswith("dagster/history/runs") for name in held)
    output = applied()
    assert files_with_planted(store.root) == set()
    assert "The champion tiny@1 was trained on it" in output
    for table in TABLES:
        for record in store.history(table, TASK):
            frame = store.read(table, TASK, record.version)
            assert (frame.height, record.n_rows) == (1, 1)
            assert record.fingerprint == frame_fingerprint(table, frame)
            assert record.config["taken_down"][0].startswith("tkd_")
    assert [store.read("training_set", TASK, r.version).height for r in store.history("training_set", TASK)] == [
        1,
        1,
        1,
    ]
    with duckdb.connect(str(store.catalogue), read_only=True) as catalogue:
        assert catalogue.sql("SELECT text FROM chunks_history").fetchall() == [(KEPT,)] * 2
        assert catalogue.sql("SELECT state, url FROM takedowns").fetchall() == [("done", URL)]
    assert read_journal(store.root, "requests").select("request_id", "answer").rows() == [
        ("req_1", "[taken down]"),
        ("req_2", "32 A."),
    ]
    assert store.read("predictions", TASK)["prediction"].to_list() == ["[taken down]", KEPT]
    assert "one line" in (store.root / "serving" / "server.log").read_text()
    assert "kept,B" in (store.root / "reports" / f"{TASK}_judgements.csv").read_text()
    assert not (store.root / "checkpoints").exists()


def test_applied_takedown_is_refused_tainted_listed_and_can_be_undone(store):
    applied("--by", "Ada")
    assert refused_addresses(store, TASK) == refused_addresses(store, "a_later_task") == {URL}
    assert set(tainted_versions(store, TASK)) == {"tiny@1", "tiny@2"}
    (row,) = json.loads(take_down("--list", "--json"))[:1]
    assert (row["state"], row["decided_by"], row["reason"]) == ("done", "Ada", "asked to")
    assert "documents" in row["to_rebuild"]
    applied()  # a second time: nothing is left to do, and nothing is forgotten
    assert set(tainted_versions(store, TASK)) == {"tiny@1", "tiny@2"}
    take_down(URL, "--undo")
    assert refused_addresses(store, TASK) == set() and tainted_versions(store, TASK) == {}
    assert store.read("documents", TASK).height == 1
    assert "was not taken down" in take_down(URL, "--undo", code=1)


def test_version_that_was_trained_on_it_stays_tainted_when_the_address_was_allowed_in_between(store):
    applied()
    take_down(URL, "--undo")
    applied()
    assert set(tainted_versions(store, TASK)) == {"tiny@1", "tiny@2"}


def test_version_whose_rows_only_quote_it_is_tainted_and_the_author_s_row_named(store):
    quoting = {"example_id": f"exm_{'d' * 20}", "question": "What hums?", "answer": SENTENCES[0]}
    trained = planted.publish(store, "training_set", quoting, {"example_id": KEPT_EXAMPLE, "question": "Which cable?"})
    planted.publish(store, "examples", quoting | {"row": "train.csv row 2"})
    passages = planted.publish(store, "chunks", {"chunk_id": KEPT_CHUNK, "document_id": KEPT_DOC, "text": KEPT})
    known = store.read("registered_model", TASK).to_dicts()
    new = {"model_version": "tiny@3", "adapter_id": "a3", "training_set_version": trained.version}
    planted.publish(store, "registered_model", *known, new | {"chunks_version": passages.version, "registered_at": AT})
    assert "train.csv row 2" in applied()
    assert tainted_versions(store, TASK)["tiny@3"].startswith("it was trained on")


def test_takedown_in_one_task_leaves_what_another_task_served_and_showed(store):
    log = Journal(store.root, "requests")
    log.add(replace(served("req_9", chunk_ids=[CHUNK], answer="Of another task."), task="other"))
    log.close()
    tags = {"dagster/partition": "other"}
    with dg.DagsterInstance.from_config(str(dagster_home(store.root))) as instance:
        run = dg.materialize([planted.shown_asset("passages", {"shown": CHUNK})], instance=instance, tags=tags).run_id
    applied("--task", TASK)
    answers = dict(read_journal(store.root, "requests").select("request_id", "answer").rows())
    assert (answers["req_1"], answers["req_9"]) == ("[taken down]", "Of another task.")
    with dg.DagsterInstance.from_config(str(dagster_home(store.root))) as instance:
        assert instance.has_run(run)


def test_another_question_under_the_same_request_id_keeps_its_words_and_what_was_said_of_it(store):
    requests, feedback = Journal(store.root, "requests"), Journal(store.root, "feedback")
    requests.add(served("req_1", chunk_ids=[KEPT_CHUNK], question="How long?", answer="Five metres."))
    feedback.add(judged("fb_2", request_id="req_1", question="How long?", comment="short", chunk_ids=[]))
    requests.close()
    feedback.close()
    for _ in range(2):
        applied()
        answers = read_journal(store.root, "requests").filter(pl.col("request_id") == "req_1")["answer"]
        assert sorted(answers) == ["Five metres.", "[taken down]"]
        assert sorted(read_journal(store.root, "feedback")["comment"]) == ["[taken down]", "short"]


def test_body_that_a_crawl_cut_off_had_fetched_goes_too(store):
    url, other = "https://a.example/new", "https://a.example/linked"
    paths = {each: store.put_blob(f"<p>words of {each}</p>".encode())[1] for each in (url, other)}
    with contextlib.suppress(KeyboardInterrupt), CrawlJournal(journal_path(store.root, TASK), "key") as crawl:
        for each, path in paths.items():
            crawl.add(replace(blank_row(each, "web", Sources()), path=path, final_url=each, referrer=url))
        raise KeyboardInterrupt
    assert "1 removed" in take_down(url, "--apply", "--reason", "asked to")
    assert [(store.root / path).exists() for path in paths.values()] == [False, True]
    with CrawlJournal(journal_path(store.root, TASK), "key") as crawl:
        assert (crawl.get(url), crawl.get(other) is not None) == (None, True)


@pytest.mark.parametrize("n_writes", [3, 20])
def test_takedown_that_is_killed_is_finished_by_the_same_command(store, monkeypatch, n_writes):
    """The process dies at a write of `erase`; what is stored can be read at that moment."""
    from ev_platform.lineage import erase as module

    real, left = module.write_atomic, [n_writes]

    def dies(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as killed:
        killed.setattr(module, "write_atomic", dies)
        CliRunner().invoke(app, ["takedown", URL, "--apply", "--reason", "asked to"])
    assert left[0] < 0
    assert refused_addresses(store, TASK) == {URL}
    for table in TABLES:
        for record in store.history(table, TASK):
            store.read(table, TASK, record.version)
    assert "is being taken down" in take_down(URL, "--undo", code=1)
    applied()
    assert files_with_planted(store.root) == set()
    (row,) = json.loads(take_down("--list", "--json"))[:1]
    assert (row["state"], row["trained_versions"]) == ("done", ["tiny@1"])
    assert row["touched"] and json.loads(row["touched"])["chunks"] == "2 removed in 2 versions"
    assert not any((store.root / "takedowns").iterdir())


def test_log_of_a_living_server_loses_the_words_and_no_row(store):
    log = Journal(store.root, "requests")
    try:
        log.add(served("req_3", chunk_ids=[CHUNK]))
        applied()
        log.add(served("req_4", chunk_ids=[]))
    finally:
        log.close()
    rows = read_journal(store.root, "requests").sort("request_id").select("request_id", "answer").rows()
    assert rows == [("req_1", "[taken down]"), ("req_2", "32 A."), ("req_3", "[taken down]"), ("req_4", "32 A.")]


@pytest.mark.slow
def test_shared_store_loses_it_too_and_every_machine_what_lies_in_its_own_folder(own_folders, monkeypatch):
    pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    with s3_server() as url:
        monkeypatch.setenv("EV_STORE_URL", url)
        get_settings.cache_clear()
        store = planted.plant(own_folders / "data")
        copy = Store(own_folders / "other" / "data")  # the other machine has brought all of it, and served a request
        copy.refresh()
        copy.bring(store.read("raw_pages", TASK)["path"])
        log = Journal(copy.root, "requests")
        log.add(served("req_9", chunk_ids=[CHUNK], answer=planted.SENTENCES[0]))
        log.close()
        third = own_folders / "third" / "data"

        assert downloaded(url, own_folders / "before") & {"tables", "blobs"}
        assert "run the same command on each" in " ".join(applied().split())
        assert files_with_planted(store.root) == set()
        assert downloaded(url, own_folders / "after") == set()
        assert Store(third).read("documents", TASK)["text"].to_list() == [KEPT]
        assert [r.n_rows for r in Store(third).history("chunks", TASK)] == [1, 1]

        monkeypatch.setenv("EV_DATA_DIR", str(copy.root))
        get_settings.cache_clear()
        assert any(name.startswith("tables") for name in files_with_planted(copy.root))
        assert not json.loads(take_down("--list", "--json"))[0]["here"]
        with monkeypatch.context() as killed:
            killed.setattr(erase, "erase", killed_where_it_applies(erase.erase))
            CliRunner().invoke(app, ["takedown", URL, "--apply", "--reason", "asked to"])
        assert files_with_planted(copy.root)
        assert not json.loads(take_down("--list", "--json"))[0]["here"]
        applied()
        assert files_with_planted(copy.root) == set()
        assert json.loads(take_down("--list", "--json"))[0]["here"]
        assert read_journal(copy.root, "requests")["answer"].to_list() == ["[taken down]"]
        take_down(URL, "--undo")
        assert refused_addresses(Store(third), TASK) == set()


def killed_where_it_applies(look):
    def erase(store, made, *, apply, **others):
        if apply:
            raise KeyboardInterrupt
        return look(store, made, apply=apply, **others)

    return erase


def downloaded(url, folder):
    """Copy an object store; return the folders of those files that hold a planted sentence."""
    import s3fs

    s3fs.S3FileSystem(use_listings_cache=False).get(url, str(folder), recursive=True)
    return {name.split("/")[0] for name in files_with_planted(folder)}


def test_same_text_under_another_address_is_told_and_goes_only_if_asked(tmp_path, own_folders):
    store = planted.plant(own_folders / "data", copy=True)
    found = json.loads(take_down(URL, "--json"))["tasks"][TASK]
    assert (found["also_held_by"], found["addresses"]) == ([COPY_URL], [URL])
    assert "blobs" not in found["touched"]  # the other address has the same bytes
    applied("--with-duplicates")
    assert files_with_planted(store.root) == set()
    assert refused_addresses(store, TASK) == {URL, COPY_URL}


def test_address_that_nothing_is_stored_of_is_refused_all_the_same(own_folders):
    (own_folders / "data").mkdir()
    output = take_down("https://b.example/x", "--apply", "--reason", "asked to")
    assert "Nothing is stored of https://b.example/x. It is not fetched any more." in output
    assert refused_addresses(Store(own_folders / "data"), "ev_charging") == {"https://b.example/x"}


def test_apply_without_a_reason_is_refused(store):
    assert "needs a reason" in take_down(URL, "--apply", code=1)
    assert files_with_planted(store.root)
