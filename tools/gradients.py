"""The conflict microscope: which task gradients conflict, when, where, and what is chance.

    3.3    read_steps(): the lines of metrics.jsonl with task gradients, checked
    3.3    chance(): how far from 0 a mean cosine is without any relation of the tasks
    3.3    conflicts(): a strip for each pair of tasks, over training and by block of θ
    3.3    changed(): what the treatment did to them;  cost(): and to the update

Symbols: S steps, L blocks of θ, K tasks; n cosines of n steps; w_k the coefficients of the
update Σ_k w_k g_k.

Two gradients that have nothing to do with each other are as likely to point to the same
side as to opposite sides. So the null hypothesis gives each measured cosine a random sign
and keeps its size. Why not random vectors in P dimensions, whose cosine has sd 1/√P:
gradients have few directions in which they vary. In the quick start's run 1/√P is .001,
and the cosines have sd .03 to .11: beside 1/√P nearly each of them would seem to mean
something.
"""

import dataclasses
import itertools
import math

import numpy as np

from plumbing import reading
from tools import chart
from tools.page import Figure, Heading, Paragraph, Table, signed

LONGEST_STRIP, FEWEST = 24, 16      # cells in a row, and steps in a cell
WEAK, STRONG = 2.0, 3.0             # standard deviations that color a cell
SHARED = "all shared"


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
        return np.array([line["_".join(names)] for line in self.lines], float)

    def cosines(self, block, a, b):
        """Of two tasks, in one block of θ or in all that is shared.   -> [S]"""
        name = f"cos_{a}_{b}"
        return np.array([(line if block == SHARED else line["layers"][block])[name]
                         for line in self.lines], float)

    def grams(self):
        """The inner products of all tasks on what is shared, from the log.   -> [S, K, K]
        """
        norms = np.stack([self.column("norm", task) for task in self.tasks], -1)
        cosines = np.broadcast_to(np.eye(len(self.tasks)), (*norms.shape,
                                                            norms.shape[-1])).copy()
        for a, b in self.pairs:
            i, j = self.tasks.index(a), self.tasks.index(b)
            cosines[:, i, j] = cosines[:, j, i] = self.column("cos", a, b)
        return norms[:, :, None] * cosines * norms[:, None, :]


def read_steps(path, lines, tasks):
    """[(number, line)] of metrics.jsonl -> Steps.   Raises ValueError naming the line"""
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


# --- What is chance ---

@dataclasses.dataclass
class Mean:
    """The mean of n cosines, beside what chance makes of cosines of this size."""
    mean: float
    sd: float                   # of the mean, if every sign were random
    conflict: float             # share of the n that is below 0
    size: float                 # mean |cos|
    n: int

    @property
    def z(self):
        return self.mean / self.sd if self.sd > 0 else 0.0

    def __str__(self):
        return (f"mean cosine {self.mean:+.3f}, by chance ±{WEAK * self.sd:.3f}; "
                f"{100 * self.conflict:.0f}% of {self.n} steps in conflict")


def chance(cosines):
    """Means and the null hypothesis: each cosine keeps its size and gets a random sign.

        Var(Σ ± c_t / n) = Σ c_t² / n²

    [n] -> Mean. It takes the steps for independent. By hand: of (.3, .1, -.1, .1) the mean
    is .1, and sd = √.12 / 4 = .0866, so .1 is 1.15 of them from 0: chance.
    """
    cosines = np.asarray(cosines, float)
    return Mean(float(cosines.mean()), float(np.sqrt((cosines ** 2).sum()) / len(cosines)),
                float((cosines < 0).mean()), float(abs(cosines).mean()), len(cosines))


def dimensions(cosines):
    """Random vectors in how many dimensions have cosines of this size?   1 / mean cos²"""
    square = float((np.asarray(cosines, float) ** 2).mean())
    return 1 / square if square > 0 else math.inf


def look(mean):
    """A cell's look: what differs from chance is colored, and has its sign."""
    if abs(mean.z) < WEAK:
        return "none"
    side = "minus" if mean.z < 0 else "plus"
    return side if abs(mean.z) >= STRONG else f"{side} weak"


def colored_by_chance(values, parts, draws=200):
    """How many cells are colored if each task's gradient had a random sign at each step.

    values: {pair: [R, S]} cosines of a pair on R blocks; parts: see pieces(). -> [draws]
    Drawn, not computed: blocks of one step share their batches, so chance colors several
    cells of a column at once. The sign of a pair is the product of its tasks' signs.
    """
    rng = np.random.default_rng(0)
    tasks = list(dict.fromkeys(task for pair in values for task in pair))
    counts = np.zeros(draws, int)
    for part in parts:
        signs = {task: rng.choice([-1.0, 1.0], (draws, len(part))) for task in tasks}
        for (a, b), cosines in values.items():
            there = cosines[:, part]                                            # [R, n]
            z = (signs[a] * signs[b]) @ there.T                             # [draws, R]
            counts += (abs(z) >= WEAK * np.sqrt((there ** 2).sum(1))).sum(1)
    return counts


def pieces(number):
    """How S steps are cut into the cells of a strip.   -> [indices, …]"""
    cells = min(LONGEST_STRIP, max(1, number // FEWEST))
    return np.array_split(np.arange(number), cells)


# --- The picture ---

def gradients(steps, sizes=None, note="", explain=True):
    """The task gradients of one run.   [report 3.3]   -> parts; none without them

    sizes: {block of θ: its number of parameters}, if known; note: the run's letter;
    explain: say how to read it.
    """
    if not steps.lines:
        return []
    # A block that no gradient reaches has cosines of 0: the pooler, with --pool mean.
    blocks = [block for block in steps.layers if any(
        steps.cosines(block, *pair).any() for pair in steps.pairs)]
    P = sum(sizes.get(block, 0) for block in blocks or sizes) if sizes else 0
    return [Heading("Conflicts between tasks" + (f": {note}" if note else "")),
            *conflicts(steps, blocks, note, explain), *what_is_chance(steps, P, explain),
            *by_block(steps, blocks, sizes or {}), *changed(steps, note, explain),
            *cost(steps, P, note, explain)]


def conflicts(steps, blocks, note, explain):
    """A strip for each pair of tasks, and what one sees in them.   -> parts"""
    rows = [SHARED, *reversed(blocks)]              # from the lowest to the highest
    parts, step = pieces(len(steps.lines)), steps.column("step")
    several = len(parts) > 1
    end = len(parts) + 1.8 * several                # the last cell is the whole run
    x_ticks = {k + .5: chart.number(step[parts[k][0]])
               for k in range(0, len(parts), max(1, len(parts) // 4))}
    if several:
        x_ticks[end - .6] = "all"
    panels, found = [], []
    for a, b in steps.pairs:
        panel = chart.Panel(f"{a} and {b}", "step", (0, end), (0, len(rows)), left=62,
                            x_ticks=x_ticks, grid=False, height=chart.around(len(rows)),
                            y_ticks={k + .5: short(row) for k, row in enumerate(rows)})
        for k, row in enumerate(rows):
            cosines = steps.cosines(row, a, b)
            cells = [(x, part) for x, part in enumerate(parts)]
            found += [chance(cosines[part]) for part in parts]
            if several:
                cells.append((end - 1.1, np.arange(len(cosines))))
            for x, part in cells:
                mean = chance(cosines[part])
                panel.cell(x, k, look(mean), f"{row}, steps {step[part[0]]:g} to "
                           f"{step[part[-1]]:g}: {mean}")
        panels.append(panel)
    colored = sum(abs(mean.z) >= WEAK for mean in found)
    low, high = np.percentile(colored_by_chance(
        {pair: np.stack([steps.cosines(row, *pair) for row in rows])
         for pair in steps.pairs}, parts), [2.5, 97.5])
    whole = {pair: chance(steps.cosines(SHARED, *pair)) for pair in steps.pairs}
    beyond = [f"{a} and {b} {'conflict' if mean.z < 0 else 'agree'} (mean cosine "
              f"{mean.mean:+.3f})" for (a, b), mean in whole.items()
              if abs(mean.z) >= STRONG]
    rows_are = (f"each row is a block of the encoder, the lowest ({SHARED}) all of it"
                if blocks else "its row is the whole encoder (--log-layers adds a row for "
                "each block)")
    how_to_read = (
        f"A strip is a pair of tasks. Time runs to the right; {rows_are}. "
        f"A cell is the mean cosine of the two tasks' gradients over about "
        f"{len(parts[0])} steps. Grey is chance: gradients of tasks that have nothing to "
        f"do with each other conflict in half of the steps, and their mean cosine is near "
        f"0. Orange with − is conflict beyond that, blue with + is agreement: one task's "
        f"step helps the other. ")
    words = (
        f"In this run {colored} of {len(found)} cells are colored; chance alone colors "
        f"{low:.0f} to {high:.0f} (95% of 200 draws). Over the whole run "
        f"{', '.join(beyond) or 'no pair conflicts or agrees'} beyond chance.")
    legend = [("minus", f"conflict, beyond {STRONG:g} sd of chance"),
              ("minus weak", f"{WEAK:g} to {STRONG:g} sd"), ("none", "chance"),
              ("plus weak", f"{WEAK:g} to {STRONG:g} sd"),
              ("plus", f"agreement, beyond {STRONG:g} sd of chance")]
    caption = "Mean cosine of two tasks' gradients before treatment"
    return [Paragraph(how_to_read + words if explain else words),
            Figure(f"conflicts{note}", f"{caption}; all: the whole run" if several
                   else caption, panels, legend)]


def short(block):
    return block.replace("layer ", "").replace("embeddings", "emb.")


def what_is_chance(steps, P, explain):
    """The null hypothesis in words and, for the whole run, in numbers.   -> parts"""
    rows, number = [], len(steps.lines)
    for pair in steps.pairs:
        cosines = steps.cosines(SHARED, *pair)
        mean = chance(cosines)
        rows.append([", ".join(pair), starred(mean), f"±{WEAK * mean.sd:.3f}",
                     f"{100 * mean.conflict:.0f}%", f"{mean.size:.3f}",
                     f"{dimensions(cosines):,.0f}"])
    words = ("What is chance: each measured cosine keeps its size and gets a random sign. "
             "This needs no dimension. Random vectors in d dimensions have a mean |cos| of "
             "√(2/πd); the last column is the d of which these gradients are.")
    if P:
        words += (f" The encoder has P = {P:,} parameters, and random vectors in P "
                  f"dimensions a |cos| of {math.sqrt(2 / math.pi / P):.4f}. Gradients are "
                  f"no such vectors: there are few directions in which they vary. So the "
                  f"size of a cosine alone says nothing about conflict.")
    return [*([Paragraph(words)] if explain else []), Table(
        ["whole run", "mean cosine", "chance", f"in conflict (chance: 50 "
         f"±{100 / math.sqrt(number):.0f}%)", "mean |cos|", "d"], rows)]


def starred(mean):
    """A mean cosine, with a star if it is beyond chance."""
    return signed(mean.mean) + ("*" if abs(mean.z) >= STRONG else "")


def by_block(steps, blocks, sizes):
    """Mean cosines of the whole run by block of θ, where they were logged.   -> parts"""
    rows = [[block, *([f"{sizes.get(block, 0):,}"] if sizes else []),
             *(starred(chance(steps.cosines(block, *pair))) for pair in steps.pairs)]
            for block in blocks]
    star = Paragraph(f"* a mean cosine beyond chance ({STRONG:g} standard deviations).")
    header = ["block", "parameters"] if sizes else ["block"]
    table = Table(header + [f"cos {a} {b}" for a, b in steps.pairs], rows)
    return [table, star] if rows else [star]


def over_time(title, steps, lines, band=None):
    """A panel with means over the pieces of a run.   lines: {words: values [S]}

    band: half the width of what is chance, for each piece.
    """
    step, parts = steps.column("step"), pieces(len(steps.lines))
    x = [step[part].mean() for part in parts]
    means = {words: np.array([values[part].mean() for part in parts])
             for words, values in lines.items()}
    seen = np.concatenate([*means.values(), *([] if band is None else [band, -band])])
    panel = chart.Panel(title, "step", (0, step[-1]), chart.wide(seen.min(), seen.max()))
    if band is not None:
        panel.area(x, -band, band, "band")
    for k, values in enumerate(means.values()):
        panel.line(x, values, k, marks=len(parts) == 1)
    panel.hits([step[0] - 1, *(step[part[-1]] for part in parts)], ["\n".join([
        f"steps {step[part[0]]:g} to {step[part[-1]]:g}",
        *(f"{words}: {chart.short(values[k])}" for words, values in means.items()),
        *([] if band is None else [f"chance: ±{band[k]:.3f}"])])
        for k, part in enumerate(parts)])
    return panel


# --- What the treatment changed ---

def changed(steps, note, explain):
    """Cosines before and after, targets, and who got some of whom.   -> parts"""
    lines = {"before treatment": lambda a, b: steps.column("cos", a, b)}
    columns = {"a, b": lambda a, b: f"{a}, {b}",
               "before": lambda a, b: signed(steps.column("cos", a, b).mean())}
    words = "The method only weighs the gradients and changes none of them by itself."
    if steps.treated:
        words = ("What the treatment changed: a gradient gets some of another's, until the "
                 "two no longer conflict (surgery), or until their cosine is at its target "
                 "φᵀ (vaccine). Mean cosine before and after, the share of steps in which "
                 "a's gradient got some of b's, and the targets at the end.")
        if not explain:
            words = "What the treatment changed:"
        lines["after treatment"] = lambda a, b: steps.column("treated_cos", a, b)
        columns |= {
            "after": lambda a, b: signed(steps.column("treated_cos", a, b).mean()),
            "a got b's": lambda a, b: f"{100 * steps.column('acted', a, b).mean():.0f}%",
            "b got a's": lambda a, b: f"{100 * steps.column('acted', b, a).mean():.0f}%"}
    if steps.targets:
        lines["φᵀ of the first task, when it meets the second"] = (
            lambda a, b: steps.column("target", a, b))
        lines["φᵀ of the second"] = lambda a, b: steps.column("target", b, a)
        columns |= {"φᵀ of a": lambda a, b: signed(steps.column("target", a, b)[-1]),
                    "φᵀ of b": lambda a, b: signed(steps.column("target", b, a)[-1])}
    parts = pieces(len(steps.lines))
    panels = [over_time(f"{a} and {b}", steps,
                        {name: column(a, b) for name, column in lines.items()},
                        np.array([WEAK * chance(steps.cosines(SHARED, a, b)[part]).sd
                                  for part in parts])) for a, b in steps.pairs]
    rows = [[cell(a, b) for cell in columns.values()] for a, b in steps.pairs]
    return [
        Paragraph(words), *([Table(list(columns), rows)] if steps.treated else []),
        Figure(f"cosines{note}", f"Cosine of two tasks' gradients, means over about "
               f"{len(parts[0])} steps", panels,
               [*enumerate(lines), ("band", f"chance ({WEAK:g} sd), before treatment")])]


# --- What it cost ---

def turned(gram, weights):
    """The update Σ_k w_k g_k beside the plain sum Σ_k g_k.   [S, K, K], [S, K] -> arrays

    -> (its length in that of the sum [S], cosine of the two [S], cosine of each g_k with
    the sum [S, K], and with the update [S, K]); 0 where a vector is zero.
    By hand: g1 = (1, 0), g2 = (-1, 1), w = (2, 1½): the sum is (0, 1), the update
    (½, 1½), whose length is 1.581 and whose cosine with the sum is .949.
    """
    def inner(u, v):
        return np.einsum("si,sij,sj->s", u, gram, v)

    def safe(part, whole):
        return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0)
    ones = np.ones_like(weights)
    plain, update = (np.sqrt(np.maximum(0, inner(v, v))) for v in (ones, weights))
    norms = np.sqrt(np.einsum("sii->si", gram))

    def with_tasks(v, length):
        return safe(np.einsum("sij,sj->si", gram, v), norms * length[:, None])
    return (safe(update, plain), safe(inner(ones, weights), plain * update),
            with_tasks(ones, plain), with_tasks(weights, update))


def cost(steps, P, note, explain):
    """What each task wins or loses by the treated update; memory.   -> parts"""
    K = len(steps.tasks)
    weights = {task: steps.column("coefficient", task) for task in steps.tasks}
    norms = {task: steps.column("norm", task) for task in steps.tasks}
    if max(abs(values).max() for values in [*weights.values(), *norms.values()]) > 1e70:
        return []               # the products of such numbers are infinite
    length, cosine, before, after = (values.mean(0) for values in turned(
        steps.grams(), np.stack(list(weights.values()), -1)))
    memory = (f" In memory it takes {K} gradients instead of one, "
              f"{(K - 1) * 4 * P / 1e6:,.1f} MB more." if P else "")
    rows = [[task, f"{norms[task].mean():.2f}", f"{weights[task].mean():.2f}",
             signed(old), signed(new), signed(new - old)]
            for task, old, new in zip(steps.tasks, before, after)]
    words = (f"What it cost: the update is {length:.2f} times as long as the plain sum of "
             f"the gradients, and has a cosine of {cosine:.3f} with it (1: not turned)."
             f"{memory}")
    if explain:
        words += (" To first order, a short update of a given length lowers a task's loss "
                  "in proportion to its cosine with that task's gradient, so “change” says "
                  "who wins and who loses by the treatment.")
    return [
        Paragraph(words),
        Table(["task", "norm", "coefficient", "cos with the sum", "with the update",
               "change"], rows),
        Figure(f"weights{note}", "The tasks' gradients on the shared parameters, and how "
               "they enter the update", [over_time("gradient norm", steps, norms),
                                         over_time("coefficient in the update", steps,
                                                   weights)], list(enumerate(steps.tasks)))]
