"""4.1 Weight files from strangers: one line, bounded memory, and no code is run."""

import json
import os
import pickle
import tempfile
import time
import warnings
import zipfile

import torch

import bert
import data
from plumbing import safetensors
from tests.checks import assert_equal, assert_raises, skip_in_a_copy
from tests.test_4_1_others_models import load, saved, vocabulary_folder
from tests.world import WORDS, write_file
from tools.running import time_limit

TABLE = "embeddings.word_embeddings.weight"             # [60, 16]
KEY = "encoder.layer.1.attention.self.key.weight"       # [16, 16]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 440\n"


def with_table(tensor):
    """A folder whose pytorch_model.bin has another table of word embeddings."""
    return saved(lambda tensors: {**tensors, TABLE: tensor}, pickled=True)


def message_of(folder):
    """The one line with which a folder is refused."""
    try:
        load(folder)
    except (ValueError, FileNotFoundError) as error:
        return str(error).replace(str(folder), "")
    raise AssertionError("got a model, expected a refusal")


# --- Tensors that are no plain rows of numbers ---

def test_4_1_untrusted_files__only_dense_tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # torch: prototype, beta, deprecated
        kinds = {"sparse_coo": torch.zeros(60, 16).to_sparse(),
                 "sparse_csr": torch.zeros(60, 16).to_sparse_csr(),
                 "nested": torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]),
                 "meta": torch.zeros(60, 16, device="meta"),
                 "quantised": torch.quantize_per_tensor(torch.zeros(60, 16), .1, 0,
                                                        torch.qint8)}
        for word, tensor in kinds.items():
            with assert_raises("pytorch_model.bin", TABLE, word):
                load(with_table(tensor))
    load(saved(lambda t: {**t, "unused": kinds["sparse_coo"]}, pickled=True))


def test_4_1_untrusted_files__an_expanded_tensor_cannot_ask_for_memory():
    # 24 TB asked for by 13 KB: every tensor is one number, repeated by strides of 0.
    def expanded(tensors):
        return {name: torch.zeros(()).expand([819200 if size == 16 else size
                                              for size in t.shape])
                for name, t in tensors.items()}
    with assert_raises("pytorch_model.bin", "expanded"):
        load(saved(expanded, pickled=True, hidden_size=819200))


def test_4_1_untrusted_files__only_floats():
    for dtype in (torch.int8, torch.int64, torch.bool):
        for pickled in (False, True):
            with assert_raises(KEY, "floats", str(dtype)):
                load(saved(lambda t, d=dtype: {**t, KEY: torch.zeros(16, 16, dtype=d)},
                           pickled))
    with assert_raises(KEY, "complex64"):
        load(saved(lambda t: {**t, KEY: torch.zeros(16, 16) * 1j}, pickled=True))


def test_4_1_untrusted_files__NaN_and_inf_are_counted_by_name():
    for pickled in (False, True):
        for value in (float("nan"), float("inf"), -float("inf")):
            def spoil(tensors, value=value):
                tensors[KEY][3, 4:6] = value
                return tensors
            with assert_raises(f"2 of the 256 numbers of {KEY}"):
                load(saved(spoil, pickled))
    # Too large for float32, the encoder's own type.
    with assert_raises("256 of the 256"):
        load(saved(lambda t: {**t, KEY: torch.full((16, 16), 1e300, dtype=torch.float64)}))
    load(saved(lambda t: {**t, "unused": torch.tensor([float("nan")])}))
    load(saved(lambda t: {**t, KEY: torch.full((16, 16), 3e38)}))       # large, but finite


# --- Pickles ---

class Evil:
    """A pickle of this runs a command when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo ran > '{self.path}'",)


def test_4_1_untrusted_files__no_code_is_run():
    ran = os.path.join(tempfile.mkdtemp(), "ran")
    with assert_raises("pytorch_model.bin", ".system", "no code"):
        load(saved(lambda t: {**t, "x": Evil(ran)}, pickled=True))
    folder = saved(pickled=True)
    with open(os.path.join(folder, "pytorch_model.bin"), "wb") as file:
        pickle.dump(Evil(ran), file)
    with assert_raises("pytorch_model.bin"):
        load(folder)
    assert not os.path.exists(ran)


def test_4_1_untrusted_files__a_whole_module_is_refused_with_true_advice():
    folder = saved()
    model, _ = load(folder)
    os.remove(os.path.join(folder, "model.safetensors"))
    torch.save(model, os.path.join(folder, "pytorch_model.bin"))
    with assert_raises("bert.BertModel", "state_dict()"):
        load(folder)


def test_4_1_untrusted_files__a_zip_that_unpacks_to_more_is_a_bomb():
    folder = saved(pickled=True)
    path = os.path.join(folder, "pytorch_model.bin")
    with zipfile.ZipFile(path) as whole:
        records = {name: whole.read(name) for name in whole.namelist()}
    records[f"{next(iter(records)).split('/')[0]}/data/999"] = b"\0" * 30_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in records.items():
            bomb.writestr(name, content)
    with assert_raises("pytorch_model.bin", "unpack", "300"):
        load(folder)


def test_4_1_untrusted_files__a_pickle_cannot_ask_for_memory_by_a_number():
    folder = saved(pickled=True)
    with open(os.path.join(folder, "pytorch_model.bin"), "wb") as file:
        file.write(b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.")     # 2 GB
    start = time.monotonic()
    with assert_raises("bytearray"):
        load(folder)
    assert time.monotonic() - start < 2


def test_4_1_untrusted_files__a_dictionary_of_dictionaries_ends():
    def million(tensors):
        for _ in range(30):
            tensors = {f"a{i}": tensors for i in range(100)}    # 100³⁰ ways through it
        return tensors
    with time_limit(10):        # before it has filled the memory
        load(saved(million, pickled=True))


def test_4_1_untrusted_files__damaged_pickles():
    for content in (b"", b"\0" * 500, b"PK\x03\x04" + b"x" * 500, os.urandom(3000)):
        folder = saved(pickled=True)
        with open(os.path.join(folder, "pytorch_model.bin"), "wb") as file:
            file.write(content)
        with assert_raises("pytorch_model.bin"):
            load(folder)
    for content in ([torch.zeros(2)], torch.zeros(2), {1: torch.zeros(2)}, {}):
        with assert_raises("pytorch_model.bin"):
            load(saved(lambda _, content=content: content, pickled=True))
    folder = saved(pickled=True)
    os.truncate(os.path.join(folder, "pytorch_model.bin"), 9000)
    with assert_raises("pytorch_model.bin", "download it again"):
        load(folder)


# --- What a message may hold ---

def test_4_1_untrusted_files__messages_are_short_and_without_control_characters():
    nasty = "\x1b[31mred\u202e\x07\n" * 2000
    for folder in (
            saved(lambda t: {nasty + "." + name: x / 0 for name, x in t.items()}),
            saved(lambda t: {nasty + "." + name: x / 0 for name, x in t.items()}, True),
            saved(lambda t: {nasty: t[KEY]}), saved(lambda t: {nasty: t[KEY]}, True),
            saved(model_type=nasty), saved(hidden_act=[nasty]), saved(vocab_size=nasty),
            saved(architectures=["Roberta" + nasty])):
        text = message_of(folder)
        assert text.isprintable() and len(text) < 400, ascii(text)[:500]
    header = {nasty: {"dtype": nasty, "shape": [nasty], "data_offsets": [1, 2]}}
    raw = json.dumps(header).encode()
    folder = write_file("", "m", len(raw).to_bytes(8, "little") + raw)
    with assert_raises("shape", "\\x1b[31m"):
        safetensors.load(os.path.join(folder, "m"))


def test_4_1_untrusted_files__messages_about_vocabularies_too():
    nasty = "\x1b[31mred\u202e" * 2000
    for files in ({"tokenizer_config": {"tokenizer_class": nasty}},
                  {"tokenizer_config": {"do_lower_case": nasty}},
                  {"tokenizer_config": {"additional_special_tokens": nasty}},
                  {"tokenizer": {"model": nasty}},
                  {"tokenizer": {"model": {"type": nasty}}},
                  {"added_tokens": {nasty: 3}}, {"added_tokens": {"x": nasty}}):
        try:
            data.WordPiece(vocabulary_folder(**files))
        except ValueError as error:
            text = str(error)
            assert text.isprintable() and len(text) < 500, ascii(text)[:500]
        else:
            raise AssertionError(f"got a tokenizer from {list(files)}")


# --- Files that are not what they seem ---

def test_4_1_untrusted_files__a_Git_LFS_pointer_is_called_one():
    for name in ("config.json", "model.safetensors", "pytorch_model.bin",
                 "model.safetensors.index.json"):
        folder = saved()
        if name != "config.json":
            os.remove(os.path.join(folder, "model.safetensors"))
        with open(os.path.join(folder, name), "w") as file:
            file.write(POINTER)
        with assert_raises(name, "Git LFS", "git lfs pull"):
            load(folder)
    with assert_raises("vocab.txt", "git lfs pull"):
        data.WordPiece(vocabulary_folder(text=POINTER))


def test_4_1_untrusted_files__endless_and_nested_text_files():
    for name in ("config.json", "model.safetensors.index.json"):
        for content in (b"[" * 10 ** 5, b"\xff\xfe{", b"[]",
                        b'{"x":' + b"1" * 10 ** 5 + b"}"):
            folder = saved()
            if name != "config.json":
                os.remove(os.path.join(folder, "model.safetensors"))
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
            assert name in message_of(folder)
    folder = saved()
    os.truncate(os.path.join(folder, "config.json"), 2 ** 26)      # 64 MB of nothing
    with assert_raises("config.json", "bytes"):
        load(folder)
    with assert_raises("vocab.txt", "UTF-8"):
        data.WordPiece(os.path.join(write_file("", "vocab.txt", b"\xff\xfe\xfa"),
                                    "vocab.txt"))


def test_4_1_untrusted_files__a_config_that_claims_a_gigantic_model():
    start = time.monotonic()
    with assert_raises("config.json"):
        load(saved(vocab_size=10 ** 7, hidden_size=10 ** 7, intermediate_size=10 ** 7,
                   num_attention_heads=1, num_hidden_layers=100))
    assert time.monotonic() - start < 30


def test_4_1_untrusted_files__ids_far_apart_cannot_ask_for_memory():
    whole = {"model": {"type": "WordPiece",
                       "vocab": {**{t: i for i, t in enumerate(WORDS)}, "x": 10 ** 12}},
             "pre_tokenizer": {"type": "BertPreTokenizer"},
             "normalizer": {"type": "BertNormalizer"}}
    with assert_raises("tokenizer.json", "ids"):
        data.WordPiece(vocabulary_folder(None, tokenizer=whole))
    with assert_raises("'x'", "1000000000000"):
        data.WordPiece(vocabulary_folder(added_tokens={"x": 10 ** 12}))


def test_4_1_untrusted_files__other_formats_are_named():
    folder = saved()
    os.rename(os.path.join(folder, "model.safetensors"),
              os.path.join(folder, "tf_model.h5"))
    with assert_raises("model.safetensors", "tf_model.h5", error=FileNotFoundError):
        load(folder)


def test_3_1_attention__the_fused_kernel_is_the_same_function():
    skip_in_a_copy("one form of attention")
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    for m in (None, mask):
        assert torch.allclose(bert.fused_attention(q, k, v, m), bert.attention(q, k, v, m),
                              atol=1e-6)


def test_3_1_dropout__of_everything_is_refused():
    with assert_raises("below 1"):
        bert.sixteen_bit_dropout(torch.ones(3), 1.0)
    assert_equal(bert.sixteen_bit_dropout(torch.ones(3), 0.0).tolist(), [1, 1, 1])
