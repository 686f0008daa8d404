"""Checks in a process of their own, one for all the checks of a file.

The file has a function main(), which calls report(its checks); each of its tests asks
found() what its check has said.
"""

import functools
import json
import os
import subprocess
import sys
import unittest

from tests import ROOT


@functools.cache
def found(file, seconds, why="the process ended early", **environment):
    """What main() of tests/FILE.py reports there.   -> {name of a check: "" or an error}

    why: it may not come to an end; environment: variables of that process, None for one
    that it is not to have.
    """
    try:
        result = subprocess.run(
            [sys.executable, "-c", f"from tests import {file}\n{file}.main()"], cwd=ROOT,
            capture_output=True, text=True, timeout=seconds,
            env={name: value for name, value in {**os.environ, **environment}.items()
                 if value is not None})
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"no end after {seconds} seconds; {why}") from error
    lines = result.stdout.splitlines()
    assert lines, f"{why} {result.stderr}"
    return json.loads(lines[-1])


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
            said[check.__name__] = f"{hint(error)} {error} ({type(error).__name__})"
    print(json.dumps(said), flush=True)


def raise_what(said):
    """In the test: pass on what its check has said."""
    if said.startswith("skip: "):
        raise unittest.SkipTest(said.removeprefix("skip: "))
    assert not said, said
