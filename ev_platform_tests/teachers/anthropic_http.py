"""Which request goes where on the local server, and how its answer is written.

What does not belong here: what the answers are (`anthropic_server`, `anthropic_batches`).
"""

import contextlib
import json
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from ev_platform_tests.teachers.anthropic_api import ApiError, check


class Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        """Say nothing of clients that went away."""


def handler(server):
    """Return the class that answers one connection's requests for a server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def _handle(self, method):
            self.request_id, self.extra = f"req_{uuid4().hex[:24]}", {}
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            url = urlsplit(self.path)
            try:
                if url.path == "/_stats":
                    return self._send(200, server.stats())
                server.authorize(self.headers)
                answer, fault = self._route(method, url.path.rstrip("/"), parse_qs(url.query), body)
            except ApiError as error:
                is_again = error.status == 429 or error.status >= 500
                self.extra |= {**error.headers, "x-should-retry": "true" if is_again else "false"}
                return self._send(error.status, error.body(self.request_id))
            if fault == "stalled":
                time.sleep(server.options.stall_s)
            if fault == "dropped":
                self.close_connection = True
                return None
            return self._send(200, answer)

        def _route(self, method, path, query, body):
            if method == "POST" and path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches"):
                if len(body) > (256 if path.endswith("batches") else 32) * 2**20:
                    raise ApiError(413, "Request exceeds the maximum size")
                self.extra, is_too_many = server.limits()
                if is_too_many:
                    raise ApiError(429, "Rate limited", {"retry-after": f"{server.options.retry_after_s:g}"})
                try:
                    params = json.loads(body)
                except ValueError as error:
                    raise ApiError(400, f"The request body is not valid JSON: {error}") from None
                if path == "/v1/messages":
                    return server.message(params, self.request_id)
                if path.endswith("count_tokens"):
                    check(params, is_count=True)
                    return {"input_tokens": server.count(params)}, None
                return server.create_batch(params, f"http://{self.headers['host']}")
            if method == "GET" and path == "/v1/messages/batches":
                return server.list_batches(query), None
            found = re.fullmatch(r"/v1/messages/batches/(\w+)(/results|/cancel)?", path)
            if found and method == "GET" and found[2] is None:
                return server.batch(found[1]), None
            if found and method == "GET" and found[2] == "/results":
                return server.batch_results(found[1]), None
            if found and method == "POST" and found[2] == "/cancel":
                return server.cancel_batch(found[1]), None
            raise ApiError(404, f"Not found: {path}")

        def _send(self, status, answer):
            if isinstance(answer, list):
                kind, data = "application/x-jsonl", "".join(json.dumps(line) + "\n" for line in answer).encode()
            else:
                kind, data = "application/json", json.dumps(answer).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                for name, value in {"request-id": self.request_id, **self.extra, "content-type": kind}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()

        def do_GET(self):
            self._handle("GET")

        def do_POST(self):
            self._handle("POST")

        def log_message(self, *args):
            pass

    return Handler
