"""tools/bench.py."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import subprocess
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
from tests.checks import assert_close, assert_equal, assert_one_line, assert_raises
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
    result = timing.Result("M", {"a": 3, "c": 3}, {
        "a": [timing.Line("a", "x", .5, 2.0, 5.0, 1.0),
              timing.Line("b", "x", .3, 2.0, 5.0, 1.0)],
        "c": [timing.Skipped("c", "no transformers")]}, {"a": {}, "c": {}})
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
    result = timing.Result("M", {"memory": 3, "a": 3}, {
        "memory": [line(4.0, 4.2), line(30.0)],
        "a": [timing.Line("a", "x", .5, 2.0, 5.0, 1.0)]}, {"memory": {}, "a": {}})
    table = result.markdown()
    assert "| S | rr | float32 | 4.00 | θ 4.00 | 4.20 (1.05) | 6 GB |" in table
    assert "| 30.00 | θ 30.00 |  | none of these |" in table
    assert "| a | x | 2 | 5 | 0.40 |" in table
    path = os.path.join(tempfile.mkdtemp(), "bench")
    result.write(path)
    assert_equal(timing.Result.read(path + ".json"), result)


def test_tools_bench__memory_is_of_no_more_tokens_than_the_model_has_positions_for():
    # The sample's BERT has 64 positions, a batch of Table 1 has 128 tokens.
    folder, weights = tiny_world()
    setup = bench.Setup(folder, weights, "cpu")
    short = dataclasses.replace(setup.shapes["weights"], max_position_embeddings=6)
    setup.shapes, asked = {"short": short, "bert-base": bert.BertConfig(**SMALL)}, []
    with unittest.mock.patch.multiple(memory, LARGE=short, LENGTH=12, measured_peak=(
            lambda setup, shape, case, precision: asked.append(shape) or 1.0)):
        lines = memory.lines(setup, bench.ours_of)
        case = memory.CASES["rr --con"]
        assert memory.peak(functools.partial(bench.ours_of, setup, case, timing.FLOAT32),
                           short, setup.device, contextlib.nullcontext) >= 0
    assert_equal({line.shape for line in lines},
                 {"short, 6 tokens", "bert-base", "bert-large, 6 tokens"})
    assert_equal(set(asked), {"short", "bert-base", "bert-large"})
    setup.roofline = lambda *_: 1.0
    with unittest.mock.patch.object(timing, "both_encoders", lambda config, *_: [
            bert.BertModel(config) for _ in range(2)]):
        notes = [line.note for line in timing.encoders(setup, rows=2, tokens=9)]
    assert_equal(notes, ["2 rows of 6 tokens"] * 2 + ["2 rows of 9 tokens"] * 2)


def test_tools_bench__a_process_that_cannot_measure_memory_is_one_line():
    folder, weights = tiny_world()
    setup = bench.Setup(folder, weights, "cpu")
    case = memory.CASES["rr --con"]
    for status, said, word in ((-9, "", "SIGKILL"), (2, "x\nbench.py: error: y\n", "y")):
        child = subprocess.CompletedProcess([], status, "", said)
        with unittest.mock.patch.object(subprocess, "run", lambda *_, **__: child), \
                assert_raises("rr --con", "could not be measured", word):
            memory.measured_peak(setup, "weights", case, timing.FLOAT32)


# --- Its file ---

@contextlib.contextmanager
def quick(machine="M", missing=()):
    """Within this, bench.py is on this machine and measures nothing, only counts calls."""
    counted = iter(range(1, 100))

    def measure(name):
        if name in missing:
            raise ModuleNotFoundError(name=name)
        return [timing.Line(name, "x", None, 1.0, 2.0, 1.0)]
    with unittest.mock.patch.multiple(
            timing.Machine, description=lambda self: machine,
            measure=lambda self, shapes: {"GB a second": next(counted)}), \
            unittest.mock.patch.object(bench, "MEASUREMENTS", {
                name: lambda setup, name=name: measure(name)
                for name in ("adamw", "tokenizer")}):
        yield


def run_bench(out, *words):
    """On the tiny world.   -> (exit status, stdout, stderr)"""
    folder, weights = tiny_world()
    return run_tool(bench, *words, "--data", folder, "--weights", weights, "--out", out)


def test_tools_bench__numbers_below_1_and_empty_words_are_refused():
    for flag in ("--repeats", "--steps"):
        for value in ("0", "-1", "1.5", "x"):
            status, _, errors = run_tool(bench, "tokenizer", flag, value)
            assert_one_line(status, errors, flag, "of at least 1", repr(value))
    for flag in ("--out", "--data", "--weights"):
        status, _, errors = run_tool(bench, "tokenizer", flag, "")
        assert_one_line(status, errors, flag, "empty")


def test_tools_bench__another_machines_lines_are_never_dropped():
    out = os.path.join(tempfile.mkdtemp(), "bench")
    with quick("M"):
        assert_equal(run_bench(out)[0], 0)
    before = pathlib.Path(out + ".json").read_text()
    with quick("another M"):
        status, _, errors = run_bench(out, "adamw")
        assert_one_line(status, errors, out + ".json", "(M)", "another M", "--out")
    assert_equal(pathlib.Path(out + ".json").read_text(), before)
    assert_equal([timing.own_place(out, machine) for machine in ("M", "another M")],
                 [out, out + "-2"])
    with quick("another M"):
        run_bench(out + "-2")
    assert_equal([timing.own_place(out, machine) for machine in ("another M", "N")],
                 [out + "-2", out + "-3"])


def test_tools_bench__what_a_call_does_not_measure_stays_as_it_was():
    # Of two measurements one is made again; one is of an older version; one lacks a module.
    out = os.path.join(tempfile.mkdtemp(), "bench")
    with quick():
        run_bench(out, "--repeats", 3)
        result = timing.Result.read(out + ".json")
        result.keep("old", [timing.Line("old", "x", None, 1.0, 2.0, 1.0, "note")], 3, {},
                    list(bench.MEASUREMENTS))
        result.write(out)
        _, table, _ = run_bench(out, "adamw", "--repeats", 1)
    result = timing.Result.read(out + ".json")
    assert_equal(result.repeats, {"adamw": 1, "tokenizer": 3, "old": 3})
    assert_equal([result.rates[name]["GB a second"] for name in ("adamw", "tokenizer")],
                 [2, 1])
    assert "medians of 1 or 3, as each line says; a missed" in table
    assert_equal([line.rpartition(" | ")[2] for line in table.splitlines()
                  if " | x | " in line],
                 ["median of 1 |", "median of 3 |", "note; median of 3 |"])
    before = pathlib.Path(out + ".md").read_text()
    with quick(missing=["adamw"]):
        _, _, errors = run_bench(out, "adamw")
    assert "no adamw" in errors and pathlib.Path(out + ".md").read_text() == before


def test_tools_bench__lines_of_an_older_file_have_its_repeats_and_rates():
    path = os.path.join(ROOT, "results", "bench-avx2.json")
    with open(path) as file:
        assert_equal(json.load(file)["repeats"], 3)
    result = timing.Result.read(path)
    assert_equal(result.repeats, {"encoder": 3, "surgery": 3})
    assert 20 < result.rates["surgery"]["GB a second"] < 21


def test_tools_bench__a_file_of_another_kind_is_refused_by_its_name_and_stays():
    line = {"what": "a", "against": "b", "target": None, "ours": 1.0, "theirs": 1.0,
            "roofline": 1.0, "note": ""}
    whole = {"machine": "M", "repeats": 3, "lines": {"a": [line]}, "rates": {}}
    out = os.path.join(tempfile.mkdtemp(), "bench")
    with quick():
        for content in ("", "{}", '{"dev": {}}', "[]", *map(json.dumps, (
                {**whole, "lines": {"a": line}}, {**whole, "lines": {"a": [{"b": 1}]}},
                {**whole, "lines": {"a": [{**line, "ours": "x"}]}},
                {**whole, "lines": {"a": [{**line, "theirs": 0}]}},
                {**whole, "lines": {"a": [{**line, "what": None}]}},
                {**whole, "repeats": {}}, {**whole, "repeats": "3"}))):
            with open(out + ".json", "w") as file:
                file.write(content)
            status, _, errors = run_bench(out)
            assert_one_line(status, errors, out + ".json", "needed", "--out")
            assert_equal(pathlib.Path(out + ".json").read_text(), content)
        os.remove(out + ".json")
        with open(out + ".md", "w") as file:
            file.write("A page.")
        status, _, errors = run_bench(out)
        assert_one_line(status, errors, out + ".md", "--out")
        assert_equal(pathlib.Path(out + ".md").read_text(), "A page.")


def test_tools_bench__help_of_it_and_other_tools_has_usage_and_examples_in_80_columns():
    for module in (analyze, baseline, bench, export, predict, pretrain, table):
        said, name = io.StringIO(), module.__name__.replace(".", "/")
        with (contextlib.redirect_stdout(said), contextlib.suppress(SystemExit),
              unittest.mock.patch.dict(os.environ, COLUMNS="80")):
            module.main(["--help"])
        lines = said.getvalue().splitlines()
        assert lines[0].startswith(f"usage: python {name}.py "), lines[0]
        assert max(map(len, lines)) <= 80, f"{name}: {max(lines, key=len)}"
