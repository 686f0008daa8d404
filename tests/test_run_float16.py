"""float16 with scaled losses: what is skipped, what the scale must not change, resuming."""

import contextlib
import unittest.mock

import numpy as np
import torch

import multitask
import optim
import smart
from plumbing import machine
from plumbing.folder import load_checkpoint
from tests.checks import assert_close, assert_equal, assert_one_line
from tests.world import (
    files_of,
    log_of,
    resume,
    run_train,
    settings_of,
    signalled_at,
    training_of,
)

CPU = torch.device("cpu")
SCALE = 2.0 ** 16


def float16():
    return torch.autocast("cpu", torch.float16)


def scaled_training(scale, *flags, autocast=contextlib.nullcontext):
    """A train.Training whose losses are multiplied by `scale`."""
    training, _ = training_of(*flags)
    training.autocast = autocast
    training.scale = optim.LossScale(True)
    training.scale.value = scale
    return training


def step(training, clip=1.0):
    """One step of all tasks, on their first batch.   -> (losses, treat()'s result)"""
    torch.manual_seed(1)
    rows = training.rows
    losses = multitask.backward(
        training.flat, [{name: training.next_batch(name) for name in rows}
                        for _ in range(2)], training.loss, rows, with_ratio=True)
    treated = multitask.treat(training.flat, training.regions, rows, training.treatment,
                              clip, training.rng, scale=training.scale.value)
    if treated is not None:
        training.optimizer.step()
    training.scale.update(skipped=treated is None)
    return losses, treated


@contextlib.contextmanager
def starting_at(value, patience=2000):
    with unittest.mock.patch.multiple(optim.LossScale, START=value, PATIENCE=patience):
        yield


# --- The scale ---

def test_run_float16__the_scale_halves_on_overflow_and_doubles_after_2000_finite_steps():
    scale = optim.LossScale(True)
    assert_equal((scale.value, scale.log()), (2.0 ** 16, {"loss_scale": 2.0 ** 16}))
    values = []
    for skipped in [True] + [False] * 1999 + [True] + [False] * 2000:
        scale.update(skipped)
        values.append(scale.value)
    assert_equal([values[0], values[1999], values[2000], values[-2], values[-1]],
                 [2.0 ** 15, 2.0 ** 15, 2.0 ** 14, 2.0 ** 14, 2.0 ** 15], mistakes={
        "a skipped step does not start the count again":
            [2.0 ** 15, 2.0 ** 16, 2.0 ** 15, 2.0 ** 16, 2.0 ** 16]})


def test_run_float16__without_float16_the_scale_is_1_and_stays():
    scale = optim.LossScale(False)
    for skipped in [True, True] + [False] * 2000:
        scale.update(skipped)
    assert_equal((scale.value, scale.log(), scale.state()), (1.0, {}, None))
    scale.restore({"value": 8.0, "finite_steps": 3})
    assert_equal(scale.value, 1.0, "a run that goes on in float32 keeps float16's scale")


def test_run_float16__twenty_skipped_steps_end_at_a_scale_of_at_most_1():
    # They count as divergence, so by then it must not be the scale that is to blame.
    scale = optim.LossScale(True)
    for _ in range(20 * 2000):
        scale.update(skipped=False)
    assert_equal(scale.value, 2.0 ** 20, "the scale grows without end")
    for _ in range(20):
        scale.update(skipped=True)
    assert scale.value <= 1, f"20 steps in a row were skipped, and it is {scale.value}"


def test_run_float16__whether_a_context_computes_in_float16():
    for amp, want in (("fp16", True), ("bf16", False), ("off", False)):
        autocast, _ = machine.choose_precision(amp, CPU)
        assert_equal(machine.is_float16(autocast, CPU), want, f"--amp {amp}")
    # Where no context is entered, torch still names float16 as what CUDA would use.
    assert not machine.is_float16(autocast, torch.device("cuda")), "--amp off"


# --- The scale changes nothing in float32 ---

def test_run_float16__scaled_and_unscaled_updates_agree():
    smart_flags = ("--smart", "--con", "--task-weights", "sst=2")
    for flags, clip in ((("--option", "seq"), 0.0), (("--option", "rr"), 1.0),
                        (("--option", "pcgrad"), 1e-3),
                        (("--option", "gvac", *smart_flags), 1e-3),
                        (("--option", "gvac", "--vaccine-granularity", "layer"), 0.0)):
        found = []
        for scale in (1.0, SCALE):
            training = scaled_training(scale, *flags)
            logs = [step(training, clip) for _ in range(2)]
            found.append((training, logs))
        (a, logs_a), (b, logs_b) = found
        for (losses, treated), (losses_b, treated_b) in zip(logs_a, logs_b):
            assert_close(list(losses_b.values()), list(losses.values()), 0, relative=1e-6,
                         hint=f"{flags}: what is logged of the losses is scaled too")
            log, log_b = (multitask.describe(t, a.regions) for t in (treated, treated_b))
            layers, layers_b = log.pop("layers", {}), log_b.pop("layers", {})
            assert_close(list(log_b.values()), list(log.values()), 1e-6, relative=1e-6,
                         hint=f"{flags}: norms, cosines or targets are those of the scaled "
                              f"gradients")
            assert_equal(layers_b, layers)
        assert_close(b.flat.G[0], a.flat.G[0], 0, relative=1e-6,
                     hint=f"{flags}: the update's gradient is still scaled")
        assert_close(b.flat.theta, a.flat.theta, 1e-6)
        assert (a.flat.theta != training_of(*flags)[0].flat.theta).any()


def test_run_float16__the_update_is_unscaled_also_where_gradients_cancel():
    for scale in (1.0, SCALE):
        w = torch.nn.Parameter(torch.zeros(2))
        flat = optim.FlatParameters([optim.Block("shared", {"w": w})], 2)
        flat.G.copy_(scale * torch.tensor([[1e4 + 1, 0.0], [-1e4, 0.0]]))
        treated = multitask.treat(flat, multitask.regions(flat), {0: 0, 1: 1},
                                  multitask.plain_sum, .5, scale=scale)
        assert_close(treated.norm, 1.0, 1e-3, "the norm is that of the scaled gradient")
        assert_close(flat.G[0], [.5, 0], 1e-3, "the update's gradient is still scaled")


def test_run_float16__gradients_of_every_finite_size_are_unscaled():
    # where gram() falls back on exact_gram()
    for size in (1e-30, 1e-20, 1.0, 1e20, 1e30):
        w = torch.nn.Parameter(torch.zeros(2))
        flat = optim.FlatParameters([optim.Block("shared", {"w": w})], 2)
        flat.G.copy_(SCALE * size * torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        treated = multitask.treat(flat, multitask.regions(flat), {0: 0, 1: 1},
                                  multitask.pcgrad, rng=np.random.default_rng(0),
                                  scale=SCALE)
        assert_close(flat.G[0] / size, [.5, 1.5], 1e-5)
        assert_close(treated.norm / size, 2.5 ** .5, 1e-5)


# --- What float16 loses without it ---

def test_run_float16__gradients_that_float16_would_lose_survive():
    # With such a weight, gradients in the encoder lie below float16's smallest number.
    flags = ("--option", "pcgrad", "--tasks", "sst,para", "--dropout", "0",
             "--task-weights", "sst=1e-7,para=1e-7")
    want, scaled, lost = (
        scaled_training(scale, *flags, autocast=autocast) for scale, autocast in
        ((1.0, contextlib.nullcontext), (SCALE, float16), (1.0, float16)))
    for training in (want, scaled, lost):
        step(training)
    layer = want.flat.blocks["layer 1"].span
    cosines = [torch.cosine_similarity(one.flat.G[0, layer], want.flat.G[0, layer], 0)
               for one in (scaled, lost)]
    assert cosines[0] > .999, f"with the scale, the cosine with float32's is {cosines[0]}"
    assert cosines[1] < .9, "nothing is lost without a scale: this test sees nothing"


def test_run_float16__SMARTs_ascent_does_not_vanish():
    # The change of the prediction, and with it g, is far below what float16 can hold.
    class Linear:
        seen = []

        def embed(self, batch):
            return torch.zeros(2, 3, 4)

        def logits(self, task, x, batch):
            self.seen.append(x.detach())
            y = torch.nn.functional.linear(x, torch.ones(1, 4))         # in float16
            return 1e-4 * y.float().sum((1, 2))
    task = unittest.mock.Mock(loss=lambda logits, labels: logits.sum(),
                              divergence=smart.squared_difference)
    batch = unittest.mock.Mock(attention_mask=None, input_ids=torch.zeros(2, 3))
    for scale, at_the_edge in ((1.0, False), (SCALE, True)):
        with float16():
            smart.objective(Linear(), task, batch, smart.Settings(1.0, .02, 1, 0.0),
                            scale=scale)
        delta = Linear.seen[-1]
        assert_equal(bool(torch.allclose(delta.abs(), torch.tensor(.02))), at_the_edge,
                     "the ascent's gradient has vanished in float16")
    training, given = scaled_training(8.0, "--smart"), []
    with unittest.mock.patch.object(
            smart, "objective", side_effect=lambda *args: given.append(args[5]) or (
                torch.zeros(()), {})):
        training.loss("sst", batch)
    assert_equal(given, [8.0], "SMART's ascent is not scaled")


# --- Skipped steps ---

def test_run_float16__an_overflow_moves_nothing_but_the_scale():
    training = scaled_training(2.0 ** 60, "--option", "gvac", "--smart", autocast=float16)
    theta, teacher = training.flat.theta.clone(), training.teacher.theta.clone()
    assert step(training)[1] is None, "nothing overflowed"
    assert torch.equal(training.flat.theta, theta), "θ was moved by a skipped step"
    assert torch.equal(training.teacher.theta, teacher)
    assert training.treatment.target is None, "the vaccine's target moved"
    assert not training.optimizer.state, "AdamW's moments were touched"
    assert_equal(training.scale.value, 2.0 ** 59, "a skipped step halves the scale")


def test_run_float16__rows_that_overflow_in_one_product_may_not_in_two():
    # Eight rows of 100 · 100 are 80,000, over float16's 65,504; of four each, 40,000 twice.
    def gradient(*slices):
        weight = torch.ones(1, 1, requires_grad=True)
        for rows in slices:
            with float16():
                y = torch.nn.functional.linear(torch.full((rows, 1), 100.0), weight)
            (100 * y.float()).sum().backward()
        return weight.grad.item()
    assert_equal([gradient(8), gradient(4, 4)], [np.inf, 80000])


def test_run_float16__a_run_finds_its_scale_and_counts_what_it_skipped():
    with starting_at(2.0 ** 20):
        status, out, errors = run_train("--amp", "fp16", "--option", "gvac", "--smart",
                                        steps=9)
    assert_equal(status, 0, errors)
    steps = [line for line in log_of(out) if "lr" in line]
    skipped = [line for line in steps if line.get("skipped")]
    assert 0 < len(skipped) < 9, f"{len(skipped)} of 9 steps were skipped"
    scale = 2.0 ** 20
    assert steps[-1]["grad_norm"] < 1e3, "the update is still scaled"
    for line in steps:
        assert_equal(line["loss_scale"], scale, "the log holds the scale of this step")
        scale /= 2 if line.get("skipped") else 1
    state = load_checkpoint(f"{out}/last.pt")
    assert_equal(state["skipped"], len(skipped))
    counts = {value for entry in state["optimizer"]["state"].values()
              for value in entry.values() if isinstance(value, int)}
    assert_equal(max(counts), 9 - len(skipped), "AdamW took a skipped step")
    assert_equal(state["scale"]["value"], scale, "a checkpoint holds the scale")


def test_run_float16__resumed_it_goes_on_bit_for_bit():
    flags = ("--amp", "fp16", "--option", "gvac")
    with starting_at(2.0 ** 18, patience=2):
        whole = files_of(run_train(*flags, steps=9)[1])
        for step in (2, 7):             # while it still skips, and in between two changes
            with signalled_at(step):
                _, out, _ = run_train(*flags, steps=9)
            status, output, errors = resume(out)
            assert status == 0, errors
            for name, content in files_of(out).items():
                assert content == whole[name], f"{name} differs, stopped at {step}"
    assert b'"skipped"' in whole["metrics.jsonl"], "no step was skipped"


# --- Which precision is chosen ---

def test_run_float16__chosen_on_a_GPU_without_bfloat16_alone():
    def choose(amp="auto", device="cuda", eps=1.0):
        with unittest.mock.patch("torch.cuda.is_bf16_supported", lambda **_: False):
            return machine.choose_precision(amp, torch.device(device), eps)[1]
    assert_equal(choose(), "float16 autocast (this cuda has no bfloat16)")
    assert_equal(choose("fp16", "cpu"), "float16 autocast (given)")
    assert_equal(choose(device="mps"), "float32 (16 bits on mps are untried)")
    assert_equal([choose(eps=eps)[:7] for eps in (9e-4, 1e-3)], ["float32", "float16"],
                 "float16 keeps a change of 1e-3")


def test_run_float16__a_radius_that_it_loses_is_refused():
    status, _, errors = run_train("--amp", "fp16", "--smart", "--smart-eps", 1e-5)
    assert_one_line(status, errors, "--amp fp16", "--smart-eps 1e-05")
    assert settings_of("--amp", "fp16", "--smart")[0].amp == "fp16"
