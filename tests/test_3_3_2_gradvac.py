"""3.3.2 Gradient vaccine."""

import numpy as np

import multitask
from tests import oracles
from tests.checks import assert_close, assert_equal, assert_raises
from tests.world import gram_of, random_problems


def vaccine(target, beta=0.01):
    """A GradVac with these targets φᵀ."""
    gv = multitask.GradVac(beta)
    gv.target = np.array(target, np.float64)
    return gv


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_3_3_2_GradVac__D4_the_cosine_becomes_the_target():
    # φ = -.6, φᵀ = .5. As printed, w = 1.649 and the cosine .074; right is w = 2.654701.
    g = np.array([[3.0, 4], [-2, 0]])
    gv = vaccine([[0, .5], [-.3, 0]])
    C = gv(gram_of(g), [[1], [0]])
    assert_close(C[0], [1, 2.65470054], 1e-7, mistakes={
        "w is the report's printed formula, not the source's": [1, 1.64903811],
        "w lacks ‖g_i'‖ / ‖g_j‖": [1, 1.06188022],
        "w has ‖g_j‖ / ‖g_i'‖ upside down": [1, .42475209],
        "w lacks its denominator √(1 - φᵀ²)": [1, 2.29903811],
        "the tilt lacks its denominator √(1 - φᵀ²)": [1, 2.5],
        "φᵀ_ji was taken for φᵀ_ij": [1, .871029098],
        "the target is not used: that is surgery": [1, 1.5],
        "φᵀ was updated before it was used": [1, 2.62119471],
        "nothing was tilted: it must be if φ < φᵀ": [1, 0]})
    assert_close(cosine((C @ g)[0], g[1]), 0.5, 1e-9)
    assert_close(gv.target[0, 1], .489, 1e-12, "φᵀ ← .99 · .5 + .01 · (-.6)", mistakes={
        "φᵀ was not updated, or with the φ after the tilt": .5,
        "φ is no cosine: it lacks ‖g_i'‖ or ‖g_j‖": .485,
        "φ is the dot product, not the cosine": .435,
        "β and 1 - β are exchanged in φᵀ's update": -.589,
        "φᵀ_12 and φᵀ_21 are one number; each direction has its own": .47811})
    # The other direction: .99 · (-.3) + .01 · (-.6).
    assert_close(gv.target[1, 0], -.303, 1e-12, mistakes={
        "φᵀ_12 and φᵀ_21 are one number; each direction has its own": .489,
        "only one direction's φᵀ is updated": -.3})


def test_3_3_2_GradVac__similar_gradients_are_tilted_too():
    # (1, 0), (.6, .8), φᵀ = .8: w = 7/15; the norms become 4/3, both cosines .8.
    g = np.array([[1.0, 0], [.6, .8]])
    gv = vaccine(np.full((2, 2), .8))
    treated = gv(gram_of(g), [[1], [0]]) @ g
    assert_close(treated, [[1.28, .373333], [1.066667, .8]], 1e-6, mistakes={
        "it acts only on conflict (φ < 0), as surgery does; it must where φ < φᵀ": g})
    assert_close(gv.target[[0, 1], [1, 0]], [.798, .798], 1e-12)


def test_3_3_2_GradVac__first_step_is_gradient_surgery():
    for gradients, orders, _ in random_problems(100, seed=2):
        assert_close(multitask.GradVac()(gram_of(gradients), orders) @ gradients,
                     oracles.naive_pcgrad(gradients, orders), 1e-8, relative=1e-7,
                     hint="φᵀ starts at 0, and is updated after its use: the first step is "
                          "surgery")


def test_3_3_2_GradVac__frozen_at_zero_it_stays_gradient_surgery():
    gv = multitask.GradVac(beta=0.0)
    for gradients, orders, _ in random_problems(100, seed=3):
        gv.target = None
        gram = gram_of(gradients)
        assert_close(gv(gram, orders), multitask.pcgrad(gram, orders), 1e-9, relative=1e-9)


def test_3_3_2_GradVac__equals_the_naive_vector_form_over_steps():
    rng = np.random.default_rng(4)
    for K in (2, 3, 4):
        beta, gv, target = .3, multitask.GradVac(.3), np.zeros((K, K))
        for _ in range(25):
            g = rng.normal(size=(K, 6)) + rng.normal(size=6)
            orders = [[j for j in rng.permutation(K).tolist() if j != i] for i in range(K)]
            want, target = oracles.naive_gradvac(g, target, orders, beta)
            assert_close(gv(gram_of(g), orders) @ g, want, 1e-8, relative=1e-7)
            assert_close(gv.target, target, 1e-9)


def test_3_3_2_GradVac__two_steps_of_a_known_example():
    J, gv = np.array([[-4.0, 1, 1], [6, 1, 1]]), multitask.GradVac(beta=.5)
    first = gv(gram_of(J), [[1], [0]]).sum(-2)
    assert_close(first @ J, [.584795, 3.801170, 3.801170], 1e-6)
    assert_close(gv.target[0, 1], -.42059551, 1e-8)
    second = gv(gram_of(J), [[1], [0]]).sum(-2)
    assert_close(second, [1.85798781, 1.40641528], 1e-8)
    assert_close(gv.target[1, 0], -.63089327, 1e-8)


def test_3_3_2_GradVac__three_tasks():
    g = np.array([[1.0, 0, 0], [-1, 1, 0], [0, -1, 1]])
    C = vaccine(np.full((3, 3), .2), .1)(gram_of(g), [[1, 2], [0, 2], [0, 1]])
    assert_close(C, [[1, .602062, .385143], [1.204124, 1, .606230], [.288675, .805905, 1]],
                 1e-6, "the running g_i', its dot products and its norm, against the "
                       "ORIGINAL g_j?")
    assert_close(C.sum(-2) @ g, [.084832, .416594, 1.991373], 1e-6)


def test_3_3_2_GradVac__target_follows_also_when_it_is_exceeded():
    # Cosines near .3: the target must reach them. Updated only inside the `if`, it would
    # stay at 0.
    rng, gv = np.random.default_rng(5), multitask.GradVac(.05)
    fired = 0
    for _ in range(400):
        phi = np.clip(rng.normal(.3, .1), -1, 1)
        C = gv(np.array([[1, phi], [phi, 1]]), [[1], [0]])
        fired += C[0, 1] > 0
    assert_close(gv.target[0, 1], .3, .06, "φᵀ must follow φ always, not only where φ < φᵀ")
    assert 100 < fired < 300, f"got {fired} of 400 times, expected about half"


def test_3_3_2_GradVac__opposite_gradients_cancel():
    g = np.array([[1.0, 0], [-2, 0]])
    gv = vaccine(np.full((2, 2), .5))
    assert_close(gv(gram_of(g), [[1], [0]]) @ g, np.zeros((2, 2)), 1e-12)
    assert_close(gv.target[0, 1], .485, 1e-12)


def test_3_3_2_GradVac__zero_gradient_changes_nothing():
    gv = vaccine(np.full((2, 2), .5))
    assert_close(gv(gram_of([[1, 2], [0, 0]]), [[1], [0]]), np.eye(2), 0,
                 "a zero gradient has no angle: nothing is tilted")
    assert_close(gv.target, np.full((2, 2), .5), 0,
                 "a zero gradient has no angle: φᵀ stays")


def test_3_3_2_GradVac__rounding_never_makes_a_nan():
    gv = multitask.GradVac(.5)
    for scale in (1.0, 1e-12, 1e12):
        g = np.array([[1.0, 1e-9], [-1, 1e-9], [1, 1e-9]]) * scale / 3
        for _ in range(10):
            assert np.isfinite(gv(gram_of(g), rng=np.random.default_rng(0))).all(), (
                "a root of a number that rounding has made negative?")
    rng = np.random.default_rng(1)
    for _ in range(50):     # ‖g_i‖² - (g_i · g_j)² / ‖g_j‖² is 0, or a bit less
        g = np.outer(rng.normal(size=3), rng.normal(size=7))
        assert np.isfinite(gv(gram_of(g), rng=rng)).all(), (
            "a root of a number that rounding has made negative?")
    assert np.isfinite(gv.target).all(), "φᵀ has become NaN, or infinite"


def test_3_3_2_GradVac__target_near_1_is_clamped():
    # φᵀ = 1 would tilt without limit. Clamped: w = .999 / √(1 - .999²) = 22.343906.
    assert_close(vaccine(np.ones((2, 2)))(np.eye(2), [[1], [0]]),
                 [[1, 22.343906], [22.343906, 1]], 1e-5,
                 "|φᵀ| is clamped to CLAMP where it is used")


def test_3_3_2_GradVac__size_of_the_other_gradient_does_not_matter():
    g, target = np.array([[3.0, 4], [-2, 1]]), [[0, .4], [.1, 0]]
    a = vaccine(target)(gram_of(g), [[1], [0]]) @ g
    h = g * [[1], [50]]
    b = vaccine(target)(gram_of(h), [[1], [0]]) @ h
    assert_close(a[0], b[0], 1e-9)


def test_3_3_2_GradVac__small_gradients_are_tilted_too():
    g, target = np.array([[3.0, 4], [-2, 1]]), [[0, .4], [.1, 0]]
    want = vaccine(target)(gram_of(g), [[1], [0]])
    for size in (1e-5, 1e-10, 1e-20):
        gram = gram_of(size * g)
        assert_close(vaccine(target)(gram, [[1], [0]]), want, 1e-6, mistakes={
            "small gradients are left alone; a norm of 0 alone has no angle": np.eye(2)})
        assert_close(gram, gram_of(size * g), 0, "the caller's gram was changed")


def test_3_3_2_GradVac__each_block_has_its_own_targets():
    grams = np.array([gram_of(np.random.default_rng(s).normal(size=(3, 4)))
                      for s in range(4)])
    orders = [[1, 2], [2, 0], [0, 1]]
    together, single = multitask.GradVac(.2), [multitask.GradVac(.2) for _ in grams]
    first = multitask.GradVac(.2)
    drawn = first(grams[:1].repeat(4, 0), rng=np.random.default_rng(0))
    assert_close(drawn, drawn[:1].repeat(4, 0), 0,
                 "orders are drawn once, the same for every block; do blocks share a "
                 "target?")
    assert_equal(np.shape(first.target), (4, 3, 3), mistakes={
        "all blocks share one target; each has its own": (3, 3)})
    for _ in range(3):
        assert_close(together(grams, orders),
                     [gv(g, orders) for gv, g in zip(single, grams)], 1e-12,
                     "do blocks share a target?")
    with assert_raises("[0, 1]"):
        multitask.GradVac(beta=2)
