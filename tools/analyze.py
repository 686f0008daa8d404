"""Section 5 of the report, for any finished run: its errors, and what its gradients did.

    python tools/analyze.py RUN [--data DIR] [--out DIR]

    5      sentiment(): confusion matrix, how often off by 1, 2, 3, 4         (Figure 1)
    5      paraphrase(): false positives and negatives, the probabilities     (Figure 2)
    5      similarity(): errors, their mean, sd and skew                      (Figure 3)
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
    device = machine.find_device("auto")
    autocast, _ = machine.choose_precision("auto", device)
    model = model.to(device)
    tokenizer = data.WordPiece(os.path.join(run_folder, "best", "vocab.txt"))
    found = {}
    for name, task in model.tasks.items():
        path = os.path.join(run_folder, "predictions", f"{name}-dev-output.csv")
        if not os.path.exists(path):    # not trained, and the data folder has no such file
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # the run itself has named skipped rows
            dataset = data.load(data_folder, task, "dev", tokenizer)
            texts = data.load(data_folder, task, "dev", str).tokens
        predictions = data.read_predictions(path)
        ids = [example.strip().lower() for example in dataset.ids]
        if set(ids) != set(predictions):
            raise ValueError(f"{path} has other examples than {dataset.path}; give the "
                             f"run's own data with --data")
        for example in ids:
            check_prediction(path, task, example, predictions[example])
        _, probabilities = heads.outputs(model, task, dataset, tokenizer, device=device,
                                         autocast=autocast)
        found[name] = Dev(task, texts, dataset.labels.astype(np.float64),
                          np.array([predictions[i] for i in ids]), probabilities)
    return found


# --- 5 The three tasks ---

def examples(dev, order, name, values):
    """A table of examples: truth, prediction, a value [N] with its name, text."""
    def row(i):
        predicted = (f"{dev.predicted[i]:.0f}" if dev.task.whole_labels
                     else f"{dev.predicted[i]:.3f}")
        return [f"{dev.truth[i]:g}", predicted, f"{values[i]:.3f}",
                "  |  ".join(printable(text.strip()) for text in dev.texts[i])]
    return Table(["truth", "predicted", name, "text"], [row(i) for i in order])


def sentiment(dev):
    """SST: the confusion matrix and sizes of errors.   [report 5, Figure 1]   -> parts"""
    N, error = len(dev.truth), np.rint(dev.error).astype(int)
    counts = np.zeros((5, 5), int)
    np.add.at(counts, (dev.truth.astype(int), dev.predicted.astype(int)), 1)
    off = np.bincount(np.abs(error), minlength=5)
    # Among equally wrong ones the surest is the worst. The squared-error form of SST (D1)
    # has no probabilities; there the order of the file decides.
    sure = (np.zeros(N) if dev.probabilities is None
            else dev.probabilities.max(-1).astype(np.float64))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        left.imshow(counts, cmap="Greys", vmax=1.4 * counts.max())
        for (i, j), count in np.ndenumerate(counts):
            left.text(j, i, str(count), ha="center", va="center",
                      color="white" if count > .8 * counts.max() else "black")
        left.set(xlabel="predicted class", ylabel="true class", title="confusion matrix",
                 xticks=range(5), yticks=range(5))
        sizes = np.array([(error == k).sum() for k in range(-4, 5)])
        bars = right.bar(range(-4, 5), sizes, color=".6", edgecolor="black")
        right.bar_label(bars)
        right.set(xlabel="error: truth - prediction, in classes", ylabel="examples",
                  xticks=range(-4, 5), title="errors")
        right.margins(y=.12)

    worst = np.lexsort((-sure, -np.abs(error)))[:EXAMPLES]
    best = np.lexsort((-sure, np.abs(error)))[:EXAMPLES]
    return [
        Heading("SST"),
        Paragraph(
            f"Of {N} sentences {share(off[0], N)} are right, {share(off[1], N)} off by 1, "
            f"{share(off[2], N)} by 2, {share(off[3], N)} by 3, {share(off[4], N)} by 4. "
            f"{share((error > 0).sum(), N)} are rated too low, "
            f"{share((error < 0).sum(), N)} too high. (The report: \"often off in our "
            f"prediction by 1, but much less likely to be off by 2 or 3\".)"),
        Table(["true class", *(f"predicted {k}" for k in range(5))],
              [[str(k), *map(str, row)] for k, row in enumerate(counts)]),
        Figure("figure1", "Figure 1: errors on SST, dev", draw),
        Paragraph("Worst, the surest first (p: probability of the predicted class):"),
        examples(dev, worst, "p", sure), Paragraph("Best:"),
        examples(dev, best, "p", sure)]


def paraphrase(dev):
    """False positives and negatives, and the score.   [report 5, Figure 2]   -> parts"""
    p, true = dev.probabilities.astype(np.float64), dev.truth == 1
    wrong = dev.predicted != dev.truth
    positive, negative = (wrong & ~true).sum(), (wrong & true).sum()

    def draw(figure):
        left, right = figure.subplots(1, 2)
        bars = left.bar(["false positives", "false negatives"], [positive, negative],
                        color=["white", ".5"], edgecolor="black", width=.6)
        bars[0].set_hatch("///")
        left.bar_label(bars)
        left.set(ylabel="pairs", title="errors")
        left.margins(y=.12)
        _, _, bars = right.hist([p[~true], p[true]], bins=np.linspace(0, 1, 21),
                                  color=["white", ".5"], edgecolor="black",
                                  label=["no paraphrase", "paraphrase"])
        for bar in bars[0]:
            bar.set_hatch("///")
        right.axvline(.5, color="black", linestyle="--")
        right.set(xlabel="predicted probability of a paraphrase", ylabel="pairs",
                  title="score")
        right.margins(y=.4)             # room for the legend
        right.legend(title="truth", loc="upper center", ncols=2)

    surest = np.argsort(-np.abs(p - .5), kind="stable")
    return [
        Heading("Paraphrase"),
        Paragraph(
            f"Of {len(p)} pairs {share((~wrong).sum(), len(p))} are right. False "
            f"positives: {share(positive, (~true).sum())} of the {(~true).sum()} that are "
            f"none; false negatives: {share(negative, true.sum())} of the {true.sum()} "
            f"that are. Mean probability {p[~true].mean():.3f} and {p[true].mean():.3f}. "
            f"(The report: \"more likely\" a \"false positive\" than a \"false "
            f"negative\".)"),
        Figure("figure2", "Figure 2: errors on paraphrase, dev", draw),
        Paragraph("Worst, the surest first (p: predicted probability of a paraphrase):"),
        examples(dev, [i for i in surest if wrong[i]][:EXAMPLES], "p", p),
        Paragraph("Best:"),
        examples(dev, [i for i in surest if not wrong[i]][:EXAMPLES], "p", p)]


def moments(error):
    """-> mean, sd, skew: the mean of ((error - mean) / sd)³, 0 if all errors are equal"""
    mean, sd = error.mean(), error.std()
    return mean, sd, (((error - mean) / sd) ** 3).mean() if sd > 0 else 0.0


def similarity(dev):
    """STS: the histogram of errors, predicted against true.   [report 5, Figure 3]"""
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
        left.set(xlabel="error: truth - prediction", ylabel="pairs", title="errors")
        left.margins(y=.25)
        left.legend(fontsize="small")
        right.plot(dev.truth, dev.predicted, ".", color="black", markersize=4, alpha=.35,
                   markeredgewidth=0)
        right.plot([0, 5], [0, 5], color="black", linestyle="--", label="no error")
        right.set(xlabel="true similarity", ylabel="predicted similarity",
                  title="predicted and true")
        right.legend(fontsize="small")

    lean = "under" if mean > 0 else "over"
    return [
        Heading("STS"),
        Paragraph(
            f"Errors of {N} pairs (truth minus prediction): mean {mean:+.3f}, sd {sd:.3f}, "
            f"skew {skew:+.3f}; {share((error > 0).sum(), N)} are above 0. On the whole "
            f"the model {lean}predicts. (The report: \"slightly positively centered\", "
            f"\"more likely to underpredict\".)"),
        Figure("figure3", "Figure 3: errors on STS, dev", draw),
        Paragraph("Worst:"), examples(dev, order[::-1][:EXAMPLES], "error", error),
        Paragraph("Best:"), examples(dev, order[:EXAMPLES], "error", error)]


SECTIONS = {"sst": sentiment, "para": paraphrase, "sts": similarity}


def bare(text):
    """Only letters and digits, in lower case, to compare texts by"""
    return re.sub(r"[\W_]+", "", text.lower())


def quoted(found):
    """What this run makes of the report's own examples.   [report 5]   -> parts"""
    rows = []
    for example in QUOTED:
        dev, wanted = found.get(example.task), [bare(text) for text in example.texts]
        places = [i for i, texts in enumerate(dev.texts if dev else [])
                  if list(map(bare, texts)) == wanted]
        here = ["", "not here"]
        if places:
            here = [f"{dev.truth[places[0]]:g}", f"{dev.predicted[places[0]]:.3g}"]
        rows.append([example.task, *here, example.truth, example.predicted,
                     "  |  ".join(example.texts)])
    return [Heading("The report's examples"),
            Paragraph("Those that this dev set has; case, spaces and punctuation are "
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
    model = heads.MultitaskBert.from_pretrained(os.path.join(path, "best"))
    found = read_dev(path, data_folder or values["data"], model)

    scores = {dev.task: dev.task.metric(dev.predicted, dev.truth) for dev in found.values()}
    words = [f"{task.name} {value:.3f}" for task, value in scores.items()]
    parts = [
        Paragraph(command_of(settings["args"])),
        Paragraph(f"Dev: {', '.join(words)}, overall {heads.overall_score(scores):.3f}."),
        *(part for name, parts_of in SECTIONS.items() if name in found
          for part in parts_of(found[name])),
        *quoted(found), *gradients(steps)]
    page.show(printable(os.path.basename(os.path.abspath(path))), parts,
              out or os.path.join(path, "analysis"))
    return 0


def main(argv=None):
    p = command.Parser(description=__doc__.splitlines()[0])
    p.add_argument("run", metavar="RUN", help="the folder of a finished run of train.py")
    p.add_argument("--data", metavar="DIR", help="where its data is now (where it was)")
    p.add_argument("--out", metavar="DIR", help="for the page and figures (RUN/analysis)")

    def run():
        args = p.parse_args(argv)
        return analyze(args.run, args.data, args.out)
    return command.one_line(run)


if __name__ == "__main__":
    sys.exit(main())
