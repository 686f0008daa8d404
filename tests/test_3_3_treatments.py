"""3.3 Treatments of any kind: what they return and ask for, their state, other files."""

import collections
import enum
import functools
import itertools
import os
import random
import signal
import sys
import tempfile
import warnings

import numpy as np
import torch

import multitask
from plumbing import plugins
from tests.checks import assert_close, assert_equal, assert_one_line, assert_raises
from tests.world import (
    ROWS,
    files_of,
    log_of,
    resume,
    run_train,
    signalled_at,
    skip_without_torchjd,
    toy_step,
    training_of,
    write_file,
)
from tools import running

# g_0 = (1, 0) and g_1 = (-1, 1) on w, as in tests/world.py.
GRAM = np.array([[[1.0, -1.0], [-1.0, 2.0]]])


def user_file(text):
    for name in ("option_mine", "an_odd_sibling", "helper", "later"):   # of another test
        sys.modules.pop(name, None)
    sys.path[:] = [place for place in sys.path if "minbert-file-" not in place]
    return os.path.join(write_file(text, "mine.py"), "mine.py")


def test_3_3_treatment__weights_are_coefficients_of_the_update():
    flat, treated = toy_step(lambda gram: np.array([[2.0, 3.0]]))
    assert_close(flat.G[0, :2], [-1, 3], 1e-6, "2 g_0 + 3 g_1")
    assert_close(flat.G[0, 2:], [3, 5], 1e-6, "a head's gradient passes through unchanged")
    log = multitask.describe(treated)
    assert_equal((log["coefficient_a"], log["coefficient_b"]), (2, 3))
    assert not any(name.startswith(("acted", "treated")) for name in log), (
        "weights treat no gradient by itself")


def test_3_3_treatment__gets_what_its_parameters_name():
    seen = {}

    def asks(gram, losses, rng):
        seen.update(losses=losses.tolist(), rng=rng)
        return np.ones(gram.shape[:-1])
    flat, _ = toy_step(multitask.plain_sum)
    regions = multitask.regions(flat)
    multitask.treat(flat, regions, ROWS, asks, losses=np.array([.5, 2.0]))
    assert_equal(seen, {"losses": [.5, 2.0], "rng": None})
    multitask.treat(flat, regions, ROWS, lambda gram: gram * 0 + np.eye(2))


def test_3_3_treatment__results_of_another_shape_are_refused():
    for wrong in (np.ones(3), np.ones((2, 2, 2)), 1.0):
        with assert_raises("[1, 2, 2]", "[1, 2]"):
            toy_step(lambda gram, wrong=wrong: wrong)


def test_3_3_treatment__a_result_that_is_not_finite_skips_the_step():
    assert toy_step(lambda gram: gram * np.nan)[1] is None
    # What float32 cannot hold, as the update is.
    assert toy_step(lambda gram: gram * 0 + 1e300)[1] is None


def test_3_3_treatment__a_file_of_ones_own_gives_the_same_run_bit_for_bit():
    path = user_file("from multitask import pcgrad as mine\n")
    ours, theirs = (run_train("--option", option, "--con", steps=4)[1]
                    for option in ("pcgrad", f"{path}:mine"))
    assert_equal(files_of(theirs), files_of(ours))


# Tilts the weights towards the task with the larger loss, remembering old losses.
STATEFUL = """
import numpy as np

class Slow:
    def __init__(self):
        self.average, self.calls = None, 0
    def __call__(self, gram, losses):
        self.calls += 1
        self.average = losses if self.average is None else .5 * self.average + .5 * losses
        return self.average / self.average.sum() * self.calls ** .5
"""


def test_3_3_treatment__its_state_survives_a_resume():
    option = user_file(STATEFUL) + ":Slow"
    for granularity in ("model",):
        flags = ("--option", option, "--clip", 0)
        whole = files_of(run_train(*flags, steps=6)[1])
        with signalled_at(3, signal.SIGTERM):
            _, out, _ = run_train(*flags, steps=6)
        assert_equal(resume(out)[0], 0)
        assert files_of(out) == whole, granularity


def test_3_3_treatment__a_mended_file_goes_on_only_if_option_is_given_again():
    path = user_file(STATEFUL.replace("return", "self.calls < 4 or 1 / 0\n        return"))
    option = ("--option", f"{path}:Slow")
    status, out, errors = run_train(*option, "--checkpoint-every", 2, steps=6)
    assert_one_line(status, errors, "line 10: ZeroDivisionError")
    assert "goes on after update 2, once its file is mended" in resume(out)[1]
    with open(path, "w") as file:
        file.write(STATEFUL)
    status, _, errors = resume(out)
    assert_one_line(status, errors, "mine.py", "give --option again")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_equal(resume(out, *option)[0], 0)
    assert any("mine.py; what follows" in str(w.message) for w in caught), caught
    whole = run_train(*option, steps=6)[1]
    assert files_of(out) == files_of(whole)


def test_3_3_treatment__a_file_may_move_before_a_resume():
    path = user_file(STATEFUL)
    before = os.getcwd()
    try:
        os.chdir(os.path.dirname(path))
        with signalled_at(2):
            _, out, _ = run_train("--option", "mine.py:Slow", steps=6)
    finally:
        os.chdir(before)
    with signalled_at(2):
        status, output, errors = resume(out)
    assert "stopped after update" in output, errors
    new = os.path.join(os.path.dirname(path), "elsewhere", "mine.py")
    os.mkdir(os.path.dirname(new))
    os.rename(path, new)
    assert_equal(resume(out, "--option", f"{new}:Slow")[0], 0)


def test_3_3_treatment__what_cannot_be_loaded_is_refused_by_name():
    for option, words in (
            ("nowhere.py:f", ["nowhere.py", "no file"]),
            (user_file("def f(gram: 1\n") + ":f", ["mine.py", "SyntaxError"]),
            (user_file("f = 3\n") + ":f", ["no function f"]),
            (f"{write_file('{}', 'mine.ipynb')}/mine.ipynb:f", ["a Python file", "ipynb"]),
            ("best", ["seq, rr, pcgrad, gvac"]), (":f", ["--option"])):
        status, _, errors = run_train("--option", option)
        assert_one_line(status, errors, *words)


class Thing:
    def __init__(self, **values):
        vars(self).update(values)

    def count(self):
        self.n += 1
        return self.n


class Slots:
    __slots__ = "count"


class Phase(enum.Enum):
    WARM = 1
    ON = 2


def through_a_checkpoint(new, old):
    """What `new` is after `old` was saved to a file and read back as checkpoints are."""
    path = os.path.join(tempfile.mkdtemp(), "state.pt")
    torch.save(plugins.state_of(old), path)
    return plugins.restored(new, torch.load(path, weights_only=True))


def test_3_3_treatment__any_state_of_plain_values_is_restored():
    values = [np.array([1.0, 2]), [1, "a", (2.5, None)], {"k": 3, (1, 2): {}},
              {np.int64(3): 1}, np.float64(.1) + .2, np.str_("ä"), np.array(["a", "bc"]),
              {1, 2}, 1 + 2j, b"a",
              frozenset("a"), collections.deque([1, 2], 2), collections.Counter("aab"),
              torch.float64, torch.device("cpu"), torch.ones(2), float("inf"), 10 ** 30]
    for value in values:
        got = through_a_checkpoint(Thing(x=None), Thing(x=value)).x
        assert type(got) is type(value) and str(got) == str(value), f"{value!r}: {got!r}"
    generator, python = np.random.default_rng(1), random.Random(1)
    generator.normal(), python.random()
    new = through_a_checkpoint(Thing(a=None, b=None), Thing(a=generator, b=python))
    assert_equal((new.a.normal(), new.b.random()), (generator.normal(), python.random()))
    legacy, drawn = np.random.RandomState(1), torch.Generator()
    legacy.normal(), torch.rand(2, generator=drawn)
    new = through_a_checkpoint(Thing(a=None, b=None), Thing(a=legacy, b=drawn))
    assert_equal((new.a.normal(), float(torch.rand(1, generator=new.b))),
                 (legacy.normal(), float(torch.rand(1, generator=drawn))))
    new = through_a_checkpoint(Thing(x=Phase.WARM), Thing(x=Phase.ON))
    assert new.x is Phase.ON and Phase.WARM.value == 1
    old, new = Slots(), Slots()
    old.count, new.count = 5, 0
    assert_equal(through_a_checkpoint(new, old).count, 5)
    assert_equal(through_a_checkpoint(Thing(f=print), Thing(f=print)).f, print)


def counting():
    n = 0

    def step(gram):
        nonlocal n
        n += 1
        return n
    return step


def test_3_3_treatment__what_a_method_or_a_closure_holds_is_restored():
    for make, count in (
            (lambda: Thing(n=0).count, lambda f: f()),
            (lambda: functools.partial(Thing.count, Thing(n=0)), lambda f: f()),
            (counting, lambda f: f(None))):
        old, new = make(), make()
        count(old), count(old)
        assert_equal(count(through_a_checkpoint(new, old)), 3)
    wrapped = functools.wraps(counting())(lambda gram: wrapped.calls)
    wrapped.calls = 4
    state = plugins.state_of(wrapped)
    wrapped.calls = 0
    assert_equal(plugins.restored(wrapped, state).calls, 4)
    steps = itertools.count()
    with assert_raises("treatment.f's steps is a count"):
        plugins.state_of(Thing(f=lambda gram: next(steps)))


def two_closures():
    buffer = [0]

    def show():
        return buffer[0]

    def step(gram):
        buffer[0] += 1
        return show()
    return step


def late():
    def step(gram):
        nonlocal first, steps           # first has no value yet at the first step
        steps += 1
        first = 10 if steps == 1 else first + 1
        return 100 * steps + first
    steps = 0
    return step
    first = None                    # makes it a variable of late()


def with_a_default():
    def step(gram, past=[]):        # noqa: B006
        past.append(1)
        return len(past)
    return step


def test_3_3_treatment__what_is_kept_in_two_places_or_made_late_is_restored():
    for make in (two_closures, late, with_a_default, lambda: functools.partial(
            lambda past, gram: past.append(1) or len(past), [])):
        old, new = make(), make()
        old(None), old(None)
        through_a_checkpoint(new, old)
        # The second step uses what the first has changed.
        assert_equal((new(None), new(None)), (old(None), old(None)), make.__name__)
    array = np.zeros(2)
    new = through_a_checkpoint(Thing(a=None, b=None), Thing(a=array, b=array))
    assert new.a is new.b, "one array under two names"
    for view in (array[:1], torch.from_numpy(array)):
        with assert_raises("treatment.b shares its memory with treatment.a"):
            plugins.state_of(Thing(a=array, b=view))


def test_3_3_treatment__what_cannot_be_saved_is_refused_by_its_name():
    cycle = Thing()
    cycle.me = cycle
    for value, words in ((cycle, "treatment.me leads back"),
                         (Thing(x=[collections.defaultdict(int)]), "treatment.x[0] is a d"),
                         (Thing(x=itertools.count()), "treatment.x is a count"),
                         (Thing(x=np.array([None])), "treatment.x is an array of object")):
        with assert_raises(words):
            plugins.state_of(value)
    with assert_raises("where __init__ makes none"):
        through_a_checkpoint(Thing(x=None), Thing(x=Thing(y=1)))


WRONG = """import numpy as np
class Lazy:
    helper = None
    def __init__(self):
        self.count = 0
    def __call__(self, gram):
        self.helper = self.helper or Lazy()
        return np.eye(len(gram))
def broken(gram):
    return {}["key"]
def nothing(gram): pass
def generator(gram): yield 1
def tensors(gram):
    import torch
    return [torch.ones(1, requires_grad=True)] * len(gram)
class Mute(Exception):
    def __str__(self):
        raise self
def mute(gram): raise Mute
def closes(gram): raise GeneratorExit
def ragged(gram): return [[1], [1, 2]]
def column(gram): return np.ones((len(gram), 1))
def needs(gram, beta): return np.eye(len(gram))
class Needs:
    def __init__(self, beta): pass
def closure():
    helper = None
    def step(gram):
        nonlocal helper
        helper = helper or Lazy()
        return np.eye(len(gram))
    return step
late = closure()
"""


def test_3_3_treatment__a_mistake_in_a_file_is_one_line_with_its_place():
    path = user_file(WRONG)
    for name, words in (
            ("Lazy", ["__init__ makes none"]), ("late", ["__init__ makes none"]),
            ("broken", ["line 10: KeyError: 'key'"]),
            ("nothing", ["must return C [3, 3], or weights [3]; it returned NoneType"]),
            ("generator", ["returned generator"]), ("ragged", ["returned list"]),
            ("tensors", ["returned"]), ("mute", ["line 19: Mute"]),
            ("closes", ["line 20: GeneratorExit"]),
            ("column", ["returned an array [3, 1]"]), ("needs", ["TypeError", "beta"]),
            ("Needs", ["TypeError", "beta"])):
        status, _, errors = run_train("--option", f"{path}:{name}", steps=2)
        assert_one_line(status, errors, *words)
    program = user_file("import sys\nsys.exit(0)\n")     # without `if __name__ == …`
    status, _, errors = run_train("--option", f"{program}:main", steps=2)
    assert_one_line(status, errors, "cannot be imported: SystemExit")


FAMILY = """from __future__ import annotations
import dataclasses
import numpy as np
import an_odd_sibling
@dataclasses.dataclass
class Zero:
    count: int = 0
    def __call__(self, gram):
        gram[:] = 0                         # its own copy
        return an_odd_sibling.result(gram)
def none(gram):
    return np.full(len(gram), np.nan)
"""


def test_3_3_treatment__a_file_may_use_its_neighbours_and_change_its_gram():
    path = user_file(FAMILY)
    write_file("import numpy as np\ndef result(gram): return np.ones(len(gram))\n",
               os.path.join(os.path.dirname(path), "an_odd_sibling.py"))
    status, out, errors = run_train("--option", f"{path}:Zero", steps=2)
    assert status == 0, errors
    assert all(log_of(out)[0][f"norm_{name}"] > 0 for name in ("sst", "para", "sts")), (
        "the log has what the treatment made of its copy")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status, _, errors = run_train("--option", f"{path}:none", steps=2)
    assert status == 0, errors
    assert_equal([str(w.message) for w in caught], [
        f"--option {path}:none returned a number that is not finite; such a step is "
        f"skipped"])


def test_3_3_treatment__what_it_imports_from_its_folder_is_its_own():
    path = user_file("import helper\ndef mine(gram):\n    import later\n"
                     "    return helper.weights(gram) * later.one\n")
    write_file("one = 1\n", os.path.join(os.path.dirname(path), "later.py"))
    beside = os.path.join(os.path.dirname(path), "helper.py")
    for number in (1, 2):
        with open(beside, "w", encoding="utf-8") as file:
            file.write(f"import numpy\ndef weights(gram): return {number}.0 * numpy.ones("
                       f"len(gram))\n")
        sys.modules.pop("helper", None)
        plugins.BESIDE.clear()
        if number == 1:
            with signalled_at(2):
                out = run_train("--option", f"{path}:mine", steps=4)[1]
        else:
            status, _, errors = resume(out)
            assert_one_line(status, errors, os.path.join("option", "helper.py"), "not what")
    # Ours and Python's come first.
    for name, thing, beside in (("multitask", "pcgrad", "multitask.py"),
                                ("json", "dumps", "json.py"),
                                ("tools", "running", os.path.join("tools", "__init__.py"))):
        path = user_file(f"if 1:\n    from {name} import {thing} as mine\n")
        own = os.path.join(os.path.dirname(path), beside)
        os.makedirs(os.path.dirname(own), exist_ok=True)
        with open(own, "w") as file:
            file.write(f"def {thing}(gram): pass\n")
        with assert_raises("line 2", f"import {name} gets", f"{beside}; rename that"):
            plugins.load(f"{path}:mine")


def test_3_3_treatment__numpys_and_pythons_random_numbers_survive_a_resume():
    path = user_file("import numpy, random, torch\nclass mine:\n    def __init__(self):\n"
                     "        self.own = random.random()\n    def __call__(self, gram):\n"
                     "        return numpy.full(len(gram), numpy.random.rand() + "
                     "random.random() + torch.rand(()).item())\n")
    flags = "--option", f"{path}:mine"
    whole = files_of(run_train(*flags, steps=5)[1])
    with signalled_at(2):               # its checkpoint tries __init__, which draws
        out = run_train(*flags, steps=5)[1]
    assert resume(out)[0] == 0
    assert_equal(files_of(out), whole)


def test_3_3_treatment__state_that_comes_too_late_is_said_at_its_checkpoint():
    path = user_file("import numpy\nclass State:\n    pass\nclass mine:\n"
                     "    calls, late = 0, None\n    def __call__(self, gram):\n"
                     "        self.calls += 1\n        if self.calls > 2:\n"
                     "            self.late = State()\n            self.late.n = 3\n"
                     "        return numpy.ones(len(gram))\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status = run_train("--option", f"{path}:mine", "--checkpoint-every", 2, steps=5)[0]
    said = [str(w.message) for w in caught]
    assert status == 0 and "cannot be resumed" in said[0] and "mine.py" in said[0], said


def test_3_3_treatment__a_time_limit_and_ctrl_c_are_not_the_files_mistakes():
    for error in (KeyboardInterrupt, running.TooLong):
        assert not issubclass(error, plugins.OWN), error


def test_3_3_treatment__a_files_dtype_and_warning_filters_stay_in_it():
    path = user_file("import warnings\nimport numpy as np\nimport torch\n"
                     "torch.set_default_dtype(torch.float64)\n"
                     "warnings.simplefilter('error')\n"
                     "def f(gram): return np.eye(len(gram))\n")
    before = torch.get_default_dtype(), list(warnings.filters)
    status, _, errors = run_train("--option", f"{path}:f", steps=2)
    assert_equal(status, 0, errors)
    assert_equal((torch.get_default_dtype(), warnings.filters), before)


def test_3_3_task_weights__multiply_the_losses_and_the_log_stays():
    logs = [log_of(run_train("--option", "pcgrad", "--dropout", 0, *flags, steps=1)[1])[0]
            for flags in ((), ("--task-weights", "sst=2,sts=.5"))]
    for name, factor in (("sst", 2), ("para", 1), ("sts", .5)):
        assert_close(logs[1][f"norm_{name}"], factor * logs[0][f"norm_{name}"], 0,
                     relative=1e-4)
        assert_equal(logs[1][f"loss_{name}"], logs[0][f"loss_{name}"])
    for weights, words in (("nli=2", ["nli"]), ("sst=0", ["above 0"]), ("sst", ["sst"])):
        status, _, errors = run_train("--task-weights", weights)
        assert_one_line(status, errors, "--task-weights", *words)


def test_3_3_treatment__a_weighting_of_torchjd_by_its_name():
    skip_without_torchjd()
    treatment = plugins.PerUnit("torchjd:PCGrad", plugins.load("torchjd:PCGrad"), 1,
                                multitask.call_treatment)
    # the example of torchjd's own documentation, J = [[-4, 1, 1], [6, 1, 1]]
    got = treatment(np.array([[[18.0, -22], [-22, 38]]]))
    assert_close(got, [[2.222222, 1.578947]], 1e-5)
    vaccine = plugins.load("torchjd:GradVac,beta=0.25")()
    assert_equal(vaccine.weighting.beta, .25)
    for name, words in (("Best", ["UPGrad"]), ("GradVac,gamma=1", ["gamma"]),
                        ("Mean", ["Gramian"]), ("CAGrad,c=nan", ["needed a number"]),
                        ("CAGrad,c=1,c=2", ["twice"])):
        with assert_raises(*words):
            plugins.load(f"torchjd:{name}")
    assert_equal(plugins.load("torchjd:Krum,n_byzantine=0")()(np.eye(3)).shape, (3,))
    status, out, errors = run_train("--option", "torchjd:MGDA", "--con")
    assert status == 0, errors
    first = log_of(out)[0]
    coefficients = [first[f"coefficient_{name}"] for name in ("sst", "para", "sts")]
    assert_close(sum(coefficients), 1, 1e-5)


def test_3_3_treatment__a_new_one_is_one_line_in_the_registry():
    multitask.TREATMENTS["half"] = lambda args: (
        lambda gram: .5 * np.ones(gram.shape[:-1]))
    try:
        status, out, errors = run_train("--option", "half", "--con")
        assert status == 0, errors
        assert_equal(log_of(out)[0]["coefficient_sts"], .5)
        training, _ = training_of("--option", "half")
        assert_equal(len(set(training.rows.values())), 3, "one row of G for each task")
    finally:
        del multitask.TREATMENTS["half"]
