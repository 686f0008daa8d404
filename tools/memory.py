"""What one update needs of memory: computed for any shape of BERT, measured where it fits.

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
import weakref

import torch
import torch.nn.functional as F

import bert
import data
import heads
import smart
from tools import timing

ROWS, LENGTH = 16, 128          # a batch of Table 1, in which a text fills 128 tokens


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


def activations(make, config, rows=ROWS, length=LENGTH) -> float:
    """Bytes of activations for a model of this shape.

    make(config) -> a bench.Ours of that shape.
    """
    counted = {}
    for L in (1, 2):
        # A short vocabulary saves time: the table of embeddings is no activation.
        ours = make(dataclasses.replace(config, num_hidden_layers=L, vocab_size=100))
        for R in (1, 2):
            counted[L, R] = saved_bytes(ours, batch_of(R, length, ours.flat.theta.device))

    def at_rows(L):         # the line through two points
        return counted[L, 1] + (counted[L, 2] - counted[L, 1]) * (rows - 1)
    return at_rows(1) + (at_rows(2) - at_rows(1)) * (config.num_hidden_layers - 1)


def peak(make, config, device, autocast, rows=ROWS, length=LENGTH) -> float:
    """Bytes that two steps add to this process, which does nothing else."""
    # Libraries, and the kernels that only the first matrix product loads, are not the
    # step's.
    with autocast():
        F.linear(torch.ones(64, 64, requires_grad=True, device=device),
                 torch.ones(64, 64, requires_grad=True, device=device)).sum().backward()
    before = timing.process_memory(device, "VmRSS")
    ours = make(config)
    short, long = batch_of(2, 8, device), batch_of(rows, length, device)
    names = list(ours.training.rows)
    ours.step(dict.fromkeys(names, short))              # AdamW makes m and v
    # Each task's activations are gone before the next one's come: one long batch will do.
    ours.step({**dict.fromkeys(names, short), names[-1]: long})
    return timing.process_memory(device, "VmHWM") - before
