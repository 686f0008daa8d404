"""The README's picture: what gradient surgery and the vaccine do to two vectors.

    python tools/picture.py         writes docs/pcgrad_gradvac.svg and …_dark.svg

The vectors are the examples in the docstrings of multitask.pcgrad and multitask.GradVac.
Every number in the picture comes from calling the two, so it cannot drift from the code.
Leaves out: any drawing library. An SVG file is text.
"""

import os
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:            # python tools/picture.py
    sys.path.append(ROOT)

import multitask
from plumbing import command

THEMES = {
    "pcgrad_gradvac.svg": {
        "paper": "#ffffff", "frame": "#d0d7de", "ink": "#1f2328", "soft": "#59636e",
        "axis": "#c8ced5", "first": "#0969da", "second": "#bc4c00"},
    "pcgrad_gradvac_dark.svg": {
        "paper": "#0d1117", "frame": "#3d444d", "ink": "#f0f6fc", "soft": "#9da7b1",
        "axis": "#3d444d", "first": "#58a6ff", "second": "#f0883e"},
}
WIDTH, HEIGHT, PANEL = 960, 350, 320
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


# --- The numbers ---

def treated(treatment, gradients):
    """Rows g_i' of the treated gradients; each task visits the other.   [2, 2] -> [2, 2]"""
    gradients = np.array(gradients, np.float64)
    C = treatment(gradients @ gradients.T, orders=[[1], [0]])
    return C @ gradients


def surgery():
    """pcgrad's example: g1, g2 -> (the two, what becomes of them)   [2, 2] each"""
    before = np.array([(1.0, 0.0), (-1.0, 1.0)])
    return before, treated(multitask.pcgrad, before)


def vaccine(target=0.5):
    """GradVac's example: g_i, g_j, and what becomes of g_i at the target φᵀ"""
    before = np.array([(3.0, 4.0), (-2.0, 0.0)])
    gradvac = multitask.GradVac(beta=0)
    gradvac.target = np.full((2, 2), target)
    return before, treated(gradvac, before)[0]


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def number(value):
    """0.5 -> ½, 1.5 -> 1½, -0.6 -> −.6, -2.3094 -> −2.309"""
    value = round(float(value), 3)
    whole, rest = divmod(abs(value), 1)
    text = f"{abs(value):g}"
    if rest == 0.5:
        text = f"{whole:.0f}½"
    if rest and whole == 0:
        text = text[1:]                                     # ½ and .6, not 0½ and 0.6
    return ("−" if value < 0 else "") + text


def vector(v):
    return f"({number(v[0])}, {number(v[1])})"


# --- SVG ---

class Panel:
    """One drawing with its own origin and scale; the y axis points up."""

    def __init__(self, theme, left, origin, scale):
        self.theme, self.left, self.origin, self.scale = theme, left, origin, scale
        self.parts = []

    def point(self, v):
        return (self.left + self.origin[0] + self.scale * v[0],
                self.origin[1] - self.scale * v[1])

    def line(self, a, b, color, width, dashes=""):
        (x1, y1), (x2, y2) = self.point(a), self.point(b)
        dashes = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
                          f'stroke="{self.theme[color]}" stroke-width="{width}"{dashes}/>')

    def axes(self, left, right, bottom, top):
        self.line((left, 0), (right, 0), "axis", 1)
        self.line((0, bottom), (0, top), "axis", 1)

    def arrow(self, v, color, bold=False, start=(0, 0)):
        """From start to v: thin for a gradient as it comes, bold for a treated one."""
        start, v = np.array(start, float), np.array(v, float)
        width = 4 if bold else 1.6
        head = (15 if bold else 10) / self.scale            # its length, in data units
        along = (v - start) / np.linalg.norm(v - start)
        across = np.array([-along[1], along[0]])
        self.line(start, v - 0.8 * head * along, color, width)
        corners = (v, v - head * along + 0.42 * head * across,
                   v - head * along - 0.42 * head * across)
        points = " ".join("{:.1f},{:.1f}".format(*self.point(c)) for c in corners)
        self.parts.append(f'<polygon points="{points}" fill="{self.theme[color]}"/>')

    def arc(self, a, b, radius):
        """The angle between two vectors, as an arc of `radius` pixels around the origin."""
        a, b = (np.array(v) / np.linalg.norm(v) * radius / self.scale for v in (a, b))
        (x1, y1), (x2, y2) = self.point(a), self.point(b)
        turn = int(a[0] * b[1] - a[1] * b[0] < 0)           # SVG's y axis points down
        self.parts.append(f'<path d="M {x1:.1f} {y1:.1f} A {radius} {radius} 0 0 {turn} '
                          f'{x2:.1f} {y2:.1f}" fill="none" stroke="{self.theme["soft"]}" '
                          f'stroke-width="1.2"/>')

    def label(self, v, text, color, shift=(0, 0), anchor="start", bold=False):
        x, y = self.point(v)
        self.text(x + shift[0], y + shift[1], text, color, 15, anchor, bold)

    def text(self, x, y, text, color="ink", size=15, anchor="start", bold=False):
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" '
                          f'text-anchor="{anchor}"{weight} fill="{self.theme[color]}">'
                          f'{text}</text>')

    def caption(self, title, *lines):
        middle = self.left + PANEL / 2
        self.text(middle, 34, title, size=17, anchor="middle", bold=True)
        for k, line in enumerate(lines):
            self.text(middle, HEIGHT - 48 + 22 * k, line, "soft", 14, "middle")


def draw(theme):
    """-> the text of one SVG file"""
    before, after = surgery()
    (g1, g2), (new1, new2) = before, after
    plain, update = before.sum(0), after.sum(0)

    one = Panel(theme, 0, (152, 222), 90)
    one.axes(-1.3, 1.25, -0.25, 1.45)
    one.line(g1, new1, "soft", 1.6, "4 4")
    one.arrow(g1, "first")
    one.arrow(g2, "second")
    one.arrow(new1, "first", bold=True)
    one.arrow(new2, "second", bold=True)
    one.line(g2, new2, "soft", 1.6, "4 4")
    one.label(g1, f"g₁ = {vector(g1)}", "first", (4, 20), "middle")
    one.label(g2, f"g₂ = {vector(g2)}", "second", (-4, -12), "middle")
    one.label(new1, f"g₁′ = {vector(new1)}", "first", (8, -4), bold=True)
    one.label(new2, f"g₂′ = {vector(new2)}", "second", (10, -12), bold=True)
    one.caption("PCGrad: remove the conflict",
                f"g₁ · g₂ = {number(g1 @ g2)} &lt; 0: each is projected on",
                "the normal plane of the other")

    two = Panel(theme, PANEL, (140, 250), 100)
    two.axes(-0.5, 1.5, -0.2, 1.85)
    two.line(new1, update, "soft", 1.6, "4 4")
    two.line(new2, update, "soft", 1.6, "4 4")
    two.arrow(update, "ink", bold=True)
    two.arrow(new1, "first", bold=True)
    two.arrow(new2, "second", bold=True)
    two.label(new1, f"g₁′ = {vector(new1)}", "first", (8, 12), bold=True)
    two.label(new2, f"g₂′ = {vector(new2)}", "second", (-12, 4), "end", bold=True)
    two.label(update, f"g₁′ + g₂′ = {vector(update)}", "ink", (0, -10), "middle", True)
    two.caption("… then add them up", "The update. Without surgery it would be",
                f"g₁ + g₂ = {vector(plain)}")

    (gi, gj), new = vaccine()
    three = Panel(theme, 2 * PANEL, (165, 245), 34)
    three.axes(-3.6, 4, -0.6, 4.9)
    three.line(gi, new, "soft", 1.6, "4 4")
    three.arc(gi, gj, 24)
    three.arc(new, gj, 42)
    three.arrow(gi, "first")
    three.arrow(gj, "second")
    three.arrow(new, "first", bold=True)
    three.label(gi, f"gᵢ = {vector(gi)}", "first", (0, -10), "middle")
    three.label(gj, f"gⱼ = {vector(gj)}", "second", (0, 22), "middle")
    three.label(new, f"gᵢ′ = {vector(new)}", "first", (0, -10), "middle", True)
    three.caption("GradVac: tilt to a target angle",
                  f"cos(gᵢ, gⱼ) = {number(cosine(gi, gj))} is below the target,",
                  f"so add gⱼ until cos(gᵢ′, gⱼ) = {number(cosine(new, gj))}")

    rules = "\n".join(f'<line x1="{x}" y1="24" x2="{x}" y2="{HEIGHT - 20}" '
                      f'stroke="{theme["frame"]}"/>' for x in (PANEL, 2 * PANEL))
    body = "\n".join(part for panel in (one, two, three) for part in panel.parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
            f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{FONT}">\n'
            f'<title>PCGrad and GradVac on two vectors</title>\n'
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8" '
            f'fill="{theme["paper"]}" stroke="{theme["frame"]}"/>\n'
            f'{rules}\n{body}\n</svg>\n')


def main(argv=None):
    command.Parser(__doc__).parse_args(argv)
    for name, theme in THEMES.items():
        path = os.path.join(ROOT, "docs", name)
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(draw(theme))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
