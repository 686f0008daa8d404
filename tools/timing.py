"""Time two sides in turn, compare them with a roofline, and show the lines as a table.

The roofline is the least time that the machine needs: floating-point operations over its
speed in a matrix product, plus bytes over its bandwidth.

Symbols: H features, L layers, I intermediate features, R rows of T tokens in a batch.
"""

import dataclasses
import functools
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

import bert
import data
from plumbing import folder, machine, reading

# --- Lines of the table ---

@dataclasses.dataclass
class Line:
    """Two sides of one measurement, in seconds unless `what` says otherwise."""
    what: str
    against: str
    target: float | None        # the largest ratio that we accept, if we set one
    ours: float
    theirs: float
    roofline: float
    note: str = ""

    @property
    def ratio(self):
        return self.ours / self.theirs

    def cells(self):
        ratio = f"{self.ratio:.2f}"
        if self.target is not None and self.ratio > self.target:
            ratio = f"**{ratio}**"
        target = "" if self.target is None else f"≤ {self.target:g}"
        return [self.what, self.against, digits(self.ours), digits(self.theirs), ratio,
                target, digits(self.roofline), f"{self.ours / self.roofline:.1f}",
                self.note]


@dataclasses.dataclass
class Skipped:
    """A measurement that this machine cannot make."""
    what: str
    skipped: str                # why

    def cells(self):
        return [self.what, *[""] * 7, f"skipped: {self.skipped}"]


@dataclasses.dataclass
class Memory:
    """GB that an update needs, computed, and measured where the machine has room."""
    shape: str
    flags: str
    precision: str              # of the forward passes
    computed: float
    parts: dict                 # {name: GB}
    measured: float | None

    FITS = (6, 8, 16, 24)       # GB of common GPUs
    RESERVED = 1.0              # GB that libraries and gaps take there

    @property
    def fits(self):
        """The smallest of FITS that has room; None if none has."""
        return next((size for size in self.FITS
                     if self.computed * 1.1 + self.RESERVED <= size), None)

    def cells(self):
        measured = "" if self.measured is None else (
            f"{self.measured:.2f} ({self.measured / self.computed:.2f})")
        return [self.shape, self.flags, self.precision, f"{self.computed:.2f}",
                " + ".join(f"{name} {size:.2f}" for name, size in self.parts.items()),
                measured, f"{self.fits} GB" if self.fits else "none of these"]


def digits(value):
    """Three digits: 0.0852, 2.71, 427"""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table(header, rows):
    """-> the lines of a Markdown table, and an empty one"""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|",
            *(f"| {' | '.join(cells)} |" for cells in rows), ""]


def line_of(path, fields):
    """A line as it stands in a results file, path.   Raises ValueError"""
    kind = next((kind for word, kind in (("skipped", Skipped), ("parts", Memory))
                 if word in fields), Line)
    try:
        line = kind(**fields)
        table([], [line.cells()])
    except (TypeError, ValueError, AttributeError, ZeroDivisionError):
        raise reading.mistake(path, "a line of bench.py's table", fields) from None
    return line


@dataclasses.dataclass
class Result:
    """What a results file holds: measurements of one machine, by one or more calls."""
    machine: str
    repeats: dict               # {name of a measurement: rounds of which it is the median}
    lines: dict                 # {name: [Line, Memory or Skipped, …]}
    rates: dict                 # {name: {what: number}}, which its rooflines are from

    @classmethod
    def begin(cls, path, machine):
        """PATH.json's, to go on with, or an empty one.   Raises ValueError

        Nothing that is already there is lost: not another machine's lines, no other file.
        """
        if not os.path.exists(path + ".json"):
            if os.path.exists(path + ".md"):
                raise ValueError(f"{path}.md is a page of its own, without {path}.json; "
                                 f"give another --out")
            return cls(machine, {}, {}, {})
        try:
            result = cls.read(path + ".json")
        except ValueError as error:
            raise ValueError(f"{error}; give another --out") from None
        if result.machine != machine:
            raise ValueError(f"{path}.json was measured on another machine or clock "
                             f"({result.machine}), this is {machine}; give another --out")
        return result

    @classmethod
    def read(cls, path):
        """Raises ValueError if the file is not one that bench.py wrote."""
        fields = reading.read_json(path, {"machine": str, "repeats": object, "lines": dict,
                                          "rates": dict}, only=True)
        names = fields["lines"]
        if not isinstance(fields["repeats"], dict):     # before: the last call's, for all
            for key in ("repeats", "rates"):
                fields[key] = dict.fromkeys(names, fields[key])
        reading.check_fields(path, fields["repeats"], dict.fromkeys(names, int))
        reading.check_fields(path, fields["rates"], dict.fromkeys(names, dict))
        fields["lines"] = {name: [line_of(path, line) for line in
                                  reading.check_list(path, lines, dict)]
                           for name, lines in names.items()}
        return cls(**fields)

    def keep(self, name, lines, repeats, rates, order):
        """A measurement's lines in place of its old ones; order: of the table's names."""
        self.lines[name], self.repeats[name], self.rates[name] = lines, repeats, rates
        known = [name for name in order if name in self.lines]
        others = [name for name in self.lines if name not in order]
        self.lines = {name: self.lines[name] for name in known + others}

    def markdown(self):
        """The tables, for a file and for the documentation."""
        timed, memory, rounds = [], [], []
        for name, lines in self.lines.items():
            for line in lines:
                if isinstance(line, Memory):
                    memory.append(line.cells())
                    continue
                timed.append(line.cells())
                rounds.append(None if isinstance(line, Skipped) else self.repeats[name])
        numbers = sorted(set(rounds) - {None}) or sorted(set(self.repeats.values()))
        of = " or ".join(map(str, numbers))
        if len(numbers) > 1:
            of += ", as each line says"
            for cells, number in zip(timed, rounds):
                if number is not None:
                    cells[-1] = "; ".join(filter(None, [cells[-1], f"median of {number}"]))
        said = (f" Seconds unless said otherwise; medians of {of}; a missed target in bold."
                if timed else "")
        lines = [f"{self.machine}.{said}", ""]
        if timed:
            lines += table(["what", "against", "ours", "theirs", "ratio", "target",
                            "roofline", "ours / roofline", "note"], timed)
        if memory:
            lines += table(["model", "flags", "forward passes in", "GB, computed", "of it",
                            "measured (by computed)", "fits a GPU of"], memory)
        return "\n".join(lines).rstrip() + "\n"

    def write(self, path):
        """PATH.json and PATH.md"""
        folder.write_json(path + ".json", dataclasses.asdict(self))
        with open(path + ".md", "w", encoding="utf-8", newline="\n") as file:
            file.write(self.markdown())


def own_place(start, machine):
    """start, or start-2, start-3, …: the first without another machine's measurements."""
    number, path = 1, start
    while (os.path.exists(path + ".json")
           and Result.read(path + ".json").machine != machine):
        number += 1
        path = f"{start}-{number}"
    return path


# --- Clocks and rooflines ---

# AdamW reads θ, g, m, v and writes θ, m, v: seven float32 numbers for each parameter.
ADAMW_BYTES = 28


@dataclasses.dataclass(frozen=True)
class Precision:
    """Of the forward passes."""
    name: str
    dtype: torch.dtype


BFLOAT16 = Precision("bfloat16", torch.bfloat16)
FLOAT32 = Precision("float32", torch.float32)


def autocast(device, precision):
    """A context for forward passes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == BFLOAT16)


def seconds(f, clock):
    """How long f() takes, on a GPU until all of its work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def alternate(sides, repeats, clock):
    """Each side once to warm up, then in turn.   -> median seconds of each

    In turn, so that a machine that becomes slower or busier does so for both.
    """
    for side in sides:
        side()
    rounds = [[seconds(side, clock) for side in sides] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*rounds)]


def matmul_speed(device, dtype, H, clock, tokens=512):
    """Operations per second in x Wᵀ, W [4H, H]: what a forward pass mostly is."""
    x = torch.randn(tokens, H, device=device, dtype=dtype)
    W = torch.randn(4 * H, H, device=device, dtype=dtype)

    def products():
        for _ in range(20):
            F.linear(x, W)
    products()
    return 20 * 8 * tokens * H * H / min(seconds(products, clock) for _ in range(5))


def measure_bandwidth(device, clock):
    """Bytes per second: the better of reading 400 MB and of adding them to another 400."""
    a = torch.ones(100_000_000, device=device)
    b = torch.ones_like(a)
    read = min(seconds(a.sum, clock) for _ in range(4))
    added = min(seconds(lambda: b.add_(a), clock) for _ in range(4))
    return max(4 * len(a) / read, 12 * len(a) / added)


def matrix_parameters(config):
    """Numbers in the layers' matrices: L (4 H² + 2 H I)."""
    H = config.hidden_size
    return config.num_hidden_layers * (4 * H * H + 2 * H * config.intermediate_size)


def forward_operations(config, batches):
    """Operations of one forward pass of each batch, including padding and attention."""
    H, L = config.hidden_size, config.num_hidden_layers
    return sum(2 * R * T * (matrix_parameters(config) + 2 * L * T * H)
               for R, T in (batch.input_ids.shape for batch in batches.values()))


def process_memory(device, entry):
    """Bytes of this process, now ("VmRSS") or at most ("VmHWM"); on a GPU at most.

    Trap: not getrusage(). Its maximum begins with that of the process that started this
    one, whatever it was.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if entry in line)


def free_memory(device):
    """Bytes that this process could still get, or nearly."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            return next(1024 * int(line.split()[1]) for line in file
                        if line.startswith("MemAvailable"))
    except OSError:
        return 0


class Machine:
    """A device, the clock to measure it by, and what it can do."""

    def __init__(self, device, clock):
        self.device, self.clock = device, clock
        self.autocast, self.why = machine.choose_precision("auto", device)
        if machine.is_float16(self.autocast, device):       # only bfloat16 is measured
            self.autocast, self.why = machine.choose_precision("off", device)
        with self.autocast():
            has_bfloat16 = torch.is_autocast_enabled(device.type)
        self.precisions = [BFLOAT16, FLOAT32] if has_bfloat16 else [FLOAT32]
        self.precision = self.precisions[0]         # the one that --amp auto chooses

    def measure(self, configs):
        """What roofline() needs for these models.   -> {what: number}, for the file"""
        self.speed = {(precision, H): matmul_speed(self.device, precision.dtype, H,
                                                   self.clock)
                      for precision in reversed(self.precisions)
                      for H in sorted({config.hidden_size for config in configs})}
        self.bandwidth = measure_bandwidth(self.device, self.clock)
        rates = {f"{precision.name}, H = {H}, 1e9 operations a second": speed / 1e9
                 for (precision, H), speed in self.speed.items()}
        rates["GB a second"] = self.bandwidth / 1e9
        return rates

    def roofline(self, config=None, operations=0, precision=FLOAT32, bytes=0):
        """The least time for so many operations in matrix products, and bytes.   -> s"""
        computing = (operations / self.speed[precision, config.hidden_size] if operations
                     else 0.0)
        return computing + bytes / self.bandwidth

    def description(self):
        """Model, cores, threads, versions: what a ratio may depend on."""
        processor, about = [], machine.description(self.device, self.why)
        if self.device.type == "cuda":
            processor = [torch.cuda.get_device_name()]
        elif os.path.exists("/proc/cpuinfo"):
            with open("/proc/cpuinfo") as file:
                processor = [line.split(":")[1].strip() for line in file
                             if "model name" in line][:1]
        threads = "1 thread" if about["threads"] == 1 else f"{about['threads']} threads"
        clock = "cpu" if self.clock is time.process_time else "wall"
        return ", ".join([*processor, f"{about['cores']} cores", threads, about["cpu"],
                          f"torch {about['torch']}", self.why, f"{clock} time"])


# --- The encoder alone ---

def both_encoders(config, kernel, device):
    """Ours and the one of `transformers`, with the same random weights, in training.

    kernel: its attn_implementation, "eager" or "sdpa". Gradients add up, from zeros.
    """
    import transformers
    ours = bert.BertModel(config)
    ours.word_embeddings.sparse = device.type == "cpu"          # as train.prepare() does
    theirs = transformers.BertModel(transformers.BertConfig(
        **dataclasses.asdict(config), attn_implementation=kernel))
    theirs.load_state_dict({bert.checkpoint_name(name): p
                            for name, p in ours.state_dict().items()})
    for model in (ours, theirs):
        model.to(device).train()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
    return ours, theirs


def encoders(setup, rows, tokens):
    """Forward and backward pass of the same ids, in float32, no padding.   -> [Line, …]"""
    def both_passes(model, ids, gradient):
        model(ids)["last_hidden_state"].backward(gradient)

    lines = []
    for (shape, config), kernel in itertools.product(setup.shapes.items(),
                                                     ("eager", "sdpa")):
        ours, theirs = both_encoders(config, kernel, setup.device)
        T = min(tokens, config.max_position_embeddings)
        ids = torch.randint(config.vocab_size, (rows, T), device=setup.device)
        gradient = torch.randn(rows, T, config.hidden_size, device=setup.device)
        forward = forward_operations(config, {"": data.Batch(ids, None, None, None)})
        lines.append(setup.compare(
            f"encoder, forward and backward, {shape}, float32",
            f"`transformers`' BertModel, {kernel}", .9,
            functools.partial(both_passes, ours, ids, gradient),
            functools.partial(both_passes, theirs, ids, gradient),
            setup.roofline(config, 3 * forward), f"{rows} rows of {T} tokens"))
    return lines


# --- Several processes ---

def sent(size, world):
    """What each of N processes sends to add up so many bytes, in a ring: 2 (N - 1) / N size

    Each is to get the sum of a part of its own first, then everybody's parts.
    """
    return 2 * (world - 1) / world * size


def adding_up(setup, step):
    """One row, and three, of bert-base's G over two processes; step: seconds of one step.
    """
    with torch.device("meta"):
        P = sum(p.numel() for p in bert.BertModel(bert.BertConfig()).parameters())
    return [Line(f"adding up {rows} P numbers over 2 processes, bert-base",
                 "our step in one process", None,
                 all_reduce(2, rows * P, setup.repeats, setup.machine.clock), step,
                 setup.roofline(bytes=sent(4 * rows * P, 2)),
                 f"{4 * rows * P / 1e6:,.0f} MB in each update")
            for rows in (1, 3)]


def all_reduce(world, numbers, repeats, clock):
    """Median seconds in which gloo adds up so many float32 over processes of this machine.
    """
    ctx = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        queue, place = ctx.SimpleQueue(), "file://" + os.path.join(folder, "store")
        processes = [ctx.Process(target=add_up, args=(
            rank, world, numbers, repeats, clock, place, queue)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            if process.exitcode:        # it has put nothing into the queue
                raise RuntimeError(f"a process ended with status {process.exitcode}")
        return max(queue.get() for _ in processes)


def add_up(rank, world, numbers, repeats, clock, place, queue):
    """One of the processes of all_reduce()."""
    dist.init_process_group("gloo", place, rank=rank, world_size=world)
    G = torch.ones(numbers)
    took, = alternate([lambda: dist.all_reduce(G)], repeats, clock)
    queue.put(took)
    dist.destroy_process_group()


# --- Padding ---

@dataclasses.dataclass
class Epoch:
    """The examples that each of its steps takes: {task name: indices}."""
    steps: list
    lengths: dict               # {task name: tokens of each example [N]}

    def tokens(self, step):
        """With padding."""
        return sum(len(indices) * self.lengths[name][indices].max()
                   for name, indices in step.items())

    def sample(self, number):
        """So many steps, evenly spread over the lengths.   -> Epoch"""
        by_size = sorted(self.steps, key=self.tokens)
        places = ((np.arange(number) + .5) * len(by_size) / number).astype(int)
        return Epoch([by_size[place] for place in places], self.lengths)

    @property
    def padded(self):
        return sum(map(self.tokens, self.steps))

    @property
    def real(self):
        return sum(self.lengths[name][indices].sum() for step in self.steps
                   for name, indices in step.items())
