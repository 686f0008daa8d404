"""4.1 Pre-trained weights: safetensors, old names, config.json."""

import json
import os
import struct
import tempfile
import unittest.mock

import torch

import bert
from plumbing import safetensors
from tests.checks import assert_raises
from tests.world import SMALL, small_bert, write_file


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
        with assert_raises(word):
            safetensors.load(path)


def test_4_1_from_pretrained__saved_and_loaded_is_the_same():
    model = small_bert()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        copy = bert.BertModel.from_pretrained(folder)
    assert copy.config == model.config
    assert not any(part.training for part in copy.modules()), "it is not in eval mode"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, copy.state_dict()[name]), name


def test_4_1_from_pretrained__draws_no_values_only_to_replace_them():
    with tempfile.TemporaryDirectory() as folder:
        small_bert().save_pretrained(folder)
        with unittest.mock.patch.object(torch.Tensor, "normal_", lambda self, *_: 1 / 0):
            bert.BertModel.from_pretrained(folder)


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


def test_4_1_from_pretrained__bad_folders_are_refused_by_name():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.safetensors")
        with assert_raises("config.json", error=FileNotFoundError):
            bert.BertModel.from_pretrained(folder)
        small_bert().save_pretrained(folder)
        tensors = safetensors.load(path)
        key = "encoder.layer.1.attention.self.key.weight"
        safetensors.save(path, {k: v for k, v in tensors.items() if k != key})
        with assert_raises("no tensor", key):
            bert.BertModel.from_pretrained(folder)
        safetensors.save(path, {**tensors, key: torch.zeros(16, 15)})
        with assert_raises(key, "[16, 16]", "[16, 15]"):
            bert.BertModel.from_pretrained(folder)
        safetensors.save(path, {**tensors, key: torch.zeros(16, 16, dtype=torch.int64)})
        with assert_raises(key, "floats"):
            bert.BertModel.from_pretrained(folder)
        os.remove(path)
        with assert_raises("pytorch_model.bin", error=FileNotFoundError):
            bert.BertModel.from_pretrained(folder)
        for content in ({1: torch.zeros(2)}, [torch.zeros(2)], {"x": 3}):
            torch.save(content, os.path.join(folder, "pytorch_model.bin"))
            with assert_raises("pytorch_model.bin"):
                bert.BertModel.from_pretrained(folder)
        torch.save({"x": Evil()}, os.path.join(folder, "pytorch_model.bin"))
        with assert_raises("pytorch_model.bin", "tensors"):
            bert.BertModel.from_pretrained(folder)


class Evil:
    """A pickle of it runs code when it is loaded."""

    def __reduce__(self):
        return os.system, ("echo a pickle ran code",)


def test_4_1_BertConfig__nonsense_is_refused_by_name():
    good = vars(bert.BertConfig(**SMALL))
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
        with assert_raises("config.json", word):
            bert.BertConfig.from_json(os.path.join(folder, "config.json"))
    for text in ("", "[]", "{}", "{not json", "\u0000"):
        with assert_raises("config.json"):
            bert.BertConfig.from_json(os.path.join(write_file(text, "config.json"),
                                                   "config.json"))
