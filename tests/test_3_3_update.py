"""3.3 One update: θ as a vector, the tasks' gradients, their treatment, the log."""

import math

import numpy as np
import torch
import torch.nn.functional as F

import data
import heads
import multitask
import optim
from tests.checks import assert_close, assert_equal, assert_raises
from tests.world import (
    NOTHING,
    ROWS,
    FakeTokenizer,
    flat_model,
    small_bert,
    tiny_batch,
    toy,
    toy_step,
)

# --- The parameters as one vector ---

def test_3_3_FlatParameters__every_parameter_is_a_view_of_theta():
    reference = heads.MultitaskBert(small_bert(), con=True)
    torch.manual_seed(0)
    model, flat = flat_model()
    for name, p in reference.bert.named_parameters():
        assert torch.equal(p, model.bert.get_parameter(name)), f"{name} changed its values"
    with torch.no_grad():
        flat.theta.fill_(0.5)
    assert all((p == 0.5).all() for p in model.parameters())
    flat.check_views()
    model.bert.pooler.weight.data = torch.zeros(16, 16)
    with assert_raises("pooler", error=RuntimeError):
        flat.check_views()


def test_3_3_FlatParameters__blocks_follow_each_other_and_matrices_come_first():
    model, flat = flat_model()
    assert list(flat.blocks) == ["embeddings", "layer 1", "layer 2", "pooler", "head sst",
                                 "head para", "head sts"]
    edges = [edge for block in flat.blocks.values()
             for edge in (block.span.start, block.span.stop)]
    assert edges[0] == 0 and edges[-1] == len(flat.theta) and edges[1:-1:2] == edges[2::2]
    order = [leaf.decays for leaf in flat.leaves if leaf.block == "layer 1"]
    assert_equal(order, [True, False], "matrices come first, then biases and gains")
    for leaf in flat.leaves:
        inside = [p for name, p in model.named_parameters()
                  if leaf.span.start <= flat.place[name].start < leaf.span.stop]
        assert all((p.dim() >= 2) == leaf.decays for p in inside)
        assert leaf.parameter.numel() == sum(p.numel() for p in inside)


def test_3_3_FlatParameters__one_dtype_and_one_device():
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, "meta")):
        other = torch.nn.Parameter(torch.zeros(2, dtype=dtype, device=device))
        with assert_raises("one dtype and device"):
            optim.FlatParameters([optim.Block("a", {
                "x": other, "y": torch.nn.Parameter(torch.zeros(2))})], 1)


def test_3_3_FlatParameters__every_name_is_there_once():
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for names, word in ((("a", "b"), "'bias' twice"), (("a", "a"), "'bias' twice")):
        with assert_raises("a name of its own", word):
            optim.FlatParameters([optim.Block(name, dict(layer.named_parameters()))
                                  for name, layer in zip(names, (one, two))], 2)
    with assert_raises("a name of its own", "'a' twice"):
        optim.FlatParameters([optim.Block("a", {str(i): p}) for i, p
                              in enumerate(one.parameters())], 2)


def test_3_3_FlatParameters__weight_decay_is_for_matrices_alone():
    # A zero gradient moves nothing but by decay: 1 - .1 · .5 = .95.
    table, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    flat = optim.FlatParameters([optim.Block("a", {"b": bias, "w": table})], 1)
    flat.give_gradients({"a"})
    optim.AdamW(flat.param_groups(.5), lr=.1).step()
    assert_close([table[0, 0].item(), bias[0].item()], [.95, 1], 1e-6, mistakes={
        "biases and gains decay too": [.95, .95], "matrices do not decay": [1, 1],
        "biases decay, matrices do not": [1, .95]})


def test_3_3_FlatParameters__backward_fills_the_row_and_only_that():
    model, flat = flat_model()
    batch = tiny_batch(True)[1]
    model.eval()
    flat.attach(1)
    model(model.tasks["para"], batch).sum().backward()
    parameters = list(model.parameters())
    want = torch.autograd.grad(model(model.tasks["para"], batch).sum(), parameters,
                               allow_unused=True)
    for (name, p), g in zip(model.named_parameters(), want):
        assert_close(flat.views(flat.G[1])[name],
                     torch.zeros_like(p) if g is None else g, 1e-6)
    assert not flat.G[0].any() and not flat.G[2].any()


def test_3_3_FlatParameters__gram_in_chunks_is_exact():
    _, flat = flat_model()
    flat.CHUNK = 1000
    flat.G.normal_(generator=torch.Generator().manual_seed(0))
    cut = [slice(0, 5000), slice(5000, flat.G.shape[1])]
    want = [(flat.G[:, here].double() @ flat.G[:, here].double().T).numpy() for here in cut]
    assert_close(flat.gram(cut, [0, 1, 2]), want, 0, relative=1e-5)
    # rows that do not lie side by side
    assert_close(flat.gram(cut, [0, 2]), np.array(want)[:, ::2, ::2], 0, relative=1e-5)
    rows = flat.G.clone()
    flat.combine(np.array([[1, 2, 3], [0, 1, -1]]), cut, [0, 1, 2])
    assert_close(flat.G[0, cut[0]],
                 rows[0, cut[0]] + 2 * rows[1, cut[0]] + 3 * rows[2, cut[0]], 1e-5)
    assert_close(flat.G[0, cut[1]], rows[1, cut[1]] - rows[2, cut[1]], 1e-5)


# --- One step ---

def test_3_3_update__rows_of_absent_tasks_are_not_touched():
    flat, loss_fn = toy()
    flat.G[0].fill_(float("nan"))
    multitask.backward(flat, [{"b": 1.0}], loss_fn, {"b": 1})
    assert flat.G[0].isnan().all(), "backward() empties only the rows that `rows` names"
    assert flat.G[1].any(), NOTHING
    multitask.treat(flat, multitask.regions(flat, "model"), {"b": 1}, multitask.pcgrad, 0,
                    np.random.default_rng(0))
    assert_close(flat.G[0], [-1, 1, 0, 5], 1e-6)


def test_3_3_update__heads_stay_out_of_the_surgery():
    # Shared (1,0), (-1,1) -> (½, 1½); heads 3 and 5 pass. With the heads in the vectors it
    # would be (.063, 1.037), 3.3 and 5.185.
    flat, _ = toy_step(multitask.pcgrad)
    assert_close(flat.G[0], [.5, 1.5, 3, 5], 1e-6, "heads inside the treated vectors?"
                 if abs(flat.G[0, 0] - .063) < .01 else "")


def test_3_3_update__plain_sum_is_the_gradient_of_the_summed_losses():
    flat, _ = toy_step(multitask.plain_sum)
    assert_close(flat.G[0], [0, 1, 3, 5], 1e-6)


def test_3_3_update__D2_treatment_needs_the_gradient_of_each_task():
    # Algorithm 2's summed loss gives (0, 1) for w; with surgery it must be (½, 1½).
    assert_close(toy_step(multitask.plain_sum)[0].G[0, :2], [0, 1], 1e-6)
    assert_close(toy_step(multitask.pcgrad)[0].G[0, :2], [.5, 1.5], 1e-6)


def test_3_3_update__D5_accumulated_gradients_are_averaged():
    # Batches of size 1 and 3 on task a, then their mean, 2: not the printed sum, 4.
    flat, _ = toy_step(multitask.plain_sum, [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}])
    assert_close(flat.G[0], [2 - 1, 1, 6, 5], 1e-6, mistakes={
        "accumulated gradients are summed, not averaged": [2, 2, 12, 10],
        "only the last batch counts": [2, 1, 9, 5],
        "only the last batch counts, and only in part": [1, .5, 4.5, 2.5],
        "only the first batch counts": [0, 1, 3, 5]})


def test_3_3_update__rows_are_emptied_first_and_losses_are_averaged():
    # Losses at w = h = 1: task a has 1 + 3 = 4, task b has 0 + 5.
    flat, loss_fn = toy()
    flat.theta.fill_(1.0)
    for step in ("first", "second"):
        logs = multitask.backward(flat, [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}],
                                  loss_fn, ROWS)
        assert_close(flat.G, [[2, 0, 6, 0], [-1, 1, 0, 5]], 1e-6, mistakes={
            "accumulated gradients are summed, not averaged" if step == "first" else
            "the last step's gradients are still in G": [[4, 0, 12, 0], [-2, 2, 0, 10]],
            "all tasks were added up in one row": [[1, 1, 6, 5], [0, 0, 0, 0]],
            NOTHING: [[0, 0, 0, 0]] * 2})
    assert_equal(sorted(logs), ["loss_a", "loss_b"], "`loss` of task a becomes `loss_a`")
    assert all(isinstance(value, float) for value in logs.values()), (
        "the log holds floats, not tensors: it is written to a file")
    assert_close([logs["loss_a"], logs["loss_b"]], [8, 5], 1e-5, mistakes={
        "the logged losses are summed over the micro-batches": [16, 10],
        "only the last micro-batch's loss is logged": [12, 5],
        "the logged losses were divided twice": [4, 2.5]})


def test_3_3_update__further_arguments_go_on_to_loss_fn():
    flat, loss_fn = toy()
    multitask.backward(flat, [{"a": 1.0}], lambda task, batch, scale=1.0: loss_fn(
        task, scale * batch), {"a": 0}, scale=2.0)
    assert_close(flat.G[0], [2, 0, 6, 0], 1e-6, mistakes={
        "`more` is not passed on: loss_fn(task, batch, **more)": [1, 0, 3, 0],
        NOTHING: [0, 0, 0, 0]})


def test_3_3_update__tasks_that_share_a_row_are_added_up_there():
    # Without treatment one row collects the sum of the tasks' gradients.
    flat, loss_fn = toy(rows=1)
    for number in (1, 2):       # of micro-batches, all alike
        multitask.backward(flat, [{"a": 1.0, "b": 1.0}] * number, loss_fn, {"a": 0, "b": 0})
        assert_close(flat.G[0], [0, 1, 3, 5], 1e-6, mistakes={
            "the row was emptied between two tasks": [-1, 1, 0, 5],
            "a shared row was divided once for each task": [0, .5, 1.5, 2.5],
            NOTHING: [0, 0, 0, 0]})


def test_3_3_update__treatment_comes_after_the_last_batch():
    # Task a pulls +1 and -1 on w in two micro-batches: its mean is 0, nothing conflicts.
    flat, _ = toy_step(multitask.pcgrad, [{"a": 1.0, "b": 1.0}, {"a": -1.0, "b": 1.0}])
    assert_close(flat.G[0, :2], [-1, 1], 1e-6, "surgery on each micro-batch separately?")


def test_3_3_update__norm_is_that_of_the_update_and_clipping_keeps_its_direction():
    flat, treated = toy_step(multitask.pcgrad)
    assert_close(treated.norm, math.sqrt(.25 + 2.25 + 9 + 25), 1e-5)
    clipped, _ = toy_step(multitask.pcgrad, clip=1.0)
    assert_close(clipped.G[0].norm(), 1.0, 1e-5)
    assert_close(clipped.G[0] * treated.norm, flat.G[0], 1e-4)
    loose, _ = toy_step(multitask.pcgrad, clip=100.0)
    assert_close(loose.G[0], flat.G[0], 0)


def two_rows(g_0, g_1):
    """Two task gradients on one shared vector.   -> FlatParameters"""
    w = torch.nn.Parameter(torch.zeros(len(g_0)))
    flat = optim.FlatParameters([optim.Block("shared", {"w": w})], 2)
    flat.G.copy_(torch.tensor(np.stack([g_0, g_1]), dtype=torch.float32))
    return flat


def test_3_3_update__norm_is_true_where_gradients_cancel():
    # What is left is far below the rounding of g · g in float32, so it has to be measured.
    for size, left in ((1e4, 10.0), (1e10, 1e5), (1.0, 1e-5)):
        g = np.full(1000, size / 1000 ** .5, np.float32)
        rest = np.zeros(1000, np.float32)
        rest[0] = left
        for clip in (0.0, left / 10):
            flat = two_rows(g + rest, -g)
            want = (flat.G[0].double() + flat.G[1].double()).norm().item()
            treated = multitask.treat(flat, multitask.regions(flat), ROWS,
                                      multitask.plain_sum, clip)
            assert_close(treated.norm, want, 0, relative=1e-3)
            assert_close(flat.G[0].double().norm(), clip or want, 0, relative=1e-3)


def test_3_3_update__gradients_of_every_finite_size_are_used():
    # float32 squares overflow beyond 1e19 and vanish below 1e-23.
    for size in (1e-30, 1e-20, 1.0, 1e20, 1e30):
        flat = two_rows(np.array([size, 0]), np.array([-size, size]))
        treated = multitask.treat(flat, multitask.regions(flat), ROWS,
                                  multitask.pcgrad, rng=np.random.default_rng(0))
        assert treated is not None, f"{size:g} counts as not finite"
        assert_close(flat.G[0] / size, [.5, 1.5], 1e-5)
        assert_close(treated.norm / size, 2.5 ** .5, 1e-5)
        assert flat.leaves[0].parameter.grad is not None, f"{size:g} counts as no gradient"


def test_3_3_update__gradient_that_is_not_finite_changes_nothing():
    for bad in (float("nan"), float("inf")):
        flat, loss_fn = toy()
        gv = multitask.GradVac()
        multitask.backward(flat, [{"a": bad, "b": 1.0}], loss_fn, ROWS)
        assert flat.G.any(), NOTHING
        treated = multitask.treat(flat, multitask.regions(flat), ROWS, gv, 1.0,
                                  np.random.default_rng(0))
        assert treated is None, f"a gradient that is {bad} was used for an update"
        assert gv.target is None, "the vaccine's state was touched"


def test_3_3_update__idle_head_gets_no_gradient_and_stays():
    flat, loss_fn = toy()
    multitask.backward(flat, [{"a": 1.0}], loss_fn, {"a": 0})
    multitask.treat(flat, multitask.regions(flat, "model"), {"a": 0}, multitask.pcgrad, 0,
                    np.random.default_rng(0))
    idle = [leaf.parameter.grad is None for leaf in flat.leaves]
    assert_equal(idle, [False, False, True], mistakes={NOTHING: [True] * 3})


def test_3_3_update__regions_cover_theta_once_at_every_granularity():
    _, flat = flat_model()
    numbers = {}
    for granularity in ("model", "layer", "matrix"):
        regions = multitask.regions(flat, granularity)
        cover, sizes = torch.zeros_like(flat.theta), {}
        for region in regions:
            block, size = flat.blocks[region.block], region.span.stop - region.span.start
            cover[region.span] += 1
            assert (region.unit is None) == (not block.shared)
            assert block.span.start <= region.span.start
            assert region.span.stop <= block.span.stop
            if block.shared:
                sizes[region.unit] = sizes.get(region.unit, 0) + size
        assert (cover == 1).all(), granularity
        numbers[granularity] = len(sizes)
        assert min(sizes.values()) >= 64, "a unit too small for a meaningful cosine"
    # 3 tables (token types: 32 numbers, joins the words), 6 matrices a layer, the pooler
    assert numbers == {"model": 1, "layer": 4, "matrix": 2 + 2 * 6 + 1}


def test_3_3_update__a_tensor_of_64_numbers_has_a_unit_of_its_own():
    flat = optim.FlatParameters([optim.Block("a", {
        "large": torch.nn.Parameter(torch.zeros(10, 10)),
        "exactly 64": torch.nn.Parameter(torch.zeros(8, 8)),
        "only 63": torch.nn.Parameter(torch.zeros(63))})], 2)
    assert_equal([region.unit for region in multitask.regions(flat, "matrix")], [0, 1, 0])
    with assert_raises("'model', 'layer' or 'matrix'", "'tensor'"):
        multitask.regions(flat, "tensor")


def test_3_3_update__accumulating_two_batches_of_4_is_one_of_8():
    def gradient(parts):
        model, flat = flat_model(con=True, seed=3)
        model.eval()                                    # dropout off
        tokens = tiny_batch(True)[0].tokens + tiny_batch(True, seed=1)[0].tokens
        dataset = data.Dataset("", list("abcdefgh"), tokens,
                               np.array([0, 1, 1, 1, 0, 0, 1, 0], np.float32))
        tasks = model.tasks

        def loss_fn(task, batch):
            loss = tasks[task].loss(model(tasks[task], batch), batch.labels)
            return loss, {"loss": loss.detach()}
        batches = [{t: data.collate(dataset, part, FakeTokenizer, True, 40)
                    for t in ("para", "sts")} for part in np.split(np.arange(8), parts)]
        rows = {"para": 0, "sts": 1}
        multitask.backward(flat, batches, loss_fn, rows)
        multitask.treat(flat, multitask.regions(flat, "model"), rows, multitask.pcgrad, 0,
                        np.random.default_rng(0))
        optimizer = optim.AdamW(flat.param_groups(), lr=1e-3, eps=1e-3)
        optimizer.step()
        return flat.theta
    assert_close(gradient(1), gradient(2), 1e-5)


# --- The log ---

def test_3_3_describe__surgery_by_hand():
    # g1 = (1, 0), g2 = (-1, 1): cosine -1/√2.
    # g1' = (½, ½), g2' = (0, 1): cosine ½ / √½ = 1/√2.
    log = multitask.describe(toy_step(multitask.pcgrad)[1])
    assert_close([log[name] for name in ("cos_a_b", "treated_cos_a_b", "norm_a", "norm_b",
                                         "coefficient_a", "coefficient_b", "acted",
                                         "acted_a_b")],
                 [-.5 ** .5, .5 ** .5, 1, 2 ** .5, 2, 1.5, 1, 1], 1e-6)
    assert not any("target" in name or name == "layers" for name in log)
    log = multitask.describe(toy_step(multitask.plain_sum)[1])
    assert_close([log["treated_cos_a_b"], log["acted"], log["acted_b_a"]],
                 [-.5 ** .5, 0, 0], 1e-6)


def treated_as(names, gram, C, target=None):
    return multitask.Treated(list(names), gram, gram, C, C.sum(-2), target, 1.0)


def test_3_3_describe__names_follow_the_rows_whatever_the_order_of_rows():
    flat, loss_fn = toy()
    rows, seen = {"b": 1, "a": 0}, []
    multitask.backward(flat, [{"a": 1.0, "b": 1.0}], loss_fn, rows)
    treated = multitask.treat(flat, multitask.regions(flat), rows,
                              lambda gram: seen.append(gram) or np.eye(2)[None])
    log = multitask.describe(treated)
    assert_close([log["norm_a"], log["norm_b"]], [1, 2 ** .5], 1e-6)
    assert_close(seen[0][0, 0, 0], 1, 1e-6, "‖g_a‖² comes first in gram")


def test_3_3_describe__which_pairs_acted_and_the_vaccines_targets():
    # Only a and b conflict. φᵀ goes from 0 to .01 φ; φ is -1/√2 for both, as no other
    # tilt comes before. c is orthogonal to b and at 45° to a.
    vectors = np.array([[1.0, 0, 0], [-1, 1, 0], [1, 1, 0]])
    gv, gram = multitask.GradVac(), (vectors @ vectors.T)[None]
    C = gv(gram, [[1, 2], [0, 2], [0, 1]])
    log = multitask.describe(treated_as("abc", gram, C, gv.target))
    assert {name: log[name] for name in log if name.startswith("acted_")} == {
        "acted_a_b": 1, "acted_a_c": 0, "acted_b_a": 1, "acted_b_c": 0, "acted_c_a": 0,
        "acted_c_b": 0}
    assert_close(log["acted"], 2 / 6)
    assert_close([log["target_a_b"], log["target_b_a"], log["target_c_a"]],
                 [-.01 * .5 ** .5, -.01 * .5 ** .5, .01 * .5 ** .5])
    # Row a of C says what a got: some of b, in one of two units.
    C = np.stack([np.eye(2), [[1, .5], [0, 1]]])
    log = multitask.describe(treated_as("ab", np.stack([np.eye(2)] * 2), C))
    assert_close([log["acted_a_b"], log["acted_b_a"], log["acted"]], [.5, 0, .25])


def test_3_3_describe__a_gradient_that_vanished_has_cosine_zero():
    gram = np.array([[[1.0, -2.0], [-2.0, 4.0]]])
    C = multitask.pcgrad(gram, [[1], [0]])
    log = multitask.describe(treated_as("ab", gram, C))
    assert log["cos_a_b"] == -1 and log["treated_cos_a_b"] == 0
    # Rounding leaves a squared norm of some 1e-17 here, of either sign.
    rng = np.random.default_rng(0)
    for _ in range(200):
        g = rng.normal(size=50) * rng.lognormal(0, 5)
        gram = np.array([[g @ g, -3 * (g @ g)], [-3 * (g @ g), 9 * (g @ g)]])[None]
        C = multitask.pcgrad(gram, [[1], [0]])
        assert multitask.describe(treated_as("ab", gram, C))["treated_cos_a_b"] == 0


def test_3_3_describe__cosines_by_layer_are_those_of_the_slices():
    for granularity in ("model", "matrix"):
        _, flat = flat_model(rows=2)
        flat.G.normal_(generator=torch.Generator().manual_seed(0))
        G, regions = flat.G.clone(), multitask.regions(flat, granularity)
        treated = multitask.treat(flat, regions, {"a": 0, "b": 1}, multitask.pcgrad, 1.0,
                                  np.random.default_rng(0))
        layers = multitask.describe(treated, regions)["layers"]
        assert list(layers) == ["embeddings", "layer 1", "layer 2", "pooler"]
        for block, found in layers.items():
            here = flat.blocks[block].span
            want = F.cosine_similarity(G[0, here], G[1, here], dim=0)
            assert_close(found["cos_a_b"], want, 6e-5)
