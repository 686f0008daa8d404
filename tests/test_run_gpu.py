"""On a real NVIDIA GPU, where there is one: what stand-ins show on a CPU."""

import contextlib
import os
import signal
import subprocess
import sys
import unittest.mock

import torch

import bert
import multitask
import tests
from plumbing import machine, safetensors
from tests import elsewhere, test_run_devices
from tests.checks import assert_close, assert_equal, assert_one_line
from tests.world import log_of, resume, run_train, signalled_at

ALL = ("--option", "gvac", "--smart", "--con", "--hlh")


def main():
    elsewhere.report(THERE if torch.cuda.is_available() else [no_gpu])


def no_gpu():
    raise unittest.SkipTest("no NVIDIA GPU here")


def there(check):
    """In a process of its own, which may see the GPUs."""
    if torch.version.cuda is None:
        raise unittest.SkipTest("this torch is built without NVIDIA's GPUs")
    report = elsewhere.found("test_run_gpu", 55, MINBERT_GPU="yes",
                             CUDA_VISIBLE_DEVICES=tests.GPUS)
    elsewhere.pass_on(report, no_gpu if "no_gpu" in report else check)


def numbers_of(*flags, steps=6):
    """The losses, norms and cosines in a run's log, without dropout.   -> {name: number}"""
    still = ("--smart-weight", 0) if "--smart" in flags else ()     # its noise is random
    status, out, errors = run_train(*flags, *still, "--dropout", 0, "--lr", 1e-4,
                                    steps=steps)
    assert_equal(status, 0, f"{flags}: {errors}")
    return {f"{name} of step {line['step']}": value for line in log_of(out)
            for name, value in line.items()
            if name.startswith(("loss_", "norm_", "grad_norm", "cos_", "bregman_"))}


def attention():
    torch.manual_seed(0)
    inputs = [torch.randn(3, 2, 40, 32) for _ in range(4)]
    for mask in (None, (torch.arange(40) < torch.tensor([[40], [17], [1]])).long()):
        found = {}
        for device in ("cuda", "cpu"):
            q, k, v, g = (x.to(device).clone().requires_grad_() for x in inputs)
            out = bert.attention(q, k, v, mask if mask is None else mask.to(device))
            out.backward(g)
            found[device] = [x.detach().cpu() for x in (out, q.grad, k.grad, v.grad)]
        names = "output", "∂Q", "∂K", "∂V"
        for name, got, want in zip(names, found["cuda"], found["cpu"]):
            assert_close(got, want, 1e-5, f"{name}, {'no ' * (mask is None)}mask")


def test_run_gpu__attention_and_its_gradients_are_the_CPUs():
    there(attention)


def same_numbers():
    # Not θ: AdamW divides a gradient that should be 0, such as that of a key's bias, by its
    # own size, which is rounding.
    for flags in (ALL, ("--option", "pcgrad", "--accumulate", 2), ("--option", "seq"),
                  ("--option", "gvac", "--vaccine-granularity", "layer")):
        want = numbers_of(*flags, "--device", "cpu")
        got = numbers_of(*flags, "--device", "cuda")
        assert_equal(set(got), set(want))
        for name, value in want.items():
            assert_close(got[name], value, 1e-4, f"{name}, {flags}", relative=1e-3)


def test_run_gpu__the_same_losses_and_norms_as_on_the_cpu():
    there(same_numbers)


def precisions():
    want = numbers_of(*ALL, "--device", "cuda", steps=3)
    for amp in ("bf16", "fp16"):
        got = numbers_of(*ALL, "--device", "cuda", "--amp", amp, steps=3)
        for name, value in want.items():
            if name.startswith("loss_"):
                assert_close(got[name], value, .01, f"{name}, --amp {amp}", relative=.03)


def test_run_gpu__three_precisions_agree():
    there(precisions)


def resumed():
    whole = run_train(*ALL, "--device", "cuda", steps=4)[1]
    with signalled_at(2, signal.SIGTERM):
        _, out, _ = run_train(*ALL, "--device", "cuda", steps=4)
    torch.cuda.manual_seed_all(123)
    status, _, errors = resume(out)
    assert_equal(status, 0, errors)
    # Perhaps not bit for bit: torch does not promise an order of additions.
    for got, want in zip(log_of(out), log_of(whole), strict=True):
        for name in ("loss_sst", "smooth_para", "bregman_sts", "grad_norm"):
            if name in want:
                assert_close(got[name], want[name], 1e-6, f"{name} of step {want['step']}",
                             relative=1e-2)


def test_run_gpu__a_resumed_run_goes_on_from_the_GPUs_generator():
    there(resumed)


def one_mask():
    test_run_devices.one_mask("cuda")


def test_run_gpu__SMARTs_passes_share_one_mask():
    there(one_mask)


def full():
    held = []

    def fill_first(*args, **more):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-9)
        for size in (1 << 24, 1 << 20, 1 << 14, 512):   # what torch has taken already
            with contextlib.suppress(torch.OutOfMemoryError):
                while True:
                    held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        return backward(*args, **more)
    backward = multitask.backward
    try:
        with unittest.mock.patch.object(multitask, "backward", fill_first):
            status, _, errors = run_train("--device", "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        held.clear()
    assert_one_line(status, errors, "out of memory", "--batch-size 2 --accumulate 2")


def test_run_gpu__full_memory_is_one_line_with_a_way_out():
    there(full)


def too_many():
    if os.name == "nt":
        raise unittest.SkipTest("no nccl on Windows")
    number = torch.cuda.device_count()
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(number + 1), "train.py", "--max-steps", "1", "--data", "sample"],
        cwd=tests.ROOT, capture_output=True, text=True, timeout=30)
    assert result.returncode, "it has run"
    assert f"this machine has {number}" in result.stderr, result.stderr


def test_run_gpu__more_processes_than_GPUs_is_one_line():
    there(too_many)


def named():
    device = machine.find_device("auto")
    assert_equal(device.type, "cuda", "auto takes a GPU")
    name = torch.cuda.get_device_name(device)
    assert_equal(machine.description(device, "")["gpu"], name)
    assert name in machine.why_device("auto", device), "the first lines lack its name"
    status, out, errors = run_train("--tasks", "sst", "--device", "cuda")
    assert_equal(status, 0, errors)
    tensors = safetensors.load(os.path.join(out, "best", "model.safetensors"))
    assert all(tensor.device.type == "cpu" for tensor in tensors.values()), (
        "best/ can only be read where there is a GPU")


def test_run_gpu__it_is_what_auto_takes_and_its_name_is_kept():
    there(named)


THERE = (attention, same_numbers, precisions, resumed, one_mask, full, too_many, named)
