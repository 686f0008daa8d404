"""Graded cases of 3.1 and 4.2: heads, losses and scores."""

import dataclasses
import warnings

import numpy as np
import torch
from cases import draw, gradients, leaf, mask_of, single

import bert
import data
import heads

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
    return [head_of(r, sizes)(draw(r, B, 6).float()) for B in (4, 1)
            for sizes in ([6, 5], [6, 1], [6, 4, 3], [6, 5, 4, 1])]


@single
def heads__float32_under_autocast(r):
    head, x = head_of(r, [6, 5, 3]), draw(r, 4, 6).float()
    with torch.autocast("cpu", torch.bfloat16):
        return [(logits, logits.dtype == torch.float32)
                for logits in (head(x), head(x.bfloat16()))]


def heads__dropout_comes_before_every_linear_layer(r):
    found = [head_of(r, [6, 3], .5)(draw(r, 2, 6).float()).double().round(decimals=3)]
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

    def encode(x, attention_mask=None):
        mask = 0 if attention_mask is None else attention_mask[:, :, None] + 1
        return x + 1 + mask, x[:, 0] * 3
    model.bert.encode = encode
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
                ids = torch.zeros(6, 4, dtype=torch.long)
                out.append(model.logits(task, x, data.Batch(ids, None, mask, None)))
    return out


@single
def heads__first_sentences_beside_second_ones(r):
    return logits_of(r, "cls")


@single
def heads__mean_over_real_tokens(r):
    return logits_of(r, "mean")


# --- 4.2 scores ---

def scores__accuracy(r):
    out = []
    for N in (1, 4, 9):
        a, b = r.integers(0, 3, (2, N))
        out.append(heads.accuracy(a, b))
    return out


def scores__pearson(r):
    return [heads.pearson(scale * r.normal(size=N) + shift, r.normal(size=N))
            for N in (3, 8) for scale, shift in ((1, 0), (-.2, 5))] + [
                heads.pearson(np.arange(5), r.permutation(5))]


def scores__undefined_is_zero_with_a_warning(r):
    x, out = r.normal(size=6), [heads.pearson(*r.normal(size=(2, 6)))]
    constant, bad = np.full(6, float(r.integers(1, 9))), x.copy()
    bad[2] = r.choice([np.nan, np.inf])
    rounded = [(np.full(int(r.integers(3, 30)), r.uniform()),) * 2 for _ in range(9)]
    for a, b in ((constant, x), (x, constant), (bad, x), *rounded):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out += [heads.pearson(a, b), len(caught) > 0]
    return out


def scores__overall(r):
    sst, para, sts = heads.tasks()[:3]
    other = dataclasses.replace(sts, name="other")
    return [heads.overall_score({task: float(r.uniform(0, 1)) for task in chosen})
            for chosen in ((sst, para, sts), (sts, sst), (para,), (sts,), (sst, other))]
