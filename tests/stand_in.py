"""A device that stands in for Apple's GPU (mps), which the tests' machine need not have.

    with on_stand_in():
        run_train("--device", "standin")

To torch it is a device like any other: tensors are there or on the CPU, an operation needs
all of its tensors in one place, `.to()` copies. It computes as the CPU does, so that a run
there can be compared with one on the CPU. As on MPS,

    no tensor can be float64 there;
    random numbers come from a generator of its own, torch.standin.get_rng_state();
    there are no sparse tensors.

Why not a mock: what is put on it in the wrong type, or read from the wrong generator, is
found wherever in the code it happens. What it cannot show is whether MPS's own kernels are
right. It registers itself with torch for the whole process, so use it in one of its own.
"""

import contextlib
import types

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

NAME = "standin"
HELD_BACK = set()           # operations that it lacks, such as "_fused_adamw_"
library = torch.library.Library("aten", "IMPL")
calls = []                  # the names of all operations that ran there


class Generator(types.ModuleType):
    """torch.standin: what torch asks of a device's module, and its random generator."""

    def __init__(self):
        super().__init__(f"torch.{NAME}")
        self.state = torch.Generator().manual_seed(99).get_state()

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def _is_in_bad_fork(self):
        return False

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]

    def manual_seed_all(self, seed):
        self.state = torch.Generator().manual_seed(seed + 1).get_state()

    def get_rng_state(self, device=None):
        return self.state.clone()

    def set_rng_state(self, state, device=None):
        self.state = state.clone()

    @contextlib.contextmanager
    def drawing(self):
        """Within this, the CPU's operations draw from the device's generator."""
        cpu = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(cpu)


class There(torch.Tensor):
    """A tensor on the device; `held`: its numbers, a tensor on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        if held.dtype == torch.float64:
            raise TypeError("the device has no float64")
        if held.layout != torch.strided:
            raise TypeError("the device has no sparse tensors")
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=torch.device(NAME, 0))
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def data_ptr(self):
        return self.held.data_ptr()

    def tolist(self):
        return self.held.tolist()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):      # torch would exchange the wrapper, not what it holds
        self.held = other.held

    def __deepcopy__(self, memo):
        copied = There(self.held.detach().clone())
        is_parameter = isinstance(self, torch.nn.Parameter)
        return torch.nn.Parameter(copied) if is_parameter else copied

    def __reduce_ex__(self, protocol):      # torch.save(): read back as on the CPU
        return self.held.detach().__reduce_ex__(protocol)


def run(func, args, kwargs):
    """An operation on tensors that are there, or that is asked for a tensor there."""
    name = func.overloadpacket.__name__
    flat = [x for arg in (*args, *kwargs.values())
            for x in (arg if isinstance(arg, (list, tuple)) else [arg])]
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    place = kwargs.get("device")
    if place is None:
        is_there = bool(there)
    else:
        is_there = torch.device(place).type == NAME
    if not there and not is_there:
        return func(*args, **kwargs)
    if name in HELD_BACK:
        raise NotImplementedError(f"Could not run 'aten::{name}' on the device")
    apart = [x for x in tensors if x.dim() and not isinstance(x, There)]
    if there and apart and name not in ("copy_", "_to_copy", "index"):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    calls.append(name)

    def held(x):
        if isinstance(x, (list, tuple)):
            return [held(part) for part in x]
        return x.held if isinstance(x, There) else x
    inner = {key: held(value) if key != "device" else torch.device("cpu")
             for key, value in kwargs.items()}
    draws = torch.Tag.nondeterministic_seeded in func.tags
    with torch.standin.drawing() if draws and is_there else contextlib.nullcontext():
        out = func(*held(args), **inner)
    if name == "copy_":
        return args[0]
    if not is_there:
        return out
    if isinstance(out, (list, tuple)):
        out = type(out)(There(x) if isinstance(x, torch.Tensor) else x for x in out)
    elif isinstance(out, torch.Tensor):
        out = There(out)
    return return_and_correct_aliasing(func, args, kwargs, out)


class Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@contextlib.contextmanager
def on_stand_in():
    """Within this, torch knows the device "standin"."""
    if not hasattr(torch, NAME):
        backend_registration._setup_privateuseone_for_python_backend(
            NAME, backend_module=Generator())
        # torch.tensor() asks for these where no mode is heard.
        library.impl("empty_strided", lambda size, stride, *, dtype, **_: There(
            torch.empty_strided(size, stride, dtype=dtype)), "PrivateUse1")
        library.impl("_copy_from", lambda source, target, *_: target.held.copy_(source),
                     "PrivateUse1")
    with Everywhere():
        yield
