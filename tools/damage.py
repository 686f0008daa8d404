"""Files and flags damaged at random, but the same again for the same seed."""

import contextlib
import copy
import io
import json
import os
import warnings

import torch

from plumbing import folder

# --- Damage ---

ODD_TEXTS = ["", " ", '"', '""', "\t", "\n", "\r", "\0", "\x1b[2J\x07", "\u202e", "\u2028",
             "nan", "inf", "-1", "1e400", "9" * 400, "1_0", "٣", "é", "\ufeff", "🙂",
             "\ud800", "-9223372036854775808", "'", "\\", "%s", "{}", "None", "true", ",",
             "../..", "a" * 5000, "0x10", "5.0000001", "1e-320", "\x85", "ı",
             "a\u0301\u0316" * 500]
ODD_VALUES = [None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, 10 ** 30, 2 ** 63,
              float("nan"), float("inf"), "", "x", "\x1b[2J\u202e\n" * 40, "9" * 400,
              [], {}, [[]], [1, 2], {"value": 1}, {"": None}, ["\ud800"]]


def damaged_bytes(rng, raw):
    raw = bytearray(raw)
    place = rng.randrange(len(raw) + 1)
    size = rng.choice([1, 2, 8, 100, 1000])
    way = rng.randrange(9)
    if way < 3:                         # bits, mostly near the beginning, where headers are
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            if raw:
                at = rng.randrange(len(raw) if rng.random() < .5 else min(len(raw), 200))
                raw[at] ^= 1 << rng.randrange(8)
    elif way == 3:
        del raw[place:]
    elif way == 4:
        del raw[place:place + size]
    elif way == 5:
        raw[place:place] = rng.choice([rng.randbytes(size), bytes(size), b"\xff" * size])
    elif way == 6:                      # a splice of its own bytes
        other = rng.randrange(len(raw) + 1)
        raw[place:place + size] = raw[other:other + size]
    elif way == 7:
        raw[place:place + size] = rng.randbytes(size)
    else:
        return rng.choice([b"", rng.randbytes(500), bytes(500), b"\n" * 9, b"[" * 10 ** 5,
                           b"\xff\xfe" + bytes(raw), b"version https://git-lfs.github.com",
                           bytes(raw) * 2])
    return bytes(raw)


def damaged_text(rng, raw):
    """Lines, cells and encodings."""
    text = raw.decode("utf-8", "replace")
    lines = text.split("\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    way = rng.randrange(10)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(at, lines[other])
    elif way == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif way < 6:                       # a cell
        separator = rng.choice(["\t", " , ", " "])
        cells = lines[at].split(separator)
        k = rng.randrange(len(cells))
        odd = rng.choice(ODD_TEXTS)
        cells[k] = rng.choice([odd, odd + cells[k], cells[k] + odd, '"' + cells[k]])
        if rng.random() < .2:
            del cells[k]
        lines[at] = separator.join(cells)
    elif way == 6:
        place = rng.randrange(len(text) + 1)
        lines = [text[:place] + rng.choice(ODD_TEXTS) + text[place:]]
    elif way == 7:
        return text.encode(rng.choice(["utf-16", "utf-8-sig", "cp1252", "utf-32",
                                       "utf-16-be", "latin-1"]), "replace")
    elif way == 8:
        return text.replace("\n", rng.choice(["\r\n", "\r", "\n\n", " "])).encode()
    else:
        return text.replace("\t", rng.choice([",", ";", "|", " ", '"\t"'])).encode()
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def places(value, found=None):
    """All (container, key) in nested dicts and lists."""
    found = [] if found is None else found
    items = (value.items() if isinstance(value, dict) else
             enumerate(value) if isinstance(value, list) else ())
    for key, part in items:
        found.append((value, key))
        places(part, found)
    return found


def damaged_value(rng, value, odd_values=ODD_VALUES):
    """A copy of nested dicts and lists with one part replaced, removed, added or moved."""
    value = copy.deepcopy(value)
    where = places(value)
    odd = copy.deepcopy(rng.choice(odd_values))
    if not where or rng.random() < .05:
        return odd
    container, key = rng.choice(where)
    way = rng.randrange(6)
    if way < 3:
        container[key] = odd
    elif way == 3:
        del container[key]
    elif way == 4:
        other, there = rng.choice(where)
        container[key] = copy.deepcopy(other[there])
    elif isinstance(container, dict):
        container[rng.choice(["", "x", "digest", "\x1b[2J\n", "9" * 300])] = odd
    else:
        container.insert(key, odd)
    return value


def damaged_json(rng, raw):
    way = rng.randrange(12)
    if way == 0:
        return b"[" * 10 ** 5
    if way == 1:
        return raw.replace(b":", b":" + b"1" * 5000 + b",\"x\":", 1)
    try:
        text = json.dumps(damaged_value(rng, json.loads(raw)))
    except (ValueError, RecursionError):
        return damaged_bytes(rng, raw)
    return text.encode()


def damaged_json_lines(rng, raw):
    lines = raw.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = damaged_json(rng, lines[at])
    return b"\n".join(lines)


def damaged_safetensors(rng, raw):
    """Its header, a JSON object whose length comes first."""
    length = int.from_bytes(raw[:8], "little")
    header = damaged_json(rng, raw[8:8 + length])
    return len(header).to_bytes(8, "little") + header + raw[8 + length:]


def damaged_pickle(rng, raw):
    """A checkpoint or pytorch_model.bin; the digest may fit what it now holds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(io.BytesIO(raw), weights_only=True)
    except Exception:                   # damaged before
        return damaged_bytes(rng, raw)
    tensors = [torch.zeros(3), torch.full((2, 2), float("nan")), torch.zeros(0),
               torch.zeros(4, dtype=torch.int64), torch.zeros(()).expand(10 ** 7),
               torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta")]
    value = damaged_value(rng, value, ODD_VALUES + tensors)
    if isinstance(value, dict) and "digest" in value and rng.random() < .5:
        del value["digest"]
        with contextlib.suppress(Exception):        # meta and sparse tensors have no bytes
            value["digest"] = folder.content_digest(value)
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except Exception:                   # torch cannot write each of these either
        return damaged_bytes(rng, raw)
    return buffer.getvalue()


WAYS = {".json": damaged_json, ".jsonl": damaged_json_lines, ".csv": damaged_text,
        ".txt": damaged_text, ".safetensors": damaged_safetensors, ".pt": damaged_pickle,
        ".bin": damaged_pickle}


def damaged(rng, file, raw):
    own = WAYS[os.path.splitext(file)[1]]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        raw = (own if rng.random() < .6 else damaged_bytes)(rng, raw)
    return raw


# --- Flags ---

def flags_of(parser, never):
    """flags(rng, folder): some of the parser's flags, some with values that they allow."""
    def flags(rng, folder):
        argv = []
        actions = [action for action in parser._actions
                   if action.option_strings and action.option_strings[-1] not in never]
        for action in rng.sample(actions, rng.choice([1, 1, 2, 3, 6])):
            argv.append(action.option_strings[-1])
            if action.nargs == 0:
                continue
            fitting = action.choices or ["1", "2", "0.5", "0", "sst,sts", "cpu", "gvac"]
            argv.append(str(rng.choice(list(fitting))) if rng.random() < .6
                        else odd_argument(rng))
        if rng.random() < .1:
            argv.insert(rng.randrange(len(argv) + 1), odd_argument(rng))
        return argv
    return flags


ODD_ARGUMENTS = ["-1", "1e999", "--", "-", "--los", "1" * 5000, "gpu7", "cuda:99", "meta",
                 "__main__", "os.path", "x\udcff", "a" * 300, "nowhere", ".", "0.0",
                 "sst,sst", "1e-5", "1000000000", "4294967296", "torch", "@x", "sst=1,x=2",
                 "sst=nan", "x.py:f", ":", "torchjd:UPGrad", "torchjd:x,y=z",
                 "privateuseone"]


def odd_argument(rng):
    """What a shell can give; no path out of the folder, or such a run would write there."""
    odd = rng.choice([text for text in ODD_TEXTS if ".." not in text and text != "\ud800"]
                     + ODD_ARGUMENTS)
    return odd.replace("/", "_")


def digest_fits(raw):
    """Was a checkpoint forged, with a digest that fits?"""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(io.BytesIO(raw), weights_only=True)
        digest = value.pop("digest")
        return folder.content_digest(value) == digest
    except Exception:                   # no: it is damaged
        return False
