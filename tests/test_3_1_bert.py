"""3.1 The encoder: attention, the layer, embeddings and pooling."""

import math
import unittest.mock

import torch
import torch.nn.functional as F

import bert
from tests import oracles
from tests.checks import assert_close, assert_equal, assert_raises, skip_in_a_copy
from tests.world import SMALL, small_bert


def test_3_1_attention__two_tokens_by_hand():
    # q = k = (0, ln 2), v = (0, 1), D = 1. Token 1 scores 0, 0: the mean, 0.5. Token 2
    # scores 0 and (ln 2)² = .480453: e^.480453 / (1 + e^.480453) = .617855.
    q = torch.tensor([0.0, math.log(2)]).view(1, 1, 2, 1)
    v = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    assert_close(bert.attention(q, q, v).flatten(), [0.5, 0.617855], 1e-6, mistakes={
        "softmax runs over the queries, not the keys, or the weights are transposed":
            [.382145, .617855],
        "softmax runs over the heads, not the keys": [1, 1],
        "there is no softmax": [0, .480453]})


def test_3_1_attention__scores_are_divided_by_root_D():
    # D = 4, q = k = (2, 2, 2, 2) for token 2 and 0 for token 1: 16 / √4 = 8.
    q = torch.tensor([[0.0] * 4, [2.0] * 4]).view(1, 1, 2, 4)
    v = torch.tensor([[0.0] * 4, [1.0] * 4]).view(1, 1, 2, 4)
    got = bert.attention(q, q, v)[0, 0, 1, 0]
    assert_close(got, 1 / (1 + math.exp(-8)), 1e-7, mistakes={
        "√D is missing": 1 / (1 + math.exp(-16)),
        "the scores are divided by √T, not √D": 1 / (1 + math.exp(-16 / 2 ** .5)),
        "the scores are divided by D instead of √D": 1 / (1 + math.exp(-4))})


def test_3_1_attention__padded_key_by_hand():
    # As above, and a third token that is padding, with q = k = 5 and v = 100.
    q = torch.tensor([0.0, math.log(2), 5.0]).view(1, 1, 3, 1)
    v = torch.tensor([0.0, 1.0, 100.0]).view(1, 1, 3, 1)
    got = bert.attention(q, q, v, torch.tensor([[1, 1, 0]]))[0, 0, :2, 0]
    assert_close(got, [0.5, 0.617855], 1e-4, mistakes={
        "the mask has no effect: unused, or added to the queries (rows) instead of the "
        "keys (last dimension)": [33.666667, 92.487353],
        "the mask was multiplied in after the softmax": [.333333, .046706],
        "the mask was added after the softmax": [-999966.333, -999907.512],
        "the mask itself, 0 or 1, was added": [15.958559, 81.926139],
        "the scores were multiplied by the mask; a score of 0 is not hidden":
            [33.666667, 28.095725],
        "the mask has the wrong sign: padding is seen, tokens are hidden": [100, 100]})


def test_3_1_attention__hidden_keys_get_no_weight():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    got = bert.attention(q, k, v, mask)
    short = bert.attention(q[1:, :, :3], k[1:, :, :3], v[1:, :, :3])[0]
    assert_close(got[1, :, :3], short, 1e-6,
                 "is the mask added to the keys (last dimension), before the softmax, "
                 "with the right sign?")
    assert_close(got[0], bert.attention(q[:1], k[:1], v[:1])[0], 1e-6,
                 "the mask leaks into other rows")


def test_3_1_attention__equals_that_of_torch():
    # Whole numbers over 4, so that they are the same on every machine.
    q, k, v = (torch.arange(3 * 2 * 4 * 7 * 8) * 7 % 11 - 5).view(3, 2, 4, 7, 8) / 4
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    assert_close(bert.attention(q, k, v, mask), oracles.torchs_attention(q, k, v, mask),
                 1e-5, mistakes={
        "queries and keys are exchanged": oracles.torchs_attention(k, q, v, mask)})


def test_3_1_attention__misshapen_mask_is_refused():
    q = torch.zeros(2, 4, 7, 8)
    with assert_raises("[2, 7]", "[2, 6]"):
        bert.attention(q, q, q, torch.ones(2, 6))


def test_3_1_attention__dropout_falls_on_the_weights():
    # With one token its weight is 1, so the output is v or 0 or, rescaled, 2 v.
    torch.manual_seed(0)
    v = torch.ones(64, 1, 1, 4)
    got = bert.attention(v, v, v, dropout=0.5)
    assert torch.equal(got.amin(-1), got.amax(-1)), (
        "dropout must fall on weights, not outputs")
    several = torch.arange(64.0).view(1, 1, 8, 8) / 64
    on_scores = not torch.equal(bert.attention(several, several, several, dropout=0.5),
                                bert.attention(several, several, several))
    assert_equal(set(got[..., 0].flatten().tolist()), {0.0, 2.0}, mistakes={
        "dropout is on the scores, before the softmax" if on_scores else
        "there is no dropout": {1.0}, "what is kept was not scaled up": {0.0, 1.0}})


class OnGPU(torch.Tensor):
    """A CPU's tensor that says it is a GPU's, so that the GPU's branch runs here."""

    is_cuda = True


def test_3_1_attention__on_a_GPU_it_is_the_same_function():
    skip_in_a_copy("one form of attention")
    q, k, v = (torch.arange(3 * 2 * 2 * 4 * 8) * 7 % 11 - 5).view(3, 2, 2, 4, 8) / 4
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    on_gpu = [x.as_subclass(OnGPU) for x in (q, k, v)]
    assert_close(bert.attention(*on_gpu, mask).as_subclass(torch.Tensor),
                 bert.attention(q, k, v, mask), 1e-5, mistakes={
        "the GPU's branch has the mask turned round": bert.attention(q, k, v, 1 - mask),
        "the GPU's branch gets no mask": bert.attention(q, k, v)})
    with unittest.mock.patch.object(F, "scaled_dot_product_attention", lambda *given: (
            torch.backends.cuda.cudnn_sdp_enabled())):
        assert not bert.attention(*on_gpu), "cuDNN compiles a kernel for each length"
    one = torch.ones(64, 1, 1, 4).as_subclass(OnGPU)
    torch.manual_seed(0)
    dropped = bert.attention(one, one, one, dropout=0.5)
    assert_equal(sorted(set(dropped.flatten().tolist())), [0.0, 2.0], mistakes={
        "the GPU's branch has no dropout": [1.0]})


def test_3_1_attention__large_scores_stay_finite():
    # A score of 400 stands against 0: e^400 overflows, e^(400 - 400) does not.
    q, v = torch.tensor([0.0, 20.0]).view(1, 1, 2, 1), torch.tensor([3.0, 5.0])
    got = bert.attention(q, q, v.view(1, 1, 2, 1)).flatten()
    assert torch.isfinite(got).all(), (
        "e^score overflowed; softmax subtracts the largest score first")
    assert_close(got, [4, 5], 1e-6, mistakes={
        "softmax runs over the queries, not the keys": [1.5, 6.5],
        "there is no softmax": [0, 2000],
        "the weights do not add up to 1: a sigmoid in place of the softmax": [4, 6.5]})


def test_3_1_sixteen_bit_dropout__keeps_its_share_and_rescales_it():
    # 300,001 entries (no multiple of 4) at p = .1: the share dropped has an sd of .0005.
    torch.manual_seed(0)
    for p in (.1, .5, .9):
        x = torch.ones(300001, requires_grad=True)
        y = bert.sixteen_bit_dropout(x, p)
        assert_close((y == 0).double().mean(), p, .004,
                     "a 16-bit number is -32768 to 32767")
        assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), 1e-3)
        y.sum().backward()
        assert torch.equal(x.grad, y), "what was dropped gets no gradient"
        # Neighbours share a random number, but drop independently: both with p².
        assert_close(((y[:-1] == 0) & (y[1:] == 0)).double().mean(), p * p, .004)
    assert torch.equal(bert.sixteen_bit_dropout(x, 0.0), x)


def values(query, key, value, *more, **named):
    """It replaces attention(), whose part may still be open."""
    return value


def test_3_1_BertLayer__head_a_reads_features_aD_to_aD_plus_D():
    # A = 3 heads of D = 2 features, T = 2: token t is (6t, 6t + 1, …, 6t + 5).
    layer = small_bert(hidden_size=6, num_attention_heads=3).layers[0]
    x = torch.arange(12.0).view(1, 2, 6)
    got = layer.split_heads(x)
    assert_equal(list(got.shape), [1, 3, 2, 2], "needed [B, A, T, D]", mistakes={
        "there are D heads of A features, not A heads of D": [1, 2, 2, 3],
        "A and T are not exchanged": [1, 2, 3, 2]})
    assert_close(got[0], [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]], 0,
                 mistakes={
        "x was viewed as [B, A, T, D] without a transpose, which mixes tokens":
            [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]],
        "head a reads every A-th feature, not D side by side":
            [[[0, 3], [6, 9]], [[1, 4], [7, 10]], [[2, 5], [8, 11]]]})


def test_3_1_BertLayer__heads_are_put_side_by_side_again():
    # If attention returns the values, and these are x, W_o must get x, in its old order.
    layer, seen = small_bert(hidden_size=6, num_attention_heads=3).layers[0], []
    torch.nn.init.eye_(layer.value.weight)
    layer.attention_dense.register_forward_pre_hook(
        lambda module, args: seen.append(args[0]))
    x = torch.arange(12.0).view(1, 2, 6)
    with unittest.mock.patch.object(bert, "attention", values):
        layer(x)
    assert seen, "attention_dense is never called"
    assert_close(seen[0], x, 1e-6, mistakes={
        "the heads were joined without a transpose, which mixes tokens":
            [[[0, 1, 6, 7, 2, 3], [8, 9, 4, 5, 10, 11]]],
        "query, key and value were not split into heads":
            [[[0, 6, 1, 7, 2, 8], [3, 9, 4, 10, 5, 11]]]})


def test_3_1_BertLayer__one_token_by_hand():
    # A single token attends to itself, so attention returns its value, here x = (1, 2, 3,
    # 6); W_o reverses it. x + (6, 3, 2, 1) = (7, 5, 5, 7), and the first norm, of gain 2,
    # gives (2, -2, -2, 2). W_1 halves: GELU(±1) = .841345, -.158655. W_2 is diagonal,
    # (3, 0, -4, 0): the sum is (4.524034, -2, -1.365379, 2), which the last norm
    # standardises.
    layer = small_bert(hidden_size=4, num_attention_heads=1,
                       intermediate_size=4).layers[0]
    with torch.no_grad():
        for part, matrix in ((layer.value, torch.eye(4)),
                             (layer.attention_dense, torch.eye(4).flip(0)),
                             (layer.intermediate, torch.eye(4) / 2),
                             (layer.output, torch.diag(torch.tensor([3.0, 0, -4, 0])))):
            part.weight.copy_(matrix)
        layer.attention_norm.weight.fill_(2.0)
    x = torch.tensor([[[1.0, 2, 3, 6]]])
    with unittest.mock.patch.object(bert, "attention", values):
        got = layer(x)
    assert_close(got, [[[1.415589, -1.057479, -.816913, .458803]]], 1e-5, mistakes={
        name + what: [[value]] for name, what, value in (
            ("the norms come first", " (pre-norm)",
             [5.456207, 2, 2.554706, 3.86191]),
            ("the last norm", " comes before the second network, not after the sum",
             [3.037194, -2, -1.382925, 2]),
            ("x is not added", " to attention's output",
             [1.693628, -.339682, -.453752, -.900194]),
            ("x is not added", " to the second network's output",
             [1.676833, -.763467, -.149899, -.763467]),
            ("the layer's input", " is added to the second network's output",
             [-.185715, -1.251247, -.108398, 1.545361]),
            ("x is not added", " in either place", [1.71584, -.683395, -.34905, -.683395]),
            ("ReLU", " takes the place of GELU",
             [1.441921, -.933008, -.933008, .424094]),
            ("there is nothing between W_1 and W_2", "",
             [1.306549, -1.507557, .100504, .100504]),
            ("GELU is its tanh form", "", [1.415555, -1.057608, -.816784, .458838]),
            ("the first norm is missing", "", [1.425977, -.143119, -1.390844, .107986]),
            ("the last norm is missing", "", [4.524034, -2, -1.365379, 2]),
            ("the last norm", " takes the place of the first too",
             [1.370669, -1.193337, -.6724, .495068]),
            ("the first norm", " takes the place of the last too",
             [2.831178, -2.114958, -1.633826, .917606]),
            ("the two norms are swapped", "", [2.741338, -2.386673, -1.344801, .990136]),
            ("the first norm is not on the sum", " but before attention, or on its output",
             [1.561941, -.409371, -1.179836, .027266]),
            ("the last norm is on the second network's output", ", not on the sum",
             [3.676833, -2.763467, -2.149899, 1.236533]),
            ("attention_dense", " was left out",
             [-1.165913, -.448698, .053703, 1.560908]))})


def test_3_1_BertLayer__dropout_before_both_sums_and_the_mask_go_in():
    # p = 0.99 leaves next to nothing of both branches: the result is LN(x).
    layer = small_bert(hidden_dropout_prob=0.99).layers[0].train()
    x, seen = torch.tensor([1.0, -1] * 8).expand(1, 200, 16), []

    def attention(query, key, value, attention_mask=None, dropout=0.0):
        seen.append((attention_mask, dropout))
        return value
    with unittest.mock.patch.object(bert, "attention", attention):
        got = layer(x, torch.ones(1, 200))
        layer.eval()(x)
    assert len(seen) == 2, "a layer calls attention() once"
    untouched = ((got - x).abs() < 1e-5).all(-1).float().mean()
    assert untouched > .6, ("got many changed tokens; dropout falls on what is added to x, "
                            "before both sums")
    assert seen[0][0] is not None, "the attention_mask is not passed on to attention()"
    assert_equal([dropout for _, dropout in seen], [0.1, 0.0],
                 "attention's dropout is on in training and off in eval mode")


def test_3_1_BertLayer__dropout_falls_on_outputs_not_on_what_a_matrix_reads():
    # A bias goes through unless the dropout comes after it: p = .99 then leaves x alone.
    for part, what in (("attention_dense", "what W_o reads"),
                       ("output", "the inner features")):
        layer = small_bert(hidden_dropout_prob=0.99).layers[0].train()
        x = torch.tensor([1.0, -1] * 8).expand(1, 200, 16)
        with torch.no_grad():
            getattr(layer, part).bias.copy_(torch.linspace(-1, 1, 16))
        read = []
        getattr(layer, part).register_forward_pre_hook(
            lambda module, args, read=read: read.append(args[0]))
        with unittest.mock.patch.object(bert, "attention", values):
            got = layer(x)
        untouched = ((got - x).abs() < 1e-5).all(-1).float().mean()
        assert untouched > .6 or not (read and (read[0] == 0).float().mean() > .5), (
            f"got many changed tokens; dropout falls on {what}, not on the output of "
            f"{part}")
        assert untouched > .6, (
            "got many changed tokens; both sub-layers are LN(x + Dropout(…)): dropout "
            "falls on the outputs of attention_dense and output, and x is added after it")


def test_3_1_BertLayer__equals_the_post_norm_layer_of_torch():
    layer = small_bert().layers[0]
    H = SMALL["hidden_size"]
    other = torch.nn.TransformerEncoderLayer(H, 4, 32, activation=F.gelu, batch_first=True,
                                             layer_norm_eps=1e-12).eval()
    with torch.no_grad():
        other.self_attn.in_proj_bias.zero_()
        for mine, theirs in ((layer.attention_dense, other.self_attn.out_proj),
                             (layer.attention_norm, other.norm1),
                             (layer.output_norm, other.norm2),
                             (layer.intermediate, other.linear1),
                             (layer.output, other.linear2)):
            theirs.load_state_dict(mine.state_dict())
    x = torch.randn(2, 5, H)

    def torchs(*matrices):
        with torch.no_grad():
            other.self_attn.in_proj_weight.copy_(torch.cat([m.weight for m in matrices]))
        return other(x)
    assert_close(layer(x), torchs(layer.query, layer.key, layer.value), 1e-5,
                 "query, key and value each by its own matrix, in that order? "
                 "LN(x + Dropout(...))?", mistakes={
        "queries and keys are exchanged": torchs(layer.key, layer.query, layer.value),
        "queries and values are exchanged": torchs(layer.value, layer.key, layer.query),
        "keys and values are exchanged": torchs(layer.query, layer.value, layer.key)})


def test_3_1_BertLayer__gelu_is_the_exact_one():
    # x Φ(x) at -1, 1, 3 is -.158655, .841345, 2.995950; the tanh form gives -.158808 at -1.
    layer, seen = small_bert(hidden_size=4, num_attention_heads=1).layers[0], []
    layer.output.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        layer.intermediate.weight.zero_()
        layer.intermediate.bias[:3] = torch.tensor([-1.0, 1.0, 3.0])
    layer(torch.randn(1, 1, 4))
    assert_close(seen[0][0, 0, :3], [-.158655, .841345, 2.995950], 2e-6,
                 "GELU(intermediate(x)) goes into `output`", mistakes={
        "GELU is its tanh form": [-.158808, .841192, 2.996363],
        "ReLU takes the place of GELU": [0, 1, 3],
        "GELU does not come after W_1 (intermediate)": [-1, 1, 3]})


class AddsTheMask(torch.nn.Module):
    """It replaces BertLayer, so that encode() can be checked without it."""

    def forward(self, x, attention_mask=None):
        assert attention_mask is not None, "encode() gave no attention_mask to a layer"
        return x + attention_mask[:, :, None]


def test_3_1_BertModel__layer_norm_eps_is_1e_12():
    # (1, -1, 2, -2)/1000 has variance 2.5e-6: torch's default eps of 1e-5 would give .2828.
    model = small_bert(hidden_size=4, num_attention_heads=1)
    x = torch.tensor([1e-3, -1e-3, 2e-3, -2e-3])
    for norm in (model.embedding_norm, model.layers[0].attention_norm,
                 model.layers[1].output_norm):
        assert_close(norm(x), [.632456, -.632456, 1.264911, -1.264911], 1e-5,
                     "layer_norm_eps not used?")


def test_3_1_BertModel__layer_norm_eps_is_that_of_config():
    # (3, -3, 3, -3) has variance 9; an eps of 1 makes of it 3 / √10.
    model, x = small_bert(layer_norm_eps=1.0), torch.tensor([3.0, -3] * 8)
    for norm in (model.embedding_norm, model.layers[0].attention_norm,
                 model.layers[1].output_norm):
        assert_close(norm(x), x / 10 ** .5, 1e-5, mistakes={
            "config's layer_norm_eps is not used": x / 3})


def test_3_1_BertModel__starts_with_small_matrices_and_no_biases():
    model = small_bert(std=.02, hidden_size=64, intermediate_size=256)
    for name, p in model.named_parameters():
        want = (0.0 if name.endswith("bias") else 1.0 if p.dim() == 1 else .02)
        got = p.std() if want == .02 else p.abs().max()
        assert_close(got, want, .004 if want == .02 else 0,
                     f"{name}: matrices start as N(0, .02²), biases as 0, gains as 1")


def test_3_1_BertModel__embedding_adds_word_position_and_segment():
    # Word (1,0,0,0) + position (0,-1,0,-2) + segment (0,0,2,0) = (1,-1,2,-2), of variance
    # 2.5: divided by 1.5811. The second token: (0,0,2,0) + (3,0,0,1) + (0,4,0,0).
    model = small_bert(hidden_size=4, num_attention_heads=1)
    with torch.no_grad():
        for table, rows in (
                (model.word_embeddings, {5: [1.0, 0, 0, 0], 6: [0.0, 0, 2, 0]}),
                (model.position_embeddings, {0: [0.0, -1, 0, -2], 1: [3.0, 0, 0, 1],
                                             2: [0.0, 0, 5, 0]}),
                (model.token_type_embeddings, {0: [0.0, 0, 2, 0], 1: [0.0, 4, 0, 0]})):
            for i, row in rows.items():
                table.weight[i] = torch.tensor(row)
    assert_close(model.embed(torch.tensor([[5, 6]]), torch.tensor([[0, 1]]))[0],
                 [[.632456, -.632456, 1.264911, -1.264911],
                  [.447214, 1.341641, -.447214, -1.341641]], 1e-5,
                 "LN(word + position + segment), at positions 0, 1, 2, …", mistakes={
        "positions are missing": [[.301511, -.904534, 1.507557, -.904534],
                                  [-.904534, 1.507557, .301511, -.904534]],
        "segments (token_type_ids) are missing": [
            [1.341641, -.447214, .447214, -1.341641],
            [1.341641, -1.341641, .447214, -.447214]],
        "all tokens are in segment 0": [[.632456, -.632456, 1.264911, -1.264911],
                                        [.632456, -1.264911, 1.264911, -.632456]],
        "the layer norm is missing": [[1, -1, 2, -2], [3, 4, 2, 1]],
        "positions count from 1": [[1.521278, -1.183216, .169031, -.507093],
                                   [-.933008, .424094, 1.441921, -.933008]],
        "every token has position 0": [[.632456, -.632456, 1.264911, -1.264911],
                                       [-.390567, 1.1717, .650945, -1.432078]],
        "each table was normalised separately": [
            [2.059235, -1.456212, 2.059235, -2.662257],
            [.478293, .338204, .338204, -1.154701]]})


def test_3_1_BertModel__no_segments_means_segment_0():
    model, ids = small_bert(), torch.tensor([[5, 6, 7]])
    assert_close(model.embed(ids), model.embed(ids, torch.zeros_like(ids)), 0, mistakes={
        "no segments are taken for segment 1": model.embed(ids, torch.ones_like(ids)),
        "no segments are added where none are given": model.embedding_norm(
            model.word_embeddings(ids) + model.position_embeddings.weight[:3])})


def test_3_1_BertModel__embedding_is_dropped_out_after_the_norm():
    # With p = .5 half of the numbers are 0, the others doubled.
    model, ids = small_bert(hidden_dropout_prob=.5), torch.tensor([[5, 6, 7]])
    whole, dropped = model.embed(ids), model.train().embed(ids)
    kept = dropped != 0
    assert 0 < kept.float().mean() < 1, (
        "no number is 0: is there dropout in training, and after the layer norm?")
    assert_close(dropped[kept], 2 * whole[kept], 1e-5)


def test_3_1_BertModel__encode_runs_all_layers_and_pools_the_first_token():
    # Two layers that add the mask (1, 1, 0) to (0, 1, 5). The pooler takes a quarter.
    model = small_bert(hidden_size=4, num_attention_heads=1)
    model.layers = torch.nn.ModuleList([AddsTheMask(), AddsTheMask()])
    torch.nn.init.eye_(model.pooler.weight).data.mul_(.25)
    x = torch.tensor([0.0, 1, 5])[None, :, None].expand(1, 3, 4)
    hidden_states, pooled = model.encode(x, torch.tensor([[1.0, 1, 0]]))
    assert_close(hidden_states[0, :, 0], [2, 3, 5], 1e-6, mistakes={
        "only one layer ran": [1, 2, 5], "no layer ran": [0, 1, 5]})
    assert_equal(list(pooled.shape), [1, 4], "one token of each row is pooled")
    assert_close(pooled[0, 0], math.tanh(.5), 1e-6, mistakes={
        "the pooler's matrix is missing": math.tanh(2),
        "tanh is missing": .5, "the mean over all tokens was pooled": math.tanh(10 / 12),
        "the last token was pooled": math.tanh(1.25),
        "the embedding was pooled, not the last hidden state": 0.0})
    model.dropout.p = .9        # of the embedding; there is none behind the layers
    assert_close(model.train().encode(x, torch.tensor([[1.0, 1, 0]]))[1], pooled, 0,
                 "dropout falls on the pooled vector; each head has its own dropout")


def test_3_1_BertModel__padding_changes_nothing():
    model = small_bert()
    alone = model(torch.tensor([[2, 9, 8, 3]]), torch.ones(1, 4))
    padded = model(torch.tensor([[2, 9, 8, 3, 0, 0], [2, 7, 7, 7, 7, 3]]),
                   torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]))
    assert_close(padded["last_hidden_state"][:1, :4], alone["last_hidden_state"], 1e-6,
                 "does encode() give the attention_mask to every layer?")
    assert_close(padded["pooler_output"][:1], alone["pooler_output"], 1e-6)


def test_3_1_BertModel__too_long_a_text_is_refused():
    model, ids = small_bert(), torch.zeros(1, 41, dtype=torch.long)
    assert_equal(list(model.embed(ids[:, :40]).shape), [1, 40, 16],
                 "a text of exactly max_position_embeddings tokens fits")
    with assert_raises("40", "41"):
        model.embed(ids)


def test_3_1_BertModel__segments_without_a_table_for_them_are_refused():
    model, ids = small_bert(type_vocab_size=1), torch.zeros(1, 3, dtype=torch.long)
    assert_equal(list(model.embed(ids).shape), [1, 3, 16])
    with assert_raises("type_vocab_size"):
        model.embed(ids, torch.tensor([[0, 1, 1]]))


def test_3_1_BertModel__every_parameter_gets_a_gradient():
    model = small_bert().train()
    out = model(torch.tensor([[2, 9, 8, 3]]), torch.ones(1, 4),
                torch.tensor([[0, 0, 1, 1]]))
    (out["last_hidden_state"].square().sum() + out["pooler_output"].sum()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0 or "key.bias" in name, (
            f"{name} gets no gradient: is it used, and is nothing detached?")


def test_3_1_BertModel__dropout_is_off_in_eval_and_on_in_train():
    model, ids = small_bert(), torch.tensor([[2, 9, 8, 3]])
    assert torch.equal(model(ids)["pooler_output"], model(ids)["pooler_output"]), (
        "two passes in eval mode differ: dropout is not off")
    model.train()
    assert not torch.equal(model(ids)["pooler_output"], model(ids)["pooler_output"]), (
        "two passes in training mode are the same: there is no dropout")


def test_3_1_BertModel__it_learns_to_tell_two_orders_apart():
    import optim  # here, since nothing else in this file needs it
    torch.manual_seed(0)
    model, head = small_bert(std=0.1).train(), torch.nn.Linear(16, 1)
    ids = torch.tensor([[2, 10, 11, 3], [2, 11, 10, 3]])
    optimizer = optim.AdamW([*model.parameters(), *head.parameters()], lr=0.01)
    for _ in range(30):
        loss = F.binary_cross_entropy_with_logits(head(model(ids)["pooler_output"])[:, 0],
                                                  torch.tensor([0.0, 1.0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3, f"got a loss of {loss:.3f} after 30 steps (it starts at .69)"
