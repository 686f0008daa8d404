"""What one update needs of memory: computed for any shape of BERT, measured where it fits.

    lines()         of the table, for each shape, and for some flags of train.py
    numbers()       θ, G, AdamW's m and v, θ̃: known exactly
    activations()   what autograd keeps for the backward pass of one task
    peak()          of a process that takes a few steps and does nothing else

Activations are counted, not derived: the code that trains runs on models of one and two
layers, with one and two rows, and every tensor that autograd saves is looked at. Whatever
a batch of R rows needs in L layers is a + b R + L (c + d R), so four counts give any R and
L. (a and c are not 0: under autocast the 16-bit copies of the weights are kept too.)

Symbols: P parameters, K tasks, L layers, R rows of T tokens.
Leaves out: what the libraries need by themselves, and the allocator's gaps.
"""

import dataclasses
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import weakref

import torch
import torch.nn.functional as F

import bert
import data
import heads
import smart
from plumbing import sources
from tools import timing
from tools.timing import BFLOAT16, FLOAT32

ROWS, LENGTH = 16, 128          # a batch of Table 1, in which a text fills 128 tokens
LARGE = bert.BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                        intermediate_size=4096)


@dataclasses.dataclass(frozen=True)
class Case:
    """Flags of train.py, and what they mean for the step."""
    flags: str
    option: str
    terms: smart.Settings
    hlh: bool


CASES = {case.flags: case for case in (
    Case("rr --con", "rr", smart.Settings(weight=0.0, bregman_weight=0.0), False),
    Case("gvac --con", "gvac", smart.Settings(weight=0.0, bregman_weight=0.0), False),
    Case("gvac --smart --con --hlh", "gvac", smart.Settings(), True))}


# --- The table ---

def shapes(setup) -> dict:
    """{name: BertConfig} of the models that are looked at."""
    return {**setup.shapes, "bert-large": LARGE}


def lines(setup, make) -> list:
    """Computed for every shape, measured where that fits.   -> [timing.Memory, …]

    make(setup, case, precision, config) -> a bench.Ours.
    """
    can_measure = setup.device.type == "cuda" or os.path.exists("/proc/self/status")
    found = []

    @functools.cache        # without SMART and HLH, --option makes no difference to these
    def kept(shape, case, precision):
        return activations(functools.partial(make, setup, case, precision),
                           shapes(setup)[shape])
    for shape, config in shapes(setup).items():
        T = length_of(config)
        for case, precision in itertools.product(CASES.values(), (BFLOAT16, FLOAT32)):
            parts = numbers(config, case, setup.tokenizer)
            parts["activations"] = kept(
                shape, dataclasses.replace(case, flags="", option="gvac"), precision)
            total = sum(parts.values())
            # Larger ones would fit, but take a CPU many minutes.
            share = 0.25 if setup.device.type == "cpu" else 0.8
            fits = total < share * timing.free_memory(setup.device)
            measured = (measured_peak(setup, shape, case, precision) if can_measure
                        and fits and precision in setup.precisions else None)
            found.append(timing.Memory(
                shape if T == LENGTH else f"{shape}, {T} tokens", case.flags,
                precision.name, total / 1e9,
                {name: size / 1e9 for name, size in parts.items()}, measured))
    return found


def measured_peak(setup, shape, case, precision) -> float:
    """peak() in a process of its own.   -> GB"""
    words = [sys.executable, os.path.join(sources.ROOT, "tools", "bench.py"),
             "--data", setup.folder, "--weights", setup.weights,
             "--device", str(setup.device),
             "--child", json.dumps([shape, case.flags, precision.name])]
    child = subprocess.run(words, capture_output=True, text=True)
    if child.returncode:
        why = (signal.Signals(-child.returncode).name if child.returncode < 0 else
               (child.stderr.splitlines() or ["nothing"])[-1])
        raise ValueError(f"the memory of {shape}, {case.flags}, {precision.name} could not "
                         f"be measured: its process ended with {why}; make room, or use "
                         f"smaller --weights")
    return json.loads(child.stdout.splitlines()[-1]) / 1e9


def child_peak(setup, make, wanted) -> float:
    """In that process.   wanted: JSON of shape, flags, precision   -> bytes"""
    shape, flags, name = json.loads(wanted)
    precision = next(one for one in (BFLOAT16, FLOAT32) if one.name == name)
    return peak(functools.partial(make, setup, CASES[flags], precision),
                shapes(setup)[shape], setup.device,
                functools.partial(timing.autocast, setup.device, precision))


# --- Computed and measured ---

def length_of(config) -> int:
    """LENGTH tokens, or as many as the model has positions for: the sample's has 64."""
    return min(LENGTH, config.max_position_embeddings)


def numbers(config, case, tokenizer) -> dict:
    """Bytes of the vectors as long as θ.   -> {name: bytes}"""
    with torch.device("meta"):          # shapes alone: nothing is allocated
        model = heads.MultitaskBert(bert.BertModel(config), con=True, hlh=case.hlh,
                                    tokenizer=tokenizer)
    P = sum(p.numel() for p in model.parameters())
    rows = len(model.tasks) if case.option != "rr" else 1
    parts = {"θ": 4 * P, "G": 4 * P * rows, "AdamW": 8 * P}
    if case.terms.bregman_weight:
        parts["θ̃"] = 4 * P
    return parts


def batch_of(R, T, device):
    """R rows of T tokens, the last padded by one, so that there is a mask."""
    ids = torch.full((R, T), 5, device=device)
    mask = torch.ones(R, T, dtype=torch.long, device=device)
    mask[-1, -1] = 0
    return data.Batch(ids, torch.zeros_like(ids), mask, torch.zeros(R, device=device))


def saved_bytes(ours, batch) -> int:
    """What autograd keeps from a task's loss to its backward pass, each storage once."""
    training, packed = ours.training, []
    own = [ours.flat.theta, ours.flat.G]
    if training.teacher is not None:
        own.append(training.teacher.theta)
    resident = {t.untyped_storage().data_ptr() for t in own}

    def pack(tensor):
        packed.append(weakref.ref(tensor))
        return tensor
    ours.flat.attach(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total, _ = training.loss("para", batch)
    # Trap: only what is still alive. SMART's search for δ has freed a graph of its own.
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in (one() for one in packed) if t is not None}
    del total
    return sum(size for place, size in storages.items() if place not in resident)


def activations(make, config, rows=ROWS, length=None) -> float:
    """Bytes of activations for a model of this shape.

    make(config) -> a bench.Ours of that shape; length: of the rows, if not length_of().
    """
    counted, length = {}, length or length_of(config)
    for L in (1, 2):
        # A short vocabulary saves time: the table of embeddings is no activation.
        ours = make(dataclasses.replace(config, num_hidden_layers=L, vocab_size=100))
        for R in (1, 2):
            counted[L, R] = saved_bytes(ours, batch_of(R, length, ours.flat.theta.device))

    def at_rows(L):         # the line through two points
        return counted[L, 1] + (counted[L, 2] - counted[L, 1]) * (rows - 1)
    return at_rows(1) + (at_rows(2) - at_rows(1)) * (config.num_hidden_layers - 1)


def peak(make, config, device, autocast) -> float:
    """Bytes that two steps add to this process, which does nothing else."""
    # Libraries, and the kernels that only the first matrix product loads, are not the
    # step's.
    with autocast():
        F.linear(torch.ones(64, 64, requires_grad=True, device=device),
                 torch.ones(64, 64, requires_grad=True, device=device)).sum().backward()
    before = timing.process_memory(device, "VmRSS")
    ours = make(config)
    T = length_of(config)
    short, long = batch_of(2, min(8, T), device), batch_of(ROWS, T, device)
    names = list(ours.training.rows)
    ours.step(dict.fromkeys(names, short))              # AdamW makes m and v
    # Each task's activations are gone before the next one's come: one long batch will do.
    ours.step({**dict.fromkeys(names, short), names[-1]: long})
    return timing.process_memory(device, "VmHWM") - before
