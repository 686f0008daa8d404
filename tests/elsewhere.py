"""Checks in a process of their own, one for all the checks of a file.

The file has a function main(), which calls report(its checks); each of its tests asks
found() what its check has said.
"""

import functools
import json
import os
import subprocess
import sys
import traceback
import unittest

from tests import ROOT


@functools.cache
def found(file, seconds, why="", **environment):
    """What main() of tests/FILE.py reports there.   -> {name of a check: "" or an error}

    Without a report, {"": the error}. why: a hint for that; environment: variables of that
    process, or None to remove one.
    """
    try:
        result = subprocess.run(
            [sys.executable, "-c", f"from tests import {file}\n{file}.main()"], cwd=ROOT,
            capture_output=True, text=True, timeout=seconds,
            env={name: value for name, value in {**os.environ, **environment}.items()
                 if value is not None})
    except subprocess.TimeoutExpired:
        return {"": f"no end after {seconds} seconds; {why}"}
    lines = result.stdout.splitlines()
    return json.loads(lines[-1]) if lines else {
        "": f"the process ended early; {why} {result.stderr}"}


def report(checks, hint=lambda error: ""):
    """There: make the checks, and print what found() returns."""
    said = {}
    for check in checks:
        try:
            check()
            said[check.__name__] = ""
        except unittest.SkipTest as skipped:
            said[check.__name__] = f"skip: {skipped}"
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1].line
            said[check.__name__] = (f"{hint(error)} {error or line} "
                                    f"({type(error).__name__})")
    print(json.dumps(said), flush=True)


def pass_on(report, check):
    """In the test: raise what its check has said, by the report of found()."""
    said = report.get("") or report[check.__name__]
    if said.startswith("skip: "):
        raise unittest.SkipTest(said.removeprefix("skip: "))
    assert not said, said
