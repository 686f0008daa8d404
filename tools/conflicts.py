"""Is there a conflict between tasks behind the noise of a batch?

    python tools/conflicts.py RUN                           at its last checkpoint
    python tools/conflicts.py RUN --at start A.pt last.pt   at several of its checkpoints
    python tools/conflicts.py RUN --seeds 8                 at its start, with other heads

Takes gradients of many batches without updating anything, averages them over 1, 4 and 16
batches, and prints their cosines, for each pair of tasks and block of the encoder.

    3.3    measure()     the inner products, averaged batch by batch
    3.3    expected()    the cosine that infinitely many batches would have
    3.3    markdown()    both, as tables; by_seed(): of several draws of the heads

Symbols: K tasks, L blocks of θ that tasks share; a group is 16 batches of each task; μ_a is
task a's expected gradient, over its training set and dropout masks, of which a batch's g_a
is a noisy sample.
Start means: before the first update. The gradients reach the encoder through the heads'
random weights then, so their cosines are those of one draw; --seeds shows several. Dropout
and SMART's terms are as in the run.
"""

import argparse
import dataclasses
import itertools
import os
import re
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import multitask
import train
from plumbing import command, flags, folder, machine, progress, runs, sources
from tools import curves, gradients, results

SIZES = 1, 4, 16            # batches that are averaged; a group is the last number


# --- The inner products ---

def random_batch(training, name, rng):
    """A batch of examples that are drawn independently of each other and of all others.

    Not training.next_batch(): in a pass without replacement one batch's examples are those
    that the next lacks. With N batches a pass, E g_1 · g_2 = ‖μ‖² - σ²/(N - 1), and late in
    training that correction is as large as ‖μ‖² itself.
    """
    N, B = len(training.sets["train"][name]), training.streams[name].batch_size
    return training.batch(name, rng.integers(N, size=B))


def measure(training, groups, rng):
    """Gram matrices of averaged gradients.   -> {size: [groups · 16 / size, L, K, K]}

    training: a train.Training with a row of G for each task; θ is left alone. Size 4 holds
    the inner products of gradients that are means of 4 batches each. It takes the memory of
    three times G.
    """
    flat = training.flat
    spans = [block.span for block in flat.blocks.values() if block.shared]
    rows = list(range(len(training.rows)))
    single = flat.G
    sums = {size: torch.zeros_like(single) for size in SIZES[1:]}
    grams = {size: [] for size in SIZES}
    shown = progress.Progress(groups * SIZES[-1], unit="batches")
    for count in range(1, groups * SIZES[-1] + 1):
        batch = {name: random_batch(training, name, rng) for name in training.rows}
        multitask.backward(flat, [batch], training.loss, training.rows)
        grams[1].append(flat.gram(spans, rows))
        for size, total in sums.items():
            total += single
            if count % size == 0:
                flat.G = total.div_(size)           # whose rows gram() reads
                grams[size].append(flat.gram(spans, rows))
                flat.G = single
                total.zero_()
        shown.show(count)
    shown.clear()
    return {size: np.array(found) / training.scale.value ** 2
            for size, found in grams.items()}


def sides(grams, a, b):
    """What expected() divides, from each group.   -> (μ_a · μ_b, ‖μ_a‖², ‖μ_b‖²), [groups]

    grams: of one block, {size: [n, K, K]}. For a group's mean gradient ḡ of n batches,

        E ḡ_a · ḡ_b = μ_a · μ_b         two tasks' batches are independent
        E ‖ḡ‖² = ‖μ‖² + σ² / n          σ² = E ‖g - μ‖²: the noise of one batch
        E mean ‖g_i‖² = ‖μ‖² + σ²       so  ‖μ‖² = (n ‖ḡ‖² - mean ‖g_i‖²) / (n - 1)
    """
    n = SIZES[-1]
    whole = grams[n]                                                # [groups, K, K]
    one = grams[1].reshape(len(whole), n, *whole.shape[1:]).mean(1)
    squares = [(n * whole[:, k, k] - one[:, k, k]) / (n - 1) for k in (a, b)]
    return whole[:, a, b], *squares


def expected(grams, a, b):
    """cos(μ_a, μ_b), the cosine without the noise.   -> (estimate, half of its interval)

    grams: of one block, {size: [n, K, K]}. The interval has 95%, by the jackknife: the
    estimate without each group in turn. Both are None where the estimate of ‖μ_a‖² or
    ‖μ_b‖², with all groups or all but one, is not above 0. (Noise alone may pass this, but
    has an interval to match.)
    """
    parts = np.array(sides(grams, a, b))                            # [3, groups]
    groups = parts.shape[1]
    # All of them, and all but one.
    product, *squares = np.column_stack([parts.sum(1), parts.sum(1)[:, None] - parts])
    if not np.min(squares) > 0:
        return None, None
    cosines = product / np.sqrt(squares[0] * squares[1])            # [1 + groups]
    spread = np.sqrt((groups - 1) * np.var(cosines[1:]))
    return float(cosines[0]), float(results.student_t(groups - 1) * spread)


def side(grams, a, b):
    """Do μ_a and μ_b conflict?   -> -1, +1, or 0 where these groups cannot tell

    The sign of μ_a · μ_b is that of the cosine, and needs no estimate of the noise: a t
    test of the groups' products, at 5%.
    """
    product = sides(grams, a, b)[0]
    width = results.student_t(len(product) - 1) * np.std(product, ddof=1)
    sure = abs(product.mean()) > width / len(product) ** .5
    return int(np.sign(product.mean())) if sure else 0


def signal(grams, a):
    """‖μ_a‖² / E ‖g_a‖²: the share of a batch's squared gradient that is not noise."""
    return float(sides(grams, a, a)[1].mean() / grams[1][:, a, a].mean())


# --- What is shown ---

@dataclasses.dataclass
class Place:
    """What was found at one checkpoint, for each block and pair, and for each task.

    cosines: {block with a gradient: {"sst, para": {"1": [mean, sd by chance], …, "below":
    share of single batches that is below 0, "expected": [estimate, half of its interval],
    "side": see side()}}}.
    """
    step: int
    cosines: dict
    signals: dict       # {task: share}


def found(training, groups, step, rng):
    """-> Place"""
    grams = measure(training, groups, rng)
    names = list(training.rows)
    blocks = [block.name for block in training.flat.blocks.values() if block.shared]
    parts = {gradients.SHARED: {size: of.sum(1) for size, of in grams.items()}}
    parts.update({block: {size: of[:, k] for size, of in grams.items()}
                  for k, block in enumerate(blocks) if grams[1][:, k].any()})

    def cosines_of(part, a, b):
        said = {}
        for size, of in part.items():
            mean = gradients.chance([multitask.cosines(gram)[a, b] for gram in of])
            said[str(size)] = [round(mean.mean, 4), round(mean.sd, 4)]
            said.setdefault("below", round(mean.conflict, 4))       # of the first size
        said["side"] = side(part, a, b)
        said["expected"] = [value and round(value, 4) for value in expected(part, a, b)]
        return said
    return Place(step, {block: {f"{names[a]}, {names[b]}": cosines_of(part, a, b)
                                for a, b in itertools.combinations(range(len(names)), 2)}
                        for block, part in parts.items()},
                 {name: round(signal(parts[gradients.SHARED], k), 4)
                  for k, name in enumerate(names)})


def cell(mean, width, bold):
    """"+.012 ± .020" """
    text = re.sub(r"\b0\.", ".", f"{mean:+.3f} ± {width:.3f}")
    return f"**{text}**" if bold else text


def expected_cell(said):
    """The same for an expected cosine; in words where its size is not known.

    Such an interval holds every cosine, or 0 although the sign is sure.
    """
    mean, width = said["expected"]
    if mean is None or width >= 1 or said["side"] and abs(mean) < width:
        return {-1: "**below 0**", 0: "noise", 1: "**above 0**"}[said["side"]]
    return cell(mean, width, said["side"])


def markdown(places, batch_size, groups, about):
    """Three tables: over training and by size, the signal, and by block."""
    lines = [about, "", f"Mean cosine ± what chance makes of it (2 sd), of gradients over "
             f"{', '.join(str(size * batch_size) for size in SIZES)} examples, and the "
             f"share of the first that is below 0; then the cosine of the expected "
             f"gradients ± its 95% interval ({groups} groups of {SIZES[-1]} batches). "
             f"Bold: beyond chance at 5%. \"Noise\": too little signal to estimate a "
             f"cosine; \"above 0\", \"below 0\": enough for its sign, not its size.", "",
             "| after update | tasks | " + " | ".join(
                 str(size * batch_size) for size in SIZES) + " | below 0 | expected |",
             "|---" * (len(SIZES) + 4) + "|"]
    for place in places:
        for pair, said in place.cosines[gradients.SHARED].items():
            cells = []
            for size in SIZES:
                mean, sd = said[str(size)]
                width = gradients.WEAK * sd
                cells.append(cell(mean, width, abs(mean) > width))
            lines.append(f"| {place.step} | {pair} | {' | '.join(cells)} "
                         f"| {100 * said['below']:.0f}% | {expected_cell(said)} |")
    lines += ["", f"The share of signal in the squared gradient of {batch_size} examples:",
              "", "| after update | " + " | ".join(places[0].signals) + " |",
              "|---" * (len(places[0].signals) + 1) + "|"]
    lines += [f"| {place.step} | " + " | ".join(
        f"{100 * share:.1f}%" for share in place.signals.values()) + " |"
        for place in places]
    pairs = list(places[0].cosines[gradients.SHARED])
    lines += ["", "Cosines of the expected gradients by block:", "",
              f"| after update | block | {' | '.join(pairs)} |",
              "|---" * (len(pairs) + 2) + "|"]
    lines += [f"| {place.step} | {block} | "
              f"{' | '.join(map(expected_cell, by_pair.values()))} |"
              for place in places for block, by_pair in place.cosines.items()]
    return "\n".join(lines) + "\n"


def by_seed(places, groups, about):
    """Before the first update: a row for each draw of the heads, and their mean."""
    pairs = list(places[0].cosines[gradients.SHARED])
    whole = [[place.cosines[gradients.SHARED][pair] for pair in pairs] for place in places]
    lines = [about, "", f"Cosines of the expected gradients of the whole encoder before "
             f"the first update, each row with heads, batches and dropout of another "
             f"seed, ± 95% interval ({groups} groups of {SIZES[-1]} batches). Last: the "
             f"mean over the seeds, ± 95% interval (Student's t). Bold: beyond chance at "
             f"5%.", "",
             f"| seed | {' | '.join(pairs)} |", "|---" * (len(pairs) + 1) + "|"]
    lines += [f"| {seed} | {' | '.join(map(expected_cell, row))} |"
              for seed, row in enumerate(whole)]
    known = [[said["expected"][0] for said in row] for row in whole]
    means = ["" if None in column else results.difference(column) for column in zip(*known)]
    lines.append(f"| mean | {' | '.join(means)} |")
    return "\n".join(lines) + "\n"


# --- The command line ---

def prepared(path, device, seed=None):
    """The run in a folder, as before its first update, with a row of G for each task.

    seed: of heads, batches and dropout, if not the run's. -> (train.Training, its flags)
    """
    settings = folder.read_settings(path)
    known = vars(train.parser().parse_args([]))
    args = argparse.Namespace(**{**known, **folder.values_of(settings, path,
                                                             train.parser())})
    if len(args.tasks) < 2 or args.freeze:
        raise ValueError(f"needed a run of two tasks or more, without --freeze; {path} has "
                         f"{','.join(args.tasks)}{' and --freeze' * args.freeze}")
    if seed is not None:
        args.seed = seed
    args.data, args.weights = sources.find(args.data, args.weights)
    autocast, _ = runs.precision(args, device)
    # Any option that keeps the gradients of tasks apart, even if the run's own does not.
    apart = argparse.Namespace(**{**vars(args), "option": "pcgrad"})
    training = train.prepare(apart, device, autocast)
    # The run's own treatment isn't used here, so its file may have changed.
    digests = {name: digest for name, digest in settings["digests"].items()
               if not name.startswith(os.path.join("option", ""))}
    folder.compare({**settings, "digests": digests}, path,
                   sources.files_of(training.sets, args.weights), settings["machine"])
    return training, args


def moved(training, path):
    """Go to where a checkpoint was written, by its θ and θ̃.   -> updates by then"""
    state, flat, teacher = folder.load_checkpoint(path), training.flat, training.teacher
    if state is None or getattr(state.get("theta"), "shape", None) != flat.theta.shape or (
            set(state["streams"]) != set(training.streams)
            or (state["teacher"] is None) != (teacher is None)):
        raise ValueError(f"{path} is damaged, or of another run; give a checkpoint of this "
                         f"run")
    flat.theta.copy_(state["theta"])
    if teacher is not None:
        teacher.theta.copy_(state["teacher"])
    return state["step"]


def parser():
    p = command.Parser(__doc__)
    p.add_argument("run", metavar="RUN", help="the folder of a run of train.py")
    p.add_argument("--at", nargs="+", metavar="CHECKPOINT",
                   help="start, or a file; in RUN if it has no folder (last.pt)")
    p.add_argument("--seeds", type=flags.number(int, 3, 1000), metavar="N",
                   help="in place of --at: at start, with heads, batches and dropout of "
                   "the seeds 0 to N - 1")
    p.add_argument("--groups", type=flags.number(int, 2, 1000), default=8,
                   help="how many, of 16 batches of each task (8)")
    p.add_argument("--device", default="auto", help="as in train.py")
    p.add_argument("--out", type=flags.text, metavar="PATH",
                   help="of the .md and .json to be written (RUN/conflicts)")
    return p


def main(argv=None):
    def make():
        args = parser().parse_args(argv)
        if args.at and args.seeds:
            raise ValueError("--at and --seeds contradict each other: --seeds is at start")
        out = args.out or os.path.join(args.run, "conflicts")
        paths = [name if name == "start" or os.path.dirname(name)
                 else os.path.join(args.run, name)
                 for name in (["start"] if args.seeds else args.at or ["last.pt"])]
        for path in paths:
            if path != "start" and not os.path.exists(path):
                raise ValueError(f"needed a checkpoint, such as last.pt; there is no "
                                 f"{path}")
        if not os.path.basename(out) or not os.path.isdir(
                os.path.dirname(os.path.abspath(out))):
            raise ValueError(f"needed a name in a folder that is there for --out, got "
                             f"{out!r}")
        for path in (out + ".md", out + ".json"):
            if not args.out and os.path.exists(path):
                raise ValueError(f"{path} is there already; --out {out} replaces it, "
                                 f"another path keeps it")
        trained_on = results.machine_of(args.run)
        device, places = machine.find_device(args.device), []
        for seed in range(args.seeds) if args.seeds else [None]:
            training, own = prepared(args.run, device, seed)
            beginning = training.flat.theta.clone()
            for path in paths:
                step = 0
                if path != "start":
                    step = moved(training, path)
                else:
                    training.flat.theta.copy_(beginning)
                    if training.teacher is not None:
                        training.teacher.theta.copy_(beginning)
                print(f"after update {step}" + f", seed {seed}" * bool(args.seeds),
                      flush=True)
                torch.manual_seed(own.seed)     # the same dropout and batches at each --at
                places.append(found(training, args.groups, step,
                                    np.random.default_rng([own.seed, 5])))
        about = (f"A run with `{' '.join(runs.methods(own))}`; data "
                 f"`{curves.folder_name(own.data)}`, weights "
                 f"`{curves.folder_name(own.weights)}`, "
                 f"{own.batch_size} examples a batch. The run's machine: "
                 f"{trained_on}.")
        text = (by_seed(places, args.groups, about) if args.seeds else
                markdown(places, own.batch_size, args.groups, about))
        folder.write_json(out + ".json", {
            "about": about, "seeds": args.seeds, "batch_size": own.batch_size,
            "groups": args.groups,
            "places": [dataclasses.asdict(place) for place in places]})
        results.write_text(out + ".md", text)
        print(f"\n{text}\n{out}.md")
        return 0
    return command.one_line(make)


if __name__ == "__main__":
    sys.exit(main())
