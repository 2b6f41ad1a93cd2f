"""What a run tells of its outcome, in the Prefect UI."""

from ev_platform.defs.run import RunResult, join_results
from ev_platform.flows.weekly import describe_run, link_to_run


def test_description_of_a_run_begins_with_what_it_means_for_the_endpoint():
    result = RunResult(("r1",), ("chunks",), ("adapter",), ("latency",), "kept", "tiny@1 stays champion.")
    text = describe_run(result)
    assert text.startswith("**kept**: tiny@1 stays champion.\n")
    assert "- computed: adapter\n- unchanged: chunks\n- checks that did not pass: latency\n" in text


def test_description_of_a_run_of_some_stages_has_no_outcome():
    assert describe_run(RunResult(("r1",), (), ("raw_pages",), ())).startswith("Dagster run `r1`\n")


def test_run_is_linked_where_the_address_of_the_ui_is_known():
    assert link_to_run("r1", "http://127.0.0.1:3000") == "Dagster run [r1](http://127.0.0.1:3000/runs/r1)"


def test_table_that_one_stage_computed_does_not_count_as_unchanged():
    first = RunResult(("r1",), ("chunks",), ("base_model",), ("a",))
    second = RunResult(("r2",), ("base_model",), ("adapter",), ("a", "b"), "kept", "It stays.")
    assert join_results([first, second]) == RunResult(
        ("r1", "r2"), ("chunks",), ("base_model", "adapter"), ("a", "b"), "kept", "It stays."
    )
