"""The ladder: every claim that the modules make, checked in the report's order.

    python test_all.py                  a ladder of parts: done, todo, FAIL; then the next
    python test_all.py attention 3.3    only parts whose name contains one of these words
    python test_all.py --debug adamw    here, with all output, without limits: breakpoint()
    python test_all.py --points         only the parts of the course assignment, with points
    python test_all.py --json FILE      a result for each test, after each part
    python test_all.py --data DIR       the course's files too, where `transformers` and a
                                        package with MiniLM's weights are installed
    pytest                              the same tests

The exit status is 0 if all these tests are done, otherwise 1; 2 for a wrong argument.

The tests are in tests/, a file for each section of the report. A test's name is its claim:
test_3_3_1_pcgrad__zero_gradient_changes_nothing belongs to part "3.3.1 pcgrad". Where a
number is expected, the comment is the calculation by hand. Where a module computes a
formula in a fast form, tests/oracles.py has the naive form, which must give the same.
A file is imported when its first test runs, so that an error in one module fails only the
tests that need this module. The tests run in a process of their own (tools/isolated.py), in
one for each part with --points or --json.
"""

import argparse
import collections
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import sys
import time

from tools import isolated
from tools.running import Isolated, Tail, Test, run_here, run_one  # noqa: F401

ROOT = os.path.dirname(os.path.abspath(__file__))

# The report's order; other files follow in the order of their names.
FILES = [f"test_{name}.py" for name in (
    "3_1_bert", "3_1_adamw", "3_1_heads", "3_2_orders", "3_3_update", "3_3_stream",
    "3_3_1_pcgrad", "3_3_2_gradvac", "3_3_treatments", "3_4_pairs", "3_5_divergences",
    "3_5_smart", "3_6_heads", "4_1_text", "4_1_files", "4_1_weights", "4_1_names",
    "4_1_others_models", "4_1_untrusted_files", "4_2_scores", "4_3_settings", "4_3_tasks",
    "4_4_train", "4_4_loop", "run_resume", "run_ranks", "run_folder", "run_refusals",
    "run_sources")]
# Lines that take minutes: only with --all, or by name.
SLOW = ("4.3 tasks", "browser_analyze", "browser_serve", "checks_main", "compare_models",
        "compare_torchjd", "compare_transformers", "run_torchrun", "tools_fuzz",
        "tools_grader", "tools_make_assignment", "tools_mutants", "tour")


# --- The ladder ---

# After two such results in a row, the rest of a part is not tried.
ENDLESS = ("no result after", "it ended the process", "it was ended by", "it prints more")


def all_tests():
    """Yields all Tests in the report's order, without an import."""
    files = {name for name in os.listdir(os.path.join(ROOT, "tests"))
             if name.startswith("test_") and name.endswith(".py")}
    for file in [name for name in FILES if name in files] + sorted(files - set(FILES)):
        source = pathlib.Path(ROOT, "tests", file).read_text(encoding="utf-8")
        for name in re.findall(r"^def (test_\w+__\w+)\(", source, re.MULTILINE):
            yield Test(name, file)


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
    seconds: float = 0.0
    output: str = ""        # the end of what a test printed that fails


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

    def run(self, limit, run):
        graded = self.part["tests"] if self.part else []
        for test in self.tests:
            start, last = time.monotonic(), self.results[-2:]
            if len(last) == 2 and all(r.message.startswith(ENDLESS) for r in last):
                state, message, hole, output = "FAIL", last[1].message, "", ""
            else:
                state, message, hole, output = run(test, limit)
            if hole and hole != self.label:
                state, message = "waits", f"waits for {hole}"
            of = 0.0
            if test.name in graded:     # in hundredths, so that they add up exactly
                cents, rest = divmod(round(100 * self.part["points"]), len(graded))
                of = (cents + (graded.index(test.name) < rest)) / 100
            self.results.append(Result(
                self.label, self.line, test.name, state, message,
                of if state == "done" else 0.0, of, round(time.monotonic() - start, 3),
                output if state == "FAIL" else ""))

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
                output = next(r.output for r in self.results if r.name == names[0])
                text += "".join(f"\n        | {line}" for line in output.splitlines()[-5:])
        return text


def climb(words=(), limit=60.0, run=run_here, graded=False, leave_out=()):
    """Run all tests, or those of parts whose name contains a word.   Yields Rungs

    run: run_here(), or an Isolated's; graded: only parts of the assignment; leave_out:
    lines that do not run.
    """
    parts, rungs = {line: part for part in course_parts() for line in part["lines"]}, {}
    for test in all_tests():
        rung = rungs.setdefault(test.line, Rung(test.line, parts.get(test.line)))
        rung.tests.append(test)
    for rung in rungs.values():
        if rung.line not in leave_out and (rung.part or not graded) and (not words or any(
                word in f"{rung.line}\n{rung.label}" for word in words)):
            rung.run(limit, run)
            yield rung


def unknown(words, graded=False):
    """The words that no part's name contains, or no graded part's."""
    names = [name for part in course_parts() for name in (part["label"], *part["lines"])]
    if not graded:
        names += [test.line for test in all_tests()]
    return [word for word in words if word not in "\n".join(names)]


def points_of(results):
    """Points by part, and in all.   -> lines"""
    groups = {part["label"]: [r for r in results if r.part == part["label"]]
              for part in course_parts()}
    if sum(map(bool, groups.values())) > 1:
        groups["in all"] = [r for own in groups.values() for r in own]
    sums = {label: [round(sum(getattr(r, key) for r in own), 2) for key in ("points", "of")]
            for label, own in groups.items() if own}
    return [f"{got:6.4g} of {of:4.4g}  {label}" for label, (got, of) in sums.items()]


def write_json(results, path):
    text = json.dumps([vars(r) for r in results], indent=1, ensure_ascii=False) + "\n"
    path = os.path.realpath(path)               # a link stays one
    part = f"{path}.{os.getpid()}.part"         # no name that a user's file would have
    pathlib.Path(part).write_text(text, encoding="utf-8")
    os.replace(part, path)


def main(argv=None):
    p = argparse.ArgumentParser(description="Check every claim, in the report's order.",
                                usage=argparse.SUPPRESS)
    p.add_argument("words", nargs="*", help="only parts whose name contains one of these")
    absent = unknown(SLOW)              # in a student's copy
    p.add_argument("--data", metavar="DIR", help="the course's nine CSV files")
    p.add_argument("--all", action="store_true",
                   help="also the lines that take minutes: "
                        + ", ".join(name for name in SLOW if name not in absent))
    p.add_argument("--points", action="store_true", help="only graded parts, with points")
    p.add_argument("--json", metavar="FILE", help="write a result for each test")
    p.add_argument("--limit", type=float, default=60.0, help="seconds for a test (60)")
    p.add_argument("--debug", action="store_true",
                   help="in this process, with all output and tracebacks, without limits")
    args = p.parse_intermixed_args(argv)
    for name in ("torch", "numpy"):
        if importlib.util.find_spec(name) is None:
            p.error(f"{name} is not installed; needed: pip install -r requirements.txt")
    if args.data and not os.path.isdir(args.data):
        p.error("--data needs a folder with the course's nine CSV files")
    if not 0 < args.limit < 1e6:
        p.error(f"--limit must be above 0 seconds, got {args.limit:g}")
    if args.points and not course_parts():
        p.error("--points needs the list of parts, tools/assignment.json")
    if unknown(args.words):
        p.error(f"no part's name contains {' or '.join(map(repr, unknown(args.words)))}")
    if args.points and args.words and unknown(args.words, graded=True) == args.words:
        p.error(f"no graded part's name contains {' or '.join(map(repr, args.words))}")
    start, results, following, runner = time.monotonic(), [], None, Isolated(args.data)
    try:        # before the tests have run, so that nobody waits for nothing
        if args.json:
            write_json(results, args.json)
    except OSError as error:
        p.error(f"--json {args.json} cannot be written: {error.strerror}")
    if args.debug and args.data:
        os.environ["MINBERT_DATA"] = os.path.abspath(args.data)
    if args.json or args.points:
        isolated.PRELOAD.append(isolated.SLOW)
    try:
        if not args.debug:
            runner.find_broken()
        for rung in climb(args.words, 0 if args.debug else args.limit,
                          run_here if args.debug else runner.run, args.points,
                          () if args.all or args.words else SLOW):
            print(rung, flush=True)
            results += rung.results
            todo = [r.message for r in rung.results if r.state == "todo"]
            following = following or (todo[0] if todo else None)
            if args.json:
                write_json(results, args.json)
            if args.json or args.points:
                runner.close()          # the next part gets a process of its own
    finally:
        runner.close()
    if not results:
        p.error("no test was found; is the folder tests/ complete?")
    if following:
        print(f"next: {following}")
    if args.points:
        print("\n".join(points_of(results)))
    count = collections.Counter(result.state for result in results)
    print(f"{time.monotonic() - start:.1f} s; {count['todo'] + count['waits']} to do")
    print(f"{count['done']} passed, {count['FAIL']} failed"
          + (f", {count['skip']} skipped" if count["skip"] else ""))
    graded_skips = any(r.of and r.state == "skip" for r in results)
    return 1 if count["FAIL"] or count["todo"] or count["waits"] or graded_skips else 0


if __name__ == "__main__":
    with isolated.ended_in_order():
        sys.exit(main())
