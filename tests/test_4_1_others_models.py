"""4.1 Other people's models: a BERT loads, whatever wraps it; what is none is named."""

import json
import os
import tempfile
import warnings

import torch

import bert
import data
from plumbing import safetensors, sources, vocabulary
from tests.checks import assert_equal, assert_raises
from tests.world import WORDS, small_bert

POOLER = ("pooler.dense.weight", "pooler.dense.bias")


def saved(change=lambda tensors: tensors, pickled=False, **entries):
    """A folder with a tiny BERT; change: {name: Tensor} -> what is saved instead.

    entries change config.json; None removes one.
    """
    folder = tempfile.mkdtemp(prefix="minbert-model-")
    small_bert().save_pretrained(folder)
    path = os.path.join(folder, "model.safetensors")
    tensors = change(safetensors.load(path))
    if pickled:
        os.remove(path)
        torch.save(tensors, os.path.join(folder, "pytorch_model.bin"))
    else:
        safetensors.save(path, tensors)
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        config = {**json.load(file), **entries}
    with open(path, "w", encoding="utf-8") as file:
        json.dump({k: v for k, v in config.items() if v is not None}, file)
    return folder


def load(folder, **more):
    """-> (BertModel, the texts of all warnings)"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = bert.BertModel.from_pretrained(folder, **more)
    return model, [str(w.message) for w in caught]


def assert_same_model(folder, **more):
    """The folder must load without a warning, as exactly the tiny BERT."""
    model, said = load(folder, **more)
    assert_equal(said, [])
    for name, tensor in small_bert().state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def renamed(prefix):
    return lambda tensors: {prefix + name: t for name, t in tensors.items()}


def without_pooler(tensors):
    return {name: t for name, t in tensors.items() if name not in POOLER}


# --- Which model ---

def test_4_1_others_models__what_is_no_BERT_is_refused_by_its_name():
    for kind in ("roberta", "xlm-roberta", "electra", "distilbert", "albert", "deberta-v2",
                 "mpnet", "modernbert"):
        with assert_raises("config.json", kind, "needed a BERT"):
            load(saved(model_type=kind))
    for entries, word in (
            ({"model_type": None, "architectures": ["RobertaForMaskedLM"]}, "Roberta"),
            ({"architectures": ["ElectraModel"]}, "ElectraModel"),
            ({"is_decoder": True}, "is_decoder"),
            ({"add_cross_attention": True}, "add_cross_attention"),
            ({"position_embedding_type": "relative_key"}, "relative_key"),
            ({"hidden_act": "gelu_new"}, "gelu_new"),
            ({"quantization_config": {"bits": 4}}, "quantization_config")):
        with assert_raises("config.json", word):
            load(saved(**entries))


def test_4_1_others_models__the_name_is_read_before_a_weight():
    folder = saved(model_type="roberta")
    os.remove(os.path.join(folder, "model.safetensors"))
    with assert_raises("roberta"):
        load(folder)


def test_4_1_others_models__without_model_type_the_tensors_decide():
    silent = {"model_type": None, "architectures": None}
    assert_same_model(saved(**silent))
    assert_same_model(saved(renamed("bert."), **silent))
    for prefix in ("roberta.", "electra.", "module.xlm_roberta.", "distilbert."):
        with assert_raises("needed a BERT", prefix):
            load(saved(renamed(prefix), **silent))
    with assert_raises("RoBERTa"):
        load(saved(pad_token_id=1, **silent))


# --- Names ---

def test_4_1_others_models__any_wrappers_prefix():
    for prefix in ("bert.", "module.", "module.bert.", "model.", "_orig_mod.",
                   "0.auto_model.", "encoder.text.bert."):
        assert_same_model(saved(renamed(prefix)))
        assert_same_model(saved(renamed(prefix), pickled=True))


def test_4_1_others_models__any_nesting():
    for wrap in (lambda t: {"state_dict": t, "epoch": 3},
                 lambda t: {"model": {"module": renamed("bert.")(t)}, "lr": {"x": 1}},
                 lambda t: {"model": t, "state_dict": t}):      # the same one twice
        assert_same_model(saved(wrap, pickled=True))
    itself = {}
    itself["itself"] = itself
    assert_same_model(saved(lambda t: {**t, "loop": itself}, pickled=True))


def test_4_1_others_models__two_BERTs_in_one_file_are_refused():
    def two(tensors):
        return {**renamed("model.")(tensors), **renamed("ema.")(tensors)}
    with assert_raises("2 BERTs", "'model.'", "'ema.'"):
        load(saved(two))


def test_4_1_others_models__a_missing_tensor_is_named_as_in_the_file():
    def cut(tensors):
        return {"model." + n: t for n, t in tensors.items() if "layer.1." not in n}
    with assert_raises("no tensor model.encoder.layer.1.", "one of 16"):
        load(saved(cut))
    with assert_raises("no BERT", "'x'"):
        load(saved(lambda tensors: {"x": torch.zeros(2)}))


def test_4_1_others_models__what_nobody_needs_may_have_any_type():
    folder = saved(lambda t: {**t, "unused": torch.zeros(2, dtype=torch.uint8)})
    path = os.path.join(folder, "model.safetensors")
    with open(path, "rb") as file:
        raw = file.read()
    for dtype in (b"F8", b"C9"):                # two letters, to keep the header's length
        with open(path, "wb") as file:
            file.write(raw.replace(b'"U8"', b'"' + dtype + b'"'))
        assert_same_model(folder)


def test_4_1_others_models__half_and_double_precision_become_float32():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for pickled in (False, True):
            model, _ = load(saved(lambda t, d=dtype: {n: x.to(d) for n, x in t.items()},
                                  pickled))
            weight = model.word_embeddings.weight
            assert_equal(weight.dtype, torch.float32)
            exact = small_bert().word_embeddings.weight
            assert torch.equal(weight, exact.to(dtype).float())


# --- No pooler ---

def test_4_1_others_models__a_missing_pooler_starts_at_random_with_one_warning():
    model, said = load(saved(without_pooler))
    assert len(said) == 1 and "pooler" in said[0] and "--pool mean" in said[0]
    assert model.pooler.weight.std() > 0 and bool((model.pooler.bias == 0).all())


def test_4_1_others_models__a_pooler_that_nobody_needs_is_not_missed():
    model, said = load(saved(without_pooler), pooler=False)
    assert_equal((said, model.pooler), ([], None))
    hidden, pooled = model.encode(model.embed(torch.tensor([[2, 5, 3]])))
    assert hidden.shape == (1, 3, 16) and pooled is None
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)               # and none is made up on the way out
    assert not any(name in safetensors.load(os.path.join(folder, "model.safetensors"))
                   for name in POOLER)
    assert_same_model(saved(), pooler=False)    # one that is there is kept


# --- Shards ---

def sharded(pickled=False):
    """A tiny BERT in two shards.   -> (folder, path of the index, its weight_map)"""
    folder = saved(pickled=pickled)
    base = "pytorch_model.bin" if pickled else "model.safetensors"
    path = os.path.join(folder, base)
    tensors = torch.load(path) if pickled else safetensors.load(path)
    os.remove(path)
    files = {name: f"part-{i % 2}-{base}" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        part = {name: t for name, t in tensors.items() if files[name] == file}
        if pickled:
            torch.save(part, os.path.join(folder, file))
        else:
            safetensors.save(os.path.join(folder, file), part)
    write_index(path + ".index.json", files)
    return folder, path + ".index.json", files


def write_index(path, files):
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"metadata": {}, "weight_map": files}, file)


def test_4_1_others_models__shards_of_both_kinds():
    assert_same_model(sharded()[0])
    assert_same_model(sharded(pickled=True)[0])


def test_4_1_others_models__a_missing_shard_is_named():
    folder, _, _ = sharded()
    os.remove(os.path.join(folder, "part-1-model.safetensors"))
    with assert_raises("index.json", "part-1-model.safetensors", error=FileNotFoundError):
        load(folder)


def test_4_1_others_models__a_shard_stays_in_its_folder():
    folder, index, files = sharded()
    for escape in ("../x", "/etc/passwd", "a\\b", "C:x", "..", "", "\x1b[31m"):
        write_index(index, {**files, "x": escape})
        with assert_raises("index.json", "own folder"):
            load(folder)
    for wrong in (3, {"x": 3}, None):
        write_index(index, wrong)
        with assert_raises("index.json", "weight_map"):
            load(folder)
    write_index(index, {**files, "x": "part-0-model.safetensors"})
    with assert_raises("'x'", "part-0"):
        load(folder)


# --- config.json ---

def test_4_1_others_models__config_with_a_byte_order_mark():
    folder = saved()
    path = os.path.join(folder, "config.json")
    with open(path, "rb") as file:
        raw = file.read()
    with open(path, "wb") as file:
        file.write(b"\xef\xbb\xbf" + raw)
    assert_same_model(folder)


def test_4_1_others_models__impossible_sizes_get_one_line():
    for entries, word in (({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
                          ({"max_position_embeddings": 2}, "max_position_embeddings"),
                          ({"num_hidden_layers": 500}, "num_hidden_layers"),
                          ({"vocab_size": 10 ** 300}, "vocab_size"),
                          ({"vocab_size": "\x1b" * 10 ** 5}, "\\x1b"),
                          ({"vocab_size": None}, "vocab_size is missing"),
                          ({"hidden_size": 10 ** 7, "num_attention_heads": 1}, "10000000")):
        with assert_raises("config.json", word):
            load(saved(**entries))
    with assert_raises("hidden_dropout_prob"):
        load(saved(), dropout=1.0)


def test_4_1_others_models__weights_with_one_segment_cannot_join_pairs():
    model = small_bert(type_vocab_size=1)
    model.embed(torch.tensor([[1, 2]]))
    with assert_raises("type_vocab_size 1", "--con"):
        model.embed(torch.tensor([[1, 2]]), torch.tensor([[0, 1]]))


def test_4_1_others_models__entries_for_others_are_handed_on():
    folder = saved(pad_token_id=0, classifier_dropout=.25, torch_dtype="float16",
                   auto_map={"AutoModel": "code.py"})
    load(folder)[0].save_pretrained(folder)
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        entries = json.load(file)
    assert_equal(entries["classifier_dropout"], .25)
    assert "torch_dtype" not in entries and "auto_map" not in entries


# --- Vocabularies ---

def vocabulary_folder(tokens=WORDS, text=None, **files):
    """A folder with vocab.txt (unless tokens is None) and JSON files; text replaces it."""
    folder = tempfile.mkdtemp(prefix="minbert-vocabulary-")
    if tokens is not None:
        text = "".join(f"{token}\n" for token in tokens) if text is None else text
        with open(os.path.join(folder, "vocab.txt"), "wb") as file:
            file.write(text.encode())
    for name, content in files.items():
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as file:
            json.dump(content, file)
    return folder


def tokenizer_json(tokens, added=(), **normalizer):
    return {"added_tokens": list(added), "pre_tokenizer": {"type": "BertPreTokenizer"},
            "normalizer": {"type": "BertNormalizer", **normalizer},
            "model": {"type": "WordPiece", "vocab": {t: i for i, t in enumerate(tokens)}}}


def split(folder, text, **more):
    """The tokens of a text, by the tokenizer in a folder."""
    tokenizer = data.WordPiece(folder, **more)
    return [tokenizer.tokens[i] for i in tokenizer(text)]


CASED = [*WORDS, "The", "Cat", "é", "café", "cafe", "你", "你好"]


def test_4_1_vocabulary__case_and_accents_as_tokenizer_config_says():
    for settings, expected in (
            ({}, "the cat cafe 你 [UNK]"),
            ({"do_lower_case": False}, "The Cat café 你 [UNK]"),
            ({"do_lower_case": False, "strip_accents": True}, "The Cat cafe 你 [UNK]"),
            ({"strip_accents": False}, "the cat café 你 [UNK]"),
            ({"tokenize_chinese_chars": False}, "the cat cafe 你好")):
        folder = vocabulary_folder(CASED, tokenizer_config=settings)
        assert_equal(" ".join(split(folder, "The Cat café 你好")), expected, settings)
    assert_equal(split(os.path.join(folder, "vocab.txt"), "你好"), ["你好"], "by the file")


def test_4_1_vocabulary__tokenizer_json_alone():
    for case, expected in ((True, ["the", "cat"]), (False, ["The", "Cat"])):
        folder = vocabulary_folder(None, tokenizer=tokenizer_json(CASED, lowercase=case))
        assert_equal(split(folder, "The Cat"), expected)
    folder = vocabulary_folder(None, tokenizer=tokenizer_json(CASED, lowercase=True),
                               tokenizer_config={"do_lower_case": False})
    assert_equal(split(folder, "The Cat"), ["The", "Cat"], "tokenizer_config.json wins")
    with assert_raises("vocab.txt", "tokenizer.json", error=FileNotFoundError):
        data.WordPiece(tempfile.mkdtemp())


def test_4_1_vocabulary__a_dangling_link_is_called_one():
    for name in ("config.json", "vocab.txt", "model.safetensors") * (os.name == "posix"):
        folder = saved()
        data.WordPiece(vocabulary_folder()).save(folder)
        os.remove(os.path.join(folder, name))
        os.symlink("nowhere", os.path.join(folder, name))
        with assert_raises(name, "a link to a file that is not there", "cp -rL",
                           error=FileNotFoundError):
            bert.BertModel.from_pretrained(folder)
            data.WordPiece(folder)
    for inside, hint in (("snapshots", "snapshots/"), ("0_Transformer", "0_Transformer/"),
                         ("bert_config.json", "rename"), ("adapter_config.json", "merge")):
        os.mkdir(os.path.join(root := tempfile.mkdtemp(), inside))
        with assert_raises("config.json", hint):
            sources.find_weights(root)
    file = os.path.join(saved(), "model.safetensors")
    with assert_raises(file, "is a file", "the folder"):
        sources.find_weights(file)


def test_4_1_vocabulary__other_tokenizers_are_refused_by_name():
    for kind in ("RobertaTokenizer", "BertJapaneseTokenizer", "T5TokenizerFast"):
        with assert_raises("tokenizer_config.json", kind):
            data.WordPiece(vocabulary_folder(tokenizer_config={"tokenizer_class": kind}))
    japanese = {"tokenizer_class": "BertJapaneseTokenizer"}
    with assert_raises("config.json", "BertJapaneseTokenizer"):
        data.WordPiece(vocabulary_folder(config=japanese, tokenizer_config={}))
    data.WordPiece(vocabulary_folder(config=japanese, tokenizer_config={
        "tokenizer_class": "BertTokenizer"}))
    unclean = tokenizer_json(WORDS, clean_text=False)
    with assert_raises("tokenizer.json", "clean_text"):
        data.WordPiece(vocabulary_folder(None, tokenizer=unclean, tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast"}))
    for part, value in (("model", {"type": "BPE"}), ("normalizer", {"type": "NFC"}),
                        ("pre_tokenizer", {"type": "ByteLevel"})):
        whole = {**tokenizer_json(WORDS), part: value}
        with assert_raises("tokenizer.json", value["type"]):
            data.WordPiece(vocabulary_folder(None, tokenizer=whole))


def test_4_1_vocabulary__a_cased_one_without_settings_gets_a_warning():
    tokens = [*WORDS, *(word.capitalize() for word in WORDS[10:])]
    for settings, number in (({}, 1), ({"tokenizer_config": {"do_lower_case": True}}, 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data.WordPiece(vocabulary_folder(tokens, **settings))
        assert_equal(len(caught), number)


def test_4_1_vocabulary__added_tokens_are_found_in_the_text():
    n = len(WORDS)
    raw = {"content": "[E1]", "id": n, "normalized": False, "special": True}
    later = {"content": "Foo<x>", "id": n + 1, "normalized": True}
    whole = {"content": "cat", "id": WORDS.index("cat"), "single_word": True}
    for folder in (
            vocabulary_folder(tokenizer=tokenizer_json(WORDS, [raw, later, whole])),
            vocabulary_folder(tokenizer_config={"added_tokens_decoder": {
                str(t["id"]): t for t in (raw, later, whole)}})):
        again = tempfile.mkdtemp()
        data.WordPiece(folder, n + 2).save(again)
        for place in (folder, again):
            assert_equal(split(place, "a[E1]b FOO<X>c [e1]"),
                         ["a", "[E1]", "b", "Foo<x>", "c", "[UNK]", "[UNK]", "[UNK]"])
            assert_equal(split(place, "cat [SEP]"), ["cat", *["[UNK]"] * 3])
    folder = vocabulary_folder(added_tokens={"[E1]": n},
                               tokenizer_config={"additional_special_tokens": ["[E1]"]})
    assert_equal(split(folder, "a[E1]b"), ["a", "[E1]", "b"])
    named = {"additional_special_tokens": ["cat", "[E1]"], "sep_token": {"content": "b"}}
    folder = vocabulary_folder(special_tokens_map=named)
    assert_equal(split(folder, "a[E1]cats"), ["a", "[E1]", "cat", "[UNK]"])
    assert_equal(data.WordPiece(folder).sep, WORDS.index("b"))
    folder = vocabulary_folder(special_tokens_map=named, tokenizer_config={
        "added_tokens_decoder": {}})
    assert_equal(data.WordPiece(folder).sep, WORDS.index("[SEP]"), "new files have it all")
    for place in (n + 1, 5, -1, "x"):           # a hole, another token's, no number
        with assert_raises("[E1]"):
            data.WordPiece(vocabulary_folder(added_tokens={"[E1]": place}))


def test_4_1_vocabulary__added_tokens_are_no_part_of_a_word():
    folder = vocabulary_folder(added_tokens={"##19": len(WORDS), "fox": len(WORDS) + 1})
    assert_equal(split(folder, "cat19 fox"), ["[UNK]", "fox"])
    assert_equal(split(folder, "cat##19"), ["cat", "##19"])
    folder = vocabulary_folder(tokenizer_config={"additional_special_tokens": ["fox"]})
    assert_equal(split(folder, "Fox fox"), ["[UNK]", "fox"], "special: as it is written")


def test_4_1_vocabulary__byte_order_mark_line_ends_and_blank_lines_at_the_end():
    text = "\n".join(WORDS)
    for changed in ("\ufeff" + text, text + "\n", text + "\n\n \n",
                    text.replace("\n", "\r\n")):
        tokenizer = data.WordPiece(vocabulary_folder(text=changed), len(WORDS))
        assert_equal(tokenizer.tokens, WORDS)


def test_4_1_vocabulary__what_does_not_fit_the_table_is_refused():
    n = len(WORDS)                              # 60
    for tokens, rows in ((WORDS, n - 1), (WORDS[:40] + WORDS[41:], n), (WORDS, n + 5)):
        with assert_raises("vocab.txt", str(len(tokens)), str(rows)):
            data.WordPiece(vocabulary_folder(tokens), rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.WordPiece(vocabulary_folder(), 64)
    assert len(caught) == 1 and "padding" in str(caught[0].message)
    with assert_raises("line 31", "blank"):
        data.WordPiece(vocabulary_folder([*WORDS[:30], "", *WORDS[31:]]), n)
    with assert_raises("no [PAD]", "0 lines"):
        data.WordPiece(vocabulary_folder([]))
    with assert_raises("2 [SEP]"):
        data.WordPiece(vocabulary_folder([*WORDS, "[SEP]"]))


def test_4_1_vocabulary__of_two_equal_lines_the_last_counts():
    tokenizer = data.WordPiece(vocabulary_folder([*WORDS, "cat"]), len(WORDS) + 1)
    assert_equal(tokenizer("cat"), [len(WORDS)])


def test_4_1_vocabulary__two_files_that_differ_are_refused():
    other = [*WORDS[:30], WORDS[31], WORDS[30], *WORDS[32:]]
    for tokens in (other, WORDS[:-1], [*WORDS, "more"]):
        with assert_raises("tokenizer.json", "vocab.txt", "differ"):
            data.WordPiece(vocabulary_folder(tokens, tokenizer=tokenizer_json(WORDS)))


def test_4_1_vocabulary__save_writes_what_was_loaded():
    folder = vocabulary_folder(CASED, tokenizer_config={"do_lower_case": False})
    tokenizer, again = data.WordPiece(folder), tempfile.mkdtemp()
    for name in os.listdir(folder):
        os.remove(os.path.join(folder, name))
    tokenizer.save(again)
    assert_equal(split(again, "The Cat café"), ["The", "Cat", "café"])


def test_4_1_vocabulary__decompose_is_NFD_in_linear_time():
    import random
    import unicodedata
    rng = random.Random(0)
    pool = [chr(c) for c in range(0x300, 0x370)]
    pool += list("aé각가\u034f\u302e\u0f71\U0001d165ệ")
    for _ in range(300):
        text = "".join(rng.choices(pool, k=rng.randrange(40)))
        assert_equal(vocabulary.decompose(text), unicodedata.normalize("NFD", text))
    # Sorted by insertion, as CPython does it, this takes 13 seconds.
    assert_equal(data.basic_tokens("a" + "\u0301\u0316" * 65000), ["a"])
