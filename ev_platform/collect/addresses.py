"""Which network addresses a host may lead to, and pins that make a request go to the very address that was checked.

What does not belong here: which hosts the sources allow at all (`fetch`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the IPv4 address is in the last 32 bits
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291, section 2.4: all that is handed out so far
_RESOLVE_TIMEOUT_S = 10.0
_RESOLVE_PAUSES_S = (0.25, 0.5)  # a name server that says "try again" is taken at its word

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(ip: IPAddress) -> bool:
    """Whether an address lies in the open internet.

    Private, loopback, link-local, shared (RFC 6598), multicast and reserved addresses do not, and neither do IPv6
    forms that carry such an IPv4 address (mapped, NAT64, 6to4).
    """
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


def spelled_address(host: str) -> IPAddress | None:
    """Return the address that a host name spells out, also as `127.1`, `2130706433` or `0x7f.1`, else None."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


class Addresses:
    """Looks each host up once and keeps what was found for the whole crawl.

    A name whose answers flip between a public and a private address (DNS rebinding) gains nothing: curl is given the
    addresses that were checked and asks nobody itself.

    Args:
        allowed: Hosts and addresses that the sources list. A private address is in bounds only if it is listed. A
            host that spells an address, or localhost, is one that whoever wrote the list wanted.

    Attributes:
        pins: `host:port:address,...` for curl's CURLOPT_RESOLVE, one for each host and port that was checked.
    """

    def __init__(self, allowed: Collection[str]):
        self.pins: list[str] = []
        self._allowed = allowed
        self._checked: dict[tuple[str, int], tuple[str, str] | None] = {}
        self._found: dict[str, asyncio.Task[list[str]]] = {}

    async def refusal(self, host: str, port: int, *, is_proxied: bool = False) -> tuple[str, str] | None:
        """Return a drop reason and its detail if the host may not be connected to, else None; then it is pinned.

        Args:
            host: In lower case, without brackets.
            port: To be connected to.
            is_proxied: A proxy will look the name up, so that one unknown here may be good there.
        """
        key = (host, port)
        if key not in self._checked:
            self._checked[key] = await self._check(host, port, is_proxied)
        return self._checked[key]

    async def _check(self, host: str, port: int, is_proxied: bool) -> tuple[str, str] | None:
        if spelled_address(host) is not None:
            return None  # nothing to look up; `fetch` asks only for hosts that are listed in this very spelling
        if host == "localhost" or host.endswith(".localhost"):
            return None  # RFC 6761, section 6.3: always loopback, and curl looks them up nowhere
        if host not in self._found:
            self._found[host] = asyncio.create_task(_resolve(host))
        found = await self._found[host]
        for address in found:
            ip = spelled_address(address)
            if (ip is None or not is_public(ip)) and address not in self._allowed:
                return "private_address", f"{host} resolves to {address}"
        if not found and not is_proxied:
            return "unreachable", "COULDNT_RESOLVE_HOST"
        pin = f"{host}:{port}:{','.join(f'[{a}]' if ':' in a else a for a in found)}"
        if found and pin not in self.pins:
            self.pins.append(pin)
        return None


async def _resolve(host: str) -> list[str]:
    for pause_s in (*_RESOLVE_PAUSES_S, None):
        try:
            lookup = asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found = await asyncio.wait_for(lookup, _RESOLVE_TIMEOUT_S)
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN or pause_s is None:
                return []
            await asyncio.sleep(pause_s)
        except (OSError, UnicodeError, TimeoutError):
            return []
        else:
            return sorted({str(entry[4][0]) for entry in found})
    return []
