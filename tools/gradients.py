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
    treated: bool               # each by itself? A method that only weighs them does not
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
    steps = Steps(tasks, [], False, False, [])
    if not steps.pairs:
        return steps
    cosines = [f"cos_{a}_{b}" for a, b in steps.pairs]
    # Others: evaluations, paraphrase first, skipped steps, every step without treatment.
    lines = [(number, line) for number, line in lines if cosines[0] in line]
    if not lines:
        return steps
    _, first = lines[0]
    a, b = steps.ordered_pairs[0]
    steps.treated, steps.targets = "acted" in first, f"target_{a}_{b}" in first
    steps.layers = list(first.get("layers", {}))
    needed = ["step", "epoch", *cosines]
    needed += [f"{kind}_{task}" for kind in ("norm", "coefficient") for task in tasks]
    if steps.treated:
        needed += ["acted", *(f"treated_{name}" for name in cosines)]
    needed += [f"{kind}_{a}_{b}"
               for kind in ["acted"] * steps.treated + ["target"] * steps.targets
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


def looks():
    """One after another; from the seventh on in colors, for more than three tasks."""
    yield from LOOKS
    for number in itertools.count(len(LOOKS)):
        yield {**LOOKS[number % len(LOOKS)], "color": f"C{number % 10}"}


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
        return [heading, Paragraph("This run has not kept them apart; a treatment does, "
                                   "such as --option pcgrad.")]
    number, epochs = len(steps.lines), steps.column("epoch")
    window = max(1, number // 40)
    conflicts = [f"{a} and {b} {share((steps.column('cos', a, b) < 0).sum(), number)}"
                 for a, b in steps.pairs]
    # What a page shows: cosines and coefficients always, the rest where it was logged.
    shown = {"cos": steps.pairs, "treated_cos": steps.pairs if steps.treated else []}
    rows = []
    for epoch in sorted(set(epochs)):
        def mean(*names, of_epoch=epochs == epoch):
            return steps.column(*names)[of_epoch].mean()
        rows.append([str(epoch), *(signed(mean(kind, a, b)) for kind, pairs in shown.items()
                                   for a, b in pairs),
                     *(f"{mean('coefficient', task):.2f}" for task in steps.tasks),
                     *([f"{mean('acted'):.2f}"] if steps.treated else [])])
    header = ["epoch", *(f"cos {a} {b}" for a, b in shown["cos"]),
              *(f"after: {a} {b}" for a, b in shown["treated_cos"]),
              *(f"coeff. {task}" for task in steps.tasks)]
    tasks = [(task,) for task in steps.tasks]
    panels = [Panel("cos", steps.pairs, "cosine before treatment"),
              Panel("norm", tasks, "gradient norm"),
              Panel("coefficient", tasks, "coefficient in the update")]
    if steps.treated:
        header.append("acted")
        panels[1:1] = [Panel("treated_cos", steps.pairs, "cosine after treatment")]
        panels.append(Panel("acted", steps.ordered_pairs,
                            "share of all steps so far that acted", " ← "))
    if steps.targets:
        panels[2:2] = [Panel("target", steps.ordered_pairs, "vaccine's target φᵀ", " ← ")]

    def draw(figure):
        axes_of = list(figure.subplots(2, -(-len(panels) // 2)).flat)
        for axes, panel in zip(axes_of, panels):
            for names, look in zip(panel.names, looks()):
                values = steps.column(panel.kind, *names)
                if panel.kind == "acted":   # 0 or 1 a step: only long means say anything
                    values = values.cumsum() / np.arange(1, number + 1)
                axes.plot(smooth(steps.column("step"), window), smooth(values, window),
                          label=panel.between.join(names), markersize=3, markevery=4,
                          **look)
            axes.set(xlabel="step", ylabel=panel.label)
            axes.legend(fontsize=6, loc="best", ncols=1 + len(panel.names) // 9)
            if panel.kind == "norm":
                axes.set_yscale("log", base=2)
                axes.yaxis.set_major_formatter("{x:g}")
            if panel.kind in ("cos", "treated_cos"):
                axes.axhline(0, color=".7", linewidth=.8, zorder=0)
        for axes in axes_of[len(panels):]:
            axes.remove()

    words = "Means over the steps of an epoch, on the shared parameters: cosines "
    if steps.treated:
        words += ("before and after treatment, each task's coefficient in the update, and "
                  "the share of ordered pairs that were changed.")
    else:
        words += ("of the task gradients, and each task's coefficient in the update. The "
                  "method only weighs them, so no gradient is changed by itself.")
    between = "; a ← b: of a when it meets b" if steps.treated else ""
    return [
        heading,
        Paragraph(f"{words} Steps in which two gradients conflict (cosine below 0): "
                  f"{', '.join(conflicts)}."),
        Table(header, rows),
        *([changes(steps)] if steps.treated else []),
        Figure("gradients", f"Task gradients over training, means over {window} "
               f"steps{between}", draw, (11, 6)),
        *by_layer(steps)]


def changes(steps):
    """How often each gradient got some of another's, and the vaccine's targets."""
    rows = [[a, b, f"{steps.column('acted', a, b).mean():.2f}"]
            for a, b in steps.ordered_pairs]
    header = ["gradient", "gets some of", "share of steps"]
    if steps.targets:
        header.append("φᵀ at the end")
        for row, (a, b) in zip(rows, steps.ordered_pairs):
            row.append(signed(steps.column("target", a, b)[-1]))
    return Table(header, rows)


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
        for pair, look in zip(steps.pairs, looks()):
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
