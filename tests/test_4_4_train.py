"""4.4 train.py: what each flag does, and what a run leaves."""

import json
import os
import unittest.mock

import numpy as np
import torch

import bert
import data
import heads
import multitask
from plumbing import runs, safetensors
from plumbing.folder import load_checkpoint
from tests.checks import assert_close, assert_equal, assert_one_line
from tests.world import files_of, fingerprint, log_of, run_train, tiny_world, training_of

BASE = ("--option", "gvac", "--con")


def assert_differs(base, *flags):
    a, b = fingerprint(*base), fingerprint(*base, *flags)
    assert not torch.equal(a, b), (
        f"got the same weights with and without {' '.join(map(str, flags))}")


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
            ((), ["--pool", "mean"]), ((), ["--clip", .1]), ((), ["--max-length", 6]),
            ((), ["--clip", 0]), ((), ["--warmup", 1.0]), ((), ["--dropout", .4]),
            (("--dropout", .4, "--r-drop", 1), ["--r-drop", 9]),
            ((), ["--sst-loss", "mse"]), ((), ["--sts-loss", "ce"]),
            ((), ["--weight-decay", .1]), ((), ["--lr", .02]), ((), ["--seed", 1]),
            ((), ["--amp", "bf16"]), ((), ["--max-steps", 3])):
        assert_differs(base, *flags)


def test_4_4_train__sparse_rows_of_the_word_table_add_up_to_its_dense_gradient():
    # Two micro-batches with words in common; SMART's ratio takes gradients of its own.
    G = []
    for sparse in (True, False):
        training, _ = training_of("--dropout", "0", "--smart", "--accumulate", "2")
        table = training.model.bert.word_embeddings
        assert table.sparse, "train.py asks for it on CPUs"
        table.sparse = sparse
        batches = [{name: training.next_batch(name) for name in training.rows}
                   for _ in range(2)]
        torch.manual_seed(0)
        losses = multitask.backward(training.flat, batches, training.loss, training.rows,
                                    with_ratio=True)
        assert "smooth_grad_ratio_sst" in losses
        G.append(training.flat.G.clone())
    assert_close(*G, 1e-6)
    assert G[0][0, training.flat.place["bert.word_embeddings.weight"]].any()


def test_4_4_train__align_sets_the_length_of_an_epoch():
    for flags, length in (((), 10), (("--align", "sst"), 6), (("--tasks", "sst,para"), 6)):
        _, plan = training_of("--epochs", "2", *flags, sst=24)
        assert_equal([len(epoch) for epoch in plan], [length, length])


def test_4_4_train__fresh_streams_start_each_epoch_anew():
    for flags, position in ((["--fresh-streams"], [1, 1]), ([], [0, 11])):
        out = run_train("--epochs", 2, *flags, steps=11)[1]
        state = load_checkpoint(os.path.join(out, "last.pt"))
        assert_equal(state["streams"]["para"], position)


def test_4_4_train__frozen_encoder_stays_and_heads_move():
    _, weights = tiny_world()
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
    a, b = map(files_of, runs)
    for name in a:
        assert a[name] == b[name], f"{name} differs"


def test_4_4_train__run_leaves_what_it_promises():
    status, out, _ = run_train("--option", "gvac", "--smart", "--con", "--hlh", steps=3)
    assert status == 0
    with open(os.path.join(out, "result.json")) as file:
        result = json.load(file)
    assert set(result["dev"]) == {"sst", "para", "sts", "overall"}
    assert (result["epoch"] == 1 and result["seconds"] > 0
            and result["args"]["option"] == "gvac")
    lines = log_of(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 3] and "dev" in lines[-1]
    assert {"loss_sst", "smooth_sts", "bregman_para", "cos_sst_para"} <= set(lines[0])
    folder = tiny_world()[0]
    for task in heads.tasks():
        for split, number in (("dev", 12), ("test", 6)):
            with open(os.path.join(out, "predictions",
                                   f"{task.name}-{split}-output.csv")) as f:
                rows = f.read().splitlines()
            assert len(rows) == number + 1
    # The predictions are those of the saved best model.
    model = heads.MultitaskBert.from_pretrained(os.path.join(out, "best"))
    tokenizer = data.WordPiece(os.path.join(out, "best", "vocab.txt"))
    dev = data.load(folder, model.tasks["sts"], "dev", tokenizer)
    _, score = heads.evaluate(model, model.tasks["sts"], dev, tokenizer)
    assert_close(score, result["dev"]["sts"], 1e-6)


def test_4_4_train__max_length_cuts_in_training_evaluation_and_prediction():
    # 7 ids: five words of a text, or two of each side of a joined pair.
    encode = bert.BertModel.encode
    for con, pair, cut in (
            ([], ("a b c d e good", "bad"), ("a b c d e", "bad")),
            (["--con"], ("a b good bad", "how what is the"), ("a b", "how what"))):
        longest = {True: 0, False: 0}

        def note(self, x, mask=None, longest=longest):
            longest[self.training] = max(longest[self.training], x.shape[1])
            return encode(self, x, mask)
        with unittest.mock.patch.object(bert.BertModel, "encode", note):
            status, out, errors = run_train("--max-length", 7, *con)
        assert_equal(status, 0, errors)
        assert_equal(longest, {True: 7, False: 7},
                     "the longest row in training (True) and evaluation (False)")
        model = heads.MultitaskBert.from_pretrained(os.path.join(out, "best"))
        for task, texts in (("sst", ["a b c d e good bad", "a b c d e"]),
                            ("para", [pair, cut])):
            long, short = model.predict(task, texts, with_probabilities=True)[1]
            assert_close(long, short, 0, "best/ has forgotten --max-length")
            model.max_length = 40
            long, short = model.predict(task, texts, with_probabilities=True)[1]
            assert np.abs(long - short).max() > 0, "this test would see nothing"
            model.max_length = 7
    status, _, errors = run_train("--max-length", 41)
    assert_one_line(status, errors, "--max-length", "5 to 40", "41")


def test_4_4_train__how_many_texts_are_cut_is_said():
    def cut(*flags, texts):
        training, _ = training_of("--max-length", "7", *flags)
        for dataset in training.sets["train"].values():
            dataset.tokens = [tuple([1] * n for n in lengths[:len(dataset.tokens[0])])
                              for lengths in texts]
        return runs.cut_texts(training)
    # 7 ids hold 5 tokens of one text, or 4 of a joined pair.
    assert_equal(cut(texts=[(5, 5), (6, 1), (1, 6)]),
                 ["sst 1 of 40", "para 2 of 40", "sts 2 of 40"])
    assert_equal(cut("--con", texts=[(2, 2), (2, 3), (5, 0)]),
                 ["para 2 of 40", "sts 2 of 40"])
    assert_equal(cut("--con", texts=[(1, 1)]), [])


def test_4_4_train__logging_layers_changes_only_the_log():
    runs = [run_train(*BASE, *flags)[1] for flags in ((), ("--log-layers",))]
    weights = [files_of(out)["best/model.safetensors"] for out in runs]
    assert weights[0] == weights[1]
    lines = [log_of(out)[0] for out in runs]
    assert set(lines[1]) - set(lines[0]) == {"layers"} and "target_sst_sts" in lines[0]
    status, _, errors = run_train("--option", "rr", "--log-layers")
    assert_one_line(status, errors, "--log-layers", "--option")


def test_4_4_train__it_learns():
    # The last word of each tiny text tells its label.
    status, out, errors = run_train("--con", "--epochs", 12, "--lr", .003, "--dropout", 0,
                                    steps=120)
    assert status == 0, errors
    steps = [line for line in log_of(out) if "loss_sst" in line]
    for task in ("sst", "para", "sts"):
        first, last = (np.mean([line[f"loss_{task}"] for line in part])
                       for part in (steps[:10], steps[-10:]))
        assert last < .8 * first, f"{task}: loss went from {first:.3f} to {last:.3f}"
