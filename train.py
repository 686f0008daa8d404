"""Train, evaluate, predict: the command line, and the loop.

    4.3    TABLE_1: the report's configurations;  parse(): which values a run takes
    3.3    Training: what a step works on;  prepare(): from the flags
    3.2    fit(): the loop of Algorithms 1 and 2, with an evaluation after each epoch
    4.2    predict(): prediction files for dev and test
    4.4    train(): one run

    python train.py --option gvac --smart --con --hlh

Symbols: a step is one update of θ; micro-batches are accumulated into one step; an epoch is
as many steps as the aligned set fills, or in Algorithm 1 all batches of all sets.
The flags are defined in plumbing/flags.py; python train.py --help explains each.
D11: Table 1 trains the sequential model for 10 epochs, Table 2 shows its scores after 5.
The scores are what one compares with, so it is 5 here.
Leaves out: searching for hyperparameters.
"""

import dataclasses
import os
import sys
from collections.abc import Callable

try:
    import numpy as np
    import torch
except ImportError as missing:
    sys.exit(f"{missing.name} is not installed; needed: pip install -r requirements.txt")
except KeyboardInterrupt:
    sys.exit(130)

import bert
import data
import heads
import multitask
import optim
import smart
from plumbing import (
    command,
    declared,
    flags,
    folder,
    loop,
    machine,
    plugins,
    ranks,
    runs,
    sources,
)

# --- 4.3 Table 1 ---

@dataclasses.dataclass(frozen=True)
class Row:
    """A row of Table 1: the flags that it stands for, and the values that it gives.

    fresh_streams: the one treated row without "RR". para_first is 3.5.1's: paraphrase
    first "was only implemented for the models with SMART and gradient vaccine combined".
    """
    name: str
    option: str = "rr"
    smart: bool = False
    con: bool = False
    hlh: bool = False
    fresh_streams: bool = False
    batch_size: int = 16
    accumulate: int = 1         # batches of each task in one update
    epochs: int = 15            # in passes over the aligned set; Algorithm 1: over all sets
    lr: float = 1e-5            # constant in the report; about θ's change in a step
    para_first: int = 0         # epochs
    warmup: float = 0.0         # share of the updates; the report has none
    pool: str = "cls"           # not in Table 1; BERT's own way to represent a sequence


FLAGS = ("option", "smart", "con", "hlh", "fresh_streams")
VALUES = ("batch_size", "accumulate", "epochs", "lr", "para_first", "warmup", "pool")
# accumulate=2 where the table says 32: "batch sizes of more than 16 caused the model to run
# out of memory", so 3.3.2 accumulates two into a virtual batch of 32.
TABLE_1 = [
    Row("Sequential Multitask learning", "seq", epochs=5),                          # D11
    Row("Gradient Surgery + CON", "pcgrad", con=True, fresh_streams=True, epochs=10),
    Row("Gradient Vaccine + RR", "gvac", accumulate=2),
    Row("Gradient Surgery + RR", "pcgrad"),
    Row("Gradient Surgery + RR + CON + HLH", "pcgrad", con=True, hlh=True, lr=2e-5),
    Row("Gradient Vaccine + RR + CON + HLH", "gvac", con=True, hlh=True, lr=2e-5),
    Row("SMART + GVAC + RR + CON", "gvac", smart=True, con=True, accumulate=2, lr=2e-5,
        para_first=5),
    Row("SMART + GVAC + RR + CON + HLH", "gvac", smart=True, con=True, hlh=True,
        accumulate=2, lr=3e-5, para_first=5),
]
# For the sample and a BERT as wide as its own, whatever the flags, so that rows differ in
# one thing. The best on dev of learning rates 5e-4 to 3e-3 and 6 or 8 epochs, rr --con.
SAMPLE_ROW = Row("the sample", epochs=8, lr=2e-3, warmup=0.1, pool="mean")
# Flags under a name, for --recipe. docs/recipe.md has what each is worth, with MiniLM.
PLAIN = ("--option rr --con --pool mean --lr 1e-4 --warmup .1 --epochs 4 --batch-size 16 "
         "--accumulate 1 --para-first 0")
RECIPES = {"plain": PLAIN, "r-drop": f"{PLAIN} --r-drop 1"}


def parser():
    return flags.parser([task.name for task in declared.valid(heads.tasks())],
                        ["seq", "rr", *multitask.TREATMENTS],
                        Row("default"), TABLE_1, SAMPLE_ROW, RECIPES)


def width(weights):
    """H, of the BERT in a folder"""
    return bert.BertConfig.from_json(os.path.join(weights, "config.json")).hidden_size


def parse(argv=None):
    """argv -> (args, {name: "given" | "recipe …" | "Table 1, …" | "the sample's" | …}).

    A value that is not given comes from the recipe, if there is one; else from SAMPLE_ROW
    on the sample with a BERT as wide as its own; else from the row of Table 1 with the same
    flags; else from a Row's defaults. A run prints and records which.
    A bad flag ends the program with status 2; raises ValueError if no data or weights are
    found.
    """
    p = parser()
    args, source = flags.parse(p, argv, RECIPES)
    args.option = plugins.in_full(args.option)
    row, origin = Row("default"), "default"
    for candidate in TABLE_1:
        if set(declared.REPORT) <= set(args.tasks) and all(
                getattr(candidate, flag) == getattr(args, flag) for flag in FLAGS):
            row, origin = candidate, f"Table 1, {candidate.name}"
    if not args.resume and not args.download:
        args.data, args.weights = sources.find(args.data, args.weights)
        if args.data == sources.SAMPLE and width(args.weights) == width(sources.SAMPLE):
            row, origin = SAMPLE_ROW, "the sample's"
    for name in VALUES:
        # Trap: 0 may be given. What was not given is None until here, never tested by `or`.
        if getattr(args, name) is None:
            setattr(args, name, getattr(row, name))
            in_table = row is SAMPLE_ROW or name not in ("warmup", "pool")
            source[name] = origin if in_table else "default"
    if not args.resume:         # the flags of a run to be resumed are compared with its own
        tasks = heads.tasks(args.sst_loss, args.sts_loss)
        flags.check(p, args, source, [task for task in tasks if task.name in args.tasks])
    return args, source


# --- 3.3 What a step works on ---

@dataclasses.dataclass
class Training:
    """The model, its data, and everything that a step changes.

    rows: {task: row of G}; regions: what treat() works on; loss_weights: {task: factor of
    its loss}; autocast: makes the context for a forward pass.
    """
    model: heads.MultitaskBert
    sets: dict                          # {split: {task: data.Dataset}}
    rows: dict
    regions: list
    smart_settings: smart.Settings
    loss_weights: dict
    autocast: Callable
    # What follows is changed by a step, so it is what a checkpoint holds.
    flat: optim.FlatParameters          # θ, of which the model's parameters are views
    optimizer: optim.AdamW              # m, v and t
    treatment: Callable                 # its state, such as the vaccine's targets
    teacher: smart.Teacher | None       # θ̃
    streams: dict                       # {task: data.Stream}: their positions
    rng: np.random.Generator            # draws the orders of surgery and vaccine
    scale: optim.LossScale              # s, the factor of all losses in float16
    skipped: int = 0                    # steps whose gradient was not finite
    missing: tuple | list = ()          # names of files that are not there, nor needed

    def next_batch(self, name) -> data.Batch:
        """The next batch of a task's stream, on the device."""
        return self.batch(name, self.streams[name].next())

    def batch(self, name, indices) -> data.Batch:
        """Some training examples of a task.   indices [B]"""
        return data.collate(self.sets["train"][name], indices, self.model.tokenizer,
                            self.model.con, self.model.max_length).to(
                                self.flat.theta.device)

    def loss(self, name, batch, with_ratio=False, randn_like=torch.randn_like):
        """A task's loss with all its terms.   [report 3.5]   -> (scalar, {name: scalar})

        The scalar is multiplied by the task's weight and by s, what is logged is not.
        with_ratio logs smart.gradient_ratio() too; randn_like draws SMART's noise. Matrix
        products may run in 16 bits; θ, G and AdamW never do.
        """
        with self.autocast():
            total, parts = smart.objective(self.model, self.model.tasks[name], batch,
                                           self.smart_settings, self.teacher,
                                           self.scale.value, randn_like)
        total = self.scale.value * self.loss_weights.get(name, 1.0) * total
        log = {key: value.detach() for key, value in parts.items()}
        if with_ratio and self.smart_settings.weight:
            log["smooth_grad_ratio"] = smart.gradient_ratio(
                self.scale.value * self.smart_settings.weight * parts["smooth"],
                self.scale.value * parts["loss"], self.flat.parameters.values())
        return total, log

    def evaluate(self, model, split) -> dict:
        """{task: (predictions, score or None)} for each set of this split.   [report 4.2]

        Also of the report's tasks that are not trained: Table 2 has all scores.
        """
        return {name: heads.evaluate(model, model.tasks[name], dataset, model.tokenizer,
                                     device=self.flat.theta.device, autocast=self.autocast)
                for name, dataset in self.sets[split].items()}


def prepare(args, device, autocast) -> Training:
    """The model, its data and its optimizer, from the flags.   Raises ValueError, OSError

    The model is moved to its device before its parameters become views of θ.
    """
    # Trap: seed before the model is made, not only before training, or two runs with one
    # seed start from different heads.
    machine.seed(args.seed)
    encoder = bert.BertModel.from_pretrained(args.weights, args.dropout,
                                             pooler=args.pool == "cls")
    tokenizer = data.WordPiece(args.weights, encoder.config.vocab_size)
    model = heads.MultitaskBert(encoder, args.con, args.hlh, args.pool, args.sst_loss,
                                args.sts_loss, tokenizer, trained=args.tasks,
                                max_length=args.max_length, cosine=args.cosine)
    used = {name: task for name, task in model.tasks.items()
            if name in args.tasks or name in declared.REPORT}
    sets, missing = data.load_sets(args.data, used, args.tasks, model.tokenizer)
    runs.check_inputs(args, sets["train"], encoder.config)
    model.to(device).train()
    if args.freeze:     # autograd stops at the encoder's output, AdamW finds no gradient
        model.bert.requires_grad_(False)
    # Without treatment the individual gradients are not needed: one row collects their sum,
    # which saves two thirds of G.
    separate = args.option not in ("seq", "rr")
    rows = {name: k if separate else 0 for k, name in enumerate(args.tasks)}
    flat = optim.FlatParameters(model.blocks(), len(set(rows.values())))
    # A batch contains 500 of 30,000 words. With sparse gradients only their rows are added
    # to G; otherwise autograd first fills a whole table with zeros, which GPUs do faster.
    model.bert.word_embeddings.sparse = device.type == "cpu"
    regions = multitask.regions(flat, args.vaccine_granularity)
    settings = smart.Settings(args.smart_weight if args.smart else 0.0, args.smart_eps,
                              args.smart_steps, args.bregman_weight if args.smart else 0.0,
                              args.r_drop)
    return Training(
        model, sets, rows, regions, settings, args.task_weights or {}, autocast, flat,
        optimizer=optim.FusedAdamW(flat.param_groups(args.weight_decay), lr=args.lr),
        treatment=make_treatment(args, regions),
        teacher=smart.Teacher(model, flat) if settings.bregman_weight else None,
        # Each task's seed is its place among all tasks: leaving one out by --tasks does not
        # change the order of the others.
        streams={name: data.Stream(data.lengths(sets["train"][name], args.con),
                                   args.batch_size, (args.seed, k))
                 for k, name in enumerate(model.tasks) if name in args.tasks},
        # A generator of its own: drawing orders must shift no other random numbers.
        rng=np.random.default_rng([args.seed, 3]),
        scale=optim.LossScale(machine.is_float16(autocast, device)), missing=missing)


def make_treatment(args, regions):
    """--option -> the function that treats task gradients, gram [L, K, K] -> C."""
    if plugins.is_outside(args.option):
        L = len({region.unit for region in regions} - {None})
        return plugins.PerUnit(args.option, plugins.load(args.option), L,
                               multitask.call_treatment)
    if args.option in multitask.TREATMENTS:
        return multitask.TREATMENTS[args.option](args)
    return multitask.plain_sum


def make_plan(args, train_sets) -> list:
    """The tasks of each step, by epoch.   {task: data.Dataset} -> see multitask.plan()

    Whole batches count: the sample's 1,500 STS pairs make 93 batches of 16. So an epoch has
    93 updates, or 46 and 47 in turn with --accumulate 2.
    """
    return multitask.plan(
        {name: len(train_sets[name]) // args.batch_size for name in args.tasks},
        in_sequence=args.option == "seq", epochs=args.epochs, accumulate=args.accumulate,
        aligned=args.align, para_first=args.para_first, max_steps=args.max_steps)


# --- 3.2, 3.3, 4.4 The loop ---

def fit(training, session, plan, *, lr, warmup, clip, accumulate, fresh_streams,
        log_layers):
    """Algorithms 1 and 2, and an evaluation after each epoch.   [report 3.2, 3.3, 4.4]

    One update, with the tasks k that the plan has for it:

        G_k ← ∇(𝓕_k + μ D_Breg)(θ)      mean over the accumulated batches     [3.3.2, 3.5]
        C   ← treatment(G Gᵀ)           for a plain sum the identity        [3.3.1, 3.3.2]
        g   ← Σ_i Σ_k C_ik G_k          clipped to the largest norm                  [3.3]
        θ   ← AdamW(θ, g)               at this step's learning rate                 [3.1]
        θ̃   ← β θ̃ + (1 - β) θ           with SMART's Bregman term                    [3.5]

    Algorithm 1 has one k in each update, and C is 1; nothing else differs.

    lr: its peak; warmup: a share of all updates; clip: the update's largest
    norm, 0 for any; accumulate: micro-batches per step; the other flags as in --help.
    session: a loop.Loop, which continues where an earlier process stopped, and cuts epochs
    into parts where dev is evaluated more often; plan: see multitask.plan(). Leaves the
    best model in best/. Raises loop.Interrupted after a signal, loop.Diverged if training
    cannot go on.
    """
    flat, total = training.flat, sum(map(len, plan))
    for epoch, steps in session.parts(plan):
        # The row without "RR" has no "saved state iterator". (After a resume in the middle
        # of an epoch, its streams have restarted already.)
        for stream in training.streams.values():
            if fresh_streams and stream.position[0] < epoch:
                stream.restart()

        for step, names in steps:
            rate = lr * optim.learning_rate_factor(step, total, warmup)
            for group in training.optimizer.param_groups:
                group["lr"] = rate
            # Trap: a new batch for every micro-batch, or accumulation would repeat one.
            batches = [{name: training.next_batch(name) for name in names}
                       for _ in range(accumulate)]
            # 3.5: each task's loss with all its terms; its gradient goes to its row of G.
            # The ratio takes two more backward passes: 1% of the time at every 50th step.
            rows = {name: training.rows[name] for name in names}
            losses = multitask.backward(flat, batches, ranks.on_slice(training.loss), rows,
                                        with_ratio=step % 50 == 0)
            # Under torchrun each process has seen its rows of the batches.
            losses = ranks.summed(losses, flat.G, rows.values(), training.regions)
            # 3.3.1, 3.3.2: task gradients to one update, by surgery, vaccine or plain sum
            treated = multitask.treat(
                flat, training.regions, rows, ranks.from_first(training.treatment), clip,
                training.rng, losses=np.array([losses[f"loss_{name}"] for name in names]),
                scale=training.scale.value)
            # Trap: a skipped step still counts, or the schedule would run late.
            if treated is None:
                training.skipped += 1
            else:
                training.optimizer.step()
                # The teacher follows what AdamW has made of θ, so it comes second.
                if training.teacher is not None:
                    training.teacher.follow(flat.theta, smart.momentum_beta(step, total))
            session.log_step({"step": step + 1, "epoch": epoch + 1, "lr": rate, **losses,
                              **training.scale.log(),
                              **multitask.describe(
                                  treated, training.regions if log_layers else None)})
            training.scale.update(skipped=treated is None)
            if treated is None:
                loop.check_divergence(flat.theta, session.skipped, step, losses)
        keep_best(training, session, epoch)


def keep_best(training, session, epoch):
    """Evaluate on dev; if no earlier model was as good, save this one.   [report 4.4]

    Otherwise count one more evaluation without improvement, for --patience.
    """
    model = training.model
    with session.interruptible():
        results = training.evaluate(model, "dev")
    training.flat.check_views()
    scores = {model.tasks[name]: score for name, (_, score) in results.items()}
    dev = {task.name: score for task, score in scores.items()}
    dev["overall"] = heads.overall_score(scores)
    # Trap: select by the trained tasks only; an untrained head's score is noise.
    selected = heads.overall_score({task: score for task, score in scores.items()
                                    if task.name in training.rows})
    here = {"step": session.step, "epoch": epoch + 1, "dev": dev}
    session.log(here)
    if session.best is None or selected > session.best["selected"]:
        session.best, session.waited = {**here, "selected": selected}, 0
        session.folder.replace_folder("best", model.save_pretrained)
    else:
        session.waited += 1
    update = f", update {session.step}" if session.eval_every else ""
    session.say(f"epoch {epoch + 1}{update}: dev " + "  ".join(
        f"{name} {score:.3f}" for name, score in dev.items()))


def predict(path, training, best):
    """Prediction files for dev and test.   [report 4.2, 4.4]   best: the folder best/

    Read back from the disk, so that the files are what anyone gets who loads best/, up to
    the rounding of the run's autocast.
    """
    model = heads.MultitaskBert.from_pretrained(best).to(training.flat.theta.device)
    os.makedirs(path, exist_ok=True)
    for split in ("dev", "test"):
        for name, (predictions, _) in training.evaluate(model, split).items():
            if not ranks.first():
                continue
            file = os.path.join(path, f"{name}-{split}-output.csv")
            with folder.naming(file):
                data.write_predictions(file, model.tasks[name],
                                       training.sets[split][name].ids, predictions)


# --- 4.4 One run ---

def train(args, source) -> int:
    """One run, from its settings or its checkpoint to its predictions.   -> exit status

    0; 1 if it diverged; 128 plus the signal's number if it was stopped, as shells say.
    The order: settings, device, model and data, plan, and only then the run's folder, so
    that whatever is refused leaves nothing behind. After the loop best/ is read back for
    the predictions, and result.json, written last, says that the run is finished.
    """
    args, settings = runs.settled(args, source, parser())
    if args.resume and runs.is_finished(args.resume):
        print(f"the run in {args.resume} is finished; its scores are in result.json")
        return 0
    args.data, args.weights = sources.find(args.data, args.weights)
    device = machine.find_device(ranks.device_name(args.device))
    autocast, precision = runs.precision(args, device)
    training = prepare(args, device, autocast)
    plan = make_plan(args, training.sets["train"])
    total = sum(map(len, plan))
    if not args.resume:
        runs.check_plan(args, plan)
    session = runs.begin(args, source, VALUES, settings, training, total, device, precision)
    run = session.folder
    try:
        with session:
            fit(training, session, plan, lr=args.lr, warmup=args.warmup, clip=args.clip,
                accumulate=args.accumulate, fresh_streams=args.fresh_streams,
                log_layers=args.log_layers)
            with session.interruptible():
                predict(run / "predictions", training, run / "best")
    except loop.Interrupted:
        print(f"stopped after update {session.step} of {total}; to continue: "
              f"{ranks.resuming(run.path)}")
        return 128 + session.stop.asked
    except loop.Diverged as error:
        print(f"train.py: {error}; the log is in {run.path}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        raise machine.advice(error, args.batch_size, args.accumulate) from None
    runs.finish(args, session, training)
    return 0


def main(argv=None) -> int:
    """-> exit status: 2 for a mistake in flags or files, which gets one line."""
    with command.Mistakes() as mistakes, ranks.joined():
        args, source = parse(argv)
        if args.download:
            return sources.download() if ranks.first() else 0
        return train(args, source)
    return mistakes.status


if __name__ == "__main__":
    sys.exit(main())
