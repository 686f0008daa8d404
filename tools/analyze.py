"""Section 5 of the report, for any finished run: where it errs, and what its gradients did.

    python tools/analyze.py RUN [--data DIR] [--out DIR]

    5      sentiment(): the confusion matrix, how often off by 1, 2, 3, 4     (Figure 1)
    5      paraphrase(): false positives and negatives, the score             (Figure 2)
    5      similarity(): errors, their mean, sd and skew                      (Figure 3)
    5      quoted(): the examples that the report quotes
    3.3    microscope(): the task gradients over training and by layer, from metrics.jsonl

All of it comes in words on the terminal, and with figures as RUN/analysis/analysis.html and
PNG files beside it. The figures need matplotlib, the words do not. Everything is about dev.

An error is truth minus prediction, so that above 0 the model "underpredicts" (D17).
D15: Figure 1 is captioned STS in the report and shows SST.
"""

import argparse
import base64
import dataclasses
import html
import json
import os
import re
import sys
import textwrap
import warnings

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data                                                         # noqa: E402
import heads                                                        # noqa: E402
from plumbing import machine, run                                     # noqa: E402

EXAMPLES = 5        # of the worst, and of the best, for each task

# The report's examples: task, texts, its truth and its prediction.
QUOTED = [
    ("sst", ["the acting , costumes , music , cinematography and sound are all astounding "
             "given the production 's austere locales ."], "4", "1"),
    ("sst", ["it 's everything you do n't go to the movies for ."], "0", "3"),
    ("sst", ["a warm , funny ,engaging film"], "4", "4"),
    ("sst", ["dazzles with its fully-written characters , its determined stylishness -lrb- "
             "which always relates to characters and story -rrb- and johnny dankworth 's "
             "best soundtrack in years ."], "4", "4"),
    ("para", ["what 's your favourite jackie chan movie ?",
              "what are the best movies of jackie chan ?"], "0", "1"),
    ("para", ["why does india have immigration checks/passport control while leaving the "
              "country ?", "what does immigration officers check on their screen while "
              "leaving india ?"], "1", "0"),
    ("para", ["how do i speak english fluently ?",
              "how can i speak english more fluently ?"], "1", "1"),
    ("sts", ["in these days of googling , it 's sloppy to not find the source of a "
             "quotation .", "i agree with kate sherwood , you should be able to attribute "
             "most quotes these days by simple fact checking ."], "3.2", "0.111"),
    ("sts", ["two lambs stand on a grassy hill .",
             "two dirt bikers riding over dirt hill ."], "0.2", "0.1995"),
]


# --- A run's dev set ---

@dataclasses.dataclass
class Dev:
    """Truth and prediction on the N dev examples of one task."""
    task: heads.Task
    texts: list                 # [N] tuples of one or two strings
    truth: np.ndarray           # [N]
    predicted: np.ndarray       # [N], from the run's prediction file
    probabilities: np.ndarray   # [N, C], [N] or None: from best/

    @property
    def error(self):
        return self.truth - self.predicted


def read_run(path, folder=None):
    """-> ({task name: Dev}, settings, lines of metrics); ValueError if it is unfinished"""
    if not os.path.exists(os.path.join(path, "args.json")):
        raise ValueError(f"{path} is not the folder of a run; give one that train.py wrote")
    settings = run.read_settings(path)
    if not os.path.exists(os.path.join(path, "result.json")):
        raise ValueError(f"{path} is not finished, so it has no predictions yet; go on by "
                         f"python train.py --resume {path}")
    folder = folder or settings["args"]["data"]["value"]
    best = os.path.join(path, "best")
    device = machine.find_device("auto")
    autocast, _ = machine.choose_precision("auto", device)
    model = heads.MultitaskBert.from_pretrained(best).to(device)
    tokenizer = data.WordPiece(os.path.join(best, "vocab.txt"))
    found = {}
    for name, task in model.tasks.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of skipped rows the run itself has warned
            dataset = data.load(folder, task, "dev", tokenizer)
            texts = data.load(folder, task, "dev", str).tokens
        file = os.path.join(path, "predictions", f"{name}-dev-output.csv")
        predictions = data.read_predictions(file)
        ids = [example.strip().lower() for example in dataset.ids]
        if set(ids) != set(predictions):
            raise ValueError(f"{file} is about other examples than {dataset.path}; give "
                             f"the run's own data with --data")
        _, probabilities = heads.outputs(model, task, dataset, tokenizer, device, autocast)
        found[name] = Dev(task, texts, dataset.labels.astype(np.float64),
                          np.array([predictions[i] for i in ids]), probabilities)
    with open(os.path.join(path, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return found, settings, lines


# --- What is said: a list of blocks, for the terminal and for HTML ---

# ("heading", text), ("words", text), ("table", header, rows) or
# ("figure", name, caption, draw), where draw(figure) fills a matplotlib figure.

def share(part, whole):
    return f"{part} ({100 * part / max(1, whole):.1f}%)"


def examples(dev, order, name, values):
    """A table of examples: truth, prediction, a value [N] with its name, text."""
    form = "{:.0f}" if dev.task.label_range[2] else "{:.3f}"
    return ("table", ["truth", "predicted", name, "text"], [
        [f"{dev.truth[i]:g}", form.format(dev.predicted[i]), f"{values[i]:.3f}",
         "  |  ".join(text.strip() for text in dev.texts[i])] for i in order])


def sentiment(dev):
    """SST: the confusion matrix and sizes of errors.   [report 5, Figure 1]   -> blocks"""
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
        ("heading", "SST"),
        ("words", f"Of {N} sentences {share(off[0], N)} are right, {share(off[1], N)} off "
         f"by 1, {share(off[2], N)} by 2, {share(off[3], N)} by 3, "
         f"{share(off[4], N)} by 4. "
         f"{share((error > 0).sum(), N)} are rated too low, {share((error < 0).sum(), N)} "
         f"too high. (The report: \"often off in our prediction by 1, but much less likely "
         f"to be off by 2 or 3\".)"),
        ("table", ["true class", *(f"predicted {k}" for k in range(5))],
         [[str(k), *map(str, row)] for k, row in enumerate(counts)]),
        ("figure", "figure1", "Figure 1: errors on SST, dev", draw),
        ("words", "Worst, the surest first (p: probability of the predicted class):"),
        examples(dev, worst, "p", sure), ("words", "Best:"),
        examples(dev, best, "p", sure)]


def paraphrase(dev):
    """False positives and negatives, and the score.   [report 5, Figure 2]   -> blocks"""
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
        _, _, groups = right.hist([p[~true], p[true]], bins=np.linspace(0, 1, 21),
                                  color=["white", ".5"], edgecolor="black",
                                  label=["no paraphrase", "paraphrase"])
        for bar in groups[0]:
            bar.set_hatch("///")
        right.axvline(.5, color="black", linestyle="--")
        right.set(xlabel="predicted probability of a paraphrase", ylabel="pairs",
                  title="score")
        right.margins(y=.4)             # room for the legend
        right.legend(title="truth", loc="upper center", ncols=2)

    surest = np.argsort(-np.abs(p - .5), kind="stable")
    return [
        ("heading", "Paraphrase"),
        ("words", f"Of {len(p)} pairs {share((~wrong).sum(), len(p))} are right. "
         f"False positives: {share(positive, (~true).sum())} of the {(~true).sum()} that "
         f"are none; false negatives: {share(negative, true.sum())} of the {true.sum()} "
         f"that are. Mean probability {p[~true].mean():.3f} and {p[true].mean():.3f}. (The "
         f"report: \"more likely\" a \"false positive\" than a \"false negative\".)"),
        ("figure", "figure2", "Figure 2: errors on paraphrase, dev", draw),
        ("words", "Worst, the surest first (p: predicted probability of a paraphrase):"),
        examples(dev, [i for i in surest if wrong[i]][:EXAMPLES], "p", p),
        ("words", "Best:"),
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
        ("heading", "STS"),
        ("words", f"Errors of {N} pairs (truth minus prediction): mean {mean:+.3f}, sd "
         f"{sd:.3f}, skew {skew:+.3f}; {share((error > 0).sum(), N)} are above 0. On the "
         f"whole the model {lean}predicts. (The report: \"slightly positively centered\", "
         f"\"more likely to underpredict\".)"),
        ("figure", "figure3", "Figure 3: errors on STS, dev", draw),
        ("words", "Worst:"), examples(dev, order[::-1][:EXAMPLES], "error", error),
        ("words", "Best:"), examples(dev, order[:EXAMPLES], "error", error)]


def bare(text):
    """Only letters and digits, in lower case, to compare texts by"""
    return re.sub(r"[\W_]+", "", text.lower())


def quoted(found):
    """What this run makes of the report's own examples.   [report 5]   -> blocks"""
    rows = []
    for name, texts, truth, predicted in QUOTED:
        dev, wanted = found[name], tuple(map(bare, texts))
        at = next((i for i, pair in enumerate(dev.texts)
                   if tuple(map(bare, pair)) == wanted), None)
        rows.append([name, *(["", "not here"] if at is None else
                             [f"{dev.truth[at]:g}", f"{dev.predicted[at]:.3g}"]),
                     truth, predicted, "  |  ".join(texts)])
    return [("heading", "The report's examples"),
            ("words", "By text, ignoring case, blanks and punctuation, in this dev set:"),
            ("table", ["task", "truth", "predicted", "report: truth", "report: predicted",
                       "text"], rows)]


# --- 3.3 The conflict microscope ---

LINES = [dict(color=color, linestyle=style, marker=marker) for color, style, marker in (
    ("black", "-", "o"), ("black", "--", "s"), ("black", ":", "^"),
    (".55", "-", "D"), (".55", "--", "v"), (".55", ":", "P"))]


def smooth(values, window):
    """Means of `window` values each, one after the other.   [N] -> [N // window]"""
    values = np.asarray(values)
    return values[:len(values) // window * window].reshape(-1, window).mean(-1)


def named(line, prefix):
    """Names in a line of metrics that begin with prefix, without it: ["sst_para", …]"""
    return [name.removeprefix(prefix) for name in line if name.startswith(prefix)]


def microscope(lines):
    """The task gradients over training, and by layer.   [report 3.3]   -> blocks"""
    steps = [line for line in lines if any(name.startswith("cos_") for name in line)]
    heading = ("heading", "The task gradients")
    if not steps:
        return [heading, ("words", "This run has not kept them apart; --option pcgrad and "
                          "gvac do.")]
    pairs, tasks = named(steps[0], "cos_"), named(steps[0], "coefficient_")
    ordered = named(steps[0], "acted_")

    def column(name):
        return np.array([line[name] for line in steps])
    step = column("step")
    window = max(1, len(steps) // 40)
    conflicts = {pair: share((column("cos_" + pair) < 0).sum(), len(steps))
                 for pair in pairs}
    rows = []
    for epoch in sorted({line["epoch"] for line in steps}):
        part = column("epoch") == epoch
        rows.append([str(epoch), *(f"{column(kind + pair)[part].mean():+.3f}"
                                   for kind in ("cos_", "treated_cos_") for pair in pairs),
                     *(f"{column('coefficient_' + task)[part].mean():.2f}"
                       for task in tasks), f"{column('acted')[part].mean():.2f}"])
    blocks = [
        heading,
        ("words", "Means over the steps of an epoch, on the shared parameters: cosines "
         "before and after treatment, each task's coefficient in the update, and the share "
         "of ordered pairs that were changed. Steps in which two gradients conflict "
         "(cosine below 0): " + ", ".join(f"{pair.replace('_', ' and ')} {number}"
                                          for pair, number in conflicts.items()) + "."),
        ("table", ["epoch", *(f"cos {pair.replace('_', ' ')}" for pair in pairs),
                   *(f"after: {pair.replace('_', ' ')}" for pair in pairs),
                   *(f"coeff. {task}" for task in tasks), "acted"], rows)]
    targets = named(steps[-1], "target_")
    blocks.append(("table", ["gradient", "gets some of", "share of steps",
                             *(["φᵀ at the end"] if targets else [])], [
        [*pair.split("_"), f"{column('acted_' + pair).mean():.2f}",
         *([f"{steps[-1]['target_' + pair]:+.3f}"] if targets else [])]
        for pair in ordered]))

    def draw(figure):
        panels = [("cos_", pairs, "cosine before treatment"),
                  ("treated_cos_", pairs, "cosine after treatment"),
                  ("target_", targets, "vaccine's target φᵀ"),
                  ("norm_", tasks, "gradient norm"),
                  ("coefficient_", tasks, "coefficient in the update"),
                  ("acted_", ordered, "share of all steps so far that acted")]
        panels = [panel for panel in panels if panel[1]]
        for axes, (prefix, names, label) in zip(figure.subplots(2, 3).flat, panels):
            for name, look in zip(names, LINES):
                values = column(prefix + name)
                if prefix == "acted_":      # 0 or 1 a step: only long means say anything
                    values = values.cumsum() / np.arange(1, len(values) + 1)
                axes.plot(smooth(step, window), smooth(values, window),
                          label=name.replace("_", ", " if names is pairs else " ← "),
                          markersize=3, markevery=4, **look)
            axes.set(xlabel="step", ylabel=label)
            axes.legend(fontsize=6, loc="best")
            if prefix == "norm_":
                axes.set_yscale("log", base=2)
                axes.yaxis.set_major_formatter("{x:g}")
            if "cos_" in prefix:
                axes.axhline(0, color=".7", linewidth=.8, zorder=0)
        for axes in figure.axes[len(panels):]:
            axes.remove()
    blocks.append(("figure", "gradients", f"Task gradients over training, means over "
                   f"{window} steps; a ← b: of a when it meets b", draw))
    return blocks + by_layer(steps, pairs)


def by_layer(steps, pairs):
    """Cosines in each block of θ, where they were logged.   -> blocks"""
    steps = [line for line in steps if "layers" in line]
    if not steps:
        return [("words", "By layer: train with --log-layers.")]
    # A block that no gradient reaches has cosines of 0: the pooler, with --pool mean.
    names = [name for name in steps[0]["layers"]
             if any(any(line["layers"][name].values()) for line in steps)]
    cosines = {pair: np.array([[line["layers"][name][f"cos_{pair}"] for name in names]
                               for line in steps]) for pair in pairs}       # [steps, L]

    def draw(figure):
        left, right = figure.subplots(1, 2)
        short = [name.replace("layer ", "").replace("embeddings", "emb.") for name in names]
        for (pair, values), look in zip(cosines.items(), LINES):
            label = pair.replace("_", ", ")
            left.plot(short, values.mean(0), label=label, **look)
            right.plot(short, (values < 0).mean(0), label=label, **look)
        left.axhline(0, color=".7", linewidth=.8, zorder=0)
        left.set(xlabel="block", ylabel="mean cosine before treatment")
        right.axhline(.5, color=".7", linewidth=.8, zorder=0)
        right.set(xlabel="block", ylabel="share of steps in conflict", ylim=(0, 1))
        left.legend(fontsize="small")
    return [
        ("words", "By layer: mean cosine before treatment, and share of steps with "
         "conflict (two unrelated gradients would conflict in half of them)."),
        ("table", ["block", *(f"cos {pair.replace('_', ' ')}" for pair in pairs),
                   *(f"conflict {pair.replace('_', ' ')}" for pair in pairs)],
         [[name, *(f"{cosines[pair][:, k].mean():+.3f}" for pair in pairs),
           *(f"{(cosines[pair][:, k] < 0).mean():.2f}" for pair in pairs)]
          for k, name in enumerate(names)]),
        ("figure", "layers", "Task gradients by block of θ, over the whole run", draw)]


# --- On the terminal and as HTML ---

def as_text(block):
    kind, *rest = block
    if kind == "heading":
        return f"\n{rest[0]}\n{'-' * len(rest[0])}"
    if kind == "words":
        return textwrap.fill(rest[0], 92)
    if kind == "figure":
        return f"[{rest[1]}: {rest[0]}.png]"
    header, rows = rest
    # The last column is not padded: texts are long.
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header) - 1)]
    return "\n".join("  " + "  ".join([*(cell.rjust(width) for cell, width
                                          in zip(row, widths)), row[-1]]).rstrip()
                     for row in [header, *rows])


def as_html(block, pictures):
    kind, *rest = block
    if kind == "heading":
        return f"<h2>{html.escape(rest[0])}</h2>"
    if kind == "words":
        return f"<p>{html.escape(rest[0])}</p>"
    if kind == "figure":
        if rest[0] not in pictures:
            return ""
        encoded = base64.b64encode(pictures[rest[0]]).decode()
        caption = html.escape(rest[1])
        return (f'<figure><img alt="{caption}" src="data:image/png;base64,{encoded}">'
                f"<figcaption>{caption}</figcaption></figure>")
    header, rows = rest
    cells = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
             for tag, row in [("th", header), *(("td", row) for row in rows)]]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


STYLE = """body { font: 16px/1.5 Georgia, serif; max-width: 62em; margin: 2em auto;
padding: 0 1em; color: #111; background: #fff } table { border-collapse: collapse;
margin: 1em 0; font-size: 14px } td, th { border-bottom: 1px solid #bbb; text-align: left;
padding: .2em .7em; vertical-align: top } img { max-width: 100% } figure { margin: 1em 0 }
figcaption { font-size: 14px }"""


def draw_all(blocks, out):
    """Write the PNG files.   -> {name: bytes}, empty without matplotlib"""
    try:
        import matplotlib.figure
    except ImportError:
        return {}
    pictures = {}
    for kind, *rest in blocks:
        if kind == "figure":
            name, _, draw = rest
            size = (11, 6) if name == "gradients" else (9, 3.6)
            figure = matplotlib.figure.Figure(figsize=size, layout="constrained", dpi=130)
            draw(figure)
            path = os.path.join(out, f"{name}.png")
            figure.savefig(path)
            with open(path, "rb") as file:
                pictures[name] = file.read()
    return pictures


def analyze(args):
    """-> exit status"""
    found, settings, lines = read_run(args.run, args.data)
    given = []
    for name, entry in settings["args"].items():
        if entry["from"] == "given" and name not in ("data", "weights", "out"):
            value = entry["value"]
            given.append(f"--{name.replace('_', '-')}" + ("" if value is True else
                         f" {','.join(value) if isinstance(value, list) else value}"))
    scores = {dev.task: dev.task.metric(dev.predicted, dev.truth) for dev in found.values()}
    words = [f"{task.name} {value:.3f}" for task, value in scores.items()]
    title = os.path.basename(os.path.abspath(args.run))
    blocks = [
        ("words", " ".join(["python train.py", *given])),
        ("words", f"Dev: {', '.join(words)}, overall {heads.overall_score(scores):.3f}."),
        *sentiment(found["sst"]), *paraphrase(found["para"]), *similarity(found["sts"]),
        *quoted(found), *microscope(lines)]
    out = args.out or os.path.join(args.run, "analysis")
    os.makedirs(out, exist_ok=True)
    pictures = draw_all(blocks, out)
    body = "\n".join(as_html(block, pictures) for block in blocks)
    path = os.path.join(out, "analysis.html")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>'
                   f"{html.escape(title)}</title><style>{STYLE}</style>\n"
                   f"<h1>{html.escape(title)}</h1>\n{body}\n</html>\n")
    print(title)
    for block in blocks:
        print(as_text(block))
    print("\nno figures: they need matplotlib (pip install matplotlib)" if not pictures else
          "", path, sep="\n")
    return 0


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False,
                                usage=argparse.SUPPRESS)
    p.add_argument("run", metavar="RUN", help="the folder of a finished run of train.py")
    p.add_argument("--data", metavar="DIR", help="where its data is now (where it was)")
    p.add_argument("--out", metavar="DIR", help="for the page and figures (RUN/analysis)")
    args = p.parse_args(argv)
    return run.one_line(lambda: analyze(args))


if __name__ == "__main__":
    sys.exit(main())
