"""The ladder: every claim that the modules make, checked in the report's order.

    python test_all.py                  a ladder of parts: done, todo, FAIL; then the next
    python test_all.py attention 3.3    only parts whose name contains one of these words
    python test_all.py --points         points by part of the course assignment
    python test_all.py --json FILE      a result for each test, for autograders
    python test_all.py --data DIR       the course's files too, where `transformers` and a
                                        package with MiniLM's weights are installed
    pytest                              the same tests

The tests are in tests/, a file for each section of the report. A test's name is its claim:
test_3_3_1_pcgrad__zero_gradient_changes_nothing belongs to part "3.3.1 pcgrad". Where a
number is expected, the comment is the calculation by hand. Where a module computes a
formula in a fast form, tests/oracles.py has the naive form, which must give the same.
A file is imported when its first test runs, so that an error in one module fails only the
tests that need this module.
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib
import io
import json
import os
import pathlib
import re
import signal
import sys
import time
import traceback
import unittest
import warnings

ROOT = os.path.dirname(os.path.abspath(__file__))

# The report's order; other files follow in the order of their names.
FILES = [f"test_{name}.py" for name in (
    "3_1_bert", "3_1_adamw", "3_1_heads", "3_2_orders", "3_3_update", "3_3_stream",
    "3_3_1_pcgrad", "3_3_2_gradvac", "3_4_pairs", "3_5_smart", "3_6_heads", "4_1_text",
    "4_1_weights", "4_2_scores", "4_3_settings", "4_4_train", "run_resume", "run_folder",
    "run_refusals", "run_sources")]


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


def all_tests():
    """Yields all Tests in the report's order, without an import."""
    files = {name for name in os.listdir(os.path.join(ROOT, "tests"))
             if name.startswith("test_") and name.endswith(".py")}
    for file in [name for name in FILES if name in files] + sorted(files - set(FILES)):
        source = pathlib.Path(ROOT, "tests", file).read_text(encoding="utf-8")
        for name in re.findall(r"^def (test_\w+__\w+)\(", source, re.MULTILINE):
            yield Test(name, file)


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


def run_one(f, limit=60.0):
    """-> ("done" | "todo" | "skip" | "FAIL", message, the open hole's part or "")"""
    try:
        with (contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(),
              time_limit(limit)):
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
        place, line = place_of(error)
        message = str(error) or f"not so: {line}"
        if isinstance(error, TooLong):
            message = f"no result after {limit:g} s; an endless loop?"
        elif isinstance(error, SyntaxError):
            message = f"{type(error).__name__}: {error.msg}"
        elif not isinstance(error, AssertionError):
            message = f"{type(error).__name__}: {message}"
            if "NoneType" in message:
                message += "; does one of your functions lack its return?"
        return "FAIL", f"{message} ({place})", ""
    return "done", "", ""


# --- The ladder ---

def course_parts():
    """The parts of the course assignment: tools/assignment.json, or [] without that file.

    label: "3.1 attention", what a hole raises; lines: its lines of the ladder; tests: those
    of them that share the points evenly (all, unless make_assignment.py listed them).
    """
    path = pathlib.Path(ROOT, "tools", "assignment.json")
    if not path.exists():
        return []
    parts = json.loads(path.read_text(encoding="utf-8"))
    names = collections.defaultdict(list)
    for test in all_tests():
        names[test.line].append(test.name)
    for part in parts:
        part["label"] = f"{part['section']} {part['name']}"
        part.setdefault("tests", [name for line in part["lines"] for name in names[line]])
    return parts


@dataclasses.dataclass
class Result:
    part: str               # the part of the assignment, or else the line of the ladder
    line: str
    name: str
    state: str              # done, todo, waits (for another part's hole), skip, FAIL
    message: str
    points: float
    of: float


@dataclasses.dataclass
class Rung:
    """A line of the ladder."""
    line: str
    part: dict | None       # of the assignment
    tests: list = dataclasses.field(default_factory=list)
    results: list = dataclasses.field(default_factory=list)

    @property
    def label(self):
        return self.part["label"] if self.part else self.line

    @property
    def state(self):
        states = [result.state for result in self.results]
        worst = next((s for s in ("FAIL", "todo", "done", "waits") if s in states), "skip")
        # A part of the assignment can be done while its other tests wait for other parts.
        if worst == "waits" or worst == "done" and "waits" in states and not self.part:
            return "todo"
        return worst

    def run(self, limit):
        for test in self.tests:
            state, message, hole = run_one(test.run, limit)
            if hole and hole != self.label:
                state, message = "waits", f"waits for {hole}"
            of = 0.0
            if self.part and test.name in self.part["tests"]:
                of = self.part["points"] / len(self.part["tests"])
            self.results.append(Result(self.label, self.line, test.name, state, message,
                                       of if state == "done" else 0.0, of))

    def __str__(self):
        states = [result.state for result in self.results]
        alike = collections.defaultdict(list)       # an import that fails fails them all
        for result in self.results:
            alike[result.state, result.message].append(result.name)
        text = f"{self.state}  {self.line}  ({states.count('done')} of {len(states)}"
        if "waits" in states:
            waits = [message[10:] for state, message in alike if state == "waits"]
            text += f"; {states.count('waits')} wait for {', '.join(waits)}"
        text += ")"
        for (state, message), names in alike.items():
            if state in ("FAIL", "skip"):
                claim = names[0].split("__", 1)[1].replace("_", " ")
                more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                text += f"\n      {state}: {claim}{more}: {message}"
        return text


def climb(words=(), limit=60.0):
    """Run all tests, or those of parts whose name contains a word.   Yields Rungs"""
    parts, rungs = {line: part for part in course_parts() for line in part["lines"]}, {}
    for test in all_tests():
        rung = rungs.setdefault(test.line, Rung(test.line, parts.get(test.line)))
        rung.tests.append(test)
    for rung in rungs.values():
        if not words or any(word in f"{rung.line}\n{rung.label}" for word in words):
            rung.run(limit)
            yield rung


def points_of(results):
    """Points by part, and in all.   -> lines"""
    groups = {part["label"]: [r for r in results if r.part == part["label"]]
              for part in course_parts()}
    if sum(map(bool, groups.values())) > 1:
        groups["in all"] = [r for own in groups.values() for r in own]
    return [f"{sum(r.points for r in own):6.4g} of {sum(r.of for r in own):4.4g}  {label}"
            for label, own in groups.items() if own]


def main(argv=None):
    p = argparse.ArgumentParser(description="Check every claim, in the report's order.",
                                usage=argparse.SUPPRESS)
    p.add_argument("words", nargs="*", help="only parts whose name contains one of these")
    p.add_argument("--data", metavar="DIR", help="the course's nine CSV files")
    p.add_argument("--points", action="store_true", help="points by part")
    p.add_argument("--json", metavar="FILE", help="write a result for each test")
    p.add_argument("--limit", type=float, default=60.0, help="seconds for a test (60)")
    args = p.parse_intermixed_args(argv)
    if args.data and not os.path.isdir(args.data):
        p.error("--data needs a folder with the course's nine CSV files")
    if args.data:
        os.environ["MINBERT_DATA"] = os.path.abspath(args.data)     # for tests/__init__.py
    if not 0 < args.limit < 1e6:
        p.error(f"--limit must be above 0 seconds, got {args.limit:g}")
    if args.points and not course_parts():
        p.error("--points needs the list of parts, tools/assignment.json")
    try:        # before the tests have run, so that nobody waits for nothing
        if args.json:
            pathlib.Path(args.json).touch()
    except OSError as error:
        p.error(f"--json {args.json} cannot be written: {error.strerror}")
    start, results, following = time.monotonic(), [], None
    for rung in climb(args.words, args.limit):
        print(rung, flush=True)
        results += rung.results
        todo = [r.message for r in rung.results if r.state == "todo"]
        following = following or (todo[0] if todo else None)
    if not results:
        p.error(f"no part's name contains {' or '.join(map(repr, args.words))}")
    if following:
        print(f"next: {following}")
    if args.json:
        table = [{**vars(r), "points": round(r.points, 4), "of": round(r.of, 4)}
                 for r in results]
        pathlib.Path(args.json).write_text(
            json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.points:
        print("\n".join(points_of(results)))
    count = collections.Counter(result.state for result in results)
    print(f"{time.monotonic() - start:.1f} s; {count['todo'] + count['waits']} to do")
    print(f"{count['done']} passed, {count['FAIL']} failed"
          + (f", {count['skip']} skipped" if count["skip"] else ""))
    return 1 if count["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
