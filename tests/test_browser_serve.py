"""The page of tools/predict.py --serve, in a real browser."""

import contextlib
import json
import time
import unittest.mock

from tests.browser import Browser
from tests.checks import assert_close, assert_equal
from tests.test_tools_serve import served
from tests.world import WORDS, analyzed
from tools import predict, serve

BARS = "[...document.querySelectorAll('#answers .number')].map((n) => +n.textContent)"
TOKENS = "[...document.querySelectorAll('tbody th')].map((th) => th.textContent).join(' ')"
CELLS = "[...document.querySelectorAll('#matrices td')].map((td) => td.title).join()"


@contextlib.contextmanager
def opened(server, *flags):
    with Browser(*flags) as browser:
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.until("model !== null && $('said').textContent")
        browser.run("$('first').focus()")
        yield browser


def test_browser_serve__typing_updates_bars_and_matrix():
    model = predict.load(analyzed())
    with served(model) as server, opened(server) as browser:
        for text in ("good", " cat"):
            browser.type(text)
            whole = browser.run("$('first').value")
            browser.until(f"{TOKENS} === '[CLS] {whole} [SEP]'")
            _, p = model.predict("sst", [whole], with_probabilities=True)
            assert_close(browser.run(BARS), p[0], .0051)
        best = browser.run("document.querySelector('#answers .best').textContent")
        assert_equal(int(best[0]), int(p[0].argmax()))
        browser.press("Tab")
        browser.type("bad dog")
        browser.until(f"{TOKENS} === '[CLS] good cat [SEP] bad dog [SEP]'")
        pair = [("good cat", "bad dog")]
        para, sts = model.predict("para", pair, True)[1][0], model.predict("sts", pair)[0]
        assert_close(browser.run(BARS)[:3], [1 - para, para, sts], .0051)
        assert_equal(len(browser.run(BARS)), 13, "and five for each sentence")
        assert_equal(browser.run("document.querySelectorAll('tr.second').length"), 1)
        # Another head, by the keyboard alone.
        before = browser.run(CELLS)
        browser.press("Tab")
        browser.press("Tab")
        assert_equal(browser.run("document.activeElement.id"), "head")
        browser.press("ArrowDown")
        browser.until(f"{CELLS} !== {json.dumps(before)}")
        want = serve.attention_of(model, pair[0], 0, 1)["rows"][0]["weights"][1][4]
        assert f"good\u2069 → \u2068bad\u2069: {want:.3f}" in browser.run(CELLS)
        browser.press("Tab")
        browser.press("ArrowDown")
        browser.press("ArrowDown")
        assert "good\u2069 looks at: " in browser.run("$('looks').textContent")
        # With nothing typed there is nothing to see.
        browser.run("$('first').value = $('second').value = ''; soon()")
        browser.until("$('attention').hidden && !$('answers').children.length")


def test_browser_serve__hostile_text_is_shown_as_text():
    model = predict.load(analyzed())
    evil = "<img src=x onerror='window.ran=1'><script>window.ran=1</script>\"'&lt;\u202e"
    model.tokenizer.tokens = [evil if token == "good" else token for token in WORDS]
    with served(model, evil) as server, opened(server) as browser:
        browser.type(evil + " good")
        browser.until("document.querySelectorAll('#matrices td').length")
        assert evil in browser.run(TOKENS)
        assert_equal(browser.run("$('title').textContent"), f"Ask {evil}")
        assert_equal(browser.run("document.querySelectorAll('img').length"), 0)
        # A megabyte is refused in one line, and not even sent.
        with unittest.mock.patch.object(model, "predict") as never:
            browser.run("$('first').value = 'x'.repeat(1e6); soon()")
            browser.until("$('said').textContent.includes('1000000')")
            assert "2000 characters" in browser.run("$('said').textContent")
            assert not never.called
        # The policy holds even for what stands in the document.
        browser.run("document.body.append(Object.assign(document.createElement('script'),"
                    " {textContent: 'window.ran = 1'}))")
        assert_equal(browser.run("window.ran === undefined"), True, "it ran")
        said = [event["params"] for event in browser.events
                if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
        assert all("Content Security Policy" in str(entry) for entry in said), said
        sent = {event["params"]["request"]["url"] for event in browser.events
                if event["method"] == "Network.requestWillBeSent"}
        home = f"http://127.0.0.1:{server.port}"
        assert_equal(sent, {f"{home}/", f"{home}/model", f"{home}/ask"})


def test_browser_serve__an_answer_cannot_overtake_a_later_one():
    with served() as server, opened(server) as browser:
        browser.run("""(() => {
            const own = window.fetch;
            let count = 0;
            window.fetch = async (...args) => {
                const first = count++ === 0;
                const response = await own(...args);
                if (first) await new Promise((done) => { window.release = done; });
                return response;
            };
        })()""")
        browser.type("good")
        browser.until("!!window.release")
        browser.type(" cat")
        browser.run("new Promise((done) => setTimeout(done, 2 * WAIT))")
        browser.run("window.release()")
        browser.until(f"{TOKENS} === '[CLS] good cat [SEP]'")
        assert_equal(browser.run("asking || again"), False)


def test_browser_serve__other_pages_get_nothing():
    own, said = serve.Handler.send_error, []

    def heard(self, code, message=None, explain=None):
        said.append((code, message))
        return own(self, code, message, explain)
    with served() as server, unittest.mock.patch.object(server.model, "predict") as never, \
            unittest.mock.patch.object(serve.Handler, "send_error", heard), \
            Browser("--host-resolver-rules=MAP evil.example 127.0.0.1") as browser:
        # The name of another page, made to lead here.
        browser.open(f"http://evil.example:{server.port}/")
        assert "needed the address" in browser.run("document.body.textContent")
        # A form of another page can post here; it arrives, and is refused by its origin.
        said.clear()
        browser.open(f"data:text/html,<form action='http://127.0.0.1:{server.port}/ask' "
                     f"method=post enctype=text/plain><input name=x>")
        browser.run("void setTimeout(() => document.forms[0].submit(), 1)")
        for _ in range(600):        # the browser may ask for an icon besides
            found = [code for code, message in said if "Origin" in str(message)]
            time.sleep(0 if found else .05)
        assert_equal(found, [403])
        assert not never.called


def test_browser_serve__it_fits_from_400_to_1400_pixels_in_light_and_dark():
    model = predict.load(analyzed())
    model.trained = ["para"]        # and sentiment is asked all the same, by --task
    with served(model, names=["sst", "para"]) as server, opened(server) as browser:
        browser.type("good cat " * 9)
        browser.press("Tab")
        browser.type("bad dog " * 9)
        browser.until("document.querySelectorAll('tr.second').length")
        titles = browser.run("[...document.querySelectorAll('h3')].map((h) => "
                             "h.textContent.includes('not trained'))")
        assert_equal(titles, [False, True, True])
        assert browser.run("$('untrained').textContent").endswith("run: sts")
        grounds = set()
        for scheme in ("light", "dark"):
            browser.ask("Emulation.setEmulatedMedia", features=[
                {"name": "prefers-color-scheme", "value": scheme}])
            grounds.add(browser.run("getComputedStyle(document.body).backgroundColor"))
            for width in (400, 700, 1000, 1400):
                browser.resize(width, 900)
                assert browser.run("document.documentElement.scrollWidth") <= width
        assert_equal(len(grounds), 2, "dark is not dark")
