"""How fast it is beside what people would use instead: ratios, measured in one run.

    python tools/bench.py [WORD …] [--data DIR] [--weights DIR|NAME] [--out results/bench]

With WORDs only the lines that contain one of them; the others stay as they are in the
file, if it is from the same machine. Each line alternates the two sides and shows medians.
The floor is what the machine would need at the least: floating-point operations over its
rate in a matrix product, plus bytes over its bandwidth, both measured at the start of the
run.

Symbols: P parameters, H features, L layers, R rows of T tokens in a batch.
Leaves out: loading, the two sides' start, anything on more than one device. Models have
random weights, which takes the same time, in the shape of MiniLM (or of --weights) and in
that of bert-base.
"""

import argparse
import copy
import csv
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import bert                                                         # noqa: E402
import data                                                         # noqa: E402
import heads                                                        # noqa: E402
import multitask                                                    # noqa: E402
import optim                                                        # noqa: E402
import train                                                        # noqa: E402
from plumbing import machine, run, sources                          # noqa: E402

MINILM = dict(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)


# --- Clocks and rates ---

def seconds(f, clock):
    """How long f() takes, on a GPU until all of its work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def alternate(world, *sides):
    """Each side once to warm up, then in turn.   -> median seconds of each

    In turn, so that a machine that becomes slower or busier does so for both.
    """
    for side in sides:
        side()
    times = [[seconds(side, world.clock) for side in sides]
             for _ in range(world.args.repeats)]
    return [statistics.median(column) for column in zip(*times)]


def matmul_rate(world, dtype, H, tokens=512):
    """Operations a second in x Wᵀ, W [4H, H]: what a forward pass mostly is."""
    x = torch.randn(tokens, H, device=world.device, dtype=dtype)
    W = torch.randn(4 * H, H, device=world.device, dtype=dtype)

    def products():
        for _ in range(20):
            F.linear(x, W)
    products()
    return 20 * 8 * tokens * H * H / min(seconds(products, world.clock) for _ in range(5))


def bandwidth(world):
    """Bytes a second, the better of reading 400 MB and of adding them to 400 others."""
    a = torch.ones(100_000_000, device=world.device)
    b = torch.ones_like(a)
    return max(bytes / min(seconds(f, world.clock) for _ in range(4))
               for bytes, f in ((4 * len(a), a.sum), (12 * len(a), lambda: b.add_(a))))


def matrices(config):
    """Numbers in the layers' matrices: L (4 H² + 2 H I)."""
    H = config.hidden_size
    return config.num_hidden_layers * (4 * H * H + 2 * H * config.intermediate_size)


def forward_operations(config, batches):
    """Of one pass of each batch, padding and attention included."""
    H, L = config.hidden_size, config.num_hidden_layers
    return sum(2 * R * T * (matrices(config) + 2 * L * T * H)
               for R, T in (batch.input_ids.shape for batch in batches.values()))


# --- The two sides ---

class World:
    """Data, device and rates that all lines share."""

    def __init__(self, args, folder, weights):
        self.args, self.device = args, machine.find_device(args.device)
        self.clock = time.process_time if args.clock == "cpu" else time.perf_counter
        self.vocabulary = os.path.join(weights, "vocab.txt")
        self.tokenizer = data.WordPiece(self.vocabulary)
        self.sets = {split: {task.name: data.load(folder, task, split, self.tokenizer)
                             for task in heads.tasks()} for split in ("train", "dev")}
        self.folder = folder
        small = bert.BertConfig.from_json(os.path.join(weights, "config.json"))
        self.shapes = {"MiniLM" if vars(small).items() >= MINILM.items() else
                       os.path.basename(weights): small, "bert-base": bert.BertConfig()}
        self.autocast, self.precision = machine.choose_precision("auto", self.device)
        self.half = "bfloat16" in self.precision

    def lengths(self, found):
        """Tokens of each example, with [CLS] and one or two [SEP].   -> [N]"""
        return data.lengths(found, True) + 1 + len(found.tokens[0])

    def rates(self):
        self.rate = {dtype: {c.hidden_size: matmul_rate(self, dtype, c.hidden_size)
                             for c in self.shapes.values()}
                     for dtype in (torch.float32, torch.bfloat16)[:1 + self.half]}
        self.bytes = bandwidth(self)

    def floor(self, config, operations, bytes=0, half=False):
        """-> seconds"""
        dtype = torch.bfloat16 if half else torch.float32
        return operations / self.rate[dtype][config.hidden_size] + bytes / self.bytes

    def trainer(self, config, *flags):
        """train.py's own, with random weights."""
        args, _ = train.parse(["--con", "--para-first", "0", "--accumulate", "1",
                               "--batch-size", "16", *flags])
        torch.manual_seed(0)
        model = heads.MultitaskBert(bert.BertModel(config), args.con, args.hlh)
        return train.Trainer(args, model.to(self.device).train(), self.tokenizer,
                             self.sets["train"])

    def batches(self, trainer):
        """One batch of each task: of 32 the one of median length."""
        drawn = {name: sorted((trainer.next_batch(name) for _ in range(32)),
                              key=lambda batch: batch.input_ids.size(1))[16]
                 for name in trainer.streams}
        trainer.next_batch = drawn.get
        return drawn


class Usual(torch.nn.Module):
    """The model and loop that people write with `transformers` and torch.optim.AdamW."""

    def __init__(self, world, config, autocast, dataset=None):
        import transformers
        super().__init__()
        torch.manual_seed(0)
        H, self.autocast = config.hidden_size, autocast
        self.bert = transformers.BertModel(transformers.BertConfig(
            **dataclasses.asdict(config)))
        self.dropout = torch.nn.Dropout(config.hidden_dropout_prob)
        self.tasks = {task.name: task for task in heads.tasks()}
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(H, task.num_outputs)
                                          for name, task in self.tasks.items()})
        self.to(world.device).train()
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-5)

    def forward(self, task, batch):
        mask = batch.attention_mask
        pooled = self.bert(batch.input_ids, torch.ones_like(batch.input_ids)
                           if mask is None else mask, batch.token_type_ids).pooler_output
        logits = self.heads[task.name](self.dropout(pooled)).float()
        return logits.squeeze(-1) if task.num_outputs == 1 else logits

    def step(self, batches):
        for name, batch in batches.items():
            with self.autocast():
                loss = self.tasks[name].loss(self(self.tasks[name], batch), batch.labels)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def float32():
    return torch.autocast("cpu", enabled=False)


# --- The lines: each yields rows of the table ---

def line_step(world):
    """One three-task training step, the same token batches on both sides."""
    for shape, config in world.shapes.items():
        for amp in ("bf16", "off")[not world.half:]:
            ours = world.trainer(config, "--amp", amp)
            batches = world.batches(ours)
            theirs = Usual(world, config, ours.autocast if amp == "bf16" else float32)
            a, b = alternate(world, ours.step, lambda: theirs.step(batches))
            P = len(ours.flat.theta)
            floor = world.floor(config, 3 * forward_operations(config, batches), 28 * P,
                                amp == "bf16")
            yield row(f"three-task step, {shape}, {'float32' if amp == 'off' else amp}",
                      "`transformers`, torch.optim.AdamW", .85, a, b, floor)
            del ours, theirs


def line_epoch(world):
    """Real lengths: some steps at a time, and from their time a token that of an epoch."""
    for shape, config in world.shapes.items():
        ours, theirs = world.trainer(config), Usual(world, config, float32)
        number, rng = len(ours.plan[0]), np.random.default_rng(0)
        lengths = {name: world.lengths(found)
                   for name, found in world.sets["train"].items()}
        # The examples of each step of the epoch: from our streams, and merely shuffled.
        drawn = {"ours": [{name: stream.next() for name, stream in ours.streams.items()}
                          for _ in range(number)],
                 "theirs": [{name: rng.integers(len(found), size=16)
                             for name, found in lengths.items()} for _ in range(number)]}

        def padded(steps):
            return sum(16 * lengths[name][indices].max()
                       for step in steps for name, indices in step.items())

        def ours_step(batches):
            ours.next_batch = batches.get
            ours.step()
        rate = {"ours": [], "theirs": []}
        few = world.args.steps if shape != "bert-base" else -(-world.args.steps // 6)
        for i in range(world.args.repeats + 1):
            for side, step in (("ours", ours_step), ("theirs", theirs.step)):
                some = [drawn[side][j % number] for j in range(i * few, (i + 1) * few)]
                rate[side].append(seconds(lambda: [step(
                    {name: data.collate(world.sets["train"][name], indices,
                                        world.tokenizer, True,
                                        config.max_position_embeddings).to(world.device)
                     for name, indices in batches.items()}) for batches in some],
                    world.clock) / padded(some))
        # The first round warms up. A rate, since the steps of the two sides are not alike.
        a, b = (statistics.median(rate[side][1:]) * padded(drawn[side]) for side in rate)
        real = sum(lengths[name][indices].sum() for step in drawn["ours"]
                   for name, indices in step.items())
        yield row(f"an epoch ({number} steps), {shape}, {ours.precision.split()[0]}",
                  "shuffled, padded, float32", .45, a, b,
                  world.floor(config, 6 * real * matrices(config),
                              28 * len(ours.flat.theta) * number, world.half),
                  f"padding {1 - real / padded(drawn['ours']):.0%} against "
                  f"{1 - real / padded(drawn['theirs']):.0%}")
        del ours, theirs


def project_copies(gradients, vaccine):
    """PCGrad or GradVac as public ports have it, on copies of flattened gradients."""
    flat = [torch.cat([g.flatten() for g in task]) for task in gradients]
    treated = copy.deepcopy(flat)
    for i, g in enumerate(treated):
        order = list(range(len(flat)))
        random.shuffle(order)
        for j in order:
            if vaccine is not None:
                if i == j:
                    continue
                phi = torch.dot(g, flat[j]) / (g.norm() * flat[j].norm())
                target = vaccine[i][j]
                if phi < target:
                    w = (g.norm() * (target * (1 - phi ** 2).sqrt() - phi *
                                     (1 - target ** 2) ** .5)
                         / (flat[j].norm() * (1 - target ** 2) ** .5))
                    g += w * flat[j]
                vaccine[i][j] = float(.99 * target + .01 * phi)
            else:
                dot = torch.dot(g, flat[j])
                if dot < 0:
                    g -= dot * flat[j] / flat[j].norm() ** 2
    merged, start, out = torch.stack(treated).sum(0), 0, []
    for g in gradients[0]:
        out.append(merged[start:start + g.numel()].view_as(g).clone())
        start += g.numel()
    return out


def line_surgery(world):
    """What PCGrad and Vaccine add: three rows treated, less one row passed on."""
    config = world.shapes["bert-base"]
    plain = world.trainer(config)
    world.batches(plain)
    step, = alternate(world, plain.step)
    del plain
    model = heads.MultitaskBert(bert.BertModel(config), True).to(world.device)
    flat = optim.FlatParameters(model.blocks(), 3)
    # Conflicts: the third gradient points against the other two.
    flat.G.normal_()
    flat.G[2] -= flat.G[0] + flat.G[1]
    shared = [name for name in flat.place if not name.startswith("heads")]
    copies = [[flat.views(row)[name].clone() for name in shared] for row in flat.G]
    regions, rng = multitask.regions(flat, "model"), np.random.default_rng(0)
    P = len(flat.theta)

    zeroed = torch.empty_like(flat.G)

    def treat(treatment, rows):
        zeroed[:len(rows)].zero_()          # as backward() does to G, but keep its numbers
        multitask.treat(flat, regions, rows, treatment, 1.0, rng)

    for name, mine, vaccine in (("PCGrad", multitask.pcgrad, None),
                                ("Vaccine", multitask.GradVac(), [[0.0] * 3] * 3)):
        with torch.no_grad():
            three, one, theirs = alternate(
                world, lambda: treat(mine, [0, 1, 2]),
                lambda: treat(multitask.plain_sum, [0]),
                lambda: project_copies(copies, vaccine))
        # Two rows more: zeroed, read for the Gram matrix, read to be combined.
        yield row(f"what {name} adds to a step, bert-base", "pairs of flattened copies", .1,
                  three - one, theirs, 2 * 3 * 4 * P / world.bytes,
                  f"{(three - one) / step:.1%} of a {world.precision.split()[0]} step")


def line_smart(world):
    """SMART steps beside a plain one of ours, in float32 and in bfloat16."""
    for shape, config in world.shapes.items():
        for amp in ("bf16", "off")[not world.half:]:
            plain = world.trainer(config, "--amp", amp)
            batches = world.batches(plain)
            for flags, label, target, passes in (
                    (["--bregman-weight", "0"], "SMART step without Bregman", 2.9, 8),
                    ([], "SMART step", 3.3, 9)):
                smart = world.trainer(config, "--amp", amp, "--smart", *flags)
                smart.next_batch = batches.get
                a, b = alternate(world, smart.step, plain.step)
                floor = world.floor(config, passes * forward_operations(config, batches),
                                    28 * len(plain.flat.theta), amp == "bf16")
                yield row(f"{label}, {shape}, {'float32' if amp == 'off' else amp}",
                          "our plain step", target, a, b, floor,
                          f"{passes} forward-equivalents against 3: {passes / 3:.2f}")
                del smart
            del plain


def line_adamw(world):
    """All of bert-base: torch gets its 199 tensors, ours θ in blocks."""
    model = heads.MultitaskBert(bert.BertModel(bert.BertConfig()), True).to(world.device)
    flat = optim.FlatParameters(model.blocks(), 1)
    flat.G.normal_(std=1e-3)
    P = len(flat.theta)
    flat.give_gradients([slice(0, P)])
    mine = optim.FusedAdamW(flat.param_groups())
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    for p in theirs:
        p.grad = torch.randn_like(p) * 1e-3
    for kind, target in (("foreach", .6), ("fused", 1.1)):
        optimizer = torch.optim.AdamW(theirs, weight_decay=0.0, **{kind: True})
        a, b = alternate(world, mine.step, optimizer.step)
        yield row("AdamW on bert-base", f"torch.optim.AdamW, {kind}", target, a, b,
                  28 * P / world.bytes)
        del optimizer
    clear = optim.AdamW(flat.param_groups())
    a, b = alternate(world, mine.step, clear.step)
    yield row("AdamW on bert-base", "our clear form", None, a, b, 28 * P / world.bytes)


def line_tokenizer(world):
    """Every text of the nine files, a fresh tokenizer each time."""
    import transformers
    theirs, texts = transformers.BertTokenizerFast(vocab_file=world.vocabulary), []
    for task in heads.tasks():
        for split in ("train", "dev", "test-student"):
            path = os.path.join(world.folder, f"{task.file}-{split}.csv")
            with open(path, encoding="utf-8", newline="") as file:
                texts += [found[column] for found in csv.DictReader(file, delimiter="\t")
                          for column in task.texts if found.get(column)]

    def ours():
        tokenizer = data.WordPiece(world.vocabulary)
        return [tokenizer(text) for text in texts]
    a, b = alternate(world, ours, lambda: theirs(texts, add_special_tokens=False))
    yield row(f"tokenizing {len(texts):,} texts", "the Rust tokenizer of `transformers`",
              1.5, a, b, sum(len(text.encode()) for text in texts) / world.bytes)


def line_evaluation(world):
    """Dev sets of all three tasks, one model and one precision on both sides."""
    shape, config = next(iter(world.shapes.items()))
    model, sets = heads.MultitaskBert(bert.BertModel(config), True), world.sets["dev"]
    model.to(world.device).eval()

    @torch.no_grad()
    def theirs():
        for name, found in sets.items():
            for i in range(0, len(found), 64):
                batch = data.collate(found, np.arange(i, min(i + 64, len(found))),
                                     world.tokenizer, True, config.max_position_embeddings)
                with world.autocast():
                    model.tasks[name].predict(
                        model(model.tasks[name], batch.to(world.device))).cpu()

    def ours():
        for name, found in sets.items():
            heads.evaluate(model, model.tasks[name], found, world.tokenizer, world.device,
                           world.autocast)
    a, b = alternate(world, ours, theirs)
    real = sum(world.lengths(found).sum() for found in sets.values())
    yield row(f"dev evaluation, {shape}, {world.precision.split()[0]}",
              "batches of 64 in file order", .5, a, b,
              world.floor(config, 2 * real * matrices(config), half=world.half))


def line_memory(world):
    """Peak of a process that makes gvac + SMART steps, and what must be there."""
    if world.device.type != "cuda" and not os.path.exists("/proc/self/status"):
        raise ModuleNotFoundError("needs Linux or a GPU", name="/proc, as on Linux")
    for shape in world.shapes:
        command = [sys.executable, os.path.abspath(__file__), "--child", shape,
                   "--data", world.folder, "--device", str(world.device)]
        if world.args.weights:
            command += ["--weights", world.args.weights]
        found = json.loads(subprocess.run(command, check=True, capture_output=True,
                                          text=True).stdout.splitlines()[-1])
        detail = " + ".join(f"{key} {value:.2f}" for key, value in found.items()
                            if key not in ("peak", "sum"))
        yield row(f"peak memory of a gvac + SMART step, batch 16, {shape}, GB",
                  "θ, G, AdamW, θ̃ and activations", 1.15, found["peak"], found["sum"],
                  found["sum"], detail)


def measure_memory(world, shape):
    """In a process of its own.   -> prints {"peak", "sum", its parts} in GB

    Activations: what autograd keeps for the backward pass of the largest task, each
    storage once, counted in a step after the ones that make the peak.
    """
    def memory(kind):
        """Bytes now ("VmRSS") or at most ("VmHWM").

        Trap: not getrusage(). Its maximum begins with that of the process that started
        this one, whatever it was.
        """
        if world.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if kind in line)
    # Libraries, and the kernels that only the first matrix product loads, are not the
    # step's.
    with world.autocast():
        F.linear(torch.ones(64, 64, requires_grad=True),
                 torch.ones(64, 64, requires_grad=True)).sum().backward()
    before = memory("VmRSS")
    trainer = world.trainer(world.shapes[shape], "--option", "gvac", "--smart", "--hlh")
    world.batches(trainer)
    for _ in range(3):
        trainer.step()
    most = memory("VmHWM") - before
    P, kept, largest = 4 * len(trainer.flat.theta), {}, [0]
    resident = {t.untyped_storage().data_ptr() for t in
                (trainer.flat.theta, trainer.flat.G, trainer.teacher.theta)}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in resident:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor
    objective = trainer.objective

    def counted(name, batch):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = objective(name, batch)
        largest[0] = max(largest[0], sum(kept.values()))
        return result
    trainer.objective = counted
    trainer.step()
    parts = {"θ": P, "G": 3 * P, "AdamW": 2 * P, "θ̃": P, "activations": largest[0]}
    print(json.dumps({"peak": most / 1e9, "sum": sum(parts.values()) / 1e9,
                      **{name: value / 1e9 for name, value in parts.items()}}))


LINES = {"step": line_step, "epoch": line_epoch, "surgery": line_surgery,
         "smart": line_smart, "adamw": line_adamw, "tokenizer": line_tokenizer,
         "evaluation": line_evaluation, "memory": line_memory}


# --- The table ---

def row(what, against, target, ours, theirs, floor, note=""):
    return dict(what=what, against=against, target=target, ours=ours, theirs=theirs,
                ratio=ours / theirs, floor=floor, above=ours / floor, note=note)


def markdown(result):
    """The table, for a file and for the README."""
    def number(value):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    lines = [f"{result['machine']}. Seconds unless said otherwise; medians of "
             f"{result['repeats']}; a miss in bold.", "",
             "| what | against | ours | theirs | ratio | target | floor | ours / floor | |",
             "|---|---|---|---|---|---|---|---|---|"]
    for rows in result["lines"].values():
        for r in rows:
            if "skipped" in r:
                lines.append(f"| {r['what']} | | | | | | | | skipped: {r['skipped']} |")
                continue
            ratio = f"{r['ratio']:.2f}"
            missed = r["target"] is not None and r["ratio"] > r["target"]
            lines.append(f"| {r['what']} | {r['against']} | {number(r['ours'])} | "
                         f"{number(r['theirs'])} | {f'**{ratio}**' if missed else ratio} | "
                         + (f"≤ {r['target']:g}" if r["target"] else "")
                         + f" | {number(r['floor'])} | {r['above']:.1f} | {r['note']} |")
    return "\n".join(lines) + "\n"


def machine_name(world):
    """Model, cores, threads, versions: what a ratio may depend on."""
    name = ""
    if world.device.type == "cuda":
        name = torch.cuda.get_device_name() + ", "
    elif os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            models = [line.split(":")[1].strip() for line in file if "model name" in line]
        name = f"{models[0]}, " if models else ""
    about = machine.description(world.device, world.precision)
    return (f"{name}{about['cores']} cores, {about['threads']} "
            f"thread{'s' if about['threads'] > 1 else ''}, {about['cpu']}, torch "
            f"{about['torch']}, {world.precision}, {world.args.clock} time")


def bench(args):
    world = World(args, *sources.find(args.data, args.weights))
    if args.child:
        return measure_memory(world, args.child)
    world.rates()
    result = {"machine": machine_name(world), "repeats": args.repeats, "lines": {}}
    out = args.out or os.path.join(ROOT, "results", f"bench-{world.device.type}-"
                                   f"{torch.get_num_threads()}")
    if os.path.exists(out + ".json"):
        with open(out + ".json", encoding="utf-8") as file:
            old = json.load(file)
        if old["machine"] == result["machine"]:
            result["lines"] = old["lines"]
    result["rates"] = {f"{str(dtype)[6:]}, H = {H}, 1e9 operations a second": rate / 1e9
                       for dtype, by in world.rate.items() for H, rate in by.items()}
    result["rates"]["GB a second"] = world.bytes / 1e9
    for name, line in LINES.items():
        if args.words and not any(word in name for word in args.words):
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            rows = list(line(world))
        except ModuleNotFoundError as error:
            rows = [{"what": name, "skipped": f"no {error.name}"}]
        result["lines"][name] = rows
        result["lines"] = {key: result["lines"][key] for key in LINES
                           if key in result["lines"]}
        os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
        run.write_json(out + ".json", result)
        with open(out + ".md", "w", encoding="utf-8", newline="\n") as file:
            file.write(markdown(result))
    print(markdown(result))
    return 0


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("words", nargs="*", metavar="WORD", help=f"of {', '.join(LINES)} (all)")
    p.add_argument("--repeats", type=int, default=5, help="of each measurement (5)")
    p.add_argument("--steps", type=int, default=12, help="at once in `epoch` (12)")
    p.add_argument("--data", metavar="DIR", help="nine CSV files (train.py's)")
    p.add_argument("--weights", metavar="DIR|NAME", help="shape, vocabulary (train.py's)")
    p.add_argument("--device", default="auto", help="cpu, cuda, … (auto)")
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall",
                   help="cpu: processor time, for one thread on a busy machine (wall)")
    p.add_argument("--out", metavar="PATH", help=".json and .md (results/bench-DEVICE-N)")
    p.add_argument("--child", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    for word in args.words:
        if not any(word in name for name in LINES):
            p.error(f"no line is called {word}; there are {', '.join(LINES)}")
    return run.one_line(lambda: bench(args))


if __name__ == "__main__":
    sys.exit(main())
