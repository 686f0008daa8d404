"""tools/questions.py, and tools/table.py --question."""

import contextlib
import io
import json
import os
import shutil
import tempfile
import unittest.mock

import train
from plumbing import declared
from tests.checks import assert_close, assert_equal, assert_one_line
from tests.test_tools_table import run_table
from tests.world import WORDS, small_bert, tiny_world, write_file
from tools import questions, results, table


def test_tools_questions__a_question_compares_seed_by_seed():
    def row(words, *scores):
        return results.RowResult(words, [f"python train.py {words}"], {
            str(seed): {"sst": sst, "overall": sst, "minutes": 1.0}
            for seed, sst in enumerate(scores)})
    found = results.Result(2, "d", "w", ["m"], [
        row("neither", .4, .5, .6), row("both", .41, .52, .63), row("alone", .39)], {})
    lines = questions.markdown("smart", found).splitlines()
    assert_equal(lines[0], f"**{questions.QUESTIONS['smart'].title}** (dev)")
    assert "| neither | .500 (sd .100) | .500 (sd .100) | 3 |" in lines
    # .01, .02, .03: 4.303 · .01 / √3 = .0248
    assert "| both | +.020 ± .025 | +.020 ± .025 | 3 |" in lines
    assert "| alone | -.010 | -.010 | 1 |" in lines
    assert any(" The first row with seed 0: .400 .400. Scores on dev" in line
               for line in lines), "what a row of fewer seeds is compared with"
    # Not the first row that there is, but the baseline.
    found.rows.reverse()
    assert "| neither | .500 (sd .100) | .500 (sd .100) | 3 |" in questions.markdown(
        "smart", found)
    assert_equal(results.difference([.02, .021, .022]), "**+.021 ± .002**")
    for seed in found.rows[-1].seeds.values():      # the baseline has a task of one's own
        seed["para"] = .7
    assert "| both | +.020 ± .025 |  |  | 3 |" in questions.markdown("smart", found)


def test_tools_questions__every_row_of_a_question_has_its_flags():
    for name, question in questions.QUESTIONS.items():
        data, weights = tiny_world()
        for row in questions.rows_of(name):
            for words in row.commands:
                train.parse([*words.replace(questions.RANDOM, weights).split(),
                             "--data", data, "--weights", weights])
        assert len(question.rows) == len(set(question.rows.values())), name


def test_tools_questions__runs_of_one_task_each_are_a_row_of_a_question():
    alone = tuple(f"--option rr --tasks {name}" for name in declared.REPORT)
    asked = questions.Question("?", {"ours": "--option rr", "alone": alone})
    with unittest.mock.patch.dict(questions.QUESTIONS, {"epochs": asked}):
        folder = tempfile.mkdtemp()
        output, started = run_table("--question", "epochs", "--max-steps", 1, "--seeds", 1,
                                    "--runs", folder)
    assert_equal(len(started), 4)
    row, = [line for line in output.splitlines() if line.startswith("| alone | ")]
    found = {}
    for name in os.listdir(folder):
        path = os.path.join(folder, name, "result.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                result = json.load(file)
            found[tuple(result["args"]["tasks"])] = result["dev"]
    # STS from the run on STS alone, minus STS of all three at once
    want = found[("sts",)]["sts"] - found[declared.REPORT]["sts"]
    assert_close(float(row.split(" | ")[3]), want, 6e-4)


def test_tools_questions__finished_runs_of_a_treatment_of_ones_own_are_kept():
    path = os.path.join(write_file("def same(gram): return gram * 0 + 1\n", "mine.py"),
                        "mine.py")
    own = questions.Question("?", {"ours": f"--option {path}:same --con"})
    flags = ("--question", "epochs", "--max-steps", 1, "--seeds", 1, "--runs",
             tempfile.mkdtemp())
    with unittest.mock.patch.dict(questions.QUESTIONS, {"epochs": own}):
        assert_equal([len(run_table(*flags)[1]) for _ in range(2)], [1, 0])
        with open(path, "a") as file:
            file.write("# edited\n")
        assert "mine.py" in run_table(*flags, status=2)[0]


def test_tools_questions__other_epochs_only_for_a_question_whose_rows_name_none():
    for name in ("epochs", "multitask"):        # --epochs, --max-steps
        with contextlib.redirect_stderr(io.StringIO()) as errors, \
                unittest.mock.patch.object(table, "perform_all", return_value=1):
            status = table.main(["--question", name, "--epochs", "3", "--runs",
                                 tempfile.mkdtemp()])
        assert_one_line(status, errors.getvalue(), "contradict", name)
    asked = questions.Question("?", {"ours": "--option rr --con"})
    with unittest.mock.patch.dict(questions.QUESTIONS, {"epochs": asked}):
        output, started = run_table("--question", "epochs", "--epochs", 1, "--max-steps", 1,
                                    "--seeds", 1, "--runs", tempfile.mkdtemp())
    assert "--epochs 1" in " ".join(started[0]), started
    assert "-1-epochs-1-steps" in output, output


def test_tools_questions__a_row_may_have_weights_of_its_own():
    _, weights = tiny_world()
    other = shutil.copytree(weights, os.path.join(tempfile.mkdtemp(), "other"))
    small_bert(seed=1, vocab_size=len(WORDS)).save_pretrained(other)
    asked = questions.Question("?", {"ours": "--option rr --con",
                                     "other": f"--option rr --con --weights {other}"})
    with unittest.mock.patch.dict(questions.QUESTIONS, {"epochs": asked}):
        flags = ("--question", "epochs", "--max-steps", 1, "--seeds", 1, "--runs",
                 tempfile.mkdtemp())
        output, started = run_table(*flags)
        assert_equal(len(started), 2)
        assert "| other | " in output, output
        assert "--weights other" in output[output.index("**?**"):]
        again, started = run_table(*flags)
        assert not started, "finished runs are kept"
        for wrong in (("--rows", 2), ("--table", 1)):
            output, started = run_table(*flags, *wrong, status=2)
            assert not started and "contradict" in output, wrong


def test_tools_questions__a_rows_own_flag_wins_over_that_of_all_rows():
    asked = questions.Question("?", {"ours": "--option rr --con",
                                     "other": "--option rr --con --pool cls"})
    shared = ["--pool=mean", "--lr", "1e-4", "--tasks", "sst,sts", "--max-steps", "1"]
    with unittest.mock.patch.dict(questions.QUESTIONS, {"epochs": asked}):
        first, second = table.plan(questions.rows_of("epochs"), 1, shared, (), "runs")
        for flag in ("--option", "--con", "--option=pcgrad"):
            with contextlib.redirect_stderr(io.StringIO()) as errors, \
                    unittest.mock.patch.object(table, "perform_all", return_value=1):
                status = table.main(["--question", "epochs", "--runs", tempfile.mkdtemp(),
                                     "--", flag, "pcgrad"])
            assert_one_line(status, errors.getvalue(), flag, "every row has its own")
    for one in table.plan(questions.rows_of("multitask"), 1, shared, (), "runs"):
        assert_equal([word for word in one.flags if word in ("1", "744")], ["1"], "a trial")
    assert_equal(first.flags, ["--option", "rr", "--con", *shared])
    assert_equal(second.flags, ["--option", "rr", "--con", "--pool", "cls", *shared[1:]])
