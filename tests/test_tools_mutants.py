"""tools/mutants.py."""


import os
import pathlib
import tempfile

from tests.checks import assert_equal, assert_one_line, assert_raises
from tests.world import run_tool
from tools import mutants, slow_tests


def test_tools_mutants__every_fragment_is_in_the_source():
    assert sum(map(len, mutants.MUTANTS.values())) >= 300
    for edits in [*mutants.MUTANTS.values(), *mutants.EQUIVALENT.values()]:
        for function, old, new, mistake, *_ in edits:
            file, source = mutants.mutated(function, old, new)
            assert source != mutants.parsed(file)[0], f"{function}, {mistake}: no change"
    with assert_raises("fragment not found", "bert.attention", "nowhere"):
        mutants.mutated("bert.attention", "nowhere", "")
    with assert_raises("no function bert.nothing"):
        mutants.mutated("bert.nothing", "", "")
    for tool in (mutants, slow_tests):
        assert_one_line(*run_tool(tool, "no such part")[::2], "no such part")


def test_tools_mutants__a_mistake_is_noticed_and_a_harmless_edit_is_not():
    folder = os.path.join(tempfile.mkdtemp(), "copy")
    mutants.copy_tree(folder)
    for part, edit in (("4.2 accuracy", ("heads.accuracy", "==", "!=")),
                       ("3.3.1 PCGrad", ("multitask.pcgrad", " & (squared_norm > 0)", ""))):
        failed = mutants.attempt(folder, part, *edit)
        assert_equal(["wrong ones" in line for line in failed],
                     [True] if "!=" in edit else [])
    assert_equal(mutants.failures(folder, "4.2 accuracy"), [], "the file must be put back")


def test_tools_mutants__a_syntax_error_fails_only_the_parts_that_need_the_module():
    folder = os.path.join(tempfile.mkdtemp(), "copy")
    mutants.copy_tree(folder)
    pathlib.Path(folder, "optim.py").write_text("x = 1\ndef step(\n", encoding="utf-8")
    pathlib.Path(folder, "tests", "test_3_2_orders.py").write_text(
        "def test_3_2_sequential__x():\n    )\n", encoding="utf-8")
    results = mutants.climb(folder, ["3.1 attention", "AdamW", "sequential", "pcgrad"])
    messages = {}
    for result in results:
        messages.setdefault(result["line"], set()).add(result["message"])
    assert messages.pop("3.1 attention") == messages.pop("3.3.1 pcgrad") == {""}
    for line, place in (("3.1 AdamW", "optim.py, line 2"),
                        ("3.1 FusedAdamW", "optim.py, line 2"),
                        ("3.2 sequential", "tests/test_3_2_orders.py, line 2")):
        message, = messages.pop(line)
        assert "SyntaxError" in message and place in message, message
    assert_equal(messages, {})
