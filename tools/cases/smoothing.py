"""Graded cases of 3.5: smoothness, Bregman and teacher."""

import numpy as np
import torch
import torch.nn.functional as F
from cases import draw, gradients, leaf, mask_of, raised

import optim
import smart

# --- 3.5 smoothness ---

def divergences():
    return [(smart.symmetric_kl, (6, 4)), (smart.binary_symmetric_kl, (6,)),
            (smart.squared_difference, (6,))]


def smoothness__divergences_and_their_gradients(r):
    out = []
    for f, shape in divergences():
        a, b = leaf(r, *shape), leaf(r, *shape)
        value = f(2 * a, b)
        out += [value, gradients(value, (a, b), r), f(a, a).abs() < 1e-12]
    return out


def smoothness__divergences_of_large_logits_are_finite(r):
    return [f(1e3 * draw(r, *shape), 1e3 * draw(r, *shape)) for f, shape in divergences()]


def smoothness__divergences_of_other_shapes_are_refused(r):
    return [(f(draw(r, *shape), draw(r, *shape)),
             raised(f, torch.zeros(3), torch.zeros(3, 1))) for f, shape in divergences()]


def ascent(r, eps, n_steps, mask=None, noise=None, scale=1.0, size=(3, 4, 5)):
    """smoothness() of an f.   -> (f(x), R, the points x̃ that f saw beside x, gradients)"""
    w, x = leaf(r, *size[1:]), leaf(r, *size)
    seen = []

    def f(y):
        if not torch.equal(y, x):
            seen.append((y.detach() - x.detach()) / eps)
        return scale * torch.tanh(y * w).sum((1, 2))
    if noise is None:
        noise = eps * torch.tensor(r.uniform(-.1, .1, size))
    logits, R = smart.smoothness(f, x, smart.squared_difference, eps, n_steps, mask, noise)
    return logits, R / eps ** 2, seen, gradients(R / eps ** 2, (w, x), r)


def smoothness__one_step_of_ascent(r):
    x, passes = draw(r, 2, 3, 4), []

    def f(y):
        passes.append(torch.equal(y, x))
        return y.sum((1, 2))
    smart.smoothness(f, x, smart.squared_difference, .1)
    return [ascent(r, eps, 1)[:3] for eps in (.01, .5)], passes.count(True), len(passes)


def smoothness__several_steps_of_ascent(r):
    return ascent(r, r.uniform(.1, .3), 3)[:3]


def smoothness__direction_and_length_of_the_step(r):
    # f's gradient differs a lot between coordinates: most steps end inside the radius.
    # The last row's is tiny.
    w = torch.tensor(np.exp(r.uniform(-9, 0, (4, 4, 5))))
    x, seen, eps = draw(r, 4, 4, 5), [], .01

    def f(y):
        if not torch.equal(y, x):
            seen.append((y.detach() - x) / eps)
        return (y * w).sum((1, 2)) * torch.tensor([1.0, 1e-3, 50, 1e-7])
    R = smart.smoothness(f, x, smart.squared_difference, eps, 1,
                         noise=eps * torch.full_like(x, .1))[1]
    return seen, R / eps ** 2


def smoothness__padding_stays(r):
    return ascent(r, .1, 2, mask_of(r, 3, 4))[:3]


def smoothness__gradients_of_both_sides(r):
    return ascent(r, .3, 1)[3], ascent(r, .3, 0)[3]


def smoothness__one_dropout_mask_for_all_passes(r):
    torch.manual_seed(int(r.integers(1 << 30)))
    x = draw(r, 2, 3, 4)
    zero = smart.smoothness(lambda y: F.dropout(y, .5).sum((1, 2)), x,
                            smart.squared_difference, 0.0)[1]
    seen = []

    def f(y):
        seen.append(y.detach())
        dropped = F.dropout(torch.ones_like(y), .5)
        return (dropped * y).sum((1, 2))
    eps = .1
    logits, R = smart.smoothness(f, x, smart.squared_difference, eps, 1,
                                 noise=eps * torch.full_like(x, .1))
    return zero, R, (seen[-1] - x) / eps


def smoothness__noise_has_size_eps_and_the_generator_moves_once(r):
    torch.manual_seed(int(r.integers(1 << 30)))
    x, seen, eps = torch.zeros(1, 40, 50, dtype=torch.float64), [], float(r.uniform(.1, .9))

    def f(y):
        if y.any():
            seen.append(y.detach())
        return F.dropout(y, .5).sum((1, 2))
    smart.smoothness(f, x, smart.squared_difference, eps)
    after = torch.rand(3)
    first = seen[0] / eps       # the start of the ascent, before any step
    return abs(first.std() - 1) < .1, abs(first.mean()) < .1, after


def smoothness__leaves_no_gradients_behind(r):
    w = torch.nn.Parameter(draw(r, 3))
    x = leaf(r, 2, 4, 3)
    R = smart.smoothness(lambda y: (y * w).sum((1, 2)), x, smart.squared_difference, .1,
                         noise=draw(r, 2, 4, 3) / 100)[1]
    return w.grad is None, x.grad is None, R


# --- 3.5 Bregman and teacher ---

def student_of(r):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(draw(r, *p.shape))
    return model, optim.FlatParameters([optim.Block("all", dict(model.named_parameters()))],
                                       1)


def teacher__follows_the_moving_average(r):
    model, flat = student_of(r)
    teacher, x, out = smart.Teacher(model, flat), draw(r, 2, 3), []
    for _ in range(4):
        with torch.no_grad():
            flat.theta += draw(r, *flat.theta.shape)
        teacher.follow(flat.theta, float(r.uniform(.3, .95)))
        out += [teacher.theta.clone(), teacher.model(x), model(x)]
    return out


def teacher__starts_as_a_copy_of_its_own(r):
    model, flat = student_of(r)
    teacher, x = smart.Teacher(model.train(), flat), draw(r, 2, 3)
    before = teacher.model(x)
    with torch.no_grad():
        flat.theta.zero_()
    return before, teacher.model(x), teacher.theta, model.training


def teacher__is_never_trained(r):
    model, flat = student_of(r)
    flat.attach(0)
    model(draw(r, 2, 3)).sum().backward()
    teacher = smart.Teacher(model, flat)
    return (teacher.model(draw(r, 2, 3)), [
                p.requires_grad for p in teacher.model.parameters()],
            [p.grad is None for p in teacher.model.parameters()],
            [p.requires_grad for p in model.parameters()])


def teacher__theta_is_what_its_model_reads(r):
    model, flat = student_of(r)
    teacher, x = smart.Teacher(model, flat), draw(r, 2, 3)
    teacher.theta.mul_(2)
    return teacher.model(x), model(x)


def teacher__bregman_and_its_gradient(r):
    a, b = leaf(r, 5), leaf(r, 5)
    D = smart.bregman(a, b, lambda p, q: ((p - q) ** 2 * p).mean())
    D.backward()
    return D, a.grad, b.grad is None
