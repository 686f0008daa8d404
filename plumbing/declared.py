"""Do the tasks that heads.tasks() returns make sense, and what are they called on pages?"""

import dataclasses
import functools
import itertools
import re
import warnings

import numpy as np
import torch

from plumbing import plugins

REPORT = ("sst", "para", "sts")         # the tasks of the report's tables


def valid(tasks) -> tuple:
    """The tasks as they are.   Raises ValueError naming the one that is at fault"""
    names = [task.name for task in tasks]
    for task in tasks:
        try:
            hash(task)
        except TypeError:
            wrong(task, "fields that never change, such as tuples for lists")
        check(task)
        others = [name for name in names if name.lower() == task.name.lower()]
        if len(others) > 1:
            wrong(task, f"another name, got {' and '.join(others)}")
    pairs = {}      # the log's names of pairs, such as cos_a_b
    for a, b in itertools.permutations(tasks, 2):
        other = pairs.setdefault(f"{a.name}_{b.name}", (a, b))
        if other != (a, b):
            wrong(a, f"another name: in the log {a.name}_{b.name} would mean two pairs, "
                     f"{a.name} and {b.name}, {other[0].name} and {other[1].name}")
    return tasks


def heading(task) -> str:
    """What pages call it: "SST", "Para", "STS"."""
    return task.name.upper() if len(task.name) < 4 else task.name.capitalize()


def title(task) -> str:
    """Of a column of its scores: "SST acc.", "STS corr."."""
    name = getattr(task.metric, "__name__", "score")
    return f"{heading(task)} {dict(accuracy='acc.', pearson='corr.').get(name, name)}"


def chosen(known, names) -> list:
    """Those of the known names that are asked for, None for all.   Raises ValueError"""
    names = list(known if names is None else names)
    for name in names:
        if name not in list(known):     # a dict would ask a wrong type for its hash
            raise ValueError(f"needed one of the tasks {', '.join(known)}, got {name!r}")
    return [name for name in known if name in names]


def check_settings(encoder, con, cosine, pool, max_length):
    """Check a MultitaskBert's settings for this BertModel.

    Raises ValueError if one is wrong, or they do not fit together.
    """
    if pool not in ("cls", "mean"):
        raise ValueError(f"pool must be 'cls' or 'mean', got {pool!r}")
    config = encoder.config
    if pool == "cls" and encoder.pooler is None:
        raise ValueError("pool='cls' needs an encoder with a pooler; use pool='mean'")
    if con and cosine:
        raise ValueError("con and cosine contradict each other: the cosine is that of two "
                         "sentences encoded apart; set one of them to False")
    if con and config.type_vocab_size < 2:
        raise ValueError("needed weights with two segments (type_vocab_size 2) to encode a "
                         "pair as one sequence, got 1; train without --con")
    positions = config.max_position_embeddings
    if max_length is not None and (type(max_length) is not int
                                   or not 5 <= max_length <= positions):
        raise ValueError(f"max_length (--max-length) must be from 5 to {positions}, the "
                         f"positions of these weights; got {max_length!r}")


def wrong(task, needed):
    raise ValueError(f"heads.tasks(), task {task.name!r}: needed {needed}")


@functools.cache
def check(task):
    """Check its fields, and functions too if it isn't the report's."""
    for field in dataclasses.fields(task):
        value, kind = getattr(task, field.name), field.type
        if not isinstance(value, int | float if kind is float else kind) or (
                isinstance(value, bool) and kind is not bool):
            wrong(task, f"{getattr(kind, '__name__', kind)} as {field.name}, got {value!r}")
    if not 1 <= task.num_outputs <= 10 ** 6:
        wrong(task, f"1 to 1000000 outputs in num_outputs, got {task.num_outputs}")
    # "scale" because the log has a loss_scale of its own, with float16
    taken = {"overall", "scale", *dir(torch.nn.ModuleDict())}
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", task.name) or task.name in taken:
        wrong(task, "a name that begins with a letter, goes on with letters, digits and "
                    "underscores, and is not 'overall', 'scale' or an attribute of "
                    "torch.nn.ModuleDict")
    for field in ("file", "texts", "label", "prediction_column", "classes"):
        value = getattr(task, field)
        comma = "," * (field == "prediction_column")
        for text in [value] if isinstance(value, str) else value:
            if not isinstance(text, str) or not text.strip() or re.search(
                    f"[\0-\x1f{comma}]", text):
                wrong(task, f"text without control characters{' and commas' * bool(comma)} "
                            f"in {field}, got {text!r}")
    if len(task.texts) not in (1, 2) or len(set(task.texts)) < len(task.texts):
        wrong(task, f"one or two columns in texts, not one twice, got {task.texts!r}")
    if not -1e38 <= task.lowest < task.highest <= 1e38:         # of float32
        wrong(task, f"lowest < highest, from -1e38 to 1e38, got {task.lowest} and "
                    f"{task.highest}")
    count = task.highest - task.lowest + 1
    if task.classes and len(task.classes) != count:
        wrong(task, f"{count:g} classes, for the labels {task.lowest} to {task.highest}, "
                    f"got {len(task.classes)}")
    if task.name not in REPORT:     # its functions have tests, and students write them
        check_functions(task)


def check_functions(task):
    """Call its functions on made-up logits."""
    shape = (2, task.num_outputs) if task.num_outputs > 1 else (2,)
    logits = torch.linspace(-1.3, 1.7, 2 * task.num_outputs).reshape(shape)
    learned = logits.clone().requires_grad_()
    labels = torch.tensor([task.lowest, task.highest], dtype=torch.float32)
    right, found = labels.numpy(), {}
    sizes = {"predict": [2], "probabilities": list(shape)}
    for name, call in (("predict", lambda: task.predict(logits)),
                       ("probabilities", lambda: task.probabilities(logits)),
                       ("loss", lambda: task.loss(learned, labels)),
                       ("metric", lambda: task.metric(right, right)),
                       ("divergence", lambda: task.divergence(learned, logits + 1))):
        if getattr(task, name) is None:
            continue                # numbers have no probabilities; ℓ_s: --smart, --r-drop
        given = "right predictions [2]" if name == "metric" else f"logits {list(shape)}"
        try:
            got = call()
            # heads.outputs() takes what numpy reads; a loss may be any tensor.
            loose = name in ("loss", "divergence") and torch.is_tensor(got)
            value = found[name] = np.asarray(got.detach().tolist() if loose else got)
        except NotImplementedError:
            raise
        except plugins.OWN as error:
            wrong(task, f"a {name} that takes {given} and labels {task.lowest:g} to "
                        f"{task.highest:g}, and returns what numpy can read; got "
                        f"{plugins.in_words(error)}")
        size = sizes.get(name, [])
        if got is None or list(value.shape) != size:
            wrong(task, f"a {name} that returns {size or 'a number'} for {given}, got "
                        f"{list(value.shape) or got}")
        if name != "metric" and not torch.is_tensor(got):
            wrong(task, f"a {name} that returns a tensor, got {type(got).__name__}")
        if name in ("loss", "divergence") and not got.requires_grad:
            wrong(task, f"a {name} that can be differentiated by its logits: with torch's "
                        f"functions, without detach() or argmax()")
        # A loss may be infinite at a bound; where it is always so, training says it.
        if value.dtype.kind not in "biuf" or (name not in ("loss", "divergence")
                                              and not np.isfinite(value).all()):
            wrong(task, f"a {name} that is real and finite for {given}, got "
                        f"{value.tolist()!r}")
    if task.whole_labels and (found["predict"] % 1).any():
        wrong(task, f"whole predictions, as whole_labels says; predict gives "
                    f"{found['predict'].tolist()}; for a graded task set it to False")


def score(task, predictions, labels) -> float:
    """A task's metric; 0 with a warning if not finite, as F1 with no true positive."""
    try:
        found = float(task.metric(predictions, labels))
    except plugins.OWN as error:
        if task.name in REPORT:     # ours, or a student's, who needs the traceback
            raise
        raise ValueError(f"{task.name}'s metric failed on {len(labels)} predictions: "
                         f"{plugins.in_words(error)}; mend it in heads.tasks()") from error
    if not np.isfinite(found):
        warnings.warn(f"{task.name}'s metric gave {found}; counted as 0", stacklevel=2)
        return 0.0
    return found
