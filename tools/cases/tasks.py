"""Graded cases of 3.2 and 3.3: orders, gradient surgery and vaccine."""

import numpy as np
import torch
from cases import draw, raised

import multitask
import optim

# --- 3.2 Algorithms 1 and 2 ---

def counts(r):
    names = r.permutation(["sst", "sts", "para", "nli"])[:r.integers(2, 5)].tolist()
    return {name: int(r.integers(1, 6)) for name in names}


def algorithms__sequential(r):
    return [[list(step) for step in multitask.sequential(counts(r))] for _ in range(4)]


def algorithms__round_robin(r):
    return [[list(step) for step in multitask.round_robin(c, str(r.choice(list(c))))]
            for c in (counts(r) for _ in range(4))]


def toy(r):
    """A shared vector and a head for each of two tasks.   -> (flat, loss_fn)"""
    w, *h = (torch.nn.Parameter(draw(r, 2, 3)) for _ in range(3))
    flat = optim.FlatParameters(
        [optim.Block("shared", {"w": w}), optim.Block("a", {"a": h[0]}, shared=False),
         optim.Block("b", {"b": h[1]}, shared=False)], 3)
    own = {"sst": (draw(r, 2, 3), h[0]), "sts": (draw(r, 2, 3), h[1])}

    def loss_fn(task, batch, factor=1.0):
        c, head = own[task]
        loss = factor * ((w * c + head ** 2) * batch).sum()
        return loss, {"loss": loss.detach(), "smooth": batch.mean()}
    return flat, loss_fn


def batches(r, *tasks):
    return {task: draw(r, 2, 3) for task in tasks}


def algorithms__backward_gives_each_task_its_row(r):
    flat, loss_fn = toy(r)
    flat.G.fill_(7)
    logs = multitask.backward(flat, [batches(r, "sst", "sts")], loss_fn,
                              {"sst": 2, "sts": 0}, factor=float(r.uniform(2, 3)))
    return flat.G, sorted(logs.items()), [isinstance(v, float) for v in logs.values()]


def algorithms__backward_averages_over_the_virtual_batch(r):
    flat, loss_fn = toy(r)
    logs = multitask.backward(flat, [batches(r, "sts", "sst") for _ in range(3)], loss_fn,
                              {"sst": 0, "sts": 1})
    return flat.G, sorted(logs.items())


def algorithms__backward_empties_its_rows_and_shares_one(r):
    flat, loss_fn = toy(r)
    for tasks, rows in ((("sst", "sts"), {"sst": 0, "sts": 0}), (("sst",), {"sst": 1})):
        logs = multitask.backward(flat, [batches(r, *tasks) for _ in range(2)], loss_fn,
                                  rows)
    return flat.G, sorted(logs.items())


# --- 3.3.1 PCGrad, 3.3.2 Gradient Vaccine ---

def problem(r, K, P=5):
    """K gradients of different sizes, with conflicts, and orders."""
    g = r.normal(size=(K, P)) * np.exp(r.normal(size=(K, 1)))
    return g @ g.T, [[j for j in r.permutation(K).tolist() if j != i] for i in range(K)]


def pcgrad__two_tasks(r):
    return [multitask.pcgrad(*problem(r, 2, 2)) for _ in range(20)]


def pcgrad__several_tasks_in_the_orders_given(r):
    out = [multitask.pcgrad(*problem(r, K, 3)) for K in (3, 4, 5) for _ in range(10)]
    gram, orders = problem(r, 3, 3)
    return out, multitask.pcgrad(gram * 1e-24, orders), gram, orders


def pcgrad__zero_gradients_change_nothing(r):
    out = []
    for K in (2, 3, 4):
        gram, orders = problem(r, K, 2)
        zero = r.integers(K)
        gram[zero], gram[:, zero] = 0, 0
        out.append(multitask.pcgrad(gram, orders))
    return out


def pcgrad__opposite_gradients_cancel(r):
    g = np.outer([1.0, -r.uniform(1, 3), r.uniform(1, 2)], [1.0, 2.0])
    return multitask.pcgrad(g @ g.T, [[1, 2], [0, 2], [0, 1]])


def pcgrad__blocks_are_treated_apart(r):
    _, orders = problem(r, 3)
    grams = np.array([problem(r, 3, 2)[0] for _ in range(6)])
    return (multitask.pcgrad(grams, orders),
            multitask.pcgrad(grams.reshape(2, 3, 3, 3), orders), grams, orders)


def pcgrad__what_is_not_square_is_refused(r):
    gram, orders = problem(r, 3)
    return multitask.pcgrad(gram, orders), [raised(multitask.pcgrad, wrong, orders)
                                            for wrong in (gram[:2], gram[:, :2], gram[0])]


def pcgrad__orders_are_drawn_from_rng(r):
    return drawn(r, lambda: multitask.pcgrad)


def drawn(r, new):
    """Alike for one seed, not always the same, and no task against itself."""
    gram, seeds = problem(r, 4, 2)[0], r.integers(1 << 30, size=12)
    a, b = ([new()(gram, rng=np.random.default_rng(seed)) for seed in seeds]
            for _ in range(2))
    return (np.array_equal(a, b), len({str(C) for C in a}) > 1,
            all((np.diagonal(C) == 1).all() for C in a),
            new()(gram[:2, :2], rng=np.random.default_rng(0)))


def vaccine(r, K, beta=None, low=-.9, high=.9):
    gv = multitask.GradVac(r.uniform(.1, .9) if beta is None else beta)
    gv.target = r.uniform(low, high, (K, K))
    return gv


def gradvac__tilts_to_the_target(r):
    return [vaccine(r, 2)(*problem(r, 2, 2)) for _ in range(20)]


def gradvac__several_tasks_in_the_orders_given(r):
    out = [vaccine(r, K)(*problem(r, K, 4)) for K in (3, 4) for _ in range(10)]
    gram, orders = problem(r, 3, 4)
    gram *= 1e-24
    return out, vaccine(r, 3)(gram, orders), gram * 1e24, orders


def gradvac__target_follows_always(r):
    out = []
    for K in (2, 3):
        gv = multitask.GradVac(r.uniform(.1, .9))
        for _ in range(5):
            gram, orders = problem(r, K, 4)
            out += [gv(gram, orders), gv.target.copy()]
    return out


def gradvac__zero_gradients_change_nothing(r):
    out = []
    for K in (2, 3):
        gram, orders = problem(r, K, 2)
        zero = r.integers(K)
        gram[zero], gram[:, zero] = 0, 0
        gv = vaccine(r, K)
        out += [gv(gram, orders), gv.target]
    return out


def gradvac__opposite_gradients_stay_finite(r):
    out = []
    for low in (-.5, .9999):
        g = np.outer([1.0, -r.uniform(1, 3)], r.normal(size=3))
        gv = vaccine(r, 2, low=low, high=low + .00005)
        C = gv(g @ g.T, [[1], [0]])
        # Rounding φ by 1e-16 moves √(1 - φ²) by 1e-8, which the clamped tilt makes 22 times
        # as large.
        out += [np.isfinite(C).all(), np.abs(C @ g).max() < 1e-5 * np.abs(g).max(),
                gv.target]
    return out


def gradvac__targets_near_1_are_clamped(r):
    return [vaccine(r, 2, low=a, high=b)(np.eye(2) * r.uniform(1, 2), [[1], [0]])
            for a, b in ((.9995, 1), (.98, .99))]


def gradvac__blocks_have_their_own_targets(r):
    gv, out = multitask.GradVac(r.uniform(.1, .9)), []
    for _ in range(3):
        _, orders = problem(r, 3)
        out += [gv(np.array([problem(r, 3, 4)[0] for _ in range(4)]), orders),
                gv.target.copy()]
    return out


def gradvac__orders_are_drawn_from_rng(r):
    return drawn(r, lambda: multitask.GradVac(.3))
