"""Make a course assignment: a copy of this tree with holes in it, and the handout.

    python tools/make_assignment.py --out FOLDER
    python tools/make_assignment.py --out FOLDER --parts attention,PCGrad
    python tools/make_assignment.py --check         fill all holes again, in two orders

tools/assignment.json lists the parts: section, name, points, functions ("bert.attention",
"optim.AdamW.step"), lines of test_all.py's ladder that check them, and perhaps a note for
the handout, a list of its lines, and instead: classes that would give the answer away, with
the one that stands in their place. --list FILE takes another such list.

A function of the list keeps its head and docstring, which holds the equation; its body,
with the comments in it, becomes `raise NotImplementedError("3.1 attention")`. Functions are
found in the syntax tree, so the source needs no marks.

The tests go with the copy, but a test may itself hold an answer: a naive form beside the
fast one. These are known by their names (naive_, torchs_, numpys_). Every call of theirs is
recorded here, and in the copy they look the numbers up, so the student's tests check as
much as ours. Tests of this tool and of mutants.py are left out, and so is all that is not
in COPIED, such as .git.
Leaves out: helper functions of a part. List them too, or they stay as they are.
"""

import argparse
import ast
import functools
import hashlib
import inspect
import json
import os
import random
import re
import shutil
import sys
import tempfile
import textwrap
import traceback

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODULES = ("bert", "data", "heads", "multitask", "optim", "smart", "train", "test_all")
COPIED = (*(f"{name}.py" for name in MODULES), "plumbing", "tools", "sample", "results",
          "README.md", "LICENSE", "requirements.txt", "pyproject.toml")
# Tools that are not for students; bench.py holds the usual form of surgery and vaccine.
OURS = ("make_assignment", "mutants", "bench")
ORACLES = ("naive_", "torchs_", "numpys_")


# --- The list of parts ---

def load_parts(path, names=None):
    """The parts of a list, or those called `names`.   Raises ValueError naming one."""
    try:
        with open(path, encoding="utf-8") as file:
            parts = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a JSON list of parts: "
                         f"{error}") from None
    kinds = dict(section=str, name=str, points=(int, float), functions=list, lines=list)
    for number, part in enumerate(parts if isinstance(parts, list) else [None], 1):
        for key, kind in {**kinds, "note": list}.items():
            if not isinstance(part, dict) or not isinstance(
                    part.get(key, [] if key == "note" else None), kind):
                raise ValueError(f"{path}: part {number} needs {', '.join(kinds)}, perhaps "
                                 f"note; its {key} is missing or of another kind")
        part["label"] = f"{part['section']} {part['name']}"
        for function in part["functions"]:
            original(function)
    known = [part["name"] for part in parts]
    for name in names or []:
        if name not in known:
            raise ValueError(f"--parts: there is no {name!r} in {path}; it has "
                             f"{', '.join(known)}")
    return [part for part in parts if names is None or part["name"] in names]


def find(source, names):
    """The def of ["AdamW", "step"] in a module's source.   -> (its class or None, node)"""
    node, outer = ast.parse(source), None
    for name in names:
        outer, node = node, next(
            (child for child in node.body if getattr(child, "name", None) == name
             and isinstance(child, (ast.ClassDef, ast.FunctionDef))), None)
        if node is None:
            return None, None
    return outer if isinstance(outer, ast.ClassDef) else None, node


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def write(text, *path):
    with open(os.path.join(*path), "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def original(function, root=ROOT):
    """"optim.AdamW.step" -> (file, its source, class or None, node).   Raises ValueError"""
    names = function.split(".")
    depth = 2 if names[0] == "plumbing" else 1
    file, node = os.path.join(*names[:depth]) + ".py", None
    if os.path.exists(os.path.join(root, file)) and names[depth:]:
        source = read(root, file)
        outer, node = find(source, names[depth:])
    if not isinstance(node, ast.FunctionDef):
        raise ValueError(f"there is no function {function}; needed one of a module, such "
                         f"as bert.attention or optim.AdamW.step")
    return file, source, outer, node


# --- Holes ---

def first_line(node):
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def docstring_end(node):
    """The last line of a def's or class's head: of its docstring, if it has one."""
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        return first.end_lineno
    return first.lineno - 1


def with_body(source, node, body):
    """`source` with another body for a def, whose head and docstring stay."""
    lines = source.splitlines()
    head = docstring_end(node)
    if ast.get_docstring(node, clean=False) is None:        # comments may follow the head
        while head > node.lineno and not lines[head - 1].rstrip().endswith(":"):
            head -= 1
    indent = " " * (node.col_offset + 4)
    return "\n".join(lines[:head] + [indent + line for line in body]
                     + lines[node.end_lineno:]) + "\n"


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
            lines[first_line(node) - 1:node.end_lineno] = [f"{cls} = {plain_one}"]
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


# --- The student's tests ---

@functools.cache
def recorded_numbers():
    with open(os.path.join(ROOT, "tools", "numbers.json"), encoding="utf-8") as file:
        return json.load(file)


def key_of(inputs):
    """A short name for numbers, equal for inputs that are equal to six decimals."""
    digest = hashlib.sha1()
    for values in inputs:
        values = np.round(np.asarray(values, np.float64), 6) + 0.0      # no -0.0
        digest.update(f"{values.shape}".encode() + values.tobytes())
    return digest.hexdigest()[:16]


def recorded(name, *inputs):
    """What the naive form gives for these inputs; its code would give an answer away."""
    known = recorded_numbers()[name].get(key_of(inputs))
    assert known is not None, f"the inputs of {name}() are not the recorded ones"
    return known


def plain(value):
    """Tensors, arrays and tuples as lists, numbers to 13 digits: enough for all tests."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.13g}")
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def is_oracle(name):
    return name.startswith(ORACLES)


def record(test_all):
    """Run the tests that use naive forms.   -> {naive form: {key: what it gave}}"""
    numbers = {}

    def listening(name, f):
        def call(*inputs):
            numbers[name][key_of(inputs)] = plain(f(*inputs))
            return f(*inputs)
        return call
    for name, f in list(vars(test_all).items()):
        if is_oracle(name):
            numbers[name] = {}
            setattr(test_all, name, listening(name, f))
    for _, claim, f in test_all.all_tests():
        if set(f.__code__.co_names) & set(numbers):
            state, message, _ = test_all.run_one(f)
            if state != "done":
                raise ValueError(f"our own test fails: {claim}: {message}")
    return numbers


def student_tests(source):
    """test_all.py for students: no naive forms, no tests of what they don't get."""
    unwanted = tuple(f"test_tools_{name}_" for name in OURS)
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    first = True
    for node in reversed(nodes):        # from the end, so that line numbers stay right
        if node.name.startswith(unwanted):
            lines = source.splitlines()
            del lines[first_line(node) - 1:node.end_lineno + 2]
            source = "\n".join(lines) + "\n"
        elif is_oracle(node.name):
            inputs = ", ".join(argument.arg for argument in node.args.args)
            source = with_body(source, node, [f'return recorded("{node.name}", {inputs})'])
            first = node
    helpers = "\n\n".join(inspect.getsource(f)
                          for f in (recorded_numbers, key_of, recorded))
    lines = source.splitlines()
    lines[first_line(first) - 1:first_line(first) - 1] = [*helpers.splitlines(), "", ""]
    return "\n".join(lines) + "\n"


def in_child(folder, work):
    """work(the test_all of `folder`), in a process of its own.   -> its result, as JSON

    Forked, so that torch need not be imported again; no bytecode is left in the folder.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            for name in list(sys.modules):
                if name in MODULES or name.split(".")[0] == "plumbing":
                    del sys.modules[name]
            sys.path.insert(0, folder)
            sys.dont_write_bytecode = True
            import test_all
            answer = [work(test_all), None]
            test_all.SCRATCH.cleanup()
        except BaseException:
            answer = [None, traceback.format_exc()]
        finally:
            with os.fdopen(theirs, "w") as pipe:
                json.dump(answer, pipe)
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    answer, error = json.loads(text) if text else (None, "it ended without a word")
    if error:
        raise RuntimeError(f"in {folder}: {error}")
    return answer


def climb(folder, parts):
    """A copy's ladder, these parts' lines or all.   -> ({line: state}, [result, …])"""
    words = [line for part in parts for line in part["lines"]]

    def work(test_all):
        shown = []
        results = test_all.ladder(words, show=shown.append)
        return shown, results
    shown, results = in_child(folder, work)
    states = dict(line.split("  (")[0].split("  ", 1)[::-1] for line in shown
                  if line.startswith(("done  ", "todo  ", "FAIL  ", "skip  ")))
    return states, results


# --- The handout ---

INTRODUCTION = """\
# Assignment: minBERT on three tasks at once

The code in this folder fine-tunes one BERT for sentiment, paraphrase and similarity. It is
complete but for {number} parts, which you write. `README.md` says where everything is.

## How to work

    pip install -r requirements.txt
    python test_all.py                  # the ladder: done, todo, FAIL; and what is next
    python test_all.py {word:<16} # one part alone
    python test_all.py --points         # and the points
    python train.py                     # names what it still needs, in one line

A hole is a function whose body is `raise NotImplementedError("{label}")`. Replace that
line; leave the function's name, arguments and docstring as they are. The docstring says
what comes in and what goes out, with shapes, and holds the equation; numbers to check by
hand stand there too. Write helper functions if you like. Other files need no change.

The parts can be written in any order. A test that needs two parts *waits* for the one that
is still open, and says so; it is no failure. A `FAIL` says what came, what was expected,
and often the likely mistake. A test that takes longer than a minute fails.

Some tests compare with numbers from `tools/numbers.json`, which were computed by a slow and
simple form of the same algorithm.

## Points

The points of a part are shared evenly by its tests.

| part | points | where |
|---|---|---|
{table}
| in all | {points:g} | |
"""


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
    table = "\n".join("| {label} | {points:g} | {} |".format(
        ", ".join(f"`{function}`" for function in part["functions"]), **part)
        for part in parts)
    text = [INTRODUCTION.format(number=len(parts), label=parts[0]["label"], table=table,
                                word=f'"{parts[0]["label"]}"',
                                points=sum(part["points"] for part in parts))]
    for part in parts:
        classes, code = set(), []
        for function in part["functions"]:
            code += excerpt(function, classes)
        files = ", ".join(dict.fromkeys(f"`{function.split('.')[0]}.py`"
                                        for function in part["functions"]))
        names = ", ".join(f"`{function.split('.', 1)[1]}()`"
                          for function in part["functions"])
        claims = [name.removeprefix("test_").split("__") for name in part["tests"]]
        several = len({line for line, _ in claims}) > 1
        paragraphs = [f"Write {names} in {files}.", " ".join(part.get("note", []))]
        text += [f"## {part['label']} ({part['points']:g} points)\n",
                 *(textwrap.fill(p, 88) + "\n" for p in paragraphs if p),
                 "```python", *code[:-1], "```\n",
                 f"Check: `python test_all.py \"{part['label']}\"`\n",
                 *(f"- {re.sub('^[0-9_]+', '', line) + ': ' if several else ''}"
                   f"{claim.replace('_', ' ')}" for line, claim in claims), ""]
    return "\n".join(text)


# --- The copy ---

def make(out, parts):
    """Write the student's tree to `out`.   Raises ValueError if there is something."""
    if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise ValueError(f"--out {out} is there already; give a new folder")
    os.makedirs(out, exist_ok=True)
    out = os.path.abspath(out)
    skip = shutil.ignore_patterns("__pycache__", ".*", *(f"{name}.py" for name in OURS))
    for name in COPIED:
        source = os.path.join(ROOT, name)
        if os.path.isdir(source):
            shutil.copytree(source, os.path.join(out, name), ignore=skip)
        elif os.path.exists(source):
            shutil.copyfile(source, os.path.join(out, name))
    dig(out, parts)
    write(student_tests(read(ROOT, "test_all.py")), out, "test_all.py")
    write(json.dumps(in_child(ROOT, record)), out, "tools", "numbers.json")

    def list_parts():
        write(json.dumps([{key: value for key, value in part.items() if key != "label"}
                          for part in parts], indent=1, ensure_ascii=False) + "\n",
              out, "tools", "assignment.json")
    parts = [{key: value for key, value in part.items() if key != "tests"}
             for part in parts]
    list_parts()
    # Points are for what the holes make fail. The rest of a part's tests pass already.
    _, results = climb(out, parts)
    failed = [f"{r['name']}: {r['message']}" for r in results if r["state"] == "FAIL"]
    if failed:
        raise RuntimeError(f"a test of the copy fails instead of waiting: {failed[0]}")
    for part in parts:
        part["tests"] = [r["name"] for r in results
                         if r["part"] == part["label"] and r["state"] == "todo"]
        if not part["tests"]:
            raise ValueError(f"no test in {part['lines']} needs {part['functions']}")
    list_parts()
    write(handout(parts), out, "ASSIGNMENT.md")
    return parts


def round_trip(parts, orders, show=print):
    """Make a copy for each order, and fill its holes one by one from our source.

    After each step the ladder must show exactly the filled parts done, nothing that was
    done may break, and the last step must give all points. Raises AssertionError.
    """
    for order in orders:
        with tempfile.TemporaryDirectory(prefix="minbert-copy-") as folder:
            listed = make(folder, parts)
            filled, passed = [], set()
            for part in order:
                fill(folder, part)
                filled.append(part["label"])
                states, results = climb(folder, listed)
                failed = [r["name"] for r in results if r["state"] == "FAIL"]
                assert not failed, f"{failed} fail instead of waiting"
                done = [p["label"] for p in listed
                        if all(states[line] == "done" for line in p["lines"])]
                assert sorted(done) == sorted(filled), (
                    f"filled {filled}, but the ladder shows {done} done: {states}")
                now = {r["name"] for r in results if r["state"] == "done"}
                assert passed <= now, f"{passed - now} broke with {part['label']}"
                passed = now
                points = sum(r["points"] for r in results)
                show(f"{points:6.2f} points  with {part['label']}")
            total = sum(p["points"] for p in listed)
            assert abs(points - total) < 1e-6, f"got {points} points, expected {total}"


def main(argv=None):
    p = argparse.ArgumentParser(description="Make a course assignment from this tree.",
                                usage=argparse.SUPPRESS)
    p.add_argument("--out", metavar="FOLDER", help="new folder for the student's copy")
    p.add_argument("--parts", metavar="NAME,…", help="some of the list (all)")
    p.add_argument("--list", metavar="FILE", help="the list (tools/assignment.json)",
                   default=os.path.join(ROOT, "tools", "assignment.json"))
    p.add_argument("--check", action="store_true",
                   help="fill the holes of a copy one by one, in two orders")
    args = p.parse_args(argv)
    if not args.out and not args.check:
        p.error("needed --out FOLDER, or --check")
    try:
        parts = load_parts(args.list, args.parts and args.parts.split(","))
        if args.out:
            listed = make(args.out, parts)
            print(f"{args.out}: {len(listed)} parts, "
                  f"{sum(len(part['tests']) for part in listed)} tests, "
                  f"{sum(part['points'] for part in listed):g} points; see ASSIGNMENT.md")
        if args.check:
            with tempfile.TemporaryDirectory(prefix="minbert-copy-") as folder:
                make(folder, parts)
                failed = [r for r in climb(folder, [])[1] if r["state"] == "FAIL"]
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
