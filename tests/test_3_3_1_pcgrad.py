"""3.3.1 Gradient surgery."""

import numpy as np

import multitask
from tests import oracles
from tests.checks import assert_close, assert_raises
from tests.world import gram_of, random_problems


def test_3_3_1_pcgrad__two_tasks_by_hand():
    # g1 = (1, 0), g2 = (-1, 1), g1 · g2 = -1:
    # g1' = g1 + ½ g2 = (½, ½), g2' = g2 + g1 = (0, 1).
    g = np.array([[1.0, 0], [-1, 1]])
    C = multitask.pcgrad(gram_of(g), orders=[[1], [0]])
    # One visit each, and none to a task that was treated before: no g_j' can be taken.
    probe = multitask.pcgrad(gram_of([[1.0, 0], [-1, 1], [-1, -2]]), [[1], [2], [0]])
    half = ("only tasks j > i are visited" if np.ndim(probe) == 2 and probe[2][0] == 0 else
            "g_2 was projected on g_1' instead of the ORIGINAL g_1")
    assert_close(C, [[1, .5], [1, 1]], mistakes={
        "divided by ‖g_i‖² instead of ‖g_j‖², or C is transposed":
            [[1, 1], [.5, 1]],
        "the projection has the wrong sign": [[1, -.5], [-1, 1]],
        half: [[1, .5], [0, 1]], "only tasks j < i are visited": [[1, 0], [1, 1]],
        "nothing was projected: it must be if g_i' · g_j < 0": [[1, 0], [0, 1]],
        "the dot product was not divided by ‖g_j‖²": [[1, 1], [1, 1]],
        "the dot product was divided by ‖g_j‖ instead of its square": [
            [1, .5 ** .5], [1, 1]],
        "C gram was returned, not C": [[.5, 0], [0, 1]],
        "the columns were added up: return C itself": [2, 1.5]})
    assert_close(C @ g, [[.5, .5], [0, 1]])
    assert_close(C.sum(-2) @ g, [.5, 1.5])


def test_3_3_1_pcgrad__another_known_example():
    J = np.array([[-4.0, 1, 1], [6, 1, 1]])             # G = [[18, -22], [-22, 38]]
    C = multitask.pcgrad(gram_of(J), orders=[[1], [0]])
    assert_close(C.sum(-2), [1 + 22 / 18, 1 + 22 / 38], 1e-12)
    assert_close(C.sum(-2) @ J, [.584795, 3.801170, 3.801170], 1e-6)


def test_3_3_1_pcgrad__equals_the_naive_vector_form():
    for gradients, orders, _ in random_problems(100):
        C = multitask.pcgrad(gram_of(gradients), orders)
        assert_close(C @ gradients, oracles.naive_pcgrad(gradients, orders), 1e-9,
                     "running g_i' against ORIGINAL g_j?", relative=1e-9)
        assert (C >= 0).all(), "gradient surgery never subtracts a task"


def test_3_3_1_pcgrad__order_of_visits_matters():
    g = [[1.0, 0], [-1, 1], [-1, -2]]
    C = multitask.pcgrad(gram_of(g), [[1, 2], [0, 2], [0, 1]])
    assert_close((C @ g)[0], [.2, -.1], mistakes={
        "orders are not followed": [.2, .2],
        "all dot products are those of the original g_i, not of the running g_i'":
            [.3, .1]})
    other = multitask.pcgrad(gram_of(g), [[2, 1], [0, 2], [0, 1]])
    assert_close((other @ g)[0], [.2, .2], mistakes={"orders are not followed": [.2, -.1]})
    assert_close(C.sum(-2), [3, 2.5, 1.7])
    assert_close(C.sum(-2) @ g, [-1.2, -.9])


def test_3_3_1_pcgrad__D3_acts_only_on_conflict():
    # Without the condition, as printed, (1, 0) and (.6, .8) would lose what they share.
    assert_close(multitask.pcgrad(gram_of([[1, 0], [.6, .8]]), [[1], [0]]), np.eye(2), 0,
                 "projected although g_i · g_j > 0")
    assert_close(multitask.pcgrad(gram_of([[1, 0], [0, 1]]), [[1], [0]]), np.eye(2), 0)


def test_3_3_1_pcgrad__D3_projects_on_the_other_gradient_not_on_the_sum():
    # "normal plane of the gradient vector sum": g1 - (g1·s/‖s‖²) s with s = (0, 1) is g1.
    g = np.array([[1.0, 0], [-1, 1]])
    assert_close((multitask.pcgrad(gram_of(g), [[1], [0]]) @ g)[0] @ g[1], 0, 1e-12,
                 "g_1' must be orthogonal to g_2, on whose normal plane it was projected")


def test_3_3_1_pcgrad__zero_gradient_changes_nothing():
    assert_close(multitask.pcgrad(gram_of([[1, 0], [0, 0]]), [[1], [0]]), np.eye(2), 0,
                 "divided by the length of a zero gradient?")


def test_3_3_1_pcgrad__opposite_gradients_cancel():
    g = np.array([[1.0, 0], [-2, 0]])
    assert_close(multitask.pcgrad(gram_of(g), [[1], [0]]) @ g, np.zeros((2, 2)))


def test_3_3_1_pcgrad__two_tasks_do_not_conflict_after_it():
    for gradients, _, _ in random_problems(200, seed=1):
        g = gradients[:2]
        treated = multitask.pcgrad(gram_of(g), [[1], [0]]) @ g
        scale = np.abs(g).max() ** 2
        left = [treated[0] @ g[1], treated[1] @ g[0], *(g @ treated.sum(0))]
        assert min(left) > -1e-9 * scale, (
            f"g_1' · g_2, g_2' · g_1, or one of them with the update, is {min(left):.3g}; "
            f"none may be below 0")


def test_3_3_1_pcgrad__never_projects_a_task_on_itself():
    # After (1,-1) and (1,0), g_0' · g_0 is negative; a loop over all j would project again.
    g = [[-3.0, 1], [1, -1], [1, 0]]
    assert_close((multitask.pcgrad(gram_of(g), [[1, 2], [0, 2], [0, 1]]) @ g)[0], [0, -1])
    # The drawn orders leave the task itself out too.
    for seed in range(20):
        drawn = multitask.pcgrad(gram_of(g), rng=np.random.default_rng(seed))
        assert_close(np.diagonal(drawn), [1, 1, 1], 0, "a task was projected on itself")


def test_3_3_1_pcgrad__scale_of_all_gradients_passes_through():
    gram = gram_of([[1.0, 2, 0], [-1, 1, 3], [0, -4, 1]])
    orders = [[1, 2], [2, 0], [0, 1]]
    want = multitask.pcgrad(gram, orders)
    for size in (1e6, 1e-30):
        assert_close(multitask.pcgrad(size * gram, orders), want, 1e-12, mistakes={
            "a floor under ‖g_j‖² hides small gradients": np.eye(3)})


def test_3_3_1_pcgrad__each_block_is_treated_by_itself():
    grams = np.array([gram_of(np.random.default_rng(s).normal(size=(3, 4)))
                      for s in range(5)])
    orders = [[1, 2], [2, 0], [0, 1]]
    alone, kept = [multitask.pcgrad(g, orders) for g in grams], grams.copy()
    assert_close(multitask.pcgrad(grams, orders), alone, 1e-12)
    assert_close(multitask.pcgrad(grams[None, :4].reshape(2, 2, 3, 3), orders),
                 np.reshape(alone[:4], (2, 2, 3, 3)), 1e-12,
                 "gram may have several leading dimensions")
    assert_close(grams, kept, 0, "the caller's gram was changed; work on a copy")


def test_3_3_1_pcgrad__order_is_drawn_from_rng():
    gram = gram_of([[1.0, 0], [-1, 1], [-1, -2]])
    drawn = [multitask.pcgrad(gram, rng=np.random.default_rng(s)).tolist()
             for s in range(20)]
    assert drawn == [multitask.pcgrad(gram, rng=np.random.default_rng(s)).tolist()
                     for s in range(20)], "the same generator gave other orders"
    assert len({str(C) for C in drawn}) > 1, "the order never changes"
    for seed in range(5):
        blocks = multitask.pcgrad(np.array([gram] * 3), rng=np.random.default_rng(seed))
        assert_close(blocks, [blocks[0]] * 3, 0,
                     "orders are drawn once, and are the same in every block")
    with assert_raises("[..., K, K]"):
        multitask.pcgrad(np.zeros((2, 3)))
    with assert_raises("gram must be finite"):
        multitask.check_gram([[np.inf, np.nan], [np.nan, 1]])
