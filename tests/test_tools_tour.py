"""docs/tour.ipynb: its outputs come from its code, and it runs. tools/tour.py."""

import copy
import importlib.util
import os
import re
import sys
import tempfile
import unittest.mock

from tests.checks import assert_equal, skip_without
from tools import tour


def markdown():
    return ["".join(cell["source"]) for cell in tour.read()["cells"]
            if cell["cell_type"] == "markdown"]


def outputs():
    return [output for cell in tour.code_cells(tour.read()) for output in cell["outputs"]]


def test_tools_tour__its_outputs_are_those_of_its_code():
    notebook = tour.read()
    assert tour.digest(notebook) == notebook["metadata"].get("code_sha256"), (
        "code was edited and not run: python tools/tour.py")
    counts = [cell["execution_count"] for cell in tour.code_cells(notebook)]
    assert_equal(counts, list(range(1, len(counts) + 1)))


def test_tools_tour__it_is_small_and_shows_nothing_of_a_machine():
    assert os.path.getsize(tour.PATH) < 250_000
    notebook, figures = tour.read(), 0
    # Jupyter adds times and versions.
    assert_equal(set(notebook["metadata"]), {"code_sha256", "kernelspec", "language_info"})
    assert_equal(notebook["metadata"]["language_info"], {"name": "python"})
    assert_equal({name for cell in notebook["cells"] for name in cell["metadata"]},
                 {"tags"})
    for output in outputs():
        if output["output_type"] == "display_data":
            figures += 1
            continue
        assert_equal(output.get("name"), "stdout")
        text = "".join(output["text"])
        assert not re.search(r"(^|\s|')(/[a-zA-Z]|[A-Z]:\\)|\d{4}-\d\d-\d\d", text), text
    assert figures >= 6


def test_tools_tour__each_step_asks_and_answers():
    steps = re.split(r"^## (?=\d)", "\n".join(markdown()), flags=re.MULTILINE)[1:]
    assert_equal([step.split(".")[0] for step in steps], [str(k) for k in range(1, 10)])
    for step in steps:
        title = step.splitlines()[0]
        assert title in markdown()[0], f"{title!r} is not in the table"
        assert re.search(r"\*\*Question\.\*\*(.|\n)+<details><summary>Answer</summary>\n\n"
                         r"(.|\n)+\n\n</details>", step), title
        files = re.findall(r"\]\(\.\./([\w/]+\.py)\):([^\[]+)", step.split("\n\n")[1])
        assert files, title
        for file, names in files:
            with open(os.path.join(tour.ROOT, file), encoding="utf-8") as source:
                text = source.read()
            for name in re.findall(r"`(\w+)(?:\.\w+)?`", names):
                assert re.search(rf"^ *(def|class) {name}\b", text, re.MULTILINE), (
                    f"{title}: no {name} in {file}")


def test_tools_tour__its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(markdown()))
    assert len(links) > 10
    for link in links:
        path, _, anchor = link.partition("#")
        target = os.path.join(os.path.dirname(tour.PATH), path)
        assert os.path.exists(target), f"no {link}"
        if anchor:
            with open(target, encoding="utf-8") as file:
                titles = re.findall(r"^#+ (.+)$", file.read(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
                              for title in titles], f"no heading for {link}"


def start_in(folder, missing=()):
    """Run the first cell there.   -> (folder it goes to, what it exits with)"""
    code, find = tour.source_of(tour.code_cells(tour.read())[0]), importlib.util.find_spec
    before, path = os.getcwd(), list(sys.path)

    def find_spec(name):        # the package need not be there to be found
        if name == "matplotlib":
            return None if name in missing else find("json")
        return find(name)
    try:
        os.chdir(folder)
        with unittest.mock.patch.object(importlib.util, "find_spec", find_spec):
            exec(code, {})
        return os.path.realpath(os.getcwd()), None
    except SystemExit as end:
        return None, end.code
    finally:
        os.chdir(before)
        sys.path[:] = path


def test_tools_tour__it_finds_the_repository_or_says_in_one_line_what_is_missing():
    root, empty = os.path.realpath(tour.ROOT), tempfile.mkdtemp()
    assert_equal(start_in(tour.ROOT), (root, None))
    assert_equal(start_in(os.path.join(tour.ROOT, "docs")), (root, None))
    _, said = start_in(empty)
    assert "git clone" in said and "\n" not in said
    for name in ("bert.py", "multitask.py"):            # a clone in a hosted notebook
        os.makedirs(os.path.join(empty, "clone", "sample"), exist_ok=True)
        with open(os.path.join(empty, "clone", name), "w"):
            pass
    assert_equal(start_in(empty), (os.path.realpath(os.path.join(empty, "clone")), None))
    _, said = start_in(tour.ROOT, missing=["matplotlib"])
    assert_equal(said, "needed: %pip install matplotlib, then run this cell again")


def test_tools_tour__edited_code_and_another_result_are_noticed():
    stored = tour.read()
    edited = copy.deepcopy(stored)
    edited["cells"][0]["source"].append("\nMore words.")
    assert_equal(tour.digest(edited), tour.digest(stored), "words need no run")
    tour.code_cells(edited)[3]["source"][0] += "x = 1\n"
    assert tour.digest(edited) != tour.digest(stored)

    def differing(old, new):
        """The cells that differ if `old` in an output had come out as `new`."""
        other = copy.deepcopy(stored)
        for cell in tour.code_cells(other):
            for output in cell["outputs"]:
                output["text"] = [line.replace(old, new) for line
                                  in output.get("text", [])]
        assert other != stored, f"no output has {old!r}"
        return [line.split()[1] for line in tour.differences(stored, other)]
    assert_equal(differing("0.833", "0.833"[::1] + "1"), [])    # rounding: .8331
    assert_equal(differing("0.833", "0.867"), ["adamw-code:"])
    assert_equal(differing("egypt", "cairo"), ["pair-code:", "attention-words:"])
    assert_equal(differing("Overall", "Total"), [], "a cell that varies")
    for lost in ("attention-code", "run-code"):
        other = copy.deepcopy(stored)
        cell, = (cell for cell in other["cells"] if cell["id"] == lost)
        del cell["outputs"][0]
        line, = tour.differences(stored, other)
        assert lost in line


def test_tools_tour__what_a_run_gives_is_cut_down():
    notebook = {"cells": [
        {"cell_type": "code", "id": "a", "execution_count": 7, "source": "print(1)\n2",
         "metadata": {"execution": {"iopub.execute_input": "2020-01-01"}},
         "outputs": [{"output_type": "stream", "name": "stdout", "text": "1\n"},
                     {"output_type": "stream", "name": "stderr", "text": "1 of 2"},
                     {"output_type": "stream", "name": "stdout", "text": ["2\n3\n"]},
                     {"output_type": "execute_result", "data": {"text/plain": "2"}}]}],
        "metadata": {"language_info": {"name": "python", "version": "3.12"}}}
    cell, = tour.cleaned(notebook)["cells"]
    assert_equal(cell, {
        "cell_type": "code", "id": "a", "execution_count": 1, "metadata": {},
        "source": ["print(1)\n", "2"], "outputs": [
            {"output_type": "stream", "name": "stdout", "text": ["1\n", "2\n", "3\n"]}]})


def test_tour__it_runs_and_gives_the_outputs_that_it_shows():
    skip_without(*tour.NEEDED)
    stored = tour.read()
    shorter = copy.deepcopy(stored)
    cell, = (cell for cell in shorter["cells"] if cell["id"] == "run-code")
    assert "STEPS = 279\n" in cell["source"]
    cell["source"] = [line.replace("279", "18") for line in cell["source"]]
    found = tour.differences(stored, tour.run(shorter))
    assert not found, "\n".join([*found, "python tools/tour.py renews them"])
    failing = {**stored, "cells": [
        {"cell_type": "code", "id": "wrong", "metadata": {}, "outputs": [],
         "execution_count": None, "source": ["1 / 0"]}]}
    try:
        tour.run(failing)
    except ValueError as error:
        assert_equal(str(error), f"{os.path.join('docs', 'tour.ipynb')}, cell wrong: "
                                 f"ZeroDivisionError: division by zero")
    else:
        raise AssertionError("a cell that fails was not noticed")
