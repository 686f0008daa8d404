"""Which device a run takes, and what it does on one that is neither CPU nor CUDA."""

import contextlib
import os
import signal
import traceback
import types
import unittest.mock

import torch
import torch.nn.functional as F

import data
import smart
from plumbing import machine, safetensors
from tests import elsewhere
from tests.checks import assert_close, assert_equal, assert_one_line, assert_raises
from tests.world import (
    files_of,
    log_of,
    resume,
    run_pretrain,
    run_train,
    signalled_at,
    tiny_batch,
)


@contextlib.contextmanager
def having(gpus=0, mps=False, built=True):
    """Within this, torch says that the machine has so many NVIDIA GPUs, or Apple's."""
    about = types.SimpleNamespace(name="Tesla T4", total_memory=15.6 * 2 ** 30)
    with contextlib.ExitStack() as stack:
        for owner, changes in (
                (torch.cuda, {"is_available": lambda: gpus > 0,
                              "device_count": lambda: gpus, "current_device": lambda: 0,
                              "get_device_properties": lambda device: about}),
                (torch.backends.mps, {"is_available": lambda: mps}),
                (torch.backends.cuda, {"is_built": lambda: built}),
                (torch, {"zeros": lambda *_, device: torch.ones(1)})):
            stack.enter_context(unittest.mock.patch.multiple(owner, **changes))
        yield


# --- The choice ---

def test_run_devices__auto_takes_cuda_else_mps_else_the_cpu():
    for gpus, mps, want in ((2, True, "cuda:0"), (1, False, "cuda:0"), (0, True, "mps"),
                            (0, False, "cpu")):
        with having(gpus, mps):
            assert_equal(str(machine.find_device("auto")), want)
    with having(2, True):
        for asked, want in (("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("mps", "mps"),
                            ("cpu", "cpu")):
            assert_equal(str(machine.find_device(asked)), want)


def test_run_devices__the_choice_is_printed_with_its_reason():
    def line(asked="auto", **what):
        with having(**what):
            return machine.why_device(asked, machine.find_device(asked))
    assert_equal(line(), "cpu: no GPU found")
    assert_equal(line(built=False),
                 "cpu: no GPU found, and this torch is built without them")
    assert_equal(line("cpu", gpus=1), "cpu: given")
    assert_equal(line(mps=True), "mps: Apple's GPU")
    assert_equal(line(gpus=1), "cuda:0: Tesla T4, 16 GiB")
    with unittest.mock.patch.dict(os.environ):
        os.environ.pop("LOCAL_RANK", None)
        assert_equal(line("cuda:1", gpus=4), "cuda:1: Tesla T4, 16 GiB, the only one used "
                     "of 4 GPUs; for all of them: torchrun --nproc-per-node 4 train.py …")
        os.environ["LOCAL_RANK"] = "0"
        assert_equal(line(gpus=4), "cuda:0: Tesla T4, 16 GiB")


def test_run_devices__what_is_not_there_is_refused_with_what_there_is():
    for name in ("cuda", "mps", "cuda:7", "meta", "gpu7", "cpu:7"):
        with assert_raises("--device", "which has cpu", repr(name)):
            machine.find_device(name)
    status, _, errors = run_train("--device", "gpu")
    assert_one_line(status, errors, "a GPU is called cuda")
    with having(2, True), unittest.mock.patch.object(torch, "zeros", side_effect=OSError), \
            assert_raises("which has cuda:0, cuda:1, mps, cpu; got 'cuda:2'"):
        machine.find_device("cuda:2")


def test_run_devices__a_full_one_is_called_full():
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB."),
                  RuntimeError("CUDA error: out of memory\nCUDA kernel errors might")):
        with having(2), unittest.mock.patch.object(torch, "zeros", side_effect=error), \
                assert_raises("--device auto: the memory of cuda:0 is full"):
            machine.find_device("auto")
    with assert_raises("which has cpu"):
        machine.find_device("out of memory")


def test_run_devices__batches_are_copied_asynchronously_to_cuda_alone():
    # On MPS such a copy may read memory that was freed in between, and nobody notices.
    _, batch = tiny_batch(True)
    for device, want in (("cuda:1", True), ("mps", False), ("cpu", False)):
        seen = []
        fields = [unittest.mock.Mock(to=lambda device, non_blocking=False: seen.append(
            non_blocking)) for _ in range(4)]
        data.Batch(*fields).to(torch.device(device))
        assert_equal(seen, [want] * 4, f"to {device}")
    assert torch.equal(batch.to("cpu").input_ids, batch.input_ids)


# --- Runs on a device that is neither CPU nor CUDA ---

# What the stand-in refuses in a backward pass, torch reports with or without the reason, or
# by ending the process.
IN_BACKWARD = "are there sparse gradients, or float64, in a backward pass?"


def hint(error):
    """IN_BACKWARD for an error of torch's own backward(), not of multitask.backward()."""
    return IN_BACKWARD * any(
        frame.name == "backward" and f"{os.sep}torch{os.sep}" in frame.filename
        for frame in traceback.extract_tb(error.__traceback__))


def main():
    from tests import stand_in
    with stand_in.on_stand_in():
        elsewhere.report(THERE, hint)


def there(check):
    """In a process of its own: torch cannot forget a device."""
    from torch.utils import backend_registration
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        raise unittest.SkipTest("needs a torch in which Python can define a device")
    elsewhere.pass_on(elsewhere.found("test_run_devices", 50, IN_BACKWARD), check)


def weights_of(out):
    return safetensors.load(os.path.join(out, "best", "model.safetensors"))


def same_updates():
    from tests import stand_in
    flags = ("--option", "gvac", "--smart", "--smart-weight", 0, "--con", "--dropout", 0)
    found = {}
    for device in ("cpu", "standin", "standin without a fused AdamW"):
        name, _, missing = device.partition(" ")
        stand_in.HELD_BACK.clear()
        stand_in.HELD_BACK.update({"_fused_adamw_"} if missing else ())
        stand_in.calls.clear()
        status, out, errors = run_train(*flags, "--device", name)
        assert_equal(status, 0, f"on {device}: {errors}")
        found[device] = weights_of(out)
        assert_equal("_fused_adamw_" in stand_in.calls, device == "standin")
        for key, value in found[device].items():
            assert_close(value, found["cpu"][key], 1e-5, f"{key} on {device}")


def test_run_devices__the_same_updates_as_on_the_cpu():
    there(same_updates)


def resumed():
    flags = ("--option", "gvac", "--smart", "--tasks", "sst,para", "--device", "standin")
    whole = run_train(*flags, steps=2)[1]
    with signalled_at(1, signal.SIGTERM):
        _, out, _ = run_train(*flags, steps=2)
    torch.standin.manual_seed_all(123)
    status, _, errors = resume(out)
    assert_equal(status, 0, errors)
    for name, content in files_of(out).items():
        assert content == files_of(whole)[name], f"{name} differs after a resume"
    assert_equal(log_of(out)[0]["bregman_sst"], 0.0,
                 "the teacher has dropout masks of its own")


def test_run_devices__resumed_bit_for_bit_from_its_own_generator():
    there(resumed)


def one_mask(device="standin"):
    x = torch.ones(2, 50, 4).to(device)
    for eps, want in ((0.0, True), (.1, False)):
        before = torch.get_rng_state()
        _, R = smart.smoothness(lambda x: F.dropout(x, .5).sum((1, 2)), x,
                                smart.squared_difference, eps)
        assert_equal(R.item() == 0, want, f"R_s is {R.item():.3g} at ε = {eps}: passes "
                                          f"differ in their dropout masks")
        assert torch.equal(torch.get_rng_state(), before), "the CPU's generator was set"


def test_run_devices__SMARTs_passes_share_one_mask():
    there(one_mask)


def pretrained():
    status, out, errors = run_pretrain("--device", "standin", "--vocab", os.path.join(
        os.path.dirname(__file__), "..", "sample", "vocab.txt"), "--hidden", 16, "--layers",
        1, steps=3)
    assert_equal(status, 0, errors)
    assert os.path.exists(os.path.join(out, "model", "model.safetensors"))


def test_run_devices__pretraining_runs_there_too():
    there(pretrained)


def refuses():
    for make, error in (
            (lambda: torch.zeros(2, dtype=torch.float64, device="standin"), TypeError),
            (lambda: torch.ones(2).to("standin").double(), TypeError),
            (lambda: torch.ones(2, dtype=torch.float64).to("standin"), TypeError),
            (lambda: torch.ones(2, 2).to("standin").to_sparse(), TypeError),
            (lambda: torch.ones(2).to("standin") + torch.ones(2), RuntimeError)):
        with assert_raises(error=error):
            make()
    torch.manual_seed(0)
    first, before = torch.rand(3, device="standin").cpu(), torch.get_rng_state()
    state = torch.standin.get_rng_state()
    a = torch.rand(3, device="standin").cpu()
    assert torch.equal(torch.get_rng_state(), before), "it draws from the CPU's generator"
    torch.standin.set_rng_state(state)
    assert torch.equal(torch.rand(3, device="standin").cpu(), a)
    assert not torch.equal(first, a)


def test_run_devices__the_stand_in_refuses_what_MPS_refuses():
    # Otherwise the tests above would see nothing.
    there(refuses)


THERE = (same_updates, resumed, one_mask, pretrained, refuses)
