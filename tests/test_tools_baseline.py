"""tools/baseline.py."""

import dataclasses
import os
import tempfile
import warnings

import numpy as np
import torch

import data
import heads
from tests.checks import assert_close, assert_equal
from tests.world import run_tool
from tools import baseline

SST, PARA, STS = heads.tasks()[:3]


def dataset_of(*texts):
    return data.Dataset("", [""] * len(texts), list(texts), None)


def test_tools_baseline__features_of_a_pair_say_what_both_have():
    found = baseline.features((["a", "b"], ["b", "c"]))
    # Words and neighbors: a, b, ab and b, c, bc; one of five, one of three of the words.
    assert_equal({name for name in found if name[0] == "both"}, {("both", ("b",))})
    assert_equal(sum(name[0] == "one" for name in found), 4)
    assert_close([found["share of", "words"], found["share of", "n-grams"]], [5 / 3, 1])


def test_tools_baseline__features_seen_once_or_twice_do_not_count():
    columns = baseline.columns_of(dataset_of((["a", "b"],), (["a", "c"],), (["b", "a"],),
                                             (["c", "b"],)))
    assert_equal(set(columns), {("a",), ("b",), baseline.BIAS})
    assert_equal(columns[baseline.BIAS], 2, "the bias is the last column")
    X = baseline.matrix(dataset_of((["a"],), (["x"],)), columns).to_dense()
    assert_equal(X[:, columns["a",]].tolist(), [1.0, 0.0])
    assert_equal(X[:, 2].tolist(), [1.0, 1.0])


def test_tools_baseline__the_bias_is_not_penalized():
    # y = 1, 1, 4, 4 and x = 1, 1, 0, 0. Minimal: mean (w x + b - y)² + p w² / 2, so
    # b = mean(y) - w / 2, and w = 2 cov(x, y) / (2 var(x) + p) = -1.5 / (.5 + p).
    X = torch.tensor([[1.0, 1], [1, 1], [0, 1], [0, 1]]).to_sparse()
    y = torch.tensor([1.0, 1, 4, 4])
    for penalty, w in ((0.0, -3), (1.0, -1), (1e6, 0)):
        assert_close(baseline.fit(STS, X, y, penalty)[:, 0], [w, 2.5 - w / 2], 1e-3)


def write_data(labels):
    """A data folder whose tasks have these labels.   {split: {task name: [label, …]}}"""
    folder = tempfile.mkdtemp()
    for split, by_task in labels.items():
        for task in (SST, PARA, STS):
            lines = ["\t".join(["id", *task.texts, task.label])]
            lines += ["\t".join([f"{split}{i}", *(f"text {i}" for _ in task.texts), str(y)])
                      for i, y in enumerate(by_task[task.name])]
            with open(data.path_of(folder, task, split), "w") as file:
                file.write("\n".join(lines) + "\n")
    return folder


def test_tools_baseline__the_majority_class_is_that_of_train():
    folder = write_data({
        "train": {"sst": [3, 3, 1], "para": [0, 0, 1], "sts": [1, 2, 3]},
        "dev": {"sst": [1, 1, 3, 1], "para": [1, 0, 1, 1], "sts": [1, 2, 3, 4]}})
    # On dev 1 of 4 and 1 of 4 are right, and r is 0: (.25 + .25 + .5) / 3.
    scores = baseline.majority_scores(folder, (SST, PARA, STS))
    assert_close(list(scores.values()), [.25, .25, 0, 1 / 3])
    truth = {"sst": [3, 3], "para": [1, 0], "sts": [1, 2]}
    scores = baseline.majority_scores(folder, (SST, PARA, STS), truth)
    assert_close([scores["sst"], scores["para"], scores["sts"]], [1, .5, 0])


def test_tools_baseline__a_metric_that_is_not_a_number_counts_as_0():
    labels = {"sst": [0, 4] * 5, "para": [0, 1] * 5, "sts": [0, 5] * 5}
    undefined = dataclasses.replace(SST, metric=lambda predictions, labels: float("nan"))
    folder = write_data({"train": labels, "dev": labels})
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        for scores in (baseline.majority_scores, baseline.ngram_scores):
            assert_equal(scores(folder, (undefined,)), {"sst": 0.0, "overall": 0.0})


def test_tools_baseline__prints_both_rows():
    labels = {"sst": [0, 4] * 5, "para": [0, 1] * 5, "sts": [0, 5] * 5}
    folder = write_data({"train": labels, "dev": labels})
    assert os.listdir(folder)
    status, output, errors = run_tool(baseline, "--data", folder)
    assert_equal(status, 0, errors)
    assert_equal([line.split()[0] for line in output.splitlines()], ["n-grams", "majority"])
    assert np.isfinite([float(word) for word in output.split() if "." in word]).all()
