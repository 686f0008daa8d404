"""Runs of train.py by several processes, without torchrun's seconds for each import.

A server imports train.py once. For each run it forks N children, which get the environment
that torchrun would give them. It is a process of its own, since a process that has made a
backward pass cannot fork others that make one.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import torch.distributed

from plumbing.folder import load_checkpoint
from tests.checks import assert_equal
from tests.world import log_of, tiny_world

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(world, *flags, at=None, limit=40):
    """`train.py FLAGS` on the tiny world by `world` processes, dev in batches of 5.

    at: {"rank": r, "call": "multitask.treat", "number": n, "signal": s}: rank r sends
    itself a signal when it calls that function for the n-th time, or raises a ValueError if
    there is none; all ranks do without "rank". {rank} in a flag is the rank's number.
    Returns (statuses, stdout, stderr), all ranks' output in one text. The exit status of a
    rank that a signal has ended is minus the signal's number.
    """
    if sys.platform != "linux":
        raise unittest.SkipTest("needs Linux's fork")
    request = {"world": world, "flags": list(map(str, flags)), "at": at, "limit": limit}
    child = server()
    try:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        answer = json.loads(child.stdout.readline())
    except BaseException:       # out of time: the answer would be taken for the next one's
        child.kill()
        server.cache_clear()
        raise
    return answer["statuses"], answer["stdout"], answer["stderr"]


def flags_of(out, *more, steps=3):
    """Flags of a short run on the tiny world, without dropout."""
    folder, weights = tiny_world()
    return ("--data", folder, "--weights", weights, "--amp", "off", "--lr", 1e-3, "--out",
            out, "--batch-size", 4, "--accumulate", 1, "--para-first", 0, "--epochs", 1,
            "--max-steps", steps, "--dropout", 0, *more)


def trained(world, *more, steps=3):
    """A run by so many processes that succeeds.   -> its folder"""
    out = os.path.join(tempfile.mkdtemp(prefix="minbert-ranks-"), "run")
    statuses, _, errors = run(world, *flags_of(out, *more, steps=steps))
    assert statuses == [0] * world, f"{world} processes end with {statuses}: {errors}"
    return out


def state_of(out):
    return load_checkpoint(os.path.join(out, "last.pt"))


def assert_same_run(out, alone, what):
    """Same parameters, log and predictions, up to the order in which floats are added."""
    theta, expected = state_of(out)["theta"], state_of(alone)["theta"]
    apart = float((theta - expected).abs().max())
    assert apart <= 1e-5, f"{what}: θ differs by up to {apart:.2g} from one process's"
    assert len(log_of(out)) == len(log_of(alone))
    for line, other in zip(log_of(out), log_of(alone)):
        assert line.keys() == other.keys(), f"{what}: other names in the log"
        for name, value in other.items():
            # Of each slice, then averaged: as a ratio it is not the whole batch's.
            if "ratio" not in name and isinstance(value, float):
                assert abs(line[name] - value) <= 1e-3 + 1e-3 * abs(value), (
                    f"{what}: the log's {name} is {line[name]}, expected {value}")


def compare(*more, steps=3):
    alone = trained(1, *more, steps=steps)
    for world in (2, 3):
        assert_same_run(trained(world, *more, steps=steps), alone,
                        f"{' '.join(map(str, more))}, {world} processes")


def interrupted(world, *more, step=3, steps=6):
    """A run that all ranks get a SIGTERM in.   -> (folder, stdout)"""
    out = os.path.join(tempfile.mkdtemp(), "run")
    at = {"call": "multitask.treat", "number": step, "signal": signal.SIGTERM}
    statuses, output, _ = run(world, *flags_of(out, *more, steps=steps), at=at)
    assert_equal(statuses, [143] * world)
    assert f"stopped after update {step} of {steps}" in output, output
    return out, output


@functools.cache
def server():
    # It ends when its input does: with this process, or when nobody holds it any more.
    return subprocess.Popen([sys.executable, "-c", "from tests import processes; "
                             "processes.serve()"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, cwd=ROOT)


def serve():
    import torch._dynamo  # noqa: F401   the first optimizer imports it, which takes seconds

    import heads
    import train  # noqa: F401
    from plumbing import ranks
    torch.set_num_threads(1)
    ranks.PATIENCE = 3.0
    heads.all_logits = functools.partial(heads.all_logits, batch_size=5)
    new_store = stores()
    for line in sys.stdin:
        os.environ.update(MASTER_PORT=new_store(), MASTER_ADDR="localhost",
                          TORCHELASTIC_USE_AGENT_STORE="True",
                          GLOO_SOCKET_IFNAME="lo")  # the machine's name may lead nowhere
        print(json.dumps(answer(**json.loads(line))), flush=True)


def stores():
    """A function that starts a run's store and returns its port, as text.

    As in torchrun, the store outlives the ranks: a process of its own holds it, until the
    next one, or this process's end. Trap: a store has threads. Were they in this process,
    one of them could hold a lock while a rank is forked, and that rank would wait for the
    lock for ever: one run in 200 did.
    """
    (asked, ask), (told, tell) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(ask)
        while os.read(asked, 1):
            held = torch.distributed.TCPStore("localhost", 0, is_master=True,
                                              wait_for_workers=False)
            os.write(tell, str(held.port).encode())
        os._exit(0)
    return lambda: os.write(ask, b"?") and os.read(told, 10).decode()


def answer(world, flags, at, limit):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                os.environ.update(RANK=str(rank), WORLD_SIZE=str(world),
                                  LOCAL_RANK=str(rank))
                work(rank, flags, at)
            children.append(child)
        statuses = {}
        end = time.monotonic() + limit
        while len(statuses) < world:
            for rank, child in enumerate(children):
                if rank not in statuses:
                    ended, status = os.waitpid(child, os.WNOHANG)
                    if ended:
                        statuses[rank] = os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
            if time.monotonic() > end:
                for rank, child in enumerate(children):
                    if rank not in statuses:
                        os.kill(child, signal.SIGKILL)
                        os.waitpid(child, 0)
                        statuses[rank] = "hangs"
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode())
    return {"statuses": [statuses[rank] for rank in range(world)], "stdout": texts[0],
            "stderr": texts[1]}


def work(rank, flags, at):
    """A child's whole life."""
    import train
    status, flags = 1, [flag.replace("{rank}", str(rank)) for flag in flags]
    try:
        if at and at.get("rank", rank) == rank:
            fail_at(**at)
        sys.argv = ["train.py", *flags]
        status = train.main(flags)
    except SystemExit as end:
        status = end.code
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status or 0)


def fail_at(call, number, signal=None, rank=None):
    """Make the number-th call of "module.function" begin with a signal, or a mistake."""
    import importlib
    name, function = call.rsplit(".", 1)
    module = importlib.import_module(name)
    original, count = getattr(module, function), iter(range(1, 10 ** 6))

    def called(*args, **more):
        if next(count) == number:
            if signal is None:
                raise ValueError(f"rank {rank} has no such file")
            os.kill(os.getpid(), signal)
        return original(*args, **more)
    setattr(module, function, called)
