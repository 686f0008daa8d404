"""Treatments from outside this tree, and the state of any treatment.

    --option my_file.py:my_function     a function of your own, gram -> C or weights
    --option torchjd:UPGrad             a Gramian weighting of the package torchjd
    --option torchjd:CAGrad,c=0.5       one that needs a number
"""

import importlib.util
import inspect
import os

import numpy as np
import torch


def is_outside(option: str) -> bool:
    """Does this --option name something outside this tree?"""
    return ":" in option


def load(option: str):
    """"my_file.py:my_function" or "torchjd:UPGrad" -> what is called for each unit.

    Returns a function without arguments that makes a new treatment, gram [K, K] -> C or
    weights. Raises ValueError naming what is missing.
    """
    place, _, name = option.rpartition(":")
    return from_torchjd(name) if place == "torchjd" else from_file(place, name)


def files_of(option: str) -> dict:
    """What a run with this --option depends on.   -> {name: path}, for its digests"""
    path = option.rpartition(":")[0]
    if path in ("", "torchjd"):
        return {}
    return {os.path.join("option", os.path.basename(path)): path}


def from_file(path, name):
    if not os.path.isfile(path):
        raise ValueError(f"--option {path}:{name}: there is no file {path}; needed a "
                         f"Python file and the name of a function in it, gram -> C")
    spec = importlib.util.spec_from_file_location(
        os.path.splitext(os.path.basename(path))[0], path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:      # it is the user's file: anything can be in it
        raise ValueError(f"--option {path}:{name}: {path} cannot be imported: "
                         f"{type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"--option {path}:{name}: {path} has no function {name}")
    return found if inspect.isclass(found) else lambda: found


def from_torchjd(text):
    try:
        from torchjd import aggregation
        from torchjd.aggregation._weighting_bases import _GramianWeighting
    except ImportError:
        raise ValueError(f"--option torchjd:{text} needs the package torchjd (0.18): "
                         f"pip install torchjd qpsolvers quadprog") from None
    name, *settings = text.split(",")
    known = [key.removesuffix("Weighting") for key, value in vars(aggregation).items()
             if inspect.isclass(value) and issubclass(value, _GramianWeighting)]
    if name not in known:
        raise ValueError(f"--option torchjd:{name}: torchjd's Gramian weightings are "
                         f"{', '.join(sorted(known))}")
    try:
        numbers = {key: float(value) for key, value in (s.split("=") for s in settings)}
        weighting = getattr(aggregation, f"{name}Weighting")
        weighting(**numbers)
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(f"--option torchjd:{text}: {' '.join(str(error).split())[:200]}; "
                         f"a number is given as torchjd:{name},name=0.5") from None

    class Weighting:
        """gram -> weights [K], in torch's float64."""

        def __init__(self):
            self.weighting = weighting(**numbers)

        def __call__(self, gram):
            return self.weighting(torch.from_numpy(gram)).detach().cpu().numpy()
    return Weighting


class PerUnit:
    """Applies a treatment of one matrix to each unit's Gram matrix, [L, K, K].

    make() -> a treatment of one gram [K, K]; each of the L units gets one of its own, so
    that it may keep a state. call: multitask.call_treatment, which calls it.
    """

    def __init__(self, make, L, call):
        self.units, self.call = [make() for _ in range(L)], call

    def __call__(self, gram, **more):
        return np.stack([np.asarray(self.call(unit, one, **more))
                         for unit, one in zip(self.units, gram)])


# --- State, for a checkpoint ---

def state_of(value):
    """A treatment's own attributes, as tensors and plain values; None for what cannot be
    saved, such as a function."""
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return {"value": value}
    if isinstance(value, (np.ndarray, np.generic)):
        return {"array": torch.from_numpy(np.array(value))}
    if isinstance(value, (list, tuple)):
        return {"list": [state_of(entry) for entry in value]}
    if isinstance(value, dict):
        return {"dict": {key: state_of(entry) for key, entry in value.items()}}
    if inspect.isroutine(value) or inspect.isclass(value) or not hasattr(value, "__dict__"):
        return None
    return {"attributes": {key: state_of(entry) for key, entry in vars(value).items()}}


def restored(value, state):
    """`value` as it was when state_of() looked at it; objects are changed in place."""
    if state is None:
        return value
    (kind, saved), = state.items()
    if kind == "array":
        return saved.numpy()
    if kind == "list":
        old = list(value) if isinstance(value, (list, tuple)) else []
        new = [restored(old[i] if i < len(old) else None, entry)
               for i, entry in enumerate(saved)]
        return tuple(new) if isinstance(value, tuple) else new
    if kind == "dict":
        old = value if isinstance(value, dict) else {}
        return {key: restored(old.get(key), entry) for key, entry in saved.items()}
    if kind == "attributes":
        for key, entry in saved.items():
            vars(value)[key] = restored(vars(value).get(key), entry)
        return value
    return saved
