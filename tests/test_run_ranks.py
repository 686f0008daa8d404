"""Runs by several processes: the updates, scores and files of one process."""

import json
import os
import shutil
import tempfile

import numpy as np
import torch

from plumbing.folder import load_checkpoint
from tests import processes
from tests.world import files_of, log_of, tiny_world


def flags_of(out, *more, steps=3):
    """Flags of a short run on the tiny world, without dropout."""
    folder, weights = tiny_world()
    return ("--data", folder, "--weights", weights, "--amp", "off", "--lr", 1e-3, "--out",
            out, "--batch-size", 4, "--accumulate", 1, "--para-first", 0, "--epochs", 1,
            "--max-steps", steps, "--dropout", 0, *more)


def trained(world, *more, steps=3):
    """A run by so many processes that succeeds.   -> its folder"""
    out = os.path.join(tempfile.mkdtemp(prefix="minbert-ranks-"), "run")
    statuses, _, errors = processes.run(world, *flags_of(out, *more, steps=steps))
    assert statuses == [0] * world, f"{world} processes end with {statuses}: {errors}"
    return out


def state_of(out):
    return load_checkpoint(os.path.join(out, "last.pt"))


def assert_same_run(out, alone, what):
    """Same parameters, log and predictions, up to the order in which floats are added."""
    theta, expected = state_of(out)["theta"], state_of(alone)["theta"]
    apart = float((theta - expected).abs().max())
    assert apart <= 1e-5, f"{what}: θ differs by up to {apart:.2g} from one process's"
    assert len(log_of(out)) == len(log_of(alone))
    for line, other in zip(log_of(out), log_of(alone)):
        assert line.keys() == other.keys(), f"{what}: other names in the log"
        for name, value in other.items():
            # Of each slice, then averaged: as a ratio it is not the whole batch's.
            if "ratio" not in name and isinstance(value, float):
                assert abs(line[name] - value) <= 1e-3 + 1e-3 * abs(value), (
                    f"{what}: the log's {name} is {line[name]}, expected {value}")


def compare(*more, steps=3):
    alone = trained(1, *more, steps=steps)
    for world in (2, 3):
        assert_same_run(trained(world, *more, steps=steps), alone,
                        f"{' '.join(map(str, more))}, {world} processes")


def test_run_ranks__round_robin_and_sequential_make_the_updates_of_one_process():
    # Batches of 4: slices of 2 and 2; 1, 1 and 2. Of 2 on three ranks: 0, 1 and 1.
    compare("--option", "rr", "--accumulate", 2)
    compare("--option", "seq", "--con", "--batch-size", 2)
