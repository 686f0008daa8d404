"""tools/predict.py."""

import os
import shutil
import tempfile

import numpy as np

import data
import heads
from tests.checks import assert_close, assert_one_line
from tests.world import analyzed, run_tool, tiny_world, write_file
from tools import predict


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
        want = data.read_predictions(os.path.join(analyzed(), "predictions",
                                                  f"{name}-dev-output.csv"))
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
    assert [line.split("\t")[0] for line in output.splitlines()] == ["sst", "para", "sts"]
    # At a keyboard a typo does not end the session.
    status, output, errors = run_tool(predict, analyzed(), "--task", "sst",
                                      stdin="cat\tdog\ngood\n", typed=True)
    assert status == 0 and output.startswith("sst\t") and "one sentence" in errors


def test_tools_predict__refusals_are_one_line():
    status, _, errors = run_tool(predict, analyzed(), "--task", "sts", stdin="good\n")
    assert_one_line(status, errors, "line 1", "TAB", "good")
    status, _, errors = run_tool(predict, analyzed(), stdin="good\n\na\tb\tc\n")
    assert_one_line(status, errors, "line 3", "TAB")
    status, _, errors = run_tool(predict, tiny_world()[1])
    assert_one_line(status, errors, "heads", "best/")
    status, _, errors = run_tool(predict, tempfile.mkdtemp())
    assert_one_line(status, errors, "train.py")
    path = os.path.join(write_file("good\n\tbad\n", "two.txt"), "two.txt")
    status, output, errors = run_tool(predict, analyzed(), "--file", path)
    assert_one_line(status, errors, "line 2", "two.txt")
    assert not output, "nothing is answered before all is read"
