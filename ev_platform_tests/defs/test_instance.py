"""Dagster's settings in the data folder, and runs that were killed."""

import multiprocessing
import os
import signal

import dagster as dg
import pytest
import yaml

from ev_platform.defs import instance as own

OLD = "telemetry:\n  enabled: false\nnux:\n  enabled: false\n"


def killed_run(home):
    """Run an asset that takes a place in a pool and kills its own process."""

    @dg.asset(pool="network")
    def page():
        os.kill(os.getpid(), signal.SIGKILL)

    with dg.DagsterInstance.from_config(str(home)) as instance:
        dg.materialize([page], instance=instance)


@pytest.fixture
def home(tmp_path):
    own.write_settings(tmp_path)
    return tmp_path


def test_settings_are_valid_and_keep_the_ui_offline(home):
    settings = yaml.safe_load((home / "dagster.yaml").read_text())
    assert settings["telemetry"] == settings["nux"] == {"enabled": False}
    with dg.DagsterInstance.from_config(str(home)) as instance:  # validates the file
        pools = instance.get_concurrency_config().pool_config
        assert pools.default_pool_limit == 1
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] == 60
        assert not instance.telemetry_enabled


def test_settings_that_somebody_wrote_are_left_alone_and_our_older_ones_are_not(tmp_path):
    file = tmp_path / "dagster.yaml"
    file.write_text(OLD)
    own.write_settings(tmp_path)
    assert file.read_text() == own.SETTINGS
    file.write_text("telemetry:\n  enabled: true\n")
    own.write_settings(tmp_path)
    assert file.read_text() == "telemetry:\n  enabled: true\n"


def test_killed_run_is_marked_and_its_place_in_the_pool_is_free(home):
    process = multiprocessing.get_context("fork").Process(target=killed_run, args=(home,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED
        assert instance.event_log_storage.get_concurrency_info("network").claimed_slots
        assert own.end_dead_runs(instance) == [run.run_id]
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
        assert not instance.event_log_storage.get_concurrency_info("network").claimed_slots
        assert own.end_dead_runs(instance) == []


def test_run_that_was_killed_before_it_started_is_marked_and_one_that_waits_is_not(home):
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()

    @dg.op
    def nothing():
        pass

    job = dg.GraphDefinition("job", node_defs=[nothing]).to_job()
    with dg.DagsterInstance.from_config(str(home)) as instance:
        tags = [{own.PROCESS_TAG: str(process.pid)}, {own.PROCESS_TAG: str(os.getpid())}, {}]
        killed, alive, waits = (instance.create_run_for_job(job, tags=each).run_id for each in tags)
        assert own.end_dead_runs(instance) == [killed]
        statuses = [instance.get_run_by_id(run).status.value for run in (killed, alive, waits)]
        assert statuses == ["FAILURE", "NOT_STARTED", "NOT_STARTED"]


def open_at_once(home, barrier):
    barrier.wait()
    own.end_dead_runs_of(home)


def test_processes_that_open_a_new_home_at_once_all_can(home):
    forks = multiprocessing.get_context("fork")
    barrier = forks.Barrier(4)
    processes = [forks.Process(target=open_at_once, args=(home, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def test_run_that_goes_on_is_left_alone(home):
    seen = []

    @dg.asset(pool="network")
    def page(context: dg.AssetExecutionContext):
        with dg.DagsterInstance.from_config(str(home)) as other:
            seen.append(own.end_dead_runs(other))
            seen.append(bool(other.event_log_storage.get_concurrency_info("network").claimed_slots))

    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert dg.materialize([page], instance=instance).success
    assert seen == [[], True]
