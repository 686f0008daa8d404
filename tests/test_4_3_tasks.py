"""4.3 Tasks of other kinds, added in one place and trained beside the report's three."""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import signal
import tempfile
import unittest.mock

import numpy as np

import data
import heads
from plumbing import declared
from tests.checks import assert_close, assert_equal, assert_one_line, assert_raises
from tests.world import (
    WORDS,
    files_of,
    log_of,
    resume,
    run_tool,
    run_train,
    signalled_at,
    small_bert,
    tiny_world,
)
from tools import analyze, predict, results

REPORT_TASKS = heads.tasks


def six_tasks(sst_loss="ce", sts_loss="mse"):
    """The report's three, a pair with three classes, and two of single sentences."""
    sst, para, sts = REPORT_TASKS(sst_loss, sts_loss)
    nli = dataclasses.replace(
        sst, name="nli", file="nli", texts=("premise", "hypothesis"), label="relation",
        highest=2, num_outputs=3, prediction_column="Predicted_Relation", ordered=False,
        classes=("entailment", "neutral", "contradiction"))
    is_joke = dataclasses.replace(
        para, name="is_joke", file="jokes", texts=("text",), label="joke",
        prediction_column="Predicted_Joke", classes=("serious", "joke"))
    ease = dataclasses.replace(sts, name="ease", file="reading", texts=("sentence",),
                               label="ease", prediction_column="Predicted_Ease")
    return sst, para, sts, nli, is_joke, ease


EXTRA = ["nli", "is_joke", "ease"]
NAMES = [*declared.REPORT, *EXTRA]


@contextlib.contextmanager
def added():
    """Within this context the tree has all six."""
    with unittest.mock.patch.object(heads, "tasks", six_tasks):
        yield


@functools.cache
def world():
    """CSV files of the six and a tiny BERT.   -> the arguments of run_train()"""
    folder, rng = tempfile.mkdtemp(), np.random.default_rng(0)
    for task in six_tasks():
        for split, number in (("train", 48), ("dev", 24), ("test", 4)):
            label = [] if split == "test" else [task.label]
            lines = ["\t".join(["id", *task.texts, *label])]
            for i in range(number):
                # The first word of each text tells the label, so that it can be learned.
                k = i % (int(task.highest) + 1)
                texts = [" ".join([WORDS[5 + k], *rng.choice(WORDS[15:30], 3)])
                         for _ in task.texts]
                row = [f"{split}{i}", *texts, *([str(k)] if label else [])]
                lines.append("\t".join(row))
            with open(data.path_of(folder, task, split), "w") as file:
                file.write("\n".join(lines) + "\n")
    weights = os.path.join(folder, "weights")
    small_bert(vocab_size=len(WORDS)).save_pretrained(weights)
    with open(os.path.join(weights, "vocab.txt"), "w") as file:
        file.write("\n".join(WORDS) + "\n")
    return {"data_folder": folder, "weights": weights}


@functools.cache
def learned():
    """A run of all six that has learned something. Do not change it."""
    with added():
        status, out, errors = run_train("--option", "gvac", "--con", "--log-layers",
                                        "--epochs", 7, "--batch-size", 8, steps=42,
                                        **world())
    assert_equal(status, 0, errors)
    return out


def result_of(out):
    with open(os.path.join(out, "result.json")) as file:
        return json.load(file)


def test_4_3_tasks__three_more_of_other_kinds_are_learned_beside_the_reports():
    dev = result_of(learned())["dev"]
    for name, chance in (("sst", .2), ("para", .5), ("nli", .33), ("is_joke", .5)):
        assert dev[name] > chance + .25, f"{name}: got {dev[name]}, chance is {chance}"
    for name in ("sts", "ease"):
        assert dev[name] > .5, f"{name}: got r = {dev[name]}, chance is 0"
    parts = [(dev[name] + 1) / 2 if name in ("sts", "ease") else dev[name]
             for name in NAMES]
    assert_close(dev["overall"], np.mean(parts), 1e-5)
    for split, number in (("dev", 24), ("test", 4)):
        for name in NAMES:
            path = os.path.join(learned(), "predictions", f"{name}-{split}-output.csv")
            assert_equal(len(results.read_predictions(path)), number)


def test_4_3_tasks__every_option_trains_all_of_them():
    with added():
        for option in ("rr", "pcgrad", "gvac"):
            _, out, errors = run_train("--option", option, steps=2, **world())
            for line in log_of(out)[:2]:
                assert {f"loss_{name}" for name in NAMES} <= set(line), option
        # Algorithm 1: the report's order, then the others.
        _, out, errors = run_train("--option", "seq", "--batch-size", 24, steps=12,
                                   **world())
        order = [name for line in log_of(out) for name in NAMES if f"loss_{name}" in line]
        assert_equal(order, [name for name in ("sst", "sts", "para", *EXTRA)
                             for _ in range(2)], errors)


def test_4_3_tasks__a_resumed_run_with_smart_is_the_same_bit_for_bit():
    flags = ("--option", "gvac", "--smart", "--con", "--hlh", "--accumulate", 2,
             "--para-first", 1, "--align", "is_joke")
    with added():
        _, out, errors = run_train(*flags, steps=9, **world())
        whole = files_of(out)
        with signalled_at(8, signal.SIGTERM):
            _, out, _ = run_train(*flags, steps=9, **world())
        assert_equal(resume(out)[0], 0)
        assert "smooth_is_joke" in log_of(out)[-2], errors
        assert files_of(out) == whole


def test_4_3_tasks__one_that_is_not_trained_has_no_part_in_the_overall_score():
    with added():
        _, out, errors = run_train("--tasks", "sst,para,sts", **world())
    dev = result_of(out)["dev"]
    assert_equal(list(dev), ["sst", "para", "sts", "overall"], errors)
    assert_close(dev["overall"], (dev["sst"] + dev["para"] + (dev["sts"] + 1) / 2) / 3,
                 1e-6)


def test_4_3_tasks__they_can_be_trained_alone_on_their_own_files():
    folder = tempfile.mkdtemp()
    for name in ("nli", "reading"):
        for split in ("train", "dev"):
            shutil.copy(os.path.join(world()["data_folder"], f"{name}-{split}.csv"), folder)
    with added():
        status, out, errors = run_train("--tasks", "ease,nli", "--option", "pcgrad",
                                        data_folder=folder, weights=world()["weights"])
        assert_equal(status, 0, errors)
        assert_equal(list(result_of(out)["dev"]), ["nli", "ease", "overall"])
        status, output, errors = run_tool(analyze, out, "--out", tempfile.mkdtemp())
        assert_equal(status, 0, errors)
        assert "\nNLI\n" in output and "\nSST\n" not in output
    # A tree without the Task says so, and does not guess.
    status, _, errors = run_tool(predict, out, stdin="a\tb\n")
    assert_one_line(status, errors, "nli", "heads.tasks()")


def test_4_3_tasks__analysis_has_a_section_of_its_kind_for_each():
    with added():
        status, output, errors = run_tool(analyze, learned(), "--out", tempfile.mkdtemp())
    assert_equal(status, 0, errors)
    sections = {part.split("\n")[0]: part for part in output.split("\n\n")}
    for heading, words in (("Training", "loss.svg"), ("NLI", "by class: 0 entailment 8"),
                           ("Is_joke", "that are 0 serious; false negatives"),
                           ("Ease", "truth minus prediction"),
                           ("SST", "off by 1"),
                           ("Conflicts between tasks", "is_joke, ease")):
        assert words in " ".join(sections[heading].split()), sections[heading]
    assert "The report's examples" not in output, "none of them is in these files"


def test_4_3_tasks__a_single_text_is_no_list_of_texts():
    model = heads.MultitaskBert(small_bert(vocab_size=len(WORDS)),
                                tokenizer=data.WordPiece(tiny_world()[1])).eval()
    for name, texts, words in (("sst", "cat", "[ ]"), ("sst", {"cat": 1}, "[ ]"),
                               ("sst", None, "[ ]"), ("sst", [None], "needs 1 text"),
                               ("sst", [3], "needs 1 text"), (["sst"], ["cat"], "one of"),
                               ("sts", [{"cat", "dog"}], "needs 2 text")):
        with assert_raises(words):
            model.predict(name, texts)


def test_4_3_tasks__predictions_for_texts_of_ones_own():
    with added():
        status, output, errors = run_tool(predict, learned(), stdin="a dog\na dog\tb cat\n",
                                          typed=True)
        assert_equal(status, 0, errors)
        assert_equal([line.split("\t")[0] for line in output.splitlines()],
                     ["sst", "is_joke", "ease", "para", "sts", "nli"])
        assert "nli (a pair): 0 entailment, 1 neutral, 2 contradiction" in errors
        model = predict.load(learned())
        found, p = model.predict("nli", [("a dog", "a cat")] * 2, with_probabilities=True)
        assert_equal((found.shape, p.shape), ((2,), (2, 3)))


def test_4_3_tasks__a_table_has_a_column_for_each_and_no_mean_of_fewer():
    scores = {name: .5 for name in ("sst", "para", "sts", "overall", "minutes")}
    rows = [results.RowResult("all", ["python train.py"], {"0": {**scores, "nli": .25}}),
            results.RowResult("three", ["python train.py --tasks sst"], {"0": scores})]
    with added():
        lines = results.markdown(results.Result(2, "d", "w", [], rows, {})).splitlines()
    header, first, second = (
        [cell.strip() for cell in line.split("|")[2:7]]
        for line in lines if line.startswith(("| row", "| all", "| three")))
    assert_equal(header, ["SST acc.", "Para acc.", "STS corr.", "NLI acc.", "overall"])
    assert_equal(first, [".500", ".500", ".500", ".250", ".500"])
    assert_equal(second, [".500", ".500", ".500", "", ""])
