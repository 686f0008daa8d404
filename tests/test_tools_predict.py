"""tools/predict.py."""

import io
import itertools
import os
import shutil
import sys
import tempfile
import time
import unittest.mock

import numpy as np

import data
import heads
from tests.checks import assert_close, assert_equal, assert_one_line
from tests.world import analyzed, run_tool, tiny_world, write_file
from tools import predict, results


def test_tools_predict__answers_are_those_of_the_runs_predictions():
    # Only best/ is needed, copied to another place.
    best = os.path.join(tempfile.mkdtemp(), "copy")
    shutil.copytree(os.path.join(analyzed(), "best"), best)
    model = heads.MultitaskBert.from_pretrained(best)
    folder = tempfile.mkdtemp()
    for name, columns in (("sst", 1), ("para", 2), ("sts", 2)):
        texts = data.load(tiny_world()[0], model.tasks[name], "dev", str)
        with open(os.path.join(folder, "x.txt"), "w") as file:
            file.writelines("\t".join(parts) + "\n\n" for parts in texts.tokens)
        status, output, errors = run_tool(predict, best, "--task", name, "--file",
                                          os.path.join(folder, "x.txt"))
        assert status == 0, errors
        want = results.read_predictions(os.path.join(
            analyzed(), "predictions", f"{name}-dev-output.csv"))
        lines = [line.split("\t") for line in output.splitlines()]
        assert_close([float(line[1]) for line in lines], [want[i] for i in texts.ids], 6e-4)
        assert [tuple(line[-columns:]) for line in lines] == texts.tokens
        if name == "sst":
            p = [float(part.split(":")[1]) for part in lines[0][2].split()]
            assert_close(sum(p), 1, 3e-3)
            assert lines[0][1] == str(int(np.argmax(p)))
        if name == "para":
            assert all((float(line[2][2:]) > .5) == (line[1] == "1") for line in lines)


def test_tools_predict__what_is_typed_is_asked_for_all_that_fits():
    status, output, errors = run_tool(predict, analyzed(), stdin="good\n\ncat\tdog\n")
    assert status == 0, errors
    model = predict.load(analyzed())
    trained = [model.tasks[name] for name in model.trained]
    assert_equal([line.split("\t")[0] for line in output.splitlines()],
                 [task.name for pair in (False, True) for task in trained
                  if task.pair == pair])
    # At a keyboard a typo does not end the session.
    status, output, errors = run_tool(predict, analyzed(), "--task", "sst",
                                      stdin="cat\tdog\ngood\n", typed=True)
    assert status == 0 and output.startswith("sst\t") and "one sentence" in errors
    assert "sst (a sentence): 0 negative, 1 somewhat negative" in errors
    assert_equal(predict.meaning(model.tasks["sts"]),
                 "  sts (a pair): similarity, from 0 to 5")


def test_tools_predict__refusals_are_one_line():
    status, _, errors = run_tool(predict, analyzed(), "--task", "sts", stdin="good\n")
    assert_one_line(status, errors, "line 1", "TAB", "good")
    status, _, errors = run_tool(predict, analyzed(), stdin="good\n\na\tb\tc\n")
    assert_one_line(status, errors, "line 3", "TAB")
    status, output, errors = run_tool(predict, analyzed(), "--task", "sst",
                                      stdin=b"\xef\xbb\xbfgood\n\xff\xfe\nbad\n")
    assert_one_line(status, errors, "line 2", "UTF-8")
    assert [line.split("\t")[3] for line in output.splitlines()] == ["good", "bad"]
    status, _, errors = run_tool(predict, tiny_world()[1])
    assert_one_line(status, errors, "heads", "best/")
    status, _, errors = run_tool(predict, tempfile.mkdtemp())
    assert_one_line(status, errors, "best/", "config.json")
    status, _, errors = run_tool(predict, analyzed(), "--task", "nli", stdin="good\n")
    assert_one_line(status, errors, "--task nli", "sst, para, sts")


def test_tools_predict__a_line_of_the_wrong_kind_is_named_and_the_others_answered():
    text = b"cat\tdog\ngood\nman\trun\n\xff\tdog\n"
    path = os.path.join(write_file("", "pairs.txt", text), "pairs.txt")
    status, output, errors = run_tool(predict, analyzed(), "--task", "sts", "--file", path)
    assert_equal(status, 2)
    assert_equal([line.split("\t")[2:] for line in output.splitlines()],
                 [["cat", "dog"], ["man", "run"]])
    first, second = errors.splitlines()
    assert "pairs.txt, line 2" in first and "TAB" in first and "good" in first
    assert "pairs.txt, line 4" in second and "UTF-8" in second


def test_tools_predict__classes_are_whole_and_probabilities_in_their_order():
    sst, para, sts = heads.tasks()[:3]
    assert_equal(predict.formatted(sst, 1, np.array([.2, .7, .1])),
                 ["sst", "1", "0:0.200 1:0.700 2:0.100"])
    assert_equal(predict.formatted(para, 1.0, np.array(.75)), ["para", "1", "p 0.750"])
    assert_equal(predict.formatted(sts, 3.14159, None), ["sts", "3.142"])
    sts = heads.tasks(sts_loss="ce")[2]
    assert_equal(predict.formatted(sts, 3.0, np.array([.25, .75])),
                 ["sts", "3", "0:0.250 1:0.750"])


def test_tools_predict__blanks_around_texts_do_not_count():
    sts = heads.tasks()[2]
    assert_equal(predict.parse("  cat \t dog\r\n", [sts]), ("cat", "dog"))
    _, plain, _ = run_tool(predict, analyzed(), stdin="cat\tdog\n")
    _, blanks, _ = run_tool(predict, analyzed(), stdin=" cat \t  dog \n")
    assert_equal(blanks, plain)


def test_tools_predict__a_text_cannot_command_the_terminal():
    _, output, _ = run_tool(predict, analyzed(), stdin="good \x1b[2J\u202e film\n")
    assert output.endswith("good \\x1b[2J\\u202e film\n"), repr(output)


def test_tools_predict__many_texts_go_in_batches_and_say_how_far_they_are():
    model = heads.MultitaskBert.from_pretrained(os.path.join(analyzed(), "best"))
    shown = []

    class Terminal(io.StringIO):
        def isatty(self):
            return True
    with (unittest.mock.patch.object(sys, "stderr", Terminal()) as said,
          unittest.mock.patch.object(model, "forward", wraps=model.forward) as passes):
        with unittest.mock.patch.object(time, "monotonic", itertools.count(0, 6).__next__):
            many = model.predict("sst", ["good", "bad cat"] * 100)
        shown = said.getvalue().split("\r")
        quick = model.predict("sst", ["good", "bad cat"])
    assert_equal(passes.call_count, 5, "64 + 64 + 64 + 8, and 2")
    assert "] sst 1/4 batches [0:06<0:18, " in shown[1], shown[1]
    assert_equal(len(shown), 10, "two for each of 4 lines, and one to remove the last")
    assert_equal("\r".join(shown), said.getvalue(), "for two texts there is nothing to say")
    assert_equal(many[:2].tolist(), quick.tolist())
