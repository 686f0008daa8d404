"""tools/fuzz.py finds what it should: nothing in the tree, and every planted fault."""

import functools
import tempfile
import unittest.mock

from tests.checks import assert_equal
from tools import damage, fuzz


@functools.cache
def fuzzer():
    return fuzz.Fuzzer(tempfile.mkdtemp())


def outcome(name, read, argv=()):
    """What becomes of an input of this kind that is read by read()."""
    kind = next(kind for kind in fuzzer().kinds if kind.name == name)
    with unittest.mock.patch.object(kind, "read", read):
        return fuzz.outcome(kind, kind.folder, argv)[0]


def test_tools_fuzz__80_damaged_inputs_are_loaded_or_refused():
    for number in range(80):
        name, found, note = fuzzer().attempt(0, number)
        assert found in ("loaded", "refused"), f"{number}, {name}: {found}, {note}"


def test_tools_fuzz__faults_are_classified():
    def raises(error):
        def read(path, argv):
            raise error
        return read

    name = "table/result.json"
    for read, expected in (
            (raises(KeyError("dev")), "traceback"), (raises(AssertionError()), "traceback"),
            (raises(ValueError("it is wrong")), "message"),
            (raises(ValueError("result.json\x1b[2J: needed …, got …")), "refused"),
            (raises(FileNotFoundError(2, "No such file", "result.json")), "refused"),
            (lambda path, argv: 1, "message"), (lambda path, argv: 0, "loaded")):
        assert_equal(outcome(name, read), expected)
    with unittest.mock.patch.object(fuzz, "LIMIT_SECONDS", 0.0):
        assert_equal(outcome(name, lambda path, argv: 0), "hang")
    with unittest.mock.patch.object(fuzz, "peak_memory", side_effect=[0, 4e8]):
        assert_equal(outcome(name, lambda path, argv: 0), "memory")


def test_tools_fuzz__an_accepted_change_is_silence():
    kinds = {kind.name: kind for kind in fuzzer().kinds}
    log = b'{"step": 1}\n' * 200
    check = kinds["run/metrics.jsonl"].check
    assert check("state", log, log.replace(b"1", b"2", 1)) and not check("state", log, log)
    check = kinds["run/args.json"].check
    assert check("state", b'{"a": 1}', b'{"a": 2}')
    assert not check("state", b'{"a": 1}', b'{"a":1}'), "spaces change nothing"
    check = kinds["run/last.pt"].check
    assert check("another state", b"", b"a damaged checkpoint")


def test_tools_fuzz__the_same_seed_is_the_same_input():
    rows = b"\tid\tsentence\n" + b"0\tx\tgood\n" * 20

    def series():
        rng = fuzz.random.Random("1 2")
        return [damage.damaged(rng, "x.csv", rows) for _ in range(50)]
    assert series() == series() and len(set(series())) > 40
