"""Read and write the safetensors format, which holds the weights of most public BERTs.

    8 bytes           N, a little-endian unsigned integer
    N bytes           a JSON object: tensor name -> {"dtype", "shape", "data_offsets"}
    the rest          the raw tensors, little-endian, row by row; offsets count from here

A weight file comes from a stranger, so nothing in its header is trusted: every number is
checked against the size of the file before a byte is read or allocated. Unlike a pickle,
a file that passes can do nothing but hold numbers.
Leaves out: big-endian machines. Tensors of other types (F8_E4M3, U16, C64, …) may stand in
the file, but cannot be loaded.
"""

import json
import math
import os
import struct

import torch

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16,
    "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 16 * 2 ** 20       # bytes; a BERT's header has some 20,000


def shown(value, quote="'"):
    """Something from a file, for a message: control characters escaped, and short."""
    text = repr(value)[1:-1] if isinstance(value, str) else repr(value)
    text = text if len(text) <= 80 else f"{text[:50]} … {text[-20:]}"
    return f"{quote}{text}{quote}" if isinstance(value, str) else text


def read_header(path):
    """Read and check the header alone.

    path -> ({name: (dtype, shape, begin, end)}, offset of the data in the file, in bytes).
    dtype is torch's, or the name of one that we don't read. Raises ValueError if the file
    lies about itself in any way, OSError if it can't be read.
    """
    def refuse(what):
        raise ValueError(f"{path} is not a whole safetensors file: {what}; "
                         f"download it again")

    size = os.path.getsize(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            refuse(f"needed 8 bytes of header length, got {len(prefix)}")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, MAX_HEADER):
            refuse(f"its header claims {length} bytes, at most "
                   f"{min(size - 8, MAX_HEADER)} can be right")
        raw = file.read(length)

    twice = []

    def unique(pairs):          # json would silently keep the last of two equal keys
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            twice.append(max(names, key=names.count))
        return dict(pairs)

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:       # not UTF-8, not JSON, a huge number
        refuse(f"its header is not JSON ({str(error)[:60]})")
    if twice:
        refuse(f"the name {shown(twice[0])} occurs twice in its header")
    if not isinstance(header, dict):
        refuse(f"its header is a JSON {type(header).__name__}, not an object")
    header.pop("__metadata__", None)

    tensors, data = {}, size - 8 - length

    def natural(numbers):       # True is an int in Python, so ask for the very type
        return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2 ** 63
                                                  for n in numbers)

    for name, entry in header.items():
        entry = entry if isinstance(entry, dict) else {}
        dtype, shape = entry.get("dtype"), entry.get("shape")
        offsets = entry.get("data_offsets")
        place = shown(name, "")
        if not isinstance(dtype, str):
            refuse(f"{place} has dtype {shown(dtype)}, needed a name such as F32")
        if not natural(shape) or len(shape) > 8:
            refuse(f"{place} has shape {shown(shape)}, needed a list of at most 8 sizes")
        if (not natural(offsets) or len(offsets) != 2
                or not offsets[0] <= offsets[1] <= data):
            refuse(f"{place} has data_offsets {shown(offsets)}, "
                   f"the file holds {data} bytes of data")
        known = DTYPES.get(dtype)
        needed = math.prod(shape) * (known.itemsize if known else 0)    # never overflows
        if known and offsets[1] - offsets[0] != needed:
            refuse(f"{place} {shown(shape)} {dtype} needs {needed} bytes, "
                   f"its data_offsets give {offsets[1] - offsets[0]}")
        tensors[name] = known or dtype, shape, *offsets

    # The tensors must tile the data: an overlap would alias two weights, a hole or a tail
    # could hide anything. (A file cut short fails above, at data_offsets.)
    position = 0
    for name, (_, _, begin, end) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if begin != position:
            refuse(f"{shown(name, '')} begins at byte {begin} of the data, "
                   f"expected {position}")
        position = end
    if position != data:
        refuse(f"{data - position} bytes at its end belong to no tensor")
    return tensors, 8 + length


def load(path, names=None):
    """Read the tensors called `names` (default: all).   path -> {name: Tensor on CPU}

    Raises ValueError, as read_header() does, and for a tensor of a type not in DTYPES.
    """
    header, start = read_header(path)
    tensors = {}
    with open(path, "rb") as file:
        for name, (dtype, shape, begin, end) in header.items():
            if names is not None and name not in names:
                continue
            if isinstance(dtype, str):
                raise ValueError(f"{path}: {shown(name, '')} has dtype {shown(dtype, '')}, "
                                 f"known are {', '.join(DTYPES)}")
            buffer = torch.empty(end - begin, dtype=torch.uint8)
            file.seek(start + begin)
            # The file may have shrunk since its size was taken: count what really came.
            if file.readinto(memoryview(buffer.numpy())) != end - begin:
                raise ValueError(f"{path} ended inside {shown(name, '')}; download it "
                                 f"again")
            tensors[name] = buffer.view(dtype).reshape(shape)
    return tensors


def save(path, tensors):
    """Write {name: Tensor} as `path`, in the order given, for any safetensors reader."""
    header, parts, position = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [position, position + size]}
        parts.append(tensor)
        position += size
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)        # so the data starts at a multiple of 8 bytes
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in parts:
            file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
