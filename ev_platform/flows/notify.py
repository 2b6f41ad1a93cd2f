"""Who is told when a run failed: one POST of a few words to the address in EV_FAILURE_WEBHOOK.

What does not belong here: what is done about it (`weekly` tries again; then a person acts).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import httpx

from ev_platform.defs.run import RunFailedError
from ev_platform.defs.submit import run_page
from ev_platform.errors import UserError
from ev_platform.flows import DEFAULT_TASK
from ev_platform.settings import get_settings

_log = logging.getLogger(__name__)
_TIMEOUT_S = 10
_PARTS = ("where", "dagster_run", "url")


class TasksFailedError(UserError):
    """What each of several tasks failed with.

    Attributes:
        failed: The error of each task that failed, by its name.
        n_tasks: How many were run.
    """

    def __init__(self, failed: Mapping[str, Exception], n_tasks: int):
        self.failed, self.n_tasks = dict(failed), n_tasks
        super().__init__(self.told({name: str(error) for name, error in failed.items()}))

    def told(self, said: Mapping[str, str]) -> str:
        """Return the sentence about all of them, with what is said of each."""
        each = " ".join(f"{name}: {words.rstrip('.')}." for name, words in said.items())
        return f"{len(self.failed)} of {self.n_tasks} tasks failed. {each}"


def tell_of_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Post what failed and where; a hook of the flow, for failures and crashes.

    The body is JSON with `text`, which chat services show, and the same in parts. An exception's own words are only
    sent where they are ours: those of a library may hold an address with a key in it.
    """
    address = get_settings().failure_webhook
    if address is None:
        return
    error = state.result(raise_on_failure=False) if state.is_failed() else None
    body: dict[str, Any] = {
        "flow_run": flow_run.name,
        "flow_run_id": str(flow_run.id),
        "state": state.name,
        **_said(error),
    }
    body["tasks"] = list((flow_run.parameters or {}).get("tasks") or [DEFAULT_TASK])
    body["text"] = f"{flow.name} {flow_run.name} ({', '.join(body['tasks'])}) {state.name.lower()}: {body['error']}"
    try:
        reply = httpx.post(address.get_secret_value(), json=body, timeout=_TIMEOUT_S)
        if reply.is_error:
            _log.warning("The address in EV_FAILURE_WEBHOOK answered %s", reply.status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        # Neither the address, which may be a secret, nor the words of the error, which may hold it.
        _log.warning("The address in EV_FAILURE_WEBHOOK cannot be reached (%s)", type(problem).__name__)


def _said(error: Any) -> dict[str, str]:
    if isinstance(error, RunFailedError):
        url = get_settings().dagster_url
        said = str(error) if error.is_final else f"{error.where} failed; its words are in the run"
        return {
            "error": said,
            "where": error.where,
            "dagster_run": error.run_id,
            **({"url": run_page(url, error.run_id)} if url else {}),
        }
    if isinstance(error, TasksFailedError):
        each = {name: _said(of_task) for name, of_task in error.failed.items()}
        parts = {key: ", ".join(it[key] for it in each.values() if key in it) for key in _PARTS}
        said = error.told({name: it["error"] for name, it in each.items()})
        return {"error": said, **{key: part for key, part in parts.items() if part}}
    if isinstance(error, UserError):
        return {"error": str(error)}
    return {"error": type(error).__name__ if error is not None else "its process ended"}
