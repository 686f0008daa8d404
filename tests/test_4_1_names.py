"""4.1 Names of tensors, dropout of a loaded model, scripts that BERT tells apart."""

import json
import os
import struct
import tempfile

import torch

import bert
import data
from plumbing import safetensors, vocabulary
from tests.checks import assert_equal
from tests.world import WORDS, small_bert, write_file

# Hugging Face's name of each tensor of a layer: {its name here: its name there}.
LAYER = {"query": "attention.self.query", "key": "attention.self.key",
         "value": "attention.self.value", "attention_dense": "attention.output.dense",
         "attention_norm": "attention.output.LayerNorm", "intermediate":
         "intermediate.dense", "output": "output.dense", "output_norm": "output.LayerNorm"}
OTHERS = {"word_embeddings.weight": "embeddings.word_embeddings.weight",
          "position_embeddings.weight": "embeddings.position_embeddings.weight",
          "token_type_embeddings.weight": "embeddings.token_type_embeddings.weight",
          "embedding_norm.weight": "embeddings.LayerNorm.weight",
          "embedding_norm.bias": "embeddings.LayerNorm.bias",
          "pooler.weight": "pooler.dense.weight", "pooler.bias": "pooler.dense.bias"}


def names():
    """{our name: Hugging Face's} of all tensors of a BERT with two layers."""
    return {**OTHERS, **{f"layers.{i}.{ours}.{kind}": f"encoder.layer.{i}.{theirs}.{kind}"
                         for i in range(2) for ours, theirs in LAYER.items()
                         for kind in ("weight", "bias")}}


def test_4_1_from_pretrained__tensors_are_saved_under_hugging_faces_names():
    model = small_bert()
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.fill_(number)             # so that no two tensors are alike
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = safetensors.load(os.path.join(folder, "model.safetensors"))
    assert_equal(sorted(saved), sorted(names().values()))
    by_number = {tensor.flatten()[0].item(): name for name, tensor in saved.items()}
    for number, (ours, _) in enumerate(model.named_parameters()):
        assert_equal(by_number[number], names()[ours],
                     f"{ours} was saved under another tensor's name")


def test_4_1_from_pretrained__tensors_are_read_from_hugging_faces_names():
    model = small_bert()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        safetensors.save(os.path.join(folder, "model.safetensors"), {
            theirs: torch.full_like(model.get_parameter(ours), float(number))
            for number, (ours, theirs) in enumerate(names().items())})
        loaded = bert.BertModel.from_pretrained(folder)
    for number, (ours, theirs) in enumerate(names().items()):
        assert_equal(loaded.get_parameter(ours).flatten()[0].item(), number,
                     f"{ours} was not read from {theirs}")


def test_4_1_from_pretrained__dropout_is_set_everywhere():
    with tempfile.TemporaryDirectory() as folder:
        small_bert().save_pretrained(folder)
        model = bert.BertModel.from_pretrained(folder, dropout=.3)
        usual = bert.BertModel.from_pretrained(folder)
    for layer in model.layers:
        assert_equal(layer.attention_dropout, .3, "attention's dropout is left alone")
        assert_equal(layer.dropout.p, .3, "the layers' dropout is left alone")
    assert_equal(model.dropout.p, .3, "the embedding's dropout is left alone")
    assert_equal(usual.layers[0].attention_dropout, .1, "without a value: config.json's")


def test_4_1_vocabulary__the_longest_added_token_is_found_first():
    added = [vocabulary.Added("foo", 1), vocabulary.Added("foobar", 2)]
    found, ids = vocabulary.pattern(added, str)
    assert_equal(found.split("xfoobary"), ["x", "foobar", "y"], mistakes={
        "the shortest added token is found first": ["x", "foo", "bary"]})
    assert_equal(ids, {"foo": 1, "foobar": 2})


def test_4_1_vocabulary__tokens_added_later_are_not_written_into_vocab_txt():
    folder, place = write_file("\n".join(WORDS), "vocab.txt"), tempfile.mkdtemp()
    with open(os.path.join(folder, "added_tokens.json"), "w") as file:
        json.dump({"[E1]": len(WORDS)}, file)
    data.WordPiece(folder).save(place)
    with open(os.path.join(place, "vocab.txt"), encoding="utf-8") as file:
        assert_equal(len(file.read().split()), len(WORDS),
                     "added tokens were written into vocab.txt")
    assert_equal(len(data.WordPiece(place).tokens), len(WORDS) + 1,
                 "added tokens are lost")


def test_4_1_safetensors__the_data_begins_at_a_multiple_of_8():
    for number in range(8):             # names of all lengths modulo 8
        path = os.path.join(tempfile.mkdtemp(), "m")
        safetensors.save(path, {"x" * (1 + number): torch.zeros(3)})
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
        assert_equal(length % 8, 0, "the header is not padded to 8 bytes")


def test_4_1_basic_tokens__scripts_that_are_split_and_scripts_that_are_not():
    for text, want, why in (
            ("a\u4e00\u4e01", "a \u4e00 \u4e01", "a CJK character is a word of its own"),
            ("a\uf900b", "a \u8c48 b", "CJK compatibility ideographs are forgotten"),
            ("a\u3400b", "a \u3400 b", "CJK extension A is forgotten"),
            ("a\U00020000b", "a \U00020000 b", "CJK extension B is forgotten"),
            ("ねこ", "ねこ", "Kana were split as if they were CJK"),
            ("カタ", "カタ", "Kana were split as if they were CJK"),
            ("\u1112\u1161\u11ab", "\u1112\u1161\u11ab", "Hangul was split as if CJK"),
            ("\u0915\u0940", "\u0915\u0940",
             "spacing marks (Mc), such as Hindi vowels, were dropped like accents"),
            ("\u0915\u094d", "\u0915", "marks without width (Mn) must be dropped"),
            ("a^b`c~d", "a ^ b ` c ~ d", "ASCII symbols count as punctuation"),
            ("x\u301cy\u2014z", "x \u301c y \u2014 z", "punctuation beyond ASCII")):
        assert_equal(" ".join(data.basic_tokens(text)), want, why)


def test_4_1_basic_tokens__a_cased_BERT_keeps_case_and_accents():
    assert_equal(data.basic_tokens("Été", lower_case=False, strip_accents=False), ["Été"],
                 "a cased model's text was changed")
    assert_equal(data.basic_tokens("a\u4e00", chinese=False), ["a\u4e00"],
                 "tokenize_chinese_chars false was ignored")
