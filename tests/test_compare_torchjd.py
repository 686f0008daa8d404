"""3.3 Surgery and vaccine against torchjd's, where it is installed: with the same orders.

Both sides get one Gram matrix and give the coefficients of the update. torchjd draws its
orders by torch.randperm, in the same order of calls as we walk through them.
"""

import contextlib
import unittest.mock

import numpy as np
import torch

import multitask
from tests.checks import assert_close, skip_without
from tests.world import gram_of


def orders_of(K, rng):
    return [[j for j in rng.permutation(K).tolist() if j != i] for i in range(K)]


@contextlib.contextmanager
def drawn(permutations):
    """Within this context torch.randperm returns these lists, one after another."""
    given = iter(permutations)
    with unittest.mock.patch.object(torch, "randperm",
                                    lambda n: torch.tensor(next(given))):
        yield


def their_pcgrad(gram, orders):
    from torchjd.aggregation import PCGradWeighting
    # It permutes all K tasks and skips i itself, wherever that stands.
    with drawn([[i, *order] for i, order in enumerate(orders)]):
        return PCGradWeighting()(torch.from_numpy(gram)).numpy()


def their_vaccine(vaccine, gram, orders):
    # It permutes the places in the list of the K - 1 others.
    places = [[j - (j > i) for j in order] for i, order in enumerate(orders)]
    with drawn(places):
        return vaccine(torch.from_numpy(gram)).numpy()


def compare(ours, theirs, gram, tolerance):
    """Coefficients by what they contribute, w_k ‖g_k‖, relative to the largest."""
    norms = np.sqrt(np.diagonal(gram))
    a, b = ours * norms, theirs * norms
    assert_close(a / abs(b).max(), b / abs(b).max(), tolerance)


def test_compare_torchjd__surgery_gives_the_same():
    skip_without("torchjd")
    rng = np.random.default_rng(0)
    for step in range(500):
        K = 2 + step % 4
        gram = gram_of(rng.normal(size=(K, 8)) * rng.lognormal(size=(K, 1)))
        orders = orders_of(K, rng)
        compare(multitask.pcgrad(gram, orders).sum(-2), their_pcgrad(gram, orders), gram,
                1e-12)


def vaccines(beta=.01):
    from torchjd.aggregation import GradVacWeighting
    return multitask.GradVac(beta), GradVacWeighting(beta=beta, eps=0.0)


def test_compare_torchjd__vaccine_gives_the_same_over_3000_steps():
    skip_without("torchjd")
    for K in (2, 3, 4, 5):
        rng = np.random.default_rng(K)
        ours, theirs = vaccines()
        common = rng.normal(size=8)     # so that targets rise, and the vaccine acts
        for _ in range(750):
            gram = gram_of((rng.normal(size=(K, 8)) + .5 * common)
                           * rng.lognormal(size=(K, 1)))
            orders = orders_of(K, rng)
            compare(ours(gram, orders).sum(-2), their_vaccine(theirs, gram, orders), gram,
                    1e-12)
        assert_close(ours.target, theirs._phi_t.numpy(), 1e-12)
        assert ours.target.max() > .1


def test_compare_torchjd__at_any_scale():
    skip_without("torchjd")
    rng = np.random.default_rng(0)
    ours, theirs = vaccines()
    for _ in range(200):    # each task has a scale of its own
        gram = gram_of(rng.normal(size=(3, 8)) * 10 ** rng.uniform(-10, 15, (3, 1)))
        orders = orders_of(3, rng)
        compare(multitask.pcgrad(gram, orders).sum(-2), their_pcgrad(gram, orders), gram,
                1e-12)
        compare(ours(gram, orders).sum(-2), their_vaccine(theirs, gram, orders), gram,
                1e-12)


def test_compare_torchjd__where_theirs_or_its_target_is_nan_ours_is_finite():
    skip_without("torchjd")
    u, orders = np.array([1.0, 2.0, 2.0]), [[1, 2], [0, 2], [0, 1]]
    rng = np.random.default_rng(0)
    for name, lengths in (("rank 1", lambda: rng.normal(size=3)),
                          ("a zero gradient", lambda: [1, 0, -1])):
        ours, theirs = vaccines(beta=.5)
        their_steps, our_steps = [], []
        for _ in range(100):
            gram = gram_of(np.outer(lengths(), u))
            their_steps.append(their_vaccine(theirs, gram, orders))
            our_steps.append(ours(gram, orders).sum(-2))
        assert np.isnan(their_steps).any() or theirs._phi_t.isnan().any(), (
            f"{name}: theirs is finite; compare it too")
        assert np.isfinite(our_steps).all() and np.isfinite(ours.target).all(), name
        assert np.isfinite(multitask.pcgrad(gram, orders)).all(), name
    # Surgery divides by ‖g_j‖² only where g_i · g_j < 0: both are finite, and equal.
    for gradients in (np.outer([1, -1, 2], u), [u, 0 * u, -u]):
        gram = gram_of(gradients)
        assert_close(multitask.pcgrad(gram, orders).sum(-2), their_pcgrad(gram, orders),
                     1e-12)
