"""Runs by several processes: every kind of update, resuming, and all that can end them."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from tests import processes
from tests.checks import assert_equal
from tests.processes import (
    assert_same_run,
    compare,
    flags_of,
    interrupted,
    state_of,
    trained,
)
from tests.world import skip_without_torchjd, tiny_world


def test_run_torchrun__round_robin_and_sequential_make_the_updates_of_one_process():
    # Batches of 4: slices of 2 and 2; 1, 1 and 2. Of 2 on three ranks: 0, 1 and 1.
    compare("--option", "rr", "--accumulate", 2)
    compare("--option", "seq", "--con", "--batch-size", 2)


def test_run_torchrun__frozen_encoder_and_idle_heads_make_the_updates_of_one_process():
    compare("--freeze", "--hlh", "--smart", "--tasks", "sst,sts", "--weight-decay", .1)


def test_run_torchrun__a_library_treatment_makes_the_updates_of_one_process():
    skip_without_torchjd()
    compare("--option", "torchjd:UPGrad")


def test_run_torchrun__more_or_fewer_processes_resume():
    more = "--option", "gvac", "--smart"
    alone = trained(1, *more, steps=6)
    for before, after in ((3, 2), (2, 1), (1, 3)):
        out, _ = interrupted(before, *more)
        statuses, output, errors = processes.run(after, "--resume", out)
        assert statuses == [0] * after and "other random numbers" not in output, errors
        assert_same_run(out, alone, f"{before} processes, then {after}")
    for before, after in ((3, 2), (2, 1), (1, 2)):
        out, _ = interrupted(before, "--dropout", .1)
        statuses, output, errors = processes.run(after, "--resume", out)
        assert statuses == [0] * after, errors
        assert output.count(f"from {before} process") == 1, output
        assert output.count("other random numbers") == 1, output


def test_run_torchrun__a_request_to_one_rank_stops_all_at_the_same_step():
    for call, number in (("multitask.treat", 2), ("heads.evaluate", 2)):
        out = os.path.join(tempfile.mkdtemp(), "run")
        statuses, output, errors = processes.run(
            3, *flags_of(out), at={"rank": 1, "call": call, "number": number,
                                   "signal": signal.SIGINT})
        assert_equal(statuses, [130] * 3, errors)
        assert output.count("stopped after update") == 1
        statuses, _, errors = processes.run(3, "--resume", out)
        assert statuses == [0] * 3, errors
        assert_same_run(out, trained(1), f"a request in {call}")


def test_run_torchrun__a_rank_that_dies_ends_all_with_one_line():
    for rank, call in ((0, "multitask.treat"), (1, "multitask.treat"),
                       (2, "heads.evaluate")):
        out = os.path.join(tempfile.mkdtemp(), "run")
        statuses, _, errors = processes.run(
            3, *flags_of(out, "--checkpoint-every", 1), limit=30,
            at={"rank": rank, "call": call, "number": 2, "signal": signal.SIGKILL})
        assert_equal(statuses, [-9 if r == rank else 1 for r in range(3)], errors)
        lines = [line for line in errors.splitlines() if "train.py" in line]
        assert len(lines) == 1 and f"--resume {out}" in lines[0], errors
        statuses, _, errors = processes.run(2, "--resume", out)
        assert statuses == [0, 0], errors
        assert_same_run(out, trained(1), f"rank {rank} killed in {call}")


def test_run_torchrun__a_mistake_of_one_rank_ends_all_with_its_line():
    for rank in (0, 2):
        out = os.path.join(tempfile.mkdtemp(), "run")
        statuses, _, errors = processes.run(
            3, *flags_of(out), at={"rank": rank, "call": "train.prepare", "number": 1})
        assert_equal(statuses, [2] * 3, errors)
        assert_equal(errors, f"train.py: error: rank {rank} has no such file\n")
        assert not os.path.exists(out)


def test_run_torchrun__other_data_on_another_rank_are_refused():
    # Each rank reads its own copy; that of rank 1 has other dev labels.
    folder, _ = tiny_world()
    place = tempfile.mkdtemp()
    for rank in range(2):
        shutil.copytree(folder, os.path.join(place, str(rank)))
    path = os.path.join(place, "1", "sts-dev.csv")
    with open(path, "a") as file:
        file.write("99\tnew\ta\tb\t1.0\n")
    out = os.path.join(tempfile.mkdtemp(), "run")
    statuses, _, errors = processes.run(2, *flags_of(out, "--data", f"{place}/{{rank}}"))
    assert_equal(statuses, [2, 2], errors)
    assert len(errors.splitlines()) == 1 and "data" in errors and "differ" in errors


# --- torchrun itself ---

def torchrun(out, *more, then=None):
    """Two processes, started by torchrun; then(pid of torchrun) after their first update.

    -> (stdout, stderr). After 30 seconds torchrun would kill a process that hangs, and the
    line that it is to print would be missing.
    """
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
             "train.py", *map(str, flags_of(out, *more, steps=4000))]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True, cwd=processes.ROOT)
    log = os.path.join(out, "metrics.jsonl")
    try:
        while then and not (os.path.exists(log) and os.path.getsize(log)):
            assert child.poll() is None, child.communicate()[1]
            time.sleep(0.1)
        if then:
            then(child.pid)
        return child.communicate(timeout=120)
    finally:
        child.kill()


def test_run_torchrun__ctrl_c_and_sigterm_end_with_one_line_and_a_checkpoint():
    for number in (signal.SIGINT, signal.SIGTERM):
        out = os.path.join(tempfile.mkdtemp(), "run")
        output, errors = torchrun(
            out, "--epochs", 500, "--checkpoint-every", 1,
            then=lambda pid, number=number: os.kill(pid, number))
        assert output.count("stopped after update") == 1, output + errors
        assert "another process" not in errors
        assert f"after update {state_of(out)['step']} of" in output


def test_run_torchrun__a_killed_process_ends_all_with_one_line():
    def kill_one(pid):
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
        if not children.exists():
            raise unittest.SkipTest("needs Linux's /proc")
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    out = os.path.join(tempfile.mkdtemp(), "run")
    _, errors = torchrun(out, "--epochs", 500, then=kill_one)
    lines = [line for line in errors.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1 and f"--resume {out}" in lines[0], errors


def test_run_torchrun__a_mistake_is_one_line():
    _, errors = torchrun("/none/run", "--epochs", 0)
    lines = [line for line in errors.splitlines() if line.startswith("train.py: error")]
    assert len(lines) == 1 and "--epochs" in lines[0], errors
