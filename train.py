"""Train, evaluate, predict: the command line.

    4.3    DEFAULTS: Table 1, and what the report leaves open
    4.3    parse(): one flag for each ablation
    3.3    Trainer: the loop's state and its step
    3.5.1  paraphrase first
    4.4    main(): train, evaluate after every epoch, keep the best, predict

    python train.py --option gvac --smart --con --hlh

D11: Table 1 trains the sequential model for 10 epochs, Table 2 shows it after 5; the
configuration is Table 1's.
D8: 3.5.1 gives no row without its five epochs of paraphrase first; --para-first 0 is one.
Leaves out: searching hyperparameters, and processes beyond one.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import time
import warnings

import numpy as np
import torch

import bert
import data
import heads
import multitask
import optim
import smart
from plumbing import run


# --- 4.3 Table 1 ---

# (option, smart, con, hlh, fresh streams): what the report's Table 1 gives for these flags.
TABLE_1 = {
    ("seq", False, False, False, False): dict(
        row="Sequential Multitask learning", accumulate=1, epochs=10, lr=1e-5),
    ("pcgrad", False, True, False, True): dict(
        row="Gradient Surgery + CON", accumulate=1, epochs=10, lr=1e-5),
    ("gvac", False, False, False, False): dict(
        row="Gradient Vaccine + RR", accumulate=2, epochs=15, lr=1e-5),
    ("pcgrad", False, False, False, False): dict(
        row="Gradient Surgery + RR", accumulate=1, epochs=15, lr=1e-5),
    ("pcgrad", False, True, True, False): dict(
        row="Gradient Surgery + RR + CON + HLH", accumulate=1, epochs=15, lr=2e-5),
    ("gvac", False, True, True, False): dict(
        row="Gradient Vaccine + RR + CON + HLH", accumulate=1, epochs=15, lr=2e-5),
    ("gvac", True, True, False, False): dict(
        row="SMART + GVAC + RR + CON", accumulate=2, epochs=15, lr=2e-5, para_first=5),
    ("gvac", True, True, True, False): dict(
        row="SMART + GVAC + RR + CON + HLH", accumulate=2, epochs=15, lr=3e-5, para_first=5),
}
DEFAULTS = dict(batch_size=16, accumulate=1, epochs=15, lr=1e-5, para_first=0)


def positive(kind, low, high=float("inf"), what=None):
    """An argparse type: a number from low to high, or one clear line."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"needed {'a whole number' if kind is int else 'a number'} from {low} to "
                f"{high}, got {text!r}")
        return value
    return convert


def parser():
    """One flag for one ablation. What is not given comes from Table 1 or DEFAULTS."""
    whole = positive(int, 1)
    share = positive(float, 0.0, 1.0)
    number = positive(float, 0.0)
    p = argparse.ArgumentParser(description="Fine-tune one BERT for sentiment, paraphrase and "
                                "similarity.", allow_abbrev=False)
    g = p.add_argument_group("what the report compares")
    g.add_argument("--option", choices=["seq", "rr", "pcgrad", "gvac"], default="rr",
                   help="sequential (Algorithm 1), round robin (Algorithm 2), with gradient "
                   "surgery, with gradient vaccine (ours: rr)")
    g.add_argument("--smart", action="store_true", help="both SMART terms (report 3.5)")
    g.add_argument("--con", action="store_true", help="encode a pair together (report 3.4)")
    g.add_argument("--hlh", action="store_true", help="hidden layers in the heads (report 3.6)")
    g.add_argument("--tasks", default="sst,para,sts", help="train only these (report, Table 2)")
    g.add_argument("--para-first", type=positive(int, 0), metavar="N",
                   help="N epochs on paraphrase alone first (report 3.5.1: 5 with SMART, else 0)")
    g.add_argument("--fresh-streams", action="store_true",
                   help="reshuffle every set at each epoch: the row without RR (report, Table 2)")
    g.add_argument("--freeze", action="store_true", help="train the heads only (course)")
    g = p.add_argument_group("optimization")
    g.add_argument("--batch-size", type=whole, help="examples of a task at once (report, Table 1)")
    g.add_argument("--accumulate", type=whole, metavar="N",
                   help="batches to one update (report, Table 1: 2 where it says batch 32)")
    g.add_argument("--epochs", type=whole, help="(report, Table 1; else 15)")
    g.add_argument("--max-steps", type=whole, metavar="N", help="stop after N updates (ours)")
    g.add_argument("--align", choices=["sst", "para", "sts"],
                   help="the set whose size makes an epoch (report 3.3: sts)")
    g.add_argument("--lr", type=number, help="(report, Table 1; else 1e-5)")
    g.add_argument("--warmup", type=share, default=0.0, metavar="SHARE", help="share of the "
                   "updates with rising rate; if not 0, it then falls to 0 (report: 0)")
    g.add_argument("--clip", type=number, default=1.0, metavar="NORM",
                   help="largest norm of an update's gradient, 0 for none (BERT: 1)")
    g.add_argument("--weight-decay", type=number, default=0.0, help="on matrices (course: 0)")
    g.add_argument("--vaccine-granularity", choices=["model", "layer", "matrix"],
                   default="model", help="what gets a target of its own (report: model)")
    g.add_argument("--vaccine-beta", type=share, default=0.01, help="(Gradient Vaccine: 0.01)")
    g = p.add_argument_group("SMART")
    g.add_argument("--smart-weight", type=number, default=1.0, help="λ_s (ours)")
    g.add_argument("--smart-eps", type=number, default=1e-5, help="radius ε (ours)")
    g.add_argument("--smart-steps", type=whole, default=1, help="ascent steps (SMART: 1)")
    g.add_argument("--bregman-weight", type=number, default=1.0, help="μ (SMART: 1)")
    g = p.add_argument_group("model")
    g.add_argument("--pool", choices=["cls", "mean"], default="cls",
                   help="a sequence as BERT's pooler output, or the mean over its tokens (cls)")
    g.add_argument("--dropout", type=positive(float, 0.0, 0.99), metavar="P",
                   help="everywhere (default: what config.json says)")
    g.add_argument("--sst-loss", choices=["ce", "mse"], default="ce", help="(ours, see D1)")
    g.add_argument("--sts-loss", choices=["mse", "ce"], default="mse", help="(ours, see D1)")
    g = p.add_argument_group("run")
    g.add_argument("--data", metavar="DIR", help="folder of the nine CSV files")
    g.add_argument("--weights", metavar="DIR", help="folder of a pre-trained BERT")
    g.add_argument("--out", metavar="DIR", help="folder of this run (default: under runs/)")
    g.add_argument("--seed", type=positive(int, 0, 2 ** 32 - 1), default=0)
    g.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    g.add_argument("--amp", choices=["auto", "off", "bf16"], default="auto",
                   help="bfloat16 in the forward passes (auto: where the machine has it)")
    return p


def parse(argv=None):
    """argv -> (args, {name: "given" | "Table 1, …" | "default"}). Exits with 2 on bad values."""
    p = parser()
    args = p.parse_args(argv)
    given = vars(p.parse_args(argv, argparse.Namespace(
        **{action.dest: None for action in p._actions})))
    source = {name: "default" if given.get(name) is None else "given" for name in vars(args)}

    names = args.tasks.split(",")
    if not names[0] or set(names) - {"sst", "para", "sts"} or len(set(names)) < len(names):
        p.error(f"--tasks: needed some of sst,para,sts, got {args.tasks!r}")
    args.tasks = [name for name in ("sst", "para", "sts") if name in names]
    key = (args.option, args.smart, args.con, args.hlh, args.fresh_streams)
    row = TABLE_1.get(key, {}) if len(names) == 3 else {}
    for name, value in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, row.get(name, value))
            source[name] = f"Table 1, {row['row']}" if row else "default"

    # A flag that would change nothing is a mistake of the caller's: say so at once.
    def contradiction(wrong, why):
        if wrong:
            p.error(why)
    one = len(args.tasks) == 1
    contradiction(one and args.option in ("pcgrad", "gvac"),
                  f"--tasks {args.tasks[0]} and --option {args.option} contradict each other: "
                  f"one task has no gradient to conflict with; use --option rr")
    contradiction(args.align and args.align not in args.tasks,
                  f"--align {args.align} and --tasks {','.join(args.tasks)} contradict each "
                  f"other: align to a set that is trained on")
    contradiction(args.align and args.option == "seq",
                  "--align and --option seq contradict each other: Algorithm 1 reads every set "
                  "to its end")
    contradiction(args.para_first and "para" not in args.tasks,
                  f"--para-first and --tasks {','.join(args.tasks)} contradict each other")
    for name in ("smart_weight", "smart_eps", "smart_steps", "bregman_weight"):
        contradiction(source[name] == "given" and not args.smart,
                      f"--{name.replace('_', '-')} needs --smart")
    for name in ("smart_eps", "smart_steps"):
        contradiction(source[name] == "given" and args.smart_weight == 0,
                      f"--{name.replace('_', '-')} and --smart-weight 0 contradict each other")
    for name in ("vaccine_granularity", "vaccine_beta"):
        contradiction(source[name] == "given" and args.option != "gvac",
                      f"--{name.replace('_', '-')} needs --option gvac")
    contradiction(args.freeze and args.option in ("pcgrad", "gvac"),
                  f"--freeze and --option {args.option} contradict each other: only shared "
                  f"parameters are treated, and these would be frozen; use --option rr")
    return args, source


# --- 3.3 The loop's state and its step ---

class Trainer:
    """All that changes during training, and the update that changes it.

    train_sets: {task name: data.Dataset}; plan: a list of epochs, each a list of the tasks
    of its steps.
    """

    def __init__(self, args, model, tokenizer, train_sets):
        self.args, self.model, self.tokenizer = args, model, tokenizer
        self.tasks = model.tasks
        self.train_sets = train_sets
        self.device = next(model.parameters()).device
        self.autocast, self.precision = choose_precision(args, self.device)
        if args.freeze:
            model.bert.requires_grad_(False)

        treated = args.option in ("pcgrad", "gvac")
        # Without treatment nobody asks for the single gradients: one row collects the sum.
        self.rows = {name: k if treated else 0 for k, name in enumerate(args.tasks)}
        self.flat = optim.FlatParameters(model.blocks(), len(set(self.rows.values())))
        self.regions = multitask.regions(self.flat, args.vaccine_granularity)
        self.vaccine = multitask.GradVac(args.vaccine_beta)
        self.treatment = {"pcgrad": multitask.pcgrad,
                          "gvac": self.vaccine}.get(args.option, multitask.plain_sum)
        self.optimizer = optim.AdamW(self.flat.param_groups(args.weight_decay), lr=args.lr)
        self.rng = np.random.default_rng([args.seed, 3])
        self.teacher = smart.Teacher(model, self.flat) if (
            args.smart and args.bregman_weight) else None

        self.streams = {
            name: data.Stream(data.lengths(train_sets[name], args.con), args.batch_size,
                              (args.seed, k))
            for k, name in enumerate(self.tasks) if name in args.tasks}
        self.plan = self.make_plan()
        self.total = sum(map(len, self.plan))
        if args.max_steps:
            self.total = min(self.total, args.max_steps)
        self.step_number = self.skipped = 0

    def make_plan(self):
        """The tasks of every step.   [report 3.2, 3.3, 3.5.1]   -> [[(task, …), …], …]"""
        args = self.args
        batches = {name: len(self.train_sets[name]) // args.batch_size for name in args.tasks}
        for name, number in batches.items():
            if number == 0:
                raise ValueError(f"{self.train_sets[name].path}: needed at least one batch of "
                                 f"{args.batch_size} examples, got "
                                 f"{len(self.train_sets[name])}; use a smaller --batch-size")

        def steps(epoch, names):
            # Batches that don't fill an update at an epoch's end are carried into the next.
            A = args.accumulate
            return {name: (epoch + 1) * batches[name] // A - epoch * batches[name] // A
                    for name in names}

        # 3.5.1: five epochs "on just the paraphrase task before the rest of the tasks".
        plan = [multitask.sequential(steps(epoch, ["para"])) for epoch in range(args.para_first)]
        aligned = args.align or ("sts" if "sts" in args.tasks else
                                 min(batches, key=batches.get))
        for epoch in range(args.epochs):
            if args.option == "seq":        # Algorithm 1's order: SST, STS, paraphrase
                turns = [name for name in ("sst", "sts", "para") if name in args.tasks]
                plan.append(multitask.sequential(steps(epoch, turns)))
            else:
                plan.append(multitask.round_robin(steps(epoch, args.tasks), aligned))
        return plan

    def objective(self, name, batch):
        """A task's loss with its SMART terms.   [report 3.5]   -> (scalar, {name: scalar})

            𝓕(θ) = 𝓛(θ) + λ_s R_s(θ) + μ D_Breg(θ, θ̃)
        """
        args, task = self.args, self.tasks[name]
        with self.autocast():
            x = self.model.embed(batch)

            def f(x):
                return self.model.logits(task, x, batch)

            smooth = bregman = None
            if args.smart and args.smart_weight:
                logits, smooth = smart.smoothness(f, x, task.divergence, args.smart_eps,
                                                  args.smart_steps, batch.attention_mask)
            else:
                logits = f(x)
            loss = task.loss(logits, batch.labels)
            log = {"loss": loss.detach()}
            extra = 0.0
            if smooth is not None:
                log["smooth"] = smooth.detach()
                extra = extra + args.smart_weight * smooth
            if self.teacher is not None:
                bregman = smart.bregman(logits, self.teacher(task, batch), task.divergence)
                log["bregman"] = bregman.detach()
                extra = extra + args.bregman_weight * bregman
        if smooth is not None and self.step_number % 50 == 0:
            log["smooth_grad_ratio"] = self.gradient_ratio(args.smart_weight * smooth, loss)
        return loss + extra, log

    def gradient_ratio(self, term, loss):
        """‖∇ term‖ / ‖∇ loss‖ on all parameters: two more backward passes, so now and then."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]

        def norm2(scalar):
            gradients = torch.autograd.grad(scalar, parameters, retain_graph=True,
                                            allow_unused=True)
            return sum(g.square().sum() for g in gradients if g is not None)
        return (norm2(term) / norm2(loss)).sqrt()

    def step(self):
        """One update.   [Algorithm 1 and 2, lines "backward" to "step"]   -> its line of metrics"""
        args = self.args
        epoch, inside = self.where(self.step_number)
        if inside == 0 and args.fresh_streams and epoch:
            for stream in self.streams.values():
                stream.restart()
        names = self.plan[epoch][inside]
        rate = args.lr * optim.learning_rate_factor(self.step_number, self.total, args.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        micro_batches = [{name: self.next_batch(name) for name in names}
                         for _ in range(args.accumulate)]
        rows = {name: self.rows[name] for name in names}
        logs = multitask.backward(self.flat, micro_batches, self.objective, rows)
        treated = multitask.treat(self.flat, self.regions, sorted(set(rows.values())),
                                  self.treatment, args.clip, self.rng)
        if treated is None:
            self.skipped += 1
        else:
            self.optimizer.step()
            if self.teacher is not None:
                self.teacher.follow(self.flat.theta,
                                    smart.momentum_beta(self.step_number, self.total))
        self.step_number += 1
        return {"step": self.step_number, "epoch": epoch + 1, "lr": rate,
                **mean_logs(logs), **gradient_log(treated, names)}

    def next_batch(self, name):
        dataset = self.train_sets[name]
        indices = self.streams[name].next()
        return data.collate(dataset, indices, self.tokenizer, self.args.con,
                            self.model.bert.config.max_position_embeddings).to(self.device)

    def where(self, step):
        """Number of a step -> (epoch, step inside it), from 0."""
        for epoch, steps in enumerate(self.plan):
            if step < len(steps):
                return epoch, step
            step -= len(steps)
        return len(self.plan), 0

    def evaluate(self, datasets):
        """{task name: Dataset} -> ({name: predictions}, {name: score})"""
        predictions, scores = {}, {}
        for name, dataset in datasets.items():
            predictions[name], score = heads.evaluate(
                self.model, self.tasks[name], dataset, self.tokenizer, self.device,
                self.autocast)
            if score is not None:
                scores[name] = score
        return predictions, scores

    def overall(self, scores, names=None):
        return heads.overall_score({self.tasks[name]: scores[name]
                                    for name in names or scores})


def choose_precision(args, device):
    """--amp -> (a context for forward passes, a line that says why)."""
    def bfloat16():
        return torch.autocast(device.type, torch.bfloat16)

    small = args.smart and args.smart_weight and args.smart_eps < 1e-2
    if args.amp == "bf16":
        return bfloat16, "bfloat16 autocast (given)"
    if args.amp == "off":
        return contextlib.nullcontext, "float32 (given)"
    if small:       # 1 + 1e-5 is 1 in bfloat16, which has 8 bits
        return contextlib.nullcontext, f"float32 (--smart-eps {args.smart_eps:g} needs it)"
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported()
    else:
        has = any(getattr(torch.cpu, f"_is_{unit}_supported", lambda: False)()
                  for unit in ("avx512_bf16", "amx_tile"))
    if has:
        return bfloat16, f"bfloat16 autocast (this {device.type} has it)"
    return contextlib.nullcontext, f"float32 (this {device.type} has no bfloat16)"


def mean_logs(logs):
    """[(task, {name: scalar})] -> {"loss_sst": mean over the micro-batches, …}; one copy."""
    sums = {}
    for task, log in logs:
        for name, value in log.items():
            sums.setdefault(f"{name}_{task}", []).append(value)
    if not sums:
        return {}
    values = torch.stack([torch.stack(list(column)).mean() for column in sums.values()])
    return dict(zip(sums, values.tolist()))


def gradient_log(treated, names):
    """What the Gram matrix and C say of a step: norms, cosines, coefficients."""
    if treated is None:
        return {"skipped": 1}
    log = {"grad_norm": float(treated["norm"])}
    gram, C = treated["gram"].sum(0), treated["C"]
    if len(gram) == len(names) > 1:
        norms = np.sqrt(np.diagonal(gram))
        for i, a in enumerate(names):
            log[f"norm_{a}"] = float(norms[i])
            log[f"coefficient_{a}"] = float(C.sum(-2).mean(0)[i])
            for j, b in list(enumerate(names))[i + 1:]:
                log[f"cos_{a}_{b}"] = float(gram[i, j] / max(norms[i] * norms[j], 1e-300))
        acted = (C != 0) & ~np.eye(len(names), dtype=bool)
        log["acted"] = float(acted.sum() / (len(C) * len(names) * (len(names) - 1)))
    return log


# --- 4.4 Train, evaluate, predict ---

def load_model(args):
    """-> (tokenizer, MultitaskBert). The seed draws the heads' first weights."""
    tokenizer = data.WordPiece(os.path.join(args.weights, "vocab.txt"))
    torch.manual_seed(args.seed)
    encoder = bert.BertModel.from_pretrained(args.weights)
    config = encoder.config
    # Some tables are padded to a multiple of 64.
    if not 0 <= config.vocab_size - len(tokenizer.tokens) < 64:
        raise ValueError(f"{tokenizer.path} has {len(tokenizer.tokens)} entries, the weights "
                         f"beside it were trained with {config.vocab_size}; use the vocab.txt "
                         f"that came with them")
    if args.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = args.dropout
        for part in encoder.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = args.dropout
            elif isinstance(part, bert.BertLayer):
                part.attention_dropout = args.dropout
    return tokenizer, heads.MultitaskBert(encoder, args.con, args.hlh, args.pool,
                                          args.sst_loss, args.sts_loss)


def score_table(scores, overall):
    """The report's columns, as lines of text."""
    return ("SST acc.  Para acc.  STS corr.  Overall\n"
            f"{scores['sst']:8.3f}  {scores['para']:9.3f}  {scores['sts']:9.3f}  {overall:7.3f}")


def train(args, source):
    start = time.monotonic()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, model = load_model(args)
    tasks = list(model.tasks.values())
    model.to(args.device).train()
    sets = {split: {task.name: data.load(args.data, task, split, tokenizer) for task in tasks}
            for split in ("train", "dev", "test")}
    trainer = Trainer(args, model, tokenizer, sets["train"])

    out = args.out
    os.makedirs(os.path.join(out, "predictions"), exist_ok=True)
    settings = {name: {"value": value, "from": source[name]} for name, value in
                vars(args).items()}
    run.write_json(os.path.join(out, "args.json"), {
        "args": settings, "versions": {"python": platform.python_version(),
                                       "torch": torch.__version__, "numpy": np.__version__},
        "threads": torch.get_num_threads(), "precision": trainer.precision})
    print(f"run: {out}")
    for name, origin in source.items():
        if origin.startswith("Table 1") or name in DEFAULTS:
            print(f"  --{name.replace('_', '-')} {getattr(args, name)} ({origin})")
    print(f"  {trainer.total} updates, {trainer.flat.theta.numel():,} parameters, "
          f"{trainer.precision}", flush=True)

    best, progress = None, run.Progress(trainer.total)
    with open(os.path.join(out, "metrics.jsonl"), "w", encoding="utf-8") as metrics:
        while trainer.step_number < trainer.total:
            line = trainer.step()
            metrics.write(json.dumps(line) + "\n")
            losses = "  ".join(f"{name} {line[f'loss_{name}']:.3f}" for name in args.tasks
                               if f"loss_{name}" in line)
            progress.show(trainer.step_number, f"epoch {line['epoch']}  loss {losses}")
            epoch, inside = trainer.where(trainer.step_number)
            if inside and trainer.step_number < trainer.total:
                continue
            predictions, scores = trainer.evaluate(sets["dev"])
            overall = trainer.overall(scores)
            selected = trainer.overall(scores, args.tasks)
            metrics.write(json.dumps({
                "step": trainer.step_number, "epoch": line["epoch"],
                "dev": {**scores, "overall": overall}}) + "\n")
            metrics.flush()
            progress.clear()
            print(f"epoch {line['epoch']}: dev SST {scores['sst']:.3f}  para "
                  f"{scores['para']:.3f}  STS {scores['sts']:.3f}  overall {overall:.3f}",
                  flush=True)
            if best is None or selected > best["selected"]:
                best = {"selected": selected, "epoch": line["epoch"],
                        "dev": {**scores, "overall": overall}}
                model.save_pretrained(os.path.join(out, "best"))
                shutil.copyfile(tokenizer.path, os.path.join(out, "best", "vocab.txt"))

    trainer.flat.check_views()
    model.load_state_dict(
        heads.MultitaskBert.from_pretrained(os.path.join(out, "best")).state_dict())
    for split in ("dev", "test"):
        predictions, scores = trainer.evaluate(sets[split])
        for task in tasks:
            data.write_predictions(
                os.path.join(out, "predictions", f"{task.name}-{split}-output.csv"), task,
                sets[split][task.name].ids, predictions[task.name])
    seconds = time.monotonic() - start
    run.write_json(os.path.join(out, "result.json"), {
        "dev": best["dev"], "epoch": best["epoch"], "seconds": round(seconds, 1),
        "skipped": trainer.skipped, "args": vars(args)})
    print(f"\nbest on dev, after epoch {best['epoch']}:")
    print(score_table(best["dev"], best["dev"]["overall"]))
    if trainer.skipped:
        print(f"{trainer.skipped} steps were skipped: their gradient was not finite")
    print(f"{run.clock(seconds)} in all; predictions in {os.path.join(out, 'predictions')}")


def main(argv=None):
    args, source = parse(argv)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        if not (args.data and args.weights):
            raise ValueError("give the folder of the nine CSV files with --data, and that of a "
                             "pre-trained BERT with --weights")
        if args.out is None:
            words = [args.option] + [name for name in ("smart", "con", "hlh")
                                     if getattr(args, name)]
            args.out = os.path.join("runs", "-".join(words + [time.strftime("%Y%m%d-%H%M%S")]))
        train(args, source)
    except (ValueError, OSError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
