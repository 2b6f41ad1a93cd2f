"""Makes the three PDFs of the example from the Markdown texts beside this file.

Run as ``python ev_platform/examples/ev_charging/pdfs/make_pdfs.py [OUT_DIR]``. Two runs write the same
bytes: all dates come from the texts and the files carry no random identifier.

A text starts with ``key: value`` lines; blocks are separated by blank lines. Only what the texts need
is understood: ``## heading``, ``- list``, ``| table |`` and paragraphs. A number in brackets after a
column's name is the width of that column in points.
"""

from __future__ import annotations

import html
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pymupdf

HERE = Path(__file__).parent
PAPER = pymupdf.paper_rect("a4")
BODY = pymupdf.Rect(58, 80, PAPER.width - 58, PAPER.height - 76)
GUTTER = 20
TWO_LINES = 32
GREY = (0.35, 0.35, 0.35)
CSS = """
* {{ font-family: {font}; }}
body {{ font-size: 10.5pt; line-height: 1.35; margin: 0; }}
h1 {{ font-size: 22pt; margin: 0 0 4pt 0; }}
h2 {{ font-size: 12.5pt; margin: 11pt 0 4pt 0; color: #14506e; }}
p {{ margin: 3pt 0 4pt 0; }}
p.subtitle {{ color: #555555; margin: 0 0 10pt 0; }}
ul {{ margin: 3pt 0 4pt 0; padding-left: 12pt; }}
table {{ border-collapse: collapse; width: 100%; font-size: 9pt; }}
th, td {{ border: 0.5pt solid #888888; padding: 2.5pt; text-align: left; vertical-align: top; }}
"""


def read_text(path: Path) -> tuple[dict[str, str], list[str]]:
    """Returns the properties and the blocks of a Markdown text."""
    head, *blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip())
    return dict(line.split(": ", 1) for line in head.splitlines()), blocks


def table_row(line: str, widths: list[str], tag: str = "td") -> str:
    """Returns the HTML of one table row; every row sets the widths, as it may start a new page."""
    cells = [html.escape(cell.strip()) for cell in line.strip().strip("|").split("|")]
    styles = [f' style="width: {width}pt"' if width else "" for width in widths]
    return "".join(f"<{tag}{style}>{cell}</{tag}>" for style, cell in zip(styles, cells, strict=True))


def to_html(block: str) -> Iterator[tuple[str, str]]:
    """Yields the HTML of a block in pieces, each with the HTML to repeat above it on a new page."""
    lines = block.splitlines()
    if block.startswith("|"):
        columns = re.findall(r"([^|\[]+)(?:\[(\d+)\])?\s*\|", lines[0].lstrip("|"))
        widths = [width for _, width in columns]
        header = table_row("|".join(name for name, _ in columns), widths, "th")
        yield f"<table><tr>{header}</tr></table>", ""
        for line in lines[2:]:
            yield f"<table><tr>{table_row(line, widths)}</tr></table>", f"<table><tr>{header}</tr></table>"
    elif block.startswith("## "):
        yield f"<h2>{html.escape(block[3:])}</h2>", ""
    elif block.startswith("- "):
        yield "<ul>" + "".join(f"<li>{html.escape(line[2:])}</li>" for line in lines) + "</ul>", ""
    else:
        yield f"<p>{html.escape(' '.join(lines))}</p>", ""


class Pages:
    """Fills page after page, column after column, with pieces of HTML."""

    def __init__(self, columns: int, font: str) -> None:
        """Opens an empty document with the number of columns and the font family."""
        self.css = CSS.format(font=font)
        self.buffer = io.BytesIO()
        self.writer = pymupdf.DocumentWriter(self.buffer)
        self.width = (BODY.width - GUTTER * (columns - 1)) / columns
        self.lefts = [BODY.x0 + number * (self.width + GUTTER) for number in range(columns)]
        self.column = 0
        self.top = self.y = BODY.y0
        self.device = self.writer.begin_page(PAPER)

    def next_column(self) -> None:
        """Goes on in the next column, on a new page after the last one."""
        self.column += 1
        if self.column == len(self.lefts):
            self.writer.end_page()
            self.device = self.writer.begin_page(PAPER)
            self.column, self.top = 0, BODY.y0
        self.y = self.top

    def title(self, markup: str) -> None:
        """Sets the title block over the whole width; the columns start below it."""
        story = pymupdf.Story(markup, self.css)
        _, filled = story.place(BODY)
        story.draw(self.device)
        self.top = self.y = pymupdf.Rect(filled).y1

    def add(self, markup: str, repeat: str = "") -> None:
        """Adds one piece. Only lists and paragraphs are split over columns.

        Args:
            markup: The HTML of the piece.
            repeat: HTML to set again, above the piece, if it starts a new column.
        """
        story = pymupdf.Story(markup, self.css)
        _, filled = story.place(pymupdf.Rect(0, 0, self.width, 10 * PAPER.height))
        story.reset()
        height = pymupdf.Rect(filled).height
        if markup.startswith(("<p", "<ul")):
            height = min(height, TWO_LINES)
        elif markup.startswith(("<h2", "<table><tr><th")):
            height += TWO_LINES
        if self.y + height > BODY.y1:
            self.next_column()
            if repeat:
                self.add(repeat)
        more = True
        while more:
            left = self.lefts[self.column]
            more, filled = story.place(pymupdf.Rect(left, self.y, left + self.width, BODY.y1))
            story.draw(self.device)
            self.y = pymupdf.Rect(filled).y1
            if more:
                self.next_column()

    def finish(self) -> pymupdf.Document:
        """Closes the last page and returns the document."""
        self.writer.end_page()
        self.writer.close()
        return pymupdf.open("pdf", self.buffer.getvalue())


def stamp(document: pymupdf.Document, facts: dict[str, str]) -> None:
    """Writes the running header and footer on every page, and the document properties."""
    for number, page in enumerate(document, start=1):
        for y in (58, PAPER.height - 56):
            page.draw_line((BODY.x0, y), (BODY.x1, y), color=GREY, width=0.5)
        for y, left, right in (
            (52, facts["header"], facts["code"]),
            (PAPER.height - 44, "Plugfield Charging, CC BY 4.0", f"Page {number} of {len(document)}"),
        ):
            page.insert_text((BODY.x0, y), left, fontsize=8, color=GREY)
            x = BODY.x1 - pymupdf.get_text_length(right, fontsize=8)
            page.insert_text((x, y), right, fontsize=8, color=GREY)
    date = f"D:{facts['created'].replace('-', '')}090000Z"
    names = ("title", "author", "subject", "keywords")
    document.set_metadata(
        {name: facts[name] for name in names} | {"creationDate": date, "modDate": date, "producer": "PyMuPDF"}
    )


def make_pdf(source: Path, target: Path) -> None:
    """Writes the PDF of one Markdown text."""
    facts, blocks = read_text(source)
    pages = Pages(int(facts["columns"]), facts["font"])
    title, subtitle = html.escape(facts["title"]), html.escape(facts["subtitle"])
    pages.title(f'<h1>{title}</h1><p class="subtitle">{subtitle}</p>')
    for block in blocks:
        for markup, repeat in to_html(block):
            pages.add(markup, repeat)
    document = pages.finish()
    stamp(document, facts)
    document.subset_fonts()
    document.save(target, garbage=4, deflate=True, no_new_id=True)


def main() -> None:
    """Makes every PDF, in the folder given on the command line or beside the texts."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for source in sorted(HERE.glob("*.md")):
        make_pdf(source, folder / f"{source.stem}.pdf")


if __name__ == "__main__":
    main()
