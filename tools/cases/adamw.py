"""Graded cases of 3.1: AdamW."""

import torch
from cases import draw

import optim

# --- 3.1 AdamW ---

def steps(r, number, shapes=((2, 3), (4,)), idle=(), zero=(), **settings):
    """Values of several parameters under random gradients.

    idle: (step, parameter) without a gradient; zero: with a gradient of 0.
    """
    ps = [torch.nn.Parameter(draw(r, *shape)) for shape in shapes]
    optimizer, path = optim.AdamW(ps, **settings), []
    for t in range(number):
        for i, p in enumerate(ps):
            g = draw(r, *p.shape)
            p.grad = None if (t, i) in idle else g * ((t, i) not in zero)
        optimizer.step()
        path.append([p.detach().clone() for p in ps])
    return path, [p.grad for p in ps]


def AdamW__moments_and_step_size(r):
    return [steps(r, 6, lr=r.uniform(.05, .2), eps=r.uniform(.01, .1),
                  betas=(r.uniform(.6, .9), r.uniform(.9, .99))) for _ in range(2)]


def AdamW__decay_is_decoupled_and_comes_after_the_step(r):
    return steps(r, 6, lr=r.uniform(.05, .2), weight_decay=r.uniform(.5, .9), eps=1e-8)


def AdamW__eps_is_added_to_root_v(r):
    return steps(r, 3, lr=.1, eps=r.uniform(.5, 2))


def AdamW__without_bias_correction(r):
    return steps(r, 4, lr=.1, correct_bias=False, weight_decay=.3)


def AdamW__no_gradient_no_change(r):
    return steps(r, 5, ((2,), (3,), (2, 2)), lr=.1, weight_decay=.5,
                 idle=((0, 1), (1, 1), (2, 0), (3, 2)))


def AdamW__a_gradient_of_zero_is_a_step(r):
    return steps(r, 5, ((2,), (3,)), lr=.1, weight_decay=.5,
                 zero=((0, 1), (2, 0), (3, 1)), idle=((4, 0),))


def AdamW__groups_have_their_own_settings(r):
    a, b, c = (torch.nn.Parameter(draw(r, 3)) for _ in range(3))
    optimizer = optim.AdamW([
        {"params": [a, b], "weight_decay": .5},
        {"params": [c], "lr": .3, "betas": (.5, .8), "eps": .1}], lr=.1)
    for _ in range(3):
        for p in (a, b, c):
            p.grad = draw(r, 3)
        optimizer.step()
    return a, b, c


def AdamW__goes_on_from_its_saved_state(r):
    p, out, saved = torch.nn.Parameter(draw(r, 3)), [], None
    for _ in range(4):
        optimizer = optim.AdamW([p], lr=.1)
        if saved:
            optimizer.load_state_dict(saved)
        p.grad = draw(r, 3)
        optimizer.step()
        out.append(p.detach().clone())
        saved = optimizer.state_dict()
    return out


def AdamW__closure_is_called_and_its_loss_returned(r):
    p, calls = torch.nn.Parameter(draw(r, 3)), []
    optimizer = optim.AdamW([p], lr=.1)

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (p ** 2).sum()
        loss.backward()
        return loss
    return optimizer.step(closure), p, calls, optimizer.step() is None
