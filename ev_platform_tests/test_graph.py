"""The asset graph: its shape, and the whole of it run over the tiny task, with a look into what it made."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import duckdb
import polars as pl
import pymupdf  # noqa: TID253 - a test puts a PDF into the drop folder
import pytest

from ev_platform import settings
from ev_platform.errors import UserError
from ev_platform.records import TABLES
from ev_platform.registry import read_aliases
from ev_platform.storage import Store
from ev_platform_tests.ports import free_port
from ev_platform_tests.tiny import BASE_URL, PAGES, TEST, page, write_tiny_model, write_tiny_task

UNASKED = {"exports", "published_models"}  # a person starts them
ASSETS = set(TABLES) - {"reviews", "takedowns"} - UNASKED  # those are written through the command line
SNAPSHOT = Path(__file__).with_name("asset_graph.json")
HEAVY = ("torch", "transformers", "ray", "prefect", "wandb", "trafilatura", "scrapling")
PDF_TEXT = """A charging station at work shares one supply among many charging points. The controller reads the meter of
the building every second and gives each electric vehicle what is left, at least six amperes each. Drivers start a
charging session with a card, and the station asks the operator whether the card is valid before it closes the
contactor. At the end of the session it sends the energy that the car has taken to the operator."""
URL = {name: BASE_URL + name for name in PAGES}


@dataclass
class Workspace:
    """A data folder and a folder with the task `tiny`."""

    root: Path

    @property
    def task(self):
        return self.root / "tasks" / "tiny"

    @property
    def store(self):
        return Store(self.root / "data")

    def read(self, table):
        return self.store.read(table, "tiny")

    def current(self):
        return {table: self.store.current(table, "tiny") for table in ASSETS}

    def run(self, task="tiny", home=None, **options):
        """Materialize the graph."""
        with self.graph(home) as defs:
            from ev_platform.defs.run import materialize

            return materialize(defs, self.root / "data", task, **options)

    def tick(self, cursor=None):
        """Evaluate the sensor on the drop folders; return its run requests and its cursor."""
        with self.graph() as defs, dg.instance_for_test() as instance:
            resources = {"store": defs.resources["store"]}
            context = dg.build_sensor_context(instance, cursor=cursor, definitions=defs, resources=resources)
            return defs.resolve_sensor_def("new_pdfs").evaluate_tick(context)

    @contextmanager
    def graph(self, home=None):
        """Load the graph anew: it reads the folder of tasks when it is imported."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EV_DATA_DIR", str(self.root / "data"))
            patch.setenv("EV_TASKS_DIR", str(self.root / "tasks"))
            patch.setenv("DAGSTER_HOME", home or "")
            if home is None:
                patch.delenv("DAGSTER_HOME")
            forget_graph()
            try:
                from ev_platform.definitions import defs

                yield defs
            finally:
                os.environ.pop("DAGSTER_HOME", None)  # the run sets it; the patch then restores what was there
                forget_graph()


def forget_graph():
    settings.get_settings.cache_clear()
    for name in [n for n in sys.modules if n.startswith(("ev_platform.def", "ev_platform.flows"))]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workspace after its first run; nothing may change it."""
    root = tmp_path_factory.mktemp("graph")
    workspace = Workspace(root)
    write_tiny_task(workspace.task, write_tiny_model(root / "model"))
    workspace.result = workspace.run()
    return workspace


@pytest.fixture
def workspace(finished, tmp_path):
    """A copy of the finished workspace that a test may change."""
    for name in ("data", "tasks"):
        shutil.copytree(finished.root / name, tmp_path / name, ignore=shutil.ignore_patterns("dagster", "wandb"))
    return Workspace(tmp_path)


def shape_of_graph():
    forget_graph()
    from ev_platform.definitions import defs

    graph = defs.resolve_asset_graph()
    nodes = {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}
    return {
        name: {
            "group": nodes[name].group_name,
            "deps": sorted(parent.to_user_string() for parent in nodes[name].parent_keys),
            "checks": {check.name: graph.get(check).blocking for check in sorted(nodes[name].check_keys, key=str)},
        }
        for name in sorted(nodes)
    }


def test_asset_graph_is_the_committed_one():
    shape = shape_of_graph()
    if os.environ.get("EV_WRITE_SNAPSHOT"):
        SNAPSHOT.write_text(json.dumps(shape, indent=1) + "\n")
    assert shape == json.loads(SNAPSHOT.read_text()), (
        "The graph has changed. If that is meant: EV_WRITE_SNAPSHOT=1 python -m pytest ev_platform_tests/test_graph.py "
        "-k committed, and commit asset_graph.json."
    )


def test_every_table_but_no_other_is_an_asset():
    shape = json.loads(SNAPSHOT.read_text())
    assert {name for name, node in shape.items() if node["group"] != "lineage"} == ASSETS | UNASKED


def test_loading_the_graph_imports_nothing_heavy(tmp_path):
    code = f"import sys, ev_platform.definitions; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "EV_DATA_DIR": str(tmp_path)},
        cwd=SNAPSHOT.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_first_run_computes_every_table(finished):
    assert set(finished.result.computed) == ASSETS
    assert finished.result.unchanged == ()


def test_first_run_keeps_or_drops_every_page_with_its_reason(finished):
    pages = dict(finished.read("raw_pages").select("url", "drop_reason").iter_rows())
    assert pages == {**dict.fromkeys(URL.values()), BASE_URL + "missing.html": "http_404"}
    kept = finished.read("clean_documents")["url"].to_list()
    dropped = dict(finished.read("dropped_documents").select("url", "drop_reason").iter_rows())
    assert sorted(kept) == [URL["cables.html"], URL["connectors.html"], URL["index.html"]]
    assert dropped == {
        URL["laden.html"]: "language",
        URL["garden.html"]: "off_topic",
        URL["connectors-print.html"]: "near_duplicate",
        BASE_URL + "missing.html": "http_404",
    }
    assert finished.read("documents").height == len(kept) + len(dropped) == len(pages)


def test_first_run_example_counts_add_up(finished):
    n_in, n_kept, n_rejected = (finished.read(t).height for t in ("qa_candidates", "examples", "rejected_examples"))
    n_split = sum(finished.read(t).height for t in ("training_set", "validation_set", "benchmark"))
    assert n_in == n_kept + n_rejected
    assert n_split == n_kept
    assert finished.read("benchmark")["question"].to_list() == [question for question, _, _ in TEST]
    assert finished.read("validation_set").height > 0


def test_first_run_benchmark_documents_are_not_trained_on(finished):
    benchmark, chunks = finished.read("benchmark"), finished.read("chunks")
    held_out = set(benchmark["document_id"])
    url = dict(finished.read("clean_documents").select("document_id", "url").iter_rows())
    assert {url[document] for document in held_out} == {URL["cables.html"]}
    passages = set(chunks.filter(pl.col("document_id").is_in(list(held_out)))["chunk_id"])
    trained = pl.concat([finished.read("training_set"), finished.read("validation_set")])
    assert passages
    assert not held_out & set(trained["document_id"])
    assert not passages & {chunk for ids in trained["context_chunk_ids"] for chunk in ids}


def weights(workspace, table):
    from safetensors.torch import load_file

    folder = workspace.store.root / workspace.read(table).item(0, "path")
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def test_first_run_training_moves_the_weights_it_should(finished):
    import torch

    adapter = weights(finished, "adapter")
    moved = {name for name, tensor in adapter.items() if "lora_B" in name and tensor.abs().sum() > 0}
    assert len(moved) == 2 * 3  # two layers, three modules
    base, merged = weights(finished, "base_model"), weights(finished, "merged_model")
    changed = {name.split(".")[-2] for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {"q_proj", "v_proj", "up_proj"}


def test_first_run_logs_every_step(finished):
    log = finished.read("training_log")
    assert log.drop_nulls("loss")["step"].to_list() == [1, 2, 3]
    assert log.drop_nulls("validation_loss").height >= 2
    assert set(log["adapter_id"]) == {finished.read("adapter").item(0, "artifact_id")}


def test_first_run_every_system_answers_every_row(finished):
    predictions = finished.read("predictions")
    benchmark = set(finished.read("benchmark")["example_id"])
    for system in ("base", "base_rag", "tuned", "tuned_rag"):
        rows = predictions.filter(pl.col("system") == system)
        assert set(rows["example_id"]) == benchmark
        assert rows.height == len(TEST)
        assert {bool(ids) for ids in rows["context_chunk_ids"].to_list()} == {system.endswith("_rag")}
    models = dict(predictions.select("system", "model_id").iter_rows())
    assert models["tuned"] == models["tuned_rag"] == finished.read("serving_model").item(0, "artifact_id")
    assert models["base"] == models["base_rag"] == finished.read("base_serving_model").item(0, "artifact_id")


def test_first_run_registers_version_1(finished):
    (row,) = finished.read("registered_model").to_dicts()
    current = finished.current()
    assert (row["model_version"], row["number"]) == ("tiny@1", 1)
    assert row["training_set_version"] == current["training_set"].version
    assert row["training_set_fingerprint"] == current["training_set"].fingerprint
    assert row["chunks_version"] == current["chunks"].version
    assert row["serving_model_id"] == finished.read("serving_model").item(0, "artifact_id")
    # A random model on three rows can show nothing, and the gate says so.
    assert read_aliases(finished.store, "tiny") == {"candidate": "tiny@1"}
    assert finished.result.outcome == "kept"
    (decision,) = finished.read("promotions").to_dicts()
    assert (decision["decision"], decision["model_version"], decision["champion_after"]) == ("kept", "tiny@1", None)
    assert {"better_than_base", "enough_rows"} <= set(decision["failed_checks"])


def test_first_run_catalogue_traces_the_model_to_its_pages(finished):
    with duckdb.connect(str(finished.store.catalogue), read_only=True) as connection:
        rows = connection.execute(
            "SELECT url, licence, publisher, fetched_hour, n_training_rows FROM model_sources ORDER BY url"
        ).fetchall()
        hour = connection.execute("SELECT max(date_trunc('hour', fetched_at)) FROM raw_pages").fetchone()
    assert {row[0] for row in rows} <= {URL["index.html"], URL["connectors.html"]}
    assert rows
    assert {row[1] for row in rows} == {"CC-BY-4.0"}  # as the pages declare, not as sources.yaml assumes
    assert {row[3] for row in rows} <= {hour[0]}
    # A row counts for every page whose passages stand in its prompt.
    training, chunks, documents = (finished.read(name) for name in ("training_set", "chunks", "clean_documents"))
    url = dict(chunks.join(documents, on="document_id").select("chunk_id", "url").rows())
    pages = [url[chunk] for ids in training["context_chunk_ids"].to_list() for chunk in ids]
    assert {row[0]: row[4] for row in rows} == {
        page: sum(page in {url[c] for c in ids} for ids in training["context_chunk_ids"].to_list()) for page in pages
    }


def test_first_run_writes_the_report(finished):
    text = (finished.store.root / "reports" / "tiny.html").read_text()
    (row,) = finished.read("registered_model").to_dicts()
    assert row["verdict"] in text
    for question, _, _ in TEST:
        assert question in text


def test_second_run_computes_and_trains_nothing(workspace):
    before = workspace.current()
    stamps = {file: file.stat().st_mtime_ns for file in (workspace.store.root / "artifacts").rglob("*")}
    result = workspace.run()
    assert result.computed == ()
    assert set(result.unchanged) == ASSETS
    assert result.outcome == "nothing changed"
    after = workspace.current()
    assert {t: r.fingerprint for t, r in after.items()} == {t: r.fingerprint for t, r in before.items()}
    # Only the crawl may store again: the hour of its last look is a new one.
    assert {t for t in ASSETS if after[t].version != before[t].version} <= {"raw_pages"}
    assert {file: file.stat().st_mtime_ns for file in (workspace.store.root / "artifacts").rglob("*")} == stamps
    assert not (workspace.store.root / "wandb").exists()


def change_page(workspace, name, text):
    file = workspace.task / "site" / name
    later = file.stat().st_mtime + 10
    file.write_text(page(name, text), encoding="utf-8")
    os.utime(file, (later, later))


def test_changed_page_changes_only_its_own_chunks(workspace):
    def by_url():
        url = dict(workspace.read("clean_documents").select("document_id", "url").iter_rows())
        rows = workspace.read("chunks").rows(named=True)
        return {u: [row for row in rows if url[row["document_id"]] == u] for u in url.values()}

    chunks, fetched = by_url(), dict(workspace.read("raw_pages").select("url", "fetched_at").iter_rows())
    change_page(workspace, "index.html", PAGES["index.html"][2] + " A hook beside the station holds the cable.")
    result = workspace.run(stages=["collect", "corpus"])
    assert set(result.computed) >= {"raw_pages", "documents", "clean_documents", "chunks"}
    after = by_url()
    changed = URL["index.html"]
    assert after.keys() == chunks.keys()
    assert not {c["chunk_id"] for c in after[changed]} & {c["chunk_id"] for c in chunks[changed]}
    assert "A hook beside the station holds the cable." in after[changed][-1]["text"]
    for url in chunks.keys() - {changed}:
        assert after[url] == chunks[url]
    new = dict(workspace.read("raw_pages").select("url", "fetched_at").iter_rows())
    assert {url for url in fetched if new[url] != fetched[url]} == {changed}


def test_pdf_in_the_drop_folder_starts_ingest_and_becomes_chunks(workspace):
    idle = workspace.tick()
    assert idle.run_requests == []
    with pymupdf.open() as document:
        document.new_page().insert_textbox((72, 120, 500, 700), PDF_TEXT)
        (workspace.root / "data" / "inbox" / "tiny").mkdir(parents=True)
        document.save(workspace.root / "data" / "inbox" / "tiny" / "sharing.pdf")
    found = workspace.tick(idle.cursor)
    assert [request.partition_key for request in found.run_requests] == ["tiny"]
    assert workspace.tick(found.cursor).run_requests == []

    workspace.run(stages=["collect", "corpus"])
    pages = workspace.read("clean_documents").filter(pl.col("url") == "inbox/sharing.pdf")
    chunks = workspace.read("chunks").filter(pl.col("document_id").is_in(pages["document_id"].to_list()))
    assert chunks["page"].unique().to_list() == [1]
    assert workspace.read("chunk_vectors").height == workspace.read("chunks").height


def test_version_survives_its_pages_changing(workspace):
    trained = workspace.read("training_set")
    version = workspace.read("registered_model").item(0, "training_set_version")
    change_page(workspace, "connectors.html", PAGES["connectors.html"][2].replace("Japan in 2010", "Tokyo in 2009"))
    workspace.run(stages=["collect", "corpus", "dataset"])
    assert not workspace.read("training_set").equals(trained)
    assert workspace.store.read("training_set", "tiny", version).equals(trained)


def set_config(workspace, old, new):
    file = workspace.task / "config.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def without_train(workspace):
    (workspace.task / "train.csv").unlink()


def with_bad_row(workspace):
    with (workspace.task / "train.csv").open("a") as file:
        file.write("a question,an answer,a source,one field too many\n")


def with_empty_corpus(workspace):
    set_config(workspace, "min_words: 30", "min_words: 30, min_relevance: 1.0")


def with_unreachable_seed(workspace):
    (workspace.task / "sources.yaml").write_text(f"seeds: ['http://127.0.0.1:{free_port()}/']\n")


def with_unknown_recipe(workspace):
    set_config(workspace, "recipe: tiny.yaml", "recipe: huge")


def with_broken_config(workspace):
    (workspace.task / "config.yaml").write_text("corpus: [unclosed")


def with_missing_base_model(workspace):
    file = workspace.task / "config.yaml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("base_model")]
    file.write_text("\n".join([*lines, "base_model: /no/such/model"]))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (without_train, ["train.csv is missing", "question and answer"]),
        (with_bad_row, ["train.csv row 8", "4 fields", "3"]),
        (with_empty_corpus, ["corpus is empty", "off_topic: 5", "dropped_documents"]),
        (with_unreachable_seed, ["The seed http://127.0.0.1:", "unreachable", "sources.yaml"]),
        (with_broken_config, ["config.yaml", "is not valid YAML"]),
        (with_unknown_recipe, ["config.yaml", "'huge'", "smollm2-135m-cpu"]),
        (
            with_missing_base_model,
            ["base_model '/no/such/model' does not exist", "config.yaml", "bundled:smollm2-135m-instruct"],
        ),
    ],
)
def test_bad_input_ends_with_one_sentence_and_loses_nothing(workspace, spoil, told):
    model = {table: workspace.store.current(table, "tiny") for table in ("training_set", "adapter", "registered_model")}
    aliases = read_aliases(workspace.store, "tiny")
    files = set((workspace.store.root / "tables").rglob("*.parquet"))
    spoil(workspace)
    with pytest.raises(UserError) as caught:
        workspace.run()
    sentence = str(caught.value)
    assert all(part in sentence for part in told), sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert sentence.endswith(".")
    assert {table: workspace.store.current(table, "tiny") for table in model} == model
    assert read_aliases(workspace.store, "tiny") == aliases
    assert files <= set((workspace.store.root / "tables").rglob("*.parquet"))


def test_unknown_task_is_told_with_the_known_ones(workspace):
    with pytest.raises(UserError, match=r"There is no task 'nope'; the tasks are ev_charging, tiny\."):
        workspace.run("nope")


def test_unknown_stage_is_told_with_the_known_ones(workspace):
    with pytest.raises(UserError, match=r"There is no stage 'colect'; the stages are collect, corpus, .*serving\."):
        workspace.run(stages=["colect"])


def test_relative_dagster_home_is_told(workspace):
    with pytest.raises(UserError, match=r"DAGSTER_HOME is 'here': set it to an absolute path, or unset it\."):
        workspace.run(home="here")


def test_unset_dagster_home_lies_in_the_data_folder(finished):
    assert (finished.root / "data" / "dagster" / "dagster.yaml").exists()
