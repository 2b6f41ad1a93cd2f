"""The graph over the tiny task with an object store: the tables of the embedded run, and a second machine goes on."""

import os
import shutil
import subprocess
import sys

import pytest

from ev_platform.identity import frame_fingerprint
from ev_platform.records import TABLES
from ev_platform.registry import load_release, read_aliases
from ev_platform.tasks import get_task
from ev_platform_tests.object_store import s3_server
from ev_platform_tests.test_graph import ASSETS, Workspace, forget_graph
from ev_platform_tests.tiny import TEST, write_tiny_model, write_tiny_task

# Of the other tables some hold a measured time, or the name of a version of theirs, which holds when it was made.
WITHOUT_TIMES = (
    *("base_model", "base_serving_model", "raw_pages", "documents", "clean_documents", "dropped_documents", "chunks"),
    *("chunk_vectors", "examples", "training_set", "validation_set", "benchmark", "adapter", "training_log"),
    *("merged_model", "serving_model", "predictions", "general_answers", "inference_benchmark"),
)

pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
pytest.importorskip("moto", reason="moto is not installed")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_graph_with_an_object_store_gives_the_rows_and_weights_of_the_embedded_one_and_another_machine_goes_on(
    tmp_path, monkeypatch
):
    first, second, embedded = (Workspace(tmp_path / name) for name in ("first", "second", "embedded"))
    write_tiny_task(first.task, write_tiny_model(tmp_path / "model"))
    for workspace in (second, embedded):
        shutil.copytree(first.root / "tasks", workspace.root / "tasks")

    with s3_server() as url:
        monkeypatch.setenv("EV_STORE_URL", url)
        forget_graph()
        first.run()
        wanted = first.current()
        first_rows = {table: first.read(table) for table in wanted}
        assert {table for table, record in wanted.items() if record} >= ASSETS - {"teacher_evaluation"}

        # A machine with an empty folder: nothing is computed, since all that the stages need comes down.
        assert second.run(stages=["training", "evaluation", "registry"]).computed == ()
        assert second.current() == wanted
        assert read_aliases(second.store, "tiny") == read_aliases(first.store, "tiny")
        task, question = get_task("tiny", second.root / "tasks"), TEST[0][0]
        releases = [load_release(workspace.store, task, "candidate") for workspace in (first, second)]
        prompts = [release.render(question, release.retrieve(question)) for release in releases]
        assert prompts[0] == prompts[1]

        told = subprocess.run(
            [sys.executable, "-m", "ev_platform.cli", "query", "SELECT count(DISTINCT version) FROM materializations"],
            env={**os.environ, "EV_DATA_DIR": str(tmp_path / "third")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f" {sum(len(first.store.history(table, 'tiny')) for table in TABLES)} " in told.stdout
        monkeypatch.delenv("EV_STORE_URL")

    forget_graph()
    embedded.run()
    for table in WITHOUT_TIMES:
        rows = embedded.read(table)
        assert frame_fingerprint(table, first_rows[table]) == frame_fingerprint(table, rows) and rows.height, table
