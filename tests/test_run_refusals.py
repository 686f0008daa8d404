"""What train.py refuses, in one line; the choice of precision."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import sys
import tempfile
import unittest.mock
import warnings

import numpy as np
import torch

import bert
import heads
from plumbing import declared, machine
from tests.checks import assert_close, assert_equal, assert_one_line, assert_raises
from tests.world import SMALL, WORDS, resume, run_train, tiny_world, with_file, write_file


def test_run_refusals__data():
    header = "\tid\tsentence\tsentiment\n"
    for name, content, words in (
            ("ids-sst-dev.csv", None, ["ids-sst-dev.csv", "no such file"]),
            ("ids-sst-train.csv", "", ["empty", "sentiment"]),
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
        assert_one_line(status, errors, name, *words)
    status, _, errors = run_train(data_folder="nowhere")
    assert_one_line(status, errors, "--data nowhere", "folder")


def test_run_refusals__weights():
    _, weights = tiny_world()
    with open(os.path.join(weights, "model.safetensors"), "rb") as file:
        whole = file.read()
    lie = whole.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1)
    config = json.dumps({**vars(bert.BertConfig(**SMALL)), "vocab_size": len(WORDS)})
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
        assert_one_line(status, errors, *words)
    status, _, errors = run_train(weights="no-such-model")
    assert_one_line(status, errors, "--weights no-such-model", "package")


def test_run_refusals__resuming_what_is_no_run():
    parts = '{"args": {"lr": {"value": 1}}, "digests": {"a": "b"}, "machine": {"c": "d"}}'
    for folder in ("nowhere", tempfile.mkdtemp(), write_file("{}", "args.json"),
                   write_file("[1", "args.json"), write_file(parts, "args.json"),
                   write_file('{"args": 3, "digests": 4, "machine": 5}', "args.json")):
        status, _, errors = resume(folder)
        assert_one_line(status, errors, folder, "args.json")


def test_run_refusals__flags_and_devices():
    for flags, words in ((["--accumulate", 0], ["--accumulate", "'0'"]),
                         (["--lr", -1], ["--lr", "'-1'"]),
                         (["--option", "x"], ["--option", "'x'"]),
                         (["--device", "gpu7"], ["--device", "'gpu7'"]),
                         (["--los"], ["--los"]), (["--accumulate", 50], ["50 batches"]),
                         (["--r-drop", 1, "--dropout", 0], ["--r-drop 1", "no dropout"])):
        status, _, errors = run_train(*flags)
        assert_one_line(status, errors, *words)


def test_run_precision__the_choice_says_why_and_emulation_is_no_reason():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for native in (True, False):        # an A100 and a T4, which both "support" it
        def supported(including_emulation=True, native=native):
            return native or including_emulation
        with unittest.mock.patch("torch.cuda.is_bf16_supported", supported):
            _, why = machine.choose_precision("auto", gpu)
        assert why == ("bfloat16 autocast (this cuda has it)" if native else
                       "float16 autocast (this cuda has no bfloat16)")
    for limit, why in (("AVX512", "bfloat16 autocast (this cpu has it)"),
                       ("AVX2", "float32 (this cpu has no bfloat16)")):
        with (unittest.mock.patch("torch.cpu._is_avx512_bf16_supported", return_value=True,
                                  create=True),
              unittest.mock.patch("torch.backends.cpu.get_cpu_capability",
                                  return_value=limit)):
            assert_equal(machine.choose_precision("auto", cpu)[1], why)
    assert machine.choose_precision("off", cpu)[1] == "float32 (given)"
    assert machine.choose_precision("bf16", cpu)[1] == "bfloat16 autocast (given)"
    with unittest.mock.patch("torch.cuda.is_bf16_supported", lambda **_: True):
        context, why = machine.choose_precision("auto", gpu, 9e-3)
    assert context is contextlib.nullcontext and "--smart-eps 0.009" in why


def test_run_refusals__a_task_that_does_not_fit_is_one_line():
    def like(task, name="x", **fields):
        return dataclasses.replace(task, name=name, **fields)
    sst, para, sts = heads.tasks()[:3]
    for added, words in (
            ([like(para, "train")], "'train'"), ([like(para, "a/b")], "'a/b'"),
            ([like(para, "overall")], "'overall'"), ([like(para, "")], "''"),
            ([like(para, "SST")], "sst and SST"), ([sst], "sst and sst"),
            ([like(para, "a_b"), like(para, "b_a"), like(para, "a")],
             "a_b_a would mean two pairs"),
            ([like(sts, texts=())], "one or two columns"),
            ([like(sst, lowest=1, highest=5)], "IndexError"),
            ([like(sst, highest=2)], "3 classes, for the labels 0 to 2, got 5"),
            ([like(para, num_outputs=3)], "a predict that returns [2]"),
            ([like(sts, highest=100, whole_labels=True)], "set it to False"),
            ([like(sts, loss=lambda z, y: None)], "a loss that returns a number"),
            ([like(para, metric=lambda predicted, labels: None)], "returns a number"),
            ([like(para, metric=lambda predicted, labels: math.nan)],
             "a metric that is real and finite for right predictions [2], got nan"),
            ([like(para, metric=lambda predicted, labels: "a")], "finite for right"),
            ([like(para, metric=lambda predicted, labels: 1j)], "finite for right"),
            ([like(para, metric=lambda predicted, labels: 10 ** 400)], "finite for right"),
            ([like(para, metric=lambda predicted, labels: sys.exit(3))], "got SystemExit"),
            ([like(sts, predict=lambda z: z * math.nan)], "logits [2], got [nan"),
            ([like(sts, predict=lambda z: z + 0j)], "a predict that is real and finite"),
            ([like(sts, predict=lambda z: z.bfloat16())], "what numpy can read; got Type"),
            ([like(sts, predict=lambda z: z.clone().requires_grad_())], "numpy can read"),
            ([like(para, predict=lambda z: (z > 0).numpy())], "returns a tensor, got nd"),
            ([like(para, predict=lambda z: [0., 1.])], "returns a tensor, got list"),
            ([like(para, probabilities=lambda z: 1 / 0)], "a probabilities that takes"),
            ([like(sst, probabilities=lambda z: z[:, 0])], "returns [2, 5]"),
            ([like(sts, loss=lambda z, y: z.detach().sum())], "a loss that can be differ"),
            ([like(sts, loss=lambda z, y: 1.)], "a loss that returns a tensor, got float"),
            ([like(sts, divergence=lambda a, b: (a > b).sum())], "a divergence that can"),
            ([like(sts, num_outputs=1.)], "int as num_outputs, got 1.0"),
            ([like(sts, num_outputs=0)], "1 to 1000000 outputs"),
            ([like(sts, num_outputs=True)], "int as num_outputs, got True"),
            ([like(sts, num_outputs=10 ** 400)], "1 to 1000000 outputs"),
            ([like(sts, lowest="0")], "float as lowest, got '0'"),
            ([like(sts, texts="ab")], "tuple as texts, got 'ab'"),
            ([like(sts, prediction_column=None)], "str as prediction_column"),
            ([like(sts, divergence=3)], "as divergence, got 3"),
            ([like(para, "scale")], "'scale'"),
            ([like(para, "3way")], "begins with a letter"),
            ([like(para, "training")], "'training'"),
            ([like(sts, lowest=5)], "lowest < highest"),
            ([like(sts, lowest=-math.inf)], "from -1e38 to 1e38, got -inf and"),
            *(([like(sts, highest=value)], "from -1e38 to 1e38, got 0 and 1")
              for value in (10 ** 400, 1e300, 1e39)),
            *(([like(sts, file=text)], f"characters in file, got {text!r}")
              for text in ("", "a\0")),
            *(([like(sts, prediction_column=text)],
               f"commas in prediction_column, got {text!r}")
              for text in ("", "a\tb", "a\n", "a,b")),
            ([like(sts, label="")], "characters in label, got ''"),
            ([like(sts, texts=(1, 2))], "characters in texts, got 1"),
            ([like(sts, texts=("a", "a"))], "not one twice, got ('a', 'a')"),
            ([like(para, classes=(0, 1))], "characters in classes, got 0"),
            ([like(sst, classes=list("abcde"))], "tuples for lists")):
        with assert_raises("heads.tasks()", words):
            declared.valid((sst, para, sts, *added))
    for options in itertools.product(("ce", "mse"), repeat=2):
        for task in heads.tasks(*options):
            declared.check_functions(task)      # else only those of added tasks are called


def test_run_refusals__a_metric_of_ones_own():
    def f1(predicted, labels, positive):    # undefined where nothing is positive
        found, there = predicted == positive, labels == positive
        return np.float32(2 * (found & there).sum()) / (found.sum() + there.sum())
    task = dataclasses.replace(heads.tasks()[1], name="x",
                               metric=functools.partial(f1, positive=1))
    declared.check_functions(task)
    assert_equal(declared.title(task), "X score")     # a partial has no name
    one, two = np.array([1., 0, 1]), np.array([1., 0, 0])
    assert_close(declared.score(task, one, two), 2 / 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with np.errstate(invalid="ignore"):
            assert_equal(declared.score(task, two * 0, one * 0), 0.0)
    assert ["x's metric gave nan; counted as 0"] == [str(w.message) for w in caught]
