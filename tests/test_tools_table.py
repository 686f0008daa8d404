"""tools/table.py."""

import contextlib
import io
import json
import os
import shutil
import tempfile
import unittest.mock

import numpy as np

import data
import heads
import train
from tests import ROOT
from tests.checks import assert_close, assert_raises
from tests.world import run_train, signalled_at, tiny_world
from tools import table


def run_table(*flags, status=0):
    """`python tools/table.py …` on the tiny world.   -> (output, runs that it started)

    The runs are train.main() in this process: ten new ones would take half a minute.
    """
    folder, weights = tiny_world()
    started = []

    class Child:
        def __init__(self, words):
            self.words = words[2:]
            started.append(self.words)

        def wait(self, timeout):
            with contextlib.redirect_stderr(io.StringIO()):
                return train.main(self.words)
    output = io.StringIO()
    with (unittest.mock.patch.object(table.subprocess, "Popen", Child),
          unittest.mock.patch.object(table, "baseline", None),
          contextlib.redirect_stdout(output), contextlib.redirect_stderr(output)):
        assert table.main(["--data", folder, "--weights", weights, *map(str, flags), "--",
                           "--batch-size", "4", "--accumulate", "1", "--para-first", "0",
                           "--amp", "off"]) == status, output.getvalue()
    return output.getvalue(), started


def test_tools_table__every_row_of_the_reports_tables_has_its_flags():
    args = table.parser().parse_args(["--data", tiny_world()[0], "--seeds", "1"])
    args.weights, args.flags = tiny_world()[1], []
    runs = table.plan(args, list(table.TABLE_2))
    assert len(table.TABLE_2) == 10 and len(runs) == 12, "Individual is three runs"
    parsed = {}
    for one in runs:
        values, _ = train.parse(one.flags)
        parsed.setdefault(one.row, []).append(values)
    single = parsed["Individual Pre-training and Finetuning"]
    assert [values.tasks for values in single] == [["sst"], ["para"], ["sts"]]
    assert [one.tasks for one in runs if one.row.startswith("Individual")] == [
        ["sst"], ["para"], ["sts"]], "each is scored on its own task"
    # Table 2's column "epochs"; Sequential's 10 in Table 1 is D11.
    assert [values[0].epochs for values in parsed.values()] == [
        10, 5, 5, 10, 15, 15, 15, 15, 15, 15]
    assert parsed["SST head fine tuning only"][0].tasks == ["sst"]
    assert not parsed["SST head fine tuning only"][0].freeze
    fresh = {row for row, values in parsed.items() if values[0].fresh_streams}
    assert fresh == {"Gradient Surgery + CON"}, "the row without RR"
    for row in table.TABLE_3:
        assert row in table.TABLE_2, "a row of Table 3 is a run of Table 2 too"
    assert set(table.chosen("11-15", [])) == set(table.ROWS[10:])
    with assert_raises("--rows", "1 to 15", "16"):
        table.chosen("16", [])


def test_tools_table__mean_and_spread_by_hand():
    # .2, .4, .6: mean .4, sd √((.04 + 0 + .04) / 2) = .2
    assert table.spread([.2, .4, .6]) == ".400 ± .200"
    assert table.spread([-.0625]) == "-.062" and table.spread([1.0]) == "1.000"


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
    assert line.split(" | ")[1:5] == [table.spread([seed[key] for seed in seeds])
                                      for key in (*columns, "overall")]
    assert ".453 .748 .364 .628" in line and "--option pcgrad" in line


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
    predicted = data.read_predictions(os.path.join(runs, folder, "predictions",
                                                   "sst-test-output.csv"))
    assert_close(found["rows"][0]["seeds"]["0"]["sst"],
                 np.mean([predicted[f"st{i:023x}"] == i % 2 for i in range(6)]), 1e-5)


def test_tools_table__readme_agrees_with_results():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    found = table.blocks(os.path.join(ROOT, "results"))
    places = [match[2] for match in table.BLOCK.finditer(readme)]
    assert sorted(places) == sorted(found), (
        f"README.md has {sorted(places)}, train.py and results/ give {sorted(found)}")
    assert table.fill(readme, found) == readme, (
        "the README's tables differ from results/; python tools/table.py --render")


def test_tools_table__recorded_numbers_fill_their_place_in_the_readme():
    results, runs = tempfile.mkdtemp(), tempfile.mkdtemp()
    run_table("--rows", "6", "--seeds", 1, "--max-steps", 3, "--runs", runs, "--name",
              "table2-tiny")
    shutil.copy(os.path.join(runs, "table2-tiny.json"), results)
    readme = os.path.join(results, "README.md")
    with open(readme, "w") as file:
        file.write("a\n<!-- table: table2-tiny -->\nold\n<!-- end of table -->\nb\n")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert table.render(results, readme) == 0
    assert "<!-- table: table1 -->" in output.getvalue(), "it has no place there"
    with open(readme) as file:
        text = file.read()
    assert text.startswith("a\n<") and text.endswith("-->\nb\n") and "old" not in text
    assert table.blocks(results)["table2-tiny"] in text
