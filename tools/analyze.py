"""Section 5 of the report, for any finished run: its errors, and what its gradients did.

    python tools/analyze.py RUN [--data DIR] [--out DIR]

    5      classes(): confusion matrix, how often off by 1, 2, …        (Figure 1: SST)
    5      binary(): false positives and negatives, the score           (Figure 2: para)
    5      graded(): errors, their mean, sd and skew                    (Figure 3: STS)
    5      quoted(): the examples that the report quotes
    3.3    tools/gradients.py: the task gradients over training, and by layer

Everything is about dev. It is printed as text, and written with figures to
RUN/analysis/analysis.html and PNG files beside it; only the figures need matplotlib.

An error is truth minus prediction, so that above 0 the model "underpredicts" (D17).
D15: Figure 1 is captioned STS in the report and shows SST.
"""

import dataclasses
import os
import re
import sys
import warnings

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data
import heads
import multitask
from plumbing import command, flags, folder, machine, reading
from plumbing.console import printable
from tools import page
from tools.gradients import gradients, read_steps
from tools.page import Figure, Heading, Paragraph, Table, share

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


def read_dev(run_folder, data_folder, model):
    """Truth, predictions and probabilities of the tasks that the run has predicted.

    -> {task name: Dev}
    """
    found = {}
    for name, task in model.tasks.items():
        path = os.path.join(run_folder, "predictions", f"{name}-dev-output.csv")
        if not os.path.exists(path):    # not trained, and the data folder has no such file
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # the run itself has named skipped rows
            dataset = data.load(data_folder, task, "dev", str)
        predictions = data.read_predictions(path)
        ids = [example.strip().lower() for example in dataset.ids]
        if set(ids) != set(predictions):
            raise ValueError(f"{path} has other examples than {dataset.path}; give the "
                             f"run's own data with --data")
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


def figure(dev, draw):
    """The task's figure, under its number in the report where it has one."""
    number, caption = FIGURES.get(dev.task.name), f"rrors on {dev.task.heading}, dev"
    if number:
        return Figure(f"figure{number}", f"Figure {number}: e{caption}", draw)
    return Figure(f"errors_{dev.task.name}", f"E{caption}", draw)


def named(task, label):
    """A label with its meaning, if that is known: "4 positive"."""
    place = int(label - task.lowest)
    return f"{label:.0f} {task.classes[place]}" if task.classes else f"{label:.0f}"


def examples(dev, order, name, values):
    """A table of examples: truth, prediction, a value [N] with its name, text."""
    def row(i):
        predicted = (f"{dev.predicted[i]:.0f}" if dev.task.whole_labels
                     else f"{dev.predicted[i]:.3f}")
        return [f"{dev.truth[i]:g}", predicted, f"{values[i]:.3f}",
                "  |  ".join(printable(text.strip()) for text in dev.texts[i])]
    return Table(["truth", "predicted", name, "text"], [row(i) for i in order])


def worst_and_best(dev, sure, name, values):
    """The examples at both ends: by size of the error, then the surest.   -> parts"""
    size = np.abs(dev.error) if dev.task.ordered else 1.0 * (dev.error != 0)
    worst = [i for i in np.lexsort((-sure, -size)) if size[i]][:EXAMPLES]
    best = [i for i in np.argsort(-sure, kind="stable") if not size[i]][:EXAMPLES]
    first = "the largest errors first, of these the surest" if dev.task.ordered else (
        "the surest first")
    return [Paragraph(f"Worst, {first}:"), examples(dev, worst, name, values),
            Paragraph("Best:"), examples(dev, best, name, values)]


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

    def draw(figure):
        left, second = figure.subplots(1, 2)
        left.imshow(counts, cmap="Greys", vmax=1.4 * counts.max())
        for (i, j), count in np.ndenumerate(counts):
            left.text(j, i, str(count), ha="center", va="center",
                      color="white" if count > .8 * counts.max() else "black")
        ticks = {"xticks": range(K), "xticklabels": labels}
        left.set(xlabel="predicted class", ylabel="true class", title="confusion matrix",
                 yticks=range(K), yticklabels=labels, **ticks)
        if task.ordered:
            sizes = np.arange(1 - K, K)
            bars = second.bar(sizes, [(error == size).sum() for size in sizes], color=".6",
                              edgecolor="black")
            second.set(xlabel="error: truth - prediction, in classes", ylabel="examples",
                       xticks=sizes, title="errors")
        else:
            bars = second.bar(range(K), right.round(2), color=".6", edgecolor="black")
            second.set(xlabel="true class", ylabel="share that is right", ylim=(0, 1),
                       title="right by class", **ticks)
        second.bar_label(bars)
        second.margins(y=.12)

    words = f"Of {N} examples {share(off[0], N)} are right"
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
        Heading(task.heading), Paragraph(words + remark(dev)),
        Table(["true class", *(f"predicted {label}" for label in labels)],
              [[name, *map(str, row)] for name, row in zip(names, counts)]),
        figure(dev, draw),
        *worst_and_best(dev, sure, "p", sure)]


def binary(dev):
    """False positives and negatives, and the score.   [report 5, Figure 2]   -> parts"""
    true, wrong = dev.truth == dev.task.highest, dev.predicted != dev.truth
    positive, negative = (wrong & ~true).sum(), (wrong & true).sum()
    no, yes = (named(dev.task, label) for label in (dev.task.lowest, dev.task.highest))
    p = dev.probabilities
    if p is not None:
        p = (p[:, 1] if p.ndim == 2 else p).astype(np.float64)      # [N]: of the label 1

    def draw(figure):
        left, right = figure.subplots(1, 2)
        bars = left.bar(["false positives", "false negatives"], [positive, negative],
                        color=["white", ".5"], edgecolor="black", width=.6)
        bars[0].set_hatch("///")
        left.bar_label(bars)
        left.set(ylabel="examples", title="errors")
        left.margins(y=.12)
        if p is None:
            right.remove()
            return
        _, _, bars = right.hist([p[~true], p[true]], bins=np.linspace(0, 1, 21),
                                color=["white", ".5"], edgecolor="black", label=[no, yes])
        for bar in bars[0]:
            bar.set_hatch("///")
        right.axvline(.5, color="black", linestyle="--")
        right.set(xlabel=f"predicted probability of {yes}", ylabel="examples",
                  title="score")
        right.margins(y=.4)             # room for the legend
        right.legend(title="truth", loc="upper center", ncols=2)

    words = (f"Of {len(true)} examples {share((~wrong).sum(), len(true))} are right. False "
             f"positives: {share(positive, (~true).sum())} of the {(~true).sum()} that are "
             f"{no}; false negatives: {share(negative, true.sum())} of the {true.sum()} "
             f"that are {yes}.")
    if p is not None and true.any() and not true.all():
        words += (f" Mean probability of {yes}: {p[~true].mean():.3f} and "
                  f"{p[true].mean():.3f}.")
    shown = np.zeros(len(true)) if p is None else p
    return [Heading(dev.task.heading), Paragraph(words + remark(dev)), figure(dev, draw),
            *worst_and_best(dev, np.abs(shown - .5), "p", shown)]


def moments(error):
    """-> mean, sd, skew: the mean of ((error - mean) / sd)³, 0 if all errors are equal"""
    mean, sd = error.mean(), error.std()
    return mean, sd, (((error - mean) / sd) ** 3).mean() if sd > 0 else 0.0


def graded(dev):
    """The histogram of errors, predicted against true.   [report 5, Figure 3]   -> parts"""
    error, N = dev.error, len(dev.truth)
    mean, sd, skew = moments(error)
    order = np.argsort(np.abs(error), kind="stable")

    def draw(figure):
        left, right = figure.subplots(1, 2)
        edges = np.histogram_bin_edges(error, 30)
        left.hist(error, bins=edges, color=".8", edgecolor="black")
        x = np.linspace(edges[0], edges[-1], 200)
        if sd > 0:
            left.plot(x, N * (edges[1] - edges[0]) / (sd * np.sqrt(2 * np.pi))
                      * np.exp(-((x - mean) / sd) ** 2 / 2), color="black",
                      label="normal, same mean and sd")
        left.axvline(mean, color="black", linestyle="--", label=f"mean {mean:+.2f}")
        left.set(xlabel="error: truth - prediction", ylabel="examples", title="errors")
        left.margins(y=.25)
        left.legend(fontsize="small")
        right.plot(dev.truth, dev.predicted, ".", color="black", markersize=4, alpha=.35,
                   markeredgewidth=0)
        ends = [dev.task.lowest, dev.task.highest]
        right.plot(ends, ends, color="black", linestyle="--", label="no error")
        label = dev.task.label
        right.set(xlabel=f"true {label}", ylabel=f"predicted {label}",
                  title="predicted and true")
        right.legend(fontsize="small")

    lean = "under" if mean > 0 else "over"
    return [
        Heading(dev.task.heading),
        Paragraph(
            f"Errors of {N} examples (truth minus prediction): mean {mean:+.3f}, sd "
            f"{sd:.3f}, skew {skew:+.3f}; {share((error > 0).sum(), N)} are above 0. On "
            f"the whole the model {lean}predicts." + remark(dev)),
        figure(dev, draw),
        Paragraph("Worst:"), examples(dev, order[::-1][:EXAMPLES], "error", error),
        Paragraph("Best:"), examples(dev, order[:EXAMPLES], "error", error)]


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

def command_of(settings):
    """The line that started a run, without its folders."""
    words = ["python train.py"]
    for name, entry in settings.items():
        if entry["from"] == "given" and name not in ("data", "weights", "out"):
            words.append(f"--{name.replace('_', '-')}")
            value = entry["value"]
            if value is not True:
                words.append(",".join(value) if isinstance(value, list) else str(value))
    return printable(" ".join(words))


def analyze(path, data_folder=None, out=None):
    """Analyze the run in the folder `path`.   -> exit status"""
    if not os.path.exists(os.path.join(path, "args.json")):
        raise ValueError(f"{path} is not the folder of a run; give one that train.py wrote")
    settings = folder.read_settings(path)
    values = folder.values_of(settings, path, flags.parser(
        [task.name for task in heads.tasks()], ["seq", "rr", *multitask.TREATMENTS]))
    if "tasks" not in values:
        raise ValueError(f"{path} is a run of pre-training, which has no tasks; give one "
                         f"that train.py wrote")
    if not os.path.exists(os.path.join(path, "result.json")):
        raise ValueError(f"{path} is not finished, so it has no predictions yet; continue "
                         f"it with python train.py --resume {path}")
    steps = read_steps(os.path.join(path, "metrics.jsonl"), values["tasks"])
    model = heads.MultitaskBert.from_pretrained(os.path.join(path, "best"),
                                                machine.find_device("auto"))
    found = read_dev(path, data_folder or values["data"], model)

    scores = {dev.task: dev.task.metric(dev.predicted, dev.truth) for dev in found.values()}
    words = [f"{task.name} {value:.3f}" for task, value in scores.items()]
    parts = [
        Paragraph(command_of(settings["args"])),
        Paragraph(f"Dev: {', '.join(words)}, overall {heads.overall_score(scores):.3f}."),
        *(part for dev in found.values() for part in SECTIONS[dev.task.kind](dev)),
        *quoted(found), *gradients(steps)]
    page.show(printable(os.path.basename(os.path.abspath(path))), parts,
              out or os.path.join(path, "analysis"))
    return 0


def main(argv=None):
    p = command.Parser(__doc__)
    p.add_argument("run", metavar="RUN", help="the folder of a finished run of train.py")
    p.add_argument("--data", metavar="DIR", help="where its data is now (where it was)")
    p.add_argument("--out", metavar="DIR", help="for the page and figures (RUN/analysis)")

    def run():
        args = p.parse_args(argv)
        return analyze(args.run, args.data, args.out)
    return command.one_line(run)


if __name__ == "__main__":
    sys.exit(main())
