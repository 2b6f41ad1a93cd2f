"""One request and what came of it, within its limits of time and size, whatever the server does.

What does not belong here: whether an address may be asked, redirects and second attempts (`fetch`).
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO

# The server's own way of speaking, which it will not have changed by the next attempt.
_NO_HTTP = ("UNSUPPORTED_PROTOCOL", "WEIRD_SERVER_REPLY", "TOO_LARGE")
_NOT_ASKED_FOR = ("br", "zstd", "compress", "x-compress", "dcb", "dcz")
_MAX_LAYERS = 2  # of content encodings; more is a trick, not a saving
_MAX_MEMBERS = 100  # of one gzip body; each costs a copy of the rest
_FOLDED = re.compile(r"\n[ \t]+")  # RFC 9112, section 5.2


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request.

    Attributes:
        url: The last address asked, in the site's own form.
        status: HTTP status, or None if no complete answer came.
        headers: By lower-case name.
        body: As far as it was read, unpacked.
        drop_reason: Why the body is not usable, else None.
        drop_detail: The same words every time, so that a lasting failure is the same row every time.
        robots: What robots.txt said of `url`: `allowed`, `disallowed`, `none` (there is no file), `unreadable` (it
            failed, so nothing is fetched), `ignored` (the sources say so) or `not_applicable` (it was not asked for).
    """

    url: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    drop_reason: str | None = None
    drop_detail: str | None = None
    robots: str = "not_applicable"


class Client:
    """Sends GET requests, over connections that are kept for the next ones; made and closed within one event loop.

    It stands directly on curl_cffi's `AsyncCurl`: what a session does for every request (all options anew, a cookie
    jar, an object of the answer) takes longer than the transfer of a page. No cookie is ever kept.

    Args:
        headers: Sent with every request.
        timeout_s: For a whole transfer, however steadily it drips.
        pins: `host:port:address,...` (CURLOPT_RESOLVE); more may be added to the list at any time.
    """

    def __init__(self, headers: Mapping[str, str], *, timeout_s: float, pins: Sequence[str]):
        from curl_cffi import AsyncCurl

        self._headers = headers
        self._timeout_s = timeout_s
        self._pins = pins
        self._multi = AsyncCurl()
        self._idle: list[_Handle] = []
        self._busy: set[_Handle] = set()

    async def close(self) -> None:
        """End all transfers, whose requests are cancelled, and close the connections."""
        for handle in [*self._busy, *self._idle]:
            self._drop(handle)
        self._idle.clear()
        await self._multi.close()

    async def request(
        self, url: str, *, sent_to: str, headers: Mapping[str, str], proxy: str, max_bytes: int, robots: str
    ) -> Answer:
        """Send one GET request and read the answer.

        Args:
            url: For the answer.
            sent_to: Where the request goes; differs from `url` for a mirror.
            headers: To be sent beside the usual ones.
            proxy: Empty for none.
            max_bytes: Upper bound of the body, both as transferred and unpacked.
            robots: For the answer.

        Returns:
            The answer. Its `drop_reason` is None, `too_large` (then `body` is how it begins), `timeout`, `unreachable`
            (no connection, or one that broke off before the answer was whole) or `broken_answer` (no valid HTTP, or a
            packed body that is cut short or spoilt).
        """
        from curl_cffi import CurlECode, CurlError

        handle = self._take()
        self._busy.add(handle)
        try:
            handle.prepare(sent_to, {**self._headers, **headers}, proxy, max_bytes)
            await self._multi.add_handle(handle.curl)
        except CurlError as error:
            status, sent, body = handle.answer()
            self._drop(handle)
            if len(body) > max_bytes:
                start = b"" if "content-encoding" in sent else body[:max_bytes]
                return Answer(url, status, {}, start, "too_large", f"more than {max_bytes} bytes", robots)
            if error.code == CurlECode.OPERATION_TIMEDOUT:
                detail = f"no complete answer within {self._timeout_s:g} s"
                return Answer(url, drop_reason="timeout", drop_detail=detail, robots=robots)
            name = CurlECode(error.code).name
            reason = "broken_answer" if name in _NO_HTTP else "unreachable"
            return Answer(url, drop_reason=reason, drop_detail=name, robots=robots)
        except BaseException:
            self._drop(handle)
            raise
        status, sent, body = handle.answer()
        self._busy.remove(handle)
        self._idle.append(handle)
        encodings = sent.get("content-encoding")
        if not encodings or not body:
            return Answer(url, status, sent, body, robots=robots)
        try:
            content = unpack(body, encodings, max_bytes)
        except ValueError as error:
            return Answer(url, drop_reason="broken_answer", drop_detail=str(error), robots=robots)
        if len(content) > max_bytes:
            return Answer(url, status, sent, content[:max_bytes], "too_large", f"more than {max_bytes} bytes", robots)
        return Answer(url, status, sent, content, robots=robots)

    def _take(self) -> _Handle:
        while self._idle:
            handle = self._idle.pop()
            if handle.n_pins == len(self._pins):
                return handle
            handle.curl.close()  # made before a host was pinned; the connections are not the handle's
        return _Handle(self._timeout_s, self._pins)

    def _drop(self, handle: _Handle) -> None:
        # After an error, or a request that is no longer waited for: curl may not be done with it.
        if handle in self._busy:
            self._busy.remove(handle)
            self._multi.remove_handle(handle.curl)
        handle.curl.close()


class _Handle:
    """A handle of curl, its options set, and what it receives. Options stay as they are from request to request."""

    def __init__(self, timeout_s: float, pins: Sequence[str]):
        from curl_cffi import Curl, CurlOpt

        self.curl = Curl()
        self.n_pins = len(pins)
        self._proxy = ""
        self._lines: list[bytes] = []
        self._head = BytesIO()
        self._chunks: list[bytes] = []
        self._n_bytes = self._max_bytes = 0
        for option, value in {
            CurlOpt.PROTOCOLS_STR: "http,https",
            CurlOpt.PROXY: "",  # not what the environment says
            CurlOpt.TIMEOUT_MS: int(timeout_s * 1000),
            CurlOpt.ACCEPT_ENCODING: "gzip, deflate",  # what `unpack` knows
            CurlOpt.HTTP_CONTENT_DECODING: 0,
            CurlOpt.RESOLVE: pins,
        }.items():
            self.curl.setopt(option, value)

    def prepare(self, url: str, headers: Mapping[str, str], proxy: str, max_bytes: int) -> None:
        """Set what differs from the request before."""
        from curl_cffi import CurlOpt

        self._head.seek(0)
        self._head.truncate()
        self._chunks, self._n_bytes, self._max_bytes = [], 0, max_bytes
        self.curl.setopt(CurlOpt.URL, url)
        if proxy != self._proxy:
            self.curl.setopt(CurlOpt.PROXY, proxy)
            self._proxy = proxy
        lines = [f"{name}: {value}".encode() for name, value in headers.items()]
        if lines != self._lines:
            # curl_cffi adds lines to those before unless they are cleared, and the callbacks are cleared with them.
            self.curl.clean_handles_and_buffers(clear_resolve=False)
            self.curl.setopt(CurlOpt.HTTPHEADER, lines)
            self.curl.setopt(CurlOpt.HEADERDATA, self._head)
            self.curl.setopt(CurlOpt.WRITEFUNCTION, self._receive)
            self._lines = lines

    def _receive(self, data: bytes) -> int:
        from curl_cffi.curl import CURL_WRITEFUNC_ERROR

        self._chunks.append(data)
        self._n_bytes += len(data)
        return len(data) if self._n_bytes <= self._max_bytes else CURL_WRITEFUNC_ERROR

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers by lower-case name and the body, as far as they came."""
        from curl_cffi import CurlInfo

        status = self.curl.getinfo(CurlInfo.RESPONSE_CODE)
        body, self._chunks = b"".join(self._chunks), []
        return int(status), _headers(self._head.getvalue()), body  # type: ignore[arg-type]  # a number, of this one


def _headers(head: bytes) -> dict[str, str]:
    """Read the last header section: not those of 1xx answers and proxies before it, and not the trailers behind."""
    try:
        text = head.decode()
    except UnicodeDecodeError:
        text = head.decode("latin-1")
    sections = [part for part in text.replace("\r\n", "\n").split("\n\n") if part.startswith("HTTP/")]
    found: dict[str, list[str]] = defaultdict(list)
    for line in _FOLDED.sub(" ", sections[-1]).split("\n")[1:] if sections else ():
        name, _, value = line.partition(":")
        found[name.strip().lower()].append(value.strip())
    return {name: ", ".join(values) for name, values in found.items()}


def unpack(body: bytes, encodings: str, max_bytes: int) -> bytes:
    """Undo `Content-Encoding` (RFC 9110, section 8.4), giving at most `max_bytes` + 1 bytes.

    curl could do it, but takes a gzip stream that ends early for whole. Names that are no packing (some servers put
    `utf-8` there) mean nothing, as in browsers.

    Raises:
        ValueError: If the body is packed in a way that was not asked for, or is spoilt or cut short.
    """
    layers = [name for part in encodings.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if len(layers) > _MAX_LAYERS:
        raise ValueError(f"more than {_MAX_LAYERS} content encodings")
    for name in reversed(layers):
        if name in ("gzip", "x-gzip"):
            body = _inflate(body, 31, max_bytes)
        elif name == "deflate":  # zlib's format; some servers leave its frame away
            has_frame = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
            body = _inflate(body, 15 if has_frame else -15, max_bytes)
        elif name in _NOT_ASKED_FOR:
            raise ValueError(f"content encoding {name}, which was not asked for")
        if len(body) > max_bytes:
            break
    return body


def _inflate(body: bytes, window_bits: int, max_bytes: int) -> bytes:
    content = b""
    for _ in range(_MAX_MEMBERS):
        stream = zlib.decompressobj(window_bits)
        try:
            content += stream.decompress(body, max_bytes + 1 - len(content))
        except zlib.error as error:
            raise ValueError("the packed body is spoilt") from error
        if len(content) > max_bytes:
            return content
        if not stream.eof:
            raise ValueError("the packed body is cut short")
        # gzip allows several members in a row (RFC 1952, section 2.2); other bytes behind the end mean nothing.
        if window_bits != 31 or not stream.unused_data.startswith(b"\x1f\x8b"):
            return content
        body = stream.unused_data
    raise ValueError(f"more than {_MAX_MEMBERS} gzip members")
