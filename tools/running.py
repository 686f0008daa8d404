"""One test of the ladder: here, or in a process of its own.

Used by test_all.py. A student's code may do anything, also by mistake: end the process,
hang, print without end. In a process of its own (isolated.py) that costs one test; a module
that does so when it is imported costs the tests that need it.
"""

import contextlib
import dataclasses
import importlib
import io
import os
import signal
import sys
import traceback
import unittest
import warnings

from tools.isolated import Child, Ended

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# --- One test ---

@dataclasses.dataclass
class Test:
    name: str               # test_3_3_1_pcgrad__zero_gradient_changes_nothing
    file: str               # test_3_3_1_pcgrad.py

    @property
    def line(self):         # of the ladder: 3.3.1 pcgrad
        words = self.name.removeprefix("test_").split("__")[0].split("_")
        digits = [word for word in words if word.isdigit()]
        return " ".join(filter(None, [".".join(digits), "_".join(words[len(digits):])]))

    def function(self):
        return getattr(importlib.import_module(f"tests.{self.file[:-3]}"), self.name)

    def run(self):
        self.function()()


class TooLong(BaseException):
    """Not an Exception, which an `except Exception:` in a student's loop would catch."""


@contextlib.contextmanager
def time_limit(seconds):
    """Raise TooLong in the body after so many seconds, where the system has SIGALRM."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_):
        raise TooLong
    before = signal.signal(signal.SIGALRM, ring)
    outer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, if it was caught
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)
        signal.signal(signal.SIGALRM, before)


def is_ours(filename):
    folder = os.path.relpath(os.path.dirname(os.path.abspath(filename)), ROOT)
    return folder in (".", "plumbing", "tests", "tools")


def place_of(error):
    """The last line of ours that led to an error.   -> ("bert.py, line 9", the line)"""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if is_ours(frame.filename)]
    checks = {os.path.abspath(__file__), os.path.join(ROOT, "tests", "checks.py")}
    last = ([f for f in frames if os.path.abspath(f.filename) not in checks] or frames)[-1]
    file, number, line = last.filename, last.lineno, last.line
    if isinstance(error, SyntaxError) and error.filename and is_ours(error.filename):
        file, number = error.filename, error.lineno
    file = os.path.relpath(file, ROOT).replace(os.sep, "/")
    return f"{file}, line {number}", line


class Tail(io.TextIOBase):
    """Keeps the end of what is printed."""
    text = ""

    def write(self, text):
        self.text = (self.text + text)[-2000:]
        return len(text)


# What Python and torch say of typical slips, and what to ask oneself.
EXPLAINED = {
    "NoneType": "does one of your functions lack its return, or was None an input?",
    "'tuple' and 'Tensor'": "does one of your functions return several values for one?",
    "'tuple' object": "does one of your functions return several values for one?",
    "iteration over a 0-d tensor": "is one result returned where two are asked for?",
    "values to unpack": "does a function return more or fewer results than it should?",
    "tuple indices must be": "does one of your functions return several values for one?",
    "mat1 and mat2 shapes": "does a matrix get another number of features than it is for?",
    "dtype to be Long": "are float labels used as numbers of classes?",
    "unhashable type: 'list'": "is a dimension of size 1 left that squeeze() removes?",
    "does not require grad": "was something detached, or computed under no_grad()?",
    "a leaf Variable that requires grad": "is torch.no_grad() missing around the update?",
    "through the graph a second time": "does one backward() use another's graph?",
    "the same dtype": "does one lack .float(): a mask, a label, a head's input under "
                      "autocast?",
}


def run_one(f, limit=60.0, tail=None):
    """-> ("done" | "todo" | "skip" | "FAIL", message, the open hole's part or "")

    tail: a Tail for what is printed. Without a limit nothing is caught or hidden.
    """
    tail = tail or Tail()
    try:
        if not limit:
            f()
            return "done", "", ""
        with (contextlib.redirect_stdout(tail), contextlib.redirect_stderr(tail),
              warnings.catch_warnings(), time_limit(limit)):
            warnings.simplefilter("ignore")
            f()
    except unittest.SkipTest as reason:
        return "skip", str(reason), ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        # torch raises NotImplementedError for reasons of its own, which are no holes.
        if (isinstance(error, NotImplementedError) and is_ours(last.filename)
                and "raise" in last.line):
            file = os.path.basename(last.filename)
            return "todo", f"{error}: {last.name}() in {file}", str(error)
        if not limit:
            traceback.print_exception(error)
        place, line = place_of(error)
        message = str(error) or f"not so: {line}"
        if isinstance(error, TooLong):
            message = f"no result after {limit:g} s; an endless loop?"
        elif isinstance(error, SyntaxError):
            message = f"{type(error).__name__}: {error.msg}"
        elif not isinstance(error, AssertionError):
            message = f"{type(error).__name__}: {message}"
            message += next((f"; {question}" for words, question in EXPLAINED.items()
                             if words in message), "")
        return "FAIL", f"{message} ({place})", ""
    return "done", "", ""


# --- In a process of its own ---

MODULES = ("optim", "bert", "smart", "multitask", "data", "heads", "train")


class Broken:
    """Refuses to import modules that hang or end the process: {name: what they do}."""

    def __init__(self, modules):
        self.modules = modules

    def find_spec(self, name, *_):
        if name in self.modules:
            raise ImportError(f"{name}.py cannot be imported: {self.modules[name]}")


def service(broken, data):
    """For isolated.Child: runs a test, or imports a module first of all."""
    sys.meta_path.insert(0, Broken(broken))
    if data:
        os.environ["MINBERT_DATA"] = data       # for tests/__init__.py

    def answer(request):
        tail = Tail()
        if isinstance(request, str):
            return run_one(lambda: importlib.import_module(request), 20.0, tail)
        *test, limit = request
        return [*run_one(Test(*test).run, limit, tail), tail.text]
    return answer


class Isolated:
    """Runs tests in a child; in another one after a test that has ended it."""

    def __init__(self, data=None):
        self.child, self.broken, self.data = None, {}, data and os.path.abspath(data)

    def ask(self, request, limit):
        try:
            if self.child is None:
                self.child = Child("tools.running:service", self.broken, self.data,
                                   folder=ROOT, memory=8 << 30, files=1 << 40, cpu=7200,
                                   start=limit + 60)
            return self.child.ask(request, limit)
        except Ended as end:
            self.close()
            return "FAIL", str(end), "", ""

    def find_broken(self):
        """A module that cannot even be imported costs its limit once, not in every test."""
        for name in MODULES:
            state, message, *_ = self.ask(name, 25.0)
            if state == "FAIL" and (self.child is None or "no result after" in message):
                self.broken[name] = message
                self.close()

    def run(self, test, limit):
        return self.ask([test.name, test.file, limit], limit + 2)

    def close(self):
        if self.child:
            self.child.close()
        self.child = None


def run_here(test, limit):
    tail = Tail()
    return *run_one(test.run, limit, tail), tail.text
