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
import json
import os
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
from plumbing import flags, machine, run, sources


# --- 4.3 Table 1 ---

# (option, smart, con, hlh, fresh streams): the row of Table 1 that these flags stand for. Its
# batch size 32 is 16, accumulated twice, as 3.3.2 says; 3.5.1 adds the epochs on paraphrase.
DEFAULTS = dict(batch_size=16, accumulate=1, epochs=15, lr=1e-5, para_first=0)
TABLE_1 = {key: dict(zip(["row", *DEFAULTS], row)) for key, row in {
    ("seq", 0, 0, 0, 0): ("Sequential Multitask learning", 16, 1, 10, 1e-5, 0),
    ("pcgrad", 0, 1, 0, 1): ("Gradient Surgery + CON", 16, 1, 10, 1e-5, 0),
    ("gvac", 0, 0, 0, 0): ("Gradient Vaccine + RR", 16, 2, 15, 1e-5, 0),
    ("pcgrad", 0, 0, 0, 0): ("Gradient Surgery + RR", 16, 1, 15, 1e-5, 0),
    ("pcgrad", 0, 1, 1, 0): ("Gradient Surgery + RR + CON + HLH", 16, 1, 15, 2e-5, 0),
    ("gvac", 0, 1, 1, 0): ("Gradient Vaccine + RR + CON + HLH", 16, 1, 15, 2e-5, 0),
    ("gvac", 1, 1, 0, 0): ("SMART + GVAC + RR + CON", 16, 2, 15, 2e-5, 5),
    ("gvac", 1, 1, 1, 0): ("SMART + GVAC + RR + CON + HLH", 16, 2, 15, 3e-5, 5),
}.items()}


def parser():
    """One flag for one ablation. What is not given comes from Table 1 or DEFAULTS."""
    whole, share, amount = flags.number(int, 1), flags.number(float, 0, 1), flags.number(float, 0)
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
    g.add_argument("--para-first", type=flags.number(int, 0), metavar="N",
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
    g.add_argument("--lr", type=amount, help="(report, Table 1; else 1e-5)")
    g.add_argument("--warmup", type=share, default=0.0, metavar="SHARE", help="share of the "
                   "updates with rising rate; if not 0, it then falls to 0 (report: 0)")
    g.add_argument("--clip", type=amount, default=1.0, metavar="NORM",
                   help="largest norm of an update's gradient, 0 for none (BERT: 1)")
    g.add_argument("--weight-decay", type=amount, default=0.0, help="on matrices (course: 0)")
    g.add_argument("--vaccine-granularity", choices=["model", "layer", "matrix"],
                   default="model", help="what gets a target of its own (report: model)")
    g.add_argument("--vaccine-beta", type=share, default=0.01, help="(Gradient Vaccine: 0.01)")
    g = p.add_argument_group("SMART")
    g.add_argument("--smart-weight", type=amount, default=1.0, help="λ_s (ours)")
    g.add_argument("--smart-eps", type=amount, default=1e-5, help="radius ε (ours)")
    g.add_argument("--smart-steps", type=whole, default=1, help="ascent steps (SMART: 1)")
    g.add_argument("--bregman-weight", type=amount, default=1.0, help="μ (SMART: 1)")
    g = p.add_argument_group("model")
    g.add_argument("--pool", choices=["cls", "mean"], default="cls",
                   help="a sequence as BERT's pooler output, or the mean over its tokens (cls)")
    g.add_argument("--dropout", type=flags.number(float, 0, 0.99), metavar="P",
                   help="everywhere (default: what config.json says)")
    g.add_argument("--sst-loss", choices=["ce", "mse"], default="ce", help="(ours, see D1)")
    g.add_argument("--sts-loss", choices=["mse", "ce"], default="mse", help="(ours, see D1)")
    g = p.add_argument_group("run")
    g.add_argument("--data", metavar="DIR", help="folder of the nine CSV files (data/)")
    g.add_argument("--weights", metavar="DIR|NAME", help="a pre-trained BERT: a folder, a name "
                   "under weights/, or an installed package (weights/bert-base-uncased)")
    g.add_argument("--download", action="store_true",
                   help="get data/ and weights/bert-base-uncased/, then stop")
    g.add_argument("--out", metavar="DIR", help="new folder for this run (under runs/)")
    g.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    g.add_argument("--checkpoint-every", type=whole, default=500, metavar="N",
                   help="updates between checkpoints; there is one at each epoch's end (ours)")
    g.add_argument("--seed", type=flags.number(int, 0, 2 ** 32 - 1), default=0)
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
    source = {name: "default" if given[name] in (None, False) else "given"
              for name in vars(args)}

    names = args.tasks.split(",")
    if not names[0] or set(names) - {"sst", "para", "sts"} or len(set(names)) < len(names):
        p.error(f"--tasks: needed some of sst,para,sts, got {args.tasks!r}")
    args.tasks = [name for name in ("sst", "para", "sts") if name in names]
    key = (args.option, args.smart, args.con, args.hlh, args.fresh_streams)
    row = TABLE_1.get(key) if len(names) == 3 else None
    for name, value in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, row[name] if row else value)
            source[name] = f"Table 1, {row['row']}" if row else "default"
    flags.check(p, args, source)
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
        smallest = args.smart_eps if args.smart and args.smart_weight else 1.0
        self.autocast, self.precision = machine.choose_precision(args.amp, self.device, smallest)
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
        self.total = min(sum(map(len, self.plan)), args.max_steps or sys.maxsize)
        self.step_number = self.skipped = 0

    def make_plan(self):
        """The tasks of every step.   [report 3.2, 3.3, 3.5.1]   -> [[(task, …), …], …]"""
        args = self.args
        batches = {name: len(self.train_sets[name]) // args.batch_size for name in args.tasks}
        for name, number in batches.items():
            if number < args.accumulate:
                raise ValueError(f"{self.train_sets[name].path}: needed {args.accumulate} "
                                 f"batches of {args.batch_size} for one update, got "
                                 f"{len(self.train_sets[name])} examples; use smaller ones")

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

            if args.smart and args.smart_weight:
                logits, smooth = smart.smoothness(f, x, task.divergence, args.smart_eps,
                                                  args.smart_steps, batch.attention_mask)
            else:
                logits, smooth = f(x), None
            loss = total = task.loss(logits, batch.labels)
            log = {"loss": loss.detach()}
            if smooth is not None:
                total = total + args.smart_weight * smooth
                log["smooth"] = smooth.detach()
            if self.teacher is not None:
                bregman = smart.bregman(logits, self.teacher(task, batch), task.divergence)
                total = total + args.bregman_weight * bregman
                log["bregman"] = bregman.detach()
        if smooth is not None and self.step_number % 50 == 0:
            log["smooth_grad_ratio"] = smart.gradient_ratio(
                args.smart_weight * smooth, loss, self.flat.parameters.values())
        return total, log

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
                **logs, **multitask.describe(treated, names)}

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
        """{task name: Dataset} -> {task name: (predictions, score)}"""
        return {name: heads.evaluate(self.model, self.tasks[name], dataset, self.tokenizer,
                                     self.device, self.autocast)
                for name, dataset in datasets.items()}

    def state(self):
        """All that a later step depends on, as tensors and plain values."""
        return {"step": self.step_number, "skipped": self.skipped, "theta": self.flat.theta,
                "optimizer": self.optimizer.state_dict(),
                "streams": {name: list(s.position) for name, s in self.streams.items()},
                "orders": json.dumps(self.rng.bit_generator.state),
                "random": machine.random_states(),
                "vaccine": None if self.vaccine.target is None
                else torch.from_numpy(self.vaccine.target),
                "teacher": None if self.teacher is None else self.teacher.theta}

    def save(self, path):
        """The model and its vocabulary, for best/."""
        self.model.save_pretrained(path)
        shutil.copyfile(self.tokenizer.path, os.path.join(path, "vocab.txt"))

    def restore(self, state):
        self.step_number, self.skipped = state["step"], state["skipped"]
        self.flat.theta.copy_(state["theta"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, position in state["streams"].items():
            self.streams[name].position = position
        self.rng.bit_generator.state = json.loads(state["orders"])
        machine.set_random_states(state["random"])
        if state["vaccine"] is not None:
            self.vaccine.target = state["vaccine"].numpy()
        if self.teacher is not None:
            self.teacher.theta.copy_(state["teacher"])


# --- 4.4 Train, evaluate, predict ---

def load_model(args):
    """-> (tokenizer, MultitaskBert). The seed draws the heads' first weights."""
    torch.manual_seed(args.seed)
    encoder = bert.BertModel.from_pretrained(args.weights, args.dropout)
    tokenizer = data.WordPiece(os.path.join(args.weights, "vocab.txt"),
                               encoder.config.vocab_size)
    return tokenizer, heads.MultitaskBert(encoder, args.con, args.hlh, args.pool,
                                          args.sst_loss, args.sts_loss)


def prepare(args, source):
    """-> (run.Folder, Trainer, {split: {task name: Dataset}})"""
    args, settings = run.resumed(args, source) if args.resume else (args, None)
    args.data, args.weights = sources.find_data(args.data), sources.find_weights(args.weights)
    if args.out is None:
        words = [args.option, *(name for name in ("smart", "con", "hlh") if getattr(args, name))]
        args.out = os.path.join("runs", "-".join([*words, time.strftime("%Y%m%d-%H%M%S")]))
    folder = run.Folder.open(args, source, settings)
    device = machine.find_device(args.device)
    tokenizer, model = load_model(args)
    sets = {split: {name: data.load(args.data, task, split, tokenizer)
                    for name, task in model.tasks.items()} for split in ("train", "dev", "test")}
    trainer = Trainer(args, model.to(device).train(), tokenizer, sets["train"])
    if folder.state:
        trainer.restore(folder.state)
    return folder, trainer, sets


def loop(folder, trainer, sets, stop):
    """Train to the end.   -> {"epoch", "selected", "dev"} of the model in best/, and seconds

    Raises run.Interrupted, after writing a checkpoint, if a signal asks for it.
    """
    state = folder.state or {"evaluated": 0, "best": None, "seconds": 0.0}
    evaluated, best = state["evaluated"], state["best"]
    start = time.monotonic() - state["seconds"]
    progress = run.Progress(trainer.total, trainer.step_number)

    def checkpoint():
        progress.clear()
        folder.checkpoint({**trainer.state(), "evaluated": evaluated, "best": best,
                           "seconds": time.monotonic() - start})

    while True:
        step = trainer.step_number
        epoch, inside = trainer.where(step)
        if evaluated < step and (inside == 0 or step == trainer.total):
            epoch += inside > 0                 # counted from 1, the one that has just ended
            try:
                with stop.abandon():
                    results = trainer.evaluate(sets["dev"])
            except run.Interrupted:
                checkpoint()
                raise
            scores = {name: score for name, (_, score) in results.items()}
            tasks = trainer.tasks
            dev = {**scores, "overall": heads.overall_score(
                {tasks[name]: score for name, score in scores.items()})}
            selected = heads.overall_score({tasks[name]: scores[name]
                                            for name in trainer.args.tasks})
            evaluated = step
            folder.log({"step": step, "epoch": epoch, "dev": dev})
            if best is None or selected > best["selected"]:
                best = {"epoch": epoch, "selected": selected, "dev": dev}
                folder.replace_folder("best", trainer.save)
            checkpoint()
            print(f"epoch {epoch}: dev " + "  ".join(
                f"{name} {score:.3f}" for name, score in dev.items()), flush=True)
        if step == trainer.total:
            return best, time.monotonic() - start
        line = trainer.step()
        folder.log(line)
        losses = "  ".join(f"{name} {line[f'loss_{name}']:.3f}" for name in trainer.args.tasks
                           if f"loss_{name}" in line)
        progress.show(trainer.step_number, f"epoch {line['epoch']}  loss {losses}")
        if stop.asked or trainer.step_number % trainer.args.checkpoint_every == 0:
            checkpoint()
        if stop.asked:
            raise run.Interrupted


def predict(folder, trainer, sets):
    """Prediction files for dev and test, from the model in best/."""
    best = heads.MultitaskBert.from_pretrained(folder / "best")
    trainer.model.load_state_dict(best.state_dict())
    os.makedirs(folder / "predictions", exist_ok=True)
    for split in ("dev", "test"):
        for name, (predictions, _) in trainer.evaluate(sets[split]).items():
            data.write_predictions(folder / f"predictions/{name}-{split}-output.csv",
                                   trainer.tasks[name], sets[split][name].ids, predictions)


def train(args, source):
    """One run, from its settings or its checkpoint to its predictions.   -> exit status"""
    folder, trainer, sets = prepare(args, source)
    args = trainer.args
    print(f"run: {folder.path}")
    for name in DEFAULTS:
        print(f"  --{name.replace('_', '-')} {getattr(args, name)}"
              + (f" ({source[name]})" if not args.resume else ""))
    print(f"  {trainer.total} updates, {trainer.flat.theta.numel():,} parameters, "
          f"{trainer.precision}" + (f"; going on after update {trainer.step_number}"
                                    if args.resume else ""), flush=True)
    with run.Stop() as stop:
        try:
            best, seconds = loop(folder, trainer, sets, stop)
            trainer.flat.check_views()
            with stop.abandon():
                predict(folder, trainer, sets)
        except run.Interrupted:
            print(f"stopped after update {trainer.step_number} of {trainer.total}; go on with: "
                  f"python train.py --resume {folder.path}")
            return 128 + stop.asked
        finally:
            folder.close()
    run.write_json(folder / "result.json", {
        "dev": best["dev"], "epoch": best["epoch"], "seconds": round(seconds, 1),
        "skipped": trainer.skipped, "args": vars(args)})
    print(f"\nbest on dev, after epoch {best['epoch']}:")
    print("SST acc.  Para acc.  STS corr.  Overall")
    print("{sst:8.3f}  {para:9.3f}  {sts:9.3f}  {overall:7.3f}".format(**best["dev"]))
    if trainer.skipped:
        print(f"{trainer.skipped} updates were skipped: their gradient was not finite")
    print(f"{run.clock(seconds)} in all; predictions in {folder / 'predictions'}")
    return 0


def main(argv=None):
    args, source = parse(argv)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        if args.download:
            sources.download()
            return 0
        return train(args, source)
    except (ValueError, OSError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:           # before the first step
        return 130


if __name__ == "__main__":
    sys.exit(main())
