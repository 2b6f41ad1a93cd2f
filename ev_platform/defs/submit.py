"""Runs that a Dagster webserver starts: submitted and followed over GraphQL, so that they are seen live in its UI.

What does not belong here: runs in this process (`run`), and who starts them (`flows`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from ev_platform.defs.run import DECIDED, RunFailedError, RunResult, add_decided, failure_of, run_config
from ev_platform.defs.stage import FORCE_TAG
from ev_platform.errors import UserError

_POLL_S = 1.0
# A run that waits so long is behind others, which is no fault, or no daemon moves the queue: Dagster is asked which.
_QUEUE_CHECK_S = 3600
# For one answer. A webserver on a machine that a training has to itself takes its time.
_TIMEOUT_S = 60.0
# Until it counts as gone, and the longest pause between two questions: its restart takes a minute where cores are busy.
_PATIENCE_S = 300.0
_LONGEST_PAUSE_S = 10.0

_REPOSITORIES = """{ repositoriesOrError { ... on RepositoryConnection {
  nodes { name location { name } pipelines { name } } } } }"""
_LAUNCH = """mutation($it: ExecutionParams!) { launchRun(executionParams: $it) { __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on RunConfigValidationInvalid { errors { message } }
  ... on Error { message } } }"""
_STATUS = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } ... on Error { message } } }"
_QUEUE = """{ instance { daemonHealth { daemonStatus(daemonType: "QUEUED_RUN_COORDINATOR") { healthy } } } }"""
_CANCEL = """mutation($run: String!) { terminateRun(runId: $run) { __typename
  ... on TerminateRunFailure { message }
  ... on Error { message } } }"""
_EVENTS = """query($run: ID!, $after: String) { logsForRun(runId: $run, afterCursor: $after) {
  ... on EventConnection { cursor hasMore events { __typename
    ... on MaterializationEvent { assetKey { path }
      metadataEntries { label ... on BoolMetadataEntry { boolValue } ... on TextMetadataEntry { text } } }
    ... on AssetCheckEvaluationEvent { evaluation { checkName success severity description } }
    ... on ExecutionStepFailureEvent { stepKey error { message errorChain { error { message } } } } } } } }"""


def is_reachable(url: str) -> bool:
    """Return whether a Dagster webserver answers at an address; one that takes the question may take its time."""
    try:
        timeout = httpx.Timeout(_TIMEOUT_S, connect=5)
        return httpx.get(f"{_shown(url)}/server_info", auth=_password(url), timeout=timeout).status_code == 200
    except httpx.HTTPError:
        return False


def run_page(url: str, run_id: str) -> str:
    """Return the address of a run's page in the UI."""
    return f"{_shown(url)}/runs/{run_id}"


def _shown(url: str) -> str:
    """Return an address without the user and password that it may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _password(url: str) -> tuple[str, str] | None:
    parts = urlsplit(url)
    return (unquote(parts.username), unquote(parts.password or "")) if parts.username else None


def submit(
    url: str,
    task: str,
    assets: Sequence[str],
    *,
    force: bool = False,
    overrule: str = "",
    tags: Mapping[str, str] | None = None,
) -> RunResult:
    """Let a webserver materialize assets for one task, and wait until it has.

    Args:
        url: Of the webserver.
        task: Partition.
        assets: Names of the assets.
        force: Compute also what has not changed.
        overrule: Why the run goes on whatever the verdict on the teacher.
        tags: Of the run.

    Raises:
        RunFailedError: With the sentence of the asset or check that failed.
        UserError: If the webserver does not take the run.
    """
    told = {"dagster/partition": task, **(tags or {}), **({FORCE_TAG: "true"} if force else {})}
    params = {
        "selector": {**_repository(url), "jobName": "__ASSET_JOB", "assetSelection": [{"path": [a]} for a in assets]},
        "runConfigData": run_config(overrule if "teacher_evaluation" in assets else ""),
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in told.items()]},
    }
    launched = _ask(url, _LAUNCH, it=params)["launchRun"]
    if launched["__typename"] != "LaunchRunSuccess":
        said = launched.get("message") or "; ".join(error["message"] for error in launched.get("errors", ()))
        raise UserError(f"Dagster at {_shown(url)} does not take the run: {said or launched['__typename']}.")
    run_id = launched["run"]["runId"]
    return _outcome(url, run_id, _wait(url, run_id))


def _repository(url: str) -> dict[str, str]:
    for node in _ask(url, _REPOSITORIES)["repositoriesOrError"].get("nodes", ()):
        if "everything" in {pipeline["name"] for pipeline in node["pipelines"]}:
            return {"repositoryName": node["name"], "repositoryLocationName": node["location"]["name"]}
    raise UserError(f"Dagster at {_shown(url)} does not serve this graph: start it with `ev-platform dev`.")


def _wait(url: str, run_id: str) -> str:
    queued_until = time.monotonic() + _QUEUE_CHECK_S
    while True:
        run = _ask(url, _STATUS, run=run_id)["runOrError"]
        status = run.get("status")
        if status is None or status in ("SUCCESS", "FAILURE", "CANCELED"):
            return status or "FAILURE"
        if status in ("QUEUED", "NOT_STARTED") and time.monotonic() > queued_until:
            if not _is_queue_moving(url):
                raise _given_up(url, run_id)
            queued_until = time.monotonic() + _QUEUE_CHECK_S
        time.sleep(_POLL_S)


def _is_queue_moving(url: str) -> bool:
    return _ask(url, _QUEUE)["instance"]["daemonHealth"]["daemonStatus"]["healthy"] is True


def _given_up(url: str, run_id: str) -> RunFailedError:
    """Cancel a run that has not begun, which would begin without the flow and its lock; return what is to be said."""
    reply = _ask(url, _CANCEL, run=run_id)["terminateRun"]
    said = f"Run {run_id} waits in the queue of Dagster at {_shown(url)}, whose daemon is not at work: start it"
    if reply["__typename"] == "TerminateRunSuccess":
        said += ", then run this again. The waiting run was cancelled."
    else:
        why = reply.get("message") or reply["__typename"]
        said += f". The waiting run could not be cancelled ({why}): cancel it at {run_page(url, run_id)}."
    return RunFailedError(said, run_id, "the queue", is_final=True)


def _outcome(url: str, run_id: str, status: str) -> RunResult:
    has_passed = status == "SUCCESS"
    unchanged, computed, failed, decided, cursor = [], [], [], {}, None
    failure: RunFailedError | None = None
    while True:
        page = _ask(url, _EVENTS, run=run_id, after=cursor)["logsForRun"]
        for event in page.get("events", ()):
            kind = event["__typename"]
            if kind == "MaterializationEvent":
                table = event["assetKey"]["path"][-1]
                metadata = {entry["label"]: entry for entry in event["metadataEntries"]}
                (unchanged if metadata["unchanged"]["boolValue"] else computed).append(table)
                names = DECIDED.get(table, ())
                add_decided(decided, {name: metadata[name]["text"] for name in names if name in metadata})
            elif kind == "AssetCheckEvaluationEvent" and not event["evaluation"]["success"]:
                check = event["evaluation"]
                failed.append(check["checkName"])
                if check["severity"] == "ERROR" and check["description"] and not has_passed:
                    failure = RunFailedError(check["description"], run_id, check["checkName"], is_final=True)
            elif kind == "ExecutionStepFailureEvent" and failure is None:
                error = event["error"] or {"message": "", "errorChain": []}
                chain = [error["message"], *(link["error"]["message"] for link in error["errorChain"])]
                failure = failure_of(run_id, event["stepKey"], [message.strip() for message in chain if message])
        cursor = page.get("cursor")
        if not page.get("hasMore"):
            break
    if status == "CANCELED":
        said = f"Run {run_id} was stopped; see {run_page(url, run_id)}. What it computed before is kept."
        raise RunFailedError(said, run_id, "run", is_final=True)
    if not has_passed:
        said = f"Run {run_id} was lost by Dagster; see {run_page(url, run_id)}."
        raise failure or RunFailedError(said, run_id, "run", is_final=False)
    return RunResult((run_id,), tuple(unchanged), tuple(computed), tuple(failed), **decided)


def _ask(url: str, query: str, **variables: Any) -> dict[str, Any]:
    """Return the data of a reply; a webserver that is busy, or restarted while a run goes on, is asked again."""
    began, pause_s, shown = time.monotonic(), 1.0, _shown(url)
    # A run that may have been started must not be started twice: its one answer is waited for.
    timeout = httpx.Timeout(_PATIENCE_S if query == _LAUNCH else _TIMEOUT_S, connect=_TIMEOUT_S)
    while True:
        try:
            asked = {"query": query, "variables": variables}
            # Not within the address, which httpx writes into its log.
            said = httpx.post(f"{shown}/graphql", auth=_password(url), json=asked, timeout=timeout)
            reply = said.json()
            break
        except (httpx.TransportError, ValueError) as error:
            waited_s = time.monotonic() - began
            has_not_arrived = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            if waited_s + pause_s > _PATIENCE_S or (query == _LAUNCH and not has_not_arrived):
                raise UserError(
                    f"Dagster at {shown} has given no answer for {waited_s:.0f} seconds ({type(error).__name__}): see "
                    "whether it runs. A run that it has begun may be going on; what that computes is kept."
                ) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    if reply.get("errors"):
        raise UserError(f"Dagster at {shown} refuses a question: {reply['errors'][0].get('message', '')}.")
    return reply["data"]
