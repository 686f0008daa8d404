"""A run of train.py before and after fit(): its folder, its first lines and its last.

state() and restore() are for tools/pretrain.py too.
"""

import argparse
import functools
import json
import os

from plumbing import (
    board,
    declared,
    folder,
    loop,
    machine,
    plugins,
    ranks,
    reading,
    sources,
)
from plumbing.files import write_json
from plumbing.progress import clock

# --- Before: its settings ---

def settled(args, source, parser):
    """The flags, or those of the run to be resumed, with its --out.   -> (args, settings)

    settings: the args.json to be resumed, or None. Raises ValueError for a flag that
    differs from the run's, and for an --out that is taken.
    """
    settings = None
    if args.resume:
        values, settings = folder.resumed(vars(args), source, args.resume, parser)
        args = argparse.Namespace(**{**values, "resume": args.resume})
    if args.out is None:
        args.out = ranks.said_by_first(folder.new_path(methods(args)))
    elif not args.resume:
        folder.check_free(args.out)         # before the seconds that loading takes
    return args, settings


def precision(args, device):
    """Of the forward passes.   -> (a function that makes their context, it in words)"""
    # What SMART adds to x must survive rounding, or R_s measures the rounding.
    smallest_change = args.smart_eps if args.smart and args.smart_weight else 1.0
    return machine.choose_precision(args.amp, device, smallest_change)


def check_inputs(args, train_sets, config):
    """Raise ValueError if a trained task's set is too small for one update, or BERT's
    config has no dropout for --r-drop."""
    if args.r_drop and not config.hidden_dropout_prob + config.attention_probs_dropout_prob:
        raise ValueError(f"--r-drop {args.r_drop:g} would change nothing: this model has "
                         f"no dropout, so its two passes are the same; add --dropout .1")
    for name in args.tasks:
        dataset, needed = train_sets[name], args.batch_size * args.accumulate
        if len(dataset) < needed:
            raise ValueError(f"{dataset.path}: one update needs {args.accumulate} batches "
                             f"of {args.batch_size}, it has {len(dataset)} examples; use a "
                             f"smaller --batch-size or --accumulate")


def check_plan(args, plan):
    """Raise ValueError for what would change nothing in these epochs of updates."""
    total = sum(map(len, plan))
    evaluations = sum(epoch >= args.para_first
                      for epoch, _ in loop.cut(plan, args.eval_every))
    # The first evaluation is the best so far, unless paraphrase comes first.
    needed = args.patience and args.patience + (not args.para_first) + 1
    if needed and evaluations < needed:
        raise ValueError(f"--patience {args.patience} would change nothing: for that there "
                         f"must be {needed} evaluations or more, and this run has "
                         f"{evaluations}; use less, or more evaluations, by --eval-every")
    if args.eval_every and args.eval_every >= total:
        raise ValueError(f"--eval-every {args.eval_every} would change nothing: the run "
                         f"has {total} updates; use fewer")


# --- What a checkpoint holds ---

def state(training) -> dict:
    """All that a later step depends on, as tensors and plain values.

    training: a train.Training, or a pretrain.Pretraining, which has no treatment.
    """
    found = {"theta": training.flat.theta, "optimizer": training.optimizer.state_dict(),
             "streams": {name: list(stream.position)
                         for name, stream in training.streams.items()},
             "random": machine.random_states(training.flat.theta.device),
             "scale": training.scale.state()}
    if hasattr(training, "treatment"):
        found |= {"treatment": plugins.state_of(training.treatment),
                  "teacher": training.teacher and training.teacher.theta,
                  "rng": json.dumps(training.rng.bit_generator.state),
                  "skipped": training.skipped}
        if isinstance(training.treatment, plugins.PerUnit):
            training.treatment.warn_of_state()
    return found


def restore(training, saved: dict):
    """Make this Training the one that state() described."""
    # Trap: copy into θ. A new tensor under its name would leave the model with the old.
    training.flat.theta.copy_(saved["theta"])
    training.optimizer.load_state_dict(saved["optimizer"])
    for name, position in saved["streams"].items():
        training.streams[name].position = position
    machine.set_random_states(saved["random"], training.flat.theta.device)
    training.scale.restore(saved["scale"])
    if hasattr(training, "treatment"):
        plugins.restored(training.treatment, saved["treatment"])
        if training.teacher is not None:
            training.teacher.theta.copy_(saved["teacher"])
        training.rng.bit_generator.state = json.loads(saved["rng"])
        training.skipped = saved["skipped"]


def resume(run, training):
    """Go on from an open folder's checkpoint, if it has one.   Raises ValueError

    -> what makes the state for the next checkpoint, for loop.Loop
    """
    current = functools.partial(state, training)
    if run.state:
        run.restore(functools.partial(restore, training), current)
    return current


# --- Its first lines and its last ---

def begin(args, source, shown, settings, training, total, device, precision):
    """Open the run's folder, go on from its checkpoint if it has one, and say so.

    source: where each value came from; shown: names of those to be printed; settings: the
    args.json to be resumed, or None; training: a train.Training; total: updates in all;
    precision: of the forward passes, and why. Returns a loop.Loop. The folder comes last of
    all preparations, so that a refusal leaves nothing behind. Raises ValueError, OSError
    """
    events = board.Board() if args.tensorboard else None
    files = {**sources.files_of(training.sets, args.weights),
             **plugins.files_of(args.option)}
    here = {**machine.description(device, precision), "processes": ranks.here.world}
    if args.resume:
        folder.compare(settings, args.resume, files, here,
                       mended=source["option"] == "given")
        run = ranks.opened(folder.Folder.reopen, args.resume, settings)
    else:
        run = ranks.opened(folder.Folder.create, args.out,
                           folder.new_settings(args, source, files, here))
    run.board = events
    current = resume(run, training)
    about_ranks = ranks.begin(run.state, training, args)
    session = loop.Loop(run, current, total, args.checkpoint_every, args.eval_every,
                        args.patience, patience_from=args.para_first)
    print(f"{note(args)}run: {run.path}\n  {' + '.join(methods(args))}: "
          f"{', '.join(args.tasks)}")
    for name in shown:
        origin = "" if args.resume else f" ({source[name]})"
        print(f"  --{name.replace('_', '-')} {getattr(args, name)}{origin}")
    print(f"  {machine.why_device(args.device, device)}")
    if training.missing:
        print(f"  left out, as there is no such file: {', '.join(training.missing)}")
    too_long = cut_texts(training)
    if too_long:
        print(f"  cut to {training.model.max_length} tokens: {', '.join(too_long)}")
    resumed = f"; going on after update {session.step}" if args.resume else ""
    print(f"  {total} updates, {training.flat.theta.numel():,} parameters, "
          f"{precision}{resumed}\n{about_ranks}", end="", flush=True)
    return session


def cut_texts(training) -> list:
    """["sst 3 of 2000", …]: the training examples that --max-length cuts, if there are."""
    model, found = training.model, []
    for name, dataset in training.sets["train"].items():
        joint = model.con and model.tasks[name].pair
        # [CLS] a [SEP] b [SEP], or [CLS] and [SEP] around the longer one
        room = model.max_length - (3 if joint else 2)
        number = sum((sum if joint else max)(map(len, texts)) > room
                     for texts in dataset.tokens)
        if number:
            found.append(f"{name} {number} of {len(dataset)}")
    return found


def methods(args) -> list:
    """["gvac", "smart", "con"]: what a run is called by."""
    return [plugins.short(args.option),
            *(name.replace("_", "-") for name in ("smart", "r_drop", "con", "cosine", "hlh")
              if getattr(args, name))]


def is_finished(path) -> bool:
    """Has the run in this folder a result.json?   Raises ValueError for an empty one"""
    file = os.path.join(path, "result.json")
    return os.path.exists(file) and bool(reading.read_json(file, {"dev": dict}))


def finish(args, session, training):
    """Write result.json and print the best scores, under their names.

    result.json is written last: a folder that has one is a finished run. "stopped" in it is
    the flag that made this the end: --patience 2, --max-steps 100 or --epochs 15.
    """
    if not ranks.first():
        return
    best, early = session.best, session.step < session.total
    stopped = next(f"--{name} {value}" for name, value, is_it in (
        ("patience", args.patience, early),
        ("max-steps", args.max_steps, args.max_steps == session.total),
        ("epochs", args.epochs, True)) if is_it)
    write_json(session.folder / "result.json", {
        "dev": best["dev"], "epoch": best["epoch"], "step": best["step"],
        "stopped": stopped, "seconds": round(session.seconds, 1),
        "checkpoint_seconds": round(session.folder.saving, 1), "skipped": training.skipped,
        "args": vars(args)})
    tasks = training.model.tasks
    columns = {declared.title(tasks[name]) if name in tasks else "Overall": score
               for name, score in best["dev"].items()}
    update = f"update {best['step']}, in " if args.eval_every else ""
    print(f"\nbest on dev, after {update}epoch {best['epoch']}:\n" + "  ".join(columns))
    print("  ".join(f"{score:{len(title)}.3f}" for title, score in columns.items()))
    if early:
        print(f"stopped by {stopped}, after update {session.step} of {session.total}")
    if training.skipped:
        print(f"{training.skipped} updates were skipped: their gradient was not finite")
    print(f"{clock(session.seconds)} in all; predictions in "
          f"{session.folder / 'predictions'}")
    if args.data == args.weights == sources.SAMPLE:
        print(sources.expected(vars(args)), end="")
    print(note(args), end="")


def note(args) -> str:
    """That this is the sample, if it is: a run's first words and its last ones."""
    return sources.SAMPLE_NOTE if args.data == sources.SAMPLE else ""
