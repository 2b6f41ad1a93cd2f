"""Where a server listens: address, port and certificate.

What does not belong here: what it answers (`api`), and the processes it is made of (`run`).
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ev_platform.errors import UserError

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

_KEEP_ALIVE_S = 90  # longer than a reverse proxy keeps a connection, which would else be closed under a request
_STOP_TIMEOUT_S = 15  # less than Serve gives a process before it kills it


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens.

    Attributes:
        host: Address.
        port: Port.
        tls_certificate: PEM file; with `tls_key`, it speaks HTTPS.
        tls_key: PEM file without a password.
    """

    host: str
    port: int
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    @property
    def url(self) -> str:
        """How a browser writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls_certificate else ''}://{host}:{self.port}"

    def check(self) -> None:
        """Raise a `UserError` if nothing can listen there, or the certificate cannot be used."""
        try:
            self.listen().close()
        except OSError as error:
            raise UserError(
                f"Cannot listen on {self.host} port {self.port} ({error.strerror}): stop what uses it, or choose "
                "another with --port or EV_PORT."
            ) from error
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UserError("TLS needs both a certificate and its key: set EV_TLS_CERTIFICATE and EV_TLS_KEY.")
        if self.tls_certificate and self.tls_key:
            try:
                # Without a password given, OpenSSL would ask for one on the terminal.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.tls_certificate, self.tls_key, password=lambda: "")
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{self.tls_certificate} and {self.tls_key} are not a certificate and its key ({error}): give PEM "
                    "files that belong together, the key without a password."
                ) from error

    def listen(self) -> socket.socket:
        """Return a socket that listens, also where the last one that did has only just died."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        return socket.create_server((self.host, self.port), family=family, backlog=2048)


def server_of(app: ASGIApp, endpoint: Endpoint) -> uvicorn.Server:
    """Return a server that speaks HTTP, or HTTPS, for an application; it logs nothing."""
    import uvicorn

    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_STOP_TIMEOUT_S,
        ssl_certfile=endpoint.tls_certificate,
        ssl_keyfile=endpoint.tls_key,
    )
    return uvicorn.Server(config)
