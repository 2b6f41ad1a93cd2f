"""The Message Batches API of the local server: made, looked at, listed, cancelled, and their results.

What does not belong here: single messages, HTTP and the count (`anthropic_server`).
"""

import copy
import hashlib
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from ev_platform_tests.teachers.anthropic_api import CUSTOM_ID, TRANSIENT, ApiError, check, content_hash


class Batches:
    """The part of `AnthropicServer` that answers batches; it keeps them in `_batches`."""

    def create_batch(self, body, base):
        """Make a batch; it ends after `batch_delay_s`."""
        requests = body.get("requests")
        if not isinstance(requests, list) or not 1 <= len(requests) <= 100_000:
            raise ApiError(400, "requests: List should have 1 to 100000 items")
        for i, request in enumerate(requests):
            if not isinstance(request, dict) or not CUSTOM_ID.fullmatch(str(request.get("custom_id", ""))):
                raise ApiError(400, f"requests.{i}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
            if not isinstance(request.get("params"), dict):
                raise ApiError(400, f"requests.{i}.params: Field required")
        if len({request["custom_id"] for request in requests}) < len(requests):
            raise ApiError(400, "requests: custom_id must be unique within a batch")
        created = datetime.now(UTC)
        batch = {
            "id": f"msgbatch_{uuid4().hex[:24]}",
            "type": "message_batch",
            "processing_status": "in_progress",
            "request_counts": {"processing": len(requests), **_tally([])},
            "created_at": created.isoformat(),
            "expires_at": (created + timedelta(days=1)).isoformat(),
            "ended_at": None,
            "cancel_initiated_at": None,
            "archived_at": None,
            "results_url": None,
        }
        with self._lock:
            self._batches[batch["id"]] = {"batch": batch, "requests": requests, "results": None, "base": base}
            is_dropped = self.options.dropped_batch_creates > 0
            self.options.dropped_batch_creates -= is_dropped
        if self.options.batch_delay_s:
            timer = threading.Timer(self.options.batch_delay_s, self.end_batch, [batch["id"]])
            timer.daemon = True
            timer.start()
        else:
            self.end_batch(batch["id"])
        return self.batch(batch["id"]), "dropped" if is_dropped else None

    def end_batch(self, batch_id):
        """Answer all requests of a batch, once."""
        with self._lock:
            entry = self._batches.get(batch_id)
            if entry is None or entry["results"] is not None:
                return
            batch = entry["batch"]
            is_cancelled = batch["processing_status"] == "canceling"
            results = [
                {
                    "custom_id": r["custom_id"],
                    "result": {"type": "canceled"} if is_cancelled else self._result(r, batch_id),
                }
                for r in entry["requests"]
            ]
            # The API promises no order.
            entry["results"] = sorted(results, key=lambda line: hashlib.sha256(line["custom_id"].encode()).digest())
            batch |= {
                "processing_status": "ended",
                "ended_at": datetime.now(UTC).isoformat(),
                "request_counts": {"processing": 0, **_tally(results)},
                "results_url": f"{entry['base']}/v1/messages/batches/{batch_id}/results",
            }

    def _result(self, request, batch_id):
        params = request["params"]
        event = {"kind": "batch", "at": time.time(), "content": content_hash(params), "request_id": batch_id}
        self._seen[event["content"]] += 1
        fault = self._fault(event["content"])
        fault = None if fault in ("rate_limited", "dropped") else fault  # a batch waits, and its connection is not held
        try:
            check(params)
            self._check_length(params)
            if fault in ("server_error", "overloaded"):
                raise ApiError(TRANSIENT[fault], fault.replace("_", " "))
        except ApiError as error:
            self._record(**event, fault=fault, status=error.status, is_paid=False, usage={}, cost_usd=0.0)
            return {"type": "errored", "error": error.body(None)}
        if fault == "stalled":
            self._record(**event, fault=fault, status=408, is_paid=False, usage={}, cost_usd=0.0)
            return {"type": "expired"}
        message = self._message(params, fault, "batch")
        tokens, cost_usd = self._paid(message["usage"], self.options.batch_factor)
        self._record(**event, fault=fault, status=200, is_paid=True, usage=tokens, cost_usd=cost_usd)
        return {"type": "succeeded", "message": message}

    def _entry(self, batch_id):
        if batch_id not in self._batches:
            raise ApiError(404, f"Batch {batch_id} not found")
        return self._batches[batch_id]

    def batch(self, batch_id):
        with self._lock:
            return copy.deepcopy(self._entry(batch_id)["batch"])

    def cancel_batch(self, batch_id):
        with self._lock:
            batch = self._entry(batch_id)["batch"]
            if batch["processing_status"] == "ended":
                raise ApiError(400, f"Batch {batch_id} has ended and cannot be canceled")
            batch |= {"processing_status": "canceling", "cancel_initiated_at": datetime.now(UTC).isoformat()}
        return self.batch(batch_id)

    def batch_results(self, batch_id):
        with self._lock:
            results = self._entry(batch_id)["results"]
        if results is None:
            raise ApiError(404, f"Batch {batch_id} has no available results")
        return results

    def list_batches(self, query):
        """Return a page, newest first."""
        limit = int(query.get("limit", ["20"])[0])
        if not 1 <= limit <= 1000:
            raise ApiError(400, "limit: Input should be between 1 and 1000")
        with self._lock:
            ids = list(reversed(self._batches))
            if after := query.get("after_id"):
                ids = ids[ids.index(after[0]) + 1 :] if after[0] in ids else []
            if before := query.get("before_id"):
                ids = ids[: ids.index(before[0])][-limit:] if before[0] in ids else []
            page = [copy.deepcopy(self._batches[i]["batch"]) for i in ids[:limit]]
        first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        return {"data": page, "has_more": len(ids) > limit, "first_id": first, "last_id": last}


def _tally(results):
    counts = Counter(line["result"]["type"] for line in results)
    return {name: counts[name] for name in ("succeeded", "errored", "canceled", "expired")}
