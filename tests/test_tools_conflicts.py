"""tools/conflicts.py: cosines of gradients over many batches, and without their noise."""

import json
import os
import shutil

import numpy as np

import multitask
from tests.checks import assert_close, assert_equal
from tests.world import run_tool, run_train, training_of
from tools import conflicts


def noisy(mu, sigma, groups, seed=0):
    """Inner products of gradients μ_k + noise, as measure() makes them.   mu [K, P]"""
    rng, found = np.random.default_rng(seed), {}
    g = mu + sigma * rng.normal(size=(groups * conflicts.SIZES[-1], *mu.shape))
    for size in conflicts.SIZES:
        mean = g.reshape(-1, size, *mu.shape).mean(1)               # [n, K, P]
        found[size] = mean @ mean.swapaxes(-1, -2)
    return found


MU = np.zeros((2, 100))
MU[0, :2], MU[1, :2] = (3, 4), (-2, 0)      # cosine -.6


def test_tools_conflicts__the_expected_cosine_is_free_of_noise():
    # One batch has 100 · .5² = 25 of noise beside ‖μ‖² = 25 and 4.
    grams = noisy(MU, .5, 200)
    estimate, width = conflicts.expected(grams, 0, 1)
    assert_close(estimate, -.6, .03)
    assert 0 < width < .05
    seen = np.mean([multitask.cosines(gram)[0, 1] for gram in grams[1]])
    assert_close(seen, -.6 * np.sqrt(25 / 50 * 4 / 29), .02, "what one batch shows")
    assert_close(conflicts.signal(grams, 0), .5, .02)


def test_tools_conflicts__the_interval_holds_the_cosine_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        estimate, width = conflicts.expected(noisy(MU, .5, 6, seed), 0, 1)
        inside += abs(estimate + .6) < width
    assert 180 <= inside <= 199, f"{inside} of 200; it says 95%"


def test_tools_conflicts__noise_alone_has_no_cosine():
    assert_equal(conflicts.expected(noisy(0 * MU, 1.0, 4), 0, 1), (None, None))
    assert_equal(conflicts.cell(None, None), "noise")
    assert_equal(conflicts.cell(-.1234, .05), "**-.123 ± .050**")
    assert_equal(conflicts.cell(.04, .05), "+.040 ± .050")


def test_tools_conflicts__means_of_4_and_16_batches_are_those_of_the_batches():
    training, _ = training_of("--con", "--option", "pcgrad", "--dropout", "0")
    names, flat = list(training.rows), training.flat
    before = flat.theta.clone()
    grams = conflicts.measure(training, 1)
    assert flat.theta.equal(before), "θ was changed"
    for stream in training.streams.values():
        stream.position = [0, 0]
    spans = [block.span for block in flat.blocks.values() if block.shared]
    gradients = []
    for _ in range(16):
        multitask.backward(flat, [{name: training.next_batch(name) for name in names}],
                           training.loss, training.rows)
        gradients.append(flat.G.double().numpy().copy())
    for size in conflicts.SIZES:
        means = np.array(gradients).reshape(16 // size, size, *flat.G.shape).mean(1)
        right = np.array([[mean[:, span] @ mean[:, span].T for span in spans]
                          for mean in means])
        assert_close(grams[size], right, 1e-5 * abs(right).max(), f"{size} batches")


def test_tools_conflicts__a_run_at_its_start_and_at_its_checkpoint():
    status, out, errors = run_train("--con", steps=3)
    assert_equal(status, 0, errors)
    shutil.copy(os.path.join(out, "last.pt"), os.path.join(out, "kept.pt"))
    status, shown, errors = run_tool(conflicts, out, "--groups", 2, "--at", "kept.pt",
                                     "start", "last.pt")
    assert_equal(status, 0, errors)
    with open(os.path.join(out, "conflicts.json"), encoding="utf-8") as file:
        kept, start, last = json.load(file)["places"]
    assert_equal([start["step"], last["step"]], [0, 3])
    assert_equal(kept, last, "the same θ and the same batches, from whatever was before")
    assert start["cosines"] != last["cosines"]
    assert "| 3 | sst, para |" in shown and "A run with `rr con`" in shown


def test_tools_conflicts__what_cannot_be_measured_gets_one_line():
    status, alone, _ = run_train("--tasks", "sst", steps=1)
    _, two, _ = run_train(steps=1)
    _, con, _ = run_train("--con", steps=1)
    shutil.copy(os.path.join(con, "last.pt"), os.path.join(two, "other.pt"))
    for words, needed in (([alone], "needed two tasks"),
                          ([two, "--at", "other.pt"], "of another run"),
                          ([two, "--at", "none.pt"], "there is no"),
                          ([os.path.join(two, "best")], "args.json")):
        status, _, errors = run_tool(conflicts, *words)
        assert_equal(status, 2)
        assert needed in errors and errors.count("\n") == 1, errors
