"""Several processes, one run: each takes some rows of every batch, and gradients are added.

    torchrun --nproc-per-node 4 train.py …

torchrun starts N processes of the same command, the *ranks* 0 to N - 1. All of them hold
the whole of θ and make the same updates. Who does what:

    on_slice(), summed()        a rank's rows of a batch; G and the losses added up
    share(), gather()           a rank's batches of an evaluation; all logits together
    from_first()                what has to be the same everywhere comes from rank 0
    joined(), opened()          only rank 0 prints and writes; the end of one ends all

Symbols: N ranks, n examples in a batch, n_r of them on rank r. CPUs are joined by gloo,
GPUs by nccl. With one process every function here returns what it was given, at once.
Leaves out: parts of θ on each rank; adding up while the backward pass still runs.
"""

import contextlib
import dataclasses
import functools
import io
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from plumbing import console, folder
from plumbing.files import content_digest


@dataclasses.dataclass
class Here:
    """This process among all."""
    rank: int = 0
    world: int = 1              # N
    store: Any = None           # a torch Store: small notes, when nothing else works
    stderr: Any = None          # the real one; sys.stderr may be a Held
    path: str = ""              # of the run's folder, once it is about to be opened
    between: Callable = lambda: None    # called between two items of share()
    lost: bool = False          # has another process ended?


here = Here()
PATIENCE = 10.0     # seconds that rank 0 has to say what is wrong, before another rank does


def first() -> bool:
    """Is this rank 0, which alone prints and writes?"""
    return here.rank == 0


# --- A step ---

def span(n: int) -> slice:
    """This rank's rows of n: 10 rows on three ranks are 0 to 2, 3 to 5, 6 to 9."""
    return slice(here.rank * n // here.world, (here.rank + 1) * n // here.world)


def on_slice(loss_fn):
    """loss_fn of this rank's rows of a batch, as its part of the whole batch's mean.

        𝓛 = 1/n Σ_i ℓ_i = Σ_r (n_r / n) 𝓛_r          𝓛_r = 1/n_r Σ_i ℓ_i,  i on rank r

    loss_fn(task, batch, randn_like=…, **more) -> (scalar mean, {name: scalar mean}), as
    train.Training.loss(); so is what is returned, each value times n_r / n. The gradient of
    a sum is the sum of gradients, so adding G up over ranks gives 𝓛's. The batch was padded
    as a whole, so T is the same on all ranks.
    By hand: four losses 1, 2, 3, 6 on three ranks, 1 | 2 | 3 6. The ranks' means are 1, 2
    and 4½, and ¼ · 1 + ¼ · 2 + ½ · 4½ = 3 = 12 / 4. Trap: their plain mean would be 2½, as
    if the rows of the larger slice counted less.
    """
    if here.world == 1:
        return loss_fn

    def of_slice(task, batch, **more):
        n, own = len(batch.labels), span(len(batch.labels))
        weight = (own.stop - own.start) / n
        if weight == 0:         # fewer rows than ranks: some row, which counts nothing
            own = slice(0, 1)

        def rows(tensor):       # [R, …] -> those of `own`; R is n, or 2n for pairs apart
            shape = tensor.shape[1:]
            return tensor.view(-1, n, *shape)[:, own].reshape(-1, *shape)

        def randn_like(x):
            # The noise of the whole batch, so that it is the same for any number of ranks.
            parts = x.size(0) // (own.stop - own.start)
            return rows(torch.randn_like(x.new_empty(parts * n, *x.shape[1:])))
        tensors = {name: rows(value) for name, value in vars(batch).items()
                   if value is not None}
        loss, log = loss_fn(task, dataclasses.replace(batch, **tensors),
                            randn_like=randn_like, **more)
        return weight * loss, {name: weight * value if weight else torch.zeros_like(value)
                               for name, value in log.items()}
    return of_slice


def summed(losses: dict, G, rows, regions) -> dict:
    """Add up over all ranks: the losses, and in place these rows of G, where it is trained.

    losses: {name: number}, the same names on all ranks; G [K, P]; rows: their numbers,
    which follow one another; regions: multitask.regions(). Trap: before the Gram matrix is
    formed. The treatments are not linear: treated parts don't add up to the treated whole.
    """
    if here.world == 1:
        return losses
    values = torch.tensor(list(losses.values()), dtype=torch.float64)
    part = G[min(rows):max(rows) + 1, trained(regions)]
    with together():
        dist.all_reduce(values)
        for piece in [part] if part.is_contiguous() else part:
            dist.all_reduce(piece)
    return dict(zip(losses, values.tolist()))


def trained(regions) -> slice:
    """The columns of G that any region covers: with --freeze those of the heads."""
    return slice(min(region.span.start for region in regions),
                 max(region.span.stop for region in regions))


def from_first(treatment):
    """The treatment, but what it returns is rank 0's: it may draw from any generator."""
    if here.world == 1:
        return treatment

    @functools.wraps(treatment, updated=())         # rng and losses are passed by name
    def agreed(gram, **more):
        result = said_by_first(treatment(gram, **more))
        agreed.target = getattr(treatment, "target", None)
        return result
    return agreed


def about(batch_size: int, G, regions) -> str:
    """What a run says at its start; nothing for one process."""
    if here.world == 1:
        return ""
    size = G[:, trained(regions)].numel() * G.element_size()
    return (f"  {here.world} processes, which share the {batch_size} examples of a batch; "
            f"{size / 1e6:,.2f} MB are added up over them in each update\n")


def begin(saved, training, args) -> str:
    """Before a run's first update.   -> what to say about its processes

    saved: the checkpoint to go on from, or None; training: a train.Training.
    """
    config = training.model.bert.config
    return about(args.batch_size, training.flat.G, training.regions) + start_generators(
        saved, training.flat.theta, args.seed,
        bool(config.hidden_dropout_prob or config.attention_probs_dropout_prob))


# --- Evaluation ---

def share(items: list):
    """Yields this rank's items: r, r + N, r + 2N, …   Between them all ranks may stop."""
    if here.world == 1:
        return items

    def own():
        for start in range(0, len(items), here.world):
            here.between()
            if start + here.rank < len(items):
                yield items[start + here.rank]
    return own()


def gather(results: list) -> list:
    """What every rank made of its items of share(), in the order of all items."""
    if here.world == 1:
        return results
    lists = gathered(results)
    return [lists[i % here.world][i // here.world] for i in range(sum(map(len, lists)))]


# --- Agreement ---

def gathered(value) -> list:
    """value of each rank, in their order; anything that can be pickled."""
    values = [None] * here.world
    with together():
        dist.all_gather_object(values, value)
    return values


def said_by_first(value):
    """Rank 0's value, on all ranks."""
    if here.world == 1:
        return value
    values = [value]
    with together():
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def largest(number: int) -> int:
    """Of all ranks' numbers."""
    if here.world == 1:
        return number
    tensor = torch.tensor(number)
    with together():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def check_same(what: str, value) -> None:
    """Raise ValueError if this value is not the same on all ranks."""
    if here.world > 1 and len(set(gathered(value))) > 1:
        raise ValueError(f"{what} differ between the processes of this run; needed the "
                         f"same files and the same kind of machine for all")


def fingerprint(theta) -> int:
    """A sum that changes with any bit of θ."""
    return int(theta.detach().view(torch.int32).sum(dtype=torch.int64))


# --- Checkpoints ---

def with_generators(state: dict) -> dict:
    """A checkpoint's state with the generators of all ranks, in "ranks"."""
    if here.world == 1:
        return state
    check_same("the parameters", fingerprint(state["theta"]))
    return {**state, "ranks": gathered(state["random"])}


def start_generators(saved, theta, seed: int, dropout: bool) -> str:
    """Give each rank's dropout random numbers of its own.   -> what to say about it

    saved: the checkpoint to go on from, or None. Without dropout all ranks draw the same
    numbers, as one process would. With dropout that would drop the same places in every
    slice. From a checkpoint of N ranks N go on as they were.
    """
    if here.world > 1:
        check_same("the parameters", fingerprint(theta))
    before = here.world if saved is None else len(saved.get("ranks", [None]))
    if not dropout or (saved is not None and before == here.world):
        return ""
    if here.rank > 0:
        step = saved["step"] if saved else 0
        mixed = np.random.SeedSequence([seed, here.rank, step]).generate_state(1)
        torch.manual_seed(int(mixed[0]))
    return "" if before == here.world else (
        f"  the checkpoint is from {before} process{'es' if before > 1 else ''}, now there "
        f"are {here.world}: dropout draws other random numbers\n")


class Guest(folder.Folder):
    """A run's folder for the ranks that read its checkpoint and write nothing."""

    def __init__(self, path, settings):
        self.path, self.state, self.settings_digest = path, None, settings.get("digest")
        self.saving, self.metrics = 0.0, open(os.devnull, "ab")
        self.read_checkpoint()
        ranks = (self.state or {}).get("ranks", [])
        if len(ranks) == here.world:
            self.state["random"] = ranks[here.rank]

    def log(self, line):
        pass

    def checkpoint(self, state):
        pass

    def replace_folder(self, name, write):
        pass

    def close(self):
        self.metrics.close()


def opened(make, path, settings):
    """make(path, settings) on rank 0; a Guest of the same folder on the others.

    make: Folder.create or Folder.reopen. Raises what it raises, on all ranks.
    """
    here.path = path
    if here.world == 1:
        return make(path, settings)
    # It also waits for ranks that are still checking that the folder is free.
    check_same("the data or the weights", content_digest(settings["digests"]))
    run, error = None, None
    if first():
        try:
            run = make(path, settings)
        except (ValueError, OSError) as problem:
            error = problem
    said = said_by_first(error and str(error))
    if said is not None:
        raise error or ValueError(said)
    return run or Guest(path, settings)


# --- Beginning and end ---

def device_name(name: str) -> str:
    """--device for this rank: with GPUs, each has its own.   Raises ValueError"""
    if here.world == 1:
        return name
    if name in ("auto", "cuda") and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", here.rank))
        number = torch.cuda.device_count()
        if local >= number:
            raise ValueError(f"needed a GPU for each process, this machine has {number}; "
                             f"use torchrun --nproc-per-node {number}, or --device cpu")
        torch.cuda.set_device(local)
        return f"cuda:{local}"
    if name not in ("auto", "cpu"):
        raise ValueError(f"--device {name}: several processes need --device cpu, or cuda "
                         f"and a GPU for each; leave it out")
    return "cpu"


def resuming(path) -> str:
    """What continues the run in this folder in as many processes."""
    start = "python" if here.world == 1 else f"torchrun --nproc-per-node {here.world}"
    return f"{start} train.py --resume {console.quoted(path)}"


class Held(io.TextIOBase):
    """A stream that keeps the end of what is written to it."""
    text = ""

    def write(self, text):
        self.text = (self.text + text)[-2000:]
        return len(text)


@contextlib.contextmanager
def joined():
    """The body runs as one of torchrun's processes, or alone as ever.

    Whatever ends one rank ends all: a mistake with its one line and its status, everything
    else with a line about it. The line is rank 0's if it has one to print.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if not (world.isdigit() and int(world) > 1 and "RANK" in os.environ):
        yield
        return
    join()
    try:
        yield
        largest(0)              # nobody leaves before all have done their work
        dist.destroy_process_group()
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else (
            130 if isinstance(error, KeyboardInterrupt) else 2)
        if here.lost:           # nccl would wait for the others for ever
            sys.stdout.flush()
            os._exit(status)
        if status:
            tell(status, isinstance(error, SystemExit))
        raise


def join():
    """Meet the other ranks, and fall silent unless this is rank 0."""
    if not dist.is_available():
        raise ValueError("this torch has no torch.distributed; start it without torchrun")
    store, here.rank, here.world = next(dist.rendezvous("env://"))
    here.store, here.stderr, here.lost = store, sys.stderr, False
    with together():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else
                                "gloo", store=store, rank=here.rank,
                                world_size=here.world)
        # Trap: a rank returns from there before others do. If it ended then, by a mistake
        # in a flag, gloo would let those wait for ever.
        largest(0)
    if not first():
        sys.stdout, sys.stderr = open(os.devnull, "w", encoding="utf-8"), Held()


@contextlib.contextmanager
def together():
    """Around everything that all ranks do at once: it fails if one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        here.lost = True
        # Now, not at the end of the program: torchrun is about to end this process too.
        status, why = 1, console.printable(str(error).split("\n")[0], 120)
        if not may_speak(PATIENCE / 10):
            with contextlib.suppress(RuntimeError):
                if here.store.check(["status"]):
                    status = int(here.store.get("status"))
        else:
            # Before that file is there, --resume has nothing to go on with.
            started = here.path and os.path.exists(os.path.join(here.path, "args.json"))
            more = f"; to continue: {resuming(here.path)}" if started else ""
            here.stderr.write(f"train.py: another process of this run has ended, so all do "
                              f"({why}){more}\n")
            here.stderr.flush()
        raise SystemExit(status) from None


def may_speak(patience: float) -> bool:
    """Has no other rank said why the run ends?   The others give rank 0 so many seconds"""
    try:
        end = time.monotonic() + patience
        while not (first() or here.store.check(["told"]) or time.monotonic() > end):
            time.sleep(0.05)
        return here.store.add("told", 1) == 1
    except RuntimeError:        # the store has ended with the process that held it
        return here.rank <= 1


def tell(status: int, told: bool):
    """Before this rank ends by itself: let its message through, or keep it back.

    told: was the message already written, to what may be a Held?
    """
    with contextlib.suppress(RuntimeError):
        here.store.set("status", str(status))
    speaks, held = may_speak(PATIENCE), sys.stderr
    sys.stderr = here.stderr if speaks else Held()
    if speaks and told and isinstance(held, Held):
        sys.stderr.write(held.text[held.text.rstrip().rfind("\n") + 1:])
