"""What train.py says of a run: the lines before its first update and after its last."""

import os

from plumbing import reading, sources
from plumbing.progress import clock


def opening(args, methods, origins, missing, session, total, training, precision) -> str:
    """Where it is, and with what values.   -> lines

    methods: ["gvac", "smart", …]; origins: {name of a value: where it came from}; missing:
    names of files; session: a loop.Loop; total: updates; training: a train.Training.
    """
    lines = [f"run: {session.folder.path}",
             f"  {' + '.join(methods)}: {', '.join(args.tasks)}"]
    for name, origin in origins.items():
        origin = "" if args.resume else f" ({origin})"
        lines.append(f"  --{name.replace('_', '-')} {getattr(args, name)}{origin}")
    if missing:
        lines.append(f"  left out, as there is no such file: {', '.join(missing)}")
    resumed = f"; going on after update {session.step}" if args.resume else ""
    lines.append(f"  {total} updates, {training.flat.theta.numel():,} parameters, "
                 f"{precision}{resumed}")
    return note(args) + "\n".join(lines)


def is_finished(path) -> bool:
    """Has the run in this folder a result.json?   Raises ValueError for an empty one"""
    file = os.path.join(path, "result.json")
    return os.path.exists(file) and bool(reading.read_json(file, {"dev": dict}))


def result(args, session, total, skipped) -> dict:
    """result.json of a run that has come to its end; skipped: number of skipped updates.

    "stopped" is the flag that made it the end: --patience 2, --max-steps 100, --epochs 15.
    """
    stopped = next(f"--{name} {value}" for name, value, is_it in (
        ("patience", args.patience, session.step < total),
        ("max-steps", args.max_steps, args.max_steps == total),
        ("epochs", args.epochs, True)) if is_it)
    return {"dev": session.best["dev"], "epoch": session.best["epoch"],
            "step": session.best["step"], "stopped": stopped,
            "seconds": round(session.seconds, 1),
            "checkpoint_seconds": round(session.folder.saving, 1), "skipped": skipped,
            "args": vars(args)}


def closing(args, result, tasks, session, total) -> str:
    """The best scores, under their names.   result: of result(); tasks: {name: Task}"""
    columns = {tasks[name].title if name in tasks else "Overall": score
               for name, score in result["dev"].items()}
    place = f"epoch {result['epoch']}"
    if args.eval_every:
        place = f"update {result['step']}, in {place}"
    lines = [f"\nbest on dev, after {place}:", "  ".join(columns),
             "  ".join(f"{score:{len(title)}.3f}" for title, score in columns.items())]
    if session.step < total:
        lines.append(f"stopped by {result['stopped']}, after update {session.step} of "
                     f"{total}")
    if result["skipped"]:
        lines.append(f"{result['skipped']} updates were skipped: their gradient was not "
                     f"finite")
    lines.append(f"{clock(session.seconds)} in all; predictions in "
                 f"{session.folder / 'predictions'}\n")
    expected = sources.expected(vars(args)) if args.weights == sources.SAMPLE else ""
    return "\n".join(lines) + expected + note(args)


def note(args) -> str:
    """That this is the sample, if it is: a run's first words and its last ones."""
    return sources.SAMPLE_NOTE if args.data == sources.SAMPLE else ""
