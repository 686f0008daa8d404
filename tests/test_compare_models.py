"""Models and tokenizers as transformers saves them: read here, saved, read there again."""

import collections
import csv
import functools
import json
import os
import tempfile
import warnings

import torch

import bert
import data
import heads
from tests import DATA
from tests.checks import assert_close, assert_equal, skip_without
from tests.test_compare import minilm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ODD = ("Été naïve CAFÉ", "e\u0301te\u0301 E\u0301", "你好abc 東京",
       "x\u00a0y\u2003z c\x0bd a\u200bb",
       "it's $5.00/kg foo_bar!", "ＡＢＣ ﬁ ß İ ı", "", " ", "a" * 150,
       "¡Hola! «Quoi?» – ok…",
       "Зелёный Αθήνα", "x[E1]y Foo<x> FOO<X> bar baz Bar Baz [e1] foobar bazbar baz")


@functools.cache
def sentences(number=2000):
    """Texts of the course's files, or else of the sample, and some odd ones."""
    texts = []
    for task in heads.tasks():
        path = os.path.join(DATA or os.path.join(ROOT, "sample"), f"{task.file}-dev.csv")
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))[:number // 3]
        texts += [row[c] for row in rows for c in task.texts if row[c]]
    return texts[:number] + list(ODD)


@functools.cache
def vocabulary(lower):
    """Common words and all characters of the sentences, cased or not."""
    words = collections.Counter()
    for text in sentences():
        words.update(data.basic_tokens(text, lower, lower))
    characters = sorted({c for word in words for c in word})
    return list(dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters,
         *(f"##{c}" for c in characters), *(word for word, _ in words.most_common(3000))]))


def save_tokenizer(folder, lower, added=False, **settings):
    """What transformers writes, and its tokenizer."""
    import transformers
    path = os.path.join(tempfile.mkdtemp(), "vocab.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{token}\n" for token in vocabulary(lower))
    theirs = transformers.BertTokenizer(path, do_lower_case=lower, **settings)
    if added:
        theirs.add_tokens(["Foo<x>", "bar baz"])
        theirs.add_special_tokens({"additional_special_tokens": ["[E1]"]})
    theirs.save_pretrained(folder)
    return theirs


def same_ids(ours, theirs):
    """The ids of all sentences must be equal, and those of the control tokens."""
    assert_equal((ours.pad, ours.unk, ours.cls, ours.sep), tuple(
        theirs.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])))
    texts = sentences()
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    for text, ids in zip(texts, expected):
        assert_equal(ours(text), ids, repr(text))


def same_outputs(ours, theirs):
    """Hidden states, and what the pooler makes of them where both have one."""
    torch.manual_seed(1)
    ids = torch.randint(5, ours.config.vocab_size, (3, 12))
    segments = torch.tensor([[0] * 5 + [1] * 7] * 3)
    with torch.no_grad():
        a = ours.eval()(ids, None, segments)
        b = theirs.eval()(input_ids=ids, token_type_ids=segments)
    assert_close(a["last_hidden_state"], b.last_hidden_state, 1e-5)
    if ours.pooler is not None and b.pooler_output is not None:
        assert_close(a["pooler_output"], b.pooler_output, 1e-5)


def small_config(vocab_size):
    import transformers
    return transformers.BertConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, initializer_range=.2,
        num_labels=3)


def there_and_back(model, **how):
    """transformers -> here -> transformers, with equal hidden states all the way."""
    import transformers
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how.pop("torch_bin", False):
            torch.save(model.state_dict(), os.path.join(folder, "pytorch_model.bin"))
            model.config.save_pretrained(folder)
        else:
            model.save_pretrained(folder, **how)
        ours = bert.BertModel.from_pretrained(folder, pooler=False)
        same_outputs(ours, getattr(model, "bert", model))
        again = os.path.join(folder, "again")
        ours.save_pretrained(again)
        same_outputs(ours, transformers.AutoModel.from_pretrained(again))


def test_compare_models__every_kind_of_BERT_goes_there_and_back():
    skip_without("transformers")
    import transformers
    for kind in ("BertModel", "BertForMaskedLM", "BertForPreTraining",
                 "BertForSequenceClassification", "BertForTokenClassification",
                 "BertForQuestionAnswering", "BertForMultipleChoice",
                 "BertForNextSentencePrediction"):
        there_and_back(getattr(transformers, kind)(small_config(1000)))
    there_and_back(transformers.BertModel(small_config(1000), add_pooling_layer=False))


def test_compare_models__shards_pickles_and_half_precision_go_there_and_back():
    skip_without("transformers")
    import transformers
    model = transformers.BertForMaskedLM(small_config(1000))
    there_and_back(model, max_shard_size="30KB")
    there_and_back(model, torch_bin=True)
    model = transformers.BertModel(small_config(1000)).bfloat16()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours = bert.BertModel.from_pretrained(folder)
        same_outputs(ours, model.float())
        ours.save_pretrained(folder)            # float32 now, and config.json must say so
        again = transformers.AutoModel.from_pretrained(folder)
        assert_equal(again.dtype, torch.float32)
        same_outputs(ours, again)


def test_compare_models__entries_for_others_are_handed_on():
    skip_without("transformers")
    import transformers
    config = small_config(1000)
    config.update({"classifier_dropout": .25})
    with tempfile.TemporaryDirectory() as folder:
        transformers.BertModel(config).save_pretrained(folder)
        bert.BertModel.from_pretrained(folder, dropout=.3).save_pretrained(folder)
        again = transformers.AutoConfig.from_pretrained(folder)
    assert_equal((again.classifier_dropout, again.hidden_dropout_prob), (.25, .3))


def test_compare_models__ids_are_equal_there_and_back():
    skip_without("transformers")
    import transformers
    for lower in (True, False):
        for added, settings in ((False, {}), (True, {}),
                                (False, {"strip_accents": not lower}),
                                (False, {"tokenize_chinese_chars": False})):
            with tempfile.TemporaryDirectory() as folder:
                theirs = save_tokenizer(folder, lower, added, **settings)
                ours = data.WordPiece(folder, len(theirs))
                same_ids(ours, theirs)
                again = tempfile.mkdtemp()
                ours.save(again)
                small_config(len(theirs)).save_pretrained(again)
                same_ids(ours, transformers.AutoTokenizer.from_pretrained(again))
                same_ids(data.WordPiece(again, len(theirs)), theirs)


def test_compare_models__vocab_txt_with_settings_or_added_tokens_gives_the_same_ids():
    skip_without("transformers")
    import transformers
    for lower in (True, False):
        tokens = vocabulary(lower)
        later = {"Foo<x>": len(tokens), "[E1]": len(tokens) + 1}
        for settings, added in (({"do_lower_case": lower}, {}),
                                ({"do_lower_case": lower}, later),
                                ({"do_lower_case": lower,
                                  "additional_special_tokens": ["[E1]"]}, later)):
            folder = tempfile.mkdtemp()
            with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8") as file:
                file.writelines(f"{token}\n" for token in tokens)
            for name, content in (("tokenizer_config", settings), ("added_tokens", added)):
                with open(os.path.join(folder, f"{name}.json"), "w") as file:
                    json.dump(content, file)
            theirs = transformers.BertTokenizer.from_pretrained(folder)
            same_ids(data.WordPiece(folder, len(tokens) + len(added)), theirs)


def test_compare_models__minilms_files_agree():
    skip_without("transformers")
    import transformers
    same_ids(data.WordPiece(minilm(), 30522),
             transformers.AutoTokenizer.from_pretrained(minilm()))
