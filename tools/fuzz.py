"""Damaged files and absurd flags for everything that we read; what becomes of each.

    python tools/fuzz.py --seconds 60 --seed 0   status 1 after a finding
    python tools/fuzz.py --seed 0 --only 1234    input 1234 again

An input is a whole file of the tiny world, or the flags of a command, damaged once to three
times: bits, pieces, lines, cells, encodings, and the structure of JSON, tensors and
checkpoints. It goes to the functions and commands that read it, in this process. Fine are

    loaded      it was read, and what was read passes the check of its kind
    refused     status 2 and one line on standard error, printable, which names the file

and these are findings:

    traceback   an exception that is no refusal       message   a line that is not as above
    hang        over 10 s                             memory    over 300 MB
    crash       the process ended                     silence   the check failed: a row
                vanished, or an edited checkpoint or log was accepted

The reader runs in a process of its own, which is replaced after a hang or a crash.
"""

import collections
import contextlib
import io
import math
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

from plumbing import command, console, flags
from tools.damage import damaged
from tools.kinds import kinds, make_world

LIMIT_SECONDS, LIMIT_BYTES, LIMIT_MESSAGE = 10.0, 300e6, 1000
FINDINGS = ("traceback", "message", "hang", "memory", "crash", "silence")


# --- One input ---

class Fuzzer:
    """A world, and what is read of it."""

    def __init__(self, root):
        torch.set_num_threads(1)
        with contextlib.redirect_stdout(io.StringIO()):
            make_world(root)
            self.kinds = kinds(root)
        self.weights = [1 if kind.slow else 25 for kind in self.kinds]

    def attempt(self, seed, number, verbose=False):
        """-> (name of its kind, its class, a note)"""
        rng = random.Random(f"{seed} {number}")
        kind, = rng.choices(self.kinds, self.weights)
        place = kind.folder + (".written" if kind.writes else ".read")
        if kind.writes or not os.path.exists(place):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(kind.folder, place)
        if kind.flags:
            return kind.name, *outcome(kind, place, kind.flags(rng, place), verbose=verbose)
        path = os.path.join(place, kind.file)
        with open(path, "rb") as file:
            original = file.read()
        raw = damaged(rng, kind.file, original)
        with open(path, "wb") as file:
            file.write(raw)
        try:
            return kind.name, *outcome(kind, place, [], original, raw, verbose)
        finally:
            if not kind.writes:
                with open(path, "wb") as file:
                    file.write(original)


def outcome(kind, place, argv, original=b"", raw=b"", verbose=False):
    """Read one damaged input.   -> (class, note)"""
    loaded, output, errors = [], io.StringIO(), io.StringIO()

    def run():
        loaded.append(kind.read(place, argv))
        return loaded[0] if type(loaded[0]) is int else 0
    begin, memory = time.process_time(), peak_memory()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), \
                warnings.catch_warnings():
            warnings.simplefilter("always")
            status = command.one_line(run)
    except SystemExit as end:           # argparse
        status = end.code
    except BaseException as error:
        if verbose:
            traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", (f"{type(error).__name__}: {str(error)[:100]!r} in "
                             f"{os.path.basename(last.filename)}, line {last.lineno}")
    if verbose:
        print(f"flags {argv}, status {status}\n{output.getvalue()}{errors.getvalue()}")
    seconds, grown = time.process_time() - begin, peak_memory() - memory
    if seconds > LIMIT_SECONDS:
        return "hang", f"{seconds:.0f} s"
    if grown > LIMIT_BYTES:
        return "memory", f"{grown / 1e6:.0f} MB"
    lines = errors.getvalue().split("\n")[:-1]
    for line in lines:
        if console.printable(line) != line or len(line) > LIMIT_MESSAGE:
            return "message", f"not printable or too long: {line[:200]!r}"
    if status == 0:
        wrong = kind.check and loaded[0] != 0 and kind.check(loaded[0], original, raw)
        return ("silence", wrong) if wrong else ("loaded", "")
    lines = [line for line in lines if not line.startswith("warning: ")]
    # predict.py has a line for each line that it cannot answer.
    if status != 2 or not lines or (len(lines) > 1 and kind.name != "predict --file"):
        return "message", f"status {status}, {len(lines)} lines: {lines[:3]}"
    if not kind.named_by(lines[-1], place):
        return "message", f"names no file: {lines[-1][:200]!r}"
    return "refused", lines[-1]


def peak_memory():
    """In bytes; 0 on Windows, which does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- The processes ---

def work(root, seed, first, connection):
    """Inputs first, first + 1, … until the connection ends."""
    fuzzer = Fuzzer(root)
    connection.send("ready")
    while True:
        connection.send((first, *fuzzer.attempt(seed, first)))
        first += 1


def results_of(seed, seconds, inputs=math.inf):
    """-> (number, kind, class, note), for as long as there is time; of so many at most"""
    context, number, end = multiprocessing.get_context("spawn"), 0, None
    while number < inputs and (end is None or time.monotonic() < end):
        root = tempfile.mkdtemp(prefix="minbert-fuzz-")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(root, seed, number, theirs))
        process.start()
        theirs.close()
        try:
            if not ours.poll(120) or ours.recv() != "ready":
                raise EOFError
            end = end or time.monotonic() + seconds
            while number < inputs and time.monotonic() < end:
                if not ours.poll(6 * LIMIT_SECONDS):      # other programs run too
                    yield number, "?", "hang", "it was ended"
                    number += 1
                    break
                number, *result = ours.recv()
                yield number, *result
                number += 1
        except EOFError:
            yield number, "?", "crash", f"exit status {process.exitcode}"
            number += 1
            if end is None:
                return
        finally:
            process.kill()
            process.join()
            shutil.rmtree(root, ignore_errors=True)


def main(argv=None):
    parser = command.Parser(__doc__)
    parser.add_argument("--seconds", type=flags.number(float, 0), default=60, help="(60)")
    parser.add_argument("--inputs", type=flags.number(int, 1), default=math.inf,
                        metavar="N", help="at most (as many as there is time for)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one input, and details")
    args = parser.parse_args(argv)
    if args.only is not None:
        with tempfile.TemporaryDirectory() as root:
            result = Fuzzer(root).attempt(args.seed, args.only, verbose=True)
        print(*result, sep=": ")
        return int(result[1] in FINDINGS)
    classes, by_kind, findings = collections.Counter(), {}, 0
    for number, kind, name, note in results_of(args.seed, args.seconds, args.inputs):
        classes[name] += 1
        by_kind.setdefault(kind, collections.Counter())[name] += 1
        if name in FINDINGS:
            findings += 1
            print(f"{name}: {kind}: {note}\n    again: python tools/fuzz.py --seed "
                  f"{args.seed} --only {number}", flush=True)
    for kind, counts in sorted(by_kind.items()):
        print(f"  {kind:32} " + ", ".join(f"{n} {name}" for name, n in sorted(
            counts.items())))
    print(f"{sum(classes.values())} inputs: " + ", ".join(
        f"{n} {name}" for name, n in sorted(classes.items())) + f"; {findings} findings")
    return int(findings > 0 or not classes)


if __name__ == "__main__":
    sys.exit(main())
