"""Small charts as SVG text, for tools/page.py.

    Panel       one chart with two axes: lines, bands, bars, points, cells
    sheet()     several of them as one SVG file
    STYLE       their colors, for a page or a file, in light and in dark

Nothing is installed for it, and nothing is loaded. Pointing at a place of a chart shows its
numbers: browsers show an SVG element's <title>. Lines differ in color and in dashes, and
the colors in brightness too, so that they can be told apart in grey and by the color-blind
(the colors are those of Okabe and Ito, made darker or lighter for contrast).
"""

import html
import itertools
import math

import numpy as np

from plumbing.console import printable

# (light, dark) by meaning. s0, s1, …: lines; ink, soft, grid, paper: everything else.
COLORS = {
    "paper": ("#ffffff", "#14171a"), "ink": ("#16191d", "#e8eaed"),
    "soft": ("#565d66", "#a3abb5"), "grid": ("#dde1e6", "#343a41"),
    "s0": ("#004c8c", "#4c9ffa"), "s1": ("#d55e00", "#ffab6b"),
    "s2": ("#00805e", "#26b088"), "s3": ("#b0508c", "#f59fd4"),
    "s4": ("#2f8fcb", "#cfeaff"), "s5": ("#4d4300", "#f2e34c"),
    "minus": ("#c44e00", "#ff8a3c"), "plus": ("#0a5fa8", "#5aaeff"),
}
LINES = 6                   # colors of lines; from the seventh line on, other dashes
DASHES = ("", "7 3", "2 2", "9 3 2 3", "4 4")
WIDTH, HEIGHT = 360, 225    # of a panel
LEFT, RIGHT, TOP, BOTTOM = 47, 9, 28, 37


def rules(dark):
    """CSS of the charts in one theme."""
    color = {name: pair[dark] for name, pair in COLORS.items()}
    lines = [f".s{k} {{ stroke: {color[f's{k % LINES}']}; color: {color[f's{k % LINES}']}; "
             f"stroke-dasharray: {DASHES[k % len(DASHES)] or 'none'} }}"
             for k in range(LINES * len(DASHES))]
    return "\n".join([
        f".c text {{ fill: {color['ink']} }} .c .soft {{ fill: {color['soft']} }}",
        f".c .grid {{ stroke: {color['grid']} }} .c .rule {{ stroke: {color['soft']}; "
        f"stroke-dasharray: 3 3 }}",
        f".c .band {{ fill: {color['soft']}; fill-opacity: .2 }}",
        f".c .bar {{ fill: {color['s0']}; stroke: {color['s0']} }}",
        f".c .open {{ fill: {color['paper']}; stroke: {color['s0']} }}",
        f".c .minus {{ fill: {color['minus']} }} .c .plus {{ fill: {color['plus']} }}",
        f".c .none {{ fill: {color['grid']}; fill-opacity: .5 }}",
        f".c .glyph {{ fill: {color['paper']} }} .c .dark {{ fill: {color['ink']} }}",
        f".c .sheet {{ fill: {color['paper']} }}", *lines])


STYLE = """.c { font: 11px system-ui, sans-serif }
.c .line { fill: none; stroke-width: 2; stroke-linejoin: round }
.c .raw { fill: none; stroke-width: 1; stroke-opacity: .4; stroke-dasharray: none }
.c .spread { fill: currentColor; fill-opacity: .17; stroke: none }
.c .thin { fill-opacity: .1 }
.c .dots { fill: none; stroke-width: 4; stroke-linecap: round; stroke-opacity: .45;
stroke-dasharray: none } .c .grid, .c .rule { stroke-width: 1; fill: none }
.c .mark { fill: currentColor; stroke: none } .c .title { font-weight: 600 }
.c .end { text-anchor: end } .c .middle { text-anchor: middle }
.c .weak { fill-opacity: .3 } .c .glyph { text-anchor: middle; font-weight: 700 }
.c .hit { fill: transparent } .c .hit:hover { fill: #888; fill-opacity: .2 }
.c .cell:hover { stroke: #888; stroke-width: 2 }
""" + rules(0) + "\n@media screen and (prefers-color-scheme: dark) {\n" + rules(1) + "\n}"


def escape(text):
    """Text for SVG or HTML: it can neither end its element nor hide what follows."""
    return html.escape(printable(str(text)))


def lines_of(text):
    """A tip's lines, each escaped."""
    return "\n".join(map(escape, text.split("\n")))


def number(value):
    """For an axis: 0.25 -> "0.25", 12000 -> "12000", 2e-05 -> "2e-5"."""
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e")


def short(value):
    """Three digits, for what one reads when pointing: 0.51234 -> "0.512"."""
    return "-" if not math.isfinite(value) else number(float(f"{value:.3g}"))


def ticks(low, high, about=4):
    """Round numbers from low to high, in steps of 1, 2 or 5 times a power of ten."""
    step = 10.0 ** math.floor(math.log10((high - low) / about))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= about + .5)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12)
            for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low, high):
    """Powers of ten from low to high, with 2 and 5 times them if these are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [float(f"{m}e{k}") for k in powers for m in factors]
        found = [place for place in found if low <= place <= high]
        if len(found) > 2:
            break
    return found[::-(-len(found) // 6)]


def wide(low, high, share=.05):
    """A range with some room at both ends; never empty."""
    room = share * (high - low) or abs(high) * share or share
    return low - room, high + room


class Panel:
    """One chart. x, y: (lowest, highest) of what is shown; log: is y on a log scale?

    x_ticks, y_ticks: {place: words}, else round numbers. Every method adds to it; svg()
    returns it. height: of the whole panel, left: of the words beside the y axis, both in
    the units of WIDTH.
    """

    def __init__(self, title, x_label, x, y, *, log=False, x_ticks=None, y_ticks=None,
                 height=HEIGHT, left=LEFT, y_label="", grid=True):
        self.title, self.x_label, self.x, self.log = title, x_label, x, log
        self.y = tuple(map(math.log10, y)) if log else y
        self.height, self.left, self.grid = height, left, grid
        self.y_label = "log scale" if log else y_label
        self.parts, self.over = [], []          # over: what is pointed at lies on top
        if x_ticks is None:
            x_ticks = {place: number(place) for place in ticks(*self.x)}
        if y_ticks is None:
            places = log_ticks(*y) if log else ticks(*self.y)
            y_ticks = {place: number(place) for place in places}
        self.x_ticks, self.y_ticks = x_ticks, y_ticks

    def right_of(self, x):
        low, high = self.x
        return self.left + (WIDTH - RIGHT - self.left) * (x - low) / (high - low)

    def up(self, y):
        low, high = self.y
        y = math.log10(max(y, 1e-300)) if self.log else y
        share = min(max((y - low) / (high - low), -.02), 1.02)      # stays in the frame
        return self.height - BOTTOM - (self.height - BOTTOM - TOP) * share

    def add(self, text):
        self.parts.append(text)

    def words(self, x, y, text, classes="", size=None):
        """Text at a place of the SVG, not of the axes."""
        size = f' font-size="{size}"' if size else ""
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}"{size}>{escape(text)}'
                 f"</text>")

    def points(self, xs, ys):
        """Runs of finite points, as texts "x,y x,y"."""
        pairs = [(x, y) if math.isfinite(y) else None for x, y in zip(xs, ys)]
        for finite, part in itertools.groupby(pairs, lambda pair: pair is not None):
            if finite:
                yield [f"{self.right_of(x):.1f},{self.up(y):.1f}" for x, y in part]

    def line(self, xs, ys, look=0, kind="line", marks=False):
        """A line with gaps where y is NaN; marks: a dot at each point."""
        for part in self.points(xs, ys):
            if len(part) > 1:
                self.add(f'<polyline class="{kind} s{look}" points="{" ".join(part)}"/>')
            if marks or len(part) == 1:
                self.add("".join(f'<circle class="mark s{look}" cx="{x}" cy="{y}" r="3"/>'
                                 for x, y in (point.split(",") for point in part)))

    def area(self, xs, low, high, classes):
        """What lies between two lines."""
        keep = np.isfinite(low) & np.isfinite(high)
        xs, low, high = (np.asarray(values, float)[keep] for values in (xs, low, high))
        if len(xs):
            there, = self.points(xs, high)
            back, = self.points(xs[::-1], low[::-1])
            self.add(f'<polygon class="{classes}" points="{" ".join(there + back)}"/>')

    def dots(self, xs, ys, look=0):
        """Many points as one path."""
        place = "".join(f"M{self.right_of(x):.1f},{self.up(y):.1f}h0"
                        for x, y in zip(xs, ys))
        self.add(f'<path class="dots s{look}" d="{place}"/>')

    def rule(self, x=None, y=None):
        """A dashed line across, at one x or one y."""
        ends = ((self.left, self.up(y), WIDTH - RIGHT, self.up(y)) if x is None else
                (self.right_of(x), TOP, self.right_of(x), self.height - BOTTOM))
        self.add('<line class="rule" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
                 .format(*ends))

    def bar(self, x, width, y, tip, classes="bar", label=""):
        """From 0 up to y, centred at x; tip: what pointing at it says."""
        left, right, top = (self.right_of(x - width / 2), self.right_of(x + width / 2),
                            self.up(y))
        self.add(f'<rect class="{classes}" x="{left:.1f}" y="{top:.1f}" '
                 f'width="{right - left:.1f}" height="{self.up(0) - top:.1f}">'
                 f"<title>{lines_of(tip)}</title></rect>")
        if label:
            self.words((left + right) / 2, top - 4, label, "middle")

    def cell(self, x, y, look, tip):
        """The square from (x, y) to (x + 1, y + 1).   look: a key of key()"""
        left, right = self.right_of(x), self.right_of(x + 1)
        bottom, top = self.up(y), self.up(y + 1)
        self.add(f'<rect class="cell {look}" x="{left + .5:.1f}" y="{top + .5:.1f}" '
                 f'width="{right - left - 1:.1f}" height="{bottom - top - 1:.1f}">'
                 f"<title>{lines_of(tip)}</title></rect>")
        if sign(look):
            self.words((left + right) / 2, (top + bottom) / 2 + 4, *sign(look))

    def hits(self, edges, tips):
        """Columns between edges [n + 1] that say tips [n] when one points at them."""
        for left, right, tip in zip(edges, edges[1:], tips):
            a, b = (min(max(self.right_of(x), self.left), WIDTH - RIGHT)
                    for x in (left, right))
            self.over.append(f'<rect class="hit" x="{a:.1f}" y="{TOP}" width="{b - a:.1f}" '
                             f'height="{self.height - BOTTOM - TOP}"><title>{lines_of(tip)}'
                             f"</title></rect>")

    def frame(self):
        """Grid, ticks and labels, which lie under everything else."""
        parts, self.parts = self.parts, []
        bottom = self.height - BOTTOM
        for place, text in self.y_ticks.items():
            if self.grid:
                self.add(f'<line class="grid" x1="{self.left}" x2="{WIDTH - RIGHT}" '
                         f'y1="{self.up(place):.1f}" y2="{self.up(place):.1f}"/>')
            self.words(self.left - 5, self.up(place) + 4, text, "soft end")
        for place, text in self.x_ticks.items():
            self.words(self.right_of(place), bottom + 15, text, "soft middle")
        self.add(f'<line class="rule" style="stroke-dasharray:none" x1="{self.left}" '
                 f'x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        self.words(2, 14, self.title, "title")
        self.words(WIDTH - RIGHT, 14, self.y_label, "soft end")
        self.words((self.left + WIDTH - RIGHT) / 2, self.height - 6, self.x_label,
                   "soft middle")
        frame, self.parts = self.parts, parts
        return frame

    def svg(self, x=0, y=0):
        """-> an <svg> element; x, y: its place in a sheet"""
        return (f'<svg class="c" role="img" aria-label="{escape(self.title)}" x="{x}" '
                f'y="{y}" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
                f'height="{self.height}">{"".join(self.frame() + self.parts + self.over)}'
                f"</svg>")


def around(rows, high=18):
    """The height of a panel with so many rows of cells."""
    return TOP + BOTTOM + high * rows


def sign(look):
    """The sign in a cell, for who sees no colors, and its class; () where it has none."""
    words = look.split()
    glyph = {"minus": "−", "plus": "+"}.get(words[0])
    return (glyph, "glyph dark" if "weak" in words else "glyph") if glyph else ()


def key(look, x=0, y=0):
    """The sample of a look in a legend: the number of a line, or a class such as "bar"."""
    if isinstance(look, int):
        inside = f'<line class="line s{look}" x1="1" y1="7" x2="29" y2="7"/>'
    else:
        glyph, classes = sign(look) or ("", "")
        inside = (f'<rect class="{look}" x="8" y="0" width="14" height="14"/>'
                  f'<text class="{classes}" x="15" y="11">{glyph}</text>')
    return (f'<svg class="c key" x="{x}" y="{y}" width="30" height="14" '
            f'viewBox="0 0 30 14">{inside}</svg>')


def sheet(panels, caption, legend, columns=3):
    """Several panels with a legend and a caption, as one SVG file.

    legend: [(look, words)], see key()
    """
    columns = min(columns, len(panels))
    body, y = [], 0
    for start in range(0, len(panels), columns):
        row = panels[start:start + columns]
        body += [panel.svg(k * (WIDTH + 10), y) for k, panel in enumerate(row)]
        y += max(panel.height for panel in row) + 8
    for look, words in legend:
        body.append(f'{key(look, 4, y)}<text x="40" y="{y + 11}">{escape(words)}</text>')
        y += 18
    width = columns * (WIDTH + 10)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" class="c" viewBox="0 0 {width} '
            f'{y + 22}" width="{width}" height="{y + 22}">\n<style>{STYLE}</style>\n'
            f'<rect class="sheet" width="100%" height="100%"/>\n' + "\n".join(body)
            + f'\n<text class="soft" x="4" y="{y + 12}">{escape(caption)}</text>\n</svg>\n')
