"""The ladders of copies of this tree, climbed in a process that imports torch only once.

Used by make_assignment.py and mutants.py. Requests and answers are lines of JSON.
"""

import atexit
import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tools.source import MODULES


@functools.cache
def worker():
    """The process, which ends with this one: its input ends then."""
    process = subprocess.Popen([sys.executable, os.path.abspath(__file__)],
                               encoding="utf-8", stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    atexit.register(process.communicate)        # ends its input, and waits
    return process


def climb(folder, words=(), limit=60.0, until=None):
    """Run a copy's tests, all or those of parts whose name contains a word.

    until: once a test has failed whose claim or message contains this, the others are left
    out. -> [result, …], each a dictionary as test_all.py --json writes it
    """
    try:
        worker().stdin.write(json.dumps([folder, list(words), limit, until]) + "\n")
        worker().stdin.flush()
        answer = worker().stdout.readline()
        if not answer:
            raise RuntimeError(f"the tests of {folder} ended without results")
        return json.loads(answer)
    except BaseException:       # also when a test that calls this has taken too long
        worker().kill()
        worker().communicate()
        worker.cache_clear()
        raise


def claim_of(name):
    """"test_4_2_accuracy__by_hand" -> "by hand" """
    return name.split("__", 1)[1].replace("_", " ")


def stopping(run_one, until):
    """test_all.run_one() that runs no more tests after the failure that is waited for."""
    found = []

    def run(f, limit):
        if found:
            return "skip", "", ""
        state, message, hole = run_one(f, limit)
        if state == "FAIL" and until in f"{claim_of(f.__self__.name)}: {message}":
            found.append(f)
        return state, message, hole
    return run


def climb_here(folder, words, limit, until):
    """climb() inside the worker."""
    for name in list(sys.modules):
        if name in MODULES or name.split(".")[0] in ("plumbing", "tests", "tools"):
            del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    scratch, tempfile.tempdir = tempfile.tempdir, None
    try:
        test_all = importlib.import_module("test_all")
        if until is not None:
            test_all.run_one = stopping(test_all.run_one, until)
        return [vars(result) for rung in test_all.climb(words, limit)
                for result in rung.results]
    finally:
        sys.path.remove(folder)
        if "tests" in sys.modules:
            shutil.rmtree(sys.modules["tests"].SCRATCH, ignore_errors=True)
        tempfile.tempdir = scratch


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)                       # what a test prints is no answer
    sys.dont_write_bytecode = True      # copies stay as they are
    for line in sys.stdin:
        print(json.dumps(climb_here(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
