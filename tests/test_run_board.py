"""--tensorboard: plumbing/board.py."""

import glob
import os
import shutil
import sys
import unittest.mock

from plumbing import board
from tests.checks import assert_close, assert_equal, assert_one_line, skip_without
from tests.world import HARD, files_of, log_of, resume, run_train, signalled_at


def events_of(out):
    """What TensorBoard shows of a run.   -> {name: [(step, value), …]}"""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(os.path.join(out, "tensorboard"),
                             size_guidance={"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)]
            for name in found.Tags()["scalars"]}


def shown_as_logged(out):
    """Does TensorBoard show every number of metrics.jsonl, and no other?"""
    wanted = {}
    for line in log_of(out):
        for name, value in board.scalars(line):
            wanted.setdefault(name, []).append((line["step"], value))
    found = events_of(out)
    assert_equal(set(found), set(wanted))
    for name, values in wanted.items():
        assert_equal(len(found[name]), len(values), f"{name}: none missing, none twice")
        assert_close(found[name], values, 1e-4)


def test_run_board__lines_become_names_in_groups():
    line = {"step": 3, "epoch": 1, "loss_sst": .5, "dev": {"sst": .25},
            "layers": {"layer 1": {"cos_a_b": .1}}}
    assert_equal(list(board.scalars(line)), [
        ("loss/loss_sst", .5), ("dev/sst", .25), ("layers/layer 1/cos_a_b", .1)])


def test_run_board__event_files_hold_the_log_and_change_nothing():
    skip_without("tensorboard")
    flags = ("--option", "gvac", "--log-layers")
    plain, written = (run_train(*flags, *more, steps=3)[1]
                      for more in ((), ("--tensorboard",)))
    assert not os.path.exists(os.path.join(plain, "tensorboard"))
    assert_equal(files_of(plain) == files_of(written), True, "the same run, bit for bit")
    shown_as_logged(written)


def test_run_board__a_resume_goes_on_in_the_same_folder():
    skip_without("tensorboard")
    with signalled_at(7):
        status, out, errors = run_train(*HARD, "--tensorboard", steps=12)
    assert status > 128, errors
    # Steps after the checkpoint, as a kill leaves them behind: a resume does them again.
    events = board.Board()
    for step in (8, 9):
        events.add(out, {"step": step, "epoch": 1, "loss_sst": 99.0})
    events.close()
    status, _, errors = resume(out)
    assert status == 0, errors
    assert len(glob.glob(os.path.join(out, "tensorboard", "*"))) == 3
    shown_as_logged(out)


def test_run_board__without_the_package_one_line_and_no_folder():
    missing = {"torch.utils.tensorboard": None, "tensorboard": None}
    with unittest.mock.patch.dict(sys.modules, missing):
        status, out, errors = run_train("--tensorboard")
        assert_one_line(status, errors, "--tensorboard", "pip install tensorboard")
    assert not os.path.exists(out)
    skip_without("tensorboard")
    _, out, _ = run_train("--tensorboard", steps=2)
    os.remove(os.path.join(out, "result.json"))
    shutil.rmtree(os.path.join(out, "predictions"))
    with unittest.mock.patch.dict(sys.modules, missing):
        status, _, errors = resume(out)
        assert_one_line(status, errors, "pip install tensorboard")
