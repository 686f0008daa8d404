"""The report's tables, our results beside its numbers, and the pages that show them.

    Row, ROWS           the rows of Tables 2 and 3, with the report's numbers
    read_predictions()  a prediction file of a run
    Result, markdown()  what results/*.json holds, as a table
    CHANGES, changes()  what one change of the flags does to the scores, seed by seed
    render()            the tables into README.md and docs/, between <!-- table: NAME -->
                        and <!-- end of table -->; sample/expected.json
D11, D12: misprints in the report's tables; they are shown as printed, and marked.
"""

import dataclasses
import glob
import json
import math
import os
import re

import numpy as np

import heads
import train
from plumbing import declared, folder, reading, sources, tsv


def known_tasks():
    """{name: heads.Task}"""
    return {task.name: task for task in heads.tasks()}


# --- The rows ---

@dataclasses.dataclass(frozen=True)
class Row:
    """A row of Table 2, and of Table 3 where the report has it there too."""
    name: str
    commands: tuple             # the flags of its runs: one, or one for each task
    epochs: int | None = None   # that Table 2 gives where Table 1 has no such row
    table_2: str = ""           # the report's SST and para accuracy, STS r, overall score
    table_3: str = ""


def flags_of(row):
    """The flags that a row of Table 1 stands for."""
    switches = [flag for flag in train.FLAGS if getattr(row, flag) is True]
    return " ".join([f"--option {row.option}",
                     *(f"--{flag.replace('_', '-')}" for flag in switches)])


CONFIGURATIONS = {row.name: flags_of(row) for row in train.TABLE_1}


def configured(name, table_2, table_3=""):
    """A row that Table 1 has too."""
    return Row(name, (CONFIGURATIONS[name],), None, table_2, table_3)


ROWS = [
    # It trains the encoder too: 4.3 has no frozen one, and .52 is no score of a frozen one.
    Row("SST head fine tuning only", ("--tasks sst",), 10, ".52 .43 .057 .0493 (D12)"),
    configured("Sequential Multitask learning", ".501 .741 .353 .64"),
    Row("Individual Pre-training and Finetuning",
        tuple(f"--tasks {name}" for name in known_tasks()), 5, ".521 .762 .384 .658"),
    configured("Gradient Surgery + CON", ".503 .812 .863 .749"),
    configured("Gradient Vaccine + RR", ".480 .757 .375 .642"),
    configured("Gradient Surgery + RR", ".453 .748 .364 .628", ".512 .841 .861 .761 (D13)"),
    configured("Gradient Surgery + RR + CON + HLH", ".509 .826 .857 .755"),
    configured("Gradient Vaccine + RR + CON + HLH", ".494 .858 .865 .762"),
    configured("SMART + GVAC + RR + CON", ".521 .854 .887 .772 (D12)"),
    configured("SMART + GVAC + RR + CON + HLH", ".517 .871 .891 .778",
               ".516 .870 .884 .776"),
    # The report has no plain round robin, and no treatment with CON but without HLH.
    Row("RR (ours)", ("--option rr",)),
    Row("RR + CON (ours)", ("--option rr --con",)),
    Row("Sequential + CON (ours)", ("--option seq --con",)),
    Row("Gradient Surgery + RR + CON (ours)", ("--option pcgrad --con",)),
    Row("Gradient Vaccine + RR + CON (ours)", ("--option gvac --con",)),
    # Methods of the package torchjd with its defaults; c and alpha have none and are ours.
    *(Row(f"{method.replace(',', ', ')} + RR + CON (torchjd)",
          (f"--option torchjd:{method} --con",))
      for method in ("UPGrad", "MGDA", "CAGrad,c=0.5", "AlignedMTL", "IMTLG",
                     "FairGrad,alpha=1")),
    Row("RR + cosine (ours)", ("--option rr --cosine",)),
]


def rows_of(table):
    """The report's rows of Table 2 or 3"""
    return [row for row in ROWS if (row.table_2 if table == 2 else row.table_3)]


# What two rows differ in: (change, the row with it, the row without it).
PLAIN = "RR + CON (ours)"
SURGERY, VACCINE = "Gradient Surgery + RR", "Gradient Vaccine + RR"
CHANGES = [
    ("CON", PLAIN, "RR (ours)"),
    ("CON, with surgery", f"{SURGERY} + CON (ours)", SURGERY),
    ("CON, with the vaccine", f"{VACCINE} + CON (ours)", VACCINE),
    ("apart, a cosine in the head, for CON", "RR + cosine (ours)", PLAIN),
    ("one model a task, without CON", "Individual Pre-training and Finetuning",
     "RR (ours)"),
    ("one task after the other", "Sequential + CON (ours)", PLAIN),
    ("one task after the other, without CON", "Sequential Multitask learning", "RR (ours)"),
    ("surgery", f"{SURGERY} + CON (ours)", PLAIN),
    ("surgery, without CON", SURGERY, "RR (ours)"),
    ("vaccine", f"{VACCINE} + CON (ours)", PLAIN),
    ("vaccine, without CON", VACCINE, "RR (ours)"),
    ("SMART, with the vaccine", "SMART + GVAC + RR + CON", f"{VACCINE} + CON (ours)"),
    ("SMART, with the vaccine and HLH", "SMART + GVAC + RR + CON + HLH",
     f"{VACCINE} + CON + HLH"),
    ("HLH, with surgery", f"{SURGERY} + CON + HLH", f"{SURGERY} + CON (ours)"),
    ("HLH, with the vaccine", f"{VACCINE} + CON + HLH", f"{VACCINE} + CON (ours)"),
    ("HLH, with the vaccine and SMART", "SMART + GVAC + RR + CON + HLH",
     "SMART + GVAC + RR + CON"),
    ("vaccine, SMART and HLH", "SMART + GVAC + RR + CON + HLH", PLAIN),
    ("reshuffled at every epoch, with surgery", "Gradient Surgery + CON",
     f"{SURGERY} + CON (ours)"),
    *((row.name.removesuffix(" + RR + CON (torchjd)"), row.name, PLAIN)
      for row in ROWS if row.name.endswith("(torchjd)"))]


# --- Results ---

@dataclasses.dataclass
class RowResult:
    """What the finished runs of a row give."""
    row: str
    commands: list
    seeds: dict                 # {seed: {column: score, "minutes": …}}


@dataclasses.dataclass
class Result:
    """What a results file holds."""
    table: int
    data: str
    weights: str
    machines: list
    rows: list                  # [RowResult]
    baselines: dict             # {name: {column: score}}

    @classmethod
    def read(cls, path):
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        result = cls(**reading.read_json(path, kinds, only=True))
        kinds = {field.name: field.type for field in dataclasses.fields(RowResult)}
        result.rows = [RowResult(**reading.check_fields(path, row, kinds, only=True))
                       for row in result.rows]
        reading.check_list(path, result.machines, str)
        for scores in result.baselines.values():
            check_scores(path, scores)
        for row in result.rows:
            reading.check_list(path, row.commands, str)
            if not row.seeds:
                raise reading.mistake(path, f"seeds of {row.row}", row.seeds)
            for scores in row.seeds.values():
                check_scores(path, scores, "minutes")
        return result


def check_place(where, name):
    """Raise ValueError if a table cannot go to WHERE/NAME.json and .md, or would replace
    what is no table.
    """
    path = os.path.join(where, name)
    if os.path.basename(path) != name:
        raise ValueError(f"needed a name without a folder for --name, got {name!r}")
    os.makedirs(where, exist_ok=True)
    if os.path.exists(path + ".json"):
        Result.read(path + ".json")
    elif os.path.exists(path + ".md"):
        raise ValueError(f"{path}.md is a page of its own, without {path}.json; give "
                         f"another --name")


def joined(path, new, rows):
    """What is recorded of a table, and what was measured now.   -> Result

    path: of the recorded one, which need not exist; new: a Result; rows: [Row], all that
    the table can have, in their order. What was measured again takes the place of what is
    there. Rows and seeds that are only there stay. For that both must have the same tasks,
    machines, names of data and weights, and flags beside the rows' own; else raises
    ValueError. A Result that is not measured yet, without machines and scores, is tried in
    the same way.
    """
    if not os.path.exists(path):
        return new
    old, found = Result.read(path), {row.row: row for row in new.rows}
    if all(row.row in found and row.seeds.keys() <= found[row.row].seeds.keys()
           for row in old.rows):
        return new
    for what, has in (("table", lambda result: result.table),
                      ("data", lambda result: result.data),
                      ("weights", lambda result: result.weights),
                      ("machines", lambda result: sorted(result.machines)),
                      ("tasks", columns_of),
                      ("flags for all rows", lambda result: shared_flags(result, rows))):
        recorded, measured = has(old), has(new)
        if measured and recorded != measured:
            raise ValueError(f"{path} has other rows or seeds, to which these cannot be "
                             f"added: its {what} {recorded}, now {measured}; give another "
                             f"--name")
    for row in old.rows:
        again = found.setdefault(row.row, row)
        again.seeds = dict(sorted({**row.seeds, **again.seeds}.items(),
                                  key=lambda seed: int(seed[0])))
    order = [row.name for row in rows]
    return dataclasses.replace(new, rows=sorted(
        found.values(), key=lambda row: (order + [row.row]).index(row.row)))


def shared_flags(result, rows):
    """What the commands of a Result have beside their rows' own words.   -> [text]

    The longest: a row that has one of these flags itself lacks it there.
    """
    own = {row.name: row for row in rows}
    return [max((
        command.removeprefix(f"python train.py {words}").removeprefix(
            f" --epochs {own[row.row].epochs}").strip()
        for row in result.rows if row.row in own
        for command, words in zip(row.commands, own[row.row].commands)),
        key=len, default="")]


def machine_of(run):
    """What a run's args.json says of the machine, in words.   run: its folder"""
    m = folder.read_settings(run)["machine"]
    reading.check_fields(os.path.join(run, "args.json"), m, dict.fromkeys(
        ("device", "cpu", "cores", "threads", "torch", "precision"), object))
    processor = ", ".join(str(m[name]) for name in ("gpu", "cpu") if name in m)
    return (f"{m['device']} ({processor}, {m['cores']} cores), threads: {m['threads']}, "
            f"torch {m['torch']}, {m['precision']}")


def read_predictions(path: str) -> dict[str, float]:
    """What data.write_predictions() wrote.   -> {id: value}

    Ids are as tsv.same_id() has them, and may hold commas. Raises ValueError naming the
    line.
    """
    lines: dict[str, int] = {}              # id -> its line
    found = {}
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
        if not re.match(r"\s*id[\s,]", header, re.IGNORECASE):
            raise ValueError(f"{path}, line 1: needed the header id and the column's name, "
                             f"got {header[:40]!r}; predict again")
        for number, line in enumerate(file, 2):
            if not line.strip():
                continue
            example, _, text = line.rpartition(",")
            value = tsv.parse_number(text)
            if not example.strip() or not math.isfinite(value):
                raise ValueError(f"{path}, line {number}: needed id , number, got "
                                 f"{line[:80]!r}; predict again")
            found[tsv.note_id(lines, example, path, number)] = value
    return found


def check_scores(path, scores, *more):
    """A score of one known task or more, their mean, and what else is needed."""
    reading.check_fields(path, scores, {})
    names = [name for name in known_tasks() if name in scores] or known_tasks()
    reading.check_fields(path, scores, dict.fromkeys([*names, "overall", *more],
                                                     reading.NUMBER))


def short(value, sign=""):
    """.503, as the report prints a score; with sign "+" a plus sign too"""
    return re.sub(r"\b0\.", ".", f"{value:{sign}.3f}")


def spread(values):
    """.503 ± .012: mean and standard deviation (n - 1), or a single value alone"""
    mean = short(np.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {short(np.std(values, ddof=1))}"


def difference(values):
    """Mean and 95% interval of paired differences.   [n] -> "+.012 ± .020"

        mean ± t sd / √n        .01, .02, .03: +.020 ± 4.303 · .01 / √3 = .025

    Bold if 0 lies outside. Fewer than three get no interval: two say nothing of a spread.
    """
    mean = short(np.mean(values), "+")
    n = len(values)
    if n < 3:
        return mean
    width = student_t(n - 1) * np.std(values, ddof=1) / n ** .5
    text = f"{mean} ± {short(width)}"
    return f"**{text}**" if abs(np.mean(values)) > width else text


def columns_of(result):
    """Names of the tasks that a table has: all that its rows have scores of."""
    has = {name for row in result.rows for seed in row.seeds.values() for name in seed}
    return [name for name in known_tasks() if name in has]


def markdown(result):
    """The table of a Result, between its machine and its commands."""
    names = columns_of(result)
    columns = [*names, "overall"]
    split = "dev" if result.table == 2 else "test"
    printed = {row.name: row.table_2 if split == "dev" else row.table_3 for row in ROWS}
    header = ["row", *(declared.title(known_tasks()[name]) for name in names), "overall",
              "seeds", "minutes a seed", "the report: SST, para, STS, overall"]
    if not any(printed.get(row.row) for row in result.rows):
        header.pop()

    def cells(scores):
        """[{column: score}, …], of the seeds -> a cell for each column"""
        scored = [name for name in names if all(name in one for one in scores)]
        # A mean over fewer tasks than other rows have cannot stand beside theirs.
        shown = [*scored, "overall"] if scored == names else scored
        return [spread([one[name] for one in scores]) if name in shown else ""
                for name in columns]
    table = []
    for name, found in result.baselines.items():
        table.append([f"*{name}*", *cells([found]), "", "", ""])
    for row in result.rows:
        seeds = list(row.seeds.values())
        table.append([row.row, *cells(seeds), str(len(seeds)),
                      f"{np.mean([seed['minutes'] for seed in seeds]):.1f}",
                      printed.get(row.row, "")])
    title = (f"Table {result.table}, scores on {split}; data `{result.data}`, weights "
             f"`{result.weights}`; " + ("mean ± sd over the seeds 0, 1, …" if any(
                 len(row.seeds) > 1 for row in result.rows) else "one seed"))
    return "\n".join([
        title, *(f"Machine: {words}." for words in result.machines), "",
        f"| {' | '.join(header)} |", "|" + "---|" * len(header),
        *(f"| {' | '.join(line[:len(header)])} |" for line in table), "",
        *changes(result, columns), "The commands, each with `--seed N`:", "",
        *(f"- {row.row}: {', '.join(f'`{line}`' for line in row.commands)}"
          for row in result.rows)])


def changes(result, columns):
    """What its pairs of rows differ in, of three seeds or more.   -> [line]"""
    seeds = {row.row: row.seeds for row in result.rows}
    tasks, lines = known_tasks(), []
    for change, one, other in CHANGES:
        both = [seed for seed in seeds.get(one, {}) if seed in seeds.get(other, {})]
        if len(both) > 2:
            cells = [difference([seeds[one][seed][column] - seeds[other][seed][column]
                                 for seed in both]) for column in columns]
            lines.append(f"| {change} | {' | '.join(cells)} | {len(both)} |")
    headings = [declared.heading(tasks[name]) for name in columns if name in tasks]
    return lines and [
        f"| change | {' | '.join(headings)} | overall | seeds |",
        "|---" * (len(columns) + 2) + "|", *lines, "",
        "Two of the rows above, with the change and without it, paired by seed; both with "
        "RR + CON if nothing else is said. ± 95% interval; bold where 0 lies outside.", ""]


def table_1():
    """Table 1 from train.TABLE_1, which gives every run its defaults.   -> Markdown"""
    lines = ["| row | flags | batch size | epochs | learning rate | paraphrase first |",
             "|---|---|---|---|---|---|"]
    for row in train.TABLE_1:
        batch = str(row.batch_size * row.accumulate)
        if row.accumulate > 1:
            batch += f" ({row.batch_size} × {row.accumulate})"
        epochs = f"{row.epochs} (D11)" if row.option == "seq" else str(row.epochs)
        lines.append(f"| {row.name} | `{flags_of(row)}` | {batch} | {epochs} "
                     f"| {row.lr:g} | {row.para_first} epochs |")
    return "\n".join(lines)


# --- The pages that show the tables ---

PLACE = re.compile(r"(?P<begin><!-- table: (?P<name>\S+) -->\n)(?P<old>.*?)"
                   r"(?P<end><!-- end of table -->)", re.DOTALL)


def recorded(results):
    """All that pages can show, from Table 1 and what is in results/.   -> {name: text}"""
    found = {"table1": table_1()}
    for path in sorted(glob.glob(os.path.join(results, "table*.json"))):
        found[os.path.splitext(os.path.basename(path))[0]] = markdown(Result.read(path))
    for path in sorted(glob.glob(os.path.join(results, "*.md"))):
        name = os.path.splitext(os.path.basename(path))[0]
        found[name] = reading.read_text(path).strip()
    return found


def pages(root):
    """README.md and the pages of docs/   -> [path]"""
    return [os.path.join(root, "README.md"),
            *sorted(glob.glob(os.path.join(root, "docs", "*.md")))]


def fill(text, tables):
    """A page with every place filled; one that has no table is left as it is."""
    def filled(place):
        if place["name"] not in tables:
            return place[0]
        return f"{place['begin']}\n{tables[place['name']]}\n\n{place['end']}"
    return PLACE.sub(filled, text)


# What may differ between two runs of one row.
CHANCE = {"seed", "data", "weights", "out", "resume", "download", "device", "amp",
          "checkpoint_every", "log_layers", "tensorboard", "recipe"}
# Of Student's t with 1, 2, … degrees of freedom: 95% lie between ± this.
T_95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
        2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086]


def student_t(freedom):
    """Of T_95; with more than 20 degrees of freedom the value for 20, which is wider."""
    return T_95[min(freedom, len(T_95)) - 1]


def interval(values):
    """Where 95% of further values lie, if they are normal.   [n] -> [low, high]

        mean ± t √(1 + 1/n) sd         .702, .722, .742: .722 ± 4.303 · √(4/3) · .02
    """
    n = len(values)
    margin = student_t(n - 1) * (1 + 1 / n) ** .5 * np.std(values, ddof=1)
    return [round(float(np.mean(values) + sign * margin), 4) for sign in (-1, 1)]


def expected(result):
    """What sources.expected() reads, from a Result on the sample.   -> [{…}]

    Rows of several runs, or of a single seed, have no entry.
    """
    entries, names = [], columns_of(result)
    for row in result.rows:
        if len(row.commands) > 1 or len(row.seeds) < 2:
            continue
        words = row.commands[0].split()[2:]
        if "--tasks" not in words:
            words += ["--tasks", ",".join(names)]
        args, _ = train.parse([*words, "--data", sources.SAMPLE, "--weights",
                               sources.SAMPLE])
        entries.append({
            "args": {name: value for name, value in vars(args).items()
                     if name not in CHANCE},
            "seeds": len(row.seeds),
            "dev": {column: interval([seed[column] for seed in row.seeds.values()])
                    for column in [*names, "overall"]}})
    return entries


def write_text(path, text):
    def write(temporary):
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    folder.replace(path, write)


def render(results, paths):
    """Fill the places of all pages, and say which tables have none."""
    tables, places = recorded(results), set()
    for path in paths:
        text = reading.read_text(path)
        places |= {place["name"] for place in PLACE.finditer(text)}
        write_text(path, fill(text, tables))
    for name in sorted(set(tables) - places):
        print(f"no page has a place for {name}; put these two lines where it should "
              f"stand, then --render:\n<!-- table: {name} -->\n<!-- end of table -->")


def record(root=sources.ROOT):
    """Bring all that is made from results/ up to date."""
    results = os.path.join(root, "results")
    render(results, pages(root))
    path = os.path.join(results, "table2-sample-sample.json")
    if os.path.exists(path):
        lines = ",\n".join(json.dumps(entry) for entry in expected(Result.read(path)))
        write_text(os.path.join(root, "sample", "expected.json"), f"[\n{lines}\n]\n")
