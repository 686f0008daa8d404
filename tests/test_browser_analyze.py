"""Pages of tools/page.py, such as that of tools/analyze.py, in a real browser."""

import tempfile

from tests.browser import Browser
from tools import page

BOX = ("(() => { const it = document.querySelector('.sticky'), box = it."
       "getBoundingClientRect(); return [box.top, box.bottom, it.scrollHeight] })()")


def test_browser_analyze__the_legend_of_many_runs_leaves_room_for_the_page():
    runs = [(k, f"{k}: --option gvac, --con, --lr 0.002, no --smart") for k in range(30)]
    path = page.write("", [page.Legend(runs), page.Paragraph("text " * 9000)],
                      tempfile.mkdtemp())
    with Browser() as browser:
        for width, height in ((400, 800), (800, 400)):
            browser.resize(width, height)
            browser.open(f"file://{path}")
            browser.run("window.scrollTo(0, document.body.scrollHeight / 2)")
            top, bottom, whole = browser.run(BOX)
            assert top == 0 and bottom < .4 * height, f"it covers {bottom} of {height} px"
            assert whole > bottom, "its end cannot be scrolled to"
