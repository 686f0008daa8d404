"""4.3 Settings: the learning-rate schedule, Table 1, and what is refused."""

import contextlib
import dataclasses
import io
import os
import re
import unittest.mock

import heads
import optim
import train
from plumbing import runs, sources
from tests.checks import assert_close, assert_equal, assert_raises
from tests.world import settings_of, tiny_world


def test_4_3_learning_rate__rises_and_falls():
    assert_close([optim.learning_rate_factor(t, 10, 0.2) for t in range(10)],
                 [.5, 1, 1, .875, .75, .625, .5, .375, .25, .125], 1e-12)
    assert all(optim.learning_rate_factor(t, 10, 0) == 1 for t in range(10))
    assert_close(optim.learning_rate_factor(9, 10, 1.0), 1.0)


def test_4_3_learning_rate__the_warm_up_is_rounded_to_the_nearest_step():
    assert_close(optim.learning_rate_factor(0, 10, .19), .5, mistakes={
        "the warm-up of 1.9 steps was rounded down": 1.0, "it was not rounded": 1 / 1.9})
    assert_close(optim.learning_rate_factor(0, 10, .11), 1.0, mistakes={
        "the warm-up of 1.1 steps was rounded up": .5, "it was not rounded": 1 / 1.1})
    assert_close(optim.learning_rate_factor(0, 10, .01), 1.0)


def test_4_3_parse__table_1_row_of_the_headline_command():
    args, source = settings_of("--option", "gvac", "--smart", "--con", "--hlh")
    assert (args.batch_size * args.accumulate, args.epochs, args.lr, args.para_first) == (
        32, 15, 3e-5, 5)
    assert "Table 1" in source["lr"] and source["option"] == "given"
    args, source = settings_of("--option", "gvac", "--smart", "--con", "--hlh", "--lr",
                               "1e-3")
    assert args.lr == 1e-3 and source["lr"] == "given" and args.epochs == 15


def test_4_3_parse__zero_is_a_value_that_can_be_given():
    args, source = settings_of("--option", "gvac", "--smart", "--con", "--hlh",
                               "--para-first", "0", "--seed", "0", "--clip", "0")
    assert (args.para_first, args.clip) == (0, 0)
    assert [source[name] for name in ("para_first", "seed", "clip")] == ["given"] * 3


def test_4_3_parse__single_flags_win_over_a_recipe():
    for name in train.RECIPES:
        args, source = settings_of("--recipe", name)
        words = train.RECIPES[name].split()
        assert_equal(args.lr, float(words[words.index("--lr") + 1]))
        assert_equal((source["lr"], source["con"]), (f"recipe {name}",) * 2)
    # In whatever order they stand.
    assert_equal(settings_of("--recipe", "plain", "--cosine")[0].con, False)
    args = settings_of("--tasks", "sts, sst", "--task-weights", "sst = 2, sts=.5")[0]
    assert_equal((args.tasks, args.task_weights), (["sst", "sts"], {"sst": 2, "sts": .5}))
    args, source = settings_of("--lr", "1e-3", "--recipe", "plain", "--option", "gvac")
    assert_equal((args.lr, args.option, args.con), (1e-3, "gvac", True), mistakes={
        "the recipe wins over a flag": (1e-4, "rr", True)})
    assert_equal((source["lr"], source["option"], source["epochs"]),
                 ("given", "given", "recipe plain"))
    assert_equal(settings_of()[1]["lr"], "default")


def test_4_3_parse__the_samples_values_are_for_a_bert_as_wide_as_its_own():
    args, source = train.parse(["--data", sources.SAMPLE, "--weights", sources.SAMPLE])
    assert_equal((args.lr, args.epochs, source["lr"]), (2e-3, 8, "the sample's"))
    args, source = train.parse(["--data", sources.SAMPLE, "--weights", tiny_world()[1]])
    assert_equal((args.lr, args.epochs, source["lr"]), (1e-5, 15, "default"))


def test_4_3_parse__help_says_each_default_in_80_columns():
    parser = train.parser()
    for action in parser._actions[1:]:
        if action.dest in ("download", "resume"):       # which change what is done
            continue
        assert "(" in action.help, action.help
        shown = action.help.rpartition("(")[2]
        values = [getattr(row, action.dest) for row in (
            train.Row(""), *train.TABLE_1, train.SAMPLE_ROW)
                  ] if action.dest in train.VALUES else [action.default]
        for value in values:
            word = f"{value:g}" if isinstance(value, float) else str(value)
            word = {"False": "", "None": ""}.get(word, word)
            assert word in re.findall(r"[\w.+-]+(?:,\w+)*", shown) or not word, (
                f"{action.option_strings[0]}: no {word} in {shown}")
    for columns in ("80", "200"):
        with unittest.mock.patch.dict(os.environ, COLUMNS=columns):
            text = parser.format_help()
        assert text.startswith("usage: python train.py ") and "docs/errata.md" in text
        assert text.count("\n  python train.py ") == 3, "three examples"
        assert max(map(len, text.splitlines())) <= 80


def test_4_3_parse__D11_sequential_takes_the_epochs_of_its_scores():
    args, _ = settings_of("--option", "seq")
    assert (args.batch_size, args.accumulate, args.epochs, args.lr) == (16, 1, 5, 1e-5)


def test_4_3_parse__all_eight_rows_are_reached_by_their_flags():
    rows = set()
    for row in train.TABLE_1:
        flags = ["--option", row.option] + [name for name, on in (
            ("--smart", row.smart), ("--con", row.con), ("--hlh", row.hlh),
            ("--fresh-streams", row.fresh_streams)) if on]
        args, source = settings_of(*flags)
        assert (args.epochs, args.lr, args.accumulate) == (
            row.epochs, row.lr, row.accumulate)
        rows.add(source["lr"])
    assert len(rows) == 8


def test_4_3_parse__values_out_of_range_and_contradictions_are_refused():
    for given, words in (
            (["--accumulate", "0"], ["--accumulate", "'0'"]),
            (["--lr", "-1"], ["--lr", "'-1'"]),
            (["--lr", "nan"], ["--lr"]), (["--dropout", "1"], ["--dropout"]),
            (["--batch-size", "2.5"], ["--batch-size", "whole"]),
            (["--option", "best"], ["best"]),
            (["--tasks", "sst,sst"], ["--tasks"]), (["--tasks", "ner"], ["ner"]),
            (["--tasks", "sst", "--option", "pcgrad"], ["--tasks sst", "--option pcgrad"]),
            (["--tasks", "sst", "--align", "sts"], ["--align sts", "--tasks sst"]),
            (["--tasks", "sst", "--para-first", "1"], ["--para-first", "--tasks sst"]),
            (["--option", "seq", "--align", "sst"], ["--align", "--option seq"]),
            (["--smart-eps", "1"], ["--smart-eps", "--smart"]),
            (["--smart-weight", "0"], ["--smart-weight", "--smart"]),
            (["--smart", "--amp", "bf16", "--smart-eps", "1e-5"], ["--amp bf16", "1e-05"]),
            (["--tasks", "sst", "--sts-loss", "ce"], ["--sts-loss", "--tasks"]),
            (["--lr", "inf"], ["--lr", "'inf'"]),
            (["--weight-decay", "1e300"], ["--weight-decay", "1000000000", "1e300"]),
            (["--smart", "--smart-eps", "1e37"], ["--smart-eps", "1000000000"]),
            (["--smart", "--smart-steps", "9" * 99], ["--smart-steps", "1000"]),
            (["--task-weights", "sst=1e308"], ["--task-weights", "1000000000"]),
            (["--smart", "--smart-weight", "0", "--smart-eps", "1"], ["--smart-eps"]),
            (["--vaccine-beta", "1"], ["--option gvac"]),
            (["--freeze", "--option", "gvac"], ["--freeze", "--option gvac"]),
            (["--cosine", "--tasks", "sst"], ["--cosine", "--tasks sst", "of pairs"]),
            (["--cosine", "--tasks", "sts", "--sts-loss", "ce"], ["ce contradict", "one"]),
            (["--smart", "--smart-weight", "0", "--bregman-weight", "0"], ["nothing"]),
            (["--smart", "--smart-eps", "0"], ["--smart-eps 0", "nothing is perturbed"]),
            (["--epochs", "100001"], ["--epochs 100001", "at most 100000"]),
            (["--para-first", "100001"], ["--para-first 100001", "at most 100000"]),
            (["--r-drop", "-1"], ["--r-drop", "'-1'"]),
            (["--con", "--cosine"], ["--cosine", "--con", "as one sequence"]),
            (["--task-weights", "sst=1,sst=2"], ["--task-weights", "weights for 'sst'"]),
            (["--max-length", "4"], ["--max-length", "'4'"]),
            (["--eval-every", "9", "--max-steps", "9"], ["--eval-every 9", "--max-steps"])):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            try:
                settings_of(*given)
            except SystemExit as end:
                assert end.code == 2
            else:
                raise AssertionError(f"got no error for {given}")
        last, = errors.getvalue().strip().splitlines()
        assert all(word in last for word in words), f"{given}: got {last!r}"


def test_4_3_parse__a_task_without_divergence_has_neither_SMART_nor_R_Drop():
    sst, *others = heads.tasks()
    mine = dataclasses.replace(sst, divergence=None)
    with unittest.mock.patch.object(heads, "tasks", lambda *_: (mine, *others)):
        for words in (["--smart"], ["--r-drop", "1"]):
            with contextlib.redirect_stderr(io.StringIO()) as errors:
                try:
                    settings_of(*words)
                except SystemExit:
                    pass
            assert_equal(errors.getvalue().count(f"{words[0]} and --tasks sst,para,sts"), 1)
            assert "sst has no divergence" in errors.getvalue()
            assert settings_of(*words, "--tasks", "para,sts")


def test_4_3_parse__a_run_is_called_by_its_methods():
    words = ["--option", "gvac", "--smart", "--r-drop", "1", "--con", "--hlh"]
    assert_equal(runs.methods(settings_of(*words)[0]), ["gvac", "smart", "r-drop", "con",
                                                        "hlh"])


def test_4_3_parse__patience_that_cannot_end_a_run_early_is_refused():
    # The number is the least patience that would change nothing.
    for words, steps, idle in ((["--epochs", "9"], [5, 5, 5], 2),
                               (["--para-first", "1"], [5, 5, 5, 5], 3),
                               (["--eval-every", "2"], [5, 3], 4)):
        plan = [[["sst"]] * n for n in steps]
        runs.check_plan(settings_of(*words, "--patience", str(idle - 1))[0], plan)
        with assert_raises(f"--patience {idle}", "would change nothing"):
            runs.check_plan(settings_of(*words, "--patience", str(idle))[0], plan)
