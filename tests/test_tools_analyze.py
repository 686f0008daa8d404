"""tools/analyze.py."""

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import tempfile
import time
import unittest.mock
import warnings
import xml.etree.ElementTree

import numpy as np

import heads
from plumbing import folder as run_folder
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
    run_train,
    tiny_world,
)
from tools import analyze, chart, curves, page

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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


def test_tools_analyze__of_one_example_it_speaks_in_the_singular():
    words = analyze.binary(dev_of("para", [1], [0]))[1].text
    assert words.startswith("Of 1 example 0 (0.0%) are right"), words
    for number, rows in ((1, [1]), (3, [2, 1]), (20, [5, 5])):
        parts = analyze.graded(dev_of("sts", range(number), [.5] * number))
        assert_equal([len(table.rows) for table in tables_of(parts)], rows,
                     "the same example among the worst and the best")


def test_tools_analyze__the_reports_examples_are_found_by_their_text():
    lambs = (" Two lambs stand on a grassy hill.", "Two dirt bikers riding over dirt hill.")
    film = ("A warm , funny , engaging film .",)
    found = {"sst": dev_of("sst", [4], [3], texts=[film]),
             "para": dev_of("para", [0], [0]),
             "sts": dev_of("sts", [.2], [1.5], texts=[lambs])}
    here = [row[:5] for row in analyze.quoted(found)[2].rows]
    assert here == [["sst", "4", "3", "4", "4"], ["sts", "0.2", "1.5", "0.2", "0.1995"]]
    assert_equal(analyze.quoted({"para": found["para"]}), [], "no section without one")


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


def page_in(folder):
    with open(os.path.join(folder, "analysis.html"), encoding="utf-8") as file:
        return file.read()


def test_tools_analyze__texts_cannot_command_the_terminal_or_the_page():
    sst = dev_of("sst", [4], [3], np.full((1, 5), .2), [("a \x1b[2J <b>\u202e film",)])
    parts = analyze.classes(sst)
    text = "\n".join(part.as_text() for part in parts)
    assert "\\x1b[2J <b>\\u202e film" in text and "\x1b" not in text
    assert "&lt;b&gt;" in "".join(part.as_html() for part in parts)
    # Names in a log and flags reach titles, tips and legends too.
    evil = "</title></svg><script>\x1b"
    panel = chart.Panel(evil, evil, (0, 1), (0, 1), y_label=evil, x_ticks={0: evil})
    panel.cell(0, 0, "none", evil)
    panel.hits([0, 1], [evil])
    figure = page.Figure("f", evil, [panel], [(0, evil)])
    html = page.render(evil, [figure, page.Heading(evil), page.Legend([(1, evil)])])
    xml.etree.ElementTree.fromstring(chart.sheet([panel], evil, [(0, evil)]))
    assert "<script" not in html and html.count("</html>") == 1


def test_tools_analyze__one_page_that_loads_nothing():
    out = tempfile.mkdtemp()
    status, output, errors = run_tool(analyze, analyzed(), "--out", out)
    assert status == 0, errors
    names = {"loss", "dev", "rate", "figure1", "figure2", "figure3", "conflicts", "cosines",
             "weights"}
    assert_equal(set(os.listdir(out)), {f"{name}.svg" for name in names}
                 | {"analysis.html"})
    for name in names:          # each is a whole file by itself
        xml.etree.ElementTree.parse(os.path.join(out, f"{name}.svg"))
        assert f"{name}.svg]" in output
    text = page_in(out)
    assert "default-src 'none'" in text and "<script" not in text
    for word in ("://", "<link", "<img", "src=", "href=", "url(", "@import"):
        assert word not in text, f"{word} could load something"
    for heading in ("Training", "SST", "Para", "STS", "Conflicts between tasks"):
        assert f"<h2>{heading}</h2>" in text and f"\n{heading}\n---" in output


def test_tools_analyze__the_title_says_flags_and_data_and_not_the_folder():
    run = curves.read_run(analyzed())
    title = curves.title([run])
    assert title.startswith("train.py --option gvac --con") and "--log-layers" in title
    data_folder = os.path.basename(tiny_world()[0])
    assert title.endswith(f", on {data_folder}") and "--out" not in title
    other = dataclasses.replace(run, values={**run.values, "option": "rr", "lr": 2e-5,
                                             "smart": True})
    assert_equal(curves.labels([run, other]), [
        "A: --option gvac, no --smart, --lr 0.01", "B: --option rr, --smart, --lr 2e-05"])
    assert curves.title([run, other]).startswith("2 runs of train.py compared")
    for path, name in (("a/sample", "the sample"), ("a/bert/", "bert"),
                       ("site-packages/gt_minilm/model", "gt_minilm")):    # a package's
        assert_equal(curves.place_of(path), name)


def unfinished(lines=None, half=""):
    """A copy of analyzed() as it is while it goes on: its log, and no result.

    lines: how many of metrics.jsonl; half: the line that is just being written.
    """
    run = os.path.join(tempfile.mkdtemp(), "run")
    os.mkdir(run)
    shutil.copy(os.path.join(analyzed(), "args.json"), run)
    with open(os.path.join(run, "metrics.jsonl"), "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in log_of(analyzed())[:lines])
        file.write(half)
    return run


def test_tools_analyze__a_run_that_goes_on_can_be_looked_at():
    run = unfinished(7, half='{"step": 8, "epo')
    with open(os.path.join(run, "metrics.jsonl"), "rb") as file:
        run_folder.lock(file)               # as the run does
        status, output, errors = run_tool(analyze, run)
    assert status == 0, errors
    assert "Running after update 7 of at most 20, in epoch 1 of at most 2" in output
    assert os.listdir(os.path.join(run, "analysis")) and "\nSST\n" not in output
    status, output, errors = run_tool(analyze, run)
    assert status == 0 and "Stopped after update 7" in output, errors
    assert f"--resume {run}" in " ".join(output.split())
    # Before the first line there are no curves yet, and no mistake either.
    status, output, errors = run_tool(analyze, unfinished(0))
    assert status == 0 and "Stopped before its first update" in output, errors
    # In the middle of the log, or in a finished run, a broken line is a mistake.
    status, _, errors = run_tool(analyze, unfinished(7, half='{"step": 8, "epo\n'))
    assert_one_line(status, errors, "metrics.jsonl, line 8")


def test_tools_analyze__watching_renews_the_page_until_the_end():
    run, seen = unfinished(5), []

    def later(seconds):         # instead of waiting: the run goes on, then ends
        seen.append(page_in(os.path.join(run, "analysis")))
        shutil.copy(os.path.join(analyzed(), "metrics.jsonl"), run)
        if len(seen) == 2:
            for name in ("result.json", "best", "predictions"):
                source = os.path.join(analyzed(), name)
                copy = shutil.copytree if os.path.isdir(source) else shutil.copy
                copy(source, os.path.join(run, name))
    with unittest.mock.patch.object(time, "sleep", later):
        status, output, errors = run_tool(analyze, run, "--watch")
    assert status == 0 and len(seen) == 2, errors
    assert output.count("analysis.html") == 3 and output.endswith("finished\n")
    updates = [re.search(r"after update (\d+)", text)[1] for text in seen]
    assert_equal(updates, ["5", "20"])
    assert all('http-equiv="refresh"' in text for text in seen)
    assert "refresh" not in page_in(os.path.join(run, "analysis")), "no end of renewing"
    killed = unfinished(5)              # nobody writes there, and has not for a minute
    os.utime(os.path.join(killed, "metrics.jsonl"), (0, 0))
    status, output, _ = run_tool(analyze, killed, "--watch")
    assert status == 0 and output.endswith("  stopped\n"), output


def test_tools_analyze__curves_are_means_of_what_was_logged():
    # Steps 1 and 2, 3 and 4; the step that was skipped has no loss.
    edges = np.array([.5, 2.5, 4.5])
    steps, values = np.array([1., 2, 3, 4]), np.array([1, 3, math.nan, 5])
    assert_equal(curves.binned(steps, values, edges).tolist(), [2, 5])
    low, high = curves.binned(steps, values, edges, mean=False)
    assert_equal([low.tolist(), high.tolist()], [[1, 5], [3, 5]])
    run = curves.read_run(analyzed())
    tips = re.findall(r"<title>(step.+?)</title>", curves.curve(
        [run], "loss_sst", "loss", curves.edges_of([run])).svg())
    logged = [line["loss_sst"] for line in log_of(analyzed()) if "loss_sst" in line]
    assert_equal(tips, [f"step {k}: {chart.short(value)}"
                        for k, value in enumerate(logged, 1)])
    table = curves.by_epoch(run, curves.names_of([run]))[0]
    assert_close(float(table.rows[0][1]), np.mean(logged[:10]), 6e-4)
    assert_equal([row[0] for row in table.rows], ["1", "2"])
    _, dev = [line["dev"] for line in log_of(analyzed()) if "dev" in line]
    assert_close(float(table.rows[1][-1]), dev["overall"], 6e-4)
    assert curves.curve([run], "smooth_sst", "R_s", edges) is None, "no empty panels"


def test_tools_analyze__several_runs_share_one_page_and_one_legend():
    out, other = tempfile.mkdtemp(), unfinished(9)
    status, output, errors = run_tool(analyze, analyzed(), other, "--out", out)
    assert status == 0, errors
    text = page_in(out)
    assert_equal(text.count('class="legend sticky"'), 1)
    loss = re.search(r'aria-label="loss, SST".+?</svg>', text, re.DOTALL)[0]
    assert "line s0" in loss and "line s1" in loss and "A  " in loss and "B  " in loss
    rows = [line.split() for line in output.splitlines() if re.match("  +[AB] ", line)]
    best = curves.read_run(analyzed()).result["dev"]
    assert_close(list(map(float, rows[0][1:5])), list(best.values()), 6e-4)
    assert_equal(rows[1][-1], "9")
    assert f"B, in {other}: Stopped after" in " ".join(output.split())
    assert "\nSST\n" not in output, "errors are shown for one run"


def test_tools_analyze__evaluations_within_an_epoch_are_drawn_by_step():
    run = curves.read_run(analyzed())
    assert ">epoch<" in curves.dev_curve([run], "sst", "dev").svg()
    assert "dev by epoch;" in captions_of([run])["dev"]
    dev = {"sst": .25, "para": .5, "sts": .5, "overall": .5}
    run.lines.insert(3, (99, {"step": 3, "epoch": 1, "dev": dev}))
    panel = curves.dev_curve([run], "sst", "dev").svg()
    assert ">step<" in panel and "<title>step 3: 0.25</title>" in panel
    assert "dev by step;" in captions_of([run])["dev"]
    assert "at its last evaluation" in curves.training([run])[1].text
    # 3, 10 and 20: each place of the panel says the evaluation that is nearest.
    widths = list(map(float, re.findall(r'class="hit".+?width="(.+?)"', panel)))
    room = chart.WIDTH - chart.LEFT - chart.RIGHT
    assert_close(sum(widths), room, .2, "places of the panel say nothing")
    assert_close(widths, [room * n / 25.5 for n in (7.75, 8.5, 9.25)], .1)


def captions_of(runs):
    return {part.name: part.caption for part in curves.training(runs)
            if isinstance(part, page.Figure)}


def with_log(losses, **more):
    """analyzed() with another log: sst's loss at steps 1, 2, …"""
    return dataclasses.replace(curves.read_run(analyzed()), lines=[
        (k, {"step": k, "epoch": 1, "lr": .1, "loss_sst": loss})
        for k, loss in enumerate(losses, 1)], **more)


def loss_of(*runs):
    edges = curves.edges_of(runs)
    return curves.curve(runs, "loss_sst", "loss", edges, raw=True).svg()


def test_tools_analyze__a_mean_stands_at_the_middle_of_its_steps():
    # 186 steps: bins of 4, the first one's middle is (1 + 2 + 3 + 4) / 4, the last has 2.
    edges = curves.edges_of([with_log([1.0] * 186)])
    assert_equal(curves.middles(edges)[[0, 1, -1]].tolist(), [2.5, 6.5, 185.5])
    panel = loss_of(with_log([1.0] * 186))
    assert_equal(re.findall("steps [^:]+", panel)[-1], "steps 185 to 186", "no such steps")
    assert_equal((panel.count('"line s0"'), panel.count('"raw s0"')), (1, 1))


def test_tools_analyze__a_short_runs_curve_is_drawn_once():
    panel = loss_of(with_log([3.0, 2, 4, 3]))
    xs = [point.split(",")[0] for line in re.findall('points="(.+?)"', panel)
          for point in line.split()]
    room = chart.WIDTH - chart.LEFT - chart.RIGHT       # steps 1 to 4 between ½ and 4½
    assert_close(list(map(float, xs)), [chart.LEFT + room * (k + .5) / 4
                                        for k in range(4)], .06, "drawn once, at its steps")


def test_tools_analyze__the_range_of_steps_belongs_to_the_means_they_make():
    runs = [with_log([1.0, 3.0] * (n // 2)) for n in (200, 90)]
    bands = re.findall(r'<polygon class="spread thin s\d" points="(.+?)"', loss_of(*runs))
    for band, bins in zip(bands, (50, 23)):     # bins of 4 steps, each from 1 to 3
        points = band.split()
        assert_equal((len(points), len({point.split(",")[1] for point in points})),
                     (2 * bins, 2), "a band with spikes")
    assert "the range of these steps" in captions_of(runs)["loss"]
    few = with_log([1.0, 3.0] * 10)             # beside a long run: means too, no dots
    assert "<circle" not in loss_of(runs[0], few)
    assert "<polygon" not in loss_of(few, few), "one step has no range"


def test_tools_analyze__the_best_model_is_that_of_the_trained_tasks():
    # As in train.py: para and sts have random heads, and their scores are noise.
    run = curves.read_run(analyzed())
    run.values["tasks"], run.result = ["sst"], None
    run.lines = [(k, {"step": 10 * k, "epoch": k, "dev": {
        "sst": sst, "para": para, "sts": 0.0, "overall": overall}})
        for k, (sst, para, overall) in enumerate([(.6, .1, .4), (.5, .9, .63)], 1)]
    assert_equal(run.best(), (1, {"sst": .6, "overall": .6}),
                 "chosen by the scores of untrained heads")
    assert "(para, sts); their heads are random" in curves.left_out([run])
    assert_equal(curves.left_out([curves.read_run(analyzed())]), "")


def test_tools_analyze__tasks_that_were_not_trained_get_no_section():
    status, out, errors = run_train("--tasks", "para")
    assert status == 0, errors
    status, output, errors = run_tool(analyze, out)
    assert (status, errors) == (0, ""), errors
    assert "\nPara\n" in output, output
    for name in ("SST", "STS"):
        assert f"\n{name}\n" not in output, f"{name} was not trained"
    assert "not trained on (sst, sts)" in " ".join(output.split())
    assert not re.search(r"(sst|sts) -?\d", output), "scores of random heads"
    status, output, errors = run_tool(analyze, out, analyzed(), "--out", out)
    row, = re.findall("\n +A (.+)", output)
    assert_equal(len(row.split()), 5, "para, overall, epoch, updates, time")


def test_tools_analyze__it_says_what_may_end_a_run_and_what_to_do_next():
    run = with_log([1.0] * 3, result=None, path="my runs/a")
    assert "after update 3 of at most 20, in epoch 1 of at most 2;" in curves.state(run)
    run.values["max_steps"] = None
    assert "after update 3, in epoch 1 of 2;" in curves.state(run)
    assert curves.advice(run).endswith('train.py --resume "my runs/a"'), curves.advice(run)
    run.running = True
    assert_equal(curves.advice(run), "")
    run.lines += [(k, {"step": k, "epoch": 1, "lr": .1, "loss_sst": None, "skipped": 1})
                  for k in (4, 5)]
    assert curves.advice(run).endswith("not finite: 2 updates."), curves.advice(run)
    run.running = False
    assert "smaller --lr" in curves.advice(run) and "--resume" not in curves.advice(run), (
        f"a resume diverges again: {curves.advice(run)}")


def test_tools_analyze__lines_can_be_told_apart_in_grey_and_by_the_color_blind():
    def linear(color):
        part = np.array([int(color[i:i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(part <= .04045, part / 12.92, ((part + .055) / 1.055) ** 2.4)

    def lab(rgb):
        white = np.array([.9505, 1, 1.089])
        x = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722],
                      [.0193, .1192, .9505]]) @ rgb / white
        f = np.where(x > .008856, np.cbrt(x), 7.787 * x + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
    # Deuteranopia, protanopia [Machado et al. 2009].
    blind = [np.eye(3),
             np.array([[.367322, .860646, -.227968], [.280085, .672501, .047413],
                       [-.011820, .042940, .968881]]),
             np.array([[.152286, 1.052583, -.204868], [.114503, .786281, .099216],
                       [-.003882, -.048116, 1.051998]])]
    for theme in (0, 1):
        def light(name, theme=theme):
            return linear(chart.COLORS[name][theme]) @ [.2126, .7152, .0722] + .05
        for name, least in (("ink", 7), ("soft", 4.5), *((f"s{k}", 3) for k in range(6))):
            contrast = light(name) / light("paper")
            assert max(contrast, 1 / contrast) >= least, (name, theme)
        for eye in blind:
            seen = [lab(np.clip(eye @ linear(chart.COLORS[f"s{k}"][theme]), 0, 1))
                    for k in range(6)]
            for k, m in itertools.combinations(range(6), 2):
                assert np.linalg.norm(seen[k] - seen[m]) > (18 if m < 3 else 12), (k, m)
    # Without any color there are the dashes, and in cells the sign.
    dashes = [chart.DASHES[k % len(chart.DASHES)] for k in range(5)]
    assert_equal(len(set(dashes)), 5)
    looks = {(k % chart.LINES, k % len(chart.DASHES)) for k in range(30)}
    assert_equal(len(looks), 30, "each of 30 lines has a look of its own")
    assert_equal([chart.sign(look)[:1] for look in ("minus", "plus weak", "none")],
                 [("−",), ("+",), ()])


def test_tools_analyze__axes_have_round_numbers():
    assert_equal(chart.ticks(0, 744), [0, 200, 400, 600])
    assert_equal(chart.ticks(-.03, .02), [-.02, 0, .02])
    assert_equal(chart.log_ticks(.0008, 2), [.001, .01, .1, 1])
    assert_equal(chart.log_ticks(.2, 4), [.3, 1, 3])
    assert_equal(chart.log_ticks(2, 6), [2, 5])
    assert_equal([chart.number(x) for x in (.25, 12000, 2e-5)], ["0.25", "12000", "2e-5"])
    panel = chart.Panel("", "", (0, 10), (1, 100), log=True)
    # 1 and 100 are the ends of the axis, so 10 is in the middle.
    assert_close(panel.up(10), (panel.up(1) + panel.up(100)) / 2, 1e-9)


def test_tools_analyze__needs_a_run_and_its_data():
    empty = tempfile.mkdtemp()
    status, _, errors = run_tool(analyze, empty)
    assert_one_line(status, errors, empty, "train.py")
    shutil.copy(os.path.join(analyzed(), "args.json"), empty)
    status, _, errors = run_tool(analyze, empty)
    assert_one_line(status, errors, os.path.join(empty, "metrics.jsonl"))
    other = tempfile.mkdtemp()
    for name in os.listdir(tiny_world()[0]):
        if name.endswith(".csv"):
            with open(os.path.join(tiny_world()[0], name)) as file:
                text = file.read().replace("\tsd0", "\tsd1")
            with open(os.path.join(other, name), "w") as file:
                file.write(text)
    status, _, errors = run_tool(analyze, analyzed(), "--data", other)
    assert_one_line(status, errors, "sst-dev-output.csv", "--data")
    labels = shutil.copytree(tiny_world()[0], os.path.join(tempfile.mkdtemp(), "data"))
    with open(os.path.join(labels, "ids-sst-dev.csv"), "a") as file:
        file.write("\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_tool(analyze, analyzed(), "--data", labels, "--out", tempfile.mkdtemp())
    assert "ids-sst-dev.csv has changed" in str(caught[0].message), caught
    with open(os.path.join(empty, "loss.svg"), "w") as file:
        file.write("mine")
    status, _, errors = run_tool(analyze, analyzed(), "--out", empty)
    assert_one_line(status, errors, "loss.svg", "--out")


def test_tools_analyze__the_pages_snippet_reads_a_log_with_pandas():
    skip_without("pandas")
    with open(os.path.join(ROOT, "docs", "analyze.md"), encoding="utf-8") as file:
        code = re.search(r"```python\n(.*?)smooth\.plot", file.read(), re.DOTALL)[1]
    found = {}
    exec(code.replace("runs/NAME", analyzed()), found)
    lines = log_of(analyzed())
    assert_close(found["conflict"]["cos_sst_para"],
                 np.mean([line["cos_sst_para"] < 0 for line in lines if "lr" in line]),
                 1e-9)
    assert_close(found["smooth"]["loss_sts"].iloc[-1],
                 np.mean([line["loss_sts"] for line in lines if "lr" in line]), 1e-6)
    assert_close(list(found["dev"]["dev.overall"]),
                 [line["dev"]["overall"] for line in lines if "dev" in line], 1e-9)
    assert_equal(list(found["dev"]["step"]), [10, 20])
    exec(code.replace("runs/NAME", unfinished(5)), found)     # before the first evaluation
    assert_equal((len(found["steps"]), len(found["dev"])), (5, 0))
