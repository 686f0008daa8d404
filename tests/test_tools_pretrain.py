"""tools/pretrain.py."""

import math
import os
import unittest.mock

import numpy as np
import torch
import torch.nn.functional as F

import bert
import data
from plumbing import safetensors
from tests.checks import assert_close, assert_one_line
from tests.world import (
    from_scratch,
    log_of,
    run_pretrain,
    run_tool,
    run_train,
    signalled_at,
    small_bert,
    tiny_world,
    write_file,
)
from tools import pretrain


def test_tools_pretrain__80_10_10_and_never_a_special_token():
    torch.manual_seed(0)
    ids = torch.randint(10, 1000, (400, 100))
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, 0] = True
    inputs, labels = pretrain.mask_tokens(ids, special, 4, 1000)
    masked = labels != -100
    assert torch.equal(labels[masked], ids[masked]) and not masked[:, 0].any()
    assert torch.equal(inputs[~masked], ids[~masked]), "other positions must not change"
    assert_close(masked[:, 1:].float().mean(), .15, .005)
    assert_close((inputs[masked] == 4).float().mean(), .8, .02)
    assert_close((inputs[masked] == ids[masked]).float().mean(), .1, .02,
                 "a tenth stays as it is")
    again, _ = pretrain.mask_tokens(ids, special, 4, 1000)
    assert not torch.equal(again, inputs), "masks must be drawn again each time"


def test_tools_pretrain__only_masked_positions_count_and_the_output_is_tied():
    model = pretrain.MaskedLM(small_bert()).eval()
    ids = torch.tensor([[2, 9, 8, 3]])
    labels = torch.tensor([[-100, 9, -100, -100]])
    h = model.bert(ids)["last_hidden_state"][0, 1]
    h = model.norm(F.gelu(model.dense(h)))
    logits = model.bert.word_embeddings.weight @ h + model.bias
    losses = model(data.Batch(ids, None, None, None), labels)
    assert_close(losses["loss"], -logits.log_softmax(-1)[9], 1e-5)
    assert "next" not in losses


def test_tools_pretrain__at_the_start_half_of_the_heads_look_at_the_same_word():
    vocab = os.path.join(tiny_world()[1], "vocab.txt")
    args = pretrain.parser().parse_args(["--vocab", vocab])
    _, model = pretrain.build(args)
    ids = torch.tensor([[2, 9, 8, 7, 3, 7, 6, 9, 3]])
    x = model.bert.eval().embed(ids)
    layer = model.bert.layers[0]
    scores = (layer.split_heads(layer.query(x)) @ layer.split_heads(layer.key(x)).mT)[0]
    alike = (ids[0, :, None] == ids[0]).expand_as(scores[:2])          # [2, T, T]
    lowest = scores[:2].masked_fill(~alike, math.inf).amin(-1)
    assert bool((lowest > scores[:2].masked_fill(alike, -math.inf).amax(-1)).all())


def test_tools_pretrain__next_sentence_labels_say_whose_second_text_it_is():
    _, weights = tiny_world()
    args = pretrain.parser().parse_args(["--weights", weights, "--batch-size", "32",
                                         "--next-sentence", "--amp", "off"])
    tokenizer, model = pretrain.build(args)
    # Pair i has the first text [10 + i] and the second [10 + i, 10 + i].
    pairs = [([10 + i], [10 + i, 10 + i]) for i in range(40)]
    trainer = pretrain.Pretrainer(args, model.train(), tokenizer, pairs)
    with unittest.mock.patch.object(pretrain, "mask_tokens", lambda ids, *_: (ids, ids)):
        batch, _ = trainer.batch_of(trainer.sets["pair"], np.arange(32).repeat(30))
    first, second = batch.input_ids[:, 1], batch.input_ids[:, 3]
    own = batch.labels == 1
    assert torch.equal(first[own], second[own]) and bool((first != second)[~own].all())
    assert_close(own.float().mean(), .5, .06, "half of the pairs belong together")
    following = (second - first)[~own] % 40 == 1
    assert_close(following.float().mean(), .51, .08,
                 "half of the others are the next pair's")


def test_tools_pretrain__it_learns_and_leaves_weights_that_train_takes():
    status, out, errors = run_pretrain(*from_scratch(), "--lr", .01, steps=60)
    assert status == 0, errors
    losses = [next(v for k, v in line.items() if k.startswith("loss"))
              for line in log_of(out)]
    assert np.mean(losses[-10:]) < .9 * np.mean(losses[:10]), (losses[:3], losses[-3:])
    status, _, errors = run_train(weights=os.path.join(out, "model"))
    assert status == 0, errors
    weights = os.path.join(out, "model")
    status, further, errors = run_pretrain("--weights", weights, "--half")
    assert status == 0, errors
    saved = safetensors.load(os.path.join(further, "model", "model.safetensors"))
    assert all(tensor.dtype == torch.float16 for tensor in saved.values())
    bert.BertModel.from_pretrained(os.path.join(further, "model"))


def test_tools_pretrain__stopped_and_resumed_it_is_bit_for_bit_the_same():
    def weights_of(out):
        with open(os.path.join(out, "model", "model.safetensors"), "rb") as file:
            return file.read()
    whole = weights_of(run_pretrain(*from_scratch())[1])
    with signalled_at(3, trainer=pretrain.Pretrainer):
        status, out, _ = run_pretrain(*from_scratch())
    assert status == 143 and not os.path.exists(os.path.join(out, "model"))
    assert run_tool(pretrain, "--resume", out)[0] == 0
    assert weights_of(out) == whole


def test_tools_pretrain__needs_texts_and_either_weights_or_a_vocabulary():
    for flags in ((), (*from_scratch(), "--weights", tiny_world()[1])):
        status, _, errors = run_pretrain(*flags)
        assert_one_line(status, errors, "--weights", "--vocab")
    empty = os.path.join(write_file("", "empty.txt"), "empty.txt")
    status, _, errors = run_pretrain(*from_scratch(), "--text", empty)
    assert_one_line(status, errors, "empty.txt", "texts")
