"""Make a course assignment: a copy of this tree with holes in it, and the handout.

    python tools/make_assignment.py --out FOLDER
    python tools/make_assignment.py --out FOLDER --parts attention,PCGrad
    python tools/make_assignment.py --check         fill all holes again, in two orders

What grades it, with hidden inputs (docs/assignment.md):

    python tools/make_assignment.py --grader FOLDER [--seed NUMBER]
    python tools/make_assignment.py --gradescope FILE.zip
    python tools/make_assignment.py --classroom50 FOLDER

tools/assignment.json lists the parts: section, name, points, functions ("bert.attention",
"optim.AdamW.step"), lines of test_all.py's ladder that check them, and perhaps a note for
the handout, a list of its lines, and instead: classes that would give the answer away, with
the one that stands in their place. --list FILE takes another such list.

A function of the list keeps its head and docstring, which holds the equation; its body,
with the comments in it, becomes `raise NotImplementedError("3.1 attention")`. Functions are
found in the syntax tree, so the source needs no marks.

The tests go with the copy, but for tests/oracles.py: naive forms would give the answers
away. The copy has another oracles.py, which looks up what the naive forms gave here; the
student's tests check as much as ours. Our own tools are left out with their tests, and so
is all that is not in COPIED, such as .git.
Leaves out: helper functions of a part. List them too, or they stay as they are.
"""

import argparse
import ast
import contextlib
import functools
import hashlib
import importlib
import inspect
import json
import os
import random
import re
import secrets
import shutil
import sys
import tempfile
import textwrap
import unittest.mock

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import test_all
from tests import oracles
from tools import platforms
from tools.climber import climb
from tools.source import (
    copy_tree,
    docstring_end,
    find,
    first_line,
    original,
    read,
    with_body,
    without_skipped_tests,
    write,
)

# Not for students (bench.py shows the usual surgery), or where a hole looks like a bug.
OURS = ("*make_assignment.py", "*mutant*", "climber.py", "source.py", "*bench.py",
        "*grader.py", "cases", "platforms.py", "solutions", "submissions.py", "handout.md",
        "student_readme.md", "assignment.md", "test_docs.py", "*tour.py", "processes.py",
        "*_ranks.py", "*_torchrun.py", "stand_in.py", "elsewhere.py", "*_devices.py",
        "*_gpu.py", "*browser*.py", "test_*_serve.py")
IGNORED = "__pycache__/\n.pytest_cache/\n.venv/\nresults.json\n/runs/\n/data/\n/weights/\n"


# --- The list of parts ---

def load_parts(path, names=None):
    """The parts of a list, or those called `names`.   Raises ValueError naming one."""
    try:
        with open(path, encoding="utf-8") as file:
            parts = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a JSON list of parts: "
                         f"{error}") from None
    kinds = {"section": str, "name": str, "points": (int, float), "functions": list,
             "lines": list}
    for number, part in enumerate(parts if isinstance(parts, list) else [{}], 1):
        part = {"note": [], **part} if isinstance(part, dict) else {}
        wrong = [key for key, kind in {**kinds, "note": list}.items()
                 if not isinstance(part.get(key), kind)]
        if wrong:
            raise ValueError(f"{path}: part {number} needs {', '.join(kinds)}, perhaps "
                             f"note; its {wrong[0]} is missing or of another kind")
    for part in parts:
        part["label"] = f"{part['section']} {part['name']}"
        for function in part["functions"]:
            original(function)
    known = [part["name"] for part in parts]
    for name in names or []:
        if name not in known:
            raise ValueError(f"--parts: there is no {name!r} in {path}; it has "
                             f"{', '.join(known)}")
    return [part for part in parts if names is None or part["name"] in names]


# --- Holes ---

def dig(folder, parts):
    """Replace the bodies of all functions of the parts."""
    for part in parts:
        for function in part["functions"]:
            file, source, _, node = original(function, folder)
            hole = f'raise NotImplementedError("{part["label"]}")'
            write(with_body(source, node, [hole]), folder, file)
        for name, plain_one in part.get("instead", {}).items():
            file, cls = name.split(".")
            source = read(folder, f"{file}.py")
            _, node = find(source, [cls])
            lines = source.splitlines()
            lines[first_line(node) - 1:node.end_lineno] = [
                f"{cls} = {plain_one}       # one form is enough: call {plain_one}"]
            write("\n".join(lines) + "\n", folder, f"{file}.py")


def fill(folder, part):
    """Put our own code back into a part's holes."""
    for function in part["functions"]:
        file, ours, _, node = original(function)
        _, theirs, _, hole = original(function, folder)
        lines = theirs.splitlines()
        lines[first_line(hole) - 1:hole.end_lineno] = (
            ours.splitlines()[first_line(node) - 1:node.end_lineno])
        write("\n".join(lines) + "\n", folder, file)


# --- The student's oracles.py ---

def key_of(inputs):
    """A short name for numbers, equal for inputs that are equal to six decimals."""
    digest = hashlib.sha1()
    for values in inputs:
        values = np.round(np.asarray(values, np.float64), 6) + 0.0      # no -0.0
        digest.update(f"{values.shape}".encode() + values.tobytes())
    return digest.hexdigest()[:16]


@functools.cache
def recorded_numbers():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "numbers.json")
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def recorded(name, *inputs):
    """What the naive form gave for these inputs."""
    known = recorded_numbers()[name].get(key_of(inputs))
    assert known is not None, f"other inputs of {name}() than recorded; was one changed?"
    return known


def naive_forms():
    """{name: function} of all that oracles.py defines."""
    return {name: f for name, f in vars(oracles).items()
            if inspect.isfunction(f) and f.__module__ == oracles.__name__}


def student_oracles():
    """The source of the student's oracles.py."""
    functions = [inspect.getsource(f) for f in (key_of, recorded_numbers, recorded)]
    for name, f in naive_forms().items():
        inputs = ", ".join(inspect.signature(f).parameters)
        functions.append(f"def {name}({inputs}):\n"
                         f'    return recorded("{name}", {inputs})\n')
    return ('"""What slow and simple forms of the algorithms gave: numbers.json."""\n\n'
            "import functools\nimport hashlib\nimport json\nimport os\n\n"
            "import numpy as np\n\n\n" + "\n\n".join(functions))


def plain(value):
    """Tensors, arrays and tuples as lists, numbers to 13 digits: enough for all tests."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.13g}")
    return plain(value.tolist()) if hasattr(value, "tolist") else value


@functools.cache
def record():
    """Run the tests that use naive forms.   -> {naive form: {key: what it gave}}"""
    numbers = {name: {} for name in naive_forms()}

    def listening(name, f):
        def call(*inputs):
            numbers[name][key_of(inputs)] = plain(f(*inputs))
            return f(*inputs)
        return call
    with contextlib.ExitStack() as stack:
        for name, f in naive_forms().items():
            stack.enter_context(
                unittest.mock.patch.object(oracles, name, listening(name, f)))
        for test in test_all.all_tests():
            if ("from tests import oracles" in read(ROOT, "tests", test.file)
                    and "oracles" in test.function().__code__.co_names):
                state, message, _ = test_all.run_one(test.run)
                if state != "done":
                    raise ValueError(f"our own test fails: {test.name}: {message}")
    return numbers


# --- Which parts a test needs ---

@functools.cache
def functions_run_by(test):
    """The code objects of this tree that a test runs, found by running it.   -> a set"""
    found = set()
    (run,) = [t.run for t in test_all.all_tests() if t.name == test]
    before = sys.gettrace()
    sys.settrace(lambda frame, event, arg: found.add(frame.f_code))
    try:
        test_all.run_one(run)
    finally:
        sys.settrace(before)
    return found


def parts_needed(test, parts):
    """The labels of the parts whose functions a test runs."""
    def code_of(function):
        path = function.split(".")
        value = functools.reduce(getattr, path[1:], importlib.import_module(path[0]))
        return inspect.unwrap(value).__code__
    return [part["label"] for part in parts
            if functions_run_by(test) & {code_of(f) for f in part["functions"]}]


# --- What the copy's commands say ---

def name_the_hole(kind, error, trace):
    """sys.excepthook: a part that is still open gets one line instead of a traceback.

    Named are the part that this command needs now, and the first open one in the report's
    order if that is another.
    """
    with open(os.path.join(ROOT, "tools", "assignment.json"), encoding="utf-8") as file:
        labels = [f"{part['section']} {part['name']}" for part in json.load(file)]
    if kind is not NotImplementedError or str(error) not in labels:
        return sys.__excepthook__(kind, error, trace)
    source = ""
    for name in os.listdir(ROOT):
        if name.endswith(".py"):
            with open(os.path.join(ROOT, name), encoding="utf-8") as file:
                source += file.read()
    first = next((label for label in labels if f'NotImplementedError("{label}")' in source),
                 str(error))
    print(f"{os.path.basename(sys.argv[0])}: {first} is still to be written"
          + ("" if first == str(error) else f", and {error}, which is needed here")
          + "; python test_all.py shows what is done", file=sys.stderr)


def student_plumbing():
    """The source of the student's plumbing/__init__.py, which every command imports."""
    return (read(ROOT, "plumbing", "__init__.py") + "\nimport json\nimport os\nimport sys\n"
            "\nROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))\n\n\n"
            + inspect.getsource(name_the_hole) + "\n\nsys.excepthook = name_the_hole\n")


def lines_of(parts):
    return [line for part in parts for line in part["lines"]]


def is_done(part, results):
    """Every line of the part has a test that is done, and none that fails or is open."""
    for line in part["lines"]:
        states = {r["state"] for r in results if r["line"] == line}
        if "done" not in states or states & {"FAIL", "todo"}:
            return False
    return True


# --- The handout ---

SHOWN = ("--option rr --con", "--option pcgrad --con", "--option gvac --con",
         "--option gvac --smart --con --hlh")


def scores_to_reach():
    """What some flags give on the sample, from results/, in Markdown."""
    lines = ["| flags of train.py | SST | paraphrase | STS | overall |",
             "|---|---|---|---|---|"]
    for row in json.loads(read(ROOT, "results", "table2-sample-sample.json"))["rows"]:
        flags = row["commands"][0].removeprefix("python train.py ")
        if flags in SHOWN:
            seeds = list(row["seeds"].values())
            cells = [f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
                     for values in ([seed[name] for seed in seeds]
                                    for name in ("sst", "para", "sts", "overall"))]
            lines.append(f"| `{flags}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def files_of(part):
    return [f"`{name.split('.')[0]}.py`" for name in part["functions"]]


def excerpt(function, classes):
    """A function's head and docstring, under its class's unless that is in `classes`."""
    _, source, outer, node = original(function)
    lines, text = source.splitlines(), []
    if outer is not None and outer.name not in classes:
        classes.add(outer.name)
        text += [*lines[outer.lineno - 1:docstring_end(outer)], ""]
    end = docstring_end(node)
    if ast.get_docstring(node) is None:
        end = node.lineno
        while not lines[end - 1].rstrip().endswith(":"):
            end += 1
    return text + lines[first_line(node) - 1:end] + [""]


def handout(parts):
    """ASSIGNMENT.md, from the docstrings and the names of the tests."""
    table = "\n".join("| {label} | {points:g} | {hours} | {where} |".format(
        where=", ".join(f"`{function}`" for function in part["functions"]),
        **{"hours": "", **part}) for part in parts)
    files = dict.fromkeys(file for part in parts for file in files_of(part))
    text = [read(ROOT, "tools", "handout.md").format(
        number=len(parts), label=parts[0]["label"], table=table, files=", ".join(files),
        word=f'"{parts[0]["label"]}"', scores=scores_to_reach(),
        points=sum(part["points"] for part in parts),
        hours=sum(part.get("hours", 0) for part in parts))]
    for part in parts:
        classes, code = set(), []
        for function in part["functions"]:
            code += excerpt(function, classes)
        files = ", ".join(dict.fromkeys(files_of(part)))
        names = ", ".join(f"`{function.split('.', 1)[1]}()`"
                          for function in part["functions"])
        several = len({name.split("__")[0] for name in part["tests"]}) > 1
        paragraphs = [f"Write {names} in {files}.", " ".join(part.get("note", []))]
        text += [f"## {part['label']} ({part['points']:g} points)\n",
                 *(textwrap.fill(p, 88) + "\n" for p in paragraphs if p),
                 "```python", *code[:-1], "```\n",
                 f"Check: `python test_all.py \"{part['label']}\"`\n",
                 *(claim(name, several, [label for label in parts_needed(name, parts)
                                         if label != part["label"]])
                   for name in part["tests"]), ""]
    return "\n".join(text)


def claim(name, several, others):
    """A test as a line of the handout: its claim, and the other parts that it needs."""
    line, words = name.removeprefix("test_").split("__")
    return (f"- {re.sub('^[0-9_]+', '', line) + ': ' if several else ''}"
            f"{words.replace('_', ' ')}"
            + (f" (needs {', '.join(others)})" if others else ""))


# --- The copy ---

def make(out, parts):
    """Write the student's tree to `out`.   Raises ValueError if there is something

    It is made elsewhere and moved when it is complete.   -> the parts, with their tests
    """
    out = os.path.abspath(out)
    if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise ValueError(f"--out {out} is there already; give a new folder")
    with tempfile.TemporaryDirectory(prefix="minbert-copy-") as place:
        folder = os.path.join(place, "copy")
        copy_tree(folder, OURS)
        dig(folder, parts)
        for name in os.listdir(os.path.join(folder, "tests")):
            if name.startswith("test_"):
                write(without_skipped_tests(read(folder, "tests", name)), folder, "tests",
                      name)
        write(student_oracles(), folder, "tests", "oracles.py")
        checks = read(folder, "tests", "checks.py")
        write(checks.replace("\nWORDS = True", "\nWORDS = False"), folder, "tests",
              "checks.py")
        write(read(ROOT, "tools", "student_readme.md"), folder, "README.md")
        write(IGNORED, folder, ".gitignore")
        write(json.dumps(record()), folder, "tests", "numbers.json")
        write(student_plumbing(), folder, "plumbing", "__init__.py")
        # Points are for what the holes make fail. The rest of a part's tests pass already.
        parts = [dict(part) for part in parts]
        for part in parts:
            part.pop("tests", None)
        write_parts(folder, parts)
        results = climb(folder, lines_of(parts))
        failed = [f"{r['name']}: {r['message']}" for r in results if r["state"] == "FAIL"]
        if failed:
            raise RuntimeError(f"a test of the copy fails instead of waiting: {failed[0]}")
        for part in parts:
            part["tests"] = [r["name"] for r in results if r["part"] == part["label"]
                             and r["state"] in ("todo", "waits")]
            if not part["tests"]:
                raise ValueError(f"no test in {part['lines']} needs {part['functions']}")
        write_parts(folder, parts)
        write(handout(parts), folder, "ASSIGNMENT.md")
        if os.path.isdir(out):
            os.rmdir(out)
        os.makedirs(os.path.dirname(out), exist_ok=True)
        shutil.move(folder, out)
    return parts


def write_parts(folder, parts):
    """The copy's tools/assignment.json."""
    parts = [{key: value for key, value in part.items() if key != "label"}
             for part in parts]
    write(json.dumps(parts, indent=1, ensure_ascii=False) + "\n", folder, "tools",
          "assignment.json")


def round_trip(parts, orders, show=print):
    """Make a copy for each order, and fill its holes one by one from our source.

    After each step the ladder must show exactly the filled parts done, nothing that was
    done may break, and the last step must give all points. Raises AssertionError.
    """
    with tempfile.TemporaryDirectory(prefix="minbert-copy-") as place:
        listed = make(os.path.join(place, "new"), parts)
        for order in orders:
            folder = tempfile.mkdtemp(dir=place)
            shutil.copytree(os.path.join(place, "new"), folder, dirs_exist_ok=True)
            filled, passed = [], set()
            for part in order:
                fill(folder, part)
                filled.append(part["label"])
                results = climb(folder, lines_of(listed))
                failed = [r["name"] for r in results if r["state"] == "FAIL"]
                assert not failed, f"{failed} fail instead of waiting"
                done = [p["label"] for p in listed if is_done(p, results)]
                assert sorted(done) == sorted(filled), (
                    f"filled {filled}, but the ladder shows {done} done")
                now = {r["name"] for r in results if r["state"] == "done"}
                assert passed <= now, f"{passed - now} broke with {part['label']}"
                passed = now
                points = sum(r["points"] for r in results)
                show(f"{points:6.2f} points  with {part['label']}")
            total = sum(p["points"] for p in listed)
            assert abs(points - total) < 1e-2, f"got {points} points, expected {total}"


def main(argv=None):
    p = argparse.ArgumentParser(description="Make a course assignment from this tree.",
                                usage=argparse.SUPPRESS)
    p.add_argument("--out", metavar="FOLDER", help="new folder for the student's copy")
    p.add_argument("--parts", metavar="NAME,…", help="some of the list (all)")
    p.add_argument("--list", metavar="FILE", help="the list (tools/assignment.json)",
                   default=os.path.join(ROOT, "tools", "assignment.json"))
    p.add_argument("--check", action="store_true",
                   help="fill the holes of a copy one by one, in two orders")
    for kind, place in (("grader", "FOLDER"), ("gradescope", "FILE"),
                        ("classroom50", "FOLDER")):
        p.add_argument(f"--{kind}", metavar=place,
                       help="what grades it, with hidden inputs")
    p.add_argument("--seed", type=int, help="of the hidden inputs (a new one, kept there)")
    args = p.parse_args(argv)
    graders = {kind: value for kind, value in vars(args).items() if value and kind in (
        "grader", "gradescope", "classroom50")}
    if not args.out and not args.check and not graders:
        p.error("needed --out FOLDER, --check, --grader FOLDER, --gradescope FILE or "
                "--classroom50 FOLDER")
    try:
        parts = load_parts(args.list, None if args.parts is None else args.parts.split(","))
        if args.out:
            listed = make(args.out, parts)
            print(f"{args.out}: {len(listed)} parts, "
                  f"{sum(len(part['tests']) for part in listed)} tests, "
                  f"{sum(part['points'] for part in listed):g} points; see ASSIGNMENT.md")
        if graders:
            with tempfile.TemporaryDirectory(prefix="minbert-copy-") as place:
                folder = os.path.join(place, "copy")
                make(folder, parts)
                seed = secrets.randbits(63) if args.seed is None else args.seed
                for kind, path in graders.items():
                    getattr(platforms, f"make_{kind}")(path, folder, parts, seed)
                    print(f"{path}: the grader; keep it, and its seed, to yourself")
        if args.check:
            with tempfile.TemporaryDirectory(prefix="minbert-copy-") as place:
                folder = os.path.join(place, "copy")
                make(folder, parts)
                failed = [r for r in climb(folder) if r["state"] == "FAIL"]
                assert not failed, f"a test of the copy fails instead of waiting: {failed}"
            round_trip(parts, [parts, random.Random(0).sample(parts, len(parts))])
            print("done one by one, in both orders")
    except (ValueError, OSError) as error:
        p.error(str(error))
    except (AssertionError, RuntimeError) as error:
        print(f"FAIL: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
