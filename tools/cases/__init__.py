"""The graded cases: what each part of the assignment computes for inputs drawn from a seed.

    python tools/grader.py SUBMISSION       (in the folder of make_assignment.py --grader)

A case is a function of random inputs r, a numpy Generator; its name is its claim. It calls
the part's functions and returns what came out: no expected value stands here, and nothing
is compared here. grader.py runs the same case on our source and compares. So a process that
runs a student's code holds no answers, and nothing in it decides on points. Where a case
asks what is always so (an error is raised, a share is dropped), it also gives numbers that
need the function: code that forges the rest earns nothing for what was not written.

A case needs no other open part: stand-ins take their place. Numbers are float64 where the
code under test allows, so that solutions that differ by rounding agree to 1e-9.
"""

import contextlib
import functools
import importlib
import os
import random
import sys
import traceback
import warnings

import numpy as np
import torch

# --- Helpers ---

def draw(r, *shape):
    return torch.tensor(r.normal(size=shape))


def leaf(r, *shape):
    return draw(r, *shape).requires_grad_(True)


def raised(f, *args):
    """The name of the exception that f(*args) raises, or "nothing"."""
    try:
        f(*args)
    except NotImplementedError:
        raise
    except Exception as error:
        return "ValueError" if isinstance(error, ValueError) else type(error).__name__
    return "nothing"


def gradients(output, inputs, r):
    """Of a random combination of the outputs."""
    weights = torch.tensor(r.normal(size=tuple(output.shape)), dtype=output.dtype)
    return torch.autograd.grad((output * weights).sum(), inputs)


def single(case):
    """A case in float32: compared to 1e-4."""
    case.tolerance = 1e-4
    return case


def mask_of(r, B, T):
    """Each row has its own number of tokens; the first has all."""
    lengths = np.concatenate([[T], r.integers(1, T, B - 1)])
    return torch.tensor(np.arange(T) < lengths[:, None]).long()


# --- A part's process ---

def plain(value):
    """Tensors, arrays and tuples as lists; numbers and words as they are; else its type."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if torch.is_tensor(value):
        value = value.detach().tolist()
    if hasattr(value, "tolist"):
        value = value.tolist()
    return value if value is None or isinstance(value, (list, int, float, str)) else (
        f"a {type(value).__name__}")


def forbid(names):
    """Let torch's own forms of what is to be written raise an error that says so."""
    def refuse(name, *args, **kwargs):
        raise RuntimeError(f"{name} is what you are to write; build it from simpler parts")
    for name in names:
        *path, last = name.split(".")
        owner = sys.modules.get(".".join(path))     # torch.optim hides its modules' names
        with contextlib.suppress(AttributeError):   # another torch may lack it
            if owner is None:
                owner = functools.reduce(getattr, path[1:], torch)
            if hasattr(owner, last):
                setattr(owner, last, functools.partial(refuse, name))


class NotAllowed(torch.overrides.TorchFunctionMode):
    """Refuses torch's own forms by parts of their names, however they were found."""

    def __init__(self, words):
        super().__init__()
        self.words = words

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = str(getattr(function, "__name__", function))
        if any(word in name for word in self.words):
            raise RuntimeError(f"{name} is what you are to write; build it from simpler "
                               f"parts")
        return function(*args, **(kwargs or {}))


def service(file, seed, forbidden=()):
    """For isolated.Child: case's name -> {"value"} or {"error", "place"}."""
    torch.set_num_threads(1)
    forbid([name for name in forbidden if "." in name])
    not_allowed = NotAllowed([name for name in forbidden if "." not in name])
    cases = problem = None
    try:
        cases = importlib.import_module(f"cases.{file}")
    except BaseException as error:
        problem = describe(error)

    def answer(name):
        if problem:
            return problem
        random.seed(seed)
        torch.manual_seed(seed)
        case = getattr(cases, name)
        try:
            with warnings.catch_warnings(), not_allowed:
                warnings.simplefilter("ignore")
                value = case(np.random.default_rng([seed, *name.encode()]))
            return {"value": plain(value), "tolerance": getattr(case, "tolerance", 1e-7)}
        except BaseException as error:
            return describe(error)
    return answer


def describe(error):
    """What was raised, and the last line of the submission that led to it."""
    here = os.getcwd()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if os.path.dirname(os.path.abspath(frame.filename)) == here
              and os.path.exists(frame.filename)]       # "<frozen importlib>" does not
    file, line = (frames[-1].filename, frames[-1].lineno) if frames else ("", 0)
    try:
        message = str(error)
    except BaseException:       # of a class of its own
        message = "its message cannot be made"
    if isinstance(error, SyntaxError) and error.filename:
        file, line, message = error.filename, error.lineno, error.msg
    return {"error": type(error).__name__, "message": message[:500],
            "place": f"{os.path.basename(file)}, line {line}" if file else ""}
