"""Grade a submission with hidden inputs.

    python tools/grader.py SUBMISSION                   a table of parts
    python tools/grader.py SUBMISSION --json FILE       a result for each case
    python tools/grader.py SUBMISSION --gradescope FILE the file that Gradescope reads
    python tools/grader.py SUBMISSION --summary FILE    the table, in Markdown

The exit status is 0 if all points were earned, otherwise 1; 2 for a wrong argument.

It works in the folder that make_assignment.py --grader has made, which holds the seed, the
hand-out and our source. Each part runs in a process of its own (isolated.py): the hand-out
with the student's files of this part alone, so that a mistake in one file costs the parts
of that file. The process gets a seed, computes the cases of cases/ and sends back what came
out. This process compares it with what our source gives; it never imports a submission.
"""

import argparse
import ast
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import isolated
from tools.isolated import Child, Ended, why_no_stranger

MODULE_SIZE = 100_000       # bytes of a student's module, at most; ours have under 25,000
START = 120                 # seconds in which a process must have imported a module


@dataclasses.dataclass
class Case:
    """One hidden test: its claim, and what came of it."""
    part: str
    name: str
    of: float
    state: str = "FAIL"             # done, todo, FAIL
    message: str = "not graded: the grader was stopped"
    points: float = 0.0
    seconds: float = 0.0

    @property
    def claim(self):
        return self.name.split("__", 1)[1].replace("_", " ")


# --- The parts ---

def load(words=()):
    """-> (the parts of the grader's folder, or those whose label contains a word, seed)"""
    path = ROOT / "tools" / "assignment.json"
    grader = ROOT / "tools" / "seed.json"
    if not grader.exists():
        raise ValueError("this is not a grader's folder; make one with "
                         "tools/make_assignment.py --grader FOLDER")
    parts = json.loads(path.read_text(encoding="utf-8"))
    seed = json.loads(grader.read_text(encoding="utf-8"))
    for part in parts:
        part["label"] = f"{part['section']} {part['name']}"
    chosen = [part for part in parts
              if not words or any(word in part["label"] for word in words)]
    if not chosen:
        raise ValueError(f"no part's name contains {' or '.join(map(repr, words))}")
    return chosen, seed


def files_of(part):
    return list(dict.fromkeys(f"{name.split('.')[0]}.py" for name in part["functions"]))


def case_file(part):
    """-> (the name of the file that has the part's cases, their names)"""
    for path in sorted((ROOT / "tools" / "cases").glob("*.py")):
        names = re.findall(rf"^def ({part.get('cases')}__\w+)\(",
                           path.read_text(encoding="utf-8"), re.MULTILINE)
        if names:
            return path.stem, names
    raise ValueError(f"part {part['label']} has no hidden tests: its \"cases\" must name a "
                     f"group in tools/cases/")


def cases_of(part):
    """The part's cases, which share its points in hundredths that add up exactly."""
    _, names = case_file(part)
    cents, rest = divmod(round(100 * part["points"]), len(names))
    return [Case(part["label"], name, (cents + (i < rest)) / 100)
            for i, name in enumerate(names)]


# --- A submission's files ---

def folder_of(submission, names):
    """Where the modules are: in the submission, or in the folder in it that has most."""
    def found(place):
        return sum(os.path.exists(place / name) for name in names)
    if found(submission):
        return submission
    folders = [path for path in sorted(submission.iterdir())
               if path.is_dir() and not path.is_symlink()
               and not path.name.startswith((".", "__"))]       # __MACOSX in a Mac's zip
    return max(folders, key=found, default=submission)


def problem_of(path, part):
    """Why a student's module is not even tried, in one line, or "".

    A link might lead to the grader's own files.
    """
    if path.is_symlink() or not path.is_file():
        return f"{path.name} was not handed in"
    if path.stat().st_size > MODULE_SIZE:       # parsing can take its square
        return f"{path.name} is larger than {MODULE_SIZE:,} bytes"
    if not os.access(path, os.R_OK):
        return f"{path.name} cannot be read: its mode forbids it"
    forbidden = {name.split(".")[-1] for name in part.get("not_allowed", ())
                 if "." in name}
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        # Ours use some elsewhere, such as on GPUs; cases/ notices what is called.
        given = {*uses(ROOT / "hand-out" / path.name), *uses(ROOT / "solution" / path.name)}
        for name, line in uses(path).items():
            if name in forbidden and name not in given:
                return (f"{name} is what you are to write; build it from simpler parts "
                        f"({path.name}, line {line})")
    return ""


def uses(path):
    """{name: line} of all names, attributes and imports in a module but its own functions
    and classes: `adam` may be a helper.
    """
    found, nodes = {}, list(ast.walk(ast.parse(path.read_bytes())))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in nodes:
        for name in (getattr(node, "attr", None), getattr(node, "id", None),
                     node.name if isinstance(node, ast.alias) else None):
            if isinstance(name, str):
                found.setdefault(name.split(".")[-1], getattr(node, "lineno", 0))
    return {name: line for name, line in found.items() if name not in own}


# --- One part ---

@contextlib.contextmanager
def process(part, source, seed, student=None, start=START):
    """A process that answers the part's cases.   -> a function name -> answer

    source: the folder with all modules; student: that with those of the part, or None for
    our own source, which no student's process must be able to read even here.
    """
    place = tempfile.mkdtemp(prefix="minbert-grade-")
    stranger, child = bool(student) and not why_no_stranger(), None

    def ask(name, limit):
        nonlocal child
        if child is None:       # the first, or the one before has ended
            new = tempfile.mkdtemp(dir=place)
            folder = os.path.join(new, "work")
            shutil.copytree(source, folder)
            shutil.copytree(ROOT / "tools" / "cases", os.path.join(folder, "cases"))
            for file in files_of(part) if student else ():
                shutil.copyfile(student / file, os.path.join(folder, file))
            if stranger:
                os.chmod(place, 0o711)
                readable(new)
            child = Child("cases:service", case_file(part)[0], seed,
                          part.get("not_allowed", []), folder=folder, stranger=stranger,
                          start=start)
        try:
            return child.ask(name, limit)
        except Ended:
            child = None
            raise
    try:
        yield ask
    finally:
        if child:
            child.close()
        isolated.remove(place)


def readable(place):
    """Let everybody read this folder, whatever the modes of what was copied there."""
    for here, _, names in os.walk(place):
        os.chmod(here, 0o755)
        for name in names:
            os.chmod(os.path.join(here, name), 0o644)


def answers(part, seed):
    """{case's name: what our source gives}"""
    found = {}
    with process(part, ROOT / "solution", seed) as ask:
        for case in cases_of(part):
            found[case.name] = answer = ask(case.name, START)
            if "value" not in answer:
                raise RuntimeError(f"our own source fails: {case.name}: {answer}")
    return found


def grade(part, seed, submission, limit=20.0, right=None):
    """-> [Case, …] of a part"""
    cases, deaths = cases_of(part), 0
    student = folder_of(submission, files_of(part))
    problem = next(filter(None, (problem_of(student / name, part)
                                 for name in files_of(part))), "")
    if problem:
        return [dataclasses.replace(case, message=problem) for case in cases]
    right = right or answers(part, seed)
    with process(part, ROOT / "hand-out", seed, student, limit + 20) as ask:
        for case in cases:
            start = time.monotonic()
            try:
                if deaths < 3:      # it would only end again
                    case.state, case.message = judge(ask(case.name, limit),
                                                     right[case.name])
                else:
                    case.message = cases[cases.index(case) - 1].message
            except Ended as end:
                deaths += 3 if end.at_start else 1
                case.message = first_line(end)
            case.seconds = time.monotonic() - start
            case.points = case.of if case.state == "done" else 0.0
    return cases


def judge(answer, right):
    """-> (state, message)"""
    if not isinstance(answer, dict):
        return "FAIL", "no result"
    if "error" in answer:       # the process may have sent anything
        error, message, place = (first_line(answer.get(key, ""))
                                 for key in ("error", "message", "place"))
        place = f" ({place})" if place else ""
        if error == "NotImplementedError":
            return "todo", "still open" + place
        return "FAIL", f"{error}: {message}{place}"
    if "value" not in answer:
        return "FAIL", "no result"
    worst, complaint = 0.0, ""
    for got, expected in pairs(answer["value"], right["value"]):
        if isinstance(expected, float) and isinstance(got, (int, float)) and not (
                isinstance(got, bool)):
            if abs(got) > 1e300:        # also an int that is too large for a float
                got = math.copysign(math.inf, got > 0 or -1)
            if math.isnan(got) and math.isnan(expected) or got == expected:
                continue
            apart = abs(got - expected)
            if not apart <= right["tolerance"] * (1 + abs(expected)):
                worst = apart if apart > worst else worst
                complaint = (f"the largest difference from the right numbers is {worst:.2g}"
                             if math.isfinite(apart) else "a number is NaN or infinite")
        elif got != expected or isinstance(got, bool) != isinstance(expected, bool):
            complaint = complaint or "what came out has another form or is not so"
    return ("FAIL", complaint) if complaint else ("done", "")


def first_line(text):
    """Without what no file or page can hold, such as half of a surrogate pair."""
    line = (str(text).splitlines() or [""])[0][:300]
    return "".join(c if c.isprintable() else "\ufffd" for c in line)


def pairs(got, expected):
    """The corresponding leaves of two nested lists."""
    if isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            yield "another shape", expected
            return
        for a, b in zip(got, expected):
            yield from pairs(a, b)
    else:
        yield got, expected


# --- All parts, and what is written ---

def write(text, path):
    """At once or not at all, so that a grader that is stopped leaves whole results."""
    temporary = f"{path}.{os.getpid()}.part"
    pathlib.Path(temporary).write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def by_part(cases):
    parts = {}
    for case in cases:
        parts.setdefault(case.part, []).append(case)
    return parts


def points(cases):
    return round(sum(case.points for case in cases), 2), round(sum(case.of
                                                                   for case in cases), 2)


def report(cases):
    """One part's cases, as lines for the student."""
    alike = {}
    for case in cases:
        if case.state != "done":
            alike.setdefault((case.state, case.message), []).append(case.claim)
    done = sum(case.state == "done" for case in cases)
    lines = [f"{done} of {len(cases)} hidden tests are done."]
    for (state, message), claims in alike.items():
        more = f" (and {len(claims) - 1} more)" if len(claims) > 1 else ""
        lines.append(f"{state}: {claims[0]}{more}: {message}")
    if alike:
        lines.append(f'Your own copy says more: python test_all.py "{cases[0].part}"')
    return "\n".join(lines)


def gradescope(cases, start):
    """The content of results.json, by Gradescope's published format."""
    entries = []
    for label, own in by_part(cases).items():
        score, most = points(own)
        entries.append({"name": label, "score": score, "max_score": most,
                        "status": "passed" if score == most else "failed",
                        "output": report(own), "visibility": "visible"})
    result = {"execution_time": round(time.monotonic() - start), "visibility": "visible",
              "stdout_visibility": "hidden", "tests": entries}
    if not any(case.points for case in cases):
        messages = list(dict.fromkeys(case.message for case in cases))
        more = f"; and {len(messages) - 3} more, below" if len(messages) > 3 else ""
        result["output"] = f"Nothing could be graded yet: {'; '.join(messages[:3])}{more}"
        result["output_format"] = "text"    # otherwise it would be read as HTML
    return result


def table(cases):
    """All parts, in Markdown."""
    lines = ["| part | points | of | |", "|---|---|---|---|"]
    for label, own in by_part(cases).items():
        message = next((case.message for case in own if case.message), "")
        message = message.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
        lines.append("| {} | {:g} | {:g} | {} |".format(label, *points(own), message))
    return "\n".join([*lines, "| in all | {:g} | {:g} | |".format(*points(cases)), ""])


def save(cases, args, start):
    if args.json:
        rows = [{**dataclasses.asdict(case), "seconds": round(case.seconds, 3)}
                for case in cases]
        write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", args.json)
    if args.gradescope:
        write(json.dumps(gradescope(cases, start), indent=1) + "\n", args.gradescope)
    if args.summary:
        write(table(cases), args.summary)


def main(argv=None):
    p = argparse.ArgumentParser(description="Grade a submission with hidden inputs.",
                                usage=argparse.SUPPRESS)
    p.add_argument("submission", type=pathlib.Path, help="folder with a student's modules")
    p.add_argument("words", nargs="*", help="only parts whose name contains one of these")
    p.add_argument("--json", metavar="FILE", help="write a result for each hidden test")
    p.add_argument("--gradescope", metavar="FILE", help="write Gradescope's results.json")
    p.add_argument("--summary", metavar="FILE", help="write a table in Markdown")
    p.add_argument("--limit", type=float, default=20.0, help="seconds for a test (20)")
    args, start = p.parse_intermixed_args(argv), time.monotonic()
    if not 0 < args.limit < 1e6:
        p.error(f"--limit must be above 0 seconds, got {args.limit:g}")
    isolated.PRELOAD.append(isolated.SLOW)
    if why_no_stranger():
        print(f"grader.py: warning: the submission runs with your rights, and could read "
              f"the solution: {why_no_stranger()}", file=sys.stderr)
    try:
        if not args.submission.is_dir():
            raise ValueError(f"needed the folder of a submission, got {args.submission}")
        args.submission = args.submission.resolve()
        parts, seed = load(args.words)
        graded = {part["label"]: cases_of(part) for part in parts}

        def all_cases():
            return [case for own in graded.values() for case in own]
        save(all_cases(), args, start)      # whatever happens, there are results
        for part in parts:
            own = graded[part["label"]] = grade(part, seed, args.submission, args.limit)
            print("{:6.4g} of {:3g}  {}".format(*points(own), part["label"]), flush=True)
            save(all_cases(), args, start)
    except (ValueError, OSError) as error:
        p.error(str(error))
    print("{:6.4g} of {:3g}  in all".format(*points(all_cases())))
    return 0 if all(case.state == "done" for case in all_cases()) else 1


if __name__ == "__main__":
    with isolated.ended_in_order():
        sys.exit(main())
