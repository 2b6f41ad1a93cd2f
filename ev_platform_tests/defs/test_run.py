"""A run in this process that is interrupted ends there, also where DuckDB turns the interrupt into an error."""

import os
import signal
import threading

import dagster as dg
import duckdb
import pytest

from ev_platform.defs.console import step_lines
from ev_platform.defs.instance import PROCESS_TAG
from ev_platform.defs.resources import StoreResource
from ev_platform.defs.run import RunFailedError, materialize
from ev_platform.defs.stage import FLOW_TAG, RETRY, build, final_user_errors, tasks_partitions
from ev_platform.records import to_frame

TASK = "ev_charging"
LONG = "SELECT count(*) FROM range(100000) a, range(100000) b WHERE (a.range * b.range) % 7 = 3"


def query():
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(LONG).fetchall()


def wait():
    threading.Event().wait(60)


def graph(tmp_path, *assets):
    store = StoreResource(data_dir=str(tmp_path / "data"), tasks_dir=str(tmp_path / "tasks"))
    jobs = [dg.define_asset_job("everything", "*", partitions_def=tasks_partitions)]
    return dg.Definitions(assets=assets, jobs=jobs, resources={"store": store}, loggers={"steps": step_lines})


@pytest.fixture(autouse=True)
def home_in_the_data_folder(monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "")  # a run sets it


def interrupted_run(tmp_path, work, number, retry_policy):
    """Materialize an asset whose computation is sent a signal, and another; return which computations began."""
    begun = []

    def compute():
        begun.append("raw_pages")
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        work()
        return {"raw_pages": to_frame("raw_pages", [])}

    @dg.asset(name="raw_pages", group_name="collect", partitions_def=tasks_partitions, retry_policy=retry_policy)
    @final_user_errors
    def first(context: dg.AssetExecutionContext, store: StoreResource):
        yield from build(context, store, ["raw_pages"], inputs={}, config={}, code="", compute=compute)

    @dg.asset(name="raw_texts", group_name="collect", partitions_def=tasks_partitions)
    def second(context: dg.AssetExecutionContext):
        begun.append("raw_texts")

    with pytest.raises(KeyboardInterrupt):
        materialize(graph(tmp_path, first, second), tmp_path / "data", TASK, ["collect"])
    return begun


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("work", [query, wait])
@pytest.mark.parametrize("retry_policy", [RETRY, None])
def test_interrupt_ends_the_run_and_is_not_retried(tmp_path, work, number, retry_policy):
    begun = interrupted_run(tmp_path, work, number, retry_policy)
    assert begun == ["raw_pages"]
    with dg.DagsterInstance.from_config(str(tmp_path / "data" / "dagster")) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.FAILURE
        assert run.tags[PROCESS_TAG] == str(os.getpid())


def test_forced_flow_that_tries_again_computes_again_only_what_had_failed(tmp_path):
    begun = []

    def table(name, *, deps=()):
        def compute():
            begun.append(name)
            if begun == ["raw_pages", "raw_pdfs"]:
                raise ConnectionResetError("the host is gone")
            return {name: to_frame(name, [])}

        @dg.asset(name=name, group_name="collect", deps=deps, partitions_def=tasks_partitions)
        def made(context: dg.AssetExecutionContext, store: StoreResource):
            yield from build(context, store, [name], inputs={}, config={}, code="", compute=compute)

        return made

    defs = graph(tmp_path, table("raw_pages"), table("raw_pdfs", deps=["raw_pages"]))

    def run(flow):
        materialize(defs, tmp_path / "data", TASK, ["collect"], force=True, tags={FLOW_TAG: flow})

    with pytest.raises(RunFailedError, match="the host is gone"):
        run("f1")
    run("f1")
    assert begun == ["raw_pages", "raw_pdfs", "raw_pdfs"]
    run("f2")
    assert begun[3:] == ["raw_pages", "raw_pdfs"]
