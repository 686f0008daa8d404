"""3.6 Bigger heads."""

import torch

import heads
from tests.checks import assert_close, assert_equal
from tests.world import small_bert


def test_3_6_Head__D9_hidden_layers_have_the_sizes_of_the_report():
    # "size BERT_HIDDEN_SIZE for the SST head, a 2 deep hidden layer … for both"
    # (3.6, not 4.4)
    model = heads.MultitaskBert(small_bert(), con=True, hlh=True)
    sizes = {name: [layer.out_features for layer in head.layers]
             for name, head in model.heads.items()}
    assert sizes == {"sst": [16, 5], "para": [16, 4, 1], "sts": [16, 4, 1]}
    assert (heads.MultitaskBert(small_bert(), hlh=True).heads["sts"].layers[0].in_features
            == 32)


def test_3_6_Head__relu_between_but_not_after():
    head = heads.Head([2, 3, 1], 0.0)
    with torch.no_grad():
        for layer in head.layers:
            layer.bias.zero_()
        head.layers[0].weight.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1]]))
        head.layers[1].weight.copy_(torch.tensor([[-1.0, -10, -1]]))
    # h = (2, 3): hidden (2, -2 -> 0, 3): -2 - 3 = -5
    assert_close(head(torch.tensor([[2.0, 3.0]])), [-5.0], 1e-6, mistakes={
        "ReLU is missing": [15.0], "ReLU comes after the last layer too": [0.0],
        "one output keeps its dimension: squeeze [B, 1] to [B]": [[-5.0]],
        "squeeze() takes the dimension of a batch of 1 too: squeeze(-1)": -5.0})
    assert_equal(tuple(heads.Head([2, 5], 0.0)(torch.ones(1, 2)).shape), (1, 5), mistakes={
        "squeeze() takes the dimension of a batch of 1 too": (5,)})


def test_3_6_Head__only_hidden_layers_start_as_He_did():
    # N(0, 2 / 400) for the hidden one; the last is torch's own, within ± 1 / √400.
    torch.manual_seed(0)
    hidden, last = heads.Head([400, 400, 5], 0.0).layers
    assert_close(hidden.weight.std(), .0707, .003, mistakes={
        "the hidden layers start as any nn.Linear": .0289,
        "the hidden layers start with BERT's N(0, .02²)": .02})
    assert last.weight.abs().max() <= .05, "the last layer starts as He's hidden ones do"


def test_3_6_Head__dropout_comes_before_every_linear_layer():
    # Two layers x + 1 with p = ½: h is 0 or 2, so the hidden number 1 or 3, of which
    # dropout makes 0, 2 or 6; plus 1.
    torch.manual_seed(0)
    head = heads.Head([1, 1, 1], 0.5).train()
    for layer in head.layers:
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.ones_(layer.bias)
    assert_equal(sorted(set(head(torch.ones(200, 1)).tolist())), [1, 3, 7], mistakes={
        "there is no dropout": [3],
        "dropout comes after the linear layers": [0, 2, 4, 6, 10],
        "only the last layer has dropout": [1, 5],
        "only the first layer has dropout": [2, 4]})
    assert_equal(set(head.eval()(torch.ones(200, 1)).tolist()), {3},
                 "there is no dropout outside training")
