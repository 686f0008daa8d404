"""Graded cases of 3.1: attention, layer and embedding."""

import unittest.mock

import torch
from cases import draw, gradients, leaf, mask_of, raised, single

import bert

# --- 3.1 attention ---

# A softmax may well be computed in float32, as other libraries do.

@single
def attention__weighted_means_and_their_gradients(r):
    q, k, v = (leaf(r, 2, 3, 5, 4) for _ in range(3))
    out = bert.attention(q, k, v)
    return out, gradients(out, (q, k, v), r)


@single
def attention__scores_are_divided_by_root_D(r):
    return [bert.attention(*(draw(r, 1, 2, 4, D) for _ in range(3))) for D in (1, 9, 16)]


@single
def attention__hidden_keys_get_no_weight(r):
    q, k, v = (draw(r, 4, 2, 6, 3) for _ in range(3))
    mask = mask_of(r, 4, 6)
    v[mask[:, None, :, None].expand(v.shape) == 0] *= 1e4
    return bert.attention(q, k, v, mask), bert.attention(q, k, v, mask.double())


@single
def attention__large_scores_stay_finite(r):
    q, k, v = (draw(r, 2, 1, 5, 3) for _ in range(3))
    return bert.attention(60 * q, 60 * k, v)


def attention__misshapen_mask_is_refused(r):
    q = draw(r, 2, 4, 7, 8)
    return bert.attention(q, q, q, torch.ones(2, 7)), [
        raised(bert.attention, q, q, q, torch.ones(shape))
        for shape in ((2, 6), (7, 2), (2,), (2, 7))]


def attention__dropout_falls_on_the_weights_and_rescales(r):
    p, v = float(r.choice([.25, .5, .75])), draw(r, 400, 1, 1, 4)
    factor = bert.attention(v, v, v, None, p) / v
    dropped = (factor == 0).double().mean()
    kept = factor[factor != 0]
    return (bert.attention(v[:9, 0, 0].view(3, 1, 3, 4), *v[9:27].view(2, 3, 1, 3, 4)),
            (factor - factor[..., :1]).abs().max() < 1e-6, (kept * (1 - p)).min().round(
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
    return (again[:, :3], ((got - norms).abs().amax(-1) < 1e-9).double().mean() > .9,
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
    return (one.embed(ids[:, :3]), raised(model_of(r).embed, ids),
            raised(model_of(r).embed, ids[:, :12]), raised(one.embed, ids[:, :3]),
            raised(one.embed, ids[:, :3], ids[:, :3]))


def embedding__dropout_comes_after_the_norm(r):
    model, ids = model_of(r, hidden_dropout_prob=.5), torch.arange(12)[None]
    whole, dropped = model.embed(ids), model.train().embed(ids)
    kept = dropped != 0
    return (whole, abs(kept.double().mean() - .5) < .25,
            ((dropped - 2 * whole)[kept].abs() < 1e-3 * whole[kept].abs()).all())


def embedding__all_layers_run_with_the_mask(r):
    model, seen = model_of(r), []
    number = int(r.choice([3, 4]))
    model.layers = torch.nn.ModuleList(Adding(i, seen) for i in range(number))
    x = draw(r, 2, 5, 8)
    with_mask = model.encode(x, mask_of(r, 2, 5).double())[0]
    return with_mask, model.encode(x)[0], model.encode(x, None)[0], seen


def embedding__first_token_is_pooled(r):
    model = model_of(r)
    model.layers = torch.nn.ModuleList([Adding(0, [])])
    x = draw(r, 3, 4, 8) * .1
    pooled = model.encode(x)[1]
    model.dropout.p = .9        # of the embedding alone
    training = model.train().encode(x)[1]
    model.pooler = None
    return pooled, training, model.encode(x)[1]
