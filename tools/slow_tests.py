"""Kill runs with SIGKILL at random moments, resume them, and compare results bit by bit.

    python tools/slow_tests.py [--kills 10] [--seed 0] [WORD …]

For each of --option seq, rr, pcgrad and gvac, plain and with SMART, accumulation,
paraphrase-first and all three: one run is left alone, another is killed --kills times and
resumed each time. Metrics, best weights, predictions, and θ, optimizer, vaccine and teacher
in the last checkpoint must be equal to the last bit. With WORDs only the runs whose name
contains one of them. Model and data are the tiny ones of tests/. About five minutes.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import train
from plumbing import run
from tests import SCRATCH
from tests.world import files_of, tiny_world

# Runs that differ stay here; what is in SCRATCH is removed at the end.
PLACE = tempfile.mkdtemp(prefix="minbert-slow-", dir=os.path.dirname(SCRATCH))
VARIANTS = {
    "plain": [], "smart": ["--smart"], "accumulate": ["--accumulate", "2"],
    "para-first": ["--para-first", "1"],
    "all": ["--smart", "--accumulate", "2", "--para-first", "1"],
}
COMMON = ["--con", "--epochs", "2", "--batch-size", "4", "--lr", "0.01", "--amp", "off",
          "--checkpoint-every", "3"]


def start(flags):
    """Fork, so that nobody waits for torch to be imported again.   -> process id"""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        status = 1
        try:
            status = train.main(flags)
        finally:
            os._exit(status)
    return child


def finish(flags):
    status = os.waitstatus_to_exitcode(os.waitpid(start(flags), 0)[1])
    if status:
        raise AssertionError(f"train.py {' '.join(flags)} ended with status {status}")


def command(flags, out):
    """The arguments that start a run in `out`, or resume it."""
    started = os.path.exists(os.path.join(out, "args.json"))
    return ["--resume", out] if started else [*flags, "--out", out]


def contents(out):
    """All that must be equal: the run's files, and last.pt without its clock times."""
    state = run.load_checkpoint(os.path.join(out, "last.pt"))
    for name in ("seconds", "saving", "metrics_bytes"):
        del state[name]
    return {**files_of(out), "last.pt": run.content_digest(state)}


def kill_and_resume(flags, kills, rng):
    """Kill until `kills` processes died by it; a finished run is followed by another.

    Returns the number of runs that were finished and compared.
    """
    whole = os.path.join(tempfile.mkdtemp(prefix="whole-", dir=PLACE), "run")
    begin = time.monotonic()
    finish([*flags, "--out", whole])
    duration, expected = time.monotonic() - begin, contents(whole)
    hits = runs = 0
    while hits < kills:
        killed = os.path.join(tempfile.mkdtemp(prefix="killed-", dir=PLACE), "run")

        while hits < kills and not os.path.exists(os.path.join(killed, "result.json")):
            child = start(command(flags, killed))
            time.sleep(rng.random() * duration)
            os.kill(child, signal.SIGKILL)
            hits += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        finish(command(flags, killed))
        got, runs = contents(killed), runs + 1
        for name in expected:
            if got[name] != expected[name]:
                raise AssertionError(f"{name} differs from the undisturbed run's; see "
                                     f"{killed} and {whole}")
    return runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    data_folder, weights = tiny_world()
    rng, passed, failed = random.Random(args.seed), 0, 0
    for option in ("seq", "rr", "pcgrad", "gvac"):
        for variant, flags in VARIANTS.items():
            name = f"{option} {variant}"
            if args.words and not any(word in name for word in args.words):
                continue
            try:
                runs = kill_and_resume(["--option", option, "--data", data_folder,
                                        "--weights", weights, *COMMON, *flags],
                                       args.kills, rng)
                print(f"done  {name}: {args.kills} kills in {runs} runs, equal to the "
                      f"last bit", flush=True)
                passed += 1
            except AssertionError as error:
                print(f"FAIL  {name}: {error}", flush=True)
                failed += 1
    print(f"{passed} passed, {failed} failed")
    if not failed:
        shutil.rmtree(PLACE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
