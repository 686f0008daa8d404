"""What a run did: curves while it goes on, and section 5 of the report when it is finished.

    python tools/analyze.py RUN [RUN …] [--watch] [--data DIR] [--out DIR]

    4.4    tools/curves.py: losses, dev scores, learning rate, SMART's terms; several runs
    5      classes(): confusion matrix, how often off by 1, 2, …        (Figure 1: SST)
    5      binary(): false positives and negatives, the score           (Figure 2: para)
    5      graded(): errors, their mean, sd and skew                    (Figure 3: STS)
    5      quoted(): the examples that the report quotes
    3.3    tools/gradients.py: which task gradients conflict, and what is chance

Everything is about dev. It is printed as text, and written with figures to
RUN/analysis/analysis.html, with an SVG file for each figure beside it.

An error is truth minus prediction, so that above 0 the model "underpredicts" (D17).
D15: Figure 1 is captioned STS in the report and shows SST.
"""

import dataclasses
import math
import os
import re
import sys
import time
import warnings

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data
import heads
from plumbing import command, declared, flags, machine, reading, safetensors, tsv
from plumbing.console import printable
from plumbing.files import file_digest
from tools import chart, curves, page, results
from tools.gradients import gradients, read_steps
from tools.page import Figure, Heading, Paragraph, Table, counted, share

EXAMPLES = 5        # of the worst, and of the best, for each task


@dataclasses.dataclass(frozen=True)
class Quoted:
    """An example that the report quotes, with its numbers as printed."""
    task: str
    truth: str
    predicted: str
    first: str
    second: str | None = None

    @property
    def texts(self):
        return [text for text in (self.first, self.second) if text is not None]


QUOTED = [
    Quoted("sst", "4", "1",
           "the acting , costumes , music , cinematography and sound are all astounding "
           "given the production 's austere locales ."),
    Quoted("sst", "0", "3", "it 's everything you do n't go to the movies for ."),
    Quoted("sst", "4", "4", "a warm , funny ,engaging film"),
    Quoted("sst", "4", "4",
           "dazzles with its fully-written characters , its determined stylishness -lrb- "
           "which always relates to characters and story -rrb- and johnny dankworth 's "
           "best soundtrack in years ."),
    Quoted("para", "0", "1", "what 's your favourite jackie chan movie ?",
           "what are the best movies of jackie chan ?"),
    Quoted("para", "1", "0",
           "why does india have immigration checks/passport control while leaving the "
           "country ?",
           "what does immigration officers check on their screen while leaving india ?"),
    Quoted("para", "1", "1", "how do i speak english fluently ?",
           "how can i speak english more fluently ?"),
    Quoted("sts", "3.2", "0.111",
           "in these days of googling , it 's sloppy to not find the source of a quotation "
           ".",
           "i agree with kate sherwood , you should be able to attribute most quotes these "
           "days by simple fact checking ."),
    Quoted("sts", "0.2", "0.1995", "two lambs stand on a grassy hill .",
           "two dirt bikers riding over dirt hill ."),
]


# --- A finished run ---

@dataclasses.dataclass
class Dev:
    """Truth and prediction on the N dev examples of one task."""
    task: heads.Task
    texts: list                         # [N] tuples of one or two strings
    truth: np.ndarray                   # [N]
    predicted: np.ndarray               # [N], from the run's prediction file
    probabilities: np.ndarray | None    # [N, C], or [N] where C = 1: from best/

    @property
    def error(self):
        return self.truth - self.predicted


def check_prediction(path, task, example, value):
    """Raise ValueError for a prediction that the task does not have."""
    needed, right = "a finite number", np.isfinite(value)
    if task.whole_labels:
        needed = f"a class from {task.lowest} to {task.highest}"
        right = task.lowest <= value <= task.highest and value == int(value)
    if not right:
        raise reading.mistake(path, f"{needed} for {example}", f"{value:g}; did the "
                              f"training diverge?")


def read_dev(run, data_folder, model):
    """Truth, predictions and probabilities of the tasks that the run was trained on.

    run: a curves.Run. -> {task name: Dev}
    """
    found = {}
    for name, task in model.tasks.items():
        if name not in run.tasks:
            continue
        path = os.path.join(run.path, "predictions", f"{name}-dev-output.csv")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # the run itself has named skipped rows
            dataset = data.load(data_folder, task, "dev", str)
        predictions = results.read_predictions(path)
        ids = list(map(tsv.same_id, dataset.ids))
        if set(ids) != set(predictions):
            raise ValueError(f"{path} has other examples than {dataset.path}; give the "
                             f"run's own data with --data")
        digest = file_digest(dataset.path)
        if digest != run.settings["digests"].get(
                os.path.join("data", os.path.basename(dataset.path)), digest):
            warnings.warn(f"{dataset.path} has changed since {run.path} was scored on it: "
                          f"the scores here are those on the file as it is now")
        for example in ids:
            check_prediction(path, task, example, predictions[example])
        _, probabilities = model.predict(name, dataset.tokens, with_probabilities=True)
        found[name] = Dev(task, dataset.tokens, dataset.labels.astype(np.float64),
                          np.array([predictions[i] for i in ids]), probabilities)
    return found


# --- 5 A section for each kind of task ---

# The report's figures, and what it says to them.
FIGURES = {"sst": 1, "para": 2, "sts": 3}
REMARKS = {
    "sst": "often off in our prediction by 1, but much less likely to be off by 2 or 3",
    "para": "more likely a false positive than a false negative",
    "sts": "slightly positively centered, more likely to underpredict"}


def remark(dev):
    said = REMARKS.get(dev.task.name)
    return f" (The report: {said}.)" if said else ""


def figure(dev, panels, legend=()):
    """The task's figure, under its number in the report where it has one."""
    number = FIGURES.get(dev.task.name)
    caption = f"rrors on {declared.heading(dev.task)}, dev"
    if number:
        return Figure(f"figure{number}", f"Figure {number}: e{caption}", panels, legend)
    return Figure(f"errors_{dev.task.name}", f"E{caption}", panels, legend)


def named(task, label):
    """A label with its meaning, if that is known: "4 positive"."""
    place = int(label - task.lowest)
    return f"{label:.0f} {task.classes[place]}" if task.classes else f"{label:.0f}"


def examples(dev, order, name, values):
    """A table of examples: truth, prediction, a value [N] or None with its name, text."""
    def row(i):
        predicted = (f"{dev.predicted[i]:.0f}" if dev.task.whole_labels
                     else f"{dev.predicted[i]:.3f}")
        return [f"{dev.truth[i]:g}", predicted,
                *([] if values is None else [f"{values[i]:.3f}"]),
                "  |  ".join(printable(text.strip()) for text in dev.texts[i])]
    return Table(["truth", "predicted", *([] if values is None else [name]), "text"],
                 [row(i) for i in order])


def worst_and_best(dev, sure, name, values):
    """The examples at both ends: by size of the error, then the surest.   -> parts"""
    size = np.abs(dev.error) if dev.task.ordered else 1.0 * (dev.error != 0)
    worst = [i for i in np.lexsort((-sure, -size)) if size[i]][:EXAMPLES]
    best = [i for i in np.argsort(-sure, kind="stable") if not size[i]][:EXAMPLES]
    first = "the largest errors first, of these the surest" if dev.task.ordered else (
        "the surest first")
    if values is None:      # nothing says how sure it is: the file's order
        first = "the largest errors first" if dev.task.ordered else "the first in the file"
    surest = "the first in the file" if values is None else "the surest first"
    return [*([Paragraph(f"Worst, {first}:"), examples(dev, worst, name, values)]
              if worst else []),
            *([Paragraph(f"Right, {surest}:"), examples(dev, best, name, values)]
              if best else [])]


def classes(dev):
    """The confusion matrix, and sizes of errors or shares by class.   [report 5, Figure 1]

    -> parts
    """
    task, N, error = dev.task, len(dev.truth), np.rint(dev.error).astype(int)
    labels = np.arange(int(task.lowest), int(task.highest) + 1)
    K, names = len(labels), [named(task, label) for label in labels]
    counts = np.zeros((K, K), int)
    np.add.at(counts, tuple((values - labels[0]).astype(int)
                            for values in (dev.truth, dev.predicted)), 1)
    off, number = np.bincount(np.abs(error), minlength=K), counts.sum(1)
    # Squared-error SST (D1) has no probabilities; there the file's order decides.
    sure = (np.zeros(N) if dev.probabilities is None
            else dev.probabilities.max(-1).astype(np.float64))
    right = np.diagonal(counts) / np.maximum(1, number)
    if task.ordered:
        sizes = np.arange(1 - K, K)
        bars = [((error == size).sum(), f"{size:+d}" if size else "0") for size in sizes]
        panel = bars_of("errors", "error: truth - prediction, in classes", bars, "examples")
    else:
        panel = bars_of("right by class", "true class",
                        [(value, label) for value, label in zip(right, labels)], "share")

    words = f"Of {counted(N, 'example')} {share(off[0], N)} are right"
    if task.ordered:
        words += f", {share(off[1], N)} off by 1" + "".join(
            f", {share(off[size], N)} by {size}" for size in range(2, K)) + (
            f". {share((error > 0).sum(), N)} are rated too low, "
            f"{share((error < 0).sum(), N)} too high.")
    else:
        by_class = [f"{name} {share(counts[k, k], number[k])}"
                    for k, name in enumerate(names)]
        words += f"; by class: {', '.join(by_class)}."
    return [
        Heading(declared.heading(task)), Paragraph(words + remark(dev)),
        Table(["true class", *(f"predicted {label}" for label in labels)],
              [[name, *map(str, row)] for name, row in zip(names, counts)],
              [[0, *row] for row in counts / np.maximum(1, number)[:, None]]),
        figure(dev, [panel]),
        *worst_and_best(dev, sure, "p", None if dev.probabilities is None else sure)]


def bars_of(title, x_label, bars, unit):
    """A panel with a bar for each (height, its label)."""
    heights = [float(height) for height, _ in bars]
    top = 1.15 * (max(heights) or 1)
    panel = chart.Panel(title, x_label, (-.6, len(bars) - .4), (0, top), y_label=unit,
                        x_ticks={k: str(label) for k, (_, label) in enumerate(bars)})
    for k, (height, label) in enumerate(bars):
        shown = f"{height:.2f}" if isinstance(height, float) else f"{height}"
        panel.bar(k, .7, height, f"{label}: {shown} {unit}", label=shown)
    return panel


def histogram(panel, edges, values, classes="bar", side=0, words=""):
    """Bars of counts in a panel; side: 0, or -1 and 1 for the halves of two groups."""
    counts, width = np.histogram(values, edges)[0], edges[1] - edges[0]
    for low, count in zip(edges, counts):
        if count:
            panel.bar(low + width * (.5 + .22 * side), width * (.42 if side else .9), count,
                      f"{words}{chart.short(low)} to {chart.short(low + width)}: "
                      f"{counted(count, 'example')}", classes)


def binary(dev):
    """False positives and negatives, and the score.   [report 5, Figure 2]   -> parts"""
    true, wrong = dev.truth == dev.task.highest, dev.predicted != dev.truth
    positive, negative = (wrong & ~true).sum(), (wrong & true).sum()
    no, yes = (named(dev.task, label) for label in (dev.task.lowest, dev.task.highest))
    p = dev.probabilities
    if p is not None:
        p = (p[:, 1] if p.ndim == 2 else p).astype(np.float64)      # [N]: of the label 1

    panels, legend = [bars_of("errors", "", [(positive, "false positives"),
                                            (negative, "false negatives")],
                              "examples")], []
    if p is not None:
        edges = np.linspace(0, 1, 21)
        most = max(np.histogram(p[group], edges)[0].max() for group in (true, ~true))
        score = chart.Panel("score", f"predicted probability of {yes}", (0, 1),
                            (0, 1.1 * max(1, most)), y_label="examples")
        histogram(score, edges, p[~true], "open", -1, f"truth {no}, p ")
        histogram(score, edges, p[true], "bar", 1, f"truth {yes}, p ")
        score.rule(x=.5)
        panels.append(score)
        legend = [("open", f"score where the truth is {no}"),
                  ("bar", f"where it is {yes}")]

    words = (f"Of {counted(len(true), 'example')} {share((~wrong).sum(), len(true))} are "
             f"right. False positives: {share(positive, (~true).sum())} of the "
             f"{(~true).sum()} that are {no}; false negatives: "
             f"{share(negative, true.sum())} of the {true.sum()} that are {yes}.")
    if p is not None and true.any() and not true.all():
        words += (f" Mean probability of {yes}: {p[~true].mean():.3f} where it is {no}, "
                  f"{p[true].mean():.3f} where it is {yes}.")
    shown = np.zeros(len(true)) if p is None else p
    return [Heading(declared.heading(dev.task)), Paragraph(words + remark(dev)),
            figure(dev, panels, legend),
            *worst_and_best(dev, np.abs(shown - .5), "p", None if p is None else shown)]


def moments(error):
    """-> mean, sd, skew: the mean of ((error - mean) / sd)³, 0 if all errors are equal"""
    mean, sd = error.mean(), error.std()
    return mean, sd, (((error - mean) / sd) ** 3).mean() if sd > 0 else 0.0


def graded(dev):
    """The histogram of errors, predicted against true.   [report 5, Figure 3]   -> parts"""
    error, N = dev.error, len(dev.truth)
    mean, sd, skew = moments(error)
    order = np.argsort(np.abs(error), kind="stable")
    worst = min(EXAMPLES, (N + 1) // 2)     # of a few examples none is in both tables

    edges = np.histogram_bin_edges(error, 30)
    most = np.histogram(error, edges)[0].max()
    errors = chart.Panel("errors", "error: truth - prediction", (edges[0], edges[-1]),
                         (0, 1.15 * most), y_label="examples")
    histogram(errors, edges, error, "open")
    if sd > 0:
        x = np.linspace(edges[0], edges[-1], 100)
        errors.line(x, N * (edges[1] - edges[0]) / (sd * np.sqrt(2 * np.pi))
                    * np.exp(-((x - mean) / sd) ** 2 / 2), 1)
    errors.rule(x=mean)
    label, ends = dev.task.label, (dev.task.lowest, dev.task.highest)
    both = chart.Panel(f"predicted {label} (up) and true", f"true {label}",
                       chart.wide(*ends), chart.wide(
                           min(ends[0], dev.predicted.min()),
                           max(ends[1], dev.predicted.max())))
    both.line(ends, ends, 1)
    both.dots(dev.truth, dev.predicted)
    tenths = np.linspace(*ends, 11)
    bins = np.clip(np.searchsorted(tenths, dev.truth) - 1, 0, 9)
    both.hits(tenths, [
        f"true {low:g} to {high:g}: {counted((bins == k).sum(), 'example')}"
        + (f", predicted {dev.predicted[bins == k].mean():.2f} ± "
           f"{dev.predicted[bins == k].std():.2f}" if (bins == k).any() else "")
        for k, (low, high) in enumerate(zip(tenths, tenths[1:]))])

    lean = "under" if mean > 0 else "over"
    return [
        Heading(declared.heading(dev.task)),
        Paragraph(
            f"Errors of {counted(N, 'example')} (truth minus prediction): mean "
            f"{mean:+.3f}, sd {sd:.3f}, skew {skew:+.3f}; "
            f"{share((error > 0).sum(), N)} are above 0. On the whole the model "
            f"{lean}predicts." + remark(dev)),
        figure(dev, [errors, both],
               [(1, "left: normal, same mean and sd; right: no error")]),
        Paragraph("Worst, the largest errors first:"),
        examples(dev, order[::-1][:worst], "error", error),
        *([Paragraph("Best, the smallest errors first:"),
           examples(dev, order[:min(EXAMPLES, N - worst)], "error", error)]
          if N > worst else [])]


SECTIONS = {"classes": classes, "binary": binary, "graded": graded}     # by Task.kind


def bare(text):
    """Only letters and digits, in lower case, to compare texts by"""
    return re.sub(r"[\W_]+", "", text.lower())


def quoted(found):
    """What this run makes of the report's own examples.   [report 5]

    -> parts, none where the dev sets have none of them
    """
    rows = []
    for example in QUOTED:
        dev, wanted = found.get(example.task), [bare(text) for text in example.texts]
        places = [i for i, texts in enumerate(dev.texts if dev else [])
                  if list(map(bare, texts)) == wanted]
        if places:
            rows.append([example.task, f"{dev.truth[places[0]]:g}",
                         f"{dev.predicted[places[0]]:.3g}", example.truth,
                         example.predicted, "  |  ".join(example.texts)])
    return [] if not rows else [
            Heading("The report's examples"),
            Paragraph("Those that the dev sets have; case, spaces and punctuation are "
                      "ignored:"),
            Table(["task", "truth", "predicted", "report: truth", "report: predicted",
                   "text"], rows)]


# --- The command ---

def sizes_of(run):
    """Parameters of each shared block of θ, by the shapes in best/.   -> {block: P}

    {} before the first epoch's end, or in the moment in which best/ is replaced.
    """
    path, sizes = os.path.join(run.path, "best", "model.safetensors"), {}
    try:
        tensors, _ = safetensors.read_header(path)
    except (OSError, ValueError):
        return {}
    for name, (_, shape, _, _) in tensors.items():
        layer = re.match(r"encoder\.layer\.(\d+)\.", name)
        block = f"layer {int(layer[1]) + 1}" if layer else name.split(".")[0]
        if block != "heads":
            sizes[block] = sizes.get(block, 0) + math.prod(shape)
    return sizes


def page_of(paths, data_folder=None):
    """The runs in these folders -> (title, parts, [curves.Run])"""
    runs = [curves.read_run(path) for path in paths]
    parts = []
    if len(runs) > 1:
        parts += curves.compared(runs)
    else:
        run, = runs
        weights = printable(curves.place_of(run.values["weights"]))
        more = "" if run.result else " Errors on dev are shown for finished runs only."
        parts.append(Paragraph(f"{curves.state(run)} From the weights of {weights}.{more}"
                               f"{curves.left_out(runs)}{curves.advice(run)}"))
    parts += curves.training(runs)
    if len(runs) == 1 and run.result:
        model = heads.MultitaskBert.from_pretrained(os.path.join(run.path, "best"),
                                                    machine.find_device("auto"))
        found = read_dev(run, data_folder or run.values["data"], model)
        scores = {dev.task: declared.score(dev.task, dev.predicted, dev.truth)
                  for dev in found.values()}
        words = [f"{task.name} {value:.3f}" for task, value in scores.items()]
        parts.insert(1, Paragraph(f"Dev: {', '.join(words)}, overall "
                                  f"{heads.overall_score(scores):.3f}."))
        parts += [part for dev in found.values() for part in SECTIONS[dev.task.kind](dev)]
        parts += quoted(found)
    explain = True
    for k, run in enumerate(runs):
        found = gradients(read_steps(run.log, run.lines, run.tasks), sizes_of(run),
                          curves.letter(k) if len(runs) > 1 else "", explain)
        parts, explain = parts + found, explain and not found
    return curves.title(runs), parts, runs


def watch(paths, data_folder, out, pause=10):
    """Renew the page until the runs are finished, or were stopped."""
    while True:
        title, parts, runs = page_of(paths, data_folder)
        # On a drive without locks a run that goes on is known by its fresh log.
        end = not any(run.running or not run.result and run.age < 60 for run in runs)
        path = page.write(title, parts, out, 0 if end else pause)
        word = "finished" if all(run.result for run in runs) else "stopped"
        print(f"{time.strftime('%H:%M:%S')}  {printable(path)}"
              + (f"  {word}" if end else ""), flush=True)
        if end:
            return
        time.sleep(pause)


def main(argv=None):
    p = command.Parser(__doc__)
    p.add_argument("runs", metavar="RUN", nargs="+",
                   help="the folder of a run of train.py; several are compared")
    p.add_argument("--watch", action="store_true",
                   help="renew the page every 10 s, until the runs end or are stopped")
    p.add_argument("--data", metavar="DIR", help="where the run's data is now (where it "
                   "was)")
    p.add_argument("--out", type=flags.text, metavar="DIR",
                   help="for the page and figures (RUN/analysis of the first)")

    def run():
        args = p.parse_args(argv)
        out = args.out or os.path.join(args.runs[0], "analysis")
        if args.watch:
            watch(args.runs, args.data, out)
        else:
            page.show(*page_of(args.runs, args.data)[:2], out)
        return 0
    return command.one_line(run)


if __name__ == "__main__":
    sys.exit(main())
