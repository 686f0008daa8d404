"""Tables 1 to 3 of the report, each by one command.

    python tools/table.py --table 1              configurations, from train.py's dictionary
    python tools/table.py --table 2 [--seeds 3] [--rows 2,4-6] [-- FLAGS OF train.py]
    python tools/table.py --table 3              on the test sets, if their labels are there
    python tools/table.py --render               README's tables again, from results/

A row is one `python train.py …` for each seed, or three where the report has a model for
each task. After Ctrl-C, or a kill at any moment, the same command goes on: a finished
run is not run again, a started one is resumed. What follows `--` goes to every run.

The table comes as Markdown, with a line of what is behind it: runs/tables/NAME.md, and its
numbers as NAME.json. With --record NAME.json goes to results/, and into README.md, between
<!-- table: NAME --> and <!-- end of table -->.
D11, D12: misprints of the report's tables; they stand as printed, marked.
Leaves out: several runs at a time.
"""

import argparse
import collections
import csv
import dataclasses
import glob
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import data                                                         # noqa: E402
import heads                                                        # noqa: E402
import train                                                        # noqa: E402
from plumbing import flags, run, sources                            # noqa: E402

try:
    import baseline         # tools/baseline.py
except ImportError:
    baseline = None

TASKS = {task.name: task for task in heads.tasks()}


# --- The rows ---

# As the report prints them: SST accuracy, paraphrase accuracy, STS correlation, overall.
TABLE_2 = {
    "SST head fine tuning only": ".52 .43 .057 .0493 (D12)",
    "Sequential Multitask learning": ".501 .741 .353 .64",
    "Individual Pre-training and Finetuning": ".521 .762 .384 .658",
    "Gradient Surgery + CON": ".503 .812 .863 .749",
    "Gradient Vaccine + RR": ".480 .757 .375 .642",
    "Gradient Surgery + RR": ".453 .748 .364 .628",
    "Gradient Surgery + RR + CON + HLH": ".509 .826 .857 .755",
    "Gradient Vaccine + RR + CON + HLH": ".494 .858 .865 .762",
    "SMART + GVAC + RR + CON": ".521 .854 .887 .772 (D12)",
    "SMART + GVAC + RR + CON + HLH": ".517 .871 .891 .778",
}
TABLE_3 = {
    "Gradient Surgery + RR": ".512 .841 .861 .761 (D13)",
    "SMART + GVAC + RR + CON + HLH": ".516 .870 .884 .776",
}
# Rows that Table 1 lacks: the flags of each run, and Table 2's epochs. "SST head fine
# tuning only" trains the encoder too: 4.3 knows no frozen one, and .52 is no frozen score.
OTHERS = {
    "SST head fine tuning only": (["--tasks sst"], 10),
    "Individual Pre-training and Finetuning": (
        ["--tasks sst", "--tasks para", "--tasks sts"], 5),
    # The report has no plain round robin, and no treatment with CON but without HLH.
    "RR (ours)": (["--option rr"], None),
    "RR + CON (ours)": (["--option rr --con"], None),
    "Sequential + CON (ours)": (["--option seq --con"], None),
    "Gradient Surgery + RR + CON (ours)": (["--option pcgrad --con"], None),
    "Gradient Vaccine + RR + CON (ours)": (["--option gvac --con"], None),
}
ROWS = [*TABLE_2, *(name for name in OTHERS if name not in TABLE_2)]


def flags_of(row):
    """Name of a row -> (flags of each of its runs, epochs that Table 1 does not give)"""
    for (option, *switches), values in train.TABLE_1.items():
        if values["row"] == row:
            words = [f"--{word}" for word, on in
                     zip(("smart", "con", "hlh", "fresh-streams"), switches) if on]
            return [" ".join(["--option", option, *words])], None
    return OTHERS[row]


def chosen(text, possible):
    """"1,4-6" -> names of ROWS, those of them that are possible.   Raises ValueError"""
    if text is None:
        return list(possible)
    picked = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= len(ROWS):
            raise ValueError(f"--rows {text}: needed numbers from 1 to {len(ROWS)}, such "
                             f"as 2,4-6, got {part!r}; --help lists the rows")
        picked += ROWS[first - 1:last]
    return [row for row in ROWS if row in picked]


# --- The runs ---

@dataclasses.dataclass
class Run:
    """One `python train.py …`: its row, seed, flags without --out, and folder."""
    row: str
    seed: int
    flags: list
    folder: str
    tasks: list         # whose scores count: in a row of three runs each has its own


def plan(args, rows):
    """Every run of the table, the first seed of all rows before the second.   -> [Run]

    The folder's name holds a digest of all flags and places: other flags, other folder.
    A flag that some row refuses ends the program here, before the first run.
    """
    places = sources.find(args.data, args.weights)
    common = [word for name in ("data", "weights", "epochs", "max_steps")
              if getattr(args, name) is not None
              for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    runs = []
    for seed in range(args.seeds):
        for row in rows:
            several, epochs = flags_of(row)
            for text in several:
                own = text.split()
                parsed, source = train.parse([*own, *common, *args.flags])
                if epochs and source["epochs"] == "default":
                    own += ["--epochs", str(epochs)]
                line = [*own, *common, *args.flags, "--seed", str(seed)]
                digest = hashlib.sha256(json.dumps([line, places]).encode()).hexdigest()
                name = "-".join(re.findall(r"[a-z]+", text.replace("option", "")))
                runs.append(Run(row, seed, line,
                                os.path.join(args.runs, f"{name}-{seed}-{digest[:8]}"),
                                list(TASKS) if len(several) == 1 else parsed.tasks))
    return runs


def short_path(path):
    """A folder as it was given, but one outside this tree by its last name: for a table."""
    outside = os.path.isabs(path) or path.startswith(os.pardir)
    return os.path.basename(os.path.normpath(path)) if outside else path


def command(flags, out=None):
    """The line to type; with folders by their short_path() where out is None."""
    flags = list(flags)
    if out is None:
        for name in ("--data", "--weights"):
            if name in flags:
                at = flags.index(name) + 1
                flags[at] = short_path(flags[at])
    return shlex.join(["python", "train.py", *flags, *(["--out", out] if out else [])])


def perform(one, stop):
    """Start, resume or skip a run.   -> exit status, 0 also for one that is finished"""
    def has(name):
        return os.path.exists(os.path.join(one.folder, name))
    if has("result.json"):
        return 0
    words = ["--resume", one.folder] if has("args.json") else [*one.flags, "--out",
                                                               one.folder]
    print(f"\n{one.row}, seed {one.seed}:\n{command(one.flags, one.folder)}", flush=True)
    child = subprocess.Popen([sys.executable, os.path.join(ROOT, "train.py"), *words])
    while True:
        # A terminal's Ctrl-C reaches the child too, which then writes a checkpoint: we must
        # outlive it, and not send a second one, which would end it at once.
        try:
            return child.wait(0.2)
        except subprocess.TimeoutExpired:
            if stop.asked == signal.SIGTERM:
                child.terminate()


# --- Their scores ---

def read_test_labels(folder):
    """test-labels.csv: task, id, label, TAB separated.   -> {task name: {id: label}}"""
    path = os.path.join(folder, "test-labels.csv")
    if not os.path.exists(path):
        raise ValueError(f"Table 3 needs the labels of the test sets as {path} (columns "
                         f"task, id, label, TAB separated); give its folder with "
                         f"--test-labels")
    labels = collections.defaultdict(dict)
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        for row in rows:
            if row.get("task") not in TASKS or None in row.values():
                raise ValueError(f"{path}, line {rows.line_num}: needed task, id, label "
                                 f"with a task of {', '.join(TASKS)}, got {str(row)[:80]}")
            label = data.parse_label(row["label"], TASKS[row["task"]], path, rows.line_num)
            labels[row["task"]][row["id"].strip().lower()] = label
    return labels


def test_score(path, task, labels):
    """The metric of a prediction file on labels {id: label}.   Raises ValueError"""
    predicted = data.read_predictions(path)
    if set(predicted) != set(labels):
        raise ValueError(f"{path} and test-labels.csv must name the same examples of "
                         f"{task.name}; {len(set(predicted) ^ set(labels))} ids are in one "
                         f"of them only; give the labels of the same data")
    return task.metric([predicted[i] for i in labels], list(labels.values()))


def scores(one, labels):
    """A finished run's scores, of its tasks only.   -> ({task name: score}, minutes)"""
    with open(os.path.join(one.folder, "result.json"), encoding="utf-8") as file:
        result = json.load(file)
    if labels is None:
        found = result["dev"]
    else:
        found = {name: test_score(os.path.join(one.folder, "predictions",
                                               f"{name}-test-output.csv"),
                                  TASKS[name], labels[name]) for name in one.tasks}
    return {name: found[name] for name in one.tasks}, result["seconds"] / 60


def with_overall(found):
    found = {name: found[name] for name in TASKS}
    overall = heads.overall_score({TASKS[name]: score for name, score in found.items()})
    return {**{name: float(score) for name, score in found.items()},
            "overall": float(overall)}


def majority(folder, labels):
    """Scores of the commonest class, and of a constant similarity: its r is 0."""
    found = {}
    for name, task in TASKS.items():
        train_set = data.load(folder, task, "train", str)
        truth = (data.load(folder, task, "dev", str).labels if labels is None
                 else list(labels[name].values()))
        commonest = collections.Counter(train_set.labels.tolist()).most_common(1)[0][0]
        found[name] = 0.0 if task.metric is heads.pearson else task.metric(
            np.full(len(truth), commonest), truth)
    return with_overall(found)


def collect(args, runs, labels):
    """What the finished runs give, as it is kept in NAME.json.   -> dict"""
    by_row, machines = {}, []
    for one in runs:
        if not os.path.exists(os.path.join(one.folder, "result.json")):
            continue
        row = by_row.setdefault(one.row, {"commands": [], "seeds": {}})
        line = command(one.flags[:-2])
        if line not in row["commands"]:
            row["commands"].append(line)
        found, minutes = scores(one, labels)
        seed = row["seeds"].setdefault(str(one.seed), {"minutes": 0.0})
        seed.update(found, minutes=seed["minutes"] + minutes)
        here = run.read_settings(one.folder)["machine"]
        words = (f"{here['device']} ({here['cpu']}, {here['cores']} cores), threads: "
                 f"{here['threads']}, torch {here['torch']}, {here['precision']}")
        machines += [words] if words not in machines else []
    rows = []
    for name, row in by_row.items():
        whole = {seed: {**with_overall(found), "minutes": found["minutes"]}
                 for seed, found in row["seeds"].items() if set(TASKS) <= set(found)}
        if whole:
            rows.append({"row": name, "commands": row["commands"], "seeds": {
                seed: {key: round(value, 5) for key, value in found.items()}
                for seed, found in whole.items()}})
    folder, _ = sources.find(args.data, args.weights)
    dumb = {"commonest class, constant": majority(folder, labels)}
    if baseline and labels is None:
        dumb["words (tools/baseline.py)"] = baseline.scores(folder)["words"]
    return {"table": args.table, "data": os.path.basename(folder),
            "weights": weights_name(args), "machines": machines, "rows": rows,
            "baselines": {name: {key: round(value, 5) for key, value in found.items()}
                          for name, found in dumb.items()}}


def weights_name(args):
    """The name given, or that of the folder: for people, and for the name of a file."""
    return short_path(args.weights or sources.find(args.data, None)[1])


# --- Markdown ---

def short(value):
    """.503, as the report prints a score"""
    return f"{value:.3f}".replace("0.", ".", 1)


def spread(values):
    """.503 ± .012: mean and standard deviation (n - 1) over the seeds, if there are any"""
    mean = short(np.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {short(np.std(values, ddof=1))}"


def markdown(result):
    """What collect() found -> the table, and the lines above it."""
    printed, columns = (TABLE_2 if result["table"] == 2 else TABLE_3), [*TASKS, "overall"]
    split = "dev" if result["table"] == 2 else "test"
    lines = [f"Table {result['table']}, scores on {split}; data `{result['data']}`, "
             f"weights `{result['weights']}`; mean ± sd over the seeds 0, 1, …",
             *[f"Machine: {words}." for words in result["machines"]], "",
             "| row | SST acc. | para acc. | STS r | overall | seeds | minutes a seed "
             "| the report: SST, para, STS, overall | command, with `--seed N` |",
             "|---|---|---|---|---|---|---|---|---|"]
    for name, found in result["baselines"].items():
        cells = [short(found[key]) for key in columns]
        lines.append(f"| *{name}* | {' | '.join(cells)} | | | | |")
    for row in result["rows"]:
        seeds = list(row["seeds"].values())
        cells = [spread([seed[key] for seed in seeds]) for key in columns]
        minutes = f"{np.mean([seed['minutes'] for seed in seeds]):.1f}"
        commands = "<br>".join(f"`{line}`" for line in row["commands"])
        lines.append(f"| {row['row']} | {' | '.join(cells)} | {len(seeds)} | {minutes} "
                     f"| {printed.get(row['row'], '')} | {commands} |")
    return "\n".join(lines)


def table_1():
    """Table 1 from train.TABLE_1, which gives every run its defaults.   -> Markdown"""
    lines = ["| row | flags | batch size | epochs | learning rate | paraphrase first |",
             "|---|---|---|---|---|---|"]
    for row in train.TABLE_1.values():
        batch = row["batch_size"] * row["accumulate"]
        if row["accumulate"] > 1:
            batch = f"{batch} ({row['batch_size']} × {row['accumulate']})"
        epochs = f"{row['epochs']}{' (D11)' * row['row'].startswith('Sequential')}"
        lines.append(f"| {row['row']} | `{flags_of(row['row'])[0][0]}` | {batch} "
                     f"| {epochs} | {row['lr']:g} | {row['para_first']} epochs |")
    return "\n".join(lines)


def blocks(results):
    """{name: Markdown} of all that the README has from here: Table 1 and results/table*."""
    found = {"table1": table_1()}
    for path in sorted(glob.glob(os.path.join(results, "table*.json"))):
        with open(path, encoding="utf-8") as file:
            found[os.path.splitext(os.path.basename(path))[0]] = markdown(json.load(file))
    return found


BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def fill(text, found):
    """The README with every block filled from `found`; one without a source stays."""
    return BLOCK.sub(lambda m: m[1] + (f"\n{found[m[2]]}\n\n" if m[2] in found else
                                       m[0][len(m[1]):-len(m[3])]) + m[3], text)


def render(results, readme):
    """Fill the README's blocks, and say which are missing.   -> exit status"""
    found = blocks(results)
    with open(readme, encoding="utf-8") as file:
        text = file.read()

    def write(temporary):
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(fill(text, found))
    run.replace(readme, write)
    for name in set(found) - {m[2] for m in BLOCK.finditer(text)}:
        print(f"{readme} has no place for {name}; put these two lines where it should "
              f"stand, then --render:\n<!-- table: {name} -->\n<!-- end of table -->")
    return 0


# --- The command line ---

def parser():
    p = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], allow_abbrev=False, usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows:\n" + "\n".join(f"  {i:2}  {row}" for i, row in enumerate(ROWS, 1))
        + "\n\nWhat follows -- is given to every run, as in: -- --lr 1e-4 --pool mean")
    whole = flags.number(int, 1)
    p.add_argument("--table", type=int, choices=[1, 2, 3], help="which (2)", default=2)
    p.add_argument("--seeds", type=whole, default=3, help="how many (ours: 3)")
    p.add_argument("--rows", metavar="2,4-6", help="some of the rows (the report's)")
    p.add_argument("--data", metavar="DIR", help="as in train.py")
    p.add_argument("--weights", metavar="DIR|NAME", help="as in train.py")
    p.add_argument("--epochs", type=whole, help="for every row (each row's own)")
    p.add_argument("--max-steps", type=whole, metavar="N", help="for every row")
    p.add_argument("--test-labels", metavar="DIR",
                   help="folder with test-labels.csv, for Table 3 (that of the data)")
    p.add_argument("--runs", metavar="DIR", default=os.path.join(ROOT, "runs", "tables"),
                   help="where the runs are kept (runs/tables)")
    p.add_argument("--name", help="of the files that are written (tableN-DATA-WEIGHTS)")
    p.add_argument("--record", action="store_true",
                   help="keep the numbers in results/, and show them in README.md")
    p.add_argument("--render", action="store_true",
                   help="only write README.md's tables again, from results/")
    return p


def make(args):
    """-> exit status"""
    results, readme = os.path.join(ROOT, "results"), os.path.join(ROOT, "README.md")
    if args.render:
        return render(results, readme)
    if args.table == 1:
        print(table_1())
        return 0
    folder, weights = sources.find(args.data, args.weights)
    labels = None
    if args.table == 3:
        labels = read_test_labels(args.test_labels or folder)
    rows = chosen(args.rows, TABLE_2 if args.table == 2 else TABLE_3)
    args.runs = os.path.abspath(args.runs)
    runs = plan(args, rows)
    # Finished runs count only for the files that they were made with.
    now = {name: run.file_digest(path) for name, path in
           run.files_of(folder, weights).items()}
    for one in runs:
        if (os.path.exists(os.path.join(one.folder, "result.json"))
                and run.read_settings(one.folder)["digests"] != now):
            raise ValueError(f"{one.folder} was made with other data or weights of the "
                             f"same name; remove it, or give another folder with --runs")
    name = args.name or (f"table{args.table}-{os.path.basename(folder)}-"
                         + weights_name(args).strip(os.sep).replace(os.sep, "-"))
    status = 0
    with run.Stop() as stop:
        for one in runs:
            status = perform(one, stop)
            if stop.asked:
                status = 128 + stop.asked
            if status:
                print(f"stopped at {one.row}, seed {one.seed}, with status {status}; the "
                      f"same command goes on", flush=True)
                break
    result = collect(args, runs, labels)
    if not result["rows"]:
        return status
    text = markdown(result)
    run.write_json(os.path.join(args.runs, f"{name}.json"), result)
    with open(os.path.join(args.runs, f"{name}.md"), "w", encoding="utf-8") as file:
        file.write(text + "\n")
    print(f"\n{text}\n\n{os.path.join(args.runs, name)}.md")
    if args.record and not status:
        os.makedirs(results, exist_ok=True)
        run.write_json(os.path.join(results, f"{name}.json"), result)
        render(results, readme)
    return status


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    at = argv.index("--") if "--" in argv else len(argv)
    args = parser().parse_args(argv[:at])
    args.flags = argv[at + 1:]
    return run.one_line(lambda: make(args))


if __name__ == "__main__":
    sys.exit(main())
