"""tools/grader.py: what submissions earn, and what they cannot do."""

import ast
import contextlib
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
from tests.submissions import BUSY, OWNED, SUBMISSIONS
from tests.world import write_file
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
    os.chmod(tempfile.gettempdir(), 0o711)      # so that other users can work there
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
    check("prints without end", "a set")


def test_tools_grader__what_forges_earns_nothing():
    check("writes its grade", "NaN")


def test_tools_grader__what_answers_for_the_grader_earns_nothing():
    check("a huge number", "a pickle")
    assert not os.path.exists(OWNED), "an answer was unpickled"


def test_tools_grader__what_looks_around_earns_nothing():
    world()
    check("rewrites the cases", "looks for ours" if not isolated.why_no_stranger() else
          "writes modules")


def test_tools_grader__what_is_no_solution_earns_nothing():
    check("hard-coded", "a tuple returned")


def test_tools_grader__what_is_right_in_another_way_loses_nothing():
    check("a helper called adam", "a softmax in float32")


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
    # Another submission's process, on the same machine, could read it.
    with unittest.mock.patch.object(grader, "ROOT", world()[0]):
        part = part_of("CON encoding")
        with grader.process(part, world()[0] / "solution", 20) as ask:
            assert "value" in ask("con__truncate_pair", 60.0)
            places = glob.glob(os.path.join(tempfile.gettempdir(), "minbert-grade-*"))
            assert places, "where is the process's folder?"
            assert not any(os.stat(place).st_mode & 0o077 for place in places)


def test_tools_grader__no_module_comes_from_the_submission_where_it_is_started_there():
    # Its servers and helpers start with `python -c`, which looks there first.
    student = submission((), "loops")
    marker = student / "imported"
    names = [path.stem for path in pathlib.Path(os.__file__).parent.glob("*.py")]
    for name in ("numpy", "torch", *names):
        write(f"open({str(marker)!r}, 'w').close()\nraise SystemExit\n", str(student),
              f"{name}.py")
    done = subprocess.run([sys.executable, world()[0] / "tools" / "grader.py", ".", "CON"],
                          cwd=student, check=False, capture_output=True, text=True)
    assert not marker.exists(), "a file of the submission was imported by the grader"
    assert done.stdout.splitlines()[-1].split() == ["4", "of", "4", "in", "all"], done
    if isolated.why_no_stranger():
        assert "with your rights" in done.stderr and len(done.stderr.splitlines()) == 1


HOG = """
import mmap
def service():
    def take(kind):
        try:
            return len(bytearray(600 << 20) if kind == "own" else mmap.mmap(-1, 600 << 20))
        except (MemoryError, OSError):
            return "refused"
    return take
"""


def test_tools_grader__memory_has_a_limit_also_where_it_is_shared():
    for stranger in {False, not isolated.why_no_stranger()}:
        folder = write_file(HOG, "hog.py")
        child = isolated.Child("hog:service", folder=folder, stranger=stranger,
                               memory=300 << 20)
        got = [child.ask(kind, 60) for kind in ("own", "shared")]
        child.close()
        with_cuda = not stranger and any(map(os.path.exists, isolated.NVIDIA))
        assert_equal(got, ["refused", 600 << 20 if with_cuda else "refused"],
                     f"stranger: {stranger}")


def test_tools_grader__a_busy_process_that_is_left_behind_ends_with_its_part():
    world()
    if isolated.why_no_stranger():
        raise unittest.SkipTest("needs root, and Python where other users may read it")
    found, _ = graded(submission((("heads.accuracy", BUSY + "raise ValueError('x')"),),
                                 "loops"), ["scores", "CON encoding"])
    assert_equal({part: points for part, (points, _) in found.items()},
                 {"scores": 3.75, "CON encoding": 4})
    end = time.monotonic() + 20
    while owners() & set(isolated.USERS):       # killed, but still in the list
        assert time.monotonic() < end, "a submission's process is left"
        time.sleep(.1)


def owners():
    """The users of all processes."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.add(path.stat().st_uid)
    return found


def test_tools_grader__of_several_folders_the_one_with_most_modules_is_graded():
    place = pathlib.Path(tempfile.mkdtemp())
    for folder, modules in (("__MACOSX", MODULES), ("a", ("bert",)), ("b", MODULES[:3])):
        (place / folder).mkdir()
        for name in modules:
            (place / folder / f"{name}.py").touch()
    names = [f"{name}.py" for name in MODULES]
    assert_equal(grader.folder_of(place, names).name, "b")


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
