"""What takes minutes: kills, two processes on one folder, full disks, lost streams.

    python tools/slow_tests.py [--kills 100] [--seed 0] [WORD …]

    kills       A run is left alone; another with the same flags is killed by SIGKILL again
                and again, at a random moment or at the n-th call that changes a file, and
                resumed. Its files and its last state must be equal to the last bit. The
                flag sets together have every flag of train.py, and tools/pretrain.py's.
    lock        two processes resume one folder at the same time: one is refused
    disk        a disk of a few hundred KB fills up (needs root); then there is room again
    streams     no standard output or error, a closed pipe, /dev/full: training goes on

With WORDs only the parts, or the sets of flags, whose name contains one of them. Model and
data are the tiny ones of tests/. Not for Windows, which has no fork and no SIGKILL.
"""

import builtins
import contextlib
import functools
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import train
from plumbing import command, flags, folder
from tests import ROOT, SCRATCH
from tests.world import files_of, tiny_world
from tools import pretrain

ALL = "--smart --accumulate 2 --para-first 1"
RUNS = {
    "seq plain": "--option seq", "rr plain": "--option rr",
    "pcgrad plain": "--option pcgrad", "seq all": f"--option seq {ALL}",
    "rr all": f"--option rr {ALL} --task-weights sst=2 --cosine",
    "pcgrad all": "--option pcgrad --smart --accumulate 2 --log-layers --hlh "
                  "--tasks sst,sts",
    "gvac all": f"--option gvac {ALL} --con --hlh --log-layers --vaccine-beta .1 "
                "--eval-every 3 --patience 4",
    "gvac layer": "--option gvac --vaccine-granularity layer --fresh-streams --align sst "
                  "--warmup .1 --clip 0 --weight-decay .01 --dropout .2 --r-drop .5 "
                  "--pool mean",
    "smart": "--smart --smart-weight 2 --smart-eps .1 --smart-steps 2 --bregman-weight .5 "
             "--sst-loss mse --sts-loss ce --device cpu --seed 3 --max-length 9 "
             "--eval-every 2",
    "frozen": "--recipe plain --freeze --tasks sst,para",
}
COMMON = "--epochs 2 --max-steps 16 --batch-size 4 --lr 0.01 --amp off --checkpoint-every 3"
PRETRAIN = ("--hidden 16 --layers 1 --heads 2 --max-length 32 --max-steps 12 "
            "--batch-size 8 --next-sentence --half --amp off --checkpoint-every 3 "
            "--lr .01 --warmup .2 --weight-decay .1 --dropout .1 --seed 2 --device cpu")
# Flags that no set has: where from and where to, what starts no run, and what needs a
# package (tests/test_run_board.py resumes it).
ELSEWHERE = {"--help", "--data", "--weights", "--download", "--out", "--resume", "--text",
             "--vocab", "--tensorboard"}


def sets_of_flags():
    """{name: (module, arguments)}"""
    data, weights = tiny_world()
    found = {name: (train, f"{words} {COMMON}".split() + [
        "--data", data, "--weights", weights]) for name, words in RUNS.items()}
    found["pretrain"] = pretrain, [
        *PRETRAIN.split(), "--text", os.path.join(data, "quora-train.csv"),
        os.path.join(data, "ids-sst-train.csv"), "--vocab",
        os.path.join(weights, "vocab.txt")]
    for module, parser in ((train, train.parser()), (pretrain, pretrain.parser())):
        used = {word for other, words in found.values() if other is module
                for word in words}
        missing = {action.option_strings[-1] for action in parser._actions
                   if action.option_strings} - used - ELSEWHERE
        if missing:
            raise ValueError(f"no set of flags has {', '.join(sorted(missing))}; add it to "
                             f"one of RUNS")
    return found


# --- Processes ---

def warm_up(sets):
    """A short run here, after which a forked process trains at once, not after 3 s."""
    for name, more in (("gvac all", ["--max-steps", "4"]), ("pretrain", [])):
        module, arguments = sets[name]
        with contextlib.redirect_stdout(io.StringIO()), \
                contextlib.redirect_stderr(io.StringIO()):
            module.main([*arguments, *more, "--out", new_place("warm")])


def start(module, arguments, prepare=None):
    """Fork, so that nobody waits for torch to be imported again.   -> process id

    prepare() is called in the new process first. What it prints goes to log_of() its
    folder, the last argument.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            log = os.open(log_of(arguments[-1]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if prepare:
                prepare()
            status = module.main(arguments)
        finally:
            os._exit(status)
    return child


def wait(child):
    """-> exit status, or minus the signal's number"""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def must_finish(module, arguments):
    status = wait(start(module, arguments))
    if status:
        raise AssertionError(f"{' '.join(arguments)} ended with status {status}; see "
                             f"{log_of(arguments[-1])}")


def command_for(arguments, out):
    """The arguments that start a run in `out`, or resume it."""
    started = os.path.exists(os.path.join(out, "args.json"))
    return ["--resume", out] if started else [*arguments, "--out", out]


@functools.cache
def kept():
    """The folder where runs that differ stay; what is in SCRATCH is removed at the end."""
    return tempfile.mkdtemp(prefix="minbert-slow-", dir=os.path.dirname(SCRATCH))


def new_place(name):
    return os.path.join(tempfile.mkdtemp(prefix=f"{name}-", dir=kept()), "run")


def log_of(out):
    """The file for what runs in a folder print: elsewhere, as its disk may be full."""
    return os.path.join(kept(), "-".join(out.split(os.sep)[-2:]) + ".log")


def contents(module, out):
    """All that must be equal: the run's files, and last.pt without its clock times."""
    state = folder.load_checkpoint(os.path.join(out, "last.pt"))
    for name in ("seconds", "saving", "settings_digest"):
        del state[name]             # the latter: of args.json, which names the folder
    if module is train:
        found = files_of(out)
    else:
        found = {}
        for name in ("metrics.jsonl", "model/model.safetensors", "model/config.json"):
            with open(os.path.join(out, name), "rb") as file:
                found[name] = file.read()
    return {**found, "last.pt": folder.content_digest(state)}


# --- Kills ---

EVENTS = ((os, "replace"), (os, "fsync"), (os, "rename"), (os, "remove"), (os, "makedirs"),
          (os, "truncate"), (shutil, "rmtree"), (torch, "save"), (builtins, "open"))


def at_event(number):
    """-> prepare(): this process kills itself at the number-th call that changes a file.

    Before the call or after it, in turn. A file that is opened for reading does not count.
    """
    def prepare():
        count = [0]

        def hook(place, name):
            original = getattr(place, name)

            def call(*args, **more):
                mode = more.get("mode", args[1] if len(args) > 1 else "r")
                if name == "open" and not set(str(mode)) & set("wa+"):
                    return original(*args, **more)
                count[0] += 1
                mine = count[0] == number
                if mine and number % 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = original(*args, **more)
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            setattr(place, name, call)
        for place, name in EVENTS:
            hook(place, name)
    return prepare


def kill_and_resume(name, module, arguments, kills, rng):
    """Kill until `kills` processes died by it; a finished run is followed by another.

    Returns the number of runs that were finished and compared.
    """
    whole = new_place("whole")
    begin = time.monotonic()
    must_finish(module, [*arguments, "--out", whole])
    duration, expected = time.monotonic() - begin, contents(module, whole)
    hits = runs = 0
    while hits < kills:
        out = new_place("killed")
        while hits < kills and not os.path.exists(os.path.join(out, "result.json")):
            by_event = rng.random() < .6
            child = start(module, command_for(arguments, out),
                          at_event(1 + int(60 * rng.random() ** 2)) if by_event else None)
            if not by_event:
                time.sleep(rng.random() * duration)
                os.kill(child, signal.SIGKILL)
            status = wait(child)
            hits += status == -signal.SIGKILL
            if status not in (0, -signal.SIGKILL):
                raise AssertionError(f"status {status} on resuming {out}; see "
                                     f"{log_of(out)}")
        must_finish(module, command_for(arguments, out))
        got, runs = contents(module, out), runs + 1
        for file in expected:
            if got[file] != expected[file]:
                raise AssertionError(f"{file} differs from the undisturbed run's; see "
                                     f"{out} and {whole}")
    return runs


# --- Two processes ---

def two_on_one_folder(arguments, tries, rng):
    """Resume a stopped run from two processes at once: one goes on, one ends with 2."""
    whole = new_place("whole")
    must_finish(train, [*arguments, "--out", whole])
    expected = contents(train, whole)
    stopped = new_place("stopped")
    wait(start(train, [*arguments, "--out", stopped], at_event(25)))
    for _ in range(tries):
        out = shutil.copytree(stopped, new_place("both"))
        children = [start(train, ["--resume", out]), start(train, ["--resume", out])]
        statuses = sorted(map(wait, children))
        # Both end with 0 if one finished before the other began to read.
        if statuses != [0, 2]:
            raise AssertionError(f"the two ended with {statuses}, expected 0 and 2")
        if contents(train, out) != expected:
            raise AssertionError(f"{out} differs from the undisturbed run's, {whole}")


# --- Disks and streams ---

@contextlib.contextmanager
def small_disk(size):
    """A file system of so many bytes.   -> its folder; OSError without root"""
    place = tempfile.mkdtemp(prefix="disk-", dir=kept())
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place],
                          capture_output=True)
    if done.returncode:
        raise OSError("cannot mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill_disks(arguments, tries, rng):
    """A disk that is full at some moment: status 2, one line, and the run can go on."""
    whole = new_place("whole")
    must_finish(train, [*arguments, "--out", whole])
    expected = contents(train, whole)
    needed = sum(os.path.getsize(os.path.join(path, file))
                 for path, _, files in os.walk(whole) for file in files)
    with small_disk(4 * needed) as place:
        for number in range(tries):
            out = os.path.join(place, f"run-{number}")
            ballast = os.path.join(place, "ballast")
            with open(ballast, "wb") as file:
                file.write(bytes(4 * needed - int(needed * (.05 + 1.2 * rng.random()))))
            done = run_as_command(command_for(arguments, out))
            os.remove(ballast)
            lines = done.stderr.decode().strip().splitlines()
            if done.returncode and (done.returncode != 2 or "disk is full" not in lines[-1]
                                    or place not in lines[-1]):
                raise AssertionError(f"status {done.returncode}: {lines[-3:]}")
            if not os.path.exists(os.path.join(out, "result.json")):
                must_finish(train, command_for(arguments, out))
            if contents(train, out) != expected:
                raise AssertionError(f"{out} differs from the undisturbed run's")
            shutil.rmtree(out)


def run_as_command(arguments, **more):
    return subprocess.run([sys.executable, os.path.join(ROOT, "train.py"), *arguments],
                          **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                             "env": {**os.environ, "OMP_NUM_THREADS": "1"}, **more})


def lose_streams(arguments, tries, rng):
    """By a shell: >&- is a closed stream, /dev/full a full disk, `| true` a closed pipe."""
    whole = new_place("whole")
    must_finish(train, [*arguments, "--out", whole])
    expected = contents(train, whole)
    for lost in (">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full",
                 ">/dev/full 2>&1", "| true", "2>&1 | true"):
        out = new_place("streams")
        words = [sys.executable, os.path.join(ROOT, "train.py"), *arguments, "--out", out]
        subprocess.run(["bash", "-c", f'"$@" {lost}', "bash", *words], capture_output=True,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
        if not os.path.exists(os.path.join(out, "result.json")):
            raise AssertionError(f"with {lost} the run did not finish; see {out}")
        if contents(train, out) != expected:
            raise AssertionError(f"with {lost} the run differs from {whole}")


# --- The command ---

def main(argv=None):
    parser = command.Parser(__doc__)
    parser.add_argument("--kills", type=flags.number(int, 1), default=100,
                        help="in all sets of flags together (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("words", nargs="*", metavar="WORD")
    args = parser.parse_args(argv)
    rng, sets = random.Random(args.seed), sets_of_flags()

    def wanted(name):
        return not args.words or any(word in name for word in args.words)
    parts, chosen = [], [name for name in sets if wanted(f"kills {name}")]
    for k, name in enumerate(chosen):
        kills = args.kills * (k + 1) // len(chosen) - args.kills * k // len(chosen)

        def kill(name=name, kills=kills):
            runs = kill_and_resume(name, *sets[name], kills, rng)
            return f"{kills} kills in {runs} runs, equal to the last bit"
        parts.append((f"kills {name}", kill))
    _, hard = sets["gvac all"]
    parts += [(name, lambda test=test, tries=tries, what=what:
               test(hard, tries, rng) or f"{tries} {what}")
              for name, test, tries, what in (
                  ("lock", two_on_one_folder, 20, "tries, one of two processes refused"),
                  ("disk", fill_disks, 20, "full disks, each run resumed"),
                  ("streams", lose_streams, 8, "ways to lose a stream, each run finished"))
              if wanted(name)]
    if not parts:
        parser.error(f"no part's name contains {' or '.join(map(repr, args.words))}")
    warm_up(sets)
    failed = 0
    for name, part in parts:
        try:
            print(f"done  {name}: {part()}", flush=True)
        except (AssertionError, OSError) as error:
            print(f"FAIL  {name}: {error}", flush=True)
            failed += 1
    print(f"{len(parts) - failed} passed, {failed} failed")
    if not failed:
        shutil.rmtree(kept())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
