"""3.5 SMART: the divergences of three kinds of outputs."""

import math

import torch

import heads
import smart
from tests import oracles
from tests.checks import assert_close, assert_raises


def test_3_5_divergence__by_hand():
    # P = (.75, .25), Q = (.5, .5): ¼ ln 1.5 - ¼ ln .5 = ¼ ln 3; as coins the same.
    a, b = torch.tensor([[math.log(3), 0.0]] * 2), torch.zeros(2, 2)
    quarter = .25 * math.log(3)
    mistakes = {"it is only KL(P‖Q), not symmetric": .130812,
                "it is only KL(Q‖P), not symmetric": .143841,
                "half of the sum was taken, or the mean over two classes": quarter / 2,
                "it is summed over the batch, not averaged": 2 * quarter}
    assert_close(smart.symmetric_kl(a, b), quarter, 1e-5, mistakes={
        **mistakes, "the sign is wrong": -quarter,
        "softmax runs over the batch, not over the classes": 0.0})
    assert_close(smart.binary_symmetric_kl(a[:, 0], b[:, 0]), quarter, 1e-5, mistakes={
        **mistakes, "the difference of probabilities was squared": .0625,
        "only one side of the coin counts": .101366})
    a, b = torch.tensor([1.0, 3]), torch.tensor([1.0, 1])
    assert_close(smart.squared_difference(a, b), 2.0, mistakes={
        "it is summed over the batch, not averaged": 4.0,
        "the difference is not squared": 1.0})


def test_3_5_divergence__symmetric_zero_at_equality_and_never_negative():
    torch.manual_seed(0)
    for task in heads.tasks():
        shape = (6, task.num_outputs) if task.num_outputs > 1 else (6,)
        a, b = 5 * torch.randn(2, *shape)
        assert_close(task.divergence(a, b), task.divergence(b, a), 1e-5, "not symmetric")
        assert_close(task.divergence(a, a), 0, 1e-6, "not 0 where both are equal")
        assert task.divergence(a, b) > 0, f"{task.name}: must be above 0 for a ≠ b"
        huge = task.divergence(1e4 * a, 1e4 * b)
        assert torch.isfinite(huge), "not stable for large logits"


def test_3_5_divergence__equals_the_two_kls():
    a, b = (torch.arange(70) * 7 % 11 - 5).view(2, 7, 5) / 4
    assert_close(smart.symmetric_kl(a, b), oracles.naive_symmetric_kl(a, b), 1e-6,
                 "sum over classes, mean over the batch")


def test_3_5_divergence__shapes_that_would_broadcast_are_refused():
    for divergence in (smart.symmetric_kl, smart.binary_symmetric_kl,
                       smart.squared_difference):
        with assert_raises("[3]", "[3, 1]"):
            divergence(torch.zeros(3), torch.zeros(3, 1))


def test_3_5_divergence__the_gradient_flows_through_both_factors():
    # Two classes: (p - q) (z - u) with z = ln 3, u = 0. ∂/∂z is p (1 - p) z + p - q =
    # .206 + .25, ∂/∂u is -(q (1 - q) z + p - q) = -(.275 + .25).
    def gradients(divergence, a, b):
        a, b = a.requires_grad_(True), b.requires_grad_(True)
        return [0.0 if g is None else g.flatten()[0].item() for g in torch.autograd.grad(
            divergence(a, b), (a, b), allow_unused=True)]
    z = torch.tensor([[math.log(3), 0.0]])
    for divergence, a, b in (
            (smart.symmetric_kl, z, torch.zeros(1, 2)),
            (smart.binary_symmetric_kl, z[0, :1].clone(), torch.zeros(1))):
        assert_close(gradients(divergence, a, b), [.455990, -.524653], 1e-5, mistakes={
            "the difference of probabilities is detached": [.25, -.25],
            "the difference of logarithms is detached": [.205990, -.274653],
            "q is detached": [.455990, 0], "p is detached": [0, -.524653]})
