"""A page of headings, paragraphs, tables and figures, on the terminal and as HTML.

The HTML file is complete in itself: its figures are in it. They need matplotlib, and are
left out without it.
"""

import base64
import dataclasses
import html
import os
import textwrap
from collections.abc import Callable

from plumbing.console import printable


@dataclasses.dataclass
class Heading:
    text: str

    def as_text(self):
        return f"\n{self.text}\n{'-' * len(self.text)}"

    def as_html(self, pictures):
        return f"<h2>{html.escape(self.text)}</h2>"


@dataclasses.dataclass
class Paragraph:
    text: str

    def as_text(self):
        return textwrap.fill(self.text, 92)

    def as_html(self, pictures):
        return f"<p>{html.escape(self.text)}</p>"


@dataclasses.dataclass
class Table:
    header: list                # [columns] strings
    rows: list                  # [rows][columns] strings

    def as_text(self):
        lines = [self.header, *self.rows]
        # The last column is not padded: texts are long.
        widths = [max(map(len, cells)) for cells in list(zip(*lines))[:-1]]
        return "\n".join("  " + "  ".join([
            *(cell.rjust(width) for cell, width in zip(line, widths)), line[-1]]).rstrip()
            for line in lines)

    def as_html(self, pictures):
        def line(cells, tag):
            cells = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr>{cells}</tr>"
        rows = "".join(line(row, "td") for row in self.rows)
        return f"<table>{line(self.header, 'th')}{rows}</table>"


@dataclasses.dataclass
class Figure:
    name: str                   # of its file
    caption: str
    draw: Callable              # fills a matplotlib figure
    size: tuple = (9, 3.6)      # inches

    def as_text(self):
        return f"[{self.caption}: {self.name}.png]"

    def as_html(self, pictures):
        """pictures: {name: PNG bytes}, without those that could not be drawn"""
        if self.name not in pictures:
            return ""
        encoded = base64.b64encode(pictures[self.name]).decode()
        caption = html.escape(self.caption)
        return (f'<figure><img alt="{caption}" src="data:image/png;base64,{encoded}">'
                f"<figcaption>{caption}</figcaption></figure>")


def share(part, whole):
    return f"{part} ({100 * part / max(1, whole):.1f}%)"


def signed(value):
    return f"{value:+.3f}"


STYLE = """body { font: 16px/1.5 Georgia, serif; max-width: 62em; margin: 2em auto;
padding: 0 1em; color: #111; background: #fff } table { border-collapse: collapse;
margin: 1em 0; font-size: 14px } td, th { border-bottom: 1px solid #bbb; text-align: left;
padding: .2em .7em; vertical-align: top } img { max-width: 100% } figure { margin: 1em 0 }
figcaption { font-size: 14px }"""


def draw_all(figures, out):
    """Write the PNG files.   -> {name: bytes}, empty without matplotlib"""
    try:
        import matplotlib.figure
    except ImportError:
        return {}
    pictures = {}
    for part in figures:
        figure = matplotlib.figure.Figure(figsize=part.size, layout="constrained", dpi=130)
        part.draw(figure)
        path = os.path.join(out, f"{part.name}.png")
        figure.savefig(path)
        with open(path, "rb") as file:
            pictures[part.name] = file.read()
    return pictures


def show(title, parts, folder):
    """Print a page, and write it with its figures to FOLDER/analysis.html and PNG files."""
    os.makedirs(folder, exist_ok=True)
    pictures = draw_all([part for part in parts if isinstance(part, Figure)], folder)
    body = "\n".join(part.as_html(pictures) for part in parts)
    path = os.path.join(folder, "analysis.html")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>'
                   f"{html.escape(title)}</title><style>{STYLE}</style>\n"
                   f"<h1>{html.escape(title)}</h1>\n{body}\n</html>\n")
    print(title, *(part.as_text() for part in parts), sep="\n")
    print("" if pictures else "\nno figures: they need matplotlib (pip install matplotlib)")
    print(printable(path))
