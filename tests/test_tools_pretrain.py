"""tools/pretrain.py."""

import contextlib
import math
import os
import re
import signal
import unittest.mock
import warnings

import numpy as np
import torch
import torch.nn.functional as F

import bert
import data
import optim
from plumbing import safetensors
from tests.checks import assert_close, assert_equal, assert_one_line, assert_raises
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
    _, model = pretrain.build(0, 0.1, vocab=os.path.join(tiny_world()[1], "vocab.txt"),
                              layers=3, hidden=128, heads=4, max_length=64)
    ids = torch.tensor([[2, 9, 8, 7, 3, 7, 6, 9, 3]])
    x = model.bert.eval().embed(ids)
    layer = model.bert.layers[0]
    scores = (layer.split_heads(layer.query(x)) @ layer.split_heads(layer.key(x)).mT)[0]
    alike = (ids[0, :, None] == ids[0]).expand_as(scores[:2])          # [2, T, T]
    lowest = scores[:2].masked_fill(~alike, math.inf).amin(-1)
    assert bool((lowest > scores[:2].masked_fill(alike, -math.inf).amax(-1)).all())


def test_tools_pretrain__next_sentence_labels_say_whose_second_text_it_is():
    # Pair i has the first text [10 + i] and the second [10 + i, 10 + i].
    pairs = [([10 + i], [10 + i, 10 + i]) for i in range(40)]
    training = training_of(pairs, next_sentence=True)
    with unittest.mock.patch.object(pretrain, "mask_tokens", lambda ids, *_: (ids, ids)):
        batch, _ = training.batch_of(training.sets["pair"].tokens[:32] * 30)
    first, second = batch.input_ids[:, 1], batch.input_ids[:, 3]
    own = batch.labels == 1
    assert torch.equal(first[own], second[own]) and bool((first != second)[~own].all())
    assert_close(own.float().mean(), .5, .06, "half of the pairs belong together")
    following = (second - first)[~own] % 40 == 1
    assert_close(following.float().mean(), .51, .08,
                 "half of the others are the next pair's")


def training_of(texts, next_sentence=False, dropout=0.5, batch_size=4):
    """pretrain.Pretraining on texts of token ids, with the tiny world's weights."""
    tokenizer, model = pretrain.build(0, dropout, tiny_world()[1], layers=0, hidden=0,
                                      heads=0, max_length=0)
    return pretrain.prepare(tokenizer, model.train(), texts, seed=0, batch_size=batch_size,
                            next_sentence=next_sentence, lr=1.0, weight_decay=0.0,
                            autocast=contextlib.nullcontext)


def some_texts(number):
    """Single texts and pairs, all different."""
    return [([5 + i % 40, 5 + i // 40],) * (1 + i % 2) for i in range(number)]


def test_tools_pretrain__one_text_of_fifty_is_held_out_and_never_trained_on():
    texts = some_texts(200)
    training, seen = training_of(texts), []
    assert_equal(len(training.held_out), 4)
    for kind, stream in training.streams.items():
        for _ in range(60):                     # more than a pass
            seen += [training.sets[kind].tokens[i] for i in stream.next()]
    held_out = {id(text) for text in training.held_out}
    assert not held_out & {id(text) for text in seen}
    assert_equal(held_out | {id(text) for text in seen}, {id(text) for text in texts})


def test_tools_pretrain__held_out_losses_are_without_dropout_and_disturb_nothing():
    training = training_of(some_texts(400), next_sentence=True)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    losses = training.held_out_losses()
    assert torch.equal(torch.get_rng_state(), before), "training's random numbers"
    assert training.model.training, "training goes on with dropout"
    torch.manual_seed(8)
    assert_equal(training.held_out_losses(), losses, "the same masks each time")
    model, sums = training.model.eval(), {"loss": np.zeros(2), "next": np.zeros(2)}
    torch.manual_seed(0)
    for number in (1, 2):
        texts = [text for text in training.held_out if len(text) == number]
        batch, labels = training.batch_of(texts)
        for name, value in model(batch, labels).items():
            n = len(texts) if name == "next" else (labels != -100).sum().item()
            sums[name] += n * value.item(), n
    assert_close([losses[name] for name in sums],
                 [total / n for total, n in sums.values()], 1e-6,
                 "the mean over all masked tokens, not over batches")


def test_tools_pretrain__texts_that_fill_no_batch_are_said():
    few = some_texts(200)[:40] + some_texts(400)[::2]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training_of(few, batch_size=30)
    assert "pair texts are left out" in str(caught[0].message), caught
    with assert_raises("--next-sentence", "30 pairs"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training_of(few, batch_size=30, next_sentence=True)


def test_tools_pretrain__the_optimizer_takes_the_rate_that_is_logged():
    rates, step = [], optim.AdamW.step

    def recorded(self, closure=None):
        rates.append({group["lr"] for group in self.param_groups})
        return step(self, closure)
    with unittest.mock.patch.object(optim.AdamW, "step", recorded):
        _, out, _ = run_pretrain(*from_scratch(), "--lr", 1, "--warmup", .2, steps=10)
    expected = [.5, 1, 1, .875, .75, .625, .5, .375, .25, .125]
    assert_close([rate for (rate,) in rates], expected)
    assert_close([line["lr"] for line in log_of(out) if "lr" in line], expected)


def test_tools_pretrain__the_tied_table_gets_a_gradient_as_input_and_as_output():
    model = pretrain.MaskedLM(small_bert())
    ids, labels = torch.tensor([[2, 9, 4, 3]]), torch.tensor([[-100, -100, 8, -100]])
    model(data.Batch(ids, None, None, None), labels)["loss"].backward()
    gradient = model.bert.word_embeddings.weight.grad
    # Of the output: all words at the masked position, in the direction of its h.
    assert bool((gradient[20:40] != 0).all(-1).all()), "words that are not in the text"
    h = gradient[20] / gradient[20].norm()
    assert_close(abs(gradient[30] @ h), gradient[30].norm(), 1e-5)
    assert abs(gradient[9] @ h) < .99 * gradient[9].norm(), "and word 9 as input too"


def test_tools_pretrain__stopped_in_an_evaluation_it_continues_the_same():
    def files(out):
        with open(os.path.join(out, "model", "model.safetensors"), "rb") as file:
            return log_of(out), file.read()
    flags = (*from_scratch(), "--checkpoint-every", 3)
    whole = files(run_pretrain(*flags)[1])
    original, calls = pretrain.Pretraining.batch_of, []

    def signal_in_evaluation(self, texts):
        calls.append(self.model.training)
        if calls.count(False) == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, texts)
    with unittest.mock.patch.object(pretrain.Pretraining, "batch_of", signal_in_evaluation):
        status, out, _ = run_pretrain(*flags)
    assert_equal(status, 143)
    assert_equal(run_tool(pretrain, "--resume", out)[0], 0)
    assert_equal(files(out), whole)


def test_tools_pretrain__it_learns_and_leaves_weights_that_train_takes():
    status, out, errors = run_pretrain(*from_scratch(), "--lr", .01, steps=60)
    assert status == 0, errors
    losses = [next(v for k, v in line.items() if k.startswith("loss"))
              for line in log_of(out) if "lr" in line]
    assert np.mean(losses[-10:]) < .9 * np.mean(losses[:10]), (losses[:3], losses[-3:])
    status, _, errors = run_train(weights=os.path.join(out, "model"))
    assert status == 0, errors
    weights = os.path.join(out, "model")
    status, further, errors = run_pretrain("--weights", weights, "--half")
    assert status == 0, errors
    saved = safetensors.load(os.path.join(further, "model", "model.safetensors"))
    assert all(tensor.dtype == torch.float16 for tensor in saved.values())
    bert.BertModel.from_pretrained(os.path.join(further, "model"))


def test_tools_pretrain__weights_that_diverged_are_not_offered():
    status, out, errors = run_pretrain(*from_scratch(), "--lr", 1e9, "--weight-decay", 1e9)
    assert_equal(status, 1, errors)
    assert "diverged" in errors and "--lr" in errors, errors
    assert not os.path.exists(os.path.join(out, "model"))


def test_tools_pretrain__stopped_and_resumed_it_is_bit_for_bit_the_same():
    def weights_of(out):
        with open(os.path.join(out, "model", "model.safetensors"), "rb") as file:
            return file.read()
    whole = weights_of(run_pretrain(*from_scratch())[1])
    with signalled_at(3):
        status, out, _ = run_pretrain(*from_scratch())
    assert status == 143 and not os.path.exists(os.path.join(out, "model"))
    assert run_tool(pretrain, "--resume", out)[0] == 0
    assert weights_of(out) == whole


def test_tools_pretrain__help_says_each_default():
    for action in pretrain.parser()._actions:
        if type(action.default) in (int, float):
            said = map(float, re.findall(r"[\d.]+(?:e-\d+)?", action.help))
            assert action.default in said, f"{action.option_strings[0]}: {action.help}"


def test_tools_pretrain__needs_texts_and_either_weights_or_a_vocabulary():
    for flags in ((), (*from_scratch(), "--weights", tiny_world()[1])):
        status, _, errors = run_pretrain(*flags)
        assert_one_line(status, errors, "--weights", "--vocab")
    empty = os.path.join(write_file("", "empty.txt"), "empty.txt")
    status, _, errors = run_pretrain(*from_scratch(), "--text", empty)
    assert_one_line(status, errors, "empty.txt", "texts")
