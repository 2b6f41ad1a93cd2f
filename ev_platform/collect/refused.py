"""Addresses that were taken down: they are not fetched, and nothing that says it is one of them is kept.

What does not belong here: taking down what is stored (`lineage.takedown`).
"""

from __future__ import annotations

import re

from ev_platform.collect.links import tag_attributes
from ev_platform.collect.urls import address_key, normalise
from ev_platform.storage import Store

TAKEN_DOWN = "taken_down"
_HEAD_BYTES = 200_000
_LINK = re.compile(r"<link\b([^>]*)>", re.I)


def refusal_key(address: str) -> str:
    """Return what all spellings of an address share; a path, or what names a row, is taken as it is."""
    url = normalise(address) if address.startswith(("http://", "https://")) else None
    return address_key(url) if url else address


def refused_addresses(store: Store, task: str) -> frozenset[str]:
    """Return the keys of the addresses that a task must not fetch any more."""
    keys: set[str] = set()
    for pointer in sorted((store.root / "tables" / "takedowns").glob("*/CURRENT")):
        name = pointer.parent.name
        for row in store.read("takedowns", name).iter_rows(named=True):
            if row["state"] != "undone" and (row["for_all_tasks"] or name == task):
                keys |= {refusal_key(address) for address in row["addresses"]}
    return frozenset(keys)


def canonical_key(body: bytes, url: str) -> str | None:
    """Return the key of the address that a page says is its own, None where it says none."""
    for written in _LINK.findall(body[:_HEAD_BYTES].decode("utf-8", "replace")):
        attributes = tag_attributes(written)
        if "canonical" in attributes.get("rel", "").lower().split():
            named = normalise(attributes.get("href", ""), url)
            return address_key(named) if named else None
    return None
