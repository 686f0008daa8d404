"""A headless Chromium, driven over its pipe: no package is needed, and no port is open."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
import unittest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser:
    """`with Browser() as browser:` one page. Skips the test where there is no Chromium."""

    def __init__(self, *flags, width=1000, height=1400, seconds=110):
        found = list(filter(None, map(shutil.which, NAMES)))
        if not found:
            raise unittest.SkipTest(f"needs a browser, one of {', '.join(NAMES)}")
        try:
            import fcntl
            import resource
        except ImportError:                 # Windows
            raise unittest.SkipTest("drives a browser by POSIX pipes only") from None
        self.end, self.number, self.rest = time.monotonic() + seconds, 0, b""
        self.events, self.folder = [], tempfile.mkdtemp()
        # It reads commands from file descriptor 3 and answers on 4. High numbers first, so
        # that neither is overwritten while the other is put in its place.
        reads, writes = os.pipe(), os.pipe()
        self.out, self.input = reads[1], writes[0]
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (reads[0], writes[1])]

        def place():
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)
            # A browser reserves more than test_all.py allows; only root can raise that.
            for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
                with contextlib.suppress(OSError, ValueError):
                    resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2)
        self.process = subprocess.Popen(
            [found[0], "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--hide-scrollbars", "--remote-debugging-pipe", *flags,
             f"--user-data-dir={self.folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(3, 4, *theirs),
            preexec_fn=place)
        for fd in (reads[0], writes[1], *theirs):
            os.close(fd)
        self.session = None
        try:
            page = next(target["targetId"] for target in self.ask("Target.getTargets")[
                "targetInfos"] if target["type"] == "page")
            self.session = self.ask("Target.attachToTarget", targetId=page,
                                    flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.ask(f"{domain}.enable")
            self.resize(width, height)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        with contextlib.suppress(OSError):
            os.close(self.out)
            os.close(self.input)
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, method, **parameters):
        """A command of the DevTools protocol -> its result"""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        try:
            block = json.dumps(message).encode() + b"\0"
            while block:
                block = block[os.write(self.out, block):]
            while True:
                answer = self.message()
                if answer.get("id") == self.number:
                    assert "error" not in answer, f"{method}: {answer}"
                    return answer["result"]
                self.events.append(answer)
        except (BrokenPipeError, EOFError):
            raise unittest.SkipTest("the browser ended; test_all.py leaves a test too "
                                    "little memory for one, pytest or --debug does not"
                                    ) from None

    def message(self):
        while b"\0" not in self.rest:
            left = self.end - time.monotonic()
            assert left > 0 and select.select([self.input], [], [], left)[0], \
                "the browser does not answer"
            block = os.read(self.input, 1 << 16)
            if not block:
                raise EOFError
            self.rest += block
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def resize(self, width, height):
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=False)

    def open(self, address):
        self.ask("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def run(self, script):
        """The value of a JavaScript expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True,
                          returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script):
        """Wait until an expression is true.   -> its value"""
        while not (value := self.run(script)):
            assert time.monotonic() < self.end, f"{script} did not become true"
            time.sleep(.05)
        return value

    def type(self, text):
        """Into the element that has the focus, as a keyboard would."""
        self.ask("Input.insertText", text=text)

    def press(self, key):
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                     windowsVirtualKeyCode={"Tab": 9, "ArrowUp": 38, "ArrowDown": 40}[key])

    def screenshot(self, path):
        picture = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(picture))
