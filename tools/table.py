"""Tables 1 to 3 of the report, each with one command.

    python tools/table.py --table 1         the configurations, from train.py
    python tools/table.py --table 2 [--seeds 3] [--rows 2,4-6] [-- FLAGS]
    python tools/table.py --table 3         on test sets that have labels
    python tools/table.py --question smart  one question in place of a table
                                            (with --table 3: on test sets)
    python tools/table.py --render          write the pages' tables again

A row is one `python train.py …` for each seed, or three where the report has a model for
each task. After an interruption, rerun the same command to continue: finished runs are
kept, an unfinished one is resumed. What follows `--` goes to every run; a row's flags win.

The table is written as Markdown, with a line that says where it comes from, to
runs/tables/NAME.md, and its numbers to NAME.json. With --record they go to results/, beside
the rows and seeds of results/NAME.json that were not run now, and the table into README.md
or a page of docs/: see tools/results.py, tools/questions.py.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data
import train
from plumbing import (
    command,
    declared,
    flags,
    folder,
    loop,
    machine,
    progress,
    reading,
    sources,
    tsv,
)
from tools import baseline, questions, results
from tools.results import ROWS, known_tasks

# --- The runs ---

def choose(text):
    """"1,4-6" -> those of ROWS.   Raises ValueError"""
    numbers = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= len(ROWS):
            raise ValueError(f"--rows {text}: needed numbers from 1 to {len(ROWS)}, such "
                             f"as 2,4-6, got {part!r}; --help lists the rows")
        numbers.update(range(first, last + 1))
    return [row for number, row in enumerate(ROWS, 1) if number in numbers]


@dataclasses.dataclass
class Run:
    """One `python train.py …`"""
    row: results.Row
    seed: int
    flags: list         # without --seed and --out
    folder: str
    tasks: list         # whose scores count; empty: all of its own and of the report
    max_steps: int | None
    option: str = ""    # in full; for a treatment of one's own

    def command(self, whole=False):
        """The line to type; for a table without the seed, with short names of folders."""
        if whole:
            words = [*self.flags, "--seed", str(self.seed), "--out", self.folder]
        else:
            words = [short_path(word) if before in ("--data", "--weights") else word
                     for before, word in zip(["", *self.flags], self.flags)]
        return shlex.join(["python", "train.py", *words])

    def has(self, name):
        return os.path.exists(os.path.join(self.folder, name))

    def finished(self):
        return self.has("result.json")


def plan(rows, seeds, common, inputs, runs_folder):
    """All runs, those with the first seed before those with the second.   -> [Run]

    common: flags of every run; inputs: data and weights, as absolute paths; runs_folder:
    where the runs are kept. A run's name there holds a digest of its flags and inputs, so
    that other flags get another folder. A flag that some row rejects ends the program here,
    before the first run.
    """
    runs = []
    for seed in range(seeds):
        for row in rows:
            for text in row.commands:
                # --max-steps is a trial of all rows.
                own = questions.without(text.split(), {"--max-steps"} & set(common))
                shared = questions.without(common, own)
                args, source = train.parse([*own, *shared])
                if row.epochs and source["epochs"] == "default":
                    own += ["--epochs", str(row.epochs)]
                words = [*own, *shared]
                digest = hashlib.sha256(json.dumps(
                    [[*words, "--seed", str(seed)], inputs]).encode()).hexdigest()
                name = "-".join(re.findall(r"[a-z]+", text.replace("option", "").lower()))
                path = os.path.join(runs_folder, f"{name}-{seed}-{digest[:8]}")
                # In a row of several runs each is scored on what it was trained on.
                tasks = args.tasks if len(row.commands) > 1 else []
                runs.append(Run(row, seed, words, path, tasks, args.max_steps,
                                args.option))
    return runs


def check_inputs(runs, data_folder, weights):
    """Raise ValueError if a finished run was made with other files of the same name."""
    digest = functools.cache(folder.file_digest)
    for one in runs:
        own = dict(zip(one.flags, one.flags[1:]))       # a row may name its own weights
        places = {"data": data_folder, "weights": weights}
        if "--weights" in own:
            places["weights"] = sources.find_weights(own["--weights"])
        digests = folder.read_settings(one.folder)["digests"] if one.finished() else {}
        for name, expected in digests.items():
            kind, _, file = name.partition(os.sep)
            places["option"] = os.path.dirname(one.option.rpartition(":")[0])
            path = os.path.join(places[kind], file)
            if not os.path.exists(path) or digest(path) != expected:
                raise ValueError(f"{one.folder} was made with another {path}; remove it, "
                                 f"or give another folder with --runs")


def short_path(path):
    """A folder as it was given, but one outside this tree by its last name: for a table."""
    outside = os.path.isabs(path) or path.startswith(os.pardir)
    return os.path.basename(os.path.normpath(path)) if outside else path


def copy_output(stream, left_out):
    """Print the lines of a stream, except those left out."""
    for line in stream:
        if line.rstrip("\n") not in left_out:
            progress.make_room()        # the run shows its own, on standard error
            print(line, end="", flush=True)


def perform(one, stop, cores=None):
    """Start or resume a run.   -> (its exit status, its output unless that was shown)

    cores: how many it may use, if others run beside it; then its output is held back.
    """
    words = ["--resume", one.folder] if one.has("args.json") else [
        *one.flags, "--seed", str(one.seed), "--out", one.folder]
    env, held = {**os.environ, "PYTHONUNBUFFERED": "1"}, io.StringIO()
    if cores:
        env.setdefault("OMP_NUM_THREADS", str(cores))
    child = subprocess.Popen([sys.executable, os.path.join(sources.ROOT, "train.py"),
                              *words], stdout=subprocess.PIPE, text=True, errors="replace",
                             stderr=subprocess.STDOUT if cores else None, env=env)
    # That this is the sample has been said once for all runs.
    copying = threading.Thread(
        target=held.writelines if cores else copy_output,
        args=(child.stdout,) if cores else (child.stdout, sources.SAMPLE_NOTE.splitlines()))
    copying.start()
    while True:
        # A terminal's Ctrl-C reaches the child too, which then writes a checkpoint. We must
        # outlive it, and not send a second signal, which would end it immediately.
        try:
            status = child.wait(0.2)
            copying.join()
            return status, held.getvalue()
        except subprocess.TimeoutExpired:
            if stop.asked == signal.SIGTERM:
                child.terminate()


def time_left(runs, jobs=1):
    """Of the runs that are not finished, by the finished ones of their row, or of all.

    jobs: how many go on at a time.

    -> ", about 1:02:00 left", or "" if no run is finished.
    """
    seconds, left = {}, 0.0
    for one in runs:
        if one.finished():
            seconds.setdefault(one.row.name, []).append(read_result(one)[1]["seconds"])
    known = [took for of_row in seconds.values() for took in of_row]
    for one in runs:
        if known and not one.finished():
            left += statistics.fmean(seconds.get(one.row.name, known))
    return f", about {progress.clock(left / jobs)} left" if known else ""


def perform_all(runs, jobs=1):
    """Every run that is not finished, until one fails or is stopped.   -> exit status

    jobs: how many at a time. Of several, only what fails is shown in full.
    """
    left = iter([(number, one) for number, one in enumerate(runs, 1)
                 if not one.finished()])
    lock, failed = threading.Lock(), []         # the lock is held by whoever prints
    cores = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None

    def work(stop):
        while True:
            with lock:
                number, one = next(left, (None, None))
                if one is None or failed or stop.asked:
                    return
                words = one.command(whole=True) if jobs == 1 else f"in {one.folder}"
                print(f"\nrun {number} of {len(runs)}{time_left(runs, jobs)}: "
                      f"{one.row.name}, seed {one.seed}\n{words}", flush=True)
            status, output = perform(one, stop, cores)
            if stop.asked:
                status = 128 + stop.asked
            with lock:
                if status:
                    shown = "" if stop.asked else output
                    print(f"{shown}stopped in run {number} of {len(runs)} with status "
                          f"{status}; rerun the same command to continue", flush=True)
                    failed.append(status)
                elif jobs > 1:
                    print(f"run {number} is finished: " + "  ".join(
                        f"{name} {score:.3f}"
                        for name, score in read_result(one)[1]["dev"].items()), flush=True)
    with loop.Stop() as stop, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        others = [pool.submit(work, stop) for _ in range(jobs - 1)]
        work(stop)
        for worker in others:
            worker.result()
    return failed[0] if failed else 0


# --- Their scores ---

def read_test_labels(where):
    """test-labels.csv: task, id, label, TAB separated.   -> {task name: {id: label}}"""
    path, needed = os.path.join(where, "test-labels.csv"), ["task", "id", "label"]
    if not os.path.exists(path):
        raise ValueError(f"--test-labels must be a folder with test-labels.csv, the labels "
                         f"of the test sets (columns {', '.join(needed)}, TAB separated); "
                         f"there is no {path}")
    tasks = known_tasks()
    labels, lines = ({name: {} for name in tasks} for _ in range(2))
    for line, (name, example, label) in tsv.read(path, needed):
        if name not in tasks:
            raise reading.mistake(path, f"a task of {', '.join(tasks)}", name, line)
        example = tsv.note_id(lines[name], example, path, line)
        labels[name][example] = data.parse_label(label, tasks[name], path, line)
    return {name: of_task for name, of_task in labels.items() if of_task}


def test_score(path, task, labels):
    """The metric of a prediction file on labels {id: label}.   Raises ValueError"""
    predicted = results.read_predictions(path)
    if set(predicted) != set(labels):
        raise ValueError(f"{path} and test-labels.csv must name the same examples of "
                         f"{task.name}; {len(set(predicted) ^ set(labels))} ids are in one "
                         f"of them only; give the labels of the same data")
    return declared.score(task, np.array([predicted[i] for i in labels]),
                          np.array(list(labels.values())))


def read_result(one):
    """-> (path of a finished run's result.json, what it says)"""
    path = os.path.join(one.folder, "result.json")
    return path, reading.read_json(path, {"dev": dict, "seconds": reading.NUMBER})


def score(one, labels):
    """A finished run.   -> ({name of one of its tasks: score}, minutes)"""
    path, result = read_result(one)
    tasks = known_tasks()
    names = one.tasks or [name for name in tasks if name in result["dev"]]
    scores = reading.check_fields(path, result["dev"], dict.fromkeys(names, reading.NUMBER))
    if labels is not None:
        names = [name for name in names if name in labels]
        files = os.path.join(one.folder, "predictions")
        scores = {name: test_score(os.path.join(files, f"{name}-test-output.csv"),
                                   tasks[name], labels[name]) for name in names}
    return {name: scores[name] for name in names}, result["seconds"] / 60


def rounded(scores):
    return {name: round(value, 5) for name, value in scores.items()}


def row_result(row, runs, labels):
    """The finished runs of one row.   -> RowResult, without seeds that lack a run"""
    commands, scores, minutes, tasks = [], {}, {}, known_tasks()
    for one in runs:
        found, took = score(one, labels)
        scores.setdefault(one.seed, {}).update(found)
        minutes.setdefault(one.seed, []).append(took)
        if one.command() not in commands:
            commands.append(one.command())
    seeds = {}
    for seed, found in scores.items():
        if found and len(minutes[seed]) == len(row.commands):
            columns = baseline.with_overall({tasks[name]: found[name] for name in tasks
                                             if name in found})
            columns["minutes"] = sum(minutes[seed])
            seeds[str(seed)] = rounded(columns)
    return results.RowResult(row.name, commands, seeds)


def collect(table, runs, labels, data_folder, weights):
    """What the finished runs give.   -> Result

    labels: of the test sets, for Table 3, or None; weights: their name.
    """
    runs = [one for one in runs if one.finished()]
    rows = [row_result(row, [one for one in runs if one.row == row], labels)
            for row in dict.fromkeys(one.row for one in runs)]
    result = results.Result(table, os.path.basename(data_folder), weights,
                            list(dict.fromkeys(results.machine_of(one.folder)
                                               for one in runs)),
                            [row for row in rows if row.seeds], {})
    tasks = [known_tasks()[name] for name in results.columns_of(result)]
    if not tasks:
        return result
    truth = labels and {name: list(of_task.values()) for name, of_task in labels.items()}
    result.baselines["majority class, constant similarity"] = rounded(
        baseline.majority_scores(data_folder, tasks, truth))
    if labels is None:
        result.baselines["bag of n-grams"] = rounded(
            baseline.ngram_scores(data_folder, tasks))
    return result


# --- The command line ---

def parser():
    p = command.Parser(
        __doc__, epilog="rows:\n"
        + "\n".join(f"  {number:2}  {row.name}" for number, row in enumerate(ROWS, 1))
        + "\n\nWhat follows -- goes to every run whose row has no such flag, as in:\n"
        "  -- --lr 1e-4 --pool mean")
    whole = flags.number(int, 1)
    p.add_argument("--table", type=int, choices=[1, 2, 3], help="which (2)", default=2)
    p.add_argument("--seeds", type=flags.number(int, 1, 1000), default=3,
                   help="how many (ours: 3)")
    p.add_argument("--rows", metavar="2,4-6", help="some of the rows (the report's)")
    p.add_argument("--question", choices=list(questions.QUESTIONS), metavar="NAME",
                   help="in place of a table: " + ", ".join(questions.QUESTIONS))
    p.add_argument("--jobs", type=flags.number(int, 1, 64),
                   help="how many runs at a time; each needs a core and memory of its own "
                   "(2 on a CPU with two cores or more, else 1)")
    p.add_argument("--data", metavar="DIR", help="as in train.py")
    p.add_argument("--weights", metavar="DIR|NAME", help="as in train.py")
    p.add_argument("--epochs", type=whole, help="for every row (each row's own)")
    p.add_argument("--max-steps", type=whole, metavar="N", help="for every row")
    p.add_argument("--test-labels", metavar="DIR",
                   help="folder with test-labels.csv, for Table 3 (that of the data)")
    p.add_argument("--runs", type=flags.text, metavar="DIR",
                   default=os.path.join(sources.ROOT, "runs", "tables"),
                   help="where the runs are kept (runs/tables)")
    p.add_argument("--name", type=flags.text,
                   help="of the files that are written (tableN-DATA-WEIGHTS)")
    p.add_argument("--record", action="store_true",
                   help="keep the numbers in results/, and show them in the pages")
    p.add_argument("--render", action="store_true",
                   help="only write the tables of the pages again, from results/")
    return p


def planned(table, runs, data_folder, weights):
    """What collect() will give, without scores and machines.   -> Result"""
    rows = {}
    for one in runs:
        row = rows.setdefault(one.row, results.RowResult(one.row.name, [], {}))
        row.seeds[str(one.seed)] = {}
        row.commands += [one.command()] * (one.command() not in row.commands)
    return results.Result(table, os.path.basename(data_folder), weights, [],
                          list(rows.values()), {})


def with_recorded(result, question, name):
    """results.joined() with NAME.json of results/   -> (its path, Result)"""
    path = os.path.join(sources.ROOT, "results", f"{name}.json")
    rows = questions.rows_of(question) if question else ROWS
    return path, results.joined(path, result, rows)


def write_table(result, question, name, runs_folder, recorded):
    """RUNS/NAME.md and NAME.json, and with record also results/ and the pages."""
    text = (questions.markdown(question, result) if question else
            results.markdown(result))
    path = os.path.join(runs_folder, name)
    folder.write_json(path + ".json", dataclasses.asdict(result))
    results.write_text(path + ".md", text + "\n")
    print(f"\n{text}\n\n{path}.md")
    if recorded:
        path, result = with_recorded(result, question, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        folder.write_json(path, dataclasses.asdict(result))
        if question:
            results.write_text(f"{path.removesuffix('.json')}.md",
                               questions.markdown(question, result) + "\n")
        results.record(sources.ROOT)


# train.py's flags that may not follow --, and what takes their place
OWN_FLAGS = {"--data": "--data", "--weights": "--weights", "--epochs": "--epochs",
             "--max-steps": "--max-steps", "--seed": "--seeds", "--out": "--runs"}


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    passed_on = argv.index("--") if "--" in argv else len(argv)

    def make():
        args = parser().parse_args(argv[:passed_on])
        if args.render:
            results.record()
            return 0
        own_length = args.question and any(
            flag in words for row in questions.rows_of(args.question)
            for words in row.commands for flag in ("--epochs", "--max-steps"))
        for flag, is_given in (("--rows", args.rows), ("--table 1", args.table == 1),
                               ("--epochs", args.epochs and own_length)):
            if args.question and is_given:
                raise ValueError(f"{flag} and --question {args.question} contradict each "
                                 f"other: it has rows, or epochs, of its own")
        if args.table == 1:
            print(results.table_1())
            return 0
        inputs = data_folder, weights = sources.find(args.data, args.weights)
        labels = None
        if args.table == 3:
            labels = read_test_labels(args.test_labels or data_folder)
        rows = results.rows_of(args.table) if args.rows is None else choose(args.rows)
        if args.question:
            rows = questions.rows_of(args.question)
        common = []
        for word in argv[passed_on + 1:]:
            flag = word.partition("=")[0]
            if flag in OWN_FLAGS:
                raise ValueError(f"{word} after -- reaches the runs, but not the table; "
                                 f"give {OWN_FLAGS[flag]} before the --")
            if flag[:2] == "--" and all(flag in text.split() for row in rows
                                        for text in row.commands):
                raise ValueError(f"{word} after -- reaches no run: every row has its own")
        for name, value in (("--data", args.data), ("--weights", args.weights),
                            ("--epochs", args.epochs), ("--max-steps", args.max_steps)):
            common += [] if value is None else [name, str(value)]
        runs_folder = os.path.abspath(args.runs)
        runs = plan(rows, args.seeds, common + argv[passed_on + 1:], inputs, runs_folder)
        check_inputs(runs, data_folder, weights)
        if data_folder == sources.SAMPLE:
            print(sources.SAMPLE_NOTE, end="")
        weights_name = short_path(args.weights or weights)
        # A trial must not take the place of the real table.
        trial = [f"{runs[0].max_steps}-steps"] if runs[0].max_steps else []
        name = args.name or "-".join([
            f"question-{args.question}" + "-test" * (args.table == 3) if args.question
            else f"table{args.table}",
            os.path.basename(data_folder),
            re.sub(r"[\\/]+", "-", weights_name.strip("\\/")),
            *([f"{args.epochs}-epochs"] if args.question and args.epochs else []), *trial])
        results.check_place(runs_folder, name)
        if args.record:     # what cannot be recorded is not trained
            results.check_place(os.path.join(sources.ROOT, "results"), name)
            with_recorded(planned(args.table, runs, data_folder, weights_name),
                          args.question, name)
        on_cpu = machine.find_device("auto").type == "cpu"
        at_once = min(2, os.cpu_count() or 1) if on_cpu else 1
        status = perform_all(runs, args.jobs or at_once)
        result = collect(args.table, runs, labels, data_folder, weights_name)
        if result.rows and (not args.question or questions.baseline_of(args.question)
                            in [row.row for row in result.rows]):
            write_table(result, args.question, name, runs_folder,
                        args.record and not status)
        return status
    return command.one_line(make)


if __name__ == "__main__":
    sys.exit(main())
