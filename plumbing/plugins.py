"""Treatments from outside this tree, and the state of any treatment.

    --option my_file.py:my_function     a function of your own, gram -> C or weights
    --option torchjd:UPGrad             a Gramian weighting of the package torchjd
    --option torchjd:CAGrad,c=0.5       one that needs a number
"""

import collections
import enum
import functools
import importlib.util
import inspect
import math
import os
import random
import sys
import traceback
import warnings

import numpy as np
import torch

from plumbing import beside, machine

BESIDE = {}     # path of an --option's file: what it has imported from its folder

# What a file of somebody else may raise. Not Ctrl-C, and not the time limit of a test.
OWN = Exception, SystemExit, GeneratorExit


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


def in_full(option: str) -> str:
    """The file with its folder, so that a run can be resumed from anywhere."""
    path, _, name = option.rpartition(":")
    return f"{os.path.abspath(path)}:{name}" if path not in ("", "torchjd") else option


def short(option: str) -> str:
    """The file without its folder."""
    path, _, name = option.rpartition(":")
    return f"{os.path.basename(path)}:{name}" if path else option


def files_of(option: str) -> dict:
    """What a run with this --option, now loaded, depends on.   -> {name: path}"""
    path = option.rpartition(":")[0]
    if path in ("", "torchjd"):
        return {}
    return {os.path.join("option", os.path.relpath(file, os.path.dirname(path))): file
            for file in [path, *BESIDE.get(os.path.abspath(path), [])]}


def from_file(path, name):
    if not os.path.isfile(path):
        raise ValueError(f"--option {path}:{name}: there is no file {path}; needed a "
                         f"Python file and the name of a function in it, gram -> C")
    if not path.endswith(".py"):
        raise ValueError(f"--option {path}:{name}: needed a Python file, FILE.py:FUNCTION")
    stem = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(f"option_{stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module     # where dataclasses look for it
    sys.path.append(os.path.dirname(os.path.abspath(path)))     # for what lies beside it
    dtype = torch.get_default_dtype()   # the file may change it and the filters
    before = {*sys.modules}
    try:
        with warnings.catch_warnings():
            spec.loader.exec_module(module)
        found = getattr(module, name, None)
    except OWN as error:                # it is the user's file: all can be in it
        raise ValueError(f"--option {path}:{name}: {path} cannot be imported: "
                         f"{in_words(error)}") from error
    finally:
        torch.set_default_dtype(dtype)
    BESIDE.setdefault(os.path.abspath(path), beside.imported(path, before))
    if callable(found):
        return found if inspect.isclass(found) else lambda: found
    raise ValueError(f"--option {path}:{name}: {path} has no function {name}")


def in_words(error) -> str:
    """"KeyError: 'key'"; only "KeyError" where its __str__() fails as well."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


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
        numbers = {key: number(value) for key, value in (s.split("=") for s in settings)}
        if len(numbers) < len(settings):
            raise ValueError("a name is given twice")
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


def number(text):
    """"2" -> 2, "0.5" -> 0.5; torchjd wants some as whole numbers."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"needed a number, got {text}")
    return int(text) if text.strip("+-").isdigit() else value


class PerUnit:
    """Applies a treatment of one matrix to each unit's Gram matrix, [L, K, K].

    option: its name in messages; make() -> a treatment of one gram [K, K]; each of the L
    units gets one of its own, so that it may keep a state. call: multitask.call_treatment,
    which calls it. Whatever goes wrong in it is a ValueError that names the option, and
    where it is a file, the line.
    """

    NOT_SAVED = ("option", "make", "call")      # they come from the command line

    def __init__(self, option, make, L, call):
        self.option, self.make, self.call = option, make, call
        self.units = [self.tried(make) for _ in range(L)]
        self.checked = self.warned = False

    def __call__(self, gram, **more):
        results = [self.result_of(unit, one, more) for unit, one in zip(self.units, gram)]
        if not self.checked:        # better after one step than at the first checkpoint
            self.check_state()
            self.checked = True
        if len({result.ndim for result in results}) > 1:
            raise ValueError(f"--option {self.option} returned C for one unit, and weights "
                             f"for another")
        return np.stack(results)

    def tried(self, function, *args, **more):
        try:
            return function(*args, **more)
        except OWN as error:
            path = os.path.abspath(self.option.rpartition(":")[0])
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                     if os.path.abspath(frame.filename) == path]
            place = f", line {lines[-1]}" if lines else ""
            raise ValueError(f"--option {self.option}{place}: "
                             f"{in_words(error)}") from error

    def result_of(self, unit, gram, more):
        """C [K, K] or weights [K], as float64.   Raises ValueError"""
        K = len(gram)
        found = self.tried(self.call, unit, gram, **more)
        try:
            plain = found.detach().double().cpu() if torch.is_tensor(found) else found
            result = np.asarray(plain, np.float64)
        except Exception:
            result = None
        if result is None or result.shape not in ((K, K), (K,)):
            what = type(found).__name__ if result is None or result.ndim == 0 else (
                f"an array {list(result.shape)}")
            raise ValueError(f"--option {self.option} must return C [{K}, {K}], or weights "
                             f"[{K}]; it returned {what}")
        if not np.isfinite(result).all() and np.isfinite(gram).all() and not self.warned:
            self.warned = True
            warnings.warn(f"--option {self.option} returned a number that is not finite; "
                          f"such a step is skipped")
        return result

    def check_state(self, make=None):
        """Can new treatments take on this state, as in a resume?   Raises ValueError if not

        make: what makes them; if not given, that of the file, read once more: else a
        function would be compared with itself.
        """
        cpu = torch.device("cpu")
        drawn = machine.random_states(cpu)      # the file may draw more
        try:
            make = make or load(self.option)
            state = state_of(self.units, f"--option {self.option}: its state")
            new = [self.tried(make) for _ in self.units]
            if not self.tried(lambda: equal(state_of(restored(new, state)), state)):
                raise ValueError(f"--option {self.option}: its state cannot be restored "
                                 f"from a checkpoint")
        finally:
            machine.set_random_states(drawn, cpu)

    def warn_of_state(self):
        """check_state() of a class, whose state can be saved, at a checkpoint: what came
        late, and cannot be restored, must not end the run."""
        try:
            if inspect.isclass(self.make):
                self.check_state(self.make)
        except ValueError as error:
            warnings.warn(f"from here on this run cannot be resumed: {error}")


# --- State, for a checkpoint ---

# Values other than numbers and text: (type, what to save, how to rebuild it from that).
FORMS = {
    "bytes": (bytes, list, bytes),
    "complex": (complex, lambda z: [z.real, z.imag], lambda parts: complex(*parts)),
    "set": (set, list, set), "frozenset": (frozenset, list, frozenset),
    "deque": (collections.deque, lambda d: [list(d), d.maxlen],
              lambda parts: collections.deque(*parts)),
    "Counter": (collections.Counter, dict, collections.Counter),
    "OrderedDict": (collections.OrderedDict, dict, collections.OrderedDict),
    "Generator": (np.random.Generator, lambda r: r.bit_generator.state,
                  lambda state: generator(state)),
    "RandomState": (np.random.RandomState, lambda r: r.get_state(legacy=False),
                    lambda state: at_state(np.random.RandomState(), "set_state", state)),
    "torch.Generator": (torch.Generator, lambda g: g.get_state(),
                        lambda state: at_state(torch.Generator(), "set_state", state)),
    "Random": (random.Random, lambda r: r.getstate(),
               lambda state: at_state(random.Random(), "setstate", state)),
    "dtype": (torch.dtype, str, lambda name: getattr(torch, name.split(".")[1])),
    "device": (torch.device, str, torch.device),
}


def generator(state):
    made = np.random.Generator(getattr(np.random, state["bit_generator"])())
    made.bit_generator.state = state
    return made


def at_state(new, method, state):
    getattr(new, method)(state)
    return new


def attributes(value) -> dict:
    """Those of an object, also of one with __slots__."""
    slots = set()
    for kind in type(value).__mro__:
        own = getattr(kind, "__slots__", ())
        slots |= {own} if isinstance(own, str) else set(own)
    slots -= {"__dict__", "__weakref__"}
    found = {name: getattr(value, name) for name in sorted(slots) if hasattr(value, name)}
    found |= getattr(value, "__dict__", {})
    return {name: entry for name, entry in found.items()
            if name not in getattr(type(value), "NOT_SAVED", ())}


class Empty:
    """Stands for what a variable of a closure holds before it has a value."""


def held(value) -> list:
    """What a method, a partial or a function holds.   -> [(name, value, setter or None)]

    A function: the variables of its closure, and defaults that it may change.
    """
    def setter(owner, name):
        return functools.partial(setattr, owner, name)
    if inspect.ismethod(value):
        return [(".__self__", value.__self__, None)]
    if isinstance(value, functools.partial):
        def put(args=None, keywords=None):
            value.__setstate__((value.func, value.args if args is None else args,
                                value.keywords if keywords is None else keywords,
                                vars(value)))
        return [("'s function", value.func, None), ("'s arguments", value.args, put),
                ("'s keywords", value.keywords, lambda new: put(keywords=new))]
    found = []
    if inspect.isfunction(value):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            try:
                content = cell.cell_contents
            except ValueError:
                content = Empty
            found.append((f"'s {name}", content, setter(cell, "cell_contents")))
        for name in ("__defaults__", "__kwdefaults__"):
            defaults = getattr(value, name) or ()
            entries = defaults.values() if isinstance(defaults, dict) else defaults
            if any(isinstance(entry, (list, dict, set, np.ndarray, torch.Tensor))
                   for entry in entries):
                found.append((f"'s {name}", defaults, setter(value, name)))
    return found


def memory_of(value):
    """Where the numbers of an array or tensor are, which its views share; else None."""
    if torch.is_tensor(value):
        plain = value.numel() and value.layout is torch.strided
        return value.untyped_storage().data_ptr() if plain else None
    if not isinstance(value, np.ndarray) or not value.size:
        return None
    while isinstance(value.base, np.ndarray):
        value = value.base
    return value.__array_interface__["data"][0]


def is_one_thing(state):
    """Is it the state of something that may be kept in two places?"""
    (kind, saved), = state.items()
    return kind not in ("value", "number", "text", "tuple", "enum", "again") or (
        torch.is_tensor(saved))


def state_of(value, where="treatment", above=(), seen=None):
    """A treatment's own attributes, as tensors and plain values; None for what is made
    again, not saved: functions that hold nothing, classes and modules.

    What is kept in two places is saved once. seen: what is saved by now, {id: (its number,
    it)}, and where the arrays among it are, {address: name}. Raises ValueError naming the
    attribute that cannot be saved.
    """
    things, arrays = seen = seen or ({}, {})
    if id(value) in above:
        raise ValueError(f"{where} leads back to itself, which a checkpoint cannot hold")
    if id(value) in things:
        return {"again": things[id(value)][0]}
    address = memory_of(value)
    if address in arrays:
        raise ValueError(f"{where} shares its memory with {arrays[address]}, which a "
                         f"checkpoint cannot hold; keep one of the two")
    state = new_state(value, where, above, seen)
    if state and is_one_thing(state):
        things[id(value)] = len(things), value      # kept, so that its id stays its own
        if address is not None:
            arrays[address] = where
    return state


def new_state(value, where, above, seen):
    """state_of() of what is not yet saved."""
    kind = type(value)

    def inner(entry, name):
        return state_of(entry, f"{where}{name}", (*above, id(value)), seen)
    if value is None or kind in (bool, int, float, str) or torch.is_tensor(value):
        return {"value": value}
    if isinstance(value, (np.ndarray, np.generic)):
        array, name = np.array(value), "array" if kind is np.ndarray else "number"
        if array.dtype.kind in "US":
            return {"text": [array.tolist(), str(array.dtype), name]}
        try:
            return {name: torch.from_numpy(array)}
        except TypeError:
            raise ValueError(f"{where} is an array of {array.dtype}, which a checkpoint "
                             f"cannot hold") from None
    if kind in (list, tuple):
        return {kind.__name__: [inner(entry, f"[{i}]") for i, entry in enumerate(value)]}
    if kind is dict:
        return {"dict": [[inner(key, "'s key"), inner(entry, f"[{key!r}]")]
                         for key, entry in value.items()]}
    for name, (form, plain, _) in FORMS.items():
        if kind is form:
            return {name: inner(plain(value), "")}
    if isinstance(value, enum.Enum):
        return {"enum": value.name}
    for plain in (list, tuple, dict, set, collections.deque, str, int, float):
        if isinstance(value, plain):
            raise ValueError(f"{where} is a {kind.__name__}, which a checkpoint cannot "
                             f"hold; use a plain {plain.__name__}")
    if inspect.isclass(value) or inspect.ismodule(value):
        return None
    # A method's attributes are its function's, and cannot be set.
    own = {} if inspect.ismethod(value) else {
        name: inner(entry, f".{name}") for name, entry in attributes(value).items()}
    if callable(value) and (held(value) or not own):
        parts = [None if id(part) in (*above, id(value)) else inner(part, name)
                 for name, part, _ in held(value)]
        return {"callable": [own, parts]} if own or any(parts) else None
    if not hasattr(value, "__dict__") and not own:
        raise ValueError(f"{where} is a {kind.__name__}, which a checkpoint cannot hold")
    return {"attributes": own}


def restored(value, state, made=None):
    """`value` as it was when state_of() looked at it; objects are changed in place.

    made: what is restored by now, in the order of its numbers in state_of(). Raises
    ValueError for an object that is not there yet: only its attributes are saved.
    """
    made = [] if made is None else made
    if state is None:
        return value
    (kind, saved), = state.items()
    if kind == "again":
        return made[saved]
    new = remade(value, kind, saved, made)
    if is_one_thing(state):
        made.append(new)
    return new


def remade(value, kind, saved, made):
    """restored() of what is not yet made."""
    if kind == "array":
        return saved.numpy()
    if kind == "number":
        return saved.numpy()[()]
    if kind == "text":
        array = np.array(saved[0], saved[1])
        return array if saved[2] == "array" else array[()]
    if kind in ("list", "tuple"):
        old = list(value) if isinstance(value, (list, tuple)) else []
        new = [restored(old[i] if i < len(old) else None, entry, made)
               for i, entry in enumerate(saved)]
        return tuple(new) if kind == "tuple" else new
    if kind == "dict":
        old = value if isinstance(value, dict) else {}
        new = {}
        for key, entry in saved:
            key = restored(None, key, made)
            new[key] = restored(old.get(key), entry, made)
        return new
    if kind in FORMS:
        return FORMS[kind][2](restored(None, saved, made))
    if kind == "enum" and isinstance(value, enum.Enum):
        return type(value)[saved]
    if kind == "callable":
        own, parts = saved
        set_attributes(value, own, made)
        for (_, part, put), entry in zip(held(value), parts):
            new = restored(part, entry, made)
            if put and entry is not None:
                put(new)
        return value
    if kind in ("enum", "attributes"):
        if kind == "enum" or value is None or type(value) in (bool, int, float, str, list,
                                                              tuple, dict):
            raise ValueError(f"the treatment keeps an object ({', '.join(saved)}) where "
                             f"__init__ makes none, or in a set or deque; a checkpoint "
                             f"restores attributes of objects, not objects")
        return set_attributes(value, saved, made)
    return saved


def set_attributes(value, saved, made):
    for key, entry in saved.items():
        object.__setattr__(value, key, restored(getattr(value, key, None), entry, made))
    return value


def equal(a, b) -> bool:
    """Are two results of state_of() the same?"""
    if torch.is_tensor(a):
        return torch.is_tensor(b) and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or a != a and b != b
