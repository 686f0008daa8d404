"""The task gradients of a run, over training and by layer, from its metrics.jsonl.

    3.3    read_steps(): the lines with task gradients, checked
    3.3    gradients(), by_layer(): tables and figures, for a page

Symbols: S steps, L blocks of θ.
"""

import dataclasses
import itertools

import numpy as np

from plumbing import reading
from tools.page import Figure, Heading, Paragraph, Table, share, signed


@dataclasses.dataclass
class Steps:
    """The lines of metrics.jsonl that hold task gradients, all of them checked."""
    tasks: list                 # names of the tasks that were trained
    lines: list                 # [S] dicts, as multitask.describe() made them
    targets: bool               # with vaccine's targets?
    layers: list                # names of the blocks of θ, if they were logged

    @property
    def pairs(self):
        return list(itertools.combinations(self.tasks, 2))

    @property
    def ordered_pairs(self):
        return list(itertools.permutations(self.tasks, 2))

    def column(self, *names):
        """column("cos", "sst", "para") -> the values of cos_sst_para, [S]"""
        return np.array([line["_".join(names)] for line in self.lines])

    def layer_column(self, layer, a, b):
        """Cosines in one block of θ.   -> [S]"""
        return np.array([line["layers"][layer][f"cos_{a}_{b}"] for line in self.lines])


def read_steps(path, tasks):
    """metrics.jsonl -> Steps.   Raises ValueError naming the line"""
    lines = list(enumerate(reading.read_json_lines(path), 1))
    steps = Steps(tasks, [], False, [])
    if not steps.pairs:
        return steps
    cosines = [f"cos_{a}_{b}" for a, b in steps.pairs]
    # Others: evaluations, paraphrase first, skipped steps, every step without treatment.
    lines = [(number, line) for number, line in lines if cosines[0] in line]
    if not lines:
        return steps
    _, first = lines[0]
    a, b = steps.ordered_pairs[0]
    steps.targets, steps.layers = f"target_{a}_{b}" in first, list(first.get("layers", {}))
    needed = ["step", "epoch", "acted", *cosines, *(f"treated_{name}" for name in cosines)]
    needed += [f"{kind}_{task}" for kind in ("norm", "coefficient") for task in tasks]
    needed += [f"{kind}_{a}_{b}" for kind in ["acted"] + ["target"] * steps.targets
               for a, b in steps.ordered_pairs]
    for number, line in lines:
        reading.check_fields(path, line, dict.fromkeys(needed, reading.NUMBER), number)
        if steps.layers:
            reading.check_fields(path, line, {"layers": dict}, number)
            reading.check_fields(path, line["layers"], dict.fromkeys(steps.layers, dict),
                                 number)
            for layer in steps.layers:
                reading.check_fields(path, line["layers"][layer],
                                     dict.fromkeys(cosines, reading.NUMBER), number)
        steps.lines.append(line)
    return steps


LOOKS = [{"color": color, "linestyle": style, "marker": marker}
         for color, style, marker in (("black", "-", "o"), ("black", "--", "s"),
                                      ("black", ":", "^"), (".55", "-", "D"),
                                      (".55", "--", "v"), (".55", ":", "P"))]


def smooth(values, window):
    """The mean of each `window` values in turn.   [N] -> [N // window]"""
    values = np.asarray(values)
    return values[:len(values) // window * window].reshape(-1, window).mean(-1)


@dataclasses.dataclass
class Panel:
    """One of the curves' plots: column(kind, *names) for each of the names."""
    kind: str
    names: list                 # of tuples of task names
    label: str
    between: str = ", "         # two tasks' names


def gradients(steps):
    """The task gradients over training, and by layer.   [report 3.3]   -> parts"""
    heading = Heading("The task gradients")
    if not steps.lines:
        return [heading, Paragraph("This run has not kept them apart; --option pcgrad and "
                                   "gvac do.")]
    number, epochs = len(steps.lines), steps.column("epoch")
    window = max(1, number // 40)
    conflicts = [f"{a} and {b} {share((steps.column('cos', a, b) < 0).sum(), number)}"
                 for a, b in steps.pairs]
    rows = []
    for epoch in sorted(set(epochs)):
        def mean(*names, of_epoch=epochs == epoch):
            return steps.column(*names)[of_epoch].mean()
        rows.append([str(epoch), *(signed(mean("cos", a, b)) for a, b in steps.pairs),
                     *(signed(mean("treated_cos", a, b)) for a, b in steps.pairs),
                     *(f"{mean('coefficient', task):.2f}" for task in steps.tasks),
                     f"{mean('acted'):.2f}"])
    changes = [[a, b, f"{steps.column('acted', a, b).mean():.2f}"]
               for a, b in steps.ordered_pairs]
    header = ["gradient", "gets some of", "share of steps"]
    if steps.targets:
        header.append("φᵀ at the end")
        for change, (a, b) in zip(changes, steps.ordered_pairs):
            change.append(signed(steps.column("target", a, b)[-1]))
    tasks = [(task,) for task in steps.tasks]
    panels = [Panel("cos", steps.pairs, "cosine before treatment"),
              Panel("treated_cos", steps.pairs, "cosine after treatment"),
              Panel("target", steps.ordered_pairs, "vaccine's target φᵀ", " ← "),
              Panel("norm", tasks, "gradient norm"),
              Panel("coefficient", tasks, "coefficient in the update"),
              Panel("acted", steps.ordered_pairs, "share of all steps so far that acted",
                    " ← ")]

    def draw(figure):
        shown = [panel for panel in panels if panel.kind != "target" or steps.targets]
        for axes, panel in zip(figure.subplots(2, 3).flat, shown):
            for names, look in zip(panel.names, LOOKS):
                values = steps.column(panel.kind, *names)
                if panel.kind == "acted":   # 0 or 1 a step: only long means say anything
                    values = values.cumsum() / np.arange(1, number + 1)
                axes.plot(smooth(steps.column("step"), window), smooth(values, window),
                          label=panel.between.join(names), markersize=3, markevery=4,
                          **look)
            axes.set(xlabel="step", ylabel=panel.label)
            axes.legend(fontsize=6, loc="best")
            if panel.kind == "norm":
                axes.set_yscale("log", base=2)
                axes.yaxis.set_major_formatter("{x:g}")
            if panel.kind in ("cos", "treated_cos"):
                axes.axhline(0, color=".7", linewidth=.8, zorder=0)
        for axes in figure.axes[len(shown):]:
            axes.remove()
    return [
        heading,
        Paragraph("Means over the steps of an epoch, on the shared parameters: cosines "
                  "before and after treatment, each task's coefficient in the update, and "
                  "the share of ordered pairs that were changed. Steps in which two "
                  "gradients conflict (cosine below 0): " + ", ".join(conflicts) + "."),
        Table(["epoch", *(f"cos {a} {b}" for a, b in steps.pairs),
               *(f"after: {a} {b}" for a, b in steps.pairs),
               *(f"coeff. {task}" for task in steps.tasks), "acted"], rows),
        Table(header, changes),
        Figure("gradients", f"Task gradients over training, means over {window} steps; "
               f"a ← b: of a when it meets b", draw, (11, 6)),
        *by_layer(steps)]


def by_layer(steps):
    """Cosines in each block of θ, where they were logged.   -> parts"""
    if not steps.layers:
        return [Paragraph("By layer: train with --log-layers.")]
    cosines = {pair: np.stack([steps.layer_column(layer, *pair) for layer in steps.layers],
                              -1) for pair in steps.pairs}                  # [S, L]
    # A block that no gradient reaches has cosines of 0: the pooler, with --pool mean.
    reached = np.any([(values != 0).any(0) for values in cosines.values()], 0)      # [L]
    layers = [layer for layer, is_reached in zip(steps.layers, reached) if is_reached]
    mean = {pair: values.mean(0)[reached] for pair, values in cosines.items()}
    conflict = {pair: (values < 0).mean(0)[reached] for pair, values in cosines.items()}

    def draw(figure):
        left, right = figure.subplots(1, 2)
        short = [layer.replace("layer ", "").replace("embeddings", "emb.")
                 for layer in layers]
        for pair, look in zip(steps.pairs, LOOKS):
            left.plot(short, mean[pair], label=", ".join(pair), **look)
            right.plot(short, conflict[pair], label=", ".join(pair), **look)
        left.axhline(0, color=".7", linewidth=.8, zorder=0)
        left.set(xlabel="block", ylabel="mean cosine before treatment")
        right.axhline(.5, color=".7", linewidth=.8, zorder=0)
        right.set(xlabel="block", ylabel="share of steps in conflict", ylim=(0, 1))
        left.legend(fontsize="small")
    return [
        Paragraph("By layer: mean cosine before treatment, and share of steps with a "
                  "conflict (two unrelated gradients would conflict in half of them)."),
        Table(["block", *(f"cos {a} {b}" for a, b in steps.pairs),
               *(f"conflict {a} {b}" for a, b in steps.pairs)],
              [[layer, *(signed(mean[pair][k]) for pair in steps.pairs),
                *(f"{conflict[pair][k]:.2f}" for pair in steps.pairs)]
               for k, layer in enumerate(layers)]),
        Figure("layers", "Task gradients by block of θ, over the whole run", draw)]
