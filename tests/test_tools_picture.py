"""The README's picture shows what the code computes."""

import os
import re

import numpy as np

import multitask
from tools import picture


def committed(name):
    with open(os.path.join(picture.ROOT, "docs", name), encoding="utf-8") as file:
        return file.read()


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_tools_picture__the_files_are_what_the_tool_writes():
    for name, theme in picture.THEMES.items():
        assert picture.draw(theme) == committed(name), (
            f"docs/{name} is out of date; run python tools/picture.py")


def test_tools_picture__its_numbers_are_those_of_the_docstrings():
    # PCGrad: g1 · g2 = -1, so g1' = g1 + g2/2 and g2' = g2 + g1.
    before, after = picture.surgery()
    np.testing.assert_allclose(before, [(1, 0), (-1, 1)])
    np.testing.assert_allclose(after, [(0.5, 0.5), (0, 1)], atol=1e-12)
    # GradVac: w = 2.6547, and 3 - 2 · 2.6547 = -2.309. Then the cosine is φᵀ = ½.
    (g_i, g_j), treated = picture.vaccine()
    np.testing.assert_allclose([g_i, g_j], [(3, 4), (-2, 0)])
    np.testing.assert_allclose(treated, (-2.309, 4), atol=5e-4)
    np.testing.assert_allclose(picture.cosine(treated, g_j), 0.5)
    for name in picture.THEMES:
        shown = texts(committed(name))
        for text in ("g₁ = (1, 0)", "g₂ = (−1, 1)", "g₁′ = (½, ½)", "g₂′ = (0, 1)",
                     "g₁′ + g₂′ = (½, 1½)", "gᵢ = (3, 4)", "gⱼ = (−2, 0)",
                     "gᵢ′ = (−2.309, 4)"):
            assert text in shown, f"docs/{name} does not say {text}"
    for text in ("(½, ½)", "(0, 1)", "(½, 1½)"):
        assert text in multitask.pcgrad.__doc__
    assert "(-2.309, 4)" in multitask.GradVac.__doc__


def test_tools_picture__it_follows_the_functions():
    theme = picture.THEMES["pcgrad_gradvac.svg"]
    right, pcgrad = picture.draw(theme), multitask.pcgrad
    try:
        multitask.pcgrad = multitask.plain_sum
        assert "g₁′ = (1, 0)" in texts(picture.draw(theme))
    finally:
        multitask.pcgrad = pcgrad
    assert picture.draw(theme) == right


def test_tools_picture__numbers_are_written_short():
    shown = [picture.number(x) for x in (0, -0.0, 1, 0.5, -0.5, 1.5, -0.6, -2.30940)]
    assert shown == ["0", "0", "1", "½", "−½", "1½", "−.6", "−2.309"]
