"""What a run tells of its outcome, in the Prefect UI."""

from ev_platform.defs.run import RunResult
from ev_platform.flows.weekly import describe_run


def test_description_of_a_run_begins_with_what_it_means_for_the_endpoint():
    result = RunResult("r1", ("chunks",), ("adapter",), ("latency",), "kept", "tiny@1 stays champion.")
    text = describe_run(result)
    assert text.startswith("**kept**: tiny@1 stays champion.\n")
    assert "- computed: adapter\n- unchanged: chunks\n- checks that did not pass: latency\n" in text


def test_description_of_a_run_of_some_stages_has_no_outcome():
    assert describe_run(RunResult("r1", (), ("raw_pages",), ())).startswith("Dagster run `r1`\n")
