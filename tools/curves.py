"""How runs went, from their folders: also of a run that still goes on, or was stopped.

    read_run()      args.json, metrics.jsonl and, if there is one, result.json, checked
    4.4  training()  loss by task, dev scores, learning rate, gradient norm, SMART's terms
    compared()      several runs beside each other: what differs, scores, time

One color stands for one run on the whole page.
"""

import dataclasses
import errno
import itertools
import math
import os
import time

import numpy as np

import heads
import multitask
from plumbing import declared, flags, folder, reading, sources
from plumbing.console import printable, quoted
from plumbing.progress import clock
from tools import chart
from tools.page import Figure, Heading, Legend, Paragraph, Table, counted

BINS = 60               # of a smoothed curve, at most
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

    def trained(self, path, dev, place=None):
        """Scores on dev of the trained tasks, and their overall score.

        Trap: an untrained head's score is noise. train.py logs it, for Table 2, but selects
        the best model without it.
        """
        reading.check_fields(path, dev, dict.fromkeys(self.tasks, reading.NUMBER), place)
        found = {task: dev[task.name] for task in heads.tasks() if task.name in self.tasks}
        return {**{task.name: score for task, score in found.items()},
                "overall": heads.overall_score(found)}

    def scores(self):
        """Evaluations on dev.   -> [(epoch, step, see trained())]"""
        found = []
        for place, line in self.lines:
            if "dev" in line:
                reading.check_fields(self.log, line, {
                    "epoch": reading.NUMBER, "step": reading.NUMBER, "dev": dict}, place)
                found.append((line["epoch"], line["step"],
                              self.trained(self.log, line["dev"], place)))
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
        run.result["dev"] = run.trained(result, run.result["dev"])
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
        return (f"Finished: {step} updates in {clock(seconds)}, evaluations included; the "
                f"best on dev after {within}epoch {run.result['epoch']}.")
    words, most = "before its first update", run.values.get("max_steps")
    if "epoch" in run.last:
        epochs = run.values["epochs"] + (run.values.get("para_first") or 0)
        # With both limits the log does not tell which one comes first.
        update, of = (f"{step} of at most {most}", "of at most") if most else (step, "of")
        words = f"after update {update}, in epoch {run.last['epoch']} {of} {epochs}"
    return (f"{'Running' if run.running else 'Stopped'} {words}; last written "
            f"{clock(run.age)} ago.")


def advice(run):
    """What to do about a run that was stopped, or skips its updates; else "".

    The command comes last, so that no full stop gets into it.
    """
    steps = [line for _, line in run.lines if "dev" not in line]
    skipped = len(list(itertools.takewhile(lambda line: "skipped" in line, steps[::-1])))
    words = (f" Skipped at the end, as the gradient was not finite: "
             f"{counted(skipped, 'update')}." if skipped else "")
    if run.result or run.running:
        return words
    if skipped:     # the checkpoint leads to the same updates again
        return (f"{words} A resume would end in the same way: start again, with a smaller "
                f"--lr, a --warmup, or --amp off.")
    return f" To continue it: python train.py --resume {quoted(run.path)}"


# --- Curves ---

def edges_of(runs):
    """Bins of steps for all curves of a page: 1 to w, w + 1 to 2w, …   -> [n + 1]

    Edges lie between steps, at ½, w + ½, …, so that a bin's middle is its mean step.
    """
    last = max(max(steps, default=0) for steps, _ in (run.series("lr") for run in runs))
    last = max(1, last)
    return np.append(np.arange(0, last, math.ceil(last / BINS)), last) + .5


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

    raw: also each step's value, or, where they are too many, the range of each mean's
    steps. rule: a value that is marked. -> None if no run has logged it
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
    panel = chart.Panel(words, "step", (edges[0], edges[-1]), y, log=log,
                        x_ticks=whole_ticks(edges[0], edges[-1]))
    if rule is not None and y[0] < rule < y[1]:
        panel.rule(y=rule)
    # Where each bin has one step, its mean is this step's value: one line, no faint one.
    single = [k for k, (_, values) in found.items()
              if np.isfinite(values).sum() == np.isfinite(means[k]).sum()]
    for k, (steps, values) in found.items():
        if raw and k not in single and single_steps(runs, edges):
            panel.line(steps, values, k, "raw")
        elif raw and k not in single:
            panel.area(middles(edges), *binned(steps, values, edges, mean=False),
                       f"spread {'' if len(runs) == 1 else 'thin '}s{k}")
    for k, values in means.items():
        x, y = (found[k] if k in single else (middles(edges), values))
        panel.line(x, y, k, marks=k in single and len(x) < len(edges) / 2)
    panel.hits(edges, [tip(runs, {k: values[i] for k, values in means.items()},
                           named_steps(first + .5, end - .5))
                       for i, (first, end) in enumerate(zip(edges, edges[1:]))])
    return panel


def single_steps(runs, edges):
    """Is there room for each step's value behind the means?"""
    return len(runs) == 1 and edges[-1] < 401


def named_steps(first, last):
    return f"step {first:.0f}" if first == last else f"steps {first:.0f} to {last:.0f}"


def whole_ticks(low, high):
    """Ticks for an axis of steps or epochs: no halves."""
    return {x: chart.number(x) for x in chart.ticks(low, high) if x == int(x)}


def tip(runs, values, words):
    """What pointing at a place says: a line for each run.   values: {run's number: value}
    """
    if len(runs) == 1:
        return f"{words}: {', '.join(map(chart.short, values.values()))}"
    return "\n".join([words, *(f"{letter(k)}  {chart.short(value)}"
                               for k, value in values.items())])


def dev_unit(runs):
    """"epoch"; with --eval-every, which evaluates within an epoch too, "step"."""
    epochs = [[epoch for epoch, _, _ in run.scores()] for run in runs]
    return "step" if any(len(set(own)) < len(own) for own in epochs) else "epoch"


def dev_curve(runs, name, words):
    """A panel with one task's dev scores by dev_unit(), a line for each run."""
    found = {}
    for k, run in enumerate(runs):
        points = [(epoch, step, dev[name]) for epoch, step, dev in run.scores()
                  if name in dev]
        if points:
            found[k] = np.array(points, float).T
    if not found:
        return None
    unit = dev_unit(runs)
    lines = {k: (steps if unit == "step" else epochs, values)
             for k, (epochs, steps, values) in found.items()}
    seen = np.concatenate([values for _, values in lines.values()])
    places = np.array(sorted({x for xs, _ in lines.values() for x in xs}))
    half = np.mean(np.diff(places)) / 2 if len(places) > 1 else .5
    ends = places[0] - half, places[-1] + half
    panel = chart.Panel(words, unit, ends, chart.wide(seen.min(), seen.max()),
                        x_ticks=whole_ticks(*ends))
    for k, (xs, values) in lines.items():
        panel.line(xs, values, k, marks=len(xs) < 40)
    if len(runs) == 1 and runs[0].result:
        panel.rule(x=min(max(runs[0].result.get(unit, ends[0]), ends[0]), ends[1]))
    at = [{k: float(values[xs == x][0]) for k, (xs, values) in lines.items()
           if (xs == x).any()} for x in places]
    # Every place of the panel belongs to the evaluation that is nearest to it.
    panel.hits([ends[0], *middles(places), ends[1]],
               [tip(runs, values, f"{unit} {x:g}") for x, values in zip(places, at)])
    return panel


def names_of(runs):
    """Tasks that some run was trained on, in the order of heads.tasks()."""
    used = {name for run in runs for name in run.tasks}
    return [task for task in heads.tasks() if task.name in used]


def left_out(runs):
    """A sentence about tasks that a run has scored but was not trained on, or ""."""
    names = {name: 0 for run in runs for _, line in run.lines
             if isinstance(line.get("dev"), dict) for name in line["dev"]
             if name not in (*run.tasks, "overall")}
    if not names:
        return ""
    which = (f"the run was not trained on ({printable(', '.join(names))})"
             if len(runs) == 1 else "a run was not trained on")
    return (f" Not shown, nor part of overall: scores of tasks that {which}; their heads "
            f"are random.")


def training(runs):
    """The curves of one or several runs.   [report 4.4]   -> parts"""
    if not any(run.last for run in runs):
        return []
    edges, tasks, figures = edges_of(runs), names_of(runs), []
    legend = list(enumerate(labels(runs))) if len(runs) > 1 else []
    width = edges[1] - edges[0]
    window = f"means over {width:.0f} steps" if width > 1 else "of each step"
    clips = {run.values.get("clip") for run in runs}
    clip = clips.pop() if len(clips) == 1 else None
    at_best = ("; the dashed line is the best model, which was kept"
               if len(runs) == 1 and runs[0].result else "")

    def add(name, caption, panels):
        panels = [panel for panel in panels if panel]
        if panels:
            figures.append(Figure(name, caption, panels, legend, own_legend=False))
    faint = ""
    if width > 1:
        faint = ("; faint: single steps" if single_steps(runs, edges) else
                 "; faint: the range of these steps")
    add("loss", f"Loss by task on training batches, without other terms: {window}{faint}",
        [curve(runs, f"loss_{task.name}", f"loss, {declared.heading(task)}", edges,
               raw=True) for task in tasks])
    add("dev", f"Scores on dev by {dev_unit(runs)}{at_best}",
        [dev_curve(runs, task.name, f"dev, {declared.title(task)}") for task in tasks]
        + [dev_curve(runs, "overall", "dev, overall")])
    add("rate", f"Learning rate, and norm of the update's gradient before clipping "
        f"({window}); the dashed line, if it is in sight, is --clip",
        [curve(runs, "lr", "learning rate", edges),
         curve(runs, "grad_norm", "gradient norm", edges, raw=True, rule=clip)])
    for name, words, caption in (
            ("smooth", "R_s", "SMART's smoothness term, without its weight"),
            ("bregman", "D_Breg", "SMART's Bregman term, without its weight"),
            ("r_drop", "R-Drop", "How far apart R-Drop's two passes are, without α"),
            ("smooth_grad_ratio", "gradient ratio", "Size of the smoothness term's "
             "gradient beside that of the loss, at every 50th step; near 0 the term does "
             "nothing")):
        add(name, caption, [
            curve(runs, f"{name}_{task.name}", f"{words}, {declared.heading(task)}", edges)
            for task in tasks])
    skipped = [f"{letter(k)} " * (len(runs) > 1) + str(sum("skipped" in line for _, line in
                                                           run.lines))
               for k, run in enumerate(runs)]
    some = any("skipped" in line for run in runs for _, line in run.lines)
    return [Heading("Training"), *(by_epoch(runs[0], tasks) if len(runs) == 1 else []),
            *([Paragraph(f"Updates that were skipped, as their gradient was not finite: "
                         f"{', '.join(skipped)}.")] if some else []),
            *figures]


def by_epoch(run, tasks):
    """Mean loss of each epoch, and dev scores at its end.   -> parts"""
    scores = {epoch: dev for epoch, _, dev in run.scores()}
    trained = [task.name for task in tasks]
    sums = {}
    for _, line in run.lines:
        for name in trained:
            value = line.get(f"loss_{name}")
            if reading.is_a(value, reading.NUMBER) and reading.is_a(line.get("epoch"),
                                                                    reading.NUMBER):
                sums.setdefault(line["epoch"], {}).setdefault(name, []).append(value)
    columns = [*trained, "overall"] if scores else []
    rows = [[f"{epoch:g}", *(f"{np.mean(sums.get(epoch, {}).get(name, math.nan)):.3f}"
                             for name in trained),
             *(f"{scores[epoch][name]:.3f}" if name in scores.get(epoch, {}) else ""
               for name in columns)] for epoch in sorted({*sums, *scores})]
    rows = [[cell.replace("nan", "") for cell in row] for row in rows]
    last = [Paragraph("Mean loss of each epoch, and dev at its last evaluation:")]
    return [*(last if dev_unit([run]) == "step" else []),
            Table(["epoch", *(f"loss {name}" for name in trained),
                   *(f"dev {name}" for name in columns)], rows)] if rows else []


def compared(runs):
    """What differs between several runs, and what came out.   -> parts"""
    names = [*(task.name for task in names_of(runs)), "overall"]
    rows = []
    for k, run in enumerate(runs):
        epoch, dev = run.best()
        step = run.last.get("step", 0)
        rows.append([letter(k), *(f"{dev[name]:.3f}" if name in dev else ""
                                  for name in names),
                     "" if epoch is None else f"{epoch:g}", f"{step:g}",
                     clock(run.result["seconds"]) if run.result else ""])
    return [
        Legend(list(enumerate(labels(runs)))),
        *(Paragraph(f"{letter(k)}, in {printable(run.path)}: {state(run)}{advice(run)}")
          for k, run in enumerate(runs)),
        Paragraph(f"Scores on dev of each run's best model, its epoch, and the time of the "
                  f"whole run, evaluations included. (Two runs differ in time by chance "
                  f"too, and in scores by their seeds.){left_out(runs)}"),
        Table(["run", *names, "epoch", "updates", "time"], rows)]
