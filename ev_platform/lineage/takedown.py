"""Taking an address down: what hangs on it, the record of it, and allowing it again.

A takedown is planned over all stored versions (`plan`), written down (`begin`), carried out (`erase.erase`), and
declared done (`finish`). The plan lies beside the tables, in ids and hashes and never in words, until all is gone: a
process killed in between is followed by the same command, which goes on with it. Of a store that several machines
share it stays there: each machine's folder has copies and logs of its own, which the same command, run there, removes.

What does not belong here: removing and masking (`erase`), the rules of what hangs on what (`dependants`), and what a
tainted version may not do (`registry`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import reduce
from operator import or_
from pathlib import Path

import polars as pl

from ev_platform.collect.journal import fetched_so_far, journal_path
from ev_platform.collect.refused import refusal_key
from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.identity import short_id
from ev_platform.lineage.dependants import BODIES, DOCUMENTS, ROWS, Ids, dependants, every, redact, versions
from ev_platform.lineage.quotes import Quotes
from ev_platform.records import Takedown, schema_of, to_frame
from ev_platform.storage import Store, now

REMOVING, DONE, UNDONE = "removing", "done", "undone"
_TABLES_OF_THE_GRAPH = (*BODIES, *DOCUMENTS, "chunks", "chunk_vectors", "qa_candidates", "examples", *ROWS)


@dataclass
class TaskPlan:
    """What hangs on an address in one task.

    Attributes:
        addresses: What is not fetched any more: the address, and those under which its documents were fetched.
        ids: What is removed and masked.
        held_by: Other addresses with the same or nearly the same text, which stay.
        own_rows: Rows of the task's own files that rest on it: they are their author's to change.
        trained: Model versions that were trained on it.
        holding: Model versions that answer from its passages.
    """

    addresses: list[str]
    ids: Ids
    held_by: list[str] = field(default_factory=list)
    own_rows: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    holding: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """What taking an address down means for a store.

    Attributes:
        takedown_id: Of the record.
        url: As it was named.
        for_all_tasks: Whether it is refused in tasks that never had it, too.
        tasks: By name, those that have it and those that it is asked of.
        hashes: Of its words; see `quotes`.
        begun_at: When it was written down first; tells it from one of the same address that was undone.
    """

    takedown_id: str
    url: str
    for_all_tasks: bool
    tasks: dict[str, TaskPlan]
    hashes: set[int]
    begun_at: str

    def ids_by_task(self) -> Callable[[str | None], Ids]:
        """Return a function that gives, for a task or for what belongs to none, the ids that count there.

        The same text under the same address has the same ids in every task: those of a task that is left alone stay.
        """
        together = reduce(or_, (it.ids for it in self.tasks.values()), Ids())

        def of(task: str | None) -> Ids:
            if self.for_all_tasks or task is None:
                return together
            return self.tasks[task].ids if task in self.tasks else Ids()

        return of

    @property
    def quotes(self) -> Quotes:
        """Its words, to look for."""
        return Quotes(self.hashes)


def stored_tasks(store: Store) -> list[str]:
    """Return the tasks that have any table."""
    return sorted({pointer.parent.name for pointer in store.root.glob("tables/*/*/CURRENT")})


def plan(store: Store, url: str, tasks: Iterable[str], *, for_all_tasks: bool, with_duplicates: bool = False) -> Plan:
    """Find all that hangs on an address, in every stored version; what a killed takedown had found is in it too.

    Args:
        store: Where everything lies.
        url: An address, or the path of a file as `raw_pdfs` or `raw_texts` says it.
        tasks: Where to look.
        for_all_tasks: Whether it is meant for all tasks.
        with_duplicates: Also take other addresses that hold the same or nearly the same text.
    """
    key = refusal_key(url)
    takedown_id = short_id("tkd", key, [] if for_all_tasks else sorted(tasks))
    made = Plan(takedown_id, url, for_all_tasks, {}, set(), now().isoformat())
    texts: set[str] = set()
    for task in sorted(tasks):
        made.tasks[task], own = _plan_task(store, task, key, url, with_duplicates)
        texts |= own
    others = (text for name in stored_tasks(store) for text in _other_texts(store, name, made.tasks.get(name)))
    quotes = Quotes.of(texts, others)
    made.hashes = quotes.hashes
    for task, it in made.tasks.items():
        _find_versions(store, task, it, quotes)
    return _merged(made, _read(store, made.takedown_id))


def _plan_task(store: Store, task: str, key: str, url: str, with_duplicates: bool) -> tuple[TaskPlan, set[str]]:
    columns = ["document_id", "url", "fetched_url", "text"]
    documents = pl.concat([every(store, table, task, columns) for table in DOCUMENTS]).unique(maintain_order=True)
    bodies = pl.concat([every(store, table, task, ["url", "final_url"]) for table in BODIES]).unique()
    under_way = fetched_so_far(journal_path(store.root, task))  # no table names it yet
    led = {row[0] for row in bodies.iter_rows() if key in map(refusal_key, row)}
    led |= {row["url"] for row in under_way if key in map(refusal_key, (row["url"], row.get("final_url") or ""))}
    its = {
        row[0] for row in documents.iter_rows() if row[2] in led or key in (refusal_key(row[1]), refusal_key(row[2]))
    }
    alike = _alike(store, task, documents, its)
    if with_duplicates:
        its |= alike
        alike = _alike(store, task, documents, its)
    fetched = led | set(documents.filter(pl.col("document_id").is_in(its))["fetched_url"])
    ids = dependants(store, task, fetched, its)
    ids.blobs |= {row["path"] for row in under_way if row["url"] in fetched and row.get("path")}
    found = TaskPlan(
        addresses=sorted({key if key.startswith("http") else url, *fetched}),
        ids=ids,
        held_by=sorted(set(documents.filter(pl.col("document_id").is_in(alike - its))["fetched_url"]) - fetched),
    )
    return found, set(documents.filter(pl.col("document_id").is_in(its))["text"].drop_nulls())


def _find_versions(store: Store, task: str, it: TaskPlan, quotes: Quotes) -> None:
    """Find the model versions and the rows of the task's own files that lose something, also by a mere quotation."""
    for row in store.read("registered_model", task).iter_rows(named=True):
        for table, version, names in (
            ("training_set", row["training_set_version"], it.trained),
            ("chunks", row["chunks_version"], it.holding),
        ):
            file = store.root / "tables" / table / task / f"{version}.parquet"
            if file.exists() and redact(table, store.read(table, task, version), it.ids, quotes).n_removed:
                names.append(row["model_version"])
    rows: set[str] = set()
    for frame in versions(store, "examples", task, schema_of("examples").names()):
        kept = redact("examples", frame, it.ids, quotes).frame
        rows |= set(frame.join(kept, on="example_id", how="anti")["row"].drop_nulls())
    it.own_rows = sorted(rows)


def _alike(store: Store, task: str, documents: pl.DataFrame, its: set[str]) -> set[str]:
    """Return the documents with the text of some others, or nearly: by cluster, by survivor, word by word."""
    same = documents.filter(pl.col("document_id").is_in(its) & (pl.col("text") != ""))["text"]
    alike = set(documents.filter(pl.col("text").is_in(same.implode()))["document_id"])
    clusters = every(store, "clean_documents", task, ["document_id", "cluster_id"])
    of_its = clusters.filter(pl.col("document_id").is_in(its))["cluster_id"]
    alike |= set(clusters.filter(pl.col("cluster_id").is_in(of_its.implode()))["document_id"])
    dropped = every(store, "dropped_documents", task, ["document_id", "duplicate_of"]).drop_nulls()
    survivors = {survivor for document, survivor in dropped.iter_rows() if document in its | alike}
    alike |= survivors | {d for d, survivor in dropped.iter_rows() if survivor in its | alike | survivors}
    return alike - its


def _other_texts(store: Store, task: str, planned: TaskPlan | None) -> Iterator[str]:
    gone = planned.ids.documents if planned else set()
    for table in (*DOCUMENTS, "chunks"):
        for frame in versions(store, table, task, ["document_id", "text"]):
            yield from frame.filter(~pl.col("document_id").is_in(gone))["text"].drop_nulls()
    # Every row of the dataset begins with them, whatever page repeats them.
    yield from every(store, "training_set", task, ["instruction"])["instruction"].drop_nulls()


# ---- the plan of a takedown under way ----


def _pointer(takedown_id: str) -> str:
    return f"takedowns/{takedown_id}.json"


def is_carried_out_here(store: Store, takedown_id: str) -> bool:
    """Return whether a takedown that is done was applied to this data folder; without an object store there is one."""
    if not store.is_shared:
        return True
    begun, mark = _read(store, takedown_id), _mark(store, takedown_id)
    return begun is not None and mark.exists() and mark.read_text() == begun.begun_at


def _mark(store: Store, takedown_id: str) -> Path:
    """Return the file by which a data folder says that a takedown was carried out in it."""
    return store.root / "takedowns" / f"{takedown_id}.done"


def _read(store: Store, takedown_id: str) -> Plan | None:
    data = store.read_pointer(_pointer(takedown_id))
    if not data:
        return None
    content = json.loads(data)
    tasks = {
        name: TaskPlan(**it | {"ids": Ids(**{kind: set(ids) for kind, ids in it["ids"].items()})})
        for name, it in content["tasks"].items()
    }
    return Plan(**content | {"tasks": tasks, "hashes": set(content["hashes"])})


def _merged(new: Plan, old: Plan | None) -> Plan:
    for task, before in (old.tasks if old else {}).items():
        it = new.tasks.setdefault(task, before)
        lists = [f.name for f in fields(TaskPlan) if f.name not in ("ids", "held_by")]
        joined = {name: sorted({*getattr(it, name), *getattr(before, name)}) for name in lists}
        new.tasks[task] = replace(it, ids=it.ids | before.ids, **joined)
    new.hashes |= old.hashes if old else set()
    new.begun_at = old.begun_at if old else new.begun_at
    return new


# ---- the record ----


def begin(store: Store, made: Plan, touched: dict[str, dict[str, str]], *, reason: str, by: str) -> None:
    """Write a takedown down before anything is removed: from here on its addresses are refused.

    Args:
        store: Where it will be carried out.
        made: Its plan.
        touched: By task, what will be done, by place.
        reason: Why.
        by: Who decided it.
    """
    content = asdict(made)
    store.write_pointer(_pointer(made.takedown_id), json.dumps(content, default=sorted).encode(), 0o600)
    _record(store, made, REMOVING, touched, reason, by)


def finish(store: Store, made: Plan, *, reason: str, by: str) -> None:
    """Declare a takedown done, which `begin` wrote down; its plan is deleted, unless other machines need it."""
    _record(store, made, DONE, {}, reason, by)
    if store.is_shared:
        write_atomic(_mark(store, made.takedown_id), made.begun_at.encode())
    else:
        (store.root / _pointer(made.takedown_id)).unlink(missing_ok=True)


def _record(store: Store, made: Plan, state: str, touched: dict[str, dict[str, str]], reason: str, by: str) -> None:
    rows = {task: store.read("takedowns", task) for task in made.tasks}
    own = {task: rows[task].filter(pl.col("takedown_id") == made.takedown_id).to_dicts() for task in made.tasks}
    holders = [task for task, it in made.tasks.items() if it.ids.documents or it.ids.urls or own[task]]
    for task in holders or sorted(made.tasks)[:1]:
        it, before, known = made.tasks[task], rows[task], own[task]
        old = known[0] if known else None
        names = ("addresses", "trained_versions", "holding_versions")
        # What a repeated takedown finds is what came since; what it found the first time is not there any more, and a
        # version stays one that was trained on it, though the address was allowed again in between.
        kept = {n: old[n] if old and (old["state"] != UNDONE or n != "addresses") else [] for n in names}
        said = json.loads(old["touched"]) if old and old["state"] != UNDONE else {}
        # After a kill there is less to do than there was.
        done = touched.get(task, {}) | said if old and old["state"] == REMOVING else said | touched.get(task, {})
        row = Takedown(
            takedown_id=made.takedown_id,
            url=made.url,
            addresses=sorted({*it.addresses, *kept["addresses"]}),
            reason=reason,
            decided_by=by,
            decided_at=old["decided_at"] if old and old["state"] != UNDONE else now(),
            state=state,
            for_all_tasks=made.for_all_tasks,
            touched=json.dumps(done, sort_keys=True),
            trained_versions=sorted({*it.trained, *kept["trained_versions"]}),
            holding_versions=sorted({*it.holding, *kept["holding_versions"]}),
        )
        rest = before.filter(pl.col("takedown_id") != made.takedown_id)
        store.publish("takedowns", task, pl.concat([rest, to_frame("takedowns", [row])]))


def undo(store: Store, url: str, tasks: Iterable[str]) -> list[str]:
    """Allow an address again; nothing comes back but by the next crawl.

    Returns:
        The tasks in which it was refused.

    Raises:
        UserError: If it was refused in none, or is being taken down.
    """
    key, allowed = refusal_key(url), []
    for task in tasks:
        rows = store.read("takedowns", task)
        mine = pl.Series([refusal_key(it) == key for it in rows["url"]], dtype=pl.Boolean) & (rows["state"] != UNDONE)
        if not mine.any():
            continue
        if (rows.filter(mine)["state"] == REMOVING).any():
            raise UserError(
                f"{url} is being taken down: run `ev-platform takedown --apply {url}` to its end, then allow it again."
            )
        state = pl.when(mine).then(pl.lit(UNDONE)).otherwise(pl.col("state")).alias("state")
        store.publish("takedowns", task, rows.with_columns(state))
        for takedown_id in rows.filter(mine)["takedown_id"] if store.is_shared else []:
            store.write_pointer(_pointer(takedown_id), b"", 0o600)  # what is fetched from now on was never taken down
        allowed.append(task)
    if not allowed:
        raise UserError(f"{url} was not taken down: `ev-platform takedown --list` shows what was.")
    return allowed


def to_rebuild(store: Store, task: str) -> list[str]:
    """Return the tables whose current version lost rows to a takedown and has not been computed anew since."""
    current = {table: store.current(table, task) for table in _TABLES_OF_THE_GRAPH}
    return [table for table, record in current.items() if record and "taken_down" in record.config]
