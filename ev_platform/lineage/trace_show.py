"""How a trace looks: a tree in the terminal, and a page.

Titles, questions and passages are strangers' words: here they are text, whatever they hold.

What does not belong here: what is in a trace (`trace`), its JSON (`Trace.as_dict`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.text import Text
from rich.tree import Tree

from ev_platform.lineage.trace import Side, Trace
from ev_platform.lineage.trace_facts import KINDS, Fact, Node
from ev_platform.pages import render

TITLES = {"back": "Comes from", "forward": "Led to"}
# Digests and the like: told of what is traced, and in the JSON, but not of everything around it.
_ASIDE = {
    "benchmark_fingerprint",
    "content_sha256",
    "git_commit",
    "key_id",
    "n_answer_tokens",
    "n_bytes",
    "path",
    "recipe",
    "recipe_fingerprint",
    "route",
    "sha256",
    "weights_sha256",
}


@dataclass(slots=True)
class Branch:
    """One line of the tree.

    Attributes:
        node: What it is about.
        is_again: Whether it stands further up with all that follows.
        branches: What it leads to.
        more: What it leads to besides, such as "1,234 more passages".
    """

    node: Node
    is_again: bool = False
    branches: list[Branch] = field(default_factory=list)
    more: list[str] = field(default_factory=list)


def outline(trace: Trace, direction: str) -> Branch:
    """Return one direction of a trace as a tree, in which each thing stands once with what follows from it."""
    side: Side = getattr(trace, direction)
    nodes = {trace.root.id: trace.root} | {node.id: node for node in side.nodes}
    next_: dict[str, dict[str, None]] = {}
    for edge in side.edges:
        near, far = (edge.parent, edge.child) if direction == "forward" else (edge.child, edge.parent)
        next_.setdefault(near, {})[far] = None
    more: dict[str, list[str]] = {}
    for left in side.unlisted:
        more.setdefault(left.id, []).append(f"{counted(left.kind, left.n, ' more')}")
    shown: set[str] = set()

    def branch(name: str) -> Branch:
        is_again, found = name in shown, Branch(nodes[name])
        shown.add(name)
        if is_again:
            found.is_again = bool(next_.get(name))
        else:
            found.branches = [branch(far) for far in next_.get(name, {})]
            found.more = more.get(name, [])
        return found

    return branch(trace.root.id)


def counted(kind: str, n: int, word: str = "") -> str:
    """Return such as "1 passage" or "1,234 passages", with a word after the number."""
    return f"{n:,}{word} {KINDS[kind].one if n == 1 else KINDS[kind].many}"


def summary(side: Side) -> str:
    """Return how many things of each kind are reached, in a sentence."""
    parts = [counted(kind, n) for kind, n in side.counts.items()]
    return ", ".join(parts) if parts else "nothing that is stored"


def facts_of(node: Node, *, all_: bool = False) -> list[tuple[str, str]]:
    """Return what is told of a thing as words, digests only where `all_` is."""
    told = [
        (name.removeprefix("n_").replace("_", " "), _words(name, value))
        for name, value in node.facts.items()
        if (all_ or name not in _ASIDE) and str(value) != node.label and not (name == "url" and str(value) in node.id)
    ]
    return told if node.is_stored else [*told, ("stored", "no longer; known by name only")]


def _words(name: str, value: Fact) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if name.startswith("n_") else str(value)


def short_name(node: Node) -> str:
    """Return its id; of a body the beginning of its hash, since its address stands beside."""
    return "sha256 " + node.id.rpartition("#sha256=")[2][:16] if node.kind == "body" else node.id


def print_trace(console: Console, trace: Trace) -> None:
    """Print a trace as trees, one for each direction."""
    console.print(_line(trace.root, all_=True), soft_wrap=False, highlight=False)
    for direction, title in TITLES.items():
        side: Side | None = getattr(trace, direction)
        if side is not None:
            console.print(Text.assemble("\n", (title, "bold"), f": {summary(side)}"), highlight=False)
            for tree in _tree(outline(trace, direction)).children:
                console.print(tree, highlight=False)


def _tree(branch: Branch) -> Tree:
    tree = Tree(_line(branch.node, is_again=branch.is_again), guide_style="dim")
    for child in branch.branches:
        tree.children.append(_tree(child))
    for more in branch.more:
        tree.add(Text(f"and {more}", "italic"))
    return tree


def _line(node: Node, *, all_: bool = False, is_again: bool = False) -> Group:
    name = node.id if all_ else short_name(node)
    head = Text.assemble((KINDS[node.kind].one, "cyan"), " ", (_plain(name), "bold"))
    if is_again:
        return Group(head.append(" (above)", "dim"))
    lines = [head]
    if node.label:
        lines.append(Text(_plain(node.label)))
    facts = " · ".join(f"{name}: {value}" for name, value in facts_of(node, all_=all_))
    if facts:
        lines.append(Text(_plain(facts), "dim"))
    return Group(*lines)


def _plain(text: str) -> str:
    """Whoever wrote a page must not steer the terminal of whoever reads."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def page(traces: list[Trace]) -> str:
    """Return a page that stands by itself."""
    shown = [
        (trace, [(title, getattr(trace, d), outline(trace, d)) for d, title in TITLES.items() if getattr(trace, d)])
        for trace in traces
    ]
    return render(
        Path(__file__).parent,
        "trace.html.j2",
        traces=shown,
        kinds=KINDS,
        facts_of=facts_of,
        short_name=short_name,
        counted=counted,
    )
