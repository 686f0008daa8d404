"""A page of headings, paragraphs, tables and figures, on the terminal and as HTML.

The HTML file is complete in itself: nothing is loaded, and no script runs. It fits a
phone, a screen and paper, in light and in dark.
"""

import dataclasses
import html
import os
import re
import textwrap

from plumbing.console import printable
from tools import chart


def text_of(words):
    """Text for HTML; a flag is not broken after its hyphens."""
    return re.sub(r"(?<!\S)--[\w-]+", r'<span class="flag">\g<0></span>',
                  html.escape(words))


@dataclasses.dataclass
class Heading:
    text: str

    def as_text(self):
        return f"\n{self.text}\n{'-' * len(self.text)}"

    def as_html(self):
        return f"<h2>{text_of(self.text)}</h2>"


@dataclasses.dataclass
class Paragraph:
    text: str

    def as_text(self):
        return textwrap.fill(self.text, 92, break_on_hyphens=False)

    def as_html(self):
        return f"<p>{text_of(self.text)}</p>"


@dataclasses.dataclass
class Table:
    header: list                # [columns] strings
    rows: list                  # [rows][columns] strings
    shades: list | None = None  # [rows][columns] 0 to 1: how dark a cell is, or None

    def as_text(self):
        lines = [self.header, *self.rows]
        # The last column is not padded: texts are long.
        widths = [max(map(len, cells)) for cells in list(zip(*lines))[:-1]]
        return "\n".join("  " + "  ".join([
            *(cell.rjust(width) for cell, width in zip(line, widths)), line[-1]]).rstrip()
            for line in lines)

    def as_html(self):
        shades = self.shades or [[None] * len(row) for row in self.rows]

        def line(cells, tag, shades):
            shown = [f' style="background:rgba(128,128,128,{.55 * shade:.2f})"'
                     if shade else "" for shade in shades]
            return "<tr>" + "".join(f"<{tag}{style}>{html.escape(cell)}</{tag}>" for
                                    cell, style in zip(cells, shown)) + "</tr>"
        rows = "".join(line(*both[:1], "td", both[1]) for both in zip(self.rows, shades))
        header = line(self.header, "th", [0] * len(self.header))
        return f'<div class="wide"><table>{header}{rows}</table></div>'


@dataclasses.dataclass
class Legend:
    """What the colors of all figures stand for; it stays in sight."""
    entries: list               # [(look, words)], see chart.key()

    def as_text(self):
        return "\n".join(f"  {words}" for _, words in self.entries)

    def as_html(self, classes="legend sticky"):
        entries = "".join(f"<li>{chart.key(look)} {text_of(words)}</li>"
                          for look, words in self.entries)
        return f'<ul class="{classes}">{entries}</ul>'


@dataclasses.dataclass
class Figure:
    """Panels beside and below each other, as many in a row as there is room for."""
    name: str                   # of its file
    caption: str
    panels: list                # of chart.Panel
    legend: list = dataclasses.field(default_factory=list)      # [(look, words)]
    own_legend: bool = True     # or has the page one for all?

    def as_text(self):
        return f"[{self.caption}: {self.name}.svg]"

    def as_html(self):
        legend = (Legend(self.legend).as_html("legend") if self.legend and self.own_legend
                  else "")
        panels = "\n".join(panel.svg() for panel in self.panels)
        return (f'<figure>{legend}<div class="panels">{panels}</div>'
                f"<figcaption>{text_of(self.caption)}</figcaption></figure>")


def share(part, whole):
    return f"{part} ({100 * part / max(1, whole):.1f}%)"


def counted(number, word):
    """1, "example" -> "1 example"; 2 -> "2 examples"."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def signed(value):
    return f"{value:+.3f}"


STYLE = """:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 1.5em auto;
padding: 0 12px; color: #16191d; background: #fff; overflow-wrap: anywhere }
.flag { white-space: nowrap } h1 { font-size: 1.35em; line-height: 1.3 }
h2 { font-size: 1.2em; margin-top: 2em;
border-bottom: 1px solid #888 } p { max-width: 46em }
.wide { overflow-x: auto; margin: 1em 0 } table { border-collapse: collapse;
font-size: 14px; font-variant-numeric: tabular-nums } td, th { border-bottom: 1px solid
#8886; text-align: left; padding: .2em .6em; vertical-align: top; overflow-wrap: normal }
th { vertical-align: bottom } figure { margin: 1em 0 } figcaption { font-size: 14px }
.panels { display: grid; gap: 10px 16px;
grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)) }
.panels > svg { width: 100%; max-width: 480px; height: auto }
.legend { list-style: none; margin: .5em 0; padding: 0; font-size: 14px; display: flex;
flex-wrap: wrap; gap: 2px 20px } .key { width: 30px; height: 14px; vertical-align: -2px }
.sticky { position: sticky; top: 0; background: #fff; padding: 6px 0; font-weight: 600;
max-height: 30vh; overflow-y: auto; border-bottom: 1px solid #8886 }
@media (max-width: 600px) { table { font-size: 12.5px } td, th { padding: .2em .3em } }
@media screen and (prefers-color-scheme: dark) { body { color: #e8eaed;
background: #14171a } .sticky { background: #14171a } }
@media print { body { max-width: none } .wide, .sticky { overflow: visible;
max-height: none } figure svg, tr, li {
break-inside: avoid } h2, .legend { break-after: avoid }
figcaption { break-before: avoid } .panels { grid-template-columns:
repeat(auto-fill, minmax(250px, 1fr)) } * { print-color-adjust: exact } }
"""


def render(title, parts, renew=0):
    """-> the HTML file's text; renew: seconds after which a browser reads it again"""
    again = f'<meta http-equiv="refresh" content="{renew}">' if renew else ""
    body = "\n".join(part.as_html() for part in parts)
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}'
            f'<meta name="viewport" content="width=device-width">'
            # Whatever got into the page: it loads nothing and runs nothing.
            f'<meta http-equiv="Content-Security-Policy" '
            f"content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}{chart.STYLE}</style>"
            f"</head><body>\n<h1>{text_of(title)}</h1>\n{body}\n</body></html>\n")


def write(title, parts, folder, renew=0):
    """FOLDER/analysis.html, and an SVG file for each figure.   -> the page's path"""
    os.makedirs(folder, exist_ok=True)
    # The page first: with it there, a later call knows that the figures are its own.
    texts = {"analysis.html": render(title, parts, renew),
             **{f"{part.name}.svg": chart.sheet(part.panels, part.caption, part.legend)
                for part in parts if isinstance(part, Figure)}}
    taken = [name for name in texts if os.path.exists(os.path.join(folder, name))]
    if taken and "analysis.html" not in taken:
        raise ValueError(f"{os.path.join(folder, taken[0])} is there, without a page of an "
                         f"earlier call; remove it, or give another --out")
    for name, text in texts.items():
        # Renamed into place: a browser that renews the page never sees half of it.
        path = os.path.join(folder, name)
        with open(path + ".new", "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(path + ".new", path)
    return os.path.join(folder, "analysis.html")


def show(title, parts, folder):
    """write(), and print the page as text."""
    path = write(title, parts, folder)
    print(title, *(part.as_text() for part in parts), "", printable(path), sep="\n")
