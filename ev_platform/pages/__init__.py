"""What every page and card for people shares: style, how templates are filled, and how a plot gets into a page.

What does not belong here: what a page says (`evaluation.report`, `corpus.report`).
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
# Inside of what makes an address one.
_ADDRESS = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)", re.IGNORECASE)
BLUE, AMBER, GREEN, RED = "#2563a8", "#c77700", "#1b7f4b", "#b3261e"


def render(folder: Path, template: str, **values: Any) -> str:
    """Render a template of a folder, which may extend `page.html.j2`; values are escaped.

    Args:
        folder: Where the template lies.
        template: Its file name.
        **values: What it shows.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def render_markdown(folder: Path, template: str, **values: Any) -> str:
    """Render a Markdown template of a folder; the filter `cell` makes a value one cell of a table (`table_cell`).

    Args:
        folder: Where the template lies.
        template: Its file name.
        **values: What it shows.
    """
    environment = Environment(  # noqa: S701 - Markdown; `cell` takes away what would break a table or be HTML
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = table_cell
    return environment.get_template(template).render(**values)


def table_cell(value: Any) -> str:
    """Make a value one cell of a Markdown table: one line, no column mark, no HTML, no start of a link."""
    text = " ".join(str("" if value is None else value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in ("\\", "|", "[", "]", "`"):
        text = text.replace(mark, f"\\{mark}")
    return text


def unlinked(text: str) -> str:
    """Break the addresses in the words of a stranger, which Markdown would make links of; they read as before."""
    return _ADDRESS.sub("\u200b", text)


def new_axes(height: float) -> tuple[Any, Any]:
    """Return a figure and its axes without frame, 4.6 inches wide and `height` inches of plot high."""
    # Figure itself instead of pyplot: no display backend, no global state. 4.6 inches keep the letters readable where
    # a phone shrinks the plot to its width.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 0.8 + height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=10, labelcolor=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure, axes


def svg_of(figure: Any, name: str, title: str) -> Markup:
    """Return a figure as SVG that goes into a page.

    Args:
        figure: Of matplotlib.
        name: Sets its ids apart from those of other plots in the page.
        title: What a screen reader says.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    # A fixed salt and no date: the same figures give the same page. Letters as paths: no font has to be there.
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Several plots stand in one document, where an id may occur once.
    for mark in (' id="', 'href="#', "url(#"):
        svg = svg.replace(mark, f"{mark}{name}-")
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1))  # noqa: S704  (our own figures)


def markdown_image(figure: Any, title: str) -> str:
    """Return a figure as a Markdown image that holds its own bytes (PNG)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f"![{title}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"
