"""tools/mutants.py."""


import os
import tempfile

from tests import ROOT
from tests.checks import assert_equal, assert_raises
from tools import mutants


def test_tools_mutants__every_fragment_is_in_the_source():
    assert sum(map(len, mutants.MUTANTS.values())) >= 50
    for edits in [*mutants.MUTANTS.values(), *mutants.EQUIVALENT.values()]:
        for function, old, new, *_ in edits:
            assert mutants.mutated(ROOT, function, old, new)[1]
    with assert_raises("fragment not found", "bert.attention", "nowhere"):
        mutants.mutated(ROOT, "bert.attention", "nowhere", "")


def test_tools_mutants__a_mistake_is_noticed_and_a_harmless_edit_is_not():
    folder = os.path.join(tempfile.mkdtemp(), "copy")
    mutants.copy_tree(folder)
    for part, edit in (("4.2 accuracy", ("heads.accuracy", "==", "!=")),
                       ("3.3.1 PCGrad", ("multitask.pcgrad", " & (norm2 > 0)", ""))):
        failed = mutants.attempt(folder, part, *edit)
        assert_equal(["wrong ones" in line for line in failed],
                     [True] if "!=" in edit else [])
    assert_equal(mutants.failures(folder, "4.2 accuracy"), [], "the file must be put back")
