"""The graded cases: what each part of the assignment computes for inputs drawn from a seed.

    python tools/grader.py SUBMISSION       (in the folder of make_assignment.py --grader)

A case is a function of random inputs r, a numpy Generator; its name is its claim. It calls
the part's functions and returns what came out: no expected value stands here, and nothing is
compared here. grader.py runs the same case on our source and compares. So a process that
runs a student's code holds no answers, and nothing in it decides on points.

A case needs no other open part: stand-ins take their place. Numbers are float64 where the
code under test allows, so that solutions that differ by rounding agree to 1e-9.
"""

import functools
import importlib
import random
import sys
import unittest.mock
import warnings

import numpy as np
import torch
import torch.nn.functional as F

bert = data = heads = multitask = optim = smart = None      # imported by load()


def load(names):
    for name in names:
        globals()[name] = importlib.import_module(name)


# --- Helpers ---

def draw(r, *shape):
    return torch.tensor(r.normal(size=shape))


def leaf(r, *shape):
    return draw(r, *shape).requires_grad_(True)


def raised(f, *args):
    """The name of the exception that f(*args) raises, or "nothing"."""
    try:
        f(*args)
    except NotImplementedError:
        raise
    except Exception as error:
        return "ValueError" if isinstance(error, ValueError) else type(error).__name__
    return "nothing"


def gradients(output, inputs, r):
    """Of a random combination of the outputs."""
    weights = torch.tensor(r.normal(size=tuple(output.shape)), dtype=output.dtype)
    return torch.autograd.grad((output * weights).sum(), inputs)


def single(case):
    """A case in float32: compared to 1e-4."""
    case.tolerance = 1e-4
    return case


def mask_of(r, B, T):
    """Each row has its own number of tokens; the first has all."""
    lengths = np.concatenate([[T], r.integers(1, T, B - 1)])
    return torch.tensor(np.arange(T) < lengths[:, None]).long()


# --- 3.1 attention ---

def attention__weighted_means_and_their_gradients(r):
    q, k, v = (leaf(r, 2, 3, 5, 4) for _ in range(3))
    out = bert.attention(q, k, v)
    return out, gradients(out, (q, k, v), r)


def attention__scores_are_divided_by_root_D(r):
    return [bert.attention(*(draw(r, 1, 2, 4, D) for _ in range(3))) for D in (1, 9, 16)]


def attention__hidden_keys_get_no_weight(r):
    q, k, v = (draw(r, 4, 2, 6, 3) for _ in range(3))
    mask = mask_of(r, 4, 6)
    v[mask[:, None, :, None].expand(v.shape) == 0] *= 1e4
    return bert.attention(q, k, v, mask), bert.attention(q, k, v, mask.double())


def attention__large_scores_stay_finite(r):
    q, k, v = (draw(r, 2, 1, 5, 3) for _ in range(3))
    return bert.attention(60 * q, 60 * k, v)


def attention__misshapen_mask_is_refused(r):
    q = draw(r, 2, 4, 7, 8)
    return [raised(bert.attention, q, q, q, torch.ones(shape))
            for shape in ((2, 6), (7, 2), (2,), (2, 7))]


def attention__dropout_falls_on_the_weights_and_rescales(r):
    p, v = float(r.choice([.25, .5, .75])), draw(r, 400, 1, 1, 4)
    factor = bert.attention(v, v, v, None, p) / v
    dropped = (factor == 0).double().mean()
    kept = factor[factor != 0]
    return ((factor - factor[..., :1]).abs().max() < 1e-6, (kept * (1 - p)).min().round(
        decimals=3), (kept * (1 - p)).max().round(decimals=3), abs(dropped - p) < .12)


# --- 3.1 layer ---

def layer_of(r, **changes):
    """A BertLayer with random parameters, in float64."""
    A = int(r.choice([2, 3]))
    config = bert.BertConfig(**{**dict(
        vocab_size=30, hidden_size=4 * A, num_hidden_layers=1, num_attention_heads=A,
        intermediate_size=10, max_position_embeddings=12), **changes})
    layer = bert.BertLayer(config).double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(draw(r, *p.shape) * .7)
    return layer, config.hidden_size


def mixing(seen):
    """A stand-in for attention() that depends on all that it gets."""
    def attention(query, key, value, attention_mask=None, dropout=0.0):
        seen.append((None if attention_mask is None else attention_mask.tolist(), dropout))
        out = value.cumsum(2) + query * key.flip(2)
        return out if attention_mask is None else out * attention_mask[:, None, :, None]
    return unittest.mock.patch.object(bert, "attention", attention)


def layer__heads_are_split_by_feature(r):
    layer, H = layer_of(r)
    return layer.split_heads(draw(r, 2, 5, H))


def layer__two_residual_sums_each_followed_by_its_norm(r):
    layer, H = layer_of(r)
    with mixing([]):
        return layer(draw(r, 2, 5, H)), layer(3 * draw(r, 1, 1, H))


def layer__gradients_reach_every_matrix(r):
    layer, H = layer_of(r)
    with mixing([]):
        out = layer(draw(r, 2, 5, H))
    return gradients(out, list(layer.parameters()), r)


def layer__mask_and_dropout_go_to_attention(r):
    layer, H = layer_of(r, attention_probs_dropout_prob=.3, hidden_dropout_prob=0.0)
    x, mask, seen = draw(r, 3, 5, H), mask_of(r, 3, 5).double(), []
    with mixing(seen):
        outputs = [layer(x, mask), layer.train()(x, mask), layer(x)]
    return outputs, seen


def layer__dropout_falls_on_what_is_added(r):
    # p = .999 leaves next to nothing of both branches: two norms of x remain.
    layer, H = layer_of(r, hidden_dropout_prob=.999)
    x = draw(r, 2, 50, H)
    with mixing([]):
        got = layer.train()(x)
        again = layer.eval()(x)
    norms = layer.output_norm(layer.attention_norm(x))
    return (((got - norms).abs().amax(-1) < 1e-9).double().mean() > .9,
            ((again - norms).abs().amax(-1) < 1e-9).double().mean() > .9)


# --- 3.1 embedding ---

def model_of(r, layers=2, **changes):
    config = bert.BertConfig(**{**dict(
        vocab_size=30, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=10, max_position_embeddings=12), **changes})
    model = bert.BertModel(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(draw(r, *p.shape))
    return model


class Adding(torch.nn.Module):
    """A stand-in for a layer: adds its number, the neighbours and the mask."""

    def __init__(self, number, seen):
        super().__init__()
        self.number, self.seen = number, seen

    def forward(self, x, attention_mask=None):
        self.seen.append(None if attention_mask is None else attention_mask.tolist())
        x = 1.1 * x + self.number + x.roll(1, 1)
        return x if attention_mask is None else x + attention_mask[:, :, None]


def embedding__word_position_and_segment_then_norm(r):
    model, ids = model_of(r), torch.tensor(r.integers(0, 30, (3, 7)))
    out = model.embed(ids, torch.tensor(r.integers(0, 2, (3, 7))))
    tables = [model.word_embeddings.weight, model.position_embeddings.weight,
              model.token_type_embeddings.weight, *model.embedding_norm.parameters()]
    return out, gradients(out, tables, r)


def embedding__no_segments_means_segment_0(r):
    model, ids = model_of(r), torch.tensor(r.integers(0, 30, (2, 12)))
    return model.embed(ids), model.embed(ids[:, :1])


def embedding__what_does_not_fit_the_tables_is_refused(r):
    ids = torch.zeros(1, 13, dtype=torch.long)
    one = model_of(r, type_vocab_size=1)
    return (raised(model_of(r).embed, ids), raised(model_of(r).embed, ids[:, :12]),
            raised(one.embed, ids[:, :3], ids[:, :3]), raised(one.embed, ids[:, :3]))


def embedding__dropout_comes_after_the_norm(r):
    model, ids = model_of(r, hidden_dropout_prob=.5), torch.arange(12)[None]
    whole, dropped = model.embed(ids), model.train().embed(ids)
    kept = dropped != 0
    return (abs(kept.double().mean() - .5) < .25,
            ((dropped - 2 * whole)[kept].abs() < 1e-3 * whole[kept].abs()).all())


def embedding__all_layers_run_with_the_mask(r):
    model, seen = model_of(r), []
    model.layers = torch.nn.ModuleList(Adding(i, seen) for i in range(int(r.choice([3, 4]))))
    x = draw(r, 2, 5, 8)
    with_mask = model.encode(x, mask_of(r, 2, 5).double())[0]
    return with_mask, model.encode(x)[0], model.encode(x, None)[0], seen


def embedding__first_token_is_pooled(r):
    model = model_of(r)
    model.layers = torch.nn.ModuleList([Adding(0, [])])
    x = draw(r, 3, 4, 8) * .1
    pooled = model.encode(x)[1]
    model.pooler = None
    return pooled, model.encode(x)[1]


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
    return path


def AdamW__moments_and_step_size(r):
    return [steps(r, 6, lr=r.uniform(.05, .2), betas=(r.uniform(.6, .9), r.uniform(.9, .99)),
                  eps=r.uniform(.01, .1)) for _ in range(2)]


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
    optimizer = optim.AdamW([{"params": [a, b], "weight_decay": .5},
                             {"params": [c], "lr": .3, "betas": (.5, .8), "eps": .1}], lr=.1)
    for _ in range(3):
        for p in (a, b, c):
            p.grad = draw(r, 3)
        optimizer.step()
    return a, b, c


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


# --- 3.1 heads and losses ---

def heads__cross_entropy(r):
    logits = leaf(r, 6, 5)
    loss = heads.cross_entropy(logits, torch.tensor(r.integers(0, 5, 6)).double())
    rounded = heads.cross_entropy(3 * logits, torch.tensor(
        r.integers(0, 4, 6) + r.choice([.1, .4, .6, .9], 6)))
    return loss, rounded, heads.cross_entropy(500 * logits, torch.zeros(6).double()), (
        gradients(loss, logits, r))


def heads__binary_cross_entropy(r):
    logits, labels = leaf(r, 6), torch.tensor(r.integers(0, 2, 6)).double()
    loss = heads.binary_cross_entropy(logits, labels)
    far = torch.tensor(r.uniform(200, 900, 2) * [1, -1])
    return (loss, gradients(loss, logits, r),
            heads.binary_cross_entropy(far, torch.tensor([0.0, 1]).double()))


def heads__squared_error(r):
    a = leaf(r, 6)
    loss = heads.squared_error(a, draw(r, 6))
    return loss, gradients(loss, a, r)


def head_of(r, sizes, dropout=0.0):
    head = heads.Head(sizes, dropout).eval()
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(draw(r, *p.shape))
    return head


@single
def heads__relu_between_and_one_output_is_squeezed(r):
    return [head_of(r, sizes)(draw(r, 4, 6).float())
            for sizes in ([6, 5], [6, 1], [6, 4, 3], [6, 5, 4, 1])]


@single
def heads__float32_under_autocast(r):
    head, x = head_of(r, [6, 5, 3]), draw(r, 4, 6).float()
    with torch.autocast("cpu", torch.bfloat16):
        return head(x), head(x).dtype == torch.float32


def heads__dropout_comes_before_every_linear_layer(r):
    found = []
    for sizes in ([1, 1], [1, 1, 1]):
        head = heads.Head(sizes, 0.5).train()
        for p in head.parameters():
            torch.nn.init.ones_(p)
        found.append(sorted({round(x, 3) for x in head(torch.ones(400, 1)).tolist()}))
    return found


def stand_in(con, pool):
    """A MultitaskBert whose encoder mixes tokens and whose heads return what they get."""
    config = bert.BertConfig(vocab_size=30, hidden_size=3, num_hidden_layers=1,
                             num_attention_heads=1, intermediate_size=4,
                             max_position_embeddings=12)
    model = heads.MultitaskBert(bert.BertModel(config), con=con, pool=pool).eval()
    model.bert.encode = lambda x, attention_mask=None: (
        x + 1 if attention_mask is None else x + attention_mask[:, :, None] + 2, x[:, 0] * 3)
    model.heads = torch.nn.ModuleDict({
        name: Scaling(i + 2) for i, name in enumerate(model.tasks)})
    return model


class Scaling(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, h):
        return h * self.factor


def logits_of(r, pool):
    out = []
    for con in (False, True):
        model = stand_in(con, pool)
        for task in model.tasks.values():
            x = draw(r, 6, 4, 3)
            for mask in (None, mask_of(r, 6, 4)):
                out.append(model.logits(task, x, data.Batch(None, None, mask, None)))
    return out


@single
def heads__first_sentences_beside_second_ones(r):
    return logits_of(r, "cls")


@single
def heads__mean_over_real_tokens(r):
    return logits_of(r, "mean")


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

    def loss_fn(task, batch):
        c, head = own[task]
        loss = ((w * c + head ** 2) * batch).sum()
        return loss, {"loss": loss.detach(), "smooth": batch.mean()}
    return flat, loss_fn


def batches(r, *tasks):
    return {task: draw(r, 2, 3) for task in tasks}


def algorithms__backward_gives_each_task_its_row(r):
    flat, loss_fn = toy(r)
    flat.G.fill_(7)
    logs = multitask.backward(flat, [batches(r, "sst", "sts")], loss_fn,
                              {"sst": 2, "sts": 0})
    return flat.G, sorted(logs.items())


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
    return [multitask.pcgrad(*problem(r, K, 3)) for K in (3, 4, 5) for _ in range(10)]


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
            multitask.pcgrad(grams.reshape(2, 3, 3, 3), orders))


def pcgrad__orders_are_drawn_from_rng(r):
    return drawn(r, lambda: multitask.pcgrad)


def pcgrad__gram_must_be_square(r):
    return [raised(multitask.pcgrad, np.zeros(shape)) for shape in ((2, 3), (3,))]


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
    return [vaccine(r, K)(*problem(r, K, 4)) for K in (3, 4) for _ in range(10)]


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
        out += [np.isfinite(C).all(), np.abs(C @ g).max() < 1e-6, gv.target]
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


# --- 3.4 CON encoding ---

def con__truncate_pair(r):
    return [list(data.truncate_pair(*(int(n) for n in r.integers(0, 14, 2)),
                                    int(r.integers(0, 24)))) for _ in range(150)]


def joined(r, low, high):
    a, b = (r.integers(10, 999, r.integers(1, 8)).tolist() for _ in range(2))
    cls, sep = (int(n) for n in r.permutation(10)[:2])
    row, segments = data.join_pair(a, b, cls, sep, int(r.integers(low, high)))
    return list(row), list(segments)


def con__join_pair_with_separators_and_segments(r):
    return [joined(r, 20, 30) for _ in range(10)]


def con__join_pair_cuts_words_only(r):
    return [joined(r, 5, 15) for _ in range(40)]


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
    return [raised(f, torch.zeros(3), torch.zeros(3, 1)) for f, _ in divergences()]


def ascent(r, eps, n_steps, mask=None, noise=None, scale=1.0, size=(3, 4, 5)):
    """smoothness() of a linear f.   -> (f(x), R, the points x̃ that f saw, gradients)"""
    w, x = leaf(r, *size[1:]), leaf(r, *size)
    seen = []

    def f(y):
        seen.append((y.detach() - x.detach()) / eps)
        return scale * torch.tanh(y * w).sum((1, 2))
    if noise is None:
        noise = eps * torch.tensor(r.uniform(-.1, .1, size))
    logits, R = smart.smoothness(f, x, smart.squared_difference, eps, n_steps, mask, noise)
    return logits, R / eps ** 2, seen, gradients(R / eps ** 2, (w, x), r)


def smoothness__one_step_of_ascent(r):
    return [ascent(r, eps, 1)[:3] for eps in (.01, .5)]


def smoothness__several_steps_of_ascent(r):
    return ascent(r, r.uniform(.1, .3), 3)[:3]


def smoothness__direction_and_length_of_the_step(r):
    # f's gradient differs a lot between coordinates: most steps end inside the radius.
    w = torch.tensor(np.exp(r.uniform(-9, 0, (3, 4, 5))))
    x, seen, eps = draw(r, 3, 4, 5), [], .01

    def f(y):
        seen.append((y.detach() - x) / eps)
        return (y * w).sum((1, 2)) * torch.tensor([1.0, 1e-3, 50])
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
        seen.append(y.detach())
        return F.dropout(y, .5).sum((1, 2))
    smart.smoothness(f, x, smart.squared_difference, eps)
    after = torch.rand(3)
    first = seen[1] / eps       # the start of the ascent, before any step
    return abs(first.std() - 1) < .1, abs(first.mean()) < .1, after


def smoothness__leaves_no_gradients_behind(r):
    w = torch.nn.Parameter(draw(r, 3))
    x = leaf(r, 2, 4, 3)
    smart.smoothness(lambda y: (y * w).sum((1, 2)), x, smart.squared_difference, .1)
    return w.grad is None, x.grad is None


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
    return ([p.requires_grad for p in teacher.model.parameters()],
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


# --- 4.2 scores ---

def scores__accuracy(r):
    out = []
    for N in (1, 4, 9):
        a, b = r.integers(0, 3, (2, N))
        out += [heads.accuracy(a, b), heads.accuracy(a.tolist(), b.tolist())]
    return out


def scores__pearson(r):
    return [heads.pearson(scale * r.normal(size=N) + shift, r.normal(size=N))
            for N in (3, 8) for scale, shift in ((1, 0), (-.2, 5))] + [
                heads.pearson(list(range(5)), r.permutation(5).tolist())]


def scores__undefined_is_zero_with_a_warning(r):
    x, out = r.normal(size=6), []
    constant, bad = np.full(6, float(r.integers(1, 9))), x.copy()
    bad[2] = r.choice([np.nan, np.inf])
    for a, b in ((constant, x), (x, constant), (bad, x)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out += [heads.pearson(a, b), len(caught) > 0]
    return out


def scores__overall(r):
    sst, para, sts = heads.tasks()
    return [heads.overall_score({task: float(r.uniform(0, 1)) for task in chosen})
            for chosen in ((sst, para, sts), (sts, sst), (para,), (sts,))]


# --- A part's process ---

MODULES = {"attention": ["bert"], "layer": ["bert"], "embedding": ["bert"],
           "AdamW": ["optim"], "heads": ["bert", "data", "heads"],
           "algorithms": ["optim", "multitask"], "pcgrad": ["multitask"],
           "gradvac": ["multitask"], "con": ["data"], "smoothness": ["smart"],
           "teacher": ["optim", "smart"], "scores": ["heads"]}


def cases_of(group):
    """[name, …] of a group such as "pcgrad", in the order of this file."""
    return [name for name, f in globals().items() if name.startswith(f"{group}__")
            and callable(f)]


def plain(value):
    """Tensors, arrays and tuples as lists; numbers and words as they are."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if torch.is_tensor(value):
        value = value.detach().tolist()
    return value.tolist() if hasattr(value, "tolist") else value


def forbid(names):
    """Let torch's own forms of what is to be written raise an error that says so."""
    def refuse(name, *args, **kwargs):
        raise RuntimeError(f"{name} is what you are to write; build it from simpler parts")
    for name in names:
        *path, last = name.split(".")
        owner = sys.modules.get(".".join(path))     # torch.optim hides its modules' names
        if owner is None:
            owner = functools.reduce(getattr, path[1:], torch)
        if hasattr(owner, last):
            setattr(owner, last, functools.partial(refuse, name))


def service(group, seed, forbidden=()):
    """For isolated.Child: case's name -> {"value"} or {"error", "place"}."""
    torch.set_num_threads(1)
    forbid(forbidden)
    problem = None
    try:
        load(MODULES[group])
    except BaseException as error:
        problem = describe(error)

    def answer(name):
        if problem:
            return problem
        random.seed(seed)
        torch.manual_seed(seed)
        case = globals()[name]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = case(np.random.default_rng([seed, *name.encode()]))
            return {"value": plain(value), "tolerance": getattr(case, "tolerance", 1e-7)}
        except BaseException as error:
            return describe(error)
    return answer


def describe(error):
    """What was raised, and the last line of the submission that led to it."""
    import os
    import traceback
    here = os.getcwd()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if os.path.dirname(os.path.abspath(frame.filename)) == here
              and os.path.basename(frame.filename) != "cases.py"]
    file, line = (frames[-1].filename, frames[-1].lineno) if frames else ("", 0)
    message = str(error)
    if isinstance(error, SyntaxError) and error.filename:
        file, line, message = error.filename, error.lineno, error.msg
    return {"error": type(error).__name__, "message": message[:500],
            "place": f"{os.path.basename(file)}, line {line}" if file else ""}
