"""Train, evaluate, predict: the command line.

    4.3    TABLE_1, DEFAULTS: the report's configurations
    4.3    parse(): what is given, what Table 1 says, what is left
    3.3    Trainer: everything that changes during training, and the step that changes it
    4.4    loop(): steps, an evaluation after each epoch, the best model kept
    4.2    predict(): prediction files for dev and test

    python train.py --option gvac --smart --con --hlh

Symbols: a step is one update of θ; micro-batches are what is accumulated to one step; an
epoch is as many steps as the aligned set fills.
The flags themselves stand in plumbing/flags.py; python train.py --help explains each.
D11: Table 1 trains the sequential model for 10 epochs, Table 2 shows its scores after 5.
The scores are what one compares with, so it is 5 here.
Leaves out: searching for hyperparameters.
"""

import json
import os
import shutil
import sys
import time

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

# (option, smart, con, hlh, fresh streams): the row of Table 1 that these flags stand for.
# Why 16 × 2 where the table says 32: "batch sizes of more than 16 caused the model to run
# out of memory", so 3.3.2 accumulates two batches to a virtual one of 32. The last column
# is 3.5.1's: paraphrase first "was only implemented for the models with SMART and gradient
# vaccine combined". Fresh streams stand for the one row that lacks "RR".
DEFAULTS = dict(batch_size=16, accumulate=1, epochs=15, lr=1e-5, para_first=0, warmup=0.0,
                pool="cls")
# For the sample's BERT of 0.8 million parameters, whatever the flags: rows then differ in
# one thing. The best of rates 5e-4 to 3e-3 and of 6 and 8 epochs, by rr with CON on dev.
SAMPLE = dict(DEFAULTS, epochs=8, lr=2e-3, warmup=0.1, pool="mean")
TABLE_1 = {key: dict(zip(["row", *DEFAULTS], row)) for key, row in {
    ("seq", 0, 0, 0, 0): ("Sequential Multitask learning", 16, 1, 5, 1e-5, 0),      # D11
    ("pcgrad", 0, 1, 0, 1): ("Gradient Surgery + CON", 16, 1, 10, 1e-5, 0),
    ("gvac", 0, 0, 0, 0): ("Gradient Vaccine + RR", 16, 2, 15, 1e-5, 0),
    ("pcgrad", 0, 0, 0, 0): ("Gradient Surgery + RR", 16, 1, 15, 1e-5, 0),
    ("pcgrad", 0, 1, 1, 0): ("Gradient Surgery + RR + CON + HLH", 16, 1, 15, 2e-5, 0),
    ("gvac", 0, 1, 1, 0): ("Gradient Vaccine + RR + CON + HLH", 16, 1, 15, 2e-5, 0),
    ("gvac", 1, 1, 0, 0): ("SMART + GVAC + RR + CON", 16, 2, 15, 2e-5, 5),
    ("gvac", 1, 1, 1, 0): ("SMART + GVAC + RR + CON + HLH", 16, 2, 15, 3e-5, 5),
}.items()}


def parse(argv=None):
    """argv -> (args, {name: "given" | "Table 1, …" | "default"}).

    A value that is not given comes from SAMPLE on the sample, else from the row of Table 1
    with the same flags, else from DEFAULTS, else from the flag; a run prints and records
    which. A bad flag ends the program with status 2; raises ValueError without data.
    """
    p = flags.parser()
    args = p.parse_args(argv)
    source = flags.given(p, argv)
    # Trap: 0 may be given. What was not given is None until here, never tested by `or`.
    # False == 0 and True == 1 in Python, in a dictionary's key too.
    key = (args.option, args.smart, args.con, args.hlh, args.fresh_streams)
    row = TABLE_1.get(key, {}) if len(args.tasks) == 3 else {}
    if not args.resume and not args.download:
        args.data, args.weights = sources.find(args.data, args.weights)
        row = SAMPLE if args.data == sources.SAMPLE else row
    for name, value in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, row.get(name, value))
            source[name] = "default" if name not in row else (
                "the sample's" if row is SAMPLE else f"Table 1, {row['row']}")
    if not args.resume:         # the flags of a run to be resumed are compared with its own
        flags.check(p, args, source)
    return args, source


# --- 3.3 The loop's state and its step ---

class Trainer:
    """All that changes during training, and the step that changes it.

    args as parse() gives them; model: a heads.MultitaskBert, already on its device;
    train_sets: {task name: data.Dataset}. plan is a list of epochs, each a list of steps,
    each the tasks that take part. Raises ValueError if a set is too small for one step.
    """

    def __init__(self, args, model, tokenizer, train_sets):
        self.args, self.model, self.tokenizer = args, model, tokenizer
        self.tasks, self.train_sets = model.tasks, train_sets
        self.device = next(model.parameters()).device
        # What SMART adds to x must survive rounding, or R_s measures the rounding.
        smallest = args.smart_eps if args.smart and args.smart_weight else 1.0
        self.autocast, self.precision = machine.choose_precision(args.amp, self.device,
                                                                 smallest)
        # Autograd then stops at the encoder's output, and AdamW finds no gradient for it.
        if args.freeze:
            model.bert.requires_grad_(False)

        treated = args.option in ("pcgrad", "gvac")
        # Without treatment nobody asks for the single gradients: one row collects their
        # sum, which saves two thirds of G.
        self.rows = {name: k if treated else 0 for k, name in enumerate(args.tasks)}
        self.flat = optim.FlatParameters(model.blocks(), len(set(self.rows.values())))
        # From here on every parameter lies in θ: nothing may move the model any more.
        # A batch names 500 of 30,000 words. Sparse, only their rows are added to G; else
        # autograd fills a whole table with zeros first. (On a GPU that costs less.)
        model.bert.word_embeddings.sparse = self.device.type == "cpu"
        self.regions = multitask.regions(self.flat, args.vaccine_granularity)
        self.vaccine = multitask.GradVac(args.vaccine_beta)
        self.treatment = {"pcgrad": multitask.pcgrad,
                          "gvac": self.vaccine}.get(args.option, multitask.plain_sum)
        self.optimizer = optim.FusedAdamW(self.flat.param_groups(args.weight_decay),
                                          lr=args.lr)
        # Its own generator: surgery's random orders must not shift anything else's numbers.
        self.rng = np.random.default_rng([args.seed, 3])
        # θ̃ starts as θ_0, and costs a forward pass a batch and P more numbers.
        self.teacher = smart.Teacher(model, self.flat) if (
            args.smart and args.bregman_weight) else None

        # A seed for each task by its place among all three: leaving one out by --tasks does
        # not change the order of the others.
        self.streams = {
            name: data.Stream(data.lengths(train_sets[name], args.con), args.batch_size,
                              (args.seed, k))
            for k, name in enumerate(self.tasks) if name in args.tasks}
        for name in args.tasks:
            number = len(train_sets[name])
            if number < args.batch_size * args.accumulate:
                raise ValueError(f"{train_sets[name].path}: one update needs "
                                 f"{args.accumulate} batches of {args.batch_size}, it has "
                                 f"{number} examples; use a smaller --batch-size or "
                                 f"--accumulate")
        self.plan = multitask.plan(
            {name: len(train_sets[name]) // args.batch_size for name in args.tasks},
            args.option == "seq", args.epochs, args.accumulate, args.align, args.para_first)
        # Known in advance: with --warmup the rate falls to 0 at this step.
        self.total = min(sum(map(len, self.plan)), args.max_steps or sys.maxsize)
        self.step_number = self.skipped = 0

    def objective(self, name, batch):
        """A task's loss with its SMART terms.   [report 3.5]   -> (scalar, {name: scalar})

        embed() and logits() are called one by one, because SMART perturbs what lies between
        them. Under autocast the matrix products run in bfloat16; θ, G and AdamW never do.
        """
        args, task = self.args, self.tasks[name]
        weight = args.smart_weight if args.smart else 0.0
        with self.autocast():
            total, parts = smart.objective(
                lambda x: self.model.logits(task, x, batch), self.model.embed(batch),
                lambda logits: task.loss(logits, batch.labels), task.divergence,
                weight, args.smart_eps, args.smart_steps, batch.attention_mask,
                args.bregman_weight, self.teacher and self.teacher(task, batch))
        log = {key: value.detach() for key, value in parts.items()}
        # Two more backward passes: 1% of the time at every 50th step.
        if weight and self.step_number % 50 == 0:
            log["smooth_grad_ratio"] = smart.gradient_ratio(
                weight * parts["smooth"], parts["loss"], self.flat.parameters.values())
        return total, log

    def step(self):
        """One update of θ.   [report, Algorithms 1 and 2]   -> its line of metrics

        Batches of each task in turn, a backward pass for each into its row of G, treatment,
        AdamW, then the teacher. A step whose gradient is not finite is skipped and counted.
        """
        args = self.args
        epoch, inside = self.where(self.step_number)
        # The report's row without "RR": no "saved state iterator".
        if inside == 0 and args.fresh_streams and epoch:
            for stream in self.streams.values():
                stream.restart()
        names = self.plan[epoch][inside]
        rate = args.lr * optim.learning_rate_factor(self.step_number, self.total,
                                                    args.warmup)
        # A function of the step's number alone, so that a resumed run finds the same rate.
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Trap: a new batch for every micro-batch, or accumulation would only repeat one.
        micro_batches = [{name: self.next_batch(name) for name in names}
                         for _ in range(args.accumulate)]
        # Algorithm 1's step has one task, Algorithm 2's has all: nothing else differs.
        rows = {name: self.rows[name] for name in names}
        logs = multitask.backward(self.flat, micro_batches, self.objective, rows)
        treated = multitask.treat(self.flat, self.regions, sorted(set(rows.values())),
                                  self.treatment, args.clip, self.rng)
        # Trap: a skipped step still counts, or the schedule would run late.
        if treated is None:
            self.skipped += 1
        else:
            # The teacher follows what AdamW has made of θ, so it comes second.
            self.optimizer.step()
            if self.teacher is not None:
                self.teacher.follow(self.flat.theta,
                                    smart.momentum_beta(self.step_number, self.total))
        self.step_number += 1
        return {"step": self.step_number, "epoch": epoch + 1, "lr": rate, **logs,
                **multitask.describe(treated, names, args.log_layers and self.regions)}

    def next_batch(self, name):
        """The next batch of a task's stream, on the device.   -> data.Batch"""
        dataset = self.train_sets[name]
        indices = self.streams[name].next()
        return data.collate(dataset, indices, self.tokenizer, self.args.con,
                            self.model.bert.config.max_position_embeddings).to(self.device)

    def where(self, step):
        """Number of a step -> (epoch, step in it), from 0; past the end (epochs, 0).

        No division: epochs differ in length (3.5.1, D18).
        """
        for epoch, steps in enumerate(self.plan):
            if step < len(steps):
                return epoch, step
            step -= len(steps)
        return len(self.plan), 0

    def evaluate(self, datasets):
        """{task name: Dataset} -> {task name: (predictions, score)}   [report 4.2]

        Also tasks that are not trained: the report's Table 2 has a score in every column.
        """
        return {name: heads.evaluate(self.model, self.tasks[name], dataset, self.tokenizer,
                                     self.device, self.autocast)
                for name, dataset in datasets.items()}

    def state(self):
        """All that a later step depends on, as tensors and plain values.

        That is: θ, AdamW's m, v and t, θ̃, the vaccine's targets, the position of every
        stream, and the state of the generators that draw dropout, noise and orders.
        """
        return {"step": self.step_number, "skipped": self.skipped, "theta": self.flat.theta,
                "optimizer": self.optimizer.state_dict(),
                "streams": {name: list(s.position) for name, s in self.streams.items()},
                "orders": json.dumps(self.rng.bit_generator.state),
                "random": machine.random_states(),
                "vaccine": None if self.vaccine.target is None
                else torch.from_numpy(self.vaccine.target),
                "teacher": None if self.teacher is None else self.teacher.theta}

    def save(self, path):
        """The model with its vocabulary, for best/: a folder to give as --weights."""
        self.model.save_pretrained(path)
        shutil.copyfile(self.tokenizer.path, os.path.join(path, "vocab.txt"))

    def restore(self, state):
        """Make this Trainer the one that state() described."""
        self.step_number, self.skipped = state["step"], state["skipped"]
        # Trap: copy into θ. A new tensor under its name would leave the model with the old.
        self.flat.theta.copy_(state["theta"])       # in place: the parameters are its views
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
    """-> (data.WordPiece, heads.MultitaskBert). The seed draws the heads' first weights.

    Trap: seed before the model is made, not only before training. Else two runs with one
    seed start from different heads.
    """
    torch.manual_seed(args.seed)
    encoder = bert.BertModel.from_pretrained(args.weights, args.dropout)
    tokenizer = data.WordPiece(os.path.join(args.weights, "vocab.txt"),
                               encoder.config.vocab_size)
    return tokenizer, heads.MultitaskBert(encoder, args.con, args.hlh, args.pool,
                                          args.sst_loss, args.sts_loss)


def prepare(args, source, settings):
    """What comes before the first step.   -> (Folder, Trainer, {split: {task: Dataset}})

    The folder is made last, so that a refusal leaves nothing behind. The order of the rest
    matters too: the model is made under the seed, moved to the device, then its parameters
    become views of θ, and only then is a checkpoint written into θ.
    """
    args.data, args.weights = sources.find(args.data, args.weights)
    if args.out is None:
        words = [name for name in ("smart", "con", "hlh") if getattr(args, name)]
        args.out = os.path.join("runs", "-".join([args.option, *words,
                                                  time.strftime("%Y%m%d-%H%M%S")]))
    if settings is None:
        run.check_free(args.out)        # before the seconds that loading takes
    device = machine.find_device(args.device)
    tokenizer, model = load_model(args)
    sets = {split: {name: data.load(args.data, task, split, tokenizer)
                    for name, task in model.tasks.items()}
            for split in ("train", "dev", "test")}
    trainer = Trainer(args, model.to(device).train(), tokenizer, sets["train"])
    folder = run.Folder.open(args, source, settings, run.files_of(args.data, args.weights),
                             machine.description(device, trainer.precision))
    if folder.state:
        trainer.restore(folder.state)
    return folder, trainer, sets


def loop(folder, trainer, sets, stop):
    """Train to the end.   -> ({"epoch", "selected", "dev"} of the model in best/, seconds)

    All three tasks are evaluated on dev after every epoch; the best model is the one with
    the highest overall score of the tasks that are trained. Raises run.Interrupted, after
    writing a checkpoint, if a signal asks for it. The loop's own state is how many steps
    are done and evaluated: a run killed between the two goes on with the evaluation.
    """
    state = folder.state or {"evaluated": 0, "best": None, "seconds": 0.0}
    evaluated, best = state["evaluated"], state["best"]
    start = time.monotonic() - state["seconds"]
    folder.state = None         # as large as θ and AdamW's state together
    progress = run.Progress(trainer.total, trainer.step_number)

    # θ with AdamW's m and v, and θ̃ with SMART: 3 to 4 numbers a parameter, 1.3 to 1.8 GB
    # for bert-base. Hence not after every step.
    def checkpoint():
        progress.clear()
        folder.checkpoint({**trainer.state(), "evaluated": evaluated, "best": best,
                           "seconds": time.monotonic() - start})

    # The order in here is what makes a resume exact: log, then checkpoint, then go on. What
    # comes after the checkpoint is done again from the same state, and gives the same bits.
    while True:
        step = trainer.step_number
        epoch, inside = trainer.where(step)
        if evaluated < step and (inside == 0 or step == trainer.total):
            epoch += inside > 0             # counted from 1, the one that has just ended
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
            # Trap: don't choose by a task that isn't trained; its untrained head is noise.
            selected = heads.overall_score({tasks[name]: scores[name]
                                            for name in trainer.args.tasks})
            evaluated = step
            trainer.flat.check_views()
            folder.log({"step": step, "epoch": epoch, "dev": dev})
            if best is None or selected > best["selected"]:
                best = {"epoch": epoch, "selected": selected, "dev": dev}
                folder.replace_folder("best", trainer.save)
            checkpoint()
            print(f"epoch {epoch}: dev " + "  ".join(
                f"{name} {score:.3f}" for name, score in dev.items()), flush=True)
        # A run that was killed after its last step comes straight here.
        if step == trainer.total:
            return best, time.monotonic() - start
        line = trainer.step()
        folder.log(line)
        # What a person wants to see while waiting; the rest is in metrics.jsonl.
        losses = "  ".join(f"{name} {line[f'loss_{name}']:.3f}" for name in trainer.tasks
                           if f"loss_{name}" in line)
        progress.show(trainer.step_number, f"epoch {line['epoch']}  loss {losses}")
        if stop.asked or trainer.step_number % trainer.args.checkpoint_every == 0:
            checkpoint()
        if stop.asked:
            raise run.Interrupted


def predict(folder, trainer, sets):
    """Prediction files for dev and test, from the model in best/.   [report 4.2, 4.4]

    Read back from the disk, so that the files are what anyone gets who loads best/.
    """
    best = heads.MultitaskBert.from_pretrained(folder / "best")
    trainer.model.load_state_dict(best.state_dict())
    os.makedirs(folder / "predictions", exist_ok=True)
    for split in ("dev", "test"):
        for name, (predictions, _) in trainer.evaluate(sets[split]).items():
            data.write_predictions(folder / f"predictions/{name}-{split}-output.csv",
                                   trainer.tasks[name], sets[split][name].ids, predictions)


def train(args, source):
    """One run, from its settings or its checkpoint to its predictions.   -> exit status

    0, or 128 plus the signal's number if it was stopped, as shells report it.
    """
    args, settings = run.resumed(args, source) if args.resume else (args, None)
    if args.resume and os.path.exists(os.path.join(args.resume, "result.json")):
        print(f"the run in {args.resume} is finished; its scores are in result.json")
        return 0
    folder, trainer, sets = prepare(args, source, settings)
    note = sources.SAMPLE_NOTE if args.data == sources.SAMPLE else ""
    print(f"{note}run: {folder.path}")
    for name in DEFAULTS:
        print(f"  --{name.replace('_', '-')} {getattr(args, name)}"
              + (f" ({source[name]})" if not args.resume else ""))
    print(f"  {trainer.total} updates, {trainer.flat.theta.numel():,} parameters, "
          f"{trainer.precision}" + (f"; going on after update {trainer.step_number}"
                                    if args.resume else ""), flush=True)
    # From here on a signal ends the run with a checkpoint; nothing computed is lost.
    with run.Stop() as stop:
        try:
            best, seconds = loop(folder, trainer, sets, stop)
            with stop.abandon():
                predict(folder, trainer, sets)
        except run.Interrupted:
            print(f"stopped after update {trainer.step_number} of {trainer.total}; go on "
                  f"with: python train.py --resume {folder.path}")
            return 128 + stop.asked
        finally:
            folder.close()
    # Written last: a folder with a result.json is a finished run.
    run.write_json(folder / "result.json", {
        "dev": best["dev"], "epoch": best["epoch"], "seconds": round(seconds, 1),
        "checkpoint_seconds": round(folder.saving, 1), "skipped": trainer.skipped,
        "args": vars(args)})
    print(f"\nbest on dev, after epoch {best['epoch']}:")
    print("SST acc.  Para acc.  STS corr.  Overall")
    print("{sst:8.3f}  {para:9.3f}  {sts:9.3f}  {overall:7.3f}".format(**best["dev"]))
    if trainer.skipped:
        print(f"{trainer.skipped} updates were skipped: their gradient was not finite")
    print(f"{run.clock(seconds)} in all; predictions in {folder / 'predictions'}\n"
          + (note and sources.expected(args, parse) + note), end="")
    return 0


def main(argv=None):
    """-> exit status: 2 for a mistake in flags or files, which gets one line."""
    def command():
        args, source = parse(argv)
        return sources.download() if args.download else train(args, source)
    return run.one_line(command)


if __name__ == "__main__":
    sys.exit(main())
