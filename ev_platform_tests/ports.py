"""Ports on which nothing listens."""

import contextlib
import random
import socket


def free_port() -> int:
    """Return a port of this machine on which nothing listens, and which no connection is given meanwhile."""
    while True:
        # Below those that the system gives to connections: another test's would take it before it is listened on.
        port = random.SystemRandom().randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
