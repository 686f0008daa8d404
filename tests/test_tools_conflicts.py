"""tools/conflicts.py: cosines of gradients over many batches, and without their noise."""

import json
import os
import shutil
import tempfile
import unittest.mock

import numpy as np

import multitask
from tests.checks import assert_close, assert_equal, assert_one_line
from tests.world import run_tool, run_train, training_of
from tools import conflicts, gradients


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
    assert_equal(conflicts.side(grams, 0, 1), -1)
    seen = np.mean([multitask.cosines(gram)[0, 1] for gram in grams[1]])
    assert_close(seen, -.6 * np.sqrt(25 / 50 * 4 / 29), .02, "what one batch shows")
    assert_close(conflicts.signal(grams, 0), .5, .02)


def test_tools_conflicts__the_interval_holds_the_cosine_as_often_as_it_says():
    inside = sure = 0
    for seed in range(200):
        estimate, width = conflicts.expected(noisy(MU, .5, 6, seed), 0, 1)
        inside += abs(estimate + .6) < width
        sure += conflicts.side(noisy(0 * MU, 1.0, 6, seed), 0, 1) != 0
    assert 180 <= inside <= 199, f"{inside} of 200; it says 95%"
    assert 2 <= sure <= 20, f"{sure} of 200 have a side where there is none; it says 5%"


def test_tools_conflicts__noise_alone_has_no_cosine():
    nothing = noisy(0 * MU, 1.0, 4)
    assert_equal(conflicts.expected(nothing, 0, 1), (None, None))
    assert_equal(conflicts.side(nothing, 0, 1), 0)
    assert_equal(conflicts.expected({size: gram + np.nan for size, gram in
                                     nothing.items()}, 0, 1), (None, None))
    cells = [conflicts.expected_cell({"expected": [mean, width], "side": side})
             for mean, width, side in ((None, None, 0), (None, None, -1), (-.1234, .05, -1),
                                       (.04, .25, 0), (.04, 10.25, 0), (.8, 1.2, 1),
                                       (.2, .3, 1))]
    assert_equal(cells, ["noise", "**below 0**", "**-.123 ± .050**", "+.040 ± .250",
                         "noise", "**above 0**", "**above 0**"])


def test_tools_conflicts__means_of_4_and_16_batches_are_those_of_the_batches():
    training, _ = training_of("--con", "--option", "pcgrad", "--dropout", "0")
    names, flat = list(training.rows), training.flat
    before = flat.theta.clone()
    grams = conflicts.measure(training, 1, np.random.default_rng(7))
    assert flat.theta.equal(before), "θ was changed"
    spans = [block.span for block in flat.blocks.values() if block.shared]
    gradients, rng = [], np.random.default_rng(7)
    for _ in range(16):
        multitask.backward(flat, [{name: conflicts.random_batch(training, name, rng)
                                   for name in names}], training.loss, training.rows)
        gradients.append(flat.G.double().numpy().copy())
    for size in conflicts.SIZES:
        means = np.array(gradients).reshape(16 // size, size, *flat.G.shape).mean(1)
        right = np.array([[mean[:, span] @ mean[:, span].T for span in spans]
                          for mean in means])
        assert_close(grams[size], right, 1e-5 * abs(right).max(), f"{size} batches")


def test_tools_conflicts__examples_are_drawn_independently():
    # Two batches of 4 of a pass without replacement share none of the 40 examples; drawn
    # independently, they do in 1 - (36/40)^4 = 34% of all cases or a little less.
    training, _ = training_of("--option", "pcgrad")
    dataset, seen = training.sets["train"]["sst"], []
    dataset.labels = np.arange(40, dtype=np.float32)
    rng = np.random.default_rng(0)
    for _ in range(200):
        one, two = (set(conflicts.random_batch(training, "sst", rng).labels.tolist())
                    for _ in range(2))
        seen.append(bool(one & two))
    assert_close(np.mean(seen), .34, .1)


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
    assert_equal(kept, last, "the same θ, whatever was measured before")
    assert start["cosines"] != last["cosines"]
    assert "| 3 | sst, para |" in shown and "A run with `rr con`" in shown
    with unittest.mock.patch.object(conflicts, "measure", None):
        for name in ("conflicts.md", "conflicts.json"):
            status, _, errors = run_tool(conflicts, out)
            assert_one_line(status, errors, f"{name} is there already", "--out")
            os.remove(os.path.join(out, name))


def test_tools_conflicts__other_seeds_draw_other_heads():
    _, out, _ = run_train("--con", steps=1)
    status, _, errors = run_tool(conflicts, out, "--groups", 2, "--at", "start", "--out",
                                 os.path.join(out, "own"))
    assert_equal(status, 0, errors)
    status, shown, errors = run_tool(conflicts, out, "--groups", 2, "--seeds", 3)
    assert_equal(status, 0, errors)
    places = []
    for name in ("own", "conflicts"):
        with open(os.path.join(out, f"{name}.json"), encoding="utf-8") as file:
            places += json.load(file)["places"]
    assert_equal(places[0], places[1], "seed 0 is the run's own")
    assert places[1]["cosines"] != places[2]["cosines"] != places[3]["cosines"]
    assert "| seed | sst, para |" in shown

    def drawn(*expected):
        return conflicts.Place(0, {gradients.SHARED: {pair: {"expected": said, "side": 0}
                               for pair, said in zip("ab", expected)}}, {})
    lines = conflicts.by_seed([drawn([.1, .02], [.1, .02]), drawn([.2, .02], [None, None]),
                               drawn([.3, .02], [.1, .02])], 2, "").splitlines()
    # .1, .2, .3: 4.303 · .1 / √3 = .248
    assert_equal(lines[-2:], ["| 2 | +.300 ± .020 | +.100 ± .020 |",
                              "| mean | +.200 ± .248 |  |"])


def test_tools_conflicts__the_file_of_a_runs_treatment_is_not_needed():
    path = os.path.join(tempfile.mkdtemp(), "mine.py")
    with open(path, "w") as file:
        file.write("def mine(gram): return gram[0] * 0 + 1\n")
    _, out, _ = run_train("--option", f"{path}:mine", steps=1)
    os.remove(path)
    status, _, errors = run_tool(conflicts, out, "--groups", 2, "--at", "start")
    assert_equal(status, 0, errors)


def test_tools_conflicts__what_cannot_be_measured_gets_one_line():
    _, alone, _ = run_train("--tasks", "sst", steps=1)
    _, frozen, _ = run_train("--freeze", steps=1)
    _, two, _ = run_train(steps=1)
    _, con, _ = run_train("--con", steps=1)
    _, smart, _ = run_train("--smart", steps=1)
    shutil.copy(os.path.join(con, "last.pt"), os.path.join(two, "other.pt"))
    shutil.copy(os.path.join(smart, "last.pt"), os.path.join(two, "smart.pt"))
    for words, needed in (([alone], "two tasks"), ([frozen], "--freeze"),
                          ([two, "--at", "other.pt"], "of another run"),
                          ([two, "--at", "smart.pt"], "of another run"),
                          ([two, "--at", "start", "none.pt"], "there is no"),
                          ([two, "--out", "no/such/place"], "--out"),
                          ([two, "--out", two + "/"], "--out"),
                          ([two, "--at", "start", "--seeds", "3"], "contradict"),
                          ([tempfile.mkdtemp(), "--at", "start"], "args.json")):
        with unittest.mock.patch.object(conflicts, "measure", None):
            status, _, errors = run_tool(conflicts, *words)
        assert_equal(status, 2)
        assert needed in errors and errors.count("\n") == 1, errors
