"""Runs that a real Dagster webserver and its daemon carry out, submitted and followed over GraphQL."""

import dagster as dg
import pytest

from ev_platform.defs.run import RunFailedError
from ev_platform.defs.submit import is_reachable, submit
from ev_platform_tests.test_dagster_ui import ui, workspace  # noqa: F401 - fixtures
from ev_platform_tests.test_graph import closed_port

PAGES = ["raw_pages", "raw_pdfs", "raw_texts"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_webserver_carries_out_a_run_and_tells_what_it_did_and_why_it_failed(ui, workspace):  # noqa: F811
    assert is_reachable(ui)
    result = submit(ui, "tiny", PAGES, tags={"prefect/flow_run": "f1"})
    assert (result.computed, sorted(result.unchanged), result.failed_checks) == ((), PAGES, ())
    assert sorted(submit(ui, "tiny", ["documents"]).computed) == ["documents"]
    result = submit(ui, "tiny", ["documents"], force=True)
    assert result.unchanged == ("documents",)  # computed, and the rows are the stored ones
    with dg.DagsterInstance.from_config(str(workspace.store.root / "dagster")) as instance:
        assert {run.run_id: run.tags.get("ev/force") for run in instance.get_runs()}[result.run_ids[0]] == "true"
    (workspace.task / "sources.yaml").write_text("seeds: nonsense\n")
    with pytest.raises(RunFailedError, match=r"sources\.yaml") as failure:
        submit(ui, "tiny", PAGES)
    assert failure.value.is_final and failure.value.run_id
    with pytest.raises(RunFailedError, match="There is no task 'nope'"):
        submit(ui, "nope", PAGES)


def test_address_where_nothing_answers_is_not_reachable():
    assert not is_reachable(f"http://127.0.0.1:{closed_port()}")
