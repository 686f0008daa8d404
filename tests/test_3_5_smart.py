"""3.5 SMART: smoothness, the teacher and the Bregman term."""

import functools
import unittest.mock

import torch
import torch.nn.functional as F

import heads
import multitask
import smart
from tests.checks import assert_close, assert_equal
from tests.world import flat_model, small_bert, tiny_batch, training_of


def smoothness(*args, **more):
    """smart.smoothness(), if it returns what it must."""
    result = smart.smoothness(*args, **more)
    assert isinstance(result, (tuple, list)) and len(result) == 2, (
        "smoothness() returns two results, (f(x), R_s): the clean logits come first")
    return result


def coin(x):
    """f(x) = 2 x₁ - x₂ for a single token of two features.   [B, 1, 2] -> [B]"""
    return x[:, 0] @ torch.tensor([2.0, -1.0], dtype=x.dtype)


def test_3_5_smoothness__one_step_by_hand():
    # x = (1, 1), start δ = (ε, 0): f rises with x₁ and falls with x₂, so the step of 100 ε
    # goes to the corner (ε, -ε); R_s = (σ(1 + 3ε) - σ(1)) · 3ε = 1.7695e-10 at ε = 1e-5.
    x = torch.ones(1, 1, 2, dtype=torch.float64)
    noise = torch.tensor([[[1e-5, 0.0]]], dtype=torch.float64)
    logits, R = smoothness(coin, x, smart.binary_symmetric_kl, 1e-5, noise=noise)
    assert_close(logits, [1.0])
    assert_close(R, 1.76949513e-10, 1e-17)


def test_3_5_smoothness__a_wide_radius_by_hand():
    # As above with ε = ½: δ = (½, -½), f goes from 1 to 2.5, (σ(2.5) - σ(1)) · 1.5.
    x, noise, seen = torch.ones(1, 1, 2), torch.tensor([[[.5, 0.0]]]), []

    def f(x):
        seen.append(x.detach().clone())
        return coin(x)
    _, R = smoothness(f, x, smart.binary_symmetric_kl, .5, noise=noise)
    lost = len(seen) > 1 and torch.equal(seen[1], x)
    assert_close(R, .289625, 1e-5, mistakes={
        "δ goes down the gradient; the worst change is wanted": .530277,
        "there is no ascent: δ is still the noise": .149738,
        "δ was not clamped to ±ε": 33.886619,
        "δ does not start as the given noise, but at 0" if lost else
        "x itself was not perturbed": 0.0})


def test_3_5_smoothness__an_inner_point_by_hand():
    # f = 1e-4 w · x over two tokens: g is a multiple of w, whose largest entry is 1. From
    # δ = .1 ε a step of 100 ε w: (100, 100, .6) and (.6, .3, 0), so δ is ε times
    w, eps = torch.tensor([[1.0, 1, .006], [.006, .003, 0]]), .1
    want = torch.tensor([[1.0, 1, .7], [.7, .4, .1]])
    seen = []

    def f(x):
        seen.append(x.detach().clone())
        return (1e-4 * w * x).sum((1, 2))
    smoothness(f, torch.zeros(1, 2, 3), smart.squared_difference, eps,
                     noise=torch.full((1, 2, 3), .1 * eps))
    assert len(seen) >= 3, "f runs on x, once for each step, and on x + δ: three passes"
    assert_close(seen[-1][0] / eps, want, 1e-3, "δ is not clamp(δ + 100 ε g / ‖g‖_∞)",
                 mistakes={
        "‖g‖ is each token's; it must be the row's": [[1, 1, .7], [1, 1, .1]],
        "‖g‖ is each feature's; it must be the row's": [[1, 1, 1], [.7, .4, .1]],
        "‖g‖ is the root of the squares (2), not the largest (∞)": [
            [1, 1, .524250], [.524250, .312125, .1]],
        "‖g‖ is the sum (1), not the largest (∞)": [
            [1, 1, .397767], [.397767, .248883, .1]],
        "the step is the sign of g, not g / ‖g‖": [[1, 1, 1], [1, 1, .1]],
        "the step forgets where δ was": [[1, 1, .6], [.6, .3, 0]],
        "the step goes down the gradient": [[-1, -1, -.5], [-.5, -.2, .1]],
        "δ was not clamped to ±ε": [[100.1, 100.1, .7], [.7, .4, .1]],
        "the step is ε long, not 100 ε": [[1, 1, .106], [.106, .103, .1]],
        "the step is 10 ε long, not 100 ε": [[1, 1, .16], [.16, .13, .1]],
        "δ starts at 0, or x itself was not perturbed": [[0] * 3] * 2,
        "δ is still the noise: there is no ascent, or g is not divided by ‖g‖":
            [[.1] * 3] * 2})


def test_3_5_smoothness__a_gradient_of_any_size_gives_a_whole_step():
    # g is 2e-16 here: a floor of 1e-12, or of 1e-8, under ‖g‖ would swallow the step.
    seen = []

    def f(x):
        seen.append(x.detach().clone())
        return 1e-7 * x[:, 0, 0]
    smoothness(f, torch.zeros(1, 1, 1), smart.squared_difference, .1,
                     noise=torch.full((1, 1, 1), .01))
    floor = "a floor under ‖g‖ hides small gradients; it guards against 0 / 0 alone"
    assert_close(seen[-1].flatten(), [.1], 1e-5, floor if 0 < seen[-1] < .1 else "")


def test_3_5_smoothness__a_gradient_of_zero_gives_no_nan():
    _, R = smoothness(lambda x: 0 * x.sum((1, 2)), torch.ones(2, 1, 2),
                            smart.squared_difference, .1)
    assert_close(R, 0, 0, "0 / 0: a row whose gradient is 0 stays where it is")


def test_3_5_smoothness__the_start_is_noise_of_size_eps_off_the_padding():
    seen, mask = [], torch.ones(4, 50)
    mask[:, 40:] = 0

    def f(x):
        seen.append(x.detach().clone())
        return x.sum((1, 2))
    torch.manual_seed(0)
    smoothness(f, torch.zeros(4, 50, 16), smart.squared_difference, .02,
                     attention_mask=mask)
    assert len(seen) == 3, "f runs on x, once for each step, and on x + δ: three passes"
    start = seen[1]
    size = start[mask == 1].std() / .02
    assert_close(size, 1.0, 0, relative=.08, hint="δ starts as N(0, ε²)", mistakes={
        "δ starts at 0, where there is no direction": 0.0,
        "the noise lacks the factor ε": 50.0, "the noise is uniform": .577,
        "the noise was multiplied by ε²": .02})
    assert not start[mask == 0].any(), "the noise falls on padding too"


def test_3_5_smoothness__is_zero_at_radius_zero_even_under_dropout():
    model = heads.MultitaskBert(small_bert(), con=True).train()
    task, batch = model.tasks["sst"], tiny_batch(True, pair=False)[1]
    _, R = smoothness(lambda x: model.logits(task, x, batch), model.embed(batch),
                            task.divergence, 0.0)
    assert_close(R, 0, 1e-12, "the passes draw different dropout masks")


def test_3_5_smoothness__all_passes_share_one_dropout_mask():
    # Without change R is 0, however the mask falls.
    torch.manual_seed(0)
    _, R = smoothness(lambda x: F.dropout(x, .5).sum((1, 2)), torch.ones(2, 3, 4),
                            smart.squared_difference, 0.0)
    assert_close(R, 0, 1e-12, "the passes draw different dropout masks")


def test_3_5_smoothness__the_ascent_shares_the_mask_too():
    masks = []

    def f(x):
        masks.append(F.dropout(torch.ones(64), .5))
        return x.sum((1, 2))
    torch.manual_seed(0)
    smoothness(f, torch.ones(2, 3, 4), smart.squared_difference, .1, steps=2)
    same = [torch.equal(mask, masks[0]) for mask in masks]
    assert_equal(same, [True] * 4, "all passes share one dropout mask", mistakes={
        "the ascent draws other dropout masks": [True, False, False, True],
        "the later ascent steps draw other dropout masks": [True, True, False, True],
        "the last pass draws another dropout mask": [True, True, True, False]})


class OnGPU(torch.Tensor):
    """A CPU's tensor that says it is a GPU's."""

    device = torch.device("cuda")


class MadeOnCPU(torch.overrides.TorchFunctionMode):
    """What code makes on the GPU, as on its x.device, is made on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def here(value):
            return torch.device("cpu") if value == OnGPU.device else value
        return function(*map(here, args), **{name: here(value) for name, value
                                             in (kwargs or {}).items()})


def test_3_5_smoothness__on_a_GPU_its_own_generator_is_set_back():
    # A GPU's generator, whose state is a number that each pass moves on.
    gpu, starts, cpu = [0], [], []

    def f(x):
        starts.append(gpu[0])
        gpu[0] += 1
        return x.as_subclass(torch.Tensor).sum((1, 2))

    def set_back(state, device="cuda"):
        gpu[0] = state
    with unittest.mock.patch.object(torch, "set_rng_state", cpu.append), \
            unittest.mock.patch.multiple(
            torch.cuda, get_rng_state=lambda device="cuda": gpu[0],
            set_rng_state=set_back), MadeOnCPU():
        smoothness(f, torch.ones(2, 3, 4).as_subclass(OnGPU), smart.squared_difference, .1)
    assert_equal(starts, [0, 0, 0],
                 "on a GPU its generator is set back before each further pass", mistakes={
        "on a GPU the CPU's generator is set back" if cpu else
        "on a GPU the generator is not set back": [0, 1, 2],
        "on a GPU the generator is set back only once": [0, 0, 1],
        "on a GPU the ascent draws other dropout masks": [0, 1, 0]})


def test_3_5_smoothness__the_random_generator_moves_as_for_one_pass():
    # The noise is drawn first, then one mask: after the call the generator is where noise
    # and one clean pass leave it, so SMART's extra passes cost no random numbers.
    x = torch.ones(1, 3, 2)

    def f(x):
        return F.dropout(x, 0.5).sum((1, 2))
    torch.manual_seed(0)
    smoothness(f, x, smart.squared_difference, .1, steps=3)
    after = torch.rand(1)
    torch.manual_seed(0)
    torch.randn_like(x)
    f(x)
    assert_close(torch.rand(1), after, 0,
                 "draw the noise first, then set the generator back before each further "
                 "pass")


def test_3_5_smoothness__perturbation_stays_inside_the_radius_and_off_the_padding():
    seen = []

    def f(x):
        seen.append(x.detach().clone())
        return (x ** 2).sum((1, 2))
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    smoothness(f, x, smart.squared_difference, .05, steps=2, attention_mask=mask)
    change = (seen[-1] - x).abs()
    assert_equal(len(seen), 4, "a clean pass, one for each step, a last one", mistakes={
        "there is one ascent step, whatever `steps` says": 3,
        "the clean pass is made twice": 5})
    assert change.max() <= .05 + 1e-6, f"got {change.max()}, radius is .05"
    assert change.max() > .049, "the ascent should reach the boundary"
    assert not change[mask == 0].any(), "padding was perturbed"


def test_3_5_smoothness__ascent_beats_random_noise_and_more_steps_do_not_harm():
    model = heads.MultitaskBert(small_bert(), con=True).eval()
    for task in model.tasks.values():
        batch = tiny_batch(True, task.pair)[1]
        x = model.embed(batch).detach()
        f = functools.partial(model.logits, task, batch=batch)
        R = {}
        for steps in (1, 3):
            torch.manual_seed(3)
            _, R[steps] = smoothness(f, x, task.divergence, .02, steps,
                                           batch.attention_mask)
        random = task.divergence(f(x + .02 * torch.randn(x.shape).sign()), f(x))
        assert R[1] > 2 * random, f"{task.name}: got {R[1]}, random noise gives {random}"
        assert R[3] > .9 * R[1], f"{task.name}: 3 steps give {R[3]}, 1 step {R[1]}"


def test_3_5_smoothness__start_at_zero_would_find_no_direction():
    x = torch.ones(1, 1, 2)
    _, R = smoothness(coin, x, smart.squared_difference, 1e-2,
                            noise=torch.zeros(1, 1, 2))
    assert_close(R, 0, 0)
    torch.manual_seed(0)
    assert smoothness(coin, x, smart.squared_difference, 1e-2)[1] > 1e-5, (
        "δ started at 0, where there is no direction; it starts as noise")


def test_3_5_smoothness__rows_do_not_depend_on_their_batch_mates():
    # f = s · x₁ with s = 1 and 1000, from δ = .01: a step must reach ε in both rows.
    scale, seen = torch.tensor([1.0, 1000.0]), []

    def f(x):
        seen.append(x.detach() - 1)
        return scale * x[:, 0, 0]
    smoothness(f, torch.ones(2, 1, 1), smart.squared_difference, .1,
                     noise=torch.full((2, 1, 1), .01))
    assert_close(seen[-1].flatten(), [.1, .1], 1e-6, mistakes={
        "‖g‖_∞ is taken over the whole batch; each row has its own": [.01001, .1],
        "δ was not clamped to ±ε": [10.01, 10.01],
        "δ starts at 0, or x itself was not perturbed": [0, 0]})


ASCENT = "the ascent left gradients in .grad; torch.autograd.grad asks for ∂/∂δ alone"


def test_3_5_smoothness__gradient_flows_through_both_sides():
    # R = (w δ)² with δ fixed at the corner; ∂R/∂w = 2 w δ² from both sides together. With
    # the clean side detached f(x) = w x would add 2 (w δ)(x + δ): another number.
    w = torch.nn.Parameter(torch.tensor(2.0))
    _, R = smoothness(lambda x: w * x[:, 0, 0], torch.ones(1, 1, 1),
                      smart.squared_difference, .1, noise=torch.full((1, 1, 1), .1))
    assert R.requires_grad, "both sides are detached: R_s has no gradient"
    assert w.grad is None, ASCENT
    R.backward()
    assert_close(w.grad, 2 * 2 * .01, 1e-5, relative=1e-5, mistakes={
        "δ was not clamped to ±ε": 408.04,
        "δ is not kept fixed: its own graph adds to the gradient": .08,
        "the clean side is detached: the gradient must flow through both": .44,
        "the perturbed side is detached": -.4})


def test_3_5_smoothness__gradient_reaches_the_embeddings():
    # f = x², x = 1, δ = .1: R = (1.21 - 1)², and ∂R/∂x = 2 · .21 · (2.2 - 2) = .084.
    x = torch.ones(1, 1, 1, requires_grad=True)
    _, R = smoothness(lambda x: x[:, 0, 0] ** 2, x, smart.squared_difference, .1,
                            noise=torch.full((1, 1, 1), .1))
    assert R.requires_grad, "R_s has no gradient with respect to x; was x detached?"
    R.backward()
    assert x.grad is not None, "R_s has no gradient with respect to x; was x detached?"
    assert_close(x.grad, [[[.084]]], 1e-5, relative=1e-5, mistakes={
        "δ was not clamped to ±ε": [[[4937.284]]],
        "the penalty is on a detached copy of x": [[[-.84]]],
        "the clean side is detached": [[[.924]]]})


def test_3_5_smoothness__task_gradients_are_untouched_by_the_ascent():
    w = torch.nn.Parameter(torch.tensor(2.0))
    smoothness(lambda x: w * x[:, 0, 0], torch.ones(1, 1, 1),
                     smart.squared_difference, .1)
    assert w.grad is None, ASCENT


def test_3_5_Teacher__follows_by_hand():
    # β = .99, θ = 1, 2, 3 from 0: .01, .0299, .059601.
    import optim
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    flat = optim.FlatParameters([optim.Block("w", {"weight": layer.weight})], 1)
    teacher = smart.Teacher(layer, flat)
    path = []
    for value in (1.0, 2.0, 3.0):
        flat.theta.fill_(value)
        teacher.follow(flat.theta, .99)
        path.append(teacher.model.weight.item())
    same = teacher.theta.data_ptr() == flat.theta.data_ptr()
    assert_close(path, [.01, .0299, .059601], 1e-6, mistakes={
        "θ̃ shares memory with θ" if same else "follow() copies θ whole": [1, 2, 3],
        "β and 1 - β are exchanged": [.99, 1.9899, 2.989899],
        "θ̃ is not what the teacher's model uses": [0, 0, 0]})


def test_3_5_Teacher__owns_its_parameters():
    import optim
    layer = torch.nn.Linear(2, 1)
    flat = optim.FlatParameters([optim.Block("w", dict(layer.named_parameters()))], 1)
    teacher = smart.Teacher(layer.train(), flat)
    assert_close(teacher.theta, flat.theta, 0, "θ̃ starts as a copy of θ")
    with torch.no_grad():
        flat.theta.zero_()
    assert teacher.theta.any(), "θ̃ shares memory with θ; clone it"
    for name, p in teacher.model.named_parameters():
        assert not p.requires_grad, f"{name} of the teacher would be trained"
        assert_close(p.flatten(), teacher.theta[flat.place[name]], 0,
                     f"{name} is not a view of θ̃")
    assert layer.training, "the model is no longer in training mode"
    assert layer.weight.requires_grad, (
        "the model itself can no longer be trained; was it copied?")


def test_3_5_bregman__by_hand():
    # ℓ_s = mean (a - b)² is ((3 - 1)² + (2 - 2)²) / 2 = 2, ∂/∂a = (2, 0).
    a = torch.tensor([3.0, 2.0], requires_grad=True)
    b = torch.tensor([1.0, 2.0], requires_grad=True)
    D = smart.bregman(a, b, lambda a, b: (a - b).square().mean())
    assert_close(D, 2.0, 1e-6)
    assert D.requires_grad, "both sides are detached; only the teacher's must be"
    D.backward()
    assert a.grad is not None, ("the model's own logits are detached; only the teacher's "
                                "must be")
    assert_close(a.grad, [2, 0], 1e-6, "the gradient goes to the model's own logits")
    assert b.grad is None, "the teacher's logits got a gradient; detach them"


def bregman_term(model, flat, task, teacher, weight=1.0, smooth=0.0):
    """D_Breg on a fixed batch, and its gradient in G[0].   -> (D, largest |gradient|)"""
    torch.manual_seed(1)
    settings = smart.Settings(weight=smooth, bregman_weight=weight)
    _, parts = smart.objective(model, task, tiny_batch(True, task.pair)[1], settings,
                               teacher)
    flat.G.zero_()
    flat.attach(0)
    parts["bregman"].backward()
    return parts["bregman"].item(), flat.G[0].abs().max().item()


def test_3_5_bregman__D7_at_theta_itself_value_and_gradient_are_zero():
    # Exactly, under dropout too, with and without the passes that R_s makes in between.
    for dropout in (0.0, 0.1):
        model, flat = flat_model(hidden_dropout_prob=dropout,
                                 attention_probs_dropout_prob=dropout)
        model.train()
        for task in model.tasks.values():
            for smooth in (0.0, 1.0):
                teacher = smart.Teacher(model, flat)
                assert torch.equal(teacher.theta, flat.theta), "θ̃ starts as a copy of θ"
                D = bregman_term(model, flat, task, teacher, smooth=smooth)
                assert_equal(D, (0, 0),
                             "the teacher draws dropout masks of its own, or none")


def test_3_5_bregman__D7_a_reference_that_lags_behind_pulls_back():
    model, flat = flat_model()
    teacher = smart.Teacher(model.train(), flat)
    with torch.no_grad():
        flat.theta.mul_(1.1)
    for task in model.tasks.values():
        D, gradient = bregman_term(model, flat, task, teacher)
        assert D > 1e-6 and gradient > 1e-5, (
            f"{task.name}: D_Breg is {D:.3g}, its largest gradient {gradient:.3g}; both "
            f"must be above 0 where θ̃ is not θ")


def test_3_5_objective__the_teacher_gets_no_gradient_and_moves_no_random_number():
    model, flat = flat_model()
    model.train()
    teacher, task = smart.Teacher(model, flat), model.tasks["para"]
    bregman_term(model, flat, task, teacher)
    assert all(p.grad is None for p in teacher.model.parameters()), (
        "the teacher got gradients")
    after = torch.rand(1)
    bregman_term(model, flat, task, smart.Teacher(model, flat))
    assert_equal(torch.rand(1), after)
    torch.manual_seed(1)
    smart.objective(model, task, tiny_batch(True)[1], smart.Settings(0, bregman_weight=0))
    assert_equal(torch.rand(1), after, "the teacher's pass has moved the generator")


def test_3_5_gradient_ratio__by_hand():
    # Gradients (3, 0) and (6, 8): 3 / 10.
    w, idle = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    term, loss = 3 * w[0], 6 * w[0] + 8 * w[1]
    assert_close(smart.gradient_ratio(term, loss, [w, idle]), .3, 1e-6, mistakes={
        "the norms are squared": .09, "it is upside down": 10 / 3})
    assert w.grad is None, "it left gradients in .grad"
    term.backward()             # the graph is still needed


def test_3_5_objective__weights_by_hand():
    model, flat = flat_model(con=True)
    model.eval()
    task, batch = model.tasks["sts"], tiny_batch(True)[1]
    teacher = smart.Teacher(model, flat)
    with torch.no_grad():
        flat.theta.mul_(1.1)
    total, parts = smart.objective(model, task, batch, smart.Settings(
        weight=3.0, eps=.5, bregman_weight=5.0), teacher)
    loss, smooth, pull = (parts[name].item() for name in ("loss", "smooth", "bregman"))
    assert_close(total, loss + 3 * smooth + 5 * pull, 1e-4, relative=1e-5, mistakes={
        "the smoothness term is not in the sum": loss + 5 * pull,
        "the Bregman term is not in the sum": loss + 3 * smooth,
        "the smoothness term has no weight": loss + smooth + 5 * pull,
        "the Bregman term has no weight": loss + 3 * smooth + pull,
        "the two weights are exchanged": loss + 5 * smooth + 3 * pull})


def test_3_5_r_drop__two_passes_with_other_masks_by_hand():
    model, _ = flat_model(con=True, hidden_dropout_prob=.3)
    for name, task in model.train().tasks.items():
        batch = tiny_batch(True, task.pair)[1]
        torch.manual_seed(3)
        first, second = (model(task, batch) for _ in range(2))
        losses = [task.loss(z, batch.labels).item() for z in (first, second)]
        D, mean = task.divergence(first, second).item(), sum(losses) / 2
        assert D > 1e-4, "with dropout .3 two passes differ"
        torch.manual_seed(3)
        total, parts = smart.objective(model, task, batch, smart.Settings(
            weight=0, bregman_weight=0, r_drop=5.0))
        assert_close(total, mean + 5 * D, 1e-6, name, relative=1e-5, mistakes={
            "both passes have the same masks": losses[0],
            "the second pass has no loss": losses[0] + 5 * D,
            "the losses are added": 2 * mean + 5 * D, "α is left out": mean + D,
            "the divergence is left out": mean})
        assert_close(parts["loss"], mean, 1e-6, "what is logged as loss")
        assert_close(parts["r_drop"], D, 1e-6, "what is logged as r_drop")


def test_3_5_r_drop__beside_SMART_the_teacher_sees_the_first_pass():
    model, flat = flat_model(con=True, hidden_dropout_prob=.3)
    task, batch = model.train().tasks["sts"], tiny_batch(True)[1]
    _, parts = smart.objective(model, task, batch, smart.Settings(r_drop=1.0),
                               smart.Teacher(model, flat))
    assert parts["bregman"] == 0 and parts["r_drop"] > 1e-4 and parts["smooth"] > 0


def test_3_5_momentum_beta__rises_after_a_tenth():
    assert [smart.momentum_beta(t, 25) for t in range(4)] == [.99, .99, .999, .999]


def test_3_5_terms__D6_are_part_of_each_tasks_own_gradient():
    # Were they added after the treatment, each task's row of G would not contain them.
    rows = []
    for more in ("", "--smart --smart-weight 5 --smart-eps .5 --bregman-weight 0"):
        training, _ = training_of("--option", "pcgrad", "--con", "--dropout", "0",
                                  *more.split())
        batches = {name: training.next_batch(name) for name in training.rows}
        multitask.backward(training.flat, [batches], training.loss, training.rows)
        rows.append(training.flat.G.clone())
    assert all(not torch.allclose(a, b) for a, b in zip(*rows)), (
        "a task's row of G is the same with and without R_s")


def test_3_5_1_plan__D8_paraphrase_first_is_a_phase_of_its_own():
    _, plan = training_of("--epochs", "1", "--para-first", "2", "--batch-size", "8")
    assert_equal(plan, [[("para",)] * 5] * 2 + [[("sst", "para", "sts")] * 5])
