"""Runs that are interrupted and resumed."""

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
import tempfile
import unittest.mock
import warnings

import numpy as np

import data
import heads
import multitask
from plumbing import loop, machine
from plumbing.folder import load_checkpoint
from tests.checks import assert_equal, assert_one_line, assert_raises
from tests.world import (
    HARD,
    WORDS,
    files_of,
    resume,
    run_train,
    send,
    signalled_at,
    small_bert,
    tiny_world,
    uninterrupted,
)
from tools import slow_tests


@contextlib.contextmanager
def during(name, module, number):
    """Within this context the number-th call of a module's function gets a SIGTERM."""
    original, calls = getattr(module, name), itertools.count(1)

    def call(*args, **more):
        if next(calls) == number:
            send(signal.SIGTERM)
        return original(*args, **more)
    with unittest.mock.patch.object(module, name, call):
        yield


def test_run_resume__stopped_by_a_signal_it_goes_on_bit_for_bit():
    for number, status, steps in ((signal.SIGTERM, 143, (1, 5, 8)),
                                  (signal.SIGINT, 130, (5,))):
        for step in steps:
            with signalled_at(step, number):
                stopped, out, _ = run_train(*HARD, steps=12)
            assert stopped == status, f"got exit status {stopped}, expected {status}"
            assert not os.path.exists(os.path.join(out, "result.json"))
            status_, output, _ = resume(out)
            assert status_ == 0 and f"after update {step}" in output
            for name, content in uninterrupted().items():
                assert files_of(out)[name] == content, f"{name} differs, stopped at {step}"


def test_run_resume__between_evaluations_within_an_epoch_it_goes_on_bit_for_bit():
    flags = (*HARD, "--eval-every", 3, "--patience", 2, "--max-length", 9)
    whole = run_train(*flags, steps=12)[1]
    for step in (2, 3, 7):
        with signalled_at(step):
            stopped, out, _ = run_train(*flags, "--checkpoint-every", 2, steps=12)
        assert stopped == 143 and resume(out)[0] == 0
        assert files_of(out) == files_of(whole), f"stopped at {step}"
    with during("evaluate", heads, 2):          # the first evaluation within an epoch
        stopped, out, _ = run_train(*flags, steps=12)
    assert stopped == 143 and resume(out)[0] == 0
    assert files_of(out) == files_of(whole), "stopped during an evaluation"


def test_run_resume__after_its_patience_it_only_predicts():
    flags = (*HARD, "--eval-every", 2, "--patience", 1, "--lr", 0)      # never better
    whole = run_train(*flags, steps=12)[1]
    with during("write_predictions", data, 2):
        stopped, out, _ = run_train(*flags, steps=12)
    assert stopped == 143
    with unittest.mock.patch.object(multitask, "backward", None):       # no step is taken
        assert resume(out)[0] == 0
    assert files_of(out) == files_of(whole)


def test_run_resume__a_second_ctrl_c_ends_the_process_at_once():
    before = signal.getsignal(signal.SIGINT)
    child = os.fork()
    if child == 0:
        with loop.Stop() as stop:
            signal.raise_signal(signal.SIGINT)
            if stop.asked == signal.SIGINT:         # the first one only asks
                signal.raise_signal(signal.SIGINT)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT
    with loop.Stop():
        pass
    assert signal.getsignal(signal.SIGINT) is before, "the old handler must come back"


def test_run_resume__metrics_are_cut_back_to_the_checkpoint():
    with signalled_at(5):
        _, out, _ = run_train(*HARD, steps=12)
    with open(os.path.join(out, "metrics.jsonl"), "ab") as file:
        file.write(b'{"step": 6, "half a li')
    resume(out)
    assert files_of(out) == uninterrupted()
    with signalled_at(5):
        _, out, _ = run_train(*HARD, steps=12)
    os.truncate(os.path.join(out, "metrics.jsonl"), 10)
    status, _, errors = resume(out)
    assert status == 2 and "metrics.jsonl" in errors


def test_run_resume__a_damaged_checkpoint_is_found_and_the_one_before_it_used():
    for damage in ("cut short", "one bit", "not a checkpoint"):
        with signalled_at(8):
            _, out, _ = run_train(*HARD, "--checkpoint-every", 3, steps=12)
        path = os.path.join(out, "last.pt")
        with open(path, "rb") as file:
            content = bytearray(file.read())
        if damage == "cut short":
            content = content[:len(content) // 2]
        elif damage == "one bit":
            theta = load_checkpoint(path)["theta"].numpy().tobytes()
            content[content.index(theta) + 1000] ^= 4
        else:
            content = b"rubbish"
        with open(path, "wb") as file:
            file.write(content)
        status, output, _ = resume(out)
        assert status == 0 and "damaged" in output and "after update 6" in output, output
        assert files_of(out) == uninterrupted(), damage
        for name in ("last.pt", "before.pt"):       # the damaged one took nobody's place
            assert load_checkpoint(os.path.join(out, name)) is not None, name


def test_run_resume__with_no_whole_checkpoint_left_it_stops():
    with signalled_at(8):
        _, out, _ = run_train(*HARD, "--checkpoint-every", 3, steps=12)
    for name in ("last.pt", "before.pt"):
        with open(os.path.join(out, name), "wb") as file:
            file.write(b"rubbish")
    status, output, errors = resume(out)
    assert_one_line(status, errors, "last.pt, before.pt", "start a new run")
    assert_equal([output.count(words) for words in ("is damaged", "going back")], [2, 1])
    assert os.path.getsize(os.path.join(out, "metrics.jsonl")) > 0, "nothing may be lost"


def test_run_resume__stopped_during_an_evaluation_twice():
    original, calls = heads.evaluate, []

    def evaluate_and_signal(*args, **more):
        calls.append(1)
        if len(calls) in (2, 4):
            send(signal.SIGTERM)
        return original(*args, **more)
    with unittest.mock.patch.object(heads, "evaluate", evaluate_and_signal):
        status, out, _ = run_train(*HARD, steps=12)
        assert status == 143
        # as if it had been killed while it wrote the checkpoint: the log is longer
        with open(os.path.join(out, "metrics.jsonl"), "ab") as file:
            file.write(b"x" * 500)
        assert resume(out)[0] == 143
    assert resume(out)[0] == 0 and files_of(out) == uninterrupted()


def test_run_resume__a_metric_that_fails_loses_no_update():
    def fails(predictions, labels):
        if len(labels) > 2:
            raise ZeroDivisionError("no true positives")
        return 1.0
    def draws(predictions, labels):
        return np.random.rand()
    sst = heads.tasks()[0]
    mine = dataclasses.replace(sst, name="mine", metric=fails)
    other = dataclasses.replace(sst, name="other", metric=draws)
    with unittest.mock.patch.object(heads, "tasks", lambda *_, **__: [other, mine]):
        status, out, errors = run_train("--tasks", "other,mine", steps=3)
        assert_one_line(status, errors, "mine's metric", "ZeroDivisionError: no", "mend")
        assert_equal(load_checkpoint(os.path.join(out, "last.pt"))["step"], 3)
        saved = load_checkpoint(os.path.join(out, "last.pt"))["random"]["others"]
        status, output, _ = resume(out)
        assert "going on after update 3" in output and "--resume" in output, output
        again = load_checkpoint(os.path.join(out, "last.pt"))["random"]["others"]
        assert_equal(again, saved, "numbers that a metric has drawn are drawn again")


def test_run_resume__a_signal_in_a_metric_is_not_its_mistake():
    def slow(predictions, labels):
        if len(labels) > 2:
            send(signal.SIGTERM)
        return 1.0
    mine = dataclasses.replace(heads.tasks()[0], name="mine", metric=slow)
    with unittest.mock.patch.object(heads, "tasks", lambda *_, **__: [mine]):
        assert_equal(run_train("--tasks", "mine", steps=3)[0], 143)


def test_run_resume__code_that_has_changed_is_named():
    with signalled_at(2):
        _, out, _ = run_train(steps=4)
    with unittest.mock.patch.object(machine, "file_digest", lambda path: "0" * 64):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert_equal(resume(out)[0], 0)
    assert_equal(len(caught), 1)
    assert ", ".join(machine.CODE) in str(caught[0].message), caught


def test_run_resume__without_any_checkpoint_it_starts_again():
    with signalled_at(2):
        _, out, _ = run_train(*HARD, steps=12)
    os.remove(os.path.join(out, "last.pt"))
    assert resume(out)[0] == 0 and files_of(out) == uninterrupted()


def test_run_resume__other_flags_data_or_weights_are_refused():
    world, weights = tiny_world()
    moved = shutil.copytree(world, os.path.join(tempfile.mkdtemp(), "moved"))
    with signalled_at(2):
        _, out, _ = run_train(steps=4, data_folder=moved)
    for flags, words in ((["--lr", ".5"], ["--lr 0.5", "0.01"]), (["--con"], ["--con"]),
                         (["--option", "gvac"], ["--option gvac", "rr"]),
                         (["--tasks", "sst"], ["--tasks"]),
                         (["--clip", "0"], ["--clip 0"])):
        status, _, errors = resume(out, *flags)
        assert status == 2 and all(word in errors for word in words), errors
    assert resume(out, "--lr", ".01", "--data", world)[0] == 0, (
        "equal flags, equal data elsewhere")
    with signalled_at(2):
        _, out, _ = run_train(steps=4, data_folder=moved)
    with open(os.path.join(moved, "sts-dev.csv"), "a") as file:
        file.write("99\tnew\ta\tb\t1.0\n")
    status, _, errors = resume(out)
    assert status == 2 and "sts-dev.csv" in errors and "quora" not in errors
    other = os.path.join(tempfile.mkdtemp(), "other")
    shutil.copytree(weights, other)
    small_bert(seed=5, vocab_size=len(WORDS)).save_pretrained(other)
    status, _, errors = resume(out, "--data", world, "--weights", other)
    assert status == 2 and "model.safetensors" in errors


def test_run_resume__a_finished_run_says_so():
    out = run_train(steps=1)[1]
    before = files_of(out)
    status, output, _ = resume(out)
    assert status == 0 and "finished" in output and files_of(out) == before


def test_run_resume__every_flag_is_among_those_that_slow_tests_kill():
    # Raises ValueError naming a flag that no set has.
    found = slow_tests.sets_of_flags()
    assert set(slow_tests.RUNS) < set(found), f"got {', '.join(found)}"
    few = {"seq plain": "--option seq"}
    with (unittest.mock.patch.dict(slow_tests.RUNS, few, clear=True),
          assert_raises("--smart", "RUNS")):
        slow_tests.sets_of_flags()
