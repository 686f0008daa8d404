"""What a bag of n-grams achieves: linear models to compare a BERT with.

    python tools/baseline.py [--data DIR]

4.2  features()          words and word pairs; for two sentences, which are shared
4.2  fit()               logistic or ridge regression on them, with the task's own loss
4.2  majority_scores()   the other thing to compare with: always predict the majority class

The strength of the L2 penalty is the best of PENALTIES on dev, which flatters the baseline
a little.
Symbols: N examples, F features, C outputs of a task.
"""

import os
import re
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data
import heads
from plumbing import command, declared, sources

PENALTIES = 3e-4, 1e-3, 3e-3, 1e-2, 3e-2
BIAS = "bias"       # a feature that every example has; the names of all others are tuples


def words(text):
    return re.findall(r"\w+|[^\w\s]", text.lower())


def features(texts):
    """One or two lists of words -> {feature: value}.

    For one sentence: its words and its pairs of neighboring words. For two: those that both
    sentences have, those that only one has, and the share that both have.
    """
    bags = [{(word,) for word in text} | set(pairwise(text)) for text in texts]
    if len(bags) == 1:
        return dict.fromkeys(bags[0], 1.0)
    a, b = bags
    found = {("both", ngram): 1.0 for ngram in a & b}
    found.update({("one", ngram): 1.0 for ngram in a ^ b})
    found["share of", "words"] = 5 * jaccard(*map(set, texts))
    found["share of", "n-grams"] = 5 * jaccard(a, b)
    return found


def jaccard(a, b):
    """|a ∩ b| / |a ∪ b|, 0 for two empty sets"""
    return len(a & b) / max(1, len(a | b))


def columns_of(dataset):
    """Features that at least three examples have, and the bias last.   -> {feature: column}

    Why three: a weight for a feature that was seen once or twice only memorizes.
    """
    counts = Counter(name for texts in dataset.tokens for name in features(texts))
    frequent = [name for name, count in counts.items() if count > 2]
    return {name: column for column, name in enumerate([*frequent, BIAS])}


def matrix(dataset, columns):
    """-> sparse [N, F + 1], whose last column, the bias, is 1 throughout"""
    rows, places, values = [], [], []
    for row, texts in enumerate(dataset.tokens):
        for name, value in [*features(texts).items(), (BIAS, 1.0)]:
            if name in columns:
                rows.append(row)
                places.append(columns[name])
                values.append(value)
    return torch.sparse_coo_tensor([rows, places], values, (len(dataset), len(columns)),
                                   check_invariants=True)


def fit(task, X, y, penalty):
    """Weights that minimize the task's loss + penalty ‖w‖² / 2.   -> [F + 1, C]

    X [N, F + 1], y [N]. The last weight, the bias, is not penalized.
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


def ngram_score(task, train, dev):
    """The task's metric on dev, of the best of the penalties."""
    columns = columns_of(train)
    X, X_dev = matrix(train, columns), matrix(dev, columns)
    y = torch.tensor(train.labels)
    logits = [(X_dev @ fit(task, X, y, penalty)).squeeze(-1) for penalty in PENALTIES]
    return max(declared.score(task, task.predict(z).numpy(), dev.labels) for z in logits)


def with_overall(scores):
    """{Task: score} -> {task name: score, "overall": heads.overall_score()}"""
    result = {task.name: float(score) for task, score in scores.items()}
    result["overall"] = float(heads.overall_score(scores))
    return result


def present(folder):
    """The tasks with a train and a dev file in a data folder.   -> [Task]"""
    found = [task for task in heads.tasks() if all(
        os.path.exists(data.path_of(folder, task, split)) for split in ("train", "dev"))]
    if not found:       # then its message is that of the first missing file
        data.load(folder, heads.tasks()[0], "train", words)
    return found


def ngram_scores(folder, tasks):
    """The bag of n-grams on the dev sets of some tasks.   -> {task name: score, …}"""
    return with_overall({task: ngram_score(task, *(data.load(folder, task, split, words)
                                                   for split in ("train", "dev")))
                         for task in tasks})


def majority_scores(folder, tasks, labels=None):
    """Scores of the train set's majority class.   -> {task name: score, "overall": score}

    On dev, or on labels {task name: [N]}. A constant similarity has no correlation with
    anything: its r is 0.
    """
    scores = {}
    for task in tasks:
        majority = Counter(data.load(folder, task, "train", str).labels.tolist())
        predicted = majority.most_common(1)[0][0]
        truth = (data.load(folder, task, "dev", str).labels if labels is None
                 else labels[task.name])
        scores[task] = 0.0 if task.metric is heads.pearson else declared.score(
            task, np.full(len(truth), predicted), truth)
    return with_overall(scores)


def main(argv=None):
    parser = command.Parser(__doc__)
    parser.add_argument("--data", metavar="DIR", help="as in train.py")

    def compare():
        args = parser.parse_args(argv)
        folder, _ = sources.find(args.data, sources.SAMPLE)
        tasks = present(folder)
        for name, scores in (("n-grams", ngram_scores(folder, tasks)),
                             ("majority", majority_scores(folder, tasks))):
            print(f"{name:9}" + "  ".join(f"{task} {score:.3f}"
                                          for task, score in scores.items()))
        return 0
    return command.one_line(compare)


if __name__ == "__main__":
    sys.exit(main())
