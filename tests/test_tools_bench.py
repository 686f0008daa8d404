"""tools/bench.py."""

import json
import pathlib

import torch

import bert
import data
import multitask
from tests import ROOT
from tests.checks import assert_close
from tests.world import SMALL, gram_of, run_tool
from tools import bench


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


def test_tools_bench__the_readmes_table_is_a_results_file_word_for_word():
    tables = sorted(pathlib.Path(ROOT, "results").glob("bench-*.md"))
    readme = pathlib.Path(ROOT, "README.md").read_text(encoding="utf-8")
    assert any(table.read_text(encoding="utf-8") in readme for table in tables), (
        "copy results/bench-….md into the README, unchanged")
    for table in tables:
        result = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
        assert table.read_text(encoding="utf-8") == bench.markdown(result)


def test_tools_bench__counts_operations_and_marks_misses():
    # One layer, H = 16, wide 32: 4·16² + 2·16·32 = 2048 numbers. Two rows of three
    # tokens: 2·6·(2048 + 2·3·16) = 25728 operations.
    config = bert.BertConfig(**{**SMALL, "num_hidden_layers": 1})
    batch = data.Batch(torch.zeros(2, 3), None, None, None)
    assert bench.matrices(config) == 2048
    assert bench.forward_operations(config, {"sst": batch}) == 25728
    table = bench.markdown({"machine": "M", "repeats": 3, "lines": {
        "a": [bench.row("a", "x", .5, 2.0, 5.0, 1.0),
              bench.row("b", "x", .3, 2.0, 5.0, 1.0)],
        "c": [{"what": "c", "skipped": "no transformers"}]}})
    assert "| 0.40 | ≤ 0.5 | 1 | 2.0 |" in table and "**0.40**" in table
    assert "skipped: no transformers" in table
    _, _, errors = run_tool(bench, "nonsense")
    assert "nonsense" in errors and "adamw" in errors
