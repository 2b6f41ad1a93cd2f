"""A server on loopback that speaks Anthropic's Messages and Message Batches APIs, with faults on request and a count.

Shapes, headers and errors follow the API as the SDK's types state it (`anthropic.types`, `anthropic._exceptions`).
Streaming is refused, since no client here asks for it.

What is counted: every request by the hash of its content, in an append-only file that is flushed line by line, before
the reply leaves. `answered` are replies that are paid: 200s, also where they are malformed, refused or truncated, and,
as the worst case, requests that were stalled or whose connection was dropped. Errors (4xx, 5xx) cost nothing. A batch
is paid when it ends, for its requests that succeeded. `n_repeated` counts contents that got more than one paid reply
other than a stalled or dropped one: it is what must be 0 where nothing may be asked twice.

As a process: `python -m ev_platform_tests.teachers.anthropic_server --port 0 --log FILE ...` prints its address.
What does not belong here: what a request must look like (`anthropic_api`), HTTP (`anthropic_http`), batches
(`anthropic_batches`), and what the default answers say (`answers`).
"""

import argparse
import copy
import hashlib
import importlib
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from ev_platform_tests.teachers.answers import fill_schema
from ev_platform_tests.teachers.anthropic_api import (
    FAULTS,
    TRANSIENT,
    ApiError,
    check,
    content_hash,
    n_tokens,
    segments,
)
from ev_platform_tests.teachers.anthropic_batches import Batches
from ev_platform_tests.teachers.anthropic_http import Http, handler


@dataclass
class Options:
    """How the server behaves.

    Attributes:
        answerer: Takes a request's JSON and returns the text of the reply.
        faults: Share of the distinct contents that get a fault, by its name in `FAULTS`; together at most 1.
        seed: Which contents get which fault.
        fault_times: How many requests of one content a transient fault hits.
        stall_s: How long a stalled request waits before it is answered.
        latency_s: How long every reply takes.
        retry_after_s: What a 429 asks for, in seconds.
        requests_per_minute: More get a 429.
        api_key: The only one accepted; None accepts any.
        allowed: Whether the key may use the model; else 403.
        context_window: Longest prompt, in tokens.
        min_cache_tokens: Shorter prefixes are not cached.
        cache_ttl_s: How long a prefix stays cached after its last use.
        batch_delay_s: How long a batch takes.
        dropped_batch_creates: So many batches are made without an answer: the connection is dropped.
        input_usd: A million tokens of the prompt; writing the cache costs 1.25 of it, reading 0.1.
        output_usd: A million tokens of the reply.
        batch_factor: On both, in a batch.
    """

    answerer: object = fill_schema
    faults: dict = field(default_factory=dict)
    seed: int = 0
    fault_times: int = 1
    stall_s: float = 30.0
    latency_s: float = 0.0
    retry_after_s: float = 1
    requests_per_minute: int = 1_000_000
    api_key: str | None = None
    allowed: bool = True
    context_window: int = 200_000
    min_cache_tokens: int = 1024
    cache_ttl_s: float = 300.0
    batch_delay_s: float = 0.0
    dropped_batch_creates: int = 0
    input_usd: float = 1.0
    output_usd: float = 5.0
    batch_factor: float = 0.5


class AnthropicServer(Batches):
    """The server, in a thread of this process.

    Args:
        log: The append-only count; what it holds already is counted on.
        port: 0 takes a free one.
        **options: See `Options`.
    """

    def __init__(self, log, port=0, **options):
        self.options = Options(**options)
        if set(self.options.faults) - set(FAULTS) or sum(self.options.faults.values()) > 1:
            raise ValueError(f"faults are shares of {FAULTS} and at most 1 together: {self.options.faults}")
        self.events = []  # one dictionary a request, or a request within a batch, in order of arrival
        self._lock = threading.RLock()
        self._seen = Counter()  # content -> requests
        self._n_under_way = 0
        self._cache = {}  # hash of a prefix -> until when
        self._batches = {}  # id -> {"batch": as the API shows it, "requests": ..., "results": ...}
        self._window = (0, 0)  # minute, requests in it
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        self._log = Path(log).open("a+", encoding="utf-8")  # noqa: SIM115 - open as long as the server
        self._log.seek(0)
        for line in self._log:
            self.events.append(json.loads(line))
            self._seen[self.events[-1]["content"]] += 1
        self._http = Http(("127.0.0.1", port), handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        with self._lock:
            self._log.close()

    # ---- the count ----

    def _record(self, **event):
        with self._lock:
            self.events.append(event)
            # A request that was stalled until after the server's end is counted already.
            if not self._log.closed:
                self._log.write(json.dumps(event) + "\n")
                self._log.flush()

    def stats(self):
        """Return the count; see the module for what counts as answered."""
        with self._lock:
            events = [event for event in self.events if event["kind"] in ("message", "batch")]
        paid = [event for event in events if event["is_paid"]]
        answered = Counter(event["content"] for event in paid)
        broken_off = Counter(event["content"] for event in paid if event["fault"] in ("stalled", "dropped"))
        usage = Counter()
        for event in paid:
            usage.update(event["usage"])
        return {
            "n_requests": len(events),
            "n_contents": len({event["content"] for event in events}),
            "n_answered": len(paid),
            "n_broken_off": sum(broken_off.values()),
            "n_repeated": sum(n - broken_off[content] > 1 for content, n in answered.items()),
            "cost_usd": sum(event["cost_usd"] for event in paid),
            "usage": dict(usage),
            "by_status": dict(Counter(str(event["status"]) for event in events)),
            "by_fault": dict(Counter(event["fault"] for event in events if event["fault"])),
            "most_under_way": max((event.get("n_under_way", 0) for event in events), default=0),
            "answered": dict(answered),
        }

    # ---- messages ----

    def _fault(self, content):
        """Return the fault of a content: the same in every run with the same seed."""
        u = int(hashlib.sha256(f"{self.options.seed}:{content}".encode()).hexdigest()[:12], 16) / 16**12
        for name, share in self.options.faults.items():
            if u < share:
                return None if name in TRANSIENT and self._seen[content] > self.options.fault_times else name
            u -= share
        return None

    def count(self, params):
        """Return the tokens of a prompt."""
        return sum(n_tokens(text) for text, _ in segments(params))

    def _cached(self, params):
        """Return tokens (at full price, written to the cache, read from it), and mark what is cached now."""
        ends, n, digest = [], 0, hashlib.sha256(params["model"].encode())
        for text, is_end in segments(params):
            n += n_tokens(text)
            digest.update(b"\0" + text.encode())
            if is_end and n >= self.options.min_cache_tokens:
                ends.append((n, digest.hexdigest()))
        if not ends:
            return n, 0, 0
        now = time.monotonic()
        n_read = max((size for size, key in ends if self._cache.get(key, 0) > now), default=0)
        for _, key in ends:
            self._cache[key] = now + self.options.cache_ttl_s
        return n - ends[-1][0], ends[-1][0] - n_read, n_read

    def _message(self, params, fault, tier):
        text, reason, details = self.options.answerer(copy.deepcopy(params)), "end_turn", None
        n_out = n_tokens(text)
        if fault == "malformed":
            text = f"Here is the JSON: {text[: 2 * len(text) // 3]}"
        elif fault == "refused":
            text, reason, n_out = "", "refusal", 1
            details = {"type": "refusal", "category": None, "explanation": "declined by the test server"}
        elif fault == "truncated" or n_out > params["max_tokens"]:
            n_out, reason = params["max_tokens"], "max_tokens"
            text = text.encode()[: min(4 * n_out, len(text) // 2)].decode(errors="ignore")
        with self._lock:
            n_full, n_write, n_read = self._cached(params)
        usage = {
            "input_tokens": n_full,
            "cache_creation_input_tokens": n_write,
            "cache_read_input_tokens": n_read,
            "cache_creation": {"ephemeral_5m_input_tokens": n_write, "ephemeral_1h_input_tokens": 0},
            "output_tokens": n_out,
            "service_tier": tier,
        }
        return {
            "id": f"msg_{uuid4().hex[:24]}",
            "type": "message",
            "role": "assistant",
            "model": params["model"],
            "content": [{"type": "text", "text": text}] if text else [],
            "stop_reason": reason,
            "stop_sequence": None,
            "stop_details": details,
            "usage": usage,
        }

    def _paid(self, usage, factor=1.0):
        """Return (tokens by kind, dollars)."""
        o = self.options
        tokens = {
            "n_input_tokens": usage["input_tokens"],
            "n_cache_write_tokens": usage["cache_creation_input_tokens"],
            "n_cache_read_tokens": usage["cache_read_input_tokens"],
            "n_output_tokens": usage["output_tokens"],
        }
        full, write, read, out = tokens.values()
        return tokens, ((full + 1.25 * write + 0.1 * read) * o.input_usd + out * o.output_usd) * factor / 1e6

    def _check_length(self, params):
        if (n := self.count(params)) > self.options.context_window:
            raise ApiError(400, f"prompt is too long: {n} tokens > {self.options.context_window} maximum")

    def message(self, params, request_id):
        """Answer one request: (message, fault); the fault is "stalled", "dropped" or None.

        Raises:
            ApiError: For errors, those on request included.
        """
        at, content = time.time(), content_hash(params)
        with self._lock:
            self._n_under_way += 1
            n_under_way = self._n_under_way
        try:
            return self._answer(params, at, content, request_id, n_under_way)
        finally:
            with self._lock:
                self._n_under_way -= 1

    def _answer(self, params, at, content, request_id, n_under_way):
        event = {"kind": "message", "at": at, "content": content, "request_id": request_id, "fault": None}
        event["n_under_way"] = n_under_way  # with this one; what is stalled is not waited for
        try:
            check(params)
            self._check_length(params)
            with self._lock:
                self._seen[content] += 1
                event["fault"] = fault = self._fault(content)
            if (status := TRANSIENT.get(fault, 200)) != 200:
                headers = {"retry-after": f"{self.options.retry_after_s:g}"} if status == 429 else {}
                raise ApiError(
                    status, {429: "Rate limited", 500: "Internal server error", 529: "Overloaded"}[status], headers
                )
        except ApiError as error:
            self._record(**event, status=error.status, is_paid=False, usage={}, cost_usd=0.0)
            raise
        if self.options.latency_s:
            time.sleep(self.options.latency_s)
        message = self._message(params, fault, "standard")
        tokens, cost_usd = self._paid(message["usage"])
        self._record(**event, status=200, is_paid=True, usage=tokens, cost_usd=cost_usd)
        return message, fault if fault in ("stalled", "dropped") else None

    # ---- headers ----

    def authorize(self, headers):
        """Raise the API's errors for a missing version, a missing or wrong key, and one without permission."""
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not key:
            raise ApiError(401, "x-api-key header is required")
        if self.options.api_key is not None and key != self.options.api_key:
            raise ApiError(401, "invalid x-api-key")
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", headers.get("anthropic-version", "")):
            raise ApiError(400, "anthropic-version: header is required")
        if not self.options.allowed:
            raise ApiError(403, "Your API key does not have permission to use the specified resource")

    def limits(self):
        """Count a request against the minute; return its rate-limit headers and whether it is one too many."""
        now = time.time()
        with self._lock:
            minute, n = self._window
            self._window = (now // 60, n + 1 if minute == now // 60 else 1)
            n = self._window[1]
        limit, reset = self.options.requests_per_minute, (now // 60 + 1) * 60
        headers = {
            "anthropic-ratelimit-requests-limit": str(limit),
            "anthropic-ratelimit-requests-remaining": str(max(0, limit - n)),
            "anthropic-ratelimit-requests-reset": datetime.fromtimestamp(reset, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return headers, n > limit


def main():
    """Serve until the process ends."""
    parser = argparse.ArgumentParser(description="An Anthropic API on loopback, for tests.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", required=True, help="append-only file of the count")
    parser.add_argument("--answerer", help="dotted name, such as ev_platform_tests.teachers.answers.fill_schema")
    parser.add_argument("--faults", type=json.loads, default={}, help='JSON, such as {"overloaded": 0.05}')
    kinds = {"int": int, "float": float, "str": str, "str | None": str, int: int, float: float, str | None: str}
    for option in fields(Options):
        if option.name not in ("answerer", "faults", "allowed"):
            parser.add_argument(f"--{option.name.replace('_', '-')}", type=kinds[option.type], default=option.default)
    values = vars(parser.parse_args())
    if name := values.pop("answerer"):
        module, _, function = name.rpartition(".")
        values["answerer"] = getattr(importlib.import_module(module), function)
    server = AnthropicServer(**values)
    print(server.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
