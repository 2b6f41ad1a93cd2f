"""Who becomes champion: the gate's decision, a person's promotion, a rollback; every one of them is kept for ever.

A decision is a row of the table `promotions`; the aliases follow the last row. Rows are appended and aliases written
under the registry's lock, row first, so that a process killed in between has decided, and the next one finishes it.

What does not belong here: judging a version (`gate`) and the words of the note (`note`).
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ev_platform.errors import UserError
from ev_platform.records import Promotion, to_frame
from ev_platform.registry.aliases import locked, read_aliases, write_aliases
from ev_platform.registry.releases import checked_settings
from ev_platform.registry.takedown import tainted_versions
from ev_platform.registry.versions import OWN, VERY_SAME, resolve, versions_like
from ev_platform.storage import Store, now

NOTHING = "nothing changed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended for the endpoint: "promoted", "kept" or "nothing changed", and why, in a sentence."""

    outcome: str
    reason: str


def settle(store: Store, task: str) -> dict[str, str]:
    """Let the aliases say what the last decision says; to be called under `locked`.

    Usually they do already. They do not after a decision just written, or where a process was killed between the two.

    Returns:
        The aliases now in force.
    """
    aliases, decisions = read_aliases(store, task), store.read("promotions", task)
    if decisions.is_empty():
        return aliases
    last = decisions.tail(1).to_dicts()[0]
    champion = last["champion_after"]
    # Aliases that agree with neither end of the decision were written by an earlier release: leave them alone.
    if champion is None or aliases.get("champion") == champion or aliases.get("champion") != last["champion_before"]:
        return aliases
    # What answers as the champion does is nothing to go back to.
    alike = versions_like(store, task, champion, *OWN)
    previous = next((version for version in reversed(_line(decisions)) if version not in alike), None)
    if previous is None and last["decision"] != "rolled_back":
        previous = aliases.get("previous")  # of an earlier release
    aliases = {name: version for name, version in aliases.items() if name != "previous"} | {"champion": champion}
    if previous is not None:
        aliases["previous"] = previous
    write_aliases(store, task, aliases)
    return aliases


def _line(decisions: pl.DataFrame) -> list[str]:
    """Return the champions that rolling back goes through, the last one in place; who was left is not among them."""
    line: list[str] = []
    for before, after, decision in decisions.select("champion_before", "champion_after", "decision").rows():
        if before is not None and not line:
            line = [before]  # champion of an earlier release
        if decision == "rolled_back":
            left = line.pop() if line else None
            while after in line and line[-1] != after:
                line.pop()
            line = [version for version in line if version != left]
        if after is not None and line[-1:] != [after]:
            line.append(after)
    return line


def _rolled_back(store: Store, task: str, decisions: pl.DataFrame, version: str) -> str | None:
    """Return the version that a person took back and nobody brought back since, if this one is the same model.

    The same model has the same weights, whatever it is evaluated on; where a rollback went to other settings of the
    same weights, it has the same settings too.
    """
    moves = decisions.select("champion_before", "champion_after", "decision").rows()
    for columns in (("serving_model_id",), VERY_SAME):
        same, taken_back = versions_like(store, task, version, *columns), None
        for before, after, decision in moves:
            if decision == "rolled_back" and before in same and after not in same:
                taken_back = before
            elif before != after and after in same:
                taken_back = None
        if taken_back is not None:
            return taken_back
    return None


def _answers_as(store: Store, task: str, version: str, champion: str | None) -> bool:
    """Return whether two versions differ in how they were evaluated only."""
    return champion in versions_like(store, task, version, *VERY_SAME)


def decide(store: Store, task: str, gate: pl.DataFrame) -> tuple[pl.DataFrame, Outcome]:
    """Return what the table `promotions` is to be after the gate has judged the newest version, and how that ends.

    A version that passes every check takes the champion's place; one that fails leaves it. Nothing is decided anew
    about the champion itself, about one that was champion, about a model that a person rolled back, or where the same
    checks failed before. To be called under `locked`, and followed by `settle` once the table is published.

    Args:
        store: Where tables live.
        task: Partition.
        gate: The `promotion_gate` table.
    """
    decisions, champion = store.read("promotions", task), settle(store, task).get("champion")
    version, judged_against = gate.item(0, "model_version"), gate.item(0, "champion")
    failed = gate.filter(~pl.col("passed"))["check"].to_list()
    about = decisions.filter(pl.col("model_version") == version)
    if version == champion:
        return decisions, Outcome(NOTHING, f"{version} is champion already.")
    if version in {*decisions["champion_after"], *decisions["champion_before"]}:
        return decisions, Outcome(
            NOTHING, f"{version} was champion and {champion} took its place; it does not come back by itself."
        )
    taken_back = _rolled_back(store, task, decisions, version)
    if taken_back is not None:
        return decisions, Outcome(
            NOTHING,
            f"{version} is the model that was rolled back as {taken_back}; it does not come back by itself: a person "
            f"can promote it (`ev-platform models promote {version}`).",
        )
    if about.height and failed and about.tail(1).item(0, "failed_checks").to_list() == failed:
        return decisions, Outcome(NOTHING, f"{version} was kept back before because of {', '.join(failed)}.")
    if judged_against != champion and not _answers_as(store, task, version, champion):
        return decisions, Outcome(
            NOTHING,
            f"{version} was judged against {judged_against or 'no champion'}, but {champion or 'none'} answers now: "
            f"run `ev-platform run --task {task}` to judge it anew.",
        )
    if failed:
        stays = f"{champion} stays champion" if champion else "There is still no champion"
        reason = f"{stays}: {version} failed {_told(gate)}"
    elif champion:
        reason = f"{version} passed all {gate.height} checks and answers in the place of {champion}."
    else:
        reason = f"{version} passed all {gate.height} checks; there was no champion before it."
    row = Promotion(
        decided_at=now(),
        decision="kept" if failed else "promoted",
        model_version=version,
        champion_before=champion,
        champion_after=champion if failed else version,
        reason=reason,
        failed_checks=failed,
        decided_by="gate",
    )
    return pl.concat([decisions, to_frame("promotions", [row])]), Outcome(row.decision, reason)


def promote(store: Store, task: str, version: str, *, reason: str, by: str, override: bool = False) -> Promotion:
    """Make a version champion by a person's decision; returns the recorded row.

    Args:
        store: Where tables live.
        task: Partition.
        version: Version or alias.
        reason: Why; it is recorded.
        by: The person's login.
        override: Promote it though it failed the gate, or was never judged against the champion of today.

    Raises:
        UserError: If there is no such version, it is tainted (see `registry.takedown`), it cannot be served (see
            `releases.checked_settings`), it is champion already, the reason is empty, or it did not pass the gate and
            `override` is False.
    """
    _check_reason(reason)
    with locked(store, task):
        champion = settle(store, task).get("champion")
        name = _eligible(store, task, version, champion)
        gate = gate_of(store, task, name)
        if gate.is_empty():
            objection = f"{name} was never judged by the gate"
        elif not gate["passed"].all():
            objection = f"{name} failed the gate: {_told(gate)}"
        elif gate.item(0, "champion") != champion and not _answers_as(store, task, name, champion):
            objection = (
                f"{name} was judged against {gate.item(0, 'champion') or 'no champion'}, but {champion or 'none'} "
                "answers now"
            )
        else:
            objection = None
        if objection and not override:
            raise UserError(f"{objection.rstrip('.')}; to promote it all the same, override the gate (--override).")
        decision = "overridden" if objection else "promoted"
        failed = gate.filter(~pl.col("passed"))["check"].to_list()
        return _append(store, task, Promotion(now(), decision, name, champion, name, reason.strip(), failed, by))


def rollback(store: Store, task: str, *, reason: str, by: str, version: str | None = None) -> Promotion:
    """Let a version answer again that answered before; returns the recorded row.

    Args:
        store: Where tables live.
        task: Partition.
        reason: Why; it is recorded.
        by: The person's login.
        version: Which; `previous` where None.

    Raises:
        UserError: If there is none to go back to, it never was champion, it is tainted, it cannot be served (see
            `releases.checked_settings`), or the reason is empty.
    """
    _check_reason(reason)
    with locked(store, task):
        aliases = settle(store, task)
        champion = aliases.get("champion")
        if version is None and "previous" not in aliases:
            raise UserError(f"Task {task} has no previous champion to go back to: look at `ev-platform models list`.")
        name = _eligible(store, task, version or "previous", champion)
        answered = {*store.read("promotions", task)["champion_after"].drop_nulls(), aliases.get("previous")}
        if name not in answered:
            raise UserError(f"{name} has never been champion: use `ev-platform models promote {name}` instead.")
        return _append(store, task, Promotion(now(), "rolled_back", name, champion, name, reason.strip(), [], by))


def gate_of(store: Store, task: str, version: str) -> pl.DataFrame:
    """Return the rows of `promotion_gate` as they last stood for a version; empty if it was never judged."""
    found = store.read("promotion_gate", task).clear()
    for record in reversed(store.history("promotion_gate", task)):
        found = store.read("promotion_gate", task, record.version).filter(pl.col("model_version") == version)
        if found.height:
            break
    return found


def _told(gate: pl.DataFrame) -> str:
    failed = gate.filter(~pl.col("passed")).select("check", "reason").rows()
    return "; ".join(f"{check} ({reason.rstrip('.')})" for check, reason in failed) + "."


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise UserError("A decision by hand needs a reason, which is recorded with it: say why.")


def _eligible(store: Store, task: str, name: str, champion: str | None) -> str:
    row = resolve(store, task, name)
    version = row["model_version"]
    if version == champion:
        raise UserError(f"{version} is champion already: there is nothing to decide.")
    taint = tainted_versions(store, task).get(version)
    if taint is not None:
        raise UserError(
            f"{version} must not answer any more: {taint}; run `ev-platform run --task {task}` to make one without it."
        )
    checked_settings(store, task, row)
    return version


def _append(store: Store, task: str, row: Promotion) -> Promotion:
    old = store.current("promotions", task)
    store.publish(
        "promotions",
        task,
        pl.concat([store.read("promotions", task), to_frame("promotions", [row])]),
        # The gate's own decisions are computed from its table; with that unchanged, they need not be made again.
        key=old.key if old else "",
        inputs=old.inputs if old else None,
        config=old.config if old else None,
        code=old.code_version if old else "",
    )
    settle(store, task)
    return row
