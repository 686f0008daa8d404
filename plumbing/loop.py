"""What a training loop needs besides training: checkpoints, signals, progress, resuming.

    with Loop(folder, state, total, checkpoint_every=500) as loop:
        for epoch, steps in loop.parts(plan):       # after a resume, what is left of them
            for step, item in steps:
                …                                   # one update
                loop.log_step({…})
            with loop.interruptible():
                …                                   # evaluation

The order of things makes a resume exact: log, then checkpoint, then go on. Whatever comes
after the last checkpoint is done again from the same state, and gives the same bits.
"""

import contextlib
import math
import signal
import time
import warnings

import torch

from plumbing import console, progress, ranks


class Interrupted(BaseException):
    """A signal has asked the loop to end; its checkpoint is written.

    No Exception: code of the user's, such as a metric, must not take it for its own.
    """


class Diverged(Exception):
    """Training cannot go on: the message says from which step on, and what to try."""


def check_divergence(theta, skipped_in_a_row, step, losses):
    """Raise Diverged if θ is not finite, or 20 updates in a row were skipped.

    step: number of the update from 0; losses: {name: number} of it.
    """
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    cause = f"{', '.join(bad) or 'the gradient'} not finite"
    advice = "try a smaller --lr, a --warmup, or --amp off"
    if not torch.isfinite(theta).all():
        raise Diverged(f"diverged: the parameters were not finite any more at update "
                       f"{step + 1} ({cause}); {advice}")
    if skipped_in_a_row >= 20:
        raise Diverged(f"diverged: 20 updates in a row were skipped, the last was update "
                       f"{step + 1} ({cause}); {advice}")


def warn_unless_finite(logits, label):
    """label: names the set that the logits are of"""
    wrong = (~torch.isfinite(logits)).sum().item()
    if wrong:
        warnings.warn(f"{label}: {wrong} of {logits.numel()} outputs of the model are not "
                      f"finite; train with a smaller --lr, or with --amp off", stacklevel=3)


@contextlib.contextmanager
def evaluating(model):
    """All modules in eval mode; after it, or an error, each as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Stop:
    """Turns a first Ctrl-C or SIGTERM into a request; a second Ctrl-C kills the process.

    As a context manager it listens. asked is the signal's number, or 0. In the body of
    `with stop.abandon():` a request raises Interrupted at once.
    """

    def __init__(self):
        self.asked, self.abandoning = 0, False

    def __enter__(self):
        self.before = {number: signal.signal(number, self.hear)
                       for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def agreed(self):
        """asked, in whichever process of the run; all get the same answer."""
        # The answer must not overwrite a signal that came while the ranks compared.
        number = ranks.largest(self.asked)
        if number:
            self.asked = number
        return number

    def raise_if_agreed(self):
        if self.agreed():
            raise Interrupted

    def hear(self, number, frame):
        self.asked = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.abandoning:
            raise Interrupted

    @contextlib.contextmanager
    def abandon(self):
        # Several processes must stop at the same place, so each asks the others there.
        self.abandoning, ranks.here.between = ranks.here.world == 1, self.raise_if_agreed
        try:
            if self.asked and self.abandoning:          # the request came just before
                raise Interrupted
            yield
        finally:
            self.abandoning, ranks.here.between = False, lambda: None


def cut(plan, every):
    """Epochs, cut after each `every`-th step too.   -> [(epoch, [item, …]), …]

    Steps are counted from the start: [[a, b, c], [d, e, f]] and 2 give ab, c, d, ef.
    Without `every` the parts are the epochs.
    """
    parts, first = [], 0
    for epoch, items in enumerate(plan):
        end = first + len(items)
        ends = [step for step in range(first + 1, end) if every and step % every == 0]
        for a, b in zip([first, *ends], [*ends, end]):
            parts.append((epoch, items[a - first:b - first]))
        first = end
    return parts


class Loop:
    """Counts steps and epochs, writes checkpoints, shows progress, obeys signals.

    folder: a folder.Folder; state() -> all that later steps depend on, for a checkpoint;
    total: steps in all; eval_every: steps between evaluations within an epoch, or None;
    patience: parts in a row without a better model that end the loop, or None; those of the
    epochs before `patience_from` do not count.
    step counts finished steps. best is whatever the caller wants to be remembered about the
    best model so far; waited, which the caller counts, the parts since then. Leaving the
    `with` closes the folder.
    """

    def __init__(self, folder, state, total, checkpoint_every, eval_every=None,
                 patience=None, patience_from=0):
        saved = folder.state or {}
        folder.state = None         # as large as θ and AdamW's state together
        self.folder, self.state, self.checkpoint_every = folder, state, checkpoint_every
        self.eval_every, self.patience = eval_every, patience
        self.patience_from = patience_from
        self.total = total
        self.step, self.finished_parts = saved.get("step", 0), saved.get("parts", 0)
        self.best, self.waited = saved.get("best"), saved.get("waited", 0)
        self.start = time.monotonic() - saved.get("seconds", 0.0)
        self.stop, self.progress = Stop(), progress.Progress(total, done=self.step)
        self.kept = saved.get("step")       # of the last checkpoint
        self.losses, self.dev = progress.Means(), None      # only to be shown
        self.skipped = saved.get("skipped_in_a_row", 0)

    def __enter__(self):
        self.stop.__enter__()
        return self

    def __exit__(self, kind, error, traceback):
        self.stop.__exit__(kind, error, traceback)
        self.progress.clear()
        self.folder.close()
        if (self.kept and isinstance(error, Exception) and not isinstance(error, Diverged)
                and ranks.first()):
            own = str(error).startswith("--option")
            more = ", once its file is mended and --option given again" if own else ""
            self.say(f"failed after update {self.step}; --resume "
                     f"{console.quoted(self.folder.path)} goes on after update {self.kept}"
                     f"{more}")

    @property
    def seconds(self) -> float:
        """Since the start, without the time between an interruption and its resume."""
        return time.monotonic() - self.start

    @property
    def out_of_patience(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def parts(self, plan):
        """[[item, …], …] -> (epoch, an iterator of (step, item)), for all that is left.

        A part is an epoch, or with eval_every a piece of one: see cut(). The caller
        evaluates after each, and the checkpoint comes after that: so a resume never finds
        an evaluation half counted.
        """
        first, self.epochs = 0, len(plan)
        for number, (epoch, items) in enumerate(cut(plan, self.eval_every)):
            if self.out_of_patience:
                break
            if number >= self.finished_parts:
                yield epoch, self.steps(first, items)
                self.finished_parts = number + 1
                if epoch < self.patience_from:
                    self.waited = 0
                self.checkpoint()
            first += len(items)

    def steps(self, first, items):
        for step in range(self.step, first + len(items)):
            yield step, items[step - first]
            self.step = step + 1
            if self.stop.agreed() or self.step % self.checkpoint_every == 0:
                self.checkpoint()
                self.stop.raise_if_agreed()

    def log(self, line: dict):
        """A line of metrics.jsonl."""
        self.folder.log(line)
        if "dev" in line:
            self.dev = line["dev"]["overall"]

    def log_step(self, line: dict):
        """A step's line, and the progress line with the running mean of each loss_T.

        While updates are skipped, it says how many in a row instead: the losses are
        stale.
        """
        self.log(line)
        self.skipped = self.skipped + 1 if "skipped" in line else 0
        for name, value in line.items():
            if (name.startswith("loss_") and name != "loss_scale"
                    and math.isfinite(value)):
                self.losses.add(name.removeprefix("loss_"), value)
        fields = [f" {name} {progress.short(mean)}"
                  for name, mean in self.losses.values.items()]
        fields[:1] = [f"  loss{field}" for field in fields[:1]]
        if self.skipped:
            fields = [f"  skipped {self.skipped} in a row"]
        if "epoch" in line:
            fields.append(f"  epoch {line['epoch']}/{self.epochs}")
        if self.dev is not None:
            fields.append(f"  dev {progress.short(self.dev, 3)}")
        self.progress.show(self.step + 1, fields)

    def say(self, text):
        self.progress.clear()
        print(text, flush=True)

    def checkpoint(self, state=None):
        # θ with AdamW's m and v, and θ̃ with SMART: 3 to 4 numbers a parameter, 1.3 to 1.8
        # GB for bert-base. Hence not after every step.
        self.progress.clear()
        self.folder.checkpoint(ranks.with_generators({
            **(state or self.state()), "step": self.step, "best": self.best,
            "waited": self.waited, "parts": self.finished_parts, "seconds": self.seconds,
            "skipped_in_a_row": self.skipped}))
        self.kept = self.step

    @contextlib.contextmanager
    def interruptible(self):
        """For work that a signal or an error may end, such as an evaluation by a metric of
        the user's: the steps before it are kept."""
        before = self.state()           # a metric may draw random numbers
        try:
            with self.stop.abandon():
                yield
        except (Exception, Interrupted) as error:
            if isinstance(error, Interrupted) or ranks.here.world == 1:
                self.checkpoint(before)     # alone, a rank would wait for the others
            raise
