"""How fast it is beside what people would otherwise use: ratios, measured in one run.

    python tools/bench.py [WORD …] [--data DIR] [--weights DIR|NAME]
    python tools/bench.py --out results/bench

With WORDs only the measurements whose name contains one of them; the others keep their
lines in the file, which must be of the same machine. Each measurement alternates between
the two sides and shows medians, beside the roofline: the least time that this machine
needs, by its speed and bandwidth as measured at the start of the run.

Symbols: P parameters, H features, L layers, R rows of T tokens in a batch.
Leaves out: loading, start-up, more than one device. The models have random weights, which
take the same time, in the shape of MiniLM (or of --weights) and in that of bert-base.
"""

import argparse
import copy
import dataclasses
import functools
import os
import random
import sys
import time

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import bert
import data
import heads
import multitask
import optim
import smart
import train
from plumbing import command, flags, machine, sources, tsv
from tools import memory, timing
from tools.timing import FLOAT32, Line, Skipped

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
BATCH_SIZE = 16
WITHOUT_SMART = smart.Settings(weight=0.0, bregman_weight=0.0)


# --- The two sides ---

class Setup:
    """Data, device and precision that all measurements share."""

    def __init__(self, folder, weights, device="auto", clock=time.perf_counter, repeats=5,
                 steps=12):
        self.folder, self.weights = folder, weights
        self.repeats, self.steps = repeats, steps
        self.device = machine.find_device(device)
        self.vocabulary = os.path.join(weights, "vocab.txt")
        self.tokenizer = data.WordPiece(self.vocabulary)
        self.sets = {split: {task.name: data.load(folder, task, split, self.tokenizer)
                             for task in heads.tasks()} for split in ("train", "dev")}
        small = bert.BertConfig.from_json(os.path.join(weights, "config.json"))
        is_minilm = vars(small).items() >= MINILM.items()
        self.shapes = {"MiniLM" if is_minilm else os.path.basename(weights): small,
                       "bert-base": bert.BertConfig()}
        self.machine = timing.Machine(self.device, clock)
        self.precisions, self.precision = self.machine.precisions, self.machine.precision
        self.roofline = self.machine.roofline

    def alternate(self, *sides):
        return timing.alternate(sides, self.repeats, self.machine.clock)

    def compare(self, what, against, target, ours, theirs, roofline, note=""):
        """Measure two sides.   -> timing.Line"""
        return Line(what, against, target, *self.alternate(ours, theirs), roofline, note)

    def lengths(self, dataset):
        """Tokens of each example, with [CLS] and one or two [SEP].   -> [N]"""
        return data.lengths(dataset, True) + 1 + len(dataset.tokens[0])

    def batch(self, dataset, indices, config):
        return data.collate(dataset, indices, self.tokenizer, True,
                            config.max_position_embeddings).to(self.device)


class Ours:
    """Our model with random weights, and the step that train.fit() takes with it."""

    def __init__(self, setup, config, precision, option="rr", terms=WITHOUT_SMART,
                 hlh=False):
        torch.manual_seed(0)
        model = heads.MultitaskBert(bert.BertModel(config), con=True, hlh=hlh,
                                    tokenizer=setup.tokenizer)
        model.to(setup.device).train()
        model.bert.word_embeddings.sparse = setup.device.type == "cpu"
        separate = option in multitask.TREATMENTS
        rows = {name: k if separate else 0 for k, name in enumerate(model.tasks)}
        self.flat = optim.FlatParameters(model.blocks(), len(set(rows.values())))
        self.training = train.Training(
            model, setup.sets, rows, multitask.regions(self.flat), terms, {},
            functools.partial(timing.autocast, setup.device, precision), self.flat,
            optimizer=optim.FusedAdamW(self.flat.param_groups(), lr=1e-5),
            treatment={"pcgrad": multitask.pcgrad, "gvac": multitask.GradVac()}.get(
                option, multitask.plain_sum),
            teacher=smart.Teacher(model, self.flat) if terms.bregman_weight else None,
            streams={name: data.Stream(data.lengths(dataset, True), BATCH_SIZE, (0, k))
                     for k, (name, dataset) in enumerate(setup.sets["train"].items())},
            rng=np.random.default_rng(0), scale=optim.LossScale(False))

    def median_batches(self):
        """One batch of each task, of 32 the median in length.   -> {task: data.Batch}"""
        return {name: sorted((self.training.next_batch(name) for _ in range(32)),
                             key=lambda batch: batch.input_ids.size(1))[16]
                for name in self.training.streams}

    def step(self, batches):
        training = self.training
        losses = multitask.backward(self.flat, [batches], training.loss, training.rows)
        treated = multitask.treat(self.flat, training.regions, training.rows,
                                  training.treatment, 1.0, training.rng)
        training.optimizer.step()
        if training.teacher is not None:
            training.teacher.follow(self.flat.theta, 0.99)
        return losses, multitask.describe(treated)


class Usual(torch.nn.Module):
    """The model and loop that people write with `transformers` and torch.optim.AdamW."""

    def __init__(self, setup, config, precision):
        import transformers
        super().__init__()
        torch.manual_seed(0)
        self.device, self.precision = setup.device, precision
        self.bert = transformers.BertModel(transformers.BertConfig(
            **dataclasses.asdict(config)))
        self.dropout = torch.nn.Dropout(config.hidden_dropout_prob)
        self.tasks = {task.name: task for task in heads.tasks()}
        self.heads = torch.nn.ModuleDict({
            name: torch.nn.Linear(config.hidden_size, task.num_outputs)
            for name, task in self.tasks.items()})
        self.to(setup.device).train()
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-5)

    def forward(self, task, batch):
        mask = (torch.ones_like(batch.input_ids) if batch.attention_mask is None
                else batch.attention_mask)
        pooled = self.bert(batch.input_ids, mask, batch.token_type_ids).pooler_output
        logits = self.heads[task.name](self.dropout(pooled)).float()
        return logits.squeeze(-1) if task.num_outputs == 1 else logits

    def step(self, batches):
        for name, batch in batches.items():
            with timing.autocast(self.device, self.precision):
                loss = self.tasks[name].loss(self(self.tasks[name], batch), batch.labels)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


# --- The measurements ---

def training_step(setup, shape, precision):
    """One three-task training step, the same token batches on both sides."""
    config = setup.shapes[shape]
    ours, theirs = Ours(setup, config, precision), Usual(setup, config, precision)
    batches = ours.median_batches()
    return setup.compare(
        f"three-task step, {shape}, {precision.name}", "`transformers`, torch.optim.AdamW",
        .85, lambda: ours.step(batches), lambda: theirs.step(batches),
        setup.roofline(config, 3 * timing.forward_operations(config, batches), precision,
                       timing.ADAMW_BYTES * len(ours.flat.theta)))


def epoch(setup, shape):
    """Real lengths: some steps are timed, and an epoch takes as long per padded token."""
    config, train_sets = setup.shapes[shape], setup.sets["train"]
    ours, theirs = Ours(setup, config, setup.precision), Usual(setup, config, FLOAT32)
    number = len(train_sets["sts"]) // BATCH_SIZE       # STS is what an epoch is aligned to
    rng = np.random.default_rng(0)
    lengths = {name: setup.lengths(dataset) for name, dataset in train_sets.items()}
    streams = ours.training.streams.items()
    ordered = timing.Epoch([{name: stream.next() for name, stream in streams}
                            for _ in range(number)], lengths)
    shuffled = timing.Epoch([{name: rng.integers(len(dataset), size=BATCH_SIZE)
                              for name, dataset in train_sets.items()}
                             for _ in range(number)], lengths)

    def take(epoch, take_step):
        for step in epoch.steps:
            take_step({name: setup.batch(train_sets[name], indices, config)
                       for name, indices in step.items()})
    few = setup.steps if shape != "bert-base" else -(-setup.steps // 6)
    a, b = ordered.sample(few), shuffled.sample(few)
    line = setup.compare(
        f"an epoch ({number} steps), {shape}, {setup.precision.name}",
        "shuffled, padded, float32", .45, lambda: take(a, ours.step),
        lambda: take(b, theirs.step),
        setup.roofline(config, 6 * ordered.real * timing.matrix_parameters(config),
                       setup.precision, timing.ADAMW_BYTES * len(ours.flat.theta) * number),
        f"padding {1 - ordered.real / ordered.padded:.0%} against "
        f"{1 - shuffled.real / shuffled.padded:.0%}")
    line.ours *= ordered.padded / a.padded
    line.theirs *= shuffled.padded / b.padded
    return line


def project_copies(gradients, targets=None):
    """PCGrad as public ports have it, on copies of flattened gradients.

    gradients: for each task a list of tensors. With targets, [[φᵀ_ij]], it is GradVac, and
    they are updated.   -> the sum, a list of tensors
    """
    flat = [torch.cat([g.flatten() for g in task]) for task in gradients]
    treated = copy.deepcopy(flat)
    for i, g in enumerate(treated):
        order = list(range(len(flat)))
        random.shuffle(order)
        for j in order:
            dot = torch.dot(g, flat[j])
            if targets is None:
                if dot < 0:
                    g -= dot * flat[j] / flat[j].norm() ** 2
            elif i != j:
                phi, target = dot / (g.norm() * flat[j].norm()), targets[i][j]
                if phi < target:
                    w = (g.norm() * (target * (1 - phi ** 2).sqrt() - phi *
                                     (1 - target ** 2) ** .5)
                         / (flat[j].norm() * (1 - target ** 2) ** .5))
                    g += w * flat[j]
                targets[i][j] = float(.99 * target + .01 * phi)
    merged, start, out = torch.stack(treated).sum(0), 0, []
    for g in gradients[0]:
        out.append(merged[start:start + g.numel()].view_as(g).clone())
        start += g.numel()
    return out


def plain_step(setup, config):
    """-> seconds of a step without treatment"""
    ours = Ours(setup, config, setup.precision)
    batches = ours.median_batches()
    took, = setup.alternate(lambda: ours.step(batches))
    return took


def surgery(setup, name, treatment, targets=None):
    """What PCGrad or Vaccine adds: three rows treated, less one row passed on."""
    config = setup.shapes["bert-base"]
    step = plain_step(setup, config)
    model = heads.MultitaskBert(bert.BertModel(config), True).to(setup.device)
    flat = optim.FlatParameters(model.blocks(), 3)
    # Conflicts: the third gradient points against the other two.
    flat.G.normal_()
    flat.G[2] -= flat.G[0] + flat.G[1]
    shared = [name for block in flat.blocks.values() if block.shared
              for name in block.parameters]
    copies = [[flat.views(row)[name].clone() for name in shared] for row in flat.G]
    regions, rng = multitask.regions(flat), np.random.default_rng(0)
    zeroed = torch.empty_like(flat.G)

    def treat(treatment, tasks):
        zeroed[:tasks].zero_()              # as backward() does to G, but keep its numbers
        multitask.treat(flat, regions, {k: k for k in range(tasks)}, treatment, 1.0, rng)
    with torch.no_grad():
        three, one, theirs = setup.alternate(
            lambda: treat(treatment, 3), lambda: treat(multitask.plain_sum, 1),
            lambda: project_copies(copies, targets))
    # Two rows more: zeroed, read for the Gram matrix, read to be combined.
    roofline = setup.roofline(bytes=2 * 3 * 4 * len(flat.theta))
    return Line(f"what {name} adds to a step, bert-base", "pairs of flattened copies", .1,
                three - one, theirs, roofline,
                f"{(three - one) / step:.1%} of a {setup.precision.name} step")


def smart_step(setup, shape, precision, bregman):
    """A SMART step beside a plain one of ours."""
    config = setup.shapes[shape]
    terms = smart.Settings() if bregman else smart.Settings(bregman_weight=0.0)
    plain = Ours(setup, config, precision)
    ours, batches = Ours(setup, config, precision, terms=terms), plain.median_batches()
    passes = 9 if bregman else 8
    return setup.compare(
        f"SMART step{'' if bregman else ' without Bregman'}, {shape}, {precision.name}",
        "our plain step", 3.3 if bregman else 2.9,
        lambda: ours.step(batches), lambda: plain.step(batches),
        setup.roofline(config, passes * timing.forward_operations(config, batches),
                       precision, timing.ADAMW_BYTES * len(plain.flat.theta)),
        f"{passes} forward-equivalents against 3: {passes / 3:.2f}")


def adamw(setup, name):
    """All of bert-base: torch gets its 199 tensors, ours θ in blocks."""
    model = heads.MultitaskBert(bert.BertModel(bert.BertConfig()), True).to(setup.device)
    flat = optim.FlatParameters(model.blocks(), 1)
    flat.G.normal_(std=1e-3)
    P = len(flat.theta)
    flat.give_gradients(flat.blocks)
    ours, target = optim.FusedAdamW(flat.param_groups()), {"foreach": .6, "fused": 1.1}
    if name in target:
        tensors = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
        for p in tensors:
            p.grad = torch.randn_like(p) * 1e-3
        theirs = torch.optim.AdamW(tensors, weight_decay=0.0, **{name: True})
    else:
        theirs = optim.AdamW(flat.param_groups())
    against = f"torch.optim.AdamW, {name}" if name in target else name
    return setup.compare("AdamW on bert-base", against, target.get(name), ours.step,
                         theirs.step, setup.roofline(bytes=timing.ADAMW_BYTES * P))


def tokenizer(setup):
    """Every text of the nine files, a fresh tokenizer each time."""
    import transformers
    theirs, texts = transformers.BertTokenizerFast(vocab_file=setup.vocabulary), []
    for task in heads.tasks():
        for split in ("train", "dev", "test"):
            rows = tsv.read(data.path_of(setup.folder, task, split), list(task.texts))
            texts += [text for _, row in rows for text in row]

    def ours():
        tokenizer = data.WordPiece(setup.vocabulary)
        return [tokenizer(text) for text in texts]
    return setup.compare(
        f"tokenizing {len(texts):,} texts", "the Rust tokenizer of `transformers`", 1.5,
        ours, lambda: theirs(texts, add_special_tokens=False),
        setup.roofline(bytes=sum(len(text.encode()) for text in texts)))


def evaluation(setup):
    """Dev sets of all three tasks, one model and one precision on both sides."""
    shape, config = next(iter(setup.shapes.items()))
    model, sets = heads.MultitaskBert(bert.BertModel(config), True), setup.sets["dev"]
    model.to(setup.device).eval()

    @torch.no_grad()
    def in_file_order():
        for name, dataset in sets.items():
            for start in range(0, len(dataset), 64):
                indices = np.arange(start, min(start + 64, len(dataset)))
                batch = setup.batch(dataset, indices, config)
                with setup.machine.autocast():
                    model.tasks[name].predict(model(model.tasks[name], batch)).cpu()

    def ours():
        for name, dataset in sets.items():
            heads.evaluate(model, model.tasks[name], dataset, setup.tokenizer,
                           device=setup.device, autocast=setup.machine.autocast)
    tokens = sum(setup.lengths(dataset).sum() for dataset in sets.values())
    return setup.compare(
        f"dev evaluation, {shape}, {setup.precision.name}", "batches of 64 in file order",
        .5, ours, in_file_order,
        setup.roofline(config, 2 * tokens * timing.matrix_parameters(config),
                       setup.precision))


def ours_of(setup, case, precision, config):
    """What tools/memory.py looks at.   -> Ours"""
    return Ours(setup, config, precision, case.option, case.terms, case.hlh)


# --- The command line ---

# Name of a measurement -> function of a Setup -> its lines.
MEASUREMENTS = {
    "step": lambda setup: [training_step(setup, shape, precision)
                           for shape in setup.shapes for precision in setup.precisions],
    "encoder": lambda setup: timing.encoders(setup, rows=BATCH_SIZE, tokens=32),
    "epoch": lambda setup: [epoch(setup, shape) for shape in setup.shapes],
    "surgery": lambda setup: [
        surgery(setup, "PCGrad", multitask.pcgrad),
        surgery(setup, "Vaccine", multitask.GradVac(), [[0.0] * 3 for _ in range(3)])],
    "smart": lambda setup: [smart_step(setup, shape, precision, bregman)
                            for shape in setup.shapes for precision in setup.precisions
                            for bregman in (False, True)],
    "adamw": lambda setup: [adamw(setup, name)
                            for name in ("foreach", "fused", "our clear form")],
    "ranks": lambda setup: timing.adding_up(
        setup, plain_step(setup, setup.shapes["bert-base"])),
    "tokenizer": lambda setup: [tokenizer(setup)],
    "evaluation": lambda setup: [evaluation(setup)],
    "memory": lambda setup: memory.lines(setup, ours_of),
}


def bench(setup, chosen, out=None):
    """Make the chosen measurements and write OUT.json and OUT.md.   -> exit status"""
    about = setup.machine.description()
    out = out or timing.own_place(
        os.path.join(sources.ROOT, "results", f"bench-{setup.device.type}-"
                     f"{torch.get_num_threads()}"), about)
    result = timing.Result.begin(out, about)
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    rates = setup.machine.measure(setup.shapes.values())
    for name in chosen:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            lines = MEASUREMENTS[name](setup)
        except ModuleNotFoundError as error:
            if name in result.lines:
                print(f"skipped: no {error.name}; what {out}.json has of it stays",
                      file=sys.stderr)
                continue
            lines = [Skipped(name, f"no {error.name}")]
        result.keep(name, lines, setup.repeats, rates, order=list(MEASUREMENTS))
        result.write(out)
    print(f"{result.markdown()}\n{out}.md")
    return 0


def main(argv=None):
    p = command.Parser(__doc__)
    p.add_argument("words", nargs="*", metavar="WORD",
                   help=f"of {', '.join(MEASUREMENTS)} (all)")
    p.add_argument("--repeats", type=flags.number(int, 1), default=5,
                   help="of each measurement (5)")
    p.add_argument("--steps", type=flags.number(int, 1), default=12,
                   help="timed in `epoch` (12)")
    p.add_argument("--data", type=flags.text, metavar="DIR",
                   help="nine CSV files (train.py's)")
    p.add_argument("--weights", type=flags.text, metavar="DIR|NAME",
                   help="shape, vocabulary (train.py's)")
    p.add_argument("--device", default="auto", help="cpu, cuda, … (auto)")
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall",
                   help="cpu: processor time, for one thread on a busy machine (wall)")
    p.add_argument("--out", type=flags.text, metavar="PATH",
                   help="of a .json and a .md; lines of the same machine stay there "
                   "(results/bench-DEVICE-THREADS)")
    p.add_argument("--child", metavar="SHAPE", help=argparse.SUPPRESS)

    def run():
        args = p.parse_args(argv)
        for word in args.words:
            if not any(word in name for name in MEASUREMENTS):
                p.error(f"no measurement is called {word}; there are "
                        f"{', '.join(MEASUREMENTS)}")
        chosen = [name for name in MEASUREMENTS
                  if not args.words or any(word in name for word in args.words)]
        clock = time.process_time if args.clock == "cpu" else time.perf_counter
        folder, weights = sources.find(args.data, args.weights)
        setup = Setup(folder, weights, args.device, clock, args.repeats, args.steps)
        if args.child:
            print(memory.child_peak(setup, ours_of, args.child))
            return 0
        return bench(setup, chosen, args.out)
    return command.one_line(run)


if __name__ == "__main__":
    sys.exit(main())
