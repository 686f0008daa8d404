"""Assertions that say what came, what was expected, and the likely mistake."""

import contextlib
import importlib.util
import re
import unittest

import numpy as np
import torch


def assert_close(got, expected, tolerance=1e-6, hint="", relative=0.0, mistakes=None):
    """Compare numbers, lists, arrays or tensors of the same shape.

    |got - expected| must be at most tolerance + relative · |expected|, everywhere.
    mistakes: {what was done: what that would give}. If `got` is one of these, the message
    says so; otherwise it begins with the hint.
    """
    assert got is not None, "is there a return? got None, expected numbers"
    a, b = as_array(got), as_array(expected)

    def close_to(other):
        return a.shape == other.shape and bool(
            (np.abs(a - other) <= tolerance + relative * np.abs(other)).all())
    if close_to(b):
        return
    for what, value in (mistakes or {}).items():
        if close_to(as_array(value)):
            hint = f"looks as if {what}"
    if a.shape != b.shape:
        difference = f"shapes {list(a.shape)} and {list(b.shape)}"
        if isinstance(got, tuple):
            hint = "a tuple was returned where one result is asked for"
    elif np.isnan(a).any() and not np.isnan(b).any():
        hint = "a NaN came out: 0 · inf, inf - inf, or 0 / 0?"
    if a.shape == b.shape and a.ndim:
        apart = np.abs(a - b)
        apart[np.isnan(apart)] = np.inf
        worst = np.unravel_index(apart.argmax(), a.shape)
        difference = (f"the largest difference is {a[worst] - b[worst]:.3g}, "
                      f"at [{', '.join(map(str, worst))}]")
    elif a.shape == b.shape:
        difference = f"the difference is {a - b:.3g}"
    if a.shape == b.shape and a.size > 24:      # a page of numbers helps nobody
        a, b = a[worst], b[worst]
    with np.printoptions(precision=6):
        shown = f"got {a}, expected {b}"
        alike = f"{a}" == f"{b}"
    if alike:                                   # two numbers that print alike
        with np.printoptions(precision=17):
            shown = f"got {a}, expected {b}"
    raise AssertionError("; ".join(part for part in (hint, difference, shown) if part))


def as_array(x):
    if x is None or isinstance(x, (str, dict)):
        raise AssertionError(f"got {type(x).__name__} {x!r:.80}, expected numbers")
    if isinstance(x, (tuple, list)):
        x = [part.detach().tolist() if torch.is_tensor(part) else part for part in x]
    try:
        return np.asarray(x.detach().numpy() if torch.is_tensor(x) else x, np.float64)
    except ValueError:
        raise AssertionError("got several results of different shapes, expected one; is a "
                             "tuple returned?") from None


def assert_equal(got, expected, hint="", mistakes=None):
    """assert_close() for what must be equal: whole numbers, words, True and False."""
    if got == expected:
        return
    if as_lists(got) == as_lists(expected):
        hint = "the values are right, but a list stands where a tuple must, or the reverse"
    for what, value in (mistakes or {}).items():
        if got == value:
            hint = f"looks as if {what}"
    raise AssertionError((f"{hint}; " if hint else "") + f"got {got}, expected {expected}")


def as_lists(x):
    """Tuples within tuples, as lists within lists."""
    return [as_lists(part) for part in x] if isinstance(x, (list, tuple)) else x


# Our own messages must say what was needed and what came. A student's copy has False here:
# a docstring asks for the error or the warning, not for its words.
WORDS = True


@contextlib.contextmanager
def assert_raises(*words, error=ValueError):
    """The body must raise `error` with a one-line message that contains all words."""
    try:
        yield
    except NotImplementedError:         # a part of the assignment that is still open
        raise
    except error as raised:
        message = str(raised)
        for word in words if WORDS else ():
            assert word in message, f"got the message {message!r}, expected {word!r} in it"
        assert not WORDS or "\n" not in message, f"got {message!r}, expected one line"
    except Exception as other:
        raise AssertionError(f"got {type(other).__name__}: {other}, expected "
                             f"{error.__name__} for {' and '.join(words)}; check the "
                             f"arguments before anything else") from other
    else:
        raise AssertionError(f"got no error, expected {error.__name__} for "
                             f"{' and '.join(words)}: see \"Raises\" in the docstring")


def assert_one_line(status, errors, *words):
    """A command must end with status 2 and one line on stderr that contains all words.

    Not counted: warnings, and the progress of a run that a slow disk has kept waiting.
    """
    assert status == 2, f"got exit status {status}, expected 2"
    lines = [line for line in errors.strip().splitlines()
             if not re.match(r"warning|\d+/\d+ ", line)]
    assert len(lines) == 1, f"got {len(lines)} lines, expected one: {errors}"
    for word in words:
        assert word in lines[0], f"got {lines[0]!r}, expected {word!r} in it"


def skip_in_a_copy(what):
    """Skip a test of what a student's copy has only once, or need not do."""
    if not WORDS:
        raise unittest.SkipTest(f"a student's copy: {what}")


def skip_without(*modules):
    """Skip the test where one of these modules is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise unittest.SkipTest(f"{module} is not installed")
