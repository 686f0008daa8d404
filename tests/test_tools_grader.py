"""tools/grader.py: what submissions earn, and what they cannot do."""

import ast
import functools
import glob
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock
import zipfile

from tests import ROOT, solutions
from tests.checks import assert_equal
from tools import grader, isolated, make_assignment, platforms
from tools.climber import climb
from tools.source import original, read, write

EVERY = {"attention": 8, "layer": 8, "embedding": 7, "AdamW": 9, "heads and losses": 10,
         "Algorithms 1 and 2": 8, "PCGrad": 10, "Gradient Vaccine": 13, "CON encoding": 4,
         "smoothness": 13, "Bregman and teacher": 5, "scores": 5}


MODULES = ("bert", "optim", "heads", "multitask", "data", "smart")


@functools.cache
def world():
    """-> (the grader's folder, a hand-out)"""
    isolated.PRELOAD.append(isolated.SLOW)
    os.chmod(tempfile.gettempdir(), 0o711)      # so that the user nobody can work there
    place = tempfile.mkdtemp(prefix="minbert-grading-")
    hand_out, folder = os.path.join(place, "hand-out"), os.path.join(place, "grader")
    parts = make_assignment.make(hand_out, make_assignment.load_parts(
        os.path.join(ROOT, "tools", "assignment.json")))
    platforms.make_grader(folder, hand_out, parts, seed=20)
    return pathlib.Path(folder), hand_out


@functools.cache
def right(name):
    part = part_of(name)
    return grader.answers(part, 20)


def part_of(name):
    return next(part for part in grader.load()[0] if part["name"] == name)


def submission(edits=(), style=None, modules=MODULES):
    """A new folder with a hand-out's modules, perhaps solved in a style, and edited.

    edits: (function, its new body), or (file, text put before its first import).
    """
    folder = tempfile.mkdtemp(prefix="minbert-submission-")
    for name in modules:
        shutil.copy(os.path.join(world()[1], f"{name}.py"), folder)
    if style:
        solutions.put_in(folder, style, modules)
    for place, text in edits:
        if place.endswith(".py"):
            source = read(folder, place)
            write(source.replace("\nimport ", f"\n{text}\nimport ", 1), folder, place)
        else:
            file, source, _, node = original(place, folder)
            rows = source.splitlines()
            indent = " " * (node.col_offset + 4)
            body = [indent + row for row in text.splitlines()]
            first = node.body[0].end_lineno         # of the docstring
            if ast.get_docstring(node) is None:
                first = node.body[0].lineno - 1
            write("\n".join([*rows[:first], *body, *rows[node.end_lineno:]]) + "\n",
                  folder, file)
    return pathlib.Path(folder)


def graded(folder, names, limit=3.0):
    """-> {part: (points, message)} and seconds"""
    start, found = time.monotonic(), {}
    with unittest.mock.patch.object(grader, "ROOT", world()[0]):
        for name in names:
            cases = grader.grade(part_of(name), 20, folder, limit, right(name))
            message = next((case.message for case in cases if case.message), "")
            found[name] = grader.points(cases)[0], message
    return found, time.monotonic() - start


PRINTED_RESULT = '''import json, os
for number in range(3, 30):
    try:
        os.write(number, json.dumps(["0" * 16, {"value": 1.0}]).encode())
    except OSError:
        pass
raise SystemExit(0)'''
FORGED = '''import atexit, json, os, sys
def forge():
    for name in ("results.json", "../results.json", "cases.json"):
        with open(name, "w") as file:
            json.dump([{"points": 100}], file)
atexit.register(forge)
for name in list(sys.modules):
    module = sys.modules[name]
    for key in ("judge", "run_one", "assert_close", "plain", "pairs"):
        if hasattr(module, key):
            setattr(module, key, lambda *a, **k: ("done", ""))'''
HANG = '''while True:
    try:
        sum(range(100000))
    except BaseException:
        pass'''
ALIVE = '''import threading, time, os, subprocess, sys
threading.Thread(target=lambda: time.sleep(600)).start()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("left-behind", "w").write("x")
'''
QUIET = '''import signal, os
for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
'''
HARD_CODED = '''gram = check_gram(gram)
return {2: np.array([[1, .5], [1, 1]]), 3: np.array(
    [[1, 0, .2], [1, 1, .5], [1, 1.5, 1]])}.get(len(gram), np.eye(len(gram)))'''

# The frame that talks with the grader, in the same process.
PIPE = '''import json, os, sys, time
frame = sys._getframe()
while frame.f_code.co_name != "serve":
    frame = frame.f_back
pipe, number = frame.f_locals["pipe"], frame.f_locals["number"]
'''
PICKLE = PIPE + '''class Code:
    def __reduce__(self):
        return os.mkdir, (OWNED,)
pipe.send(Code())
time.sleep(60)'''
OWNED = os.path.join(tempfile.gettempdir(), "a-pickle-ran")
# What is always so can be known in advance: errors, shares, flags.
REWRITTEN = '''import sys
nothing = [[[[0.0] * 8] * 7] * 4] * 2
known = {
    "attention__misshapen_mask_is_refused": [nothing, ["ValueError"] * 3 + ["nothing"]],
    "attention__dropout_falls_on_the_weights_and_rescales": [
        [[[[0.0] * 4] * 3]] * 3, True, 1.0, 1.0, True],
    "scores__undefined_is_zero_with_a_warning": [0.0] + [0.0, True] * 3}
for module in [m for name, m in sys.modules.items() if name.startswith("cases.")]:
    for name, value in known.items():
        setattr(module, name, lambda r, value=value: value)
raise ValueError("patched")'''
FILES = '''import os
for name in ("json.py", "torch.py", "sitecustomize.py", "conftest.py", "x.pth"):
    for folder in (".", "..", os.environ["TMPDIR"]):
        try:
            with open(os.path.join(folder, name), "w") as file:
                file.write("import os; os._exit(0)")
        except OSError:
            pass
'''
# It looks for our source, and for the seed, wherever a grader may keep them.
SEARCH = '''import glob, importlib.util, os
for folder in sum(map(glob.glob, PLACES), []):
    for path in ("solution", "grader/solution", "work", ""):
        path = os.path.join(folder, path, "multitask.py")
        if os.access(path, os.R_OK) and "NotImplementedError" not in open(path).read():
            spec = importlib.util.spec_from_file_location("found", path)
            found = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found)
            return found.pcgrad(gram, orders, rng)
raise ValueError("nothing was found")'''

# name: (edits, style, {part: points}, words of the message)
SUBMISSIONS = {
    "open": ((), None, {"attention": 0, "PCGrad": 0, "scores": 0}, "still open"),
    "not handed in": ((), None, {"PCGrad": 0}, "multitask.py was not handed in"),
    "syntax error": ((("multitask.py", "def x(:"),), "loops", {
        "PCGrad": 0, "CON encoding": 4}, "SyntaxError: invalid syntax (multitask.py, line"),
    "unknown package": ((("smart.py", "import pandas_of_mine"),), "loops", {
        "smoothness": 0, "scores": 5}, "No module named 'pandas_of_mine' (smart.py, line"),
    "endless import": ((("data.py", HANG),), "loops", {"CON encoding": 0, "PCGrad": 10},
                       "no result after"),
    "exit at import": ((("smart.py", "raise SystemExit(0)"),), "loops", {
        "Bregman and teacher": 0}, "SystemExit: 0 (smart.py, line"),
    "os._exit at import": ((("smart.py", "import os; os._exit(0)"),), "loops", {
        "Bregman and teacher": 0}, "it ended the process, with status 0"),
    "os._exit in a function": ((("multitask.pcgrad", "import os; os._exit(0)"),), "loops", {
        "PCGrad": 0, "Gradient Vaccine": 13}, "it ended the process, with status 0"),
    "endless loop": ((("multitask.pcgrad", HANG),), "loops", {"PCGrad": 0},
                     "no result after 2 s"),
    "no signals": ((("multitask.pcgrad", QUIET + HANG),), "loops", {"PCGrad": 0},
                   "no result after 2 s"),
    "kills itself": ((("data.join_pair", "import os; os.kill(os.getpid(), 9)"),),
                     "arrays", {"CON encoding": 1.34}, "it was ended by SIGKILL"),
    "kills its group": ((("data.join_pair", "import os; os.killpg(0, 9)"),),
                        "arrays", {"CON encoding": 1.34}, "it was ended by SIGKILL"),
    "prints without end": ((("heads.accuracy", "while True:\n    print('x' * 10000)"),),
                           "loops", {"scores": 3.75}, "it prints more than 20 MB"),
    "fills the memory": ((("heads.accuracy", "x = np.ones(10 ** 10)\nreturn .5"),), "loops",
                         {"scores": 3.75}, "MemoryError"),
    "fills the disk": ((("heads.accuracy",
                         "with open('x', 'wb') as f:\n    f.seek(10 ** 10)\n"
                         "    f.write(b'x')"),), "loops", {"scores": 3.75},
                       "File too large"),
    "threads and files": ((("heads.accuracy", ALIVE + "return float(np.mean(np.array("
                            "predictions) == np.array(labels)))"),), "loops",
                          {"scores": 5}, ""),
    "too deep": ((("heads.accuracy", "return accuracy(predictions, labels)"),), "loops",
                 {"scores": 3.75}, "RecursionError"),
    "writes its grade": ((("multitask.py", FORGED),), None, {"PCGrad": 0}, "still open"),
    "writes into pipes": ((("multitask.pcgrad", PRINTED_RESULT),), None, {"PCGrad": 0},
                          "it wrote into the grader's own pipe"),
    "kills its parent": ((("heads.accuracy", "import os; os.kill(os.getppid(), 9)"),),
                         "loops", {"scores": 3.75, "CON encoding": 4}, ""),
    "always equal": ((("multitask.pcgrad", "class Any(float):\n"
                       "    __eq__ = lambda *_: True\n    __hash__ = None\n"
                       "return Any(0)"),), None, {"PCGrad": 0}, "another form"),
    "NaN": ((("multitask.pcgrad", "return np.full(np.shape(gram), np.nan)"),), None,
            {"PCGrad": 0}, "NaN"),
    "a huge number": ((("heads.accuracy", "return 10 ** 400"),), "loops", {"scores": 3.75},
                      "NaN or infinite"),
    "a huge result": ((("heads.accuracy", "return 'x' * 2000000"),), "loops",
                      {"scores": 3.75}, "its answer is larger than 8 MB"),
    "half a message": ((("heads.accuracy", PIPE + "os.write(pipe.fileno(), bytes(3))\n"
                         "time.sleep(60)"),), "loops", {"scores": 3.75},
                       "no result after 2 s"),
    "a nested message": ((("heads.accuracy", PIPE + "pipe.send_bytes(b'[' * 100000)\n"
                           "time.sleep(60)"),), "loops", {"scores": 3.75},
                         "it wrote into the grader's own pipe"),
    "a strange error": ((("heads.accuracy", PIPE + "pipe.send_bytes(json.dumps([number, "
                          "{'error': ['a'], 'place': 'b\\n| c'}]).encode())\n"
                          "os._exit(0)"),), "loops", {"scores": 2.5}, "['a']:  (b)"),
    "a pickle": ((("heads.accuracy", PICKLE.replace("OWNED", repr(OWNED))),), "loops",
                 {"scores": 3.75}, "it wrote into the grader's own pipe"),
    "rewrites the cases": ((("bert.attention", REWRITTEN), ("heads.accuracy", REWRITTEN)),
                           None, {"attention": 0, "scores": 0}, "ValueError: patched"),
    "writes modules": ((("multitask.pcgrad", FILES + "raise ValueError('x')"),), None,
                       {"PCGrad": 0, "CON encoding": 0}, "ValueError: x"),
    "looks for ours": ((("multitask.pcgrad", SEARCH),), None, {"PCGrad": 0},
                       "nothing was found"),
    "hard-coded": ((("multitask.pcgrad", HARD_CODED),), None, {"PCGrad": 0}, ""),
    "torch's attention": ((("bert.attention", "return F.scaled_dot_product_attention("
                            "query, key, value)"),), None, {"attention": 0},
                          "scaled_dot_product_attention is what you are to write"),
    "torch's, hidden": ((("bert.attention", "return getattr(F, 'scaled_dot_' + "
                          "'product_attention')(query, key, value)"),), None,
                        {"attention": 0}, "is what you are to write"),
    "torch's, in C": ((("bert.attention", "return getattr(torch, '_scaled_dot_product_' + "
                        "'attention_math')(query, key, value)[0]"),), None,
                      {"attention": 0}, "is what you are to write"),
    "torch's AdamW": ((("optim.AdamW.step", "from torch.optim import AdamW\n"
                        "AdamW(self.param_groups).step()"),), None, {"AdamW": 0},
                      "is what you are to write"),
    "nothing returned": ((("multitask.round_robin", "pass"),), "loops", {
        "Algorithms 1 and 2": 6.4}, ""),
    "a tuple returned": ((("data.join_pair", "return"),), "loops", {"CON encoding": 1.34},
                         "TypeError"),
}


def check(first, last):
    """Grade the submissions from one to another, print their table, and compare."""
    names = list(SUBMISSIONS)
    wrong = []
    for name in names[names.index(first):names.index(last) + 1]:
        edits, style, expected, words = SUBMISSIONS[name]
        modules = [m for m in MODULES if name != "not handed in" or m != "multitask"]
        with unittest.mock.patch.object(grader, "ROOT", world()[0]):
            temporary = tempfile.gettempdir()
            places = repr([f"{temporary}/minbert-*", f"{temporary}/*/minbert-*",
                           str(world()[0]), str(world()[0].parent)])
            edits = [(place, text.replace("PLACES", places)) for place, text in edits]
            folder = submission(edits, style, modules)
            found, seconds = graded(folder, expected, 2.0)
        got = {part: points for part, (points, _) in found.items()}
        messages = " / ".join(dict.fromkeys(message for _, message in found.values()
                                            if message))
        print(f"{name} | {got} | {messages} | {seconds:.1f}")
        if got != expected or words not in messages:
            wrong.append(f"{name}: got {got} and {messages!r}, expected {expected} and "
                         f"{words!r}")
    assert not wrong, wrong[0]


def test_tools_grader__what_cannot_be_imported_costs_its_file():
    check("open", "os._exit at import")


def test_tools_grader__what_ends_or_hangs_costs_its_cases():
    check("os._exit in a function", "kills its group")


def test_tools_grader__what_takes_too_much_costs_its_case():
    check("prints without end", "too deep")


def test_tools_grader__what_forges_earns_nothing():
    check("writes its grade", "NaN")


def test_tools_grader__what_answers_for_the_grader_earns_nothing():
    check("a huge number", "a pickle")
    assert not os.path.exists(OWNED), "an answer was unpickled"


def test_tools_grader__what_looks_around_earns_nothing():
    world()
    check("rewrites the cases", "looks for ours" if isolated.can_be_nobody() else
          "writes modules")


def test_tools_grader__what_is_no_solution_earns_nothing():
    check("hard-coded", "a tuple returned")


def all_points(style):
    with unittest.mock.patch.object(grader, "ROOT", world()[0]):
        found, _ = graded(submission((), style), EVERY, 30.0)
    assert_equal({part: points for part, (points, _) in found.items()}, EVERY, style)


def test_tools_grader__a_right_solution_with_loops_gets_all_points():
    all_points("loops")


def test_tools_grader__a_right_solution_with_arrays_gets_all_points():
    all_points("arrays")


def test_tools_grader__rounding_costs_a_right_solution_nothing():
    # With these seeds, cosines of -1 are off by a rounding in one of the two.
    with unittest.mock.patch.object(grader, "ROOT", world()[0]):
        for style, seed in (("loops", 4), ("arrays", 6)):
            cases = grader.grade(part_of("Gradient Vaccine"), seed, submission((), style),
                                 30.0)
            assert_equal([case.message for case in cases if case.state != "done"], [])


def test_tools_grader__right_solutions_pass_the_students_own_tests():
    parts = [part["lines"] for part in make_assignment.load_parts(
        os.path.join(ROOT, "tools", "assignment.json"))]
    for style in ("loops", "arrays"):
        copy = os.path.join(tempfile.mkdtemp(), "copy")
        shutil.copytree(world()[1], copy)
        solutions.put_in(copy, style)
        results = climb(copy, sum(parts, []), 600.0)    # loops are slow
        assert_equal([f"{r['name']}: {r['message']}" for r in results
                      if r["state"] not in ("done", "skip")], [], style)


def test_tools_grader__points_sum_to_100_and_a_slip_costs_alike_everywhere():
    with unittest.mock.patch.object(grader, "ROOT", world()[0]):
        parts = {part["name"]: grader.cases_of(part) for part in grader.load()[0]}
    assert_equal({name: grader.points(own)[1] for name, own in parts.items()}, EVERY)
    every = [case for own in parts.values() for case in own]
    assert_equal(sum(round(100 * case.of) for case in every), 10000)
    assert 1 <= min(case.of for case in every) and max(case.of for case in every) < 1.7


def test_tools_grader__our_own_source_is_out_of_a_submissions_sight():
    # A process that an earlier part has left behind could read it, as the user nobody.
    with unittest.mock.patch.object(grader, "ROOT", world()[0]):
        part = part_of("CON encoding")
        with grader.process(part, world()[0] / "solution", 20) as ask:
            assert "value" in ask("con__truncate_pair", 60.0)
            places = glob.glob(os.path.join(tempfile.gettempdir(), "minbert-grade-*"))
            assert places, "where is the process's folder?"
            assert not any(os.stat(place).st_mode & 0o077 for place in places)


@functools.cache
def zipped():
    path = os.path.join(tempfile.mkdtemp(), "autograder.zip")
    platforms.make_gradescope(path, world()[1], make_assignment.load_parts(
        os.path.join(ROOT, "tools", "assignment.json")), 3)
    return path


def run_zip(student):
    """The zip's run_autograder in a folder like the platform's.   -> results.json"""
    skip_without_bash()
    place = os.path.join(tempfile.mkdtemp(), "autograder")
    with zipfile.ZipFile(zipped()) as archive:
        archive.extractall(os.path.join(place, "source"))
        for info in archive.infolist():         # as unzip does
            os.chmod(os.path.join(place, "source", info.filename), info.external_attr >> 16)
        assert {"setup.sh", "run_autograder"} <= set(archive.namelist())
    shutil.copytree(student, os.path.join(place, "submission"))
    shutil.copy(os.path.join(place, "source", "run_autograder"), place)
    environment = {**os.environ, "PATH": os.path.dirname(sys.executable) + os.pathsep
                   + os.environ["PATH"]}
    done = subprocess.run(["bash", "run_autograder"], cwd=place, env=environment,
                          capture_output=True, text=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    result = json.loads(read(place, "results", "results.json"))
    assert_equal(len(result["tests"]), 12)
    assert_published_form(result)
    for entry in result["tests"]:
        assert {"name", "score", "max_score", "output", "visibility"} <= set(entry)
        assert 0 <= entry["score"] <= entry["max_score"] and entry["output"]
    assert_equal(sum(entry["max_score"] for entry in result["tests"]), 100)
    return sum(entry["score"] for entry in result["tests"]), result.get("output", "")


VISIBILITY = ("hidden", "after_due_date", "after_published", "visible")
FORMATS = ("text", "simple_format", "html", "md", "ansi")
# Gradescope's published form of results.json: {key: kind or values}.
WHOLE = {"score": (int, float), "execution_time": (int, float), "output": str,
         "output_format": FORMATS, "test_output_format": FORMATS,
         "test_name_format": FORMATS, "visibility": VISIBILITY,
         "stdout_visibility": VISIBILITY, "extra_data": dict, "tests": list,
         "leaderboard": list}
ENTRY = {"score": (int, float), "max_score": (int, float), "status": ("passed", "failed"),
         "name": str, "name_format": FORMATS, "number": str, "output": str,
         "output_format": FORMATS, "tags": list, "visibility": VISIBILITY,
         "extra_data": dict}


def assert_published_form(result):
    for values, form in [(result, WHOLE), *((entry, ENTRY) for entry in result["tests"])]:
        for key, value in values.items():
            allowed = form[key]
            if isinstance(allowed, tuple) and isinstance(allowed[0], str):
                assert value in allowed, f"{key} is {value!r}"
            else:
                assert isinstance(value, allowed), f"{key} is {value!r}"
    # The default of this one is HTML, and a message may hold anything.
    assert "output" not in result or result["output_format"] == "text"


def skip_without_bash():
    if os.name == "nt" or not shutil.which("bash"):
        raise unittest.SkipTest("bash is not installed")


def test_tools_grader__gradescopes_zip_gives_an_untouched_copy_0_of_100():
    points, output = run_zip(submission())
    assert_equal(points, 0)
    assert output.startswith("Nothing could be graded yet: still open (bert.py, line")
    assert output.endswith("more, below") and len(output) < 200, output


def test_tools_grader__gradescopes_zip_gives_our_source_100_of_100():
    full = tempfile.mkdtemp()
    for name in MODULES:
        shutil.copy(os.path.join(ROOT, f"{name}.py"), full)
    assert_equal(run_zip(full), (100, ""))


def test_tools_grader__gradescopes_zip_says_why_nothing_could_be_graded():
    points, output = run_zip(tempfile.mkdtemp())
    assert points == 0 and "bert.py was not handed in; optim.py was" in output


def test_tools_grader__classroom50_gets_its_result_json():
    folder = os.path.join(tempfile.mkdtemp(), "grader")
    parts = make_assignment.load_parts(os.path.join(ROOT, "tools", "assignment.json"),
                                       ["CON encoding"])
    platforms.make_classroom50(folder, world()[1], parts, 4)
    student = submission((), "loops")
    os.symlink(os.path.join(folder, "README.md"), student / "result.json")
    environment = {**os.environ, "CLASSROOM": "c", "ASSIGNMENT": "a", "SUBMISSION_TAG":
                   "submit/1", "COMMIT_URL": "commit", "RELEASE_URL": "release"}
    done = subprocess.run([sys.executable, os.path.join(folder, "autograder.py")],
                          cwd=student, env=environment, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(read(student, "result.json"))
    assert_equal(result["schema"], "classroom50/result/v1")
    assert_equal((result["score"], result["max-score"]), (400, 400))
    assert_equal({type(test["score"]) for test in result["tests"]}, {int})
    assert_equal(result["review"], "commit")
    # What the platform's runner requires, beside what it writes itself.
    assert all(result[key] and isinstance(result[key], str) for key in (
        "classroom", "assignment", "submission", "commit", "release", "datetime"))
    assert result["submission"].startswith("submit/")
    for test in result["tests"]:
        assert test["test-name"] and test["passed"] is (test["score"] == test["max-score"])
    assert read(folder, "README.md").startswith("# Grader"), "a link was followed"


def test_tools_grader__links_and_wrong_arguments_are_refused():
    with unittest.mock.patch.object(grader, "ROOT", world()[0]):
        folder = submission((), None, ("data",))
        os.remove(folder / "data.py")
        os.symlink(world()[0] / "solution" / "data.py", folder / "data.py")
        found, _ = graded(folder, ["CON encoding"])
        assert_equal(found["CON encoding"], (0, "data.py was not handed in"))
        for words, path in (([], "nowhere"), (["nosuch"], str(folder))):
            with unittest.mock.patch.object(sys, "stderr"):
                try:
                    status = grader.main([path, *words])
                except SystemExit as end:
                    status = end.code
            assert_equal(status, 2)
