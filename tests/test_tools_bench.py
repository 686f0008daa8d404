"""tools/bench.py."""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import tempfile
import time
import unittest.mock

import numpy as np
import torch

import bert
import data
import multitask
import smart
from tests import ROOT
from tests.checks import assert_close, assert_equal
from tests.world import SMALL, gram_of, run_tool, tiny_world
from tools import (
    analyze,
    baseline,
    bench,
    export,
    memory,
    predict,
    pretrain,
    table,
    timing,
)


def test_tools_bench__both_sides_of_surgery_and_vaccine_compute_the_same():
    # Two tasks, so that no random order matters; three steps, so that φᵀ moves.
    torch_rng = torch.Generator().manual_seed(0)
    vaccine, target = multitask.GradVac(), [[0.0] * 2, [0.0] * 2]
    for _ in range(3):
        rows = torch.randn(2, 10, generator=torch_rng, dtype=torch.float64)
        rows[1] -= rows[0]
        copies = [[row[:6].view(2, 3), row[6:]] for row in rows]
        for C, state in ((multitask.pcgrad(gram_of(rows.numpy()), [[1], [0]]), None),
                         (vaccine(gram_of(rows.numpy()), [[1], [0]]), target)):
            got = bench.project_copies(copies, state)
            assert_close(torch.cat([g.flatten() for g in got]), C.sum(0) @ rows.numpy(),
                         1e-9)


def test_tools_bench__the_recorded_table_is_what_its_numbers_give():
    for path in pathlib.Path(ROOT, "results").glob("bench-*.md"):
        result = timing.Result.read(path.with_suffix(".json"))
        assert_equal(path.read_text(encoding="utf-8"), result.markdown())


def test_tools_bench__the_first_round_warms_up_and_is_not_measured():
    # Each side takes 100 s at first. Then ours takes 1, 5 and 3 s, theirs 2, 2 and 9.
    now, ours, theirs = [0.0], iter([100, 1, 5, 3]), iter([100, 2, 2, 9])

    def take(side):
        now[0] += next(side)
    medians = timing.alternate([lambda: take(ours), lambda: take(theirs)], 3,
                               lambda: now[0])
    assert_close(medians, [3, 2])


def test_tools_bench__an_epoch_is_scaled_up_from_steps_of_all_lengths():
    # Steps of 2 rows, of the lengths (1, 3), (2, 2), (5, 6) and (7, 4): 6, 4, 12, 14.
    lengths = {"sst": np.array([1, 3, 2, 2, 5, 6, 7, 4])}
    steps = [{"sst": np.array([2 * i, 2 * i + 1])} for i in range(4)]
    epoch = timing.Epoch(steps, lengths)
    assert_equal((epoch.padded, epoch.real), (36, 30))
    assert_equal([epoch.tokens(step) for step in epoch.sample(2).steps], [6, 14])


def test_tools_bench__counts_operations_and_marks_misses():
    # One layer, H = 16, wide 32: 4·16² + 2·16·32 = 2048 numbers. Two rows of three
    # tokens: 2·6·(2048 + 2·3·16) = 25728 operations.
    config = bert.BertConfig(**{**SMALL, "num_hidden_layers": 1})
    batch = data.Batch(torch.zeros(2, 3), None, None, None)
    assert timing.matrix_parameters(config) == 2048
    assert timing.forward_operations(config, {"sst": batch}) == 25728
    result = timing.Result("M", 3, {
        "a": [timing.Line("a", "x", .5, 2.0, 5.0, 1.0),
              timing.Line("b", "x", .3, 2.0, 5.0, 1.0)],
        "c": [timing.Skipped("c", "no transformers")]}, {})
    table = result.markdown()
    assert "| 0.40 | ≤ 0.5 | 1 | 2.0 |" in table and "**0.40**" in table
    assert "skipped: no transformers" in table
    path = os.path.join(tempfile.mkdtemp(), "bench")
    result.write(path)
    assert_equal(timing.Result.read(path + ".json"), result)


def test_tools_bench__a_roofline_is_operations_over_speed_plus_bytes_over_bandwidth():
    machine = timing.Machine(torch.device("cpu"), lambda: 0.0)
    machine.speed, machine.bandwidth = {(timing.FLOAT32, 16): 1000.0}, 50.0
    config = bert.BertConfig(**SMALL)
    assert_close(machine.roofline(config, 500, timing.FLOAT32, 100), .5 + 2)


def test_tools_bench__a_ring_of_processes_adds_up():
    # Of three, each sends two of its thirds twice: 4/3 of 9 bytes.
    assert_close(timing.sent(9, 3), 12)
    assert timing.all_reduce(2, 1000, 1, time.perf_counter) > 0


def test_tools_bench__the_arithmetic_of_the_page_on_scaling():
    text = pathlib.Path(ROOT, "docs", "scaling.md").read_text(encoding="utf-8")
    table = text.partition("<!-- arithmetic -->")[2].partition("<!-- end -->")[0]
    base, P, checked = bert.BertConfig(), 109.5e6, 0
    computing = 6 * timing.matrix_parameters(base) * 3 * 16 * 64 / 100e12
    assert f"{1e3 * computing:.1f} ms a step" in text
    for row in table.strip().splitlines()[3:]:
        N, speed, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        expected = []
        for K in (1, 3):
            size = timing.sent(4 * K * P, int(N))
            expected += [f"{size / 1e9:.2f}", f"{1e3 * size / float(speed) / 1e9:.1f}"]
        sending = size / float(speed) / 1e9
        expected.append(f"{computing / (computing + sending):.0%}")
        assert_equal(cells, expected)
        for times in (3, 4):        # SMART; four accumulated batches
            assert f"{times * computing / (times * computing + sending):.0%}" in text
        checked += 1
    assert_equal(checked, 2)


def test_tools_bench__our_side_takes_the_step_of_train():
    folder, weights = tiny_world()
    with unittest.mock.patch.object(bench, "BATCH_SIZE", 4):
        setup = bench.Setup(folder, weights, "cpu")
        ours = bench.Ours(setup, setup.shapes["weights"], timing.FLOAT32, "gvac",
                          smart.Settings())
        theta = ours.flat.theta.clone()
        losses, said = ours.step(ours.median_batches())
    assert not torch.equal(ours.flat.theta, theta)
    assert {"loss_sst", "smooth_para", "bregman_sts"} <= set(losses)
    assert "target_sst_para" in said


def test_tools_bench__words_that_name_no_measurement_are_refused():
    _, _, errors = run_tool(bench, "nonsense")
    assert "nonsense" in errors and "adamw" in errors


def test_tools_bench__activations_of_any_shape_follow_from_four_counts():
    # Counted on one and two layers with one and two rows; looked at with four and five.
    folder, weights = tiny_world()
    setup = bench.Setup(folder, weights, "cpu")
    config = dataclasses.replace(setup.shapes["weights"], num_hidden_layers=4)
    for case in memory.CASES.values():
        for precision in (timing.FLOAT32, timing.BFLOAT16):
            make = functools.partial(bench.ours_of, setup, case, precision)
            ours = make(config)
            counted = memory.saved_bytes(ours, memory.batch_of(5, 12, setup.device))
            assert counted > 1000
            assert_close(memory.activations(make, config, rows=5, length=12) / counted, 1,
                         .01, f"{case.flags}, {precision.name}")
            numbers = memory.numbers(config, case, setup.tokenizer)
            assert_equal(numbers["θ"], ours.flat.theta.nbytes)
            assert_equal(numbers["G"], ours.flat.G.nbytes)
            assert_equal("θ̃" in numbers, ours.training.teacher is not None)


def test_tools_bench__memory_says_which_gpu_has_room():
    def line(computed, measured=None):
        return timing.Memory("S", "rr", "float32", computed, {"θ": computed}, measured)
    assert_equal([line(size).fits for size in (4.5, 4.6, 6.4, 13, 20, 21)],
                 [6, 8, 16, 16, 24, None])       # 1.1 times as much, and 1 GB
    result = timing.Result("M", 3, {"memory": [line(4.0, 4.2), line(30.0)],
                                    "a": [timing.Line("a", "x", .5, 2.0, 5.0, 1.0)]}, {})
    table = result.markdown()
    assert "| S | rr | float32 | 4.00 | θ 4.00 | 4.20 (1.05) | 6 GB |" in table
    assert "| 30.00 | θ 30.00 |  | none of these |" in table
    assert "| a | x | 2 | 5 | 0.40 |" in table
    path = os.path.join(tempfile.mkdtemp(), "bench")
    result.write(path)
    assert_equal(timing.Result.read(path + ".json"), result)


def test_tools_bench__help_of_it_and_other_tools_has_usage_and_examples_in_80_columns():
    for module in (analyze, baseline, bench, export, predict, pretrain, table):
        said, name = io.StringIO(), module.__name__.replace(".", "/")
        with (contextlib.redirect_stdout(said), contextlib.suppress(SystemExit),
              unittest.mock.patch.dict(os.environ, COLUMNS="80")):
            module.main(["--help"])
        lines = said.getvalue().splitlines()
        assert lines[0].startswith(f"usage: python {name}.py "), lines[0]
        assert max(map(len, lines)) <= 80, f"{name}: {max(lines, key=len)}"
