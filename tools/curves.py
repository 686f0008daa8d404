"""How runs went, from their folders: also of a run that still goes on, or was stopped.

    read_run()      args.json, metrics.jsonl and, if there is one, result.json, checked
    4.4  training()  loss by task, dev scores, learning rate, gradient norm, SMART's terms
    compared()      several runs beside each other: what differs, scores, time

One color stands for one run on the whole page.
"""

import dataclasses
import errno
import math
import os
import time

import numpy as np

import heads
import multitask
from plumbing import flags, folder, reading, sources
from plumbing.console import printable
from plumbing.progress import clock
from tools import chart
from tools.page import Figure, Heading, Legend, Paragraph, Table

BINS = 60               # of a smoothed curve
# What may differ without a change in what is learned.
NO_MATTER = ("out", "resume", "download", "device", "checkpoint_every", "log_layers",
             "tensorboard", "data", "weights")


# --- A run ---

@dataclasses.dataclass
class Run:
    """What a run's folder tells. lines: [(its number, a line of metrics.jsonl)]"""
    path: str
    settings: dict              # args.json
    values: dict                # {flag's name: value}
    lines: list
    result: dict | None         # result.json, if the run is finished
    running: bool               # does a process write in the folder now?
    age: float                  # seconds since it last did

    @property
    def log(self):
        return os.path.join(self.path, "metrics.jsonl")

    @property
    def tasks(self):
        return self.values["tasks"]

    @property
    def last(self):
        """The last line of a step, or {}."""
        return next((line for _, line in reversed(self.lines) if "dev" not in line), {})

    def series(self, name):
        """Steps and values of a name of the log; null is NaN.   -> [n], [n]"""
        found = []
        for place, line in self.lines:
            if name in line and "dev" not in line:
                kind = reading.NUMBER if line[name] is not None else type(None)
                reading.check_fields(self.log, line, {"step": reading.NUMBER, name: kind},
                                     place)
                found.append((line["step"], math.nan if line[name] is None
                              else line[name]))
        return tuple(np.array(found, float).reshape(-1, 2).T)

    def scores(self):
        """Evaluations on dev.   -> [(epoch, step, {task or "overall": score})]"""
        found = []
        for place, line in self.lines:
            if "dev" in line:
                reading.check_fields(self.log, line, {
                    "epoch": reading.NUMBER, "step": reading.NUMBER, "dev": dict}, place)
                reading.check_fields(self.log, line["dev"],
                                     dict.fromkeys([*line["dev"], "overall"],
                                                   reading.NUMBER), place)
                found.append((line["epoch"], line["step"], line["dev"]))
        return found

    def best(self):
        """(epoch, scores) of the best model; of an unfinished run, the best so far."""
        if self.result:
            return self.result["epoch"], self.result["dev"]
        best = max(self.scores(), key=lambda entry: entry[2]["overall"],
                   default=(None, 0, {}))
        return best[0], best[2]


def read_run(path):
    """The folder of a run -> Run.   Raises ValueError, OSError

    The last line of metrics.jsonl may be half written while the run goes on.
    """
    if not os.path.exists(os.path.join(path, "args.json")):
        raise ValueError(f"{path} is not the folder of a run; give one that train.py wrote")
    settings = folder.read_settings(path)
    values = folder.values_of(settings, path, flags.parser(
        [task.name for task in heads.tasks()], ["seq", "rr", *multitask.TREATMENTS]))
    if "tasks" not in values:
        raise ValueError(f"{path} is a run of pre-training, which has no tasks; give one "
                         f"that train.py wrote")
    result = os.path.join(path, "result.json")
    # Looked for before the log is read: a run that ends in between has its last line then.
    finished = os.path.exists(result)
    log = os.path.join(path, "metrics.jsonl")
    lines = reading.read_json_lines(log, growing=not finished)
    run = Run(path, settings, values, list(enumerate(lines, 1)), None,
              not finished and in_use(log), max(0.0, time.time() - os.path.getmtime(log)))
    if finished:
        run.result = reading.read_json(result, {"dev": dict, "epoch": reading.NUMBER,
                                                "seconds": reading.NUMBER})
        reading.check_fields(result, run.result["dev"], dict.fromkeys(
            [*run.result["dev"], "overall"], reading.NUMBER))
        if "step" in run.result:
            reading.check_fields(result, run.result, {"step": reading.NUMBER})
    return run


def in_use(path):
    """Has another process locked this file, as a run does with its metrics.jsonl?"""
    with open(path, "rb") as file:
        try:
            folder.lock(file)
        except OSError as error:        # drives without locks have another errno
            return error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return False


# --- Its name ---

def flag(name, value):
    """("smart_eps", 0.02) -> "--smart-eps 0.02"; ("smart", False) -> "no --smart"."""
    word = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return f"no {word}"
    if isinstance(value, list):
        value = ",".join(value)
    elif isinstance(value, dict):
        value = ",".join(f"{task}={weight:g}" for task, weight in value.items())
    return word if value is True else f"{word} {value}"


def folder_name(path):
    """Of data or weights: without the folders above it, but for an installed package's."""
    above, name = os.path.split(os.path.abspath(path))
    return os.path.basename(above) if name == "model" else name


def place_of(path):
    """folder_name(), as a sentence says it."""
    name = folder_name(path)
    return "the sample" if name == os.path.basename(sources.SAMPLE) else name


def title(runs):
    """Flags and data, which say what a run is; its folder's name does not."""
    run = runs[0]
    data = " and ".join(dict.fromkeys(place_of(run.values["data"]) for run in runs))
    if len(runs) > 1:
        return printable(f"{len(runs)} runs of train.py compared, on {data}")
    given = [flag(name, entry["value"]) for name, entry in run.settings["args"].items()
             if entry["from"] == "given" and name not in ("data", "weights", "out")]
    return printable(" ".join(["train.py", *given]) + f", on {data}")


def labels(runs):
    """What each run has that another has not.   -> ["A: --option gvac", …]"""
    names = [name for name in dict.fromkeys(name for run in runs for name in run.values)
             if name not in NO_MATTER]
    differ = [name for name in names
              if len({str(run.values.get(name)) for run in runs}) > 1]
    for name in ("data", "weights"):
        if len({place_of(run.values[name]) for run in runs}) > 1:
            differ.append(name)

    def words(run):
        return ", ".join(flag(name, place_of(run.values[name]) if name in NO_MATTER else
                              run.values.get(name)) for name in differ)
    return [printable(f"{letter(k)}: {words(run) or 'the same flags'}")
            for k, run in enumerate(runs)]


def letter(k):
    return f"{chr(65 + k % 26)}{k // 26 or ''}"


def state(run):
    """A sentence: finished, running or stopped, and how far it is."""
    step = run.last.get("step", 0)
    if run.result:
        seconds, at = run.result["seconds"], run.result.get("step")
        within = f"update {at}, in " if at and run.values.get("eval_every") else ""
        return (f"Finished: {step} updates in {clock(seconds)}, "
                f"{seconds / max(1, step):.2f} s each; the best on dev after {within}epoch "
                f"{run.result['epoch']}.")
    epochs = run.values["epochs"] + (run.values.get("para_first") or 0)
    words = (f"after update {step}, in epoch {run.last['epoch']} of {epochs}"
             if "epoch" in run.last else "before its first update")
    more = ("" if run.running else f" To continue it: python train.py --resume "
            f"{printable(run.path)}")
    return (f"{'Running' if run.running else 'Stopped'} {words}; last written "
            f"{clock(run.age)} ago.{more}")


# --- Curves ---

def edges_of(runs):
    """Bins of steps for all curves of a page: (0, w], (w, 2w], …   -> [n + 1]"""
    last = max(max(steps, default=0) for steps, _ in (run.series("lr") for run in runs))
    width = float(max(1, math.ceil(last / BINS)))
    return np.arange(math.ceil(max(last, 1) / width) + 1) * width


def binned(steps, values, edges, mean=True):
    """By bin the mean of the finite values, or (lowest, highest); NaN where there is none.
    """
    place = np.clip(np.searchsorted(edges, steps) - 1, 0, len(edges) - 2)
    keep, n = np.isfinite(values), len(edges) - 1
    place, values = place[keep], values[keep]
    count = np.bincount(place, minlength=n)
    if mean:
        total = np.bincount(place, values, minlength=n)
        return np.where(count, total / np.maximum(count, 1), math.nan)
    low, high = np.full(n, math.inf), np.full(n, -math.inf)
    np.minimum.at(low, place, values)
    np.maximum.at(high, place, values)
    return low, high


def middles(edges):
    return (edges[1:] + edges[:-1]) / 2


def curve(runs, name, words, edges, raw=False, rule=None):
    """A panel with one name of the log, a line for each run, against the step.

    raw: also each step's value, or, where they are too many, their range. rule: a value
    that is marked. -> None if no run has logged it
    """
    found = {k: run.series(name) for k, run in enumerate(runs)}
    found = {k: pair for k, pair in found.items() if np.isfinite(pair[1]).any()}
    if not found:
        return None
    means = {k: binned(*pair, edges) for k, pair in found.items()}
    seen = np.concatenate([values[np.isfinite(values)] for values in means.values()])
    if raw:     # an outlier stays in the frame, but does not set the scale
        seen = np.append(seen, [np.nanpercentile(values, [2, 98])
                                for _, values in found.values()])
    log = name != "lr" and seen.min() > 0 and seen.max() > 30 * seen.min()
    y = ((seen.min() / 1.2, seen.max() * 1.2) if log else
         chart.wide(*(map(float, (seen.min(), seen.max())))))
    panel = chart.Panel(words, "step", (0, float(edges[-1])), y, log=log)
    if rule is not None and y[0] < rule < y[1]:
        panel.rule(y=rule)
    for k, (steps, values) in found.items():
        if raw and len(runs) == 1 and len(steps) <= 400:
            panel.line(steps, values, k, "raw")
        elif raw:
            fine = np.linspace(edges[0], edges[-1], 3 * BINS)
            panel.area(middles(fine), *binned(steps, values, fine, mean=False),
                       f"spread {'' if len(runs) == 1 else 'thin '}s{k}")
    sparse = [k for k, (steps, _) in found.items() if len(steps) < len(edges) / 2]
    for k, values in means.items():
        x, y = (found[k] if k in sparse else (middles(edges), values))
        panel.line(x, y, k, marks=k in sparse)
    panel.hits(edges, [tip(runs, {k: values[i] for k, values in means.items()},
                           f"steps {edges[i] + 1:.0f} to {edges[i + 1]:.0f}"
                           if edges[1] > 1 else f"step {edges[i + 1]:.0f}")
                       for i in range(len(edges) - 1)])
    return panel


def tip(runs, values, words):
    """What pointing at a place says: a line for each run.   values: {run's number: value}
    """
    if len(runs) == 1:
        return f"{words}: {', '.join(map(chart.short, values.values()))}"
    return "\n".join([words, *(f"{letter(k)}  {chart.short(value)}"
                               for k, value in values.items())])


def dev_curve(runs, name, words):
    """A panel with one task's dev scores by epoch, a line for each run.

    With --eval-every, which evaluates within an epoch too, by step.
    """
    found = {}
    for k, run in enumerate(runs):
        points = [(epoch, step, dev[name]) for epoch, step, dev in run.scores()
                  if name in dev]
        if points:
            found[k] = np.array(points, float).T
    if not found:
        return None
    by_step = any(len(set(epochs)) < len(epochs) for epochs, _, _ in found.values())
    unit = "step" if by_step else "epoch"
    lines = {k: (steps if by_step else epochs, values)
             for k, (epochs, steps, values) in found.items()}
    seen = np.concatenate([values for _, values in lines.values()])
    places = sorted({x for xs, _ in lines.values() for x in xs})
    half = min([b - a for a, b in zip(places, places[1:])] or [1]) / 2
    ends = places[0] - half, places[-1] + half
    panel = chart.Panel(words, unit, ends, chart.wide(seen.min(), seen.max()),
                        x_ticks={x: chart.number(x) for x in chart.ticks(*ends)
                                 if x == int(x)})
    for k, (xs, values) in lines.items():
        panel.line(xs, values, k, marks=len(xs) < 40)
    if len(runs) == 1 and runs[0].result:
        panel.rule(x=min(max(runs[0].result.get(unit, ends[0]), ends[0]), ends[1]))
    for x in places:
        values = {k: float(values[xs == x][0]) for k, (xs, values) in lines.items()
                  if (xs == x).any()}
        panel.hits([x - half, x + half], [tip(runs, values, f"{unit} {x:g}")])
    return panel


def names_of(runs):
    """Tasks that some run has trained or scored, in the order of heads.tasks()."""
    used = {name for run in runs for name in run.tasks}
    used |= {name for run in runs for _, _, dev in run.scores() for name in dev}
    return [task for task in heads.tasks() if task.name in used]


def training(runs):
    """The curves of one or several runs.   [report 4.4]   -> parts"""
    if not any(run.last for run in runs):
        return []
    edges, tasks, figures = edges_of(runs), names_of(runs), []
    legend = list(enumerate(labels(runs))) if len(runs) > 1 else []
    window = f"means over {edges[1]:.0f} steps" if edges[1] > 1 else "of each step"
    clips = {run.values.get("clip") for run in runs}
    clip = clips.pop() if len(clips) == 1 else None
    at_best = ("; the dashed line is the best model, which was kept"
               if len(runs) == 1 and runs[0].result else "")

    def add(name, caption, panels):
        panels = [panel for panel in panels if panel]
        if panels:
            figures.append(Figure(name, caption, panels, legend, own_legend=False))
    faint = ("; faint: single steps, or the range of steps that are close"
             if edges[1] > 1 else "")
    add("loss", f"Loss by task on training batches, without SMART's terms: {window}{faint}",
        [curve(runs, f"loss_{task.name}", f"loss, {task.heading}", edges, raw=True)
         for task in tasks])
    add("dev", f"Scores on dev by epoch{at_best}",
        [dev_curve(runs, task.name, f"dev, {task.title}") for task in tasks]
        + [dev_curve(runs, "overall", "dev, overall")])
    add("rate", f"Learning rate, and norm of the update's gradient before clipping "
        f"({window}); the dashed line, if it is in sight, is --clip",
        [curve(runs, "lr", "learning rate", edges),
         curve(runs, "grad_norm", "gradient norm", edges, raw=True, rule=clip)])
    for name, words, caption in (
            ("smooth", "R_s", "SMART's smoothness term, without its weight"),
            ("bregman", "D_Breg", "SMART's Bregman term, without its weight"),
            ("smooth_grad_ratio", "gradient ratio", "Size of the smoothness term's "
             "gradient beside that of the loss, at every 50th step; near 0 the term does "
             "nothing")):
        add(name, caption, [curve(runs, f"{name}_{task.name}", f"{words}, {task.heading}",
                                  edges) for task in tasks])
    skipped = [f"{letter(k)} " * (len(runs) > 1) + str(sum("skipped" in line for _, line in
                                                           run.lines))
               for k, run in enumerate(runs)]
    some = any("skipped" in line for run in runs for _, line in run.lines)
    return [Heading("Training"), *(by_epoch(runs[0], tasks) if len(runs) == 1 else []),
            *([Paragraph(f"Updates that were skipped, as their gradient was not finite: "
                         f"{', '.join(skipped)}.")] if some else []),
            *figures]


def by_epoch(run, tasks):
    """Mean loss and dev scores of each epoch.   -> parts"""
    scores = {epoch: dev for epoch, _, dev in run.scores()}
    trained = [task.name for task in tasks if task.name in run.tasks]
    sums = {}
    for _, line in run.lines:
        for name in trained:
            value = line.get(f"loss_{name}")
            if reading.is_a(value, reading.NUMBER) and reading.is_a(line.get("epoch"),
                                                                    reading.NUMBER):
                sums.setdefault(line["epoch"], {}).setdefault(name, []).append(value)
    columns = [*(task.name for task in tasks), "overall"]
    columns = [name for name in columns if any(name in dev for dev in scores.values())]
    rows = [[f"{epoch:g}", *(f"{np.mean(sums.get(epoch, {}).get(name, math.nan)):.3f}"
                             for name in trained),
             *(f"{scores[epoch][name]:.3f}" if name in scores.get(epoch, {}) else ""
               for name in columns)] for epoch in sorted({*sums, *scores})]
    rows = [[cell.replace("nan", "") for cell in row] for row in rows]
    return [Table(["epoch", *(f"loss {name}" for name in trained),
                   *(f"dev {name}" for name in columns)], rows)] if rows else []


def compared(runs):
    """What differs between several runs, and what came out.   -> parts"""
    names = [*(task.name for task in names_of(runs)), "overall"]
    rows = []
    for k, run in enumerate(runs):
        epoch, dev = run.best()
        step = run.last.get("step", 0)
        finished = run.result and step
        rows.append([letter(k), *(f"{dev[name]:.3f}" if name in dev else ""
                                  for name in names),
                     "" if epoch is None else f"{epoch:g}", f"{step:g}",
                     f"{run.result['seconds'] / step:.2f}" if finished else ""])
    return [
        Legend(list(enumerate(labels(runs)))),
        *(Paragraph(f"{letter(k)}, in {printable(run.path)}: {state(run)}")
          for k, run in enumerate(runs)),
        Paragraph("Scores on dev of each run's best epoch, and seconds for an update. (Two "
                  "runs differ in time by chance too, and in scores by their seeds.)"),
        Table(["run", *names, "epoch", "updates", "s each"], rows)]
