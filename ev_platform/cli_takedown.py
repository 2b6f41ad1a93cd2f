"""The command `takedown`: what hangs on an address, removing it, allowing it again."""

from __future__ import annotations

import getpass
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ev_platform.errors import UserError
from ev_platform.settings import get_settings
from ev_platform.terminal import console, plain_errors, quiet, say

if TYPE_CHECKING:
    from ev_platform.lineage.takedown import Plan
    from ev_platform.storage import Store


@plain_errors
def takedown(
    url: Annotated[
        str | None, typer.Argument(help="An address, or the path of a PDF or text as the tables say it.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only in this task; in all of them by default.")] = None,
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")] = "",
    by: Annotated[str | None, typer.Option(help="Who decided it; your login by default.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; else it is only listed.")] = False,
    with_duplicates: Annotated[
        bool, typer.Option("--with-duplicates", help="Also other addresses with the same or nearly the same text.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Allow the address again; nothing comes back by itself.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="Show what was taken down, and what is to be rebuilt.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what hangs on an address; with --apply remove it everywhere, and fetch it no more.

    Not to be applied while a run is under way. A model's weights cannot be searched: versions that were trained on it
    are marked, and are promoted no more. Of machines that share an object store, each removes what lies in its own
    folder: run the same command on every one; --list says where it was not.

    Example: `ev-platform takedown https://site.example/page --reason "asked by its author" --apply`
    """
    quiet()
    from ev_platform.lineage.takedown import stored_tasks
    from ev_platform.lineage.takedown import undo as allow
    from ev_platform.storage import Store
    from ev_platform.tasks import find_tasks

    settings = get_settings()
    store = Store(settings.data_root)
    store.refresh()
    known = sorted({*stored_tasks(store), *find_tasks(settings.tasks_root)})
    if task is not None and task not in known:
        raise UserError(f"There is no task {task!r}; the tasks are {', '.join(known)}.")
    tasks = known if task is None else [task]
    if apply and not reason.strip():
        raise UserError("A takedown needs a reason, which is recorded with it: add --reason.")
    if show:
        _show(store, tasks, as_json)
    elif not url:
        raise UserError("Name the address to take down, or use --list.")
    elif undo:
        say(f"{url} may be fetched again in {', '.join(allow(store, url, tasks))}; the next run does.")
    else:
        _take_down(store, url, tasks, task is None, with_duplicates, apply, as_json, reason, by or getpass.getuser())


def _take_down(
    store: Store,
    url: str,
    tasks: list[str],
    for_all: bool,
    with_duplicates: bool,
    apply: bool,
    as_json: bool,
    reason: str,
    by: str,
) -> None:
    from ev_platform.defs.takedown import forget_runs
    from ev_platform.lineage.erase import erase, left_over
    from ev_platform.lineage.takedown import begin, finish, plan

    with console.status("looking") as status:
        made = plan(store, url, tasks, for_all_tasks=for_all, with_duplicates=with_duplicates)
        look = lambda what: status.update(f"looking into {escape(what)}")  # noqa: E731
        touched = erase(store, made, apply=False, progress=look).touched()
        if runs := forget_runs(store.root, made, apply=False):
            task = next(iter(touched), next(iter(made.tasks)))
            touched.setdefault(task, {})["Dagster runs"] = f"{len(runs)} removed"
        left: list[str] = []
        if apply:
            begin(store, made, touched, reason=reason, by=by)
            erase(store, made, apply=True, progress=look)
            forget_runs(store.root, made, apply=True)
            left = left_over(store, made)
            if not left:
                finish(store, made, reason=reason, by=by)
    found = _found(store, made, touched, left)
    if as_json:
        typer.echo(json.dumps(found, indent=1, sort_keys=True))
    else:
        _print(found, apply)
        if apply and store.is_shared and not left:
            say(
                "The object store holds none of it any more. Other machines have copies and logs of their own: run the "
                "same command on each."
            )
    if left:
        raise UserError(
            f"{len(left)} files still hold words of it, such as {left[0]}: if a run or a server was writing, run the "
            "same command again; else delete them."
        )


def _found(store: Store, made: Plan, touched: dict[str, dict[str, str]], left: list[str]) -> dict[str, Any]:
    from ev_platform.lineage.takedown import to_rebuild
    from ev_platform.registry import read_aliases

    tasks = {}
    for name, it in made.tasks.items():
        if not (it.ids.documents or it.ids.urls or name in touched):
            continue
        ids = {kind: sorted(getattr(it.ids, kind)) for kind in ("documents", "chunks", "examples", "calls")}
        tasks[name] = {
            **ids,
            "addresses": it.addresses,
            "also_held_by": it.held_by,
            "own_rows": it.own_rows,
            "trained_versions": it.trained,
            "holding_versions": it.holding,
            "aliases": read_aliases(store, name),
            "touched": touched.get(name, {}),
            "to_rebuild": to_rebuild(store, name),
        }
    return {"takedown_id": made.takedown_id, "url": made.url, "tasks": tasks, "left_over": left}


def _print(found: dict[str, Any], applied: bool) -> None:
    if not found["tasks"]:
        say(f"Nothing is stored of {found['url']}. {'It is not fetched any more.' if applied else ''}".strip())
        return
    for name, it in found["tasks"].items():
        say(
            f"{name}: {len(it['documents'])} documents, {len(it['chunks'])} chunks, {len(it['examples'])} examples, "
            f"{len(it['calls'])} teacher calls hang on {found['url']}."
        )
        table = Table("where", "what was done" if applied else "what --apply does")
        for place, what in sorted(it["touched"].items()):
            table.add_row(place, what)
        console.print(table)
        for what, values in (
            ("Addresses that are refused" if applied else "Addresses that would be refused", it["addresses"]),
            (
                f"Also held by, and kept ({'take each down' if applied else '--with-duplicates takes them too'})",
                it["also_held_by"],
            ),
            ("Rows of the task's own files, which are yours to change", it["own_rows"]),
            ("Model versions trained on it", it["trained_versions"]),
            ("Model versions that answer from its passages", it["holding_versions"]),
        ):
            if values:
                say(f"{what}: {', '.join(values)}.")
        champion = it["aliases"].get("champion")
        if champion in {*it["trained_versions"], *it["holding_versions"]}:
            why = "was trained on it" if champion in it["trained_versions"] else "answered from its passages"
            on = "goes on answering without its passages" if applied else "goes on answering"
            console.print(
                f"[bold red]The champion {escape(champion)} {why}, and {on}[/]: `ev-platform run --task {name}` makes "
                f"a version without it, `ev-platform models rollback --task {name} --version VERSION` goes back to one "
                "that never had it.",
                soft_wrap=True,
                highlight=False,
            )
        if applied and it["to_rebuild"]:
            say(f"The next run of {name} computes anew: {', '.join(it['to_rebuild'])}.")
    say(
        "No other file below the data folder holds its words; weights cannot be searched."
        if applied and not found["left_over"]
        else "Nothing was changed: add --apply and --reason."
        if not applied
        else "Not all of it is gone."
    )


def _show(store: Store, tasks: list[str], as_json: bool) -> None:
    from ev_platform.lineage.takedown import DONE, is_carried_out_here, to_rebuild

    rows = [
        {
            "task": name,
            **row,
            "here": is_carried_out_here(store, row["takedown_id"]),
            "to_rebuild": to_rebuild(store, name) if row["state"] == DONE else [],
        }
        for name in tasks
        for row in store.read("takedowns", name).to_dicts()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1, default=str))
        return
    if not rows:
        say("Nothing was taken down.")
        return
    table = Table("task", "address", "state", "decided", "by", "reason", "to be rebuilt by the next run")
    for row in rows:
        state = row["state"] if row["here"] or row["state"] != DONE else "done, but not in this folder: run it here"
        cells = [row["task"], row["url"], state, f"{row['decided_at']:%Y-%m-%d %H:%M}", row["decided_by"]]
        table.add_row(*map(escape, [*cells, row["reason"], ", ".join(row["to_rebuild"])]))
    console.print(table)
