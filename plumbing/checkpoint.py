"""Find a BERT's weights in a folder that a stranger has filled, and read them as float32.

    model.safetensors                 one file, see plumbing/safetensors.py
    model.safetensors.index.json      tensor name -> shard: several such files
    pytorch_model.bin                 the older form, a pickle of tensors in a zip file
    pytorch_model.bin.index.json      several of these

Trainers wrap models: the same tensor may be called embeddings.word_embeddings.weight,
module.bert.embeddings.word_embeddings.weight, or stand in a dictionary called "state_dict".
So we join the names of nested dictionaries with dots, look for BERT's own names, and take
whatever stands in front of them as the prefix.
No code from a file runs, and nothing is allocated that the file does not really hold.
Leaves out: TensorFlow, Flax and ONNX files, quantised weights, whole pickled modules.
"""

import json
import mmap
import os
import re
import warnings
import zipfile

import torch
from torch import nn

from plumbing import safetensors
from plumbing.safetensors import shown

LARGEST_TEXT = 32 * 2 ** 20             # bytes; the largest tokenizer.json are 20 MB
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ANCHOR = "embeddings.word_embeddings.weight"

# Models whose layers are called as BERT's are, or whose config.json looks like BERT's.
OTHERS = ("Albert", "BertGeneration", "BigBird", "Camembert", "Canine", "ConvBert",
          "Data2Vec", "Deberta", "DistilBert", "Electra", "Ernie", "Esm", "Flaubert",
          "Funnel", "IBert", "LayoutLM", "Longformer", "Luke", "MPNet", "Markup",
          "MegatronBert", "MobileBert", "ModernBert", "Nezha", "NomicBert", "Nystromformer",
          "QDQBert", "RemBert", "RoCBert", "RoFormer", "Roberta", "SqueezeBert", "Splinter",
          "XLM", "XMod", "Yoso")
OTHER_PREFIXES = tuple(name.lower() for name in OTHERS)

# Entries of config.json that change what the same weights compute.
NEEDED_ENTRIES = {"hidden_act": ("gelu", "gelu_python"),
                  "position_embedding_type": ("absolute",), "is_decoder": (False,),
                  "add_cross_attention": (False,), "quantization_config": ()}


# --- Text files ---

def read_text(path):
    """A text file as str, without its byte order mark.   Raises ValueError naming path."""
    with open(path, "rb") as file:
        raw = file.read(LARGEST_TEXT + 1)
    if len(raw) > LARGEST_TEXT:
        raise ValueError(f"{path} has over {LARGEST_TEXT} bytes, more than such a file "
                         f"needs; download it again")
    refuse_pointer(path, raw)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, got {error.reason} at byte "
                         f"{error.start}; download it again") from None


def read_json(path):
    """A file that holds one JSON object, as a dict.   Raises ValueError naming path."""
    text = read_text(path)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {str(error)[:80]}; download it "
                         f"again") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: needed a JSON object, got {type(entries).__name__}; "
                         f"download it again")
    return entries


# What a folder without config.json may be, by what is in it, and what to do.
HINTS = {"snapshots": "give the folder in its snapshots/",
         "0_Transformer": "give its 0_Transformer/",
         "adapter_config.json": "this is an adapter: merge it into its BERT, and save that",
         "bert_config.json": "if its weights are PyTorch's, rename its bert_config.json"}


def missing(folder, name="config.json"):
    """What to say of a file that is not in a model's folder, and what to do   -> str"""
    path = os.path.join(folder, name)
    if os.path.islink(path):            # as in a copied part of Hugging Face's cache
        return f"{path} is a link to a file that is not there; copy it with cp -rL"
    hints = [hint for inside, hint in HINTS.items()
             if os.path.exists(os.path.join(folder, inside))]
    return "; ".join([f"there is no {path}", *hints[:1]])


def refuse_pointer(path, beginning):
    """Raise ValueError if a file's first bytes are those of a Git LFS pointer."""
    if beginning.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is only a Git LFS pointer, a note of where the file is "
                         f"kept; run `git lfs pull` in its folder")


def refuse_other_models(path, entries):
    """Raise ValueError unless the entries of config.json describe a plain BERT encoder.

    Why by name: a RoBERTa has BERT's tensors, names and shapes, and would load without a
    word, but counts its positions from 2.
    """
    kind, classes = entries.get("model_type"), entries.get("architectures")
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        classes = []
    for name in classes:
        if name.startswith(OTHERS):
            kind = name if kind in (None, "bert") else kind
    if kind is None and entries.get("pad_token_id") == 1:
        kind = "RoBERTa"                # its positions start behind its [PAD], which is 1
    if kind not in (None, "bert"):
        name = f" ({shown(classes[0], '')})" if classes and classes[0] != kind else ""
        raise ValueError(f"{path}: needed a BERT, got {shown(kind)}{name}, which is "
                         f"another model; use a BERT, such as bert-base-uncased")
    for key, allowed in NEEDED_ENTRIES.items():
        if entries.get(key) not in (None, *allowed):
            needed = f"be {allowed[0]!r}" if allowed else "be absent"
            raise ValueError(f"{path}: needed a plain BERT encoder, where {key} must "
                             f"{needed}, got {shown(entries[key])}; use other weights")


# --- Weights ---

class NoInitialValues(torch.overrides.TorchFunctionMode):
    """A context in which torch.nn.init does nothing, for a model that is filled later.

    Why: on the meta device normal_() imports torch's compiler. That takes as long as all
    of `import torch`.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


def read(folder, shapes, optional=""):
    """{BERT's name: shape} -> {BERT's name: Tensor, float32 on the CPU}

    Names that begin with `optional` may be missing if the file has none of them. Raises
    FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    path, files = find(folder)
    stored = {name: file for file, names in files.items() for name in names}
    needed = [name for name in shapes if not (optional and name.startswith(optional))]
    places = match(path, stored, needed)
    rest = {name: places.get(name) for name in shapes if name not in needed}
    if not all(rest.values()):          # a pooler without its bias would be no pooler
        places = {name: place for name, place in places.items() if name not in rest}
    tensors = {}
    for file, held in files.items():
        wanted = {name: places[name] for name in shapes
                  if name in places and stored[places[name]] == file}
        for name, place in wanted.items():
            check(file, place, held[place], shapes[name])
        if file.endswith(".safetensors"):
            held = safetensors.load(file, set(wanted.values()))
        else:
            size = sum(held[p].numel() * held[p].element_size() for p in wanted.values())
            if size > os.path.getsize(file):
                raise ValueError(f"{file}: its tensors would take {size} bytes, the file "
                                 f"has {os.path.getsize(file)}, so that some must be "
                                 f"expanded views; save a clone() of each")
        for name, place in wanted.items():
            tensors[name] = finite(file, place, held.pop(place))
    return tensors


def find(folder):
    """folder -> (path to name in messages, {weight file: {stored name: description}})

    The description is a header's (dtype, shape, …), or the tensor itself, not yet read.
    """
    for base, contents in (("model.safetensors", safetensor_headers),
                           ("pytorch_model.bin", pickled_tensors)):
        path = os.path.join(folder, base)
        if os.path.exists(path):
            return path, {path: contents(path)}
        index = path + ".index.json"
        if os.path.exists(index):
            return index, shards(folder, index, contents)
    for base in ("model.safetensors", "pytorch_model.bin"):
        if os.path.islink(os.path.join(folder, base)):
            raise FileNotFoundError(f"needed the weights; {missing(folder, base)}")
    formats = (".h5", ".msgpack", ".onnx", ".gguf", ".bin", ".safetensors", ".pt", ".index")
    others = [shown(name) for name in sorted(os.listdir(folder)) if name.endswith(formats)]
    got = f"only {', '.join(others[:3])}" if others else "neither"
    raise FileNotFoundError(f"needed the weights in {folder} as model.safetensors or "
                            f"pytorch_model.bin, whole or in shards with their index, got "
                            f"{got}; download or save them in one of these forms")


def shards(folder, index, contents):
    """An index file -> {path of a shard: {stored name: description}}"""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(f, str) for f in where.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files; download it "
                         f"again")
    files = {}
    for base in sorted(set(where.values())):
        # A plain name: "../x", "/x" and "C:x" could point at any file of this machine.
        if base in ("", ".", "..") or re.search(r"[/\\:]", base) or not base.isprintable():
            raise ValueError(f"{index} names the shard {shown(base)}, which is no file of "
                             f"its own folder; download it again")
        path = os.path.join(folder, base)
        if not os.path.exists(path):
            raise FileNotFoundError(f"{index} names the shard {shown(base)}, which is not "
                                    f"beside it; download that too")
        files[path] = contents(path)
    for name, base in where.items():
        if name not in files[os.path.join(folder, base)]:
            raise ValueError(f"{index} looks for {shown(name)} in {shown(base)}, which has "
                             f"no such tensor; download both again")
    return files


def safetensor_headers(path):
    """Stored name -> (dtype, shape, begin, end)"""
    with open(path, "rb") as file:
        refuse_pointer(path, file.read(64))
    return safetensors.read_header(path)[0]


def pickled_tensors(path):
    """Stored name -> Tensor, still in the file where the format allows that.

    weights_only: a pickle may otherwise run any code that it likes.
    """
    with open(path, "rb") as file:
        refuse_pointer(path, file.read(64))
        # The one call torch lets a pickle make that takes as much memory as it asks for.
        if os.path.getsize(path):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
                if raw.find(b"bytearray\n") >= 0:
                    raise unreadable(path, "GLOBAL builtins.bytearray")
    size, unpacked = os.path.getsize(path), 0
    try:
        in_zip = zipfile.is_zipfile(path)
        if in_zip:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(record.file_size for record in archive.infolist())
        if unpacked <= size:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")     # torch on sparse and quantised tensors
                loaded = torch.load(path, map_location="cpu", weights_only=True,
                                    mmap=in_zip)
    except MemoryError:
        raise ValueError(f"{path} asks for more memory than there is; use another "
                         f"copy") from None
    except Exception as error:      # torch.load may raise anything on a damaged file
        raise unreadable(path, error) from None
    if unpacked > size:             # torch.save compresses nothing
        raise ValueError(f"{path} would unpack from {size} bytes to {unpacked}, which "
                         f"torch.save never writes; use another copy")
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, needed a dict from "
                         f"names to tensors; save model.state_dict()")
    return flatten(loaded)


def unreadable(path, error):
    """What torch.load said -> a ValueError of one line that says what to do."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked is None:
        return ValueError(f"{path} cannot be read as tensors alone "
                          f"({type(error).__name__}); download it again")
    return ValueError(f"{path} holds more than tensors: it asks for {asked[1][:80]}, and "
                      f"no code from a weight file is run here; save model.state_dict() in "
                      f"the program that made it, or look for a model.safetensors")


def flatten(nested):
    """{"model": {"x": Tensor}, "epoch": 3} -> {"model.x": Tensor}"""
    tensors, seen, todo = {}, set(), [("", nested)]
    while todo:
        prefix, entries = todo.pop()
        # Only once: a dictionary may hold itself, or another a million times.
        if id(entries) in seen or len(prefix) > 200:
            continue
        seen.add(id(entries))
        for key, value in entries.items():
            if isinstance(key, str) and torch.is_tensor(value):
                tensors[prefix + key] = value
            elif isinstance(key, str) and isinstance(value, dict):
                todo.append((f"{prefix}{key}.", value))
    return tensors


def match(path, stored, needed):
    """Stored names -> {BERT's name: stored name}, under the one prefix that has all needed.

    Older files call a layer norm's gain and bias gamma and beta.
    """
    common = {}
    for name in sorted(stored):         # LayerNorm.beta before .bias: the newer name wins
        common[name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias")] = name
    prefixes = [name.removesuffix(ANCHOR) for name in common
                if name == ANCHOR or name.endswith("." + ANCHOR)]
    if not prefixes:
        first = f" (the first is {shown(min(common))})" if common else ""
        raise ValueError(f"{path} holds no BERT: none of its {len(common)} tensors{first} "
                         f"is called {ANCHOR}; use a BERT, such as bert-base-uncased")
    for prefix in prefixes:
        for word in prefix.split("."):
            if word.replace("_", "").lower().startswith(OTHER_PREFIXES):
                raise ValueError(f"{path}: needed a BERT, its tensors are those of another "
                                 f"model, {shown(prefix + ANCHOR)}; use a BERT, such as "
                                 f"bert-base-uncased")
    missing = {prefix: [name for name in needed if prefix + name not in common]
               for prefix in prefixes}
    whole = [prefix for prefix in prefixes if not missing[prefix]]
    if len(whole) > 1:
        raise ValueError(f"{path} holds {len(whole)} BERTs, under {shown(whole[0])} and "
                         f"{shown(whole[1])}; save the one to use by itself")
    if not whole:
        prefix = min(prefixes, key=lambda prefix: len(missing[prefix]))
        first, number = prefix + missing[prefix][0], len(missing[prefix])
        raise ValueError(f"{path} has no tensor {shown(first, '')}, one of {number} that "
                         f"config.json asks for and the file lacks; use a config.json and "
                         f"weights of one BERT")
    return {name.removeprefix(whole[0]): place for name, place in common.items()
            if name.startswith(whole[0])}


def check(path, name, described, shape):
    """Raise ValueError unless a tensor is dense, of floats, and of this shape.

    described: a header's (dtype, shape, …), or a tensor.
    """
    shown_name = shown(name, "")
    if torch.is_tensor(described):
        if (type(described) not in (torch.Tensor, nn.Parameter) or described.is_nested
                or described.layout is not torch.strided or described.is_quantized
                or described.is_meta):
            kind = ("nested" if described.is_nested else "meta" if described.is_meta else
                    "quantised" if described.is_quantized else str(described.layout))
            raise ValueError(f"{path}: {shown_name} must be a dense tensor, got a {kind} "
                             f"one; use another copy of these weights")
        described = described.dtype, list(described.shape)
    dtype, got = described[:2]
    if list(got) != list(shape):
        raise ValueError(f"{path}: {shown_name} must be {list(shape)} by config.json, got "
                         f"{got}; use a config.json and weights of one BERT")
    if dtype not in FLOATS:
        raise ValueError(f"{path}: {shown_name} must hold floats of 16, 32 or 64 bits, got "
                         f"{shown(dtype, '')}; use a copy that is not quantised")


def finite(path, name, tensor):
    """A copy in float32.   Raises ValueError for NaN and infinite numbers."""
    tensor = tensor.detach().to(torch.float32, copy=True,
                                memory_format=torch.contiguous_format)
    if not tensor.sum().isfinite():         # NaN and inf spread; a sum may also overflow
        wrong = tensor.numel() - int(tensor.isfinite().sum())
        if wrong:
            raise ValueError(f"{path}: {wrong} of the {tensor.numel()} numbers of "
                             f"{shown(name, '')} are NaN or infinite; use another copy of "
                             f"these weights")
    return tensor


# --- The heads beside an encoder, as heads.MultitaskBert saves them ---

def head_settings(folder) -> dict:
    """How the model in a run's best/ was made.   Raises FileNotFoundError, ValueError"""
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        raise FileNotFoundError(f"needed the best/ folder of a run; there is no {path}")
    settings = read_json(path).get("multitask")
    if settings is None:
        raise ValueError(f"{path} describes an encoder without heads; give the best/ "
                         f"folder of a run")
    known = {"con": (False, True), "hlh": (False, True), "pool": ("cls", "mean"),
             "sst_loss": ("ce", "mse"), "sts_loss": ("ce", "mse")}
    if not isinstance(settings, dict) or (
            set(settings) - {"trained", "max_length", "cosine"} != set(known)
            or any(settings[name] not in values for name, values in known.items())
            or settings.get("cosine", False) not in (False, True)
            or not isinstance(settings.get("trained", []), list)):
        raise ValueError(f"{path}: multitask must have one of these values for each: "
                         f"{known}, and trained, a list; got {str(settings)[:200]}")
    return settings


def head_names(folder, known, settings) -> set:
    """The tasks that have a head there.

    Raises ValueError if there is none, or one that is not in known, or none for a task
    that was trained by the settings, which are head_settings() of the folder.
    """
    path = os.path.join(folder, "model.safetensors")
    names = {name.split(".")[1] for name in safetensors.read_header(path)[0]
             if name.startswith("heads.")}
    if not names:
        raise ValueError(f"{path} holds no head; give the best/ folder of a run")
    unknown = sorted(names - set(known))
    if unknown:
        raise ValueError(f"{path} has a head for {', '.join(unknown)}, which "
                         f"heads.tasks() does not have; add that Task")
    for name in settings.get("trained", []):
        if name not in list(names):     # list: what is not a name may not be hashable
            raise ValueError(f"{os.path.join(folder, 'config.json')} says that "
                             f"{str(name)[:40]!r} was trained; model.safetensors beside it "
                             f"has heads for {', '.join(sorted(names))}")
    return names


def fill_heads(folder, wanted):
    """Copy the saved tensors into wanted, {name: tensor}.   Raises ValueError"""
    path = os.path.join(folder, "model.safetensors")
    tensors = safetensors.load(path, wanted)
    for name, tensor in wanted.items():
        if name not in tensors:
            raise ValueError(f"{path}: by config.json {name} must be "
                             f"{list(tensor.shape)}, got none")
        check(path, name, tensors[name], tensor.shape)
        tensor.copy_(finite(path, name, tensors[name]))
