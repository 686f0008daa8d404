"""tools/table.py."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import tempfile
import unittest.mock

import numpy as np

import heads
import train
from plumbing import sources
from tests import ROOT
from tests.checks import assert_close, assert_equal, assert_one_line, assert_raises
from tests.world import run_train, signalled_at, tiny_world, write_file
from tools import questions, results, table


def run_table(*flags, status=0):
    """`python tools/table.py …` on the tiny world.   -> (output, runs that it started)

    The runs are train.main() in this process: ten new ones would take half a minute.
    """
    folder, weights = tiny_world()
    started = []

    class Child:
        def __init__(self, words, **_):
            started.append(words[2:])
            said = io.StringIO()
            with (contextlib.redirect_stdout(said),
                  contextlib.redirect_stderr(io.StringIO())):
                self.status = train.main(words[2:])
            self.stdout = io.StringIO(said.getvalue())

        def wait(self, timeout):
            return self.status
    output = io.StringIO()
    nothing = dict.fromkeys(("sst", "para", "sts", "overall"), 0.0)
    with (unittest.mock.patch.object(table.subprocess, "Popen", Child),
          unittest.mock.patch.object(table.baseline, "ngram_scores", lambda *_: nothing),
          contextlib.redirect_stdout(output), contextlib.redirect_stderr(output)):
        assert table.main(["--data", folder, "--weights", weights, "--jobs", "1",
                           *map(str, flags), "--",
                           "--batch-size", "4", "--accumulate", "1", "--para-first", "0",
                           "--amp", "off"]) == status, output.getvalue()
    return output.getvalue(), started


def test_tools_table__every_row_of_the_reports_tables_has_its_flags():
    folder, weights = tiny_world()
    runs = table.plan(results.rows_of(2), 1, ["--data", folder, "--weights", weights],
                      (folder, weights), "runs")
    assert len(results.rows_of(2)) == 10 and len(runs) == 12, "Individual is three runs"
    parsed = {}
    for one in runs:
        values, _ = train.parse(one.flags)
        parsed.setdefault(one.row.name, []).append(values)
    single = parsed["Individual Pre-training and Finetuning"]
    assert [values.tasks for values in single] == [["sst"], ["para"], ["sts"]]
    assert [one.tasks for one in runs if one.row.name.startswith("Individual")] == [
        ["sst"], ["para"], ["sts"]], "each is scored on its own task"
    # Table 2's column "epochs"; Sequential's 10 in Table 1 is D11.
    assert [values[0].epochs for values in parsed.values()] == [
        10, 5, 5, 10, 15, 15, 15, 15, 15, 15]
    assert parsed["SST head fine tuning only"][0].tasks == ["sst"]
    assert not parsed["SST head fine tuning only"][0].freeze
    fresh = {row for row, values in parsed.items() if values[0].fresh_streams}
    assert fresh == {"Gradient Surgery + CON"}, "the row without RR"
    assert set(results.rows_of(3)) < set(results.rows_of(2)), "Table 3's runs are Table 2's"
    assert table.choose("12, 2,11-13") == [results.ROWS[1], *results.ROWS[10:13]]
    for wrong in ("23", "0", "3-2", "x"):
        with assert_raises("--rows", "1 to 22", wrong):
            table.choose(wrong)


def test_tools_table__mean_and_spread_by_hand():
    # .2, .4, .6: mean .4, sd √((.04 + 0 + .04) / 2) = .2
    assert results.spread([.2, .4, .6]) == ".400 ± .200"
    assert results.spread([-.0625]) == "-.062" and results.spread([1.0]) == "1.000"
    assert results.spread([80.5, 0.25]) == "40.375 ± 56.745", "a task with another metric"
    assert results.difference([10.2, 10.3]) == "+10.250"
    for row, seeds, mean, report in (("RR (ours)", 1, "one seed", False),
                                     ("Gradient Surgery + RR", 2, "mean ± sd", True)):
        text = results.markdown(results.Result(2, "d", "w", ["m"], [results.RowResult(
            row, ["python train.py"], {str(seed): {"sst": .5, "overall": .5, "minutes": 1.}
                                       for seed in range(seeds)})], {}))
        assert mean in text.splitlines()[0], text
        assert_equal("the report: SST" in text, report, "a column of its numbers")
        assert_equal({line.count("|") for line in text.splitlines() if line[:1] == "|"},
                     {7 if report else 6})


def test_tools_table__after_an_interruption_it_continues_and_keeps_finished_runs():
    flags = ("--rows", "3,6", "--seeds", 1, "--max-steps", 4, "--runs", tempfile.mkdtemp())
    with signalled_at(2):
        _, started = run_table(*flags, status=143)
    assert len(started) == 1
    output, started = run_table(*flags)
    assert [words[0] for words in started] == ["--resume", "--tasks", "--tasks", "--option"]
    again, started = run_table(*flags)
    assert not started and again.splitlines()[1:] == output[output.index(
        "\nTable 2"):].splitlines()[1:]
    _, started = run_table(*flags, "--rows", 6, "--max-steps", 3)
    assert len(started) == 1, "other flags, another run"


def test_tools_table__each_run_says_which_it_is_and_how_long_the_rest_takes():
    output, _ = run_table("--rows", "3,6", "--seeds", 2, "--max-steps", 2, "--runs",
                          tempfile.mkdtemp())
    found = re.findall(r"^run (\d) of 8(, about [\d:]+ left)?: (.+), seed (\d)$", output,
                        re.MULTILINE)
    assert_equal([(number, seed) for number, _, _, seed in found], [
        (str(i), str(int(i > 4))) for i in range(1, 9)])
    assert_equal([bool(left) for _, left, _, _ in found], [False] + [True] * 7)
    # Finished: 60 and 120 s of one row, 30 s of another. Left: 90 + 30 + (60+120+30) / 3.
    runs = [table.Run(results.ROWS[row], 0, [], write_file(json.dumps(
        {"dev": {}, "seconds": took}), "result.json") if took else "nowhere", [], None)
        for row, took in ((3, 60), (3, 120), (4, 30), (3, 0), (4, 0), (5, 0))]
    assert_equal(table.time_left(runs), ", about 3:10 left")
    assert_equal(table.time_left(runs[3:]), "")


def test_tools_table__what_a_run_prints_takes_the_place_of_its_progress_line():
    output, errors = io.StringIO(), io.StringIO()
    errors.isatty = lambda: True
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        table.copy_output(["a banner\n", "epoch 1: dev\n"], ["a banner"])
    assert_equal((output.getvalue(), errors.getvalue()), ("epoch 1: dev\n", "\r\x1b[J"))


def test_tools_table__its_numbers_are_those_of_the_runs():
    runs, columns = tempfile.mkdtemp(), ("sst", "para", "sts")
    run_table("--rows", "3,6", "--seeds", 2, "--max-steps", 3, "--runs", runs, "--name",
              "t")
    with open(os.path.join(runs, "t.json")) as file:
        rows = {row["row"]: row["seeds"] for row in json.load(file)["rows"]}
    single = rows["Individual Pre-training and Finetuning"]["1"]
    folders = {task: run_train("--tasks", task, "--seed", 1, "--lr", 1e-5, steps=3)[1]
               for task in columns}
    for task, out in folders.items():
        with open(os.path.join(out, "result.json")) as file:
            assert_close(single[task], json.load(file)["dev"][task], 1e-5)
    overall = (single["sst"] + single["para"] + (single["sts"] + 1) / 2) / 3
    assert_close(single["overall"], overall, 2e-5)
    with open(os.path.join(runs, "t.md")) as file:
        line = next(line for line in file if line.startswith("| Gradient Surgery + RR"))
    seeds = rows["Gradient Surgery + RR"].values()
    assert line.split(" | ")[1:5] == [results.spread([seed[key] for seed in seeds])
                                      for key in (*columns, "overall")]
    assert ".453 .748 .364 .628" in line
    with open(os.path.join(runs, "t.md")) as file:
        assert "- Gradient Surgery + RR: `python train.py --option pcgrad" in file.read()


def test_tools_table__3_scores_the_test_predictions_by_the_labels_given():
    labelled = tempfile.mkdtemp()
    with open(os.path.join(labelled, "test-labels.csv"), "w") as file:
        file.write("task\tid\tlabel\n")
        for task in heads.tasks():
            file.writelines(f"{task.name}\t {task.name[0].upper()}t{i:023x}\t{i % 2}\n"
                            for i in range(6))
    runs = tempfile.mkdtemp()
    flags = ("--table", 3, "--rows", "6", "--seeds", 1, "--max-steps", 3, "--runs", runs)
    output, _ = run_table(*flags, status=2)
    assert "test-labels.csv" in output and "--test-labels" in output
    run_table(*flags, "--test-labels", labelled, "--name", "t")
    with open(os.path.join(runs, "t.json")) as file:
        found = json.load(file)
    folder = next(name for name in os.listdir(runs) if name.startswith("pcgrad"))
    predicted = results.read_predictions(os.path.join(
        runs, folder, "predictions", "sst-test-output.csv"))
    want = np.mean([predicted[f"st{i:023x}"] == i % 2 for i in range(6)])
    assert_close(found["rows"][0]["seeds"]["0"]["sst"], want, 1e-5)
    # The same run as a question's row.
    with unittest.mock.patch.dict(questions.QUESTIONS, {
            "epochs": questions.Question("?", {"ours": "--option pcgrad"})}):
        flags = ("--question", "epochs", "--table", 3, *flags[4:])
        output, started = run_table(*flags, "--test-labels", labelled)
    assert not started and "Scores on test" in output, output
    assert f"| ours | {want:.3f} |".replace("| 0.", "| .") in output, output
    assert "question-epochs-test-" in output, output


def test_tools_table__minutes_are_those_of_all_runs_of_a_seed():
    # Three runs of 60, 120 and 240 seconds.
    row, runs = results.ROWS[2], []
    for task, seconds in (("sst", 60), ("para", 120), ("sts", 240)):
        dev = {"sst": .5, "para": .5, "sts": .5, "overall": .58}
        folder = write_file(json.dumps({"dev": {**dev, task: .75}, "seconds": seconds}),
                            "result.json")
        runs.append(table.Run(row, 0, [], folder, [task], None))
    found = table.row_result(row, runs, None)
    assert_close(found.seeds["0"]["minutes"], 7)
    assert_close([found.seeds["0"][name] for name in ("sst", "para", "sts")], [.75] * 3)
    assert_equal(table.row_result(row, runs[:2], None).seeds, {}, "a run is missing")


def test_tools_table__a_damaged_result_is_named():
    for text, words in (("{}", ["dev, seconds"]), ("null", ["object"]), ("{", ["JSON"]),
                        ('{"dev": {"sst": 1}, "seconds": 1}', ["sst, para"]),
                        ('{"dev": {"sst": "a", "para": 1, "sts": 1}, "seconds": 1}',
                         ["sst", "a number"])):
        folder = write_file(text, "result.json")
        with assert_raises("result.json: needed", *words):
            table.score(table.Run(results.ROWS[0], 0, [], folder, ["sst", "para"], None),
                        None)


def test_tools_table__damaged_test_labels_are_named_by_line():
    good = "task\tid\tlabel\nsst\ta\t1\n"
    for text, words in (("task\tid\nsst\ta\n", ["label"]),
                        (good + "nli\tb\t1\n", ["line 3", "sst, para, sts", "nli"]),
                        (good + "sst\tb\t9\n", ["line 3", "9"]),
                        (good + "sst\t A\t1\n", ["2", "3", "same id"])):
        folder = write_file(text, "test-labels.csv")
        with assert_raises("test-labels.csv", *words):
            table.read_test_labels(folder)


def test_tools_table__a_trial_has_its_own_name_and_says_once_that_it_is_the_sample():
    runs, world = tempfile.mkdtemp(), os.path.abspath(tiny_world()[0])
    with (unittest.mock.patch.object(sources, "SAMPLE", world),
          unittest.mock.patch.object(train, "width", lambda weights: 8)):
        output, _ = run_table("--rows", "2,6", "--seeds", 1, "--max-steps", 2, "--runs",
                              runs)
    assert_equal(output.count(sources.SAMPLE_NOTE.splitlines()[0]), 1)
    assert "\nrun 1 of 2: Sequential" in output and "\nrun 2 of 2, about 0:" in output
    assert_equal([name for name in os.listdir(runs) if name.endswith(".md")],
                 [f"table2-{os.path.basename(world)}-weights-2-steps.md"])


def test_tools_table__expected_scores_are_a_t_interval():
    # .702, .722, .742: mean .722, sd .02; 4.303 √(4/3) · .02 = .09937
    assert_close(results.interval([.702, .722, .742]), [.6226, .8214], 1e-9)
    dev = dict.fromkeys(("sst", "para", "sts", "overall"), .5)
    seeds = {str(i): {**dev, "sst": .702 + .02 * i} for i in range(3)}
    rows = [results.RowResult("RR", ["python train.py --option rr --con"], seeds),
            results.RowResult("one seed", ["python train.py --option seq"],
                              {"0": seeds["0"]}),
            results.RowResult("three runs", ["python train.py --tasks sst"] * 3, seeds)]
    entries = results.expected(results.Result(2, "sample", "sample", [], rows, {}))
    assert_equal(len(entries), 1)
    folder = write_file(json.dumps(entries), "expected.json")
    for flags, said in ((["--option", "rr", "--con", "--seed", "7"], True),
                        (["--option", "rr"], False),
                        (["--option", "rr", "--con", "--lr", "1"], False)):
        args, _ = train.parse([*flags, "--data", sources.SAMPLE, "--weights",
                               sources.SAMPLE])
        with unittest.mock.patch.object(sources, "SAMPLE", folder):
            line = sources.expected(vars(args))
        assert_equal("from 3 seeds: sst 0.62 to 0.82, para" in line, said)


def test_tools_table__the_pages_agree_with_results():
    found, places = results.recorded(os.path.join(ROOT, "results")), []
    for path in results.pages(ROOT):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        places += [place["name"] for place in results.PLACE.finditer(text)]
        assert results.fill(text, found) == text, (
            f"{path} differs from results/; python tools/table.py --render")
    assert_equal(sorted(places), sorted(found), "the places of tables in the pages")
    with open(os.path.join(ROOT, "sample", "expected.json"), encoding="utf-8") as file:
        assert_equal(json.load(file), results.expected(results.Result.read(
            os.path.join(ROOT, "results", "table2-sample-sample.json"))))


def test_tools_table__a_file_that_is_no_table_is_kept():
    folder = write_file("mine", "mine.md")
    with open(os.path.join(folder, "other.json"), "w") as file:
        file.write("{}")
    flags = ("--rows", 12, "--seeds", 1, "--max-steps", 1, "--runs", folder)
    for name, said in (("mine", "mine.md is a page of its own"), ("other", "other.json"),
                       ("no/such", "'no/such'")):
        output, started = run_table(*flags, "--name", name, status=2)
        assert said in output and not started, output
    output, started = run_table(*flags, "--runs", os.path.join(folder, "mine.md"), status=2)
    assert "mine.md" in output and not started
    with open(os.path.join(folder, "mine.md")) as file:
        assert_equal(file.read(), "mine")


def test_tools_table__recorded_numbers_fill_their_place_in_a_page():
    folder, runs = tempfile.mkdtemp(), tempfile.mkdtemp()
    run_table("--rows", "6", "--seeds", 1, "--max-steps", 3, "--runs", runs, "--name",
              "table2-tiny")
    shutil.copy(os.path.join(runs, "table2-tiny.json"), folder)
    page = os.path.join(folder, "README.md")
    with open(page, "w") as file:
        file.write("a\n<!-- table: table2-tiny -->\nold\n<!-- end of table -->\nb\n"
                   "<!-- table: other -->\nkept\n<!-- end of table -->\n")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        results.render(folder, [page])
    assert "<!-- table: table1 -->" in output.getvalue(), "it has no place there"
    with open(page) as file:
        text = file.read()
    assert text.startswith("a\n<") and "-->\nb\n" in text and "old" not in text
    assert "-->\nkept\n<!--" in text, "a place without a source stays as it is"
    assert results.recorded(folder)["table2-tiny"] in text
    with unittest.mock.patch.object(sources, "ROOT", folder):
        for row in (6, 11, 11):
            run_table("--rows", row, "--seeds", 1, "--max-steps", 3, "--runs", runs,
                      "--name", "table2-tiny", "--record")
    with open(page) as file:
        text = file.read()
    assert_equal(re.findall(r"^- (.*):", text, re.MULTILINE),
                 ["Gradient Surgery + RR", "RR (ours)"], "rows on the page")
    with unittest.mock.patch.object(sources, "ROOT", folder):
        said, started = run_table("--rows", 12, "--seeds", 1, "--max-steps", 2, "--runs",
                                  runs, "--name", "table2-tiny", "--record", status=2)
    assert "its flags for all rows" in said and not started, "trained what it cannot record"


def test_tools_table__recording_more_rows_or_seeds_keeps_those_that_are_there():
    rows = [results.Row(name, (f"--option {name}",), 10)
            for name in ("seq", "rr", "pcgrad")]

    def result(flags="", tasks=("sst",), table=2, data="sample", weights="w",
               machines=("a", "b"), baseline=.25, **seeds_of):
        return results.Result(table, data, weights, list(machines), [results.RowResult(
            name, [f"python train.py --option {name}{flags}"], {
                seed: {**dict.fromkeys([*tasks, "overall"], float(score)), "minutes": 1.0}
                for seed, score in seeds.items()}) for name, seeds in seeds_of.items()],
            {"majority": {"sst": baseline, "overall": baseline}})

    def now(measured):
        return results.joined(path, measured, rows)
    first = result(rr={"0": .5, "10": .6}, seq={"0": .1})
    folder = write_file(json.dumps(dataclasses.asdict(first)), "table2.json")
    path = os.path.join(folder, "table2.json")
    both = now(result(" --epochs 10", machines=("b", "a"), baseline=.3,
                      rr={"0": .7, "2": .8}, pcgrad={"0": .9}))
    assert_equal([(row.row, [(seed, scores["sst"]) for seed, scores in row.seeds.items()])
                  for row in both.rows],
                 [("seq", [("0", .1)]), ("rr", [("0", .7), ("2", .8), ("10", .6)]),
                  ("pcgrad", [("0", .9)])])
    assert_equal(both.baselines["majority"]["sst"], .3, "of now")
    for change, fragment in (
            ({"flags": " --lr 1"}, "its flags for all rows [''], now ['--lr 1']"),
            ({"machines": ["a"]}, "its machines ['a', 'b'], now ['a']"),
            ({"tasks": ("sst", "para")}, "its tasks ['sst'], now ['sst', 'para']"),
            ({"table": 3}, "its table 2, now 3"),
            ({"data": "own"}, "its data sample, now own"),
            ({"weights": "v"}, "its weights w, now v")):
        with assert_raises(fragment):
            now(result(**change, pcgrad={"0": .7}))
    # A row that has a flag itself lacks it among those of all rows.
    old = result(" --con", rr={"0": .5}, seq={"0": .1})
    old.rows[0].commands = ["python train.py --option rr"]
    assert_equal(results.shared_flags(old, rows),
                 results.shared_flags(result(" --con", seq={"0": .1}), rows))
    # Not measured yet: only what is known then.
    now(dataclasses.replace(result(machines=(), pcgrad={}), baselines={}))
    # All of it again, on another machine, takes its place.
    again = result(machines=["c"], rr={"0": .5, "10": .5}, seq={"0": .5}, pcgrad={"0": .5})
    assert_equal(now(again), again)
    os.remove(path)
    assert_equal(now(first), first, "nothing is recorded yet")


def two_runs():
    """[table.Run] of two updates each, in folders that are not there yet."""
    for option in ("rr", "pcgrad"):     # what is open in an assignment shows up here first
        assert_equal(run_train("--option", option, steps=1)[0], 0)
    return [table.Run(results.ROWS[row], seed, [
        "--option", option, "--data", tiny_world()[0], "--weights", tiny_world()[1],
        "--batch-size", "4", "--max-steps", "2", "--epochs", "1"], os.path.join(
            tempfile.mkdtemp(), "run"), [], 2)
        for row, option, seed in ((10, "rr", 0), (5, "pcgrad", 0))]


def test_tools_table__several_runs_at_a_time_are_all_finished():
    runs, output = two_runs(), io.StringIO()
    with contextlib.redirect_stdout(output):
        assert_equal(table.perform_all(runs, jobs=2), 0)
    assert all(one.finished() for one in runs)
    assert_equal(sorted(re.findall(r"^run (\d) is finished: sst \d", output.getvalue(),
                                   re.MULTILINE)), ["1", "2"])
    assert "epoch 1" not in output.getvalue(), "only what fails is shown in full"


def test_tools_table__a_run_that_fails_is_shown_and_no_other_is_begun():
    one = two_runs()[0]
    broken = [dataclasses.replace(one, flags=[*one.flags, "--lr", "-1"])] * 3
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert_equal(table.perform_all(broken, jobs=2), 2)
    assert "--lr: needed a number" in output.getvalue()
    assert output.getvalue().count("\nrun ") == 2, output.getvalue()


def test_tools_table__what_a_change_of_rows_does_is_the_one_minus_the_other():
    names = {row.name for row in results.ROWS}
    for change, *rows in results.CHANGES:
        assert set(rows) < names, f"{change}: a row that is not there"
    def row(name, *scores):
        return results.RowResult(name, [], {str(seed): {"sst": score, "overall": score,
                                                        "minutes": 1.0}
                                            for seed, score in enumerate(scores)})
    found = results.Result(2, "d", "w", [], [
        row("RR (ours)", .1, .2, .3, .9), row("RR + CON (ours)", .11, .22, .33),
        row("Gradient Surgery + RR", .4, .5)], {})
    lines = results.changes(found, ["sst", "overall"])
    assert_equal(lines[0], "| change | SST | overall | seeds |")
    # .01, .02, .03: 4.303 · .01 / √3 = .0248; surgery has too few seeds
    assert_equal(lines[2:4], ["| CON | +.020 ± .025 | +.020 ± .025 | 3 |", ""])
    found.rows.pop(0)
    assert_equal(results.changes(found, ["sst", "overall"]), [])


def test_tools_table__flags_of_its_own_may_not_follow_the_dashes():
    for flag in ("--data", "--weights", "--seed", "--out", "--epochs=3"):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            status = table.main(["--rows", "12", "--max-steps", "1", "--", flag, "x"])
        assert_one_line(status, errors.getvalue(), flag, "before the --")
