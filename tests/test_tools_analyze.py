"""tools/analyze.py."""

import json
import os
import shutil
import sys
import tempfile
import unittest.mock

import numpy as np

import heads
from tests.checks import assert_close, assert_one_line, skip_without
from tests.world import analyzed, run_tool, tiny_world
from tools import analyze


def dev_of(name, truth, predicted, probabilities=None, texts=None):
    """The dev set of one task as analyze.py sees it."""
    task = {task.name: task for task in heads.tasks()}[name]
    texts = texts or [tuple(f"text {i}" for _ in task.texts) for i in range(len(truth))]
    return analyze.Dev(task, texts, np.array(truth, float), np.array(predicted, float),
                       probabilities)


def test_tools_analyze__sentiment_by_hand():
    # Errors 0, 2, -1, 0, 3: 2 right, 1 off by 1, 1 by 2, 1 by 3; two too low, one too high.
    p = np.full((5, 5), .1)
    p[:, 0] = [.5, .6, .5, .9, .6]
    blocks = analyze.sentiment(dev_of("sst", [4, 3, 0, 2, 3], [4, 1, 1, 2, 0], p))
    words = blocks[1][1]
    for part in ("2 (40.0%) are right", "1 (20.0%) off by 1", "1 (20.0%) by 2",
                 "1 (20.0%) by 3", "0 (0.0%) by 4", "2 (40.0%) are rated too low",
                 "1 (20.0%) too high"):
        assert part in words, f"got {words!r}, expected {part!r}"
    matrix = [list(map(int, row[1:])) for row in blocks[2][2]]
    assert matrix[3] == [1, 1, 0, 0, 0] and sum(map(sum, matrix)) == 5, "rows are the truth"
    worst, best = [block[2] for block in blocks if block[0] == "table"][1:]
    assert [row[-1] for row in worst[:2]] == ["text 4", "text 1"]
    assert [row[-1] for row in best[:2]] == ["text 3", "text 0"], "the surer one first"


def test_tools_analyze__paraphrase_by_hand():
    blocks = analyze.paraphrase(dev_of("para", [0, 0, 1, 1, 0], [1, 0, 0, 1, 1],
                                       np.array([.9, .1, .3, .8, .6])))
    assert "2 (40.0%) are right" in blocks[1][1]
    assert "2 (66.7%) of the 3 that are none" in blocks[1][1], "false positives"
    assert "1 (50.0%) of the 2 that are" in blocks[1][1], "false negatives"
    worst, best = [block[2] for block in blocks if block[0] == "table"]
    assert [row[2] for row in worst] == ["0.900", "0.300", "0.600"]
    assert [row[2] for row in best] == ["0.100", "0.800"]


def test_tools_analyze__D17_an_error_is_truth_minus_prediction():
    # Errors 1, 1, 1, -1: mean ½, sd √¾.
    # Skew (3 (½)³ - (3/2)³) / 4 / ¾^1.5 = -1.1547.
    dev = dev_of("sts", [2, 3, 4, 1], [1, 2, 3, 2])
    assert_close(analyze.moments(dev.error), [.5, .75 ** .5, -1.154701])
    assert_close(analyze.moments(np.ones(3)), [1, 0, 0])
    words = analyze.similarity(dev)[1][1]
    assert "underpredicts" in words and "mean +0.500" in words and "3 (75.0%)" in words


def test_tools_analyze__the_reports_examples_are_found_by_their_text():
    lambs = (" Two lambs stand on a grassy hill.", "Two dirt bikers riding over dirt hill.")
    film = ("A warm , funny , engaging film .",)
    found = {"sst": dev_of("sst", [4], [3], texts=[film]),
             "para": dev_of("para", [0], [0]),
             "sts": dev_of("sts", [.2], [1.5], texts=[lambs])}
    rows = analyze.quoted(found)[2][2]
    assert len(rows) == 9
    here = [row[:5] for row in rows if row[2] != "not here"]
    assert here == [["sst", "4", "3", "4", "4"], ["sts", "0.2", "1.5", "0.2", "0.1995"]]


def test_tools_analyze__the_microscope_averages_what_was_logged():
    with open(os.path.join(analyzed(), "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if "cos_sst_para" in line]
    tables = [block for block in analyze.microscope(lines) if block[0] == "table"]
    header, rows = tables[0][1:]
    assert [row[0] for row in rows] == ["1", "2"], "a row an epoch"
    for row, epoch in zip(rows, (1, 2)):
        want = np.mean([line["treated_cos_sst_sts"] for line in steps
                        if line["epoch"] == epoch])
        assert_close(float(row[header.index("after: sst sts")]), want, 6e-4)
    fired = {tuple(row[:2]): float(row[2]) for row in tables[1][2]}
    assert_close(fired["para", "sts"], np.mean([line["acted_para_sts"] for line in steps]),
                 .006)
    assert_close(float(tables[1][2][0][3]), steps[-1]["target_sst_para"], 6e-4)
    layers = {row[0]: row for row in tables[2][2]}
    want = np.mean([line["layers"]["layer 2"]["cos_sst_para"] for line in steps])
    assert_close(float(layers["layer 2"][1]), want, 6e-4)
    assert "pcgrad" in analyze.microscope([{"step": 1, "loss_sst": 1}])[1][1]


def test_tools_analyze__words_come_without_matplotlib():
    out = tempfile.mkdtemp()
    with unittest.mock.patch.dict(sys.modules, {"matplotlib": None,
                                                "matplotlib.figure": None}):
        status, output, errors = run_tool(analyze, analyzed(), "--out", out)
    assert status == 0, errors
    assert "pip install matplotlib" in output and "analysis.html" in output
    for heading in ("SST", "Paraphrase", "STS", "The report's examples",
                    "The task gradients"):
        assert f"\n{heading}\n---" in output
    assert os.listdir(out) == ["analysis.html"]


def test_tools_analyze__one_page_that_holds_its_figures():
    skip_without("matplotlib")
    out = tempfile.mkdtemp()
    status, output, errors = run_tool(analyze, analyzed(), "--out", out)
    assert status == 0 and "matplotlib" not in output, errors
    figures = {"figure1.png", "figure2.png", "figure3.png", "gradients.png", "layers.png"}
    assert set(os.listdir(out)) == figures | {"analysis.html"}
    with open(os.path.join(out, "analysis.html"), encoding="utf-8") as file:
        page = file.read()
    assert page.count('src="data:image/png;base64,') == page.count('src="') == 5
    assert "://" not in page and "<link" not in page


def test_tools_analyze__needs_a_finished_run_and_its_data():
    unfinished = tempfile.mkdtemp()
    status, _, errors = run_tool(analyze, unfinished)
    assert_one_line(status, errors, unfinished, "train.py")
    shutil.copy(os.path.join(analyzed(), "args.json"), unfinished)
    status, _, errors = run_tool(analyze, unfinished)
    assert_one_line(status, errors, "--resume", unfinished)
    other = tempfile.mkdtemp()
    for name in os.listdir(tiny_world()[0]):
        if name.endswith(".csv"):
            with open(os.path.join(tiny_world()[0], name)) as file:
                text = file.read().replace("\tsd0", "\tsd1")
            with open(os.path.join(other, name), "w") as file:
                file.write(text)
    status, _, errors = run_tool(analyze, analyzed(), "--data", other)
    assert_one_line(status, errors, "sst-dev-output.csv", "--data")
