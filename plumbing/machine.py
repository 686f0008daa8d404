"""What the machine can do, and the state of its random generators."""

import contextlib
import json
import os
import platform
import random
import re

import numpy as np
import torch

from plumbing.files import file_digest

# Most of what a run computes is in these files.
CODE = ("bert.py", "data.py", "heads.py", "multitask.py", "optim.py", "smart.py",
        "train.py", "plumbing/checkpoint.py", "plumbing/loop.py", "plumbing/ranks.py",
        "plumbing/tsv.py", "plumbing/vocabulary.py")


def find_device(name):
    """"auto" | "cpu" | "cuda" | "cuda:1" | "mps" -> torch.device

    auto is the first of devices(). Raises ValueError if this machine has no such device.
    """
    here, device = devices(), None
    try:
        device = torch.device(here[0] if name == "auto" else name)
        torch.zeros(1, device=device).item()        # "meta" has no numbers
        if device.type == "cpu" and device.index:   # torch takes any number
            raise ValueError("there is one CPU")
        if device.type == "mps" and "mps" not in here:
            raise ValueError("not here")            # or hidden, as from the tests
    except Exception as error:      # torch has another kind for each unknown device
        if device is not None and memory_asked(error):
            raise ValueError(f"--device {name}: the memory of {device} is full; end what "
                             f"fills it, or use another device") from None
        gpu = "; a GPU is called cuda, or mps on a Mac" if name.startswith("gpu") else ""
        raise ValueError(f"--device must be auto or a device of this machine, which has "
                         f"{', '.join(here)}; got {name!r}{gpu}") from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def devices() -> list:
    """What --device can name on this machine, the fastest first."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())
            ] if torch.cuda.is_available() else []
    return gpus + ["mps"] * torch.backends.mps.is_available() + ["cpu"]


def why_device(asked, device) -> str:
    """One line: the device, why it was chosen, and what else is there."""
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        line, count = f"{device}: {about.name}, {about.total_memory / 2 ** 30:.0f} GiB", (
            torch.cuda.device_count())
        # torchrun gives each process its rank.
        if count > 1 and "LOCAL_RANK" not in os.environ:
            line += (f", the only one used of {count} GPUs; for all of them: "
                     f"torchrun --nproc-per-node {count} train.py …")
        return line
    if asked != "auto":
        return f"{device}: given"
    if device.type == "mps":
        return "mps: Apple's GPU"
    built = torch.backends.cuda.is_built() or torch.backends.mps.is_built()
    return "cpu: no GPU found" + ("" if built else ", and this torch is built without them")


def advice(error, batch_size, accumulate):
    """What to raise for an error: itself, or one line if memory has run out."""
    asked = memory_asked(error)
    if asked is None:
        return error
    half = f"--batch-size {batch_size // 2} --accumulate {2 * accumulate}"
    return ValueError(f"out of memory, {asked} were asked for; " + (
        f"{half} takes as many examples an update with less" if batch_size % 2 == 0 else
        "use a smaller --batch-size"))


def memory_asked(error) -> str | None:
    """How much an allocation that failed has asked for; None for any other error."""
    text = str(error)
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and (
            not re.search("allocate memory|(not enough|out of) memory|ALLOC_FAILED", text)):
        return None
    found = re.search(r"allocate (\d[\d.]* \w+)", text)
    return found.group(1) if found else "more bytes than there are"


HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {"bf16": "bfloat16", "fp16": "float16"}
# Smaller changes of x are lost: 1 + 1e-5 is 1 in 16 bits (8 significant bits in bfloat16,
# 11 in float16). Measured: docs/devices.md.
SMALLEST_CHANGE = {"bf16": 1e-2, "fp16": 1e-3}


def is_float16(autocast, device) -> bool:
    """Do forward passes in the context that autocast() makes compute in float16?"""
    with autocast():
        return (torch.is_autocast_enabled(device.type)
                and torch.get_autocast_dtype(device.type) == torch.float16)


def choose_precision(amp, device, smallest_change=1.0):
    """--amp -> (a function that makes the context of a forward pass, why it was chosen).

    smallest_change: size of the smallest change to x that must survive rounding. With
    float16 losses must be scaled: see is_float16().
    """
    def autocast(dtype):
        return lambda: torch.autocast(device.type, dtype)

    if amp in HALVES:
        return autocast(HALVES[amp]), f"{NAMES[amp]} autocast (given)"
    if amp == "off":
        return contextlib.nullcontext, "float32 (given)"
    if device.type == "cuda":
        # Trap: without this a T4, the free GPU, says yes: it emulates, in float32's time.
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        # ATEN_CPU_CAPABILITY=avx2 makes a newer CPU compute as an older one (devices.md).
        has = torch.backends.cpu.get_cpu_capability() == "AVX512" and any(
            getattr(torch.cpu, f"_is_{unit}_supported", lambda: False)()
            for unit in ("avx512_bf16", "amx_tile"))
    else:
        return contextlib.nullcontext, f"float32 (16 bits on {device.type} are untried)"
    why = f"this {device.type} has {'it' if has else 'no bfloat16'}"
    if not has and device.type == "cpu":        # where float16 is slower than float32
        return contextlib.nullcontext, f"float32 ({why})"
    amp = "bf16" if has else "fp16"
    if smallest_change < SMALLEST_CHANGE[amp]:
        return contextlib.nullcontext, f"float32 (--smart-eps {smallest_change:g} needs it)"
    return autocast(HALVES[amp]), f"{NAMES[amp]} autocast ({why})"


def description(device, precision):
    """What a result may depend on, for args.json."""
    gpu = ({"gpu": torch.cuda.get_device_properties(device).name}
           if device.type == "cuda" else {})
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return {"device": str(device), **gpu, "precision": precision,
            "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__, "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count(),
            **{name: file_digest(os.path.join(root, name))[:12] for name in CODE}}


def seed(number):
    """Of all random numbers; our code draws torch's alone, a treatment or task any."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def random_states(device):
    """All generators that a run on this device draws from.   -> a dict for a checkpoint"""
    states, of_numpy = {"cpu": torch.get_rng_state()}, np.random.get_state()
    if isinstance(of_numpy, tuple):     # not where somebody has set another bit generator
        kind, key, *rest = of_numpy
        states["others"] = json.dumps([[kind, key.tolist(), *rest], random.getstate()])
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_random_states(states, device):
    """What random_states() returned; a generator that it lacks stays as it is."""
    torch.set_rng_state(states["cpu"])
    if "others" in states:
        of_numpy, (version, key, gauss) = json.loads(states["others"])
        np.random.set_state(tuple(of_numpy))
        random.setstate((version, tuple(key), gauss))
    if device.type in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type], device)
