"""The checks themselves: assertions and the ladder."""

import contextlib
import io
import json
import os
import sys
import tempfile
import time
import unittest.mock

import torch

import test_all
from tests.checks import assert_close, assert_equal


def message_of(f, **more):
    """(state, message) of a test."""
    return test_all.run_one(f, **more)[:2]


def test_checks_assert_close__says_what_came_and_which_mistake_gives_that():
    def check():
        assert_close([1.0, 3.0], [1.0, 2.0], mistakes={"it was halved": [.5, 1],
                                                       "one was added": [1, 3]})
    state, message = message_of(check)
    assert state == "FAIL" and "got [1. 3.], expected [1. 2.]" in message
    assert message.startswith("looks as if one was added") and "halved" not in message
    assert "the largest difference is 1, at [1]" in message
    assert "shapes [1] and [2]" in message_of(lambda: assert_close([1.0], [1.0, 2.0]))[1]
    two = torch.zeros(2), torch.zeros(3)
    assert "is a tuple returned?" in message_of(lambda: assert_close(two, [0, 0]))[1]
    assert_close([torch.tensor(1.0), 2.0], [1, 2])
    assert "a tuple was returned" in message_of(lambda: assert_close((1, 2, 3), [1, 2]))[1]
    assert "got 1.00000001, expected 1" in message_of(
        lambda: assert_close(1.00000001, 1.0, 1e-9))[1]
    assert "is there a return?" in message_of(lambda: assert_close(None, 1.0))[1]
    state, message = message_of(lambda: assert_equal([1], [2], mistakes={"b": [1]}))
    assert state == "FAIL" and "looks as if b" in message
    assert "a list stands where a tuple" in message_of(
        lambda: assert_equal([[1, 2]], [(1, 2)]))[1]


def refuse_all():
    raise AssertionError


def test_checks_run_one__holes_and_failures_are_told_apart():
    def hole():
        raise NotImplementedError("3.1 x")
    assert_equal(test_all.run_one(hole),
                 ("todo", "3.1 x: hole() in test_checks.py", "3.1 x"))
    # torch's own NotImplementedError is a failure: here, a module without forward().
    assert_equal(message_of(lambda: torch.nn.Module()(1))[0], "FAIL")
    assert_equal(message_of(lambda: sys.exit(3))[0], "FAIL")
    assert "lack its return" in message_of(lambda: None + 1)[1]
    assert "not so: " in message_of(lambda: refuse_all())[1]


def test_checks_run_one__an_endless_loop_ends_as_a_failure():
    def loop():
        while True:
            with contextlib.suppress(Exception):    # it must not catch the alarm
                time.sleep(.001)
    state, message = message_of(loop, limit=.05)
    assert state == "FAIL" and "no result after 0.05 s" in message


def test_checks_main__points_and_json():
    path, output = os.path.join(tempfile.mkdtemp(), "results.json"), io.StringIO()
    line = "checks_assert_close"
    part = {"label": "0 checks", "points": 5, "lines": [line],
            "tests": [test.name for test in test_all.all_tests() if test.line == line]}
    with (contextlib.redirect_stdout(output),
          unittest.mock.patch.object(test_all, "course_parts", lambda: [part])):
        assert_equal(test_all.main(["0 checks", "--points", "--json", path]), 0)
    with open(path, encoding="utf-8") as file:
        results = json.load(file)
    for result in results:
        assert_equal(set(result), {"part", "line", "name", "state", "message", "points",
                                   "of", "seconds", "output"})
    assert_equal({result["part"] for result in results}, {"0 checks"})
    assert_close(sum(result["points"] for result in results), 5, 1e-3)
    assert "     5 of    5  0 checks" in output.getvalue()
    for flags in (["--limit", "0"], ["--json", os.path.join(path, "x")],
                  ["--data", "nowhere"], ["no such part"]):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                test_all.main(flags)
            except SystemExit as end:
                assert_equal(end.code, 2)
        assert flags[0] in errors.getvalue().splitlines()[-1]


def test_checks_main__what_it_writes_replaces_results_alone():
    folder = tempfile.mkdtemp()
    path, link = (os.path.join(folder, name) for name in ("results.json", "link.json"))
    for name in (path, path + ".part"):
        with open(name, "w") as file:
            file.write("an hour of results")
    try:
        os.symlink(path, link)
    except OSError:                     # Windows, without the right to
        link = path
    part = {"label": "0 checks", "points": 5, "lines": ["checks_assert_close"], "tests": []}
    with unittest.mock.patch.object(test_all, "course_parts", lambda: [part]):
        for words, status in ((["checks_main", "--points"], 2), (["assert_close"], 0)):
            with (contextlib.redirect_stdout(io.StringIO()),
                  contextlib.redirect_stderr(io.StringIO()) as errors):
                try:
                    ended = test_all.main([*words, "--json", link])
                except SystemExit as end:
                    ended = end.code
            assert_equal(ended, status, errors.getvalue())
            with open(path) as file:
                assert_equal(file.read() == "an hour of results", status == 2)
    assert os.path.islink(link) or link == path
    assert_equal(set(os.listdir(folder)), {os.path.basename(link), "results.json",
                                           "results.json.part"})


def test_checks_main__open_parts_unknown_words_and_exits_are_no_success():
    def answers(state):
        return unittest.mock.patch.object(
            test_all.Isolated, "run", lambda self, test, limit: (state, "x", "", "printed"))
    for state, status in (("done", 0), ("FAIL", 1), ("todo", 1), ("skip", 0)):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), answers(state):
            assert_equal(test_all.main(["checks_assert_close"]), status, state)
        assert ("        | printed" in output.getvalue()) == (state == "FAIL")
    for words in (["nosuch"], ["checks", "nosuch"]):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                status = test_all.main(words)
            except SystemExit as end:
                status = end.code
        assert_equal(status, 2)
        assert "no part's name contains 'nosuch'" in errors.getvalue()


def test_checks_run_one__the_end_of_what_was_printed_is_kept():
    tail = test_all.Tail()

    def talk():
        for number in range(10000):
            print(number)
        raise ValueError
    assert_equal(test_all.run_one(talk, tail=tail)[0], "FAIL")
    assert tail.text.endswith("9998\n9999\n") and len(tail.text) <= 2000
