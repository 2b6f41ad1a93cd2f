"""Who is told when a run failed: one POST of a few words to the address in EV_FAILURE_WEBHOOK.

What does not belong here: what is done about it (`weekly` tries again; then a person acts).
"""

from __future__ import annotations

import logging
from typing import Any

import httpx

from ev_platform.defs.run import RunFailedError
from ev_platform.defs.submit import run_page
from ev_platform.errors import UserError
from ev_platform.settings import get_settings

_log = logging.getLogger(__name__)
_TIMEOUT_S = 10


def tell_of_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Post what failed and where; a hook of the flow, for failures and crashes.

    The body is JSON with `text`, which chat services show, and the same in parts. An exception's own words are only
    sent where they are ours: those of a library may hold an address with a key in it.
    """
    address = get_settings().failure_webhook
    if address is None:
        return
    error = state.result(raise_on_failure=False) if state.is_failed() else None
    body = {"flow_run": flow_run.name, "flow_run_id": str(flow_run.id), "state": state.name, **_said(error)}
    body["tasks"] = list((flow_run.parameters or {}).get("tasks", ()))
    body["text"] = f"{flow.name} {flow_run.name} ({', '.join(body['tasks'])}) {state.name.lower()}: {body['error']}"
    try:
        reply = httpx.post(address.get_secret_value(), json=body, timeout=_TIMEOUT_S)
        if reply.is_error:
            _log.warning("The address in EV_FAILURE_WEBHOOK answered %s", reply.status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        # Neither the address, which may be a secret, nor the words of the error, which may hold it.
        _log.warning("The address in EV_FAILURE_WEBHOOK cannot be reached (%s)", type(problem).__name__)


def _said(error: Any) -> dict[str, Any]:
    if isinstance(error, RunFailedError):
        url = get_settings().dagster_url
        said = str(error) if error.is_final else f"{error.where} failed; its words are in the run"
        return {
            "error": said,
            "where": error.where,
            "dagster_run": error.run_id,
            **({"url": run_page(url, error.run_id)} if url else {}),
        }
    if isinstance(error, UserError):
        return {"error": str(error)}
    return {"error": type(error).__name__ if error is not None else "its process ended"}
