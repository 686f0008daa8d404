"""tools/make_assignment.py."""

import ast
import json
import os
import subprocess
import sys
import tempfile

from tests import ROOT
from tests.checks import assert_equal, assert_raises
from tests.world import write_file
from tools import make_assignment


def test_tools_make_assignment__holes_filled_in_any_order_turn_done_one_by_one():
    # round_trip() asserts it after each hole; make_assignment.py --check tries all parts.
    lines = []
    parts = make_assignment.load_parts(os.path.join(ROOT, "tools", "assignment.json"),
                              ["attention", "PCGrad", "Gradient Vaccine"])
    make_assignment.round_trip(parts, [parts, parts[::-1]], lines.append)
    assert_equal([line.split()[0] for line in lines][2::3], ["31.00", "31.00"])


def test_tools_make_assignment__no_solution_is_left_in_the_students_tree():
    out = os.path.join(tempfile.mkdtemp(), "student")
    parts = make_assignment.make(out, make_assignment.load_parts(os.path.join(ROOT, "tools",
                                                            "assignment.json")))

    def expressions(tree):
        """What is computed anywhere in it, but for what is too short to be telling."""
        values = (getattr(node, "value", None) for node in ast.walk(tree)
                  if isinstance(node, (ast.Assign, ast.AugAssign, ast.Return, ast.Expr)))
        return {text for text in (ast.unparse(v) for v in values if isinstance(v, ast.AST))
                if len(text) > 45}
    answers, theirs, everything = set(), set(), ""
    for part in parts:
        for function in part["functions"]:
            node = make_assignment.original(function)[3]
            answers |= expressions(ast.Module(node.body[1:], []))
    for folder, _, names in os.walk(out):
        assert not folder.endswith(("__pycache__", ".git")), folder
        for name in names:
            is_text = not name.endswith((".safetensors", ".png"))
            text = make_assignment.read(folder, name) if is_text else ""
            everything += text
            if name.endswith(".py"):
                theirs |= expressions(ast.parse(text))
    assert len(answers) > 30 and not answers & theirs, answers & theirs
    assert "mutants.py" not in os.listdir(os.path.join(out, "tools"))
    for call in ("scaled_dot_product_attention(", "corrcoef(", "treated[i]", "while a + b",
                 "project_copies", "phi < target", "dot < 0"):
        assert call not in everything, f"{call} would be an answer"


def test_tools_make_assignment__handout_ladder_and_train_name_what_is_open():
    out = os.path.join(tempfile.mkdtemp(), "student")
    parts = make_assignment.make(out, make_assignment.load_parts(
        os.path.join(ROOT, "tools", "assignment.json"), ["AdamW", "Gradient Vaccine"]))
    text = make_assignment.read(out, "ASSIGNMENT.md")
    for words in ("## 3.1 AdamW (9 points)", "m = β₁ m + (1 - β₁) g", "Write `AdamW",
                  '`python test_all.py "3.3.2 Gradient Vaccine"`', "- three tasks"):
        assert words in text, f"{words!r} is not in the handout"
    results = make_assignment.climb(out, make_assignment.lines_of(parts))
    for line in ("3.1 AdamW", "3.3.2 GradVac"):
        assert "todo" in {r["state"] for r in results if r["line"] == line}
    assert sum(r["points"] for r in results) == 0, "points for nothing"
    waits = {r["message"] for r in make_assignment.climb(out, ["3.3 "])}
    assert_equal(waits, {"", "waits for 3.1 AdamW", "waits for 3.3.2 Gradient Vaccine"})
    # The vaccine needs both parts. Nothing is computed, so no folder is left.
    run = os.path.join(out, "run")
    done = subprocess.run(
        [sys.executable, "train.py", "--option", "gvac", "--max-steps", "1", "--out", run],
        cwd=out, capture_output=True, text=True, encoding="utf-8", check=False)
    message = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and not os.path.exists(run), done.stderr
    assert "3.1 AdamW is still to be written" in message
    assert "3.3.2 Gradient Vaccine, which is needed here" in message


def test_tools_make_assignment__handout_names_the_other_parts_that_a_test_needs():
    parts = make_assignment.load_parts(os.path.join(ROOT, "tools", "assignment.json"))
    name = "test_3_1_BertModel__padding_changes_nothing"
    assert_equal(make_assignment.parts_needed(name, parts),
                 ["3.1 attention", "3.1 layer", "3.1 embedding"])
    # This one puts another attention in its place.
    assert_equal(make_assignment.parts_needed(
        "test_3_1_BertLayer__one_token_by_hand", parts), ["3.1 layer"])
    assert_equal(make_assignment.claim(name, True, ["3.1 layer"]),
                 "- BertModel: padding changes nothing (needs 3.1 layer)")
    assert_equal(make_assignment.claim(name, False, []), "- padding changes nothing")


def test_tools_make_assignment__tests_that_a_copy_would_skip_are_left_out():
    source = make_assignment.read(ROOT, "tests", "test_3_1_adamw.py")
    ours, theirs = ({node.name for node in ast.parse(text).body if hasattr(node, "name")}
                    for text in (source, make_assignment.without_skipped_tests(source)))
    assert_equal(ours - theirs, {"test_3_1_FusedAdamW__equals_the_clear_form"})


def test_tools_make_assignment__bad_lists_and_full_folders_are_refused():
    good = {"section": "1", "name": "x", "points": 1, "functions": ["bert.attention"],
            "lines": ["a"]}
    for content, word in (("{", "JSON"), ("{}", "section"),
                          ([{**good, "points": "1"}], "points"),
                          ([{**good, "functions": ["bert.nothing"]}], "bert.nothing"),
                          ([{**good, "functions": ["os.remove"]}], "os.remove"),
                          ([{**good, "functions": ["bert.BertLayer"]}], "no function")):
        text = content if isinstance(content, str) else json.dumps(content)
        with assert_raises(word):
            make_assignment.load_parts(os.path.join(write_file(text, "parts.json"),
                                                    "parts.json"))
    path = os.path.join(write_file(json.dumps([good]), "parts.json"), "parts.json")
    with assert_raises("'y'", "x"):
        make_assignment.load_parts(path, ["y"])
    with assert_raises("new folder"):
        make_assignment.make(os.path.dirname(path), make_assignment.load_parts(path))
    # The tests of join_pair do not need AdamW: nothing is left of the folder.
    out = os.path.join(tempfile.mkdtemp(), "student")
    part = {**good, "functions": ["optim.AdamW.step"], "lines": ["3.4 join_pair"],
            "label": "1 x"}
    with assert_raises("no test in", "3.4 join_pair", "optim.AdamW.step"):
        make_assignment.make(out, [part])
    assert not os.path.exists(out)
