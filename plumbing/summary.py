"""What train.py says of a run before its first update and after its last."""

import os

from plumbing import machine, ranks, reading, sources
from plumbing.files import write_json
from plumbing.progress import clock


def begin(args, methods, origins, missing, session, training, precision, device,
          about_ranks):
    """Print where the run is, and its values.

    methods: ["gvac", "smart", …]; origins: {name of a value: where it came from}; missing:
    names of files; session: a loop.Loop; training: a train.Training.
    """
    print(f"{note(args)}run: {session.folder.path}\n  {' + '.join(methods)}: "
          f"{', '.join(args.tasks)}")
    for name, origin in origins.items():
        origin = "" if args.resume else f" ({origin})"
        print(f"  --{name.replace('_', '-')} {getattr(args, name)}{origin}")
    print(f"  {machine.why_device(args.device, device)}")
    if missing:
        print(f"  left out, as there is no such file: {', '.join(missing)}")
    resumed = f"; going on after update {session.step}" if args.resume else ""
    print(f"  {session.total} updates, {training.flat.theta.numel():,} parameters, "
          f"{precision}{resumed}")
    print(about_ranks, end="", flush=True)


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
    columns = {tasks[name].title if name in tasks else "Overall": score
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
    if args.weights == sources.SAMPLE:
        print(sources.expected(vars(args)), end="")
    print(note(args), end="")


def note(args) -> str:
    """That this is the sample, if it is: a run's first words and its last ones."""
    return sources.SAMPLE_NOTE if args.data == sources.SAMPLE else ""
