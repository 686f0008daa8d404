"""What counting words achieves: linear models, for comparison with a BERT.

    python tools/baseline.py [--data DIR]

4.2  features()   words and word pairs; of two sentences also what they share and what not
4.2  fit()        logistic or ridge regression on them, by the task's own loss

A majority class is the other thing to compare with; it is printed too. The strength of the
L2 penalty is the best of PENALTIES on dev, which flatters the baseline a little.
"""

import argparse
import os
import re
import sys
from collections import Counter

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data                                                         # noqa: E402
import heads                                                        # noqa: E402
from plumbing import run, sources                                   # noqa: E402

PENALTIES = 3e-4, 1e-3, 3e-3, 1e-2, 3e-2


def words(text):
    return re.findall(r"\w+|[^\w\s]", text.lower())


def features(texts):
    """One or two lists of words -> {feature: value}.

    Of one sentence: its words and pairs of neighbors. Of two: the same for what both share
    and for what only one has, and how large a share is shared.
    """
    bags = [set(text) | set(zip(text, text[1:])) for text in texts]
    if len(bags) == 1:
        return dict.fromkeys(bags[0], 1.0)
    a, b = bags
    found = {("both", part): 1.0 for part in a & b} | {("one", part): 1.0 for part in a ^ b}
    for name, one, two in (("words", *map(set, texts)), ("all", a, b)):
        found[name, "share"] = 5 * len(one & two) / max(1, len(one | two))
    return found


def matrix(dataset, columns):
    """-> sparse [N, F + 1], F = len(columns), with a last column of ones"""
    entries = [(row, columns[name], value) for row, texts in enumerate(dataset.tokens)
               for name, value in {**features(texts), None: 1.0}.items() if name in columns]
    *places, values = zip(*entries)
    return torch.sparse_coo_tensor(places, values, (len(dataset), len(columns)),
                                   check_invariants=True)


def fit(task, X, y, penalty):
    """Weights [F + 1, C] that minimise the task's loss + penalty ‖w‖² / 2.

    Not of the last row, the bias.
    """
    w = torch.zeros(X.size(1), task.num_outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = task.loss((X @ w).squeeze(-1), y) + penalty / 2 * w[:-1].square().sum()
        loss.backward()
        return loss
    optimizer.step(closure)
    return w.detach()


def scores(folder):
    """Of a data folder, on dev: {"words": {task name: score}, "majority": {…}}"""
    result = {"words": {}, "majority": {}}
    for task in heads.tasks():
        train, dev = (data.load(folder, task, split, words) for split in ("train", "dev"))
        counts = Counter(name for texts in train.tokens for name in features(texts))
        frequent = [name for name, count in counts.items() if count > 2]
        columns = {name: k for k, name in enumerate([*frequent, None])}
        X, X_dev = matrix(train, columns), matrix(dev, columns)
        y = torch.tensor(train.labels)
        result["words"][task.name] = max(
            task.metric(task.predict((X_dev @ fit(task, X, y, penalty)).squeeze(-1)),
                        dev.labels) for penalty in PENALTIES)
        commonest = Counter(train.labels.tolist()).most_common(1)[0][0]
        # A constant has no correlation with anything.
        result["majority"][task.name] = 0.0 if task.metric is heads.pearson else (
            task.metric(np.full(len(dev), commonest), dev.labels))
    for row in result.values():
        row["overall"] = heads.overall_score({task: row[task.name]
                                              for task in heads.tasks()})
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="DIR", help="as in train.py")
    args = parser.parse_args()

    def command():
        for name, row in scores(sources.find(args.data, sources.SAMPLE)[0]).items():
            print(f"{name:9}" + "  ".join(f"{task} {score:.3f}"
                                          for task, score in row.items()))
        return 0
    return run.one_line(command)


if __name__ == "__main__":
    sys.exit(main())
