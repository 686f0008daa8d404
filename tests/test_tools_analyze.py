"""tools/analyze.py."""

import json
import math
import os
import shutil
import sys
import tempfile
import unittest.mock

import numpy as np

import heads
from tests.checks import (
    assert_close,
    assert_equal,
    assert_one_line,
    assert_raises,
    skip_without,
)
from tests.world import (
    analyzed,
    from_scratch,
    log_of,
    run_pretrain,
    run_tool,
    tiny_world,
    write_file,
)
from tools import analyze, gradients, page


def dev_of(name, truth, predicted, probabilities=None, texts=None):
    """The dev set of one task as analyze.py sees it."""
    task = {task.name: task for task in heads.tasks()}[name]
    texts = texts or [tuple(f"text {i}" for _ in task.texts) for i in range(len(truth))]
    return analyze.Dev(task, texts, np.array(truth, float), np.array(predicted, float),
                       probabilities)


def tables_of(parts):
    return [part for part in parts if isinstance(part, page.Table)]


def test_tools_analyze__sentiment_by_hand():
    # Errors 0, 2, -1, 0, 3: 2 right, 1 off by 1, 1 by 2, 1 by 3; two too low, one too high.
    p = np.full((5, 5), .1)
    p[:, 0] = [.5, .6, .5, .9, .6]
    parts = analyze.classes(dev_of("sst", [4, 3, 0, 2, 3], [4, 1, 1, 2, 0], p))
    words = parts[1].text
    for part in ("2 (40.0%) are right", "1 (20.0%) off by 1", "1 (20.0%) by 2",
                 "1 (20.0%) by 3", "0 (0.0%) by 4", "2 (40.0%) are rated too low",
                 "1 (20.0%) too high"):
        assert part in words, f"got {words!r}, expected {part!r}"
    matrix = [list(map(int, row[1:])) for row in parts[2].rows]
    assert matrix[3] == [1, 1, 0, 0, 0] and sum(map(sum, matrix)) == 5, "rows are the truth"
    worst, best = [table.rows for table in tables_of(parts)][1:]
    assert [row[-1] for row in worst[:2]] == ["text 4", "text 1"]
    assert [row[-1] for row in best[:2]] == ["text 3", "text 0"], "the surer one first"


def test_tools_analyze__paraphrase_by_hand():
    parts = analyze.binary(dev_of("para", [0, 0, 1, 1, 0], [1, 0, 0, 1, 1],
                                   np.array([.9, .1, .3, .8, .6])))
    assert "2 (40.0%) are right" in parts[1].text
    assert "2 (66.7%) of the 3 that are 0 no paraphrase" in parts[1].text, "false positives"
    assert "1 (50.0%) of the 2 that are 1 paraphrase" in parts[1].text, "false negatives"
    worst, best = [table.rows for table in tables_of(parts)]
    assert [row[2] for row in worst] == ["0.900", "0.300", "0.600"]
    assert [row[2] for row in best] == ["0.100", "0.800"]


def test_tools_analyze__D17_an_error_is_truth_minus_prediction():
    # Errors 1, 1, 1, -1: mean ½, sd √¾.
    # Skew (3 (½)³ - (3/2)³) / 4 / ¾^1.5 = -1.1547.
    dev = dev_of("sts", [2, 3, 4, 1], [1, 2, 3, 2])
    assert_close(analyze.moments(dev.error), [.5, .75 ** .5, -1.154701])
    assert_close(analyze.moments(np.ones(3)), [1, 0, 0])
    words = analyze.graded(dev)[1].text
    assert "underpredicts" in words and "mean +0.500" in words and "3 (75.0%)" in words


def test_tools_analyze__the_reports_examples_are_found_by_their_text():
    lambs = (" Two lambs stand on a grassy hill.", "Two dirt bikers riding over dirt hill.")
    film = ("A warm , funny , engaging film .",)
    found = {"sst": dev_of("sst", [4], [3], texts=[film]),
             "para": dev_of("para", [0], [0]),
             "sts": dev_of("sts", [.2], [1.5], texts=[lambs])}
    here = [row[:5] for row in analyze.quoted(found)[2].rows]
    assert here == [["sst", "4", "3", "4", "4"], ["sts", "0.2", "1.5", "0.2", "0.1995"]]
    assert_equal(analyze.quoted({"para": found["para"]}), [], "no section without one")


def test_tools_analyze__the_gradients_part_averages_what_was_logged():
    path = os.path.join(analyzed(), "metrics.jsonl")
    logged = [line for line in log_of(analyzed()) if "cos_sst_para" in line]
    by_epoch, changes, layers = tables_of(gradients.gradients(
        gradients.read_steps(path, ["sst", "para", "sts"])))
    assert_equal([row[0] for row in by_epoch.rows], ["1", "2"], "a row an epoch")
    for row, epoch in zip(by_epoch.rows, (1, 2)):
        want = np.mean([line["treated_cos_sst_sts"] for line in logged
                        if line["epoch"] == epoch])
        assert_close(float(row[by_epoch.header.index("after: sst sts")]), want, 6e-4)
    fired = {tuple(row[:2]): float(row[2]) for row in changes.rows}
    assert_close(fired["para", "sts"], np.mean([line["acted_para_sts"] for line in logged]),
                 .006)
    assert_close(float(changes.rows[0][3]), logged[-1]["target_sst_para"], 6e-4)
    by_layer = {row[0]: row for row in layers.rows}
    want = np.mean([line["layers"]["layer 2"]["cos_sst_para"] for line in logged])
    assert_close(float(by_layer["layer 2"][1]), want, 6e-4)
    untreated = os.path.join(write_file('{"step": 1, "loss_sst": 1}\n', "m"), "m")
    parts = gradients.gradients(gradients.read_steps(untreated, ["sst", "para", "sts"]))
    assert "pcgrad" in parts[1].text


def test_tools_analyze__a_method_of_weights_shows_what_it_has():
    # No "acted" and no cosines after treatment: it weighs gradients and changes none.
    line = {"step": 1, "epoch": 1, "cos_a_b": -.5, **{
        f"{kind}_{task}": 2.0 for kind in ("norm", "coefficient") for task in "ab"}}
    path = os.path.join(write_file(json.dumps(line) + "\n", "m.jsonl"), "m.jsonl")
    steps = gradients.read_steps(path, ["a", "b"])
    parts = gradients.gradients(steps)
    assert "only weighs them" in parts[1].text and "a and b 1 (100.0%)" in parts[1].text
    table, = tables_of(parts)
    assert_equal((table.header, table.rows), (
        ["epoch", "cos a b", "coeff. a", "coeff. b"], [["1", "-0.500", "2.00", "2.00"]]))


def step_line(cosine, layer_cosine, tasks=("a_b", "c")):
    """A line of metrics.jsonl with two tasks."""
    a, b = tasks
    line = {"step": 1, "epoch": 1, "acted": .5, f"cos_{a}_{b}": cosine,
            f"treated_cos_{a}_{b}": .5, f"acted_{a}_{b}": 1.0, f"acted_{b}_{a}": 0.0,
            "layers": {"layer 1": {f"cos_{a}_{b}": layer_cosine}}}
    for name in tasks:
        line.update({f"norm_{name}": 1.0, f"coefficient_{name}": 2.0})
    return line


def test_tools_analyze__a_conflict_is_a_negative_cosine_and_names_may_hold_underscores():
    # Cosines -1, .5, .25, -.25 and .5: two of five. In the layer: one of five.
    lines = [step_line(cosine, layer) for cosine, layer in
             ((-1, .5), (.5, -1), (.25, .5), (-.25, .5), (.5, .5))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path = os.path.join(write_file(text, "metrics.jsonl"), "metrics.jsonl")
    parts = gradients.gradients(gradients.read_steps(path, ["a_b", "c"]))
    assert "a_b and c 2 (40.0%)" in parts[1].text
    by_epoch, changes, layers = tables_of(parts)
    assert_equal(by_epoch.rows, [["1", "+0.000", "+0.500", "2.00", "2.00", "0.50"]])
    assert_equal(changes.rows, [["a_b", "c", "1.00"], ["c", "a_b", "0.00"]])
    assert_equal(layers.rows, [["layer 1", "+0.200", "0.20"]])


def test_tools_analyze__a_damaged_log_is_named_by_line():
    good = step_line(.5, .5)
    missing = {name: value for name, value in good.items() if name != "norm_c"}
    no_layers = {name: value for name, value in good.items() if name != "layers"}
    for bad, words in (
            ("{", ["JSON"]), ("[1]", ["object"]), (json.dumps(missing), ["norm_c"]),
            (json.dumps({**good, "acted": "yes"}), ["acted", "a number", "yes"]),
            (json.dumps({**good, "epoch": None}), ["epoch", "null"]),
            (json.dumps(no_layers), ["layers"]),
            (json.dumps({**good, "layers": {"layer 1": 3}}), ["layer 1", "3"])):
        folder = write_file(f"{json.dumps(good)}\n{bad}\n", "m.jsonl")
        path = os.path.join(folder, "m.jsonl")
        with assert_raises("m.jsonl, line 2: needed", *words):
            gradients.read_steps(path, ["a_b", "c"])


def test_tools_analyze__predictions_that_a_task_does_not_have_are_named():
    run = shutil.copytree(analyzed(), os.path.join(tempfile.mkdtemp(), "run"))
    for name, wrong in (("sst", "7"), ("sst", "-9223372036854775808"), ("para", "0.5")):
        path = os.path.join(run, "predictions", f"{name}-dev-output.csv")
        with open(path) as file:
            right = file.read()
        lines = right.splitlines()
        example = lines[2].split(" , ")[0]
        lines[2] = f"{example} , {wrong} "
        with open(path, "w") as file:
            file.write("\n".join(lines) + "\n")
        status, _, errors = run_tool(analyze, run)
        assert_one_line(status, errors, f"{name}-dev-output.csv", "a class from 0", example)
        with open(path, "w") as file:
            file.write(right)
    with assert_raises("x.csv: needed a finite number for a, got nan"):
        analyze.check_prediction("x.csv", heads.tasks()[2], "a", math.nan)


def test_tools_analyze__a_run_of_pre_training_is_refused():
    status, out, errors = run_pretrain(*from_scratch(), steps=1)
    assert status == 0, errors
    status, _, errors = run_tool(analyze, out)
    assert_one_line(status, errors, "pre-training", "train.py")


def test_tools_analyze__texts_cannot_command_the_terminal_or_the_page():
    sst = dev_of("sst", [4], [3], np.full((1, 5), .2), [("a \x1b[2J <b>\u202e film",)])
    parts = analyze.classes(sst)
    text = "\n".join(part.as_text() for part in parts)
    assert "\\x1b[2J <b>\\u202e film" in text and "\x1b" not in text
    assert "&lt;b&gt;" in "".join(part.as_html({}) for part in parts)


def test_tools_analyze__words_come_without_matplotlib():
    out = tempfile.mkdtemp()
    with unittest.mock.patch.dict(sys.modules, {"matplotlib": None,
                                                "matplotlib.figure": None}):
        status, output, errors = run_tool(analyze, analyzed(), "--out", out)
    assert status == 0, errors
    assert "pip install matplotlib" in output and "analysis.html" in output
    for heading in ("SST", "Para", "STS", "The task gradients"):
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
        text = file.read()
    assert text.count('src="data:image/png;base64,') == text.count('src="') == 5
    assert "://" not in text and "<link" not in text


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
