"""Small tables, each of which answers one question: one baseline, and changes to it.

    python tools/table.py --question smart      its runs, and its table

    Question, QUESTIONS     what is asked, and the flags of every row
    markdown()              differences to the baseline, seed by seed

Runs of one seed share what their flags leave alone, such as initial heads and the order of
the examples. What the seed itself does to both then cancels in their difference.
"""

import dataclasses

import numpy as np

from plumbing import declared
from tools import results

RANDOM = "runs/untrained"       # docs/what-helped.md says how it is made


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked, and {what a row changes: its flags}. The first row is the baseline.

    A row of several runs has their flags in a tuple. Each run is scored on its own task.
    """
    title: str
    rows: dict


BASE = "--option rr --con"
ALONE = tuple(f"{BASE} --tasks {name}" for name in declared.REPORT)
SMOOTH = f"{BASE} --smart --bregman-weight 0"
QUESTIONS = {
    "methods": Question("Which of the report's methods helps, one at a time?", {
        "round robin with CON": BASE,
        "without CON": "--option rr",
        "one task after the other, 4 epochs": "--option seq --con --epochs 4",
        "1 epoch of paraphrase first": f"{BASE} --para-first 1",
        "surgery": "--option pcgrad --con",
        "vaccine": "--option gvac --con",
        "SMART": f"{BASE} --smart",
        "HLH": f"{BASE} --hlh"}),
    "multitask": Question("Do the tasks gain by being trained at once?", {
        "all three at once": BASE,
        "one model a task, as many updates": tuple(
            f"{flags} --max-steps 744" for flags in ALONE),
        "one model a task, 8 epochs of its own": ALONE}),
    "con": Question("What does it take to compare two sentences?", {
        "together (CON)": BASE,
        "apart, the report's head": "--option rr",
        "apart, a cosine in the head": "--option rr --cosine",
        "together, untrained weights": f"{BASE} --weights {RANDOM}"}),
    "untrained": Question("Without pre-training, what helps to compare two sentences?", {
        "together (CON)": f"{BASE} --weights {RANDOM}",
        "apart, the report's head": f"--option rr --weights {RANDOM}",
        "apart, a cosine in the head": f"--option rr --cosine --weights {RANDOM}"}),
    "order": Question("Round robin, or one task after the other?", {
        "round robin: 2,232 batches, 744 updates": BASE,
        "sequential: 2,372 batches, an update for each": "--option seq --con --epochs 4",
        "sequential, 593 batches": "--option seq --con --epochs 1"}),
    "treatment": Question("Surgery, vaccine, or just other weights for the losses?", {
        "plain sum": BASE,
        "surgery": "--option pcgrad --con",
        "vaccine": "--option gvac --con",
        "SST counts twice": f"{BASE} --task-weights sst=2",
        "paraphrase counts twice": f"{BASE} --task-weights para=2",
        "STS counts half": f"{BASE} --task-weights sts=.5"}),
    "smart": Question("Does SMART help, and which of its terms?", {
        "neither": BASE,
        "both": f"{BASE} --smart",
        "D_Breg alone": f"{BASE} --smart --smart-weight 0",
        "R_s alone": SMOOTH}),
    "smart-strength": Question("How large should R_s be, and its radius?", {
        "R_s alone: λ = 1, ε = .02": SMOOTH,
        "ε = .005": f"{SMOOTH} --smart-eps .005",
        "ε = .1": f"{SMOOTH} --smart-eps .1",
        "λ = .3": f"{SMOOTH} --smart-weight .3",
        "λ = 3": f"{SMOOTH} --smart-weight 3"}),
    "epochs": Question("Does longer training help?", {
        "8 epochs": BASE,
        "16 epochs": f"{BASE} --epochs 16"}),
    "hlh-16": Question("Do hidden layers in the heads help with 16 epochs?", {
        "linear heads, 16 epochs": f"{BASE} --epochs 16",
        "HLH, 16 epochs": f"{BASE} --hlh --epochs 16"}),
    "para-first": Question("Does training on paraphrase first help?", {
        "all tasks from the start": BASE,
        "1 epoch of paraphrase first": f"{BASE} --para-first 1",
        "2 epochs of paraphrase first": f"{BASE} --para-first 2"}),
    "precision": Question("Do 16 bits cost anything?", {
        "float32": f"{BASE} --amp off",
        "bfloat16": f"{BASE} --amp bf16",
        "float16": f"{BASE} --amp fp16"}),
    "r-drop": Question("Does R-Drop add to the recipe?", {
        "plain": "--recipe plain",
        "R-Drop, two passes of each batch": "--recipe r-drop"}),
    "quora": Question("Do all of Quora's pairs help, or R-Drop with them?", {
        "2 epochs, each with all 16,000 pairs": "--recipe plain --align para --epochs 2",
        "R-Drop, two passes of each batch": "--recipe r-drop --align para --epochs 2",
        "4 epochs, each with 6,032 other pairs": "--recipe plain"}),
    "recipe": Question("What is each ingredient of the recipe worth?", {
        "plain": "--recipe plain",
        "R-Drop, two passes of each batch": "--recipe r-drop",
        "first-token pooling, not the mean": "--recipe plain --pool cls",
        "no warm-up, no decay of the rate": "--recipe plain --warmup 0"}),
    "granularity": Question("Should the vaccine look at layers or matrices?", {
        "one target for the whole model": "--option gvac --con",
        "a target for each layer": "--option gvac --con --vaccine-granularity layer",
        "a target for each matrix": "--option gvac --con --vaccine-granularity matrix"}),
}


def rows_of(name):
    """What table.py runs.   -> [results.Row]"""
    return [results.Row(words, (own,) if isinstance(own, str) else own)
            for words, own in QUESTIONS[name].rows.items()]


def without(flags, own):
    """The flags of all rows, less those that a row has itself, and their values."""
    kept, named, keeps = [], {word.partition("=")[0] for word in own}, True
    for word in flags:
        if word.startswith("--"):
            keeps = word.partition("=")[0] not in named
        kept += [word] * keeps
    return kept


def baseline_of(name):
    """The name of a question's first row."""
    return next(iter(QUESTIONS[name].rows))


def markdown(name, result):
    """The table of a question from its Result, which may lack other rows, and seeds.

    A row with fewer seeds than the first is compared with the first row's scores of these
    seeds alone; a line below the table gives them.
    """
    names = results.columns_of(result)
    columns, tasks = [*names, "overall"], results.known_tasks()
    headings = [declared.heading(tasks[name]) for name in names]
    base, = [row for row in result.rows if row.row == baseline_of(name)]
    split = "test" if result.table == 3 else "dev"
    lines = [f"**{QUESTIONS[name].title}** ({split})", "",
             f"| `{base.commands[0]}` | {' | '.join(headings)} | overall | seeds |",
             "|---" * (len(columns) + 2) + "|"]

    def line(row, seeds, cells):
        return f"| {' | '.join([row.row, *cells, str(len(seeds))])} |"
    lines.append(line(base, base.seeds, [
        results.spread([seed[column] for seed in base.seeds.values()]).replace("±", "(sd")
        + ")" * (len(base.seeds) > 1) for column in columns]))
    others = [row for row in result.rows if row is not base and row.seeds.keys() &
              base.seeds.keys()]
    fewer = []                  # the first row's scores of fewer seeds, in words
    for row in others:
        both = [seed for seed in row.seeds if seed in base.seeds]
        # A task of one's own may be missing in a row; its mean is of other tasks, then.
        same = row.seeds[both[0]].keys() == base.seeds[both[0]].keys()
        lines.append(line(row, both, [results.difference(
            [row.seeds[seed][column] - base.seeds[seed][column] for seed in both])
            if column in row.seeds[both[0]] and (same or column != "overall") else ""
            for column in columns]))
        if len(both) < len(base.seeds):
            means = (results.short(np.mean([base.seeds[seed][column] for seed in both]))
                     for column in columns)
            fewer.append(f" The first row with seed{'s' * (len(both) > 1)} "
                         f"{', '.join(both)}: {' '.join(means)}.")
    return "\n".join([
        *lines, "",
        f"First row: mean (sd over seeds). Others: difference to it ± 95% interval, paired "
        f"by seed; bold where 0 lies outside.{''.join(dict.fromkeys(fewer))} Scores on "
        f"{split}; data `{result.data}`, weights `{result.weights}`; "
        f"{'; '.join(result.machines)}.", "",
        *(f"- {row.row}: {', '.join(f'`{words}`' for words in row.commands)}"
          for row in others)])
