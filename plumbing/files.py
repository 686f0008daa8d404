"""Files that are whole or absent, and digests of what they hold."""

import contextlib
import errno
import hashlib
import json
import math
import os

import torch


@contextlib.contextmanager
def naming(path):
    """Errors of the disk in the body name this path, unless they name one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno or errno.EIO, error.strerror or str(error),
                          path) from None
        raise


def sync(path):
    """Wait until a file's bytes are on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def replace(path, write, keep=None):
    """Let write(temporary path) make a file, and put it at `path` when it is on the disk.

    keep(), just before that, may put the old file elsewhere. If writing fails, the
    temporary file is removed and what was at `path` stays.
    """
    temporary = path + ".new"
    try:
        with naming(temporary):
            write(temporary)
            sync(temporary)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    if keep:
        keep()
    os.replace(temporary, path)


def write_json(path, value):
    def write(temporary):
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
    replace(path, write)


def put(contents):
    """Write {pathlib.Path: bytes}, with their folders.

    Raises ValueError, before anything is written, if another file is at a path.
    """
    for path, content in contents.items():
        if path.exists() and path.read_bytes() != content:
            raise ValueError(f"{path} is there already, and differs; remove it, or give "
                             f"another place")
    for path, content in contents.items():
        def write(temporary, content=content):
            with open(temporary, "wb") as file:
                file.write(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(str(path), write)


def file_digest(path, algorithm="sha256", prefix=b"") -> str:
    """Digest of a file's bytes, in hex."""
    digest = hashlib.new(algorithm, prefix)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_digest(value) -> str:
    """Digest of nested dicts and lists of tensors and plain values, in hex."""
    digest = hashlib.sha256()

    def add(value):
        if torch.is_tensor(value):
            digest.update(f"{value.dtype}{list(value.shape)}".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(memoryview(raw.numpy()))
        elif isinstance(value, dict):
            for key in sorted(value, key=repr):
                digest.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            digest.update(f"[{len(value)}".encode())
            for part in value:
                add(part)
        else:
            digest.update(repr(value).encode())
    add(value)
    return digest.hexdigest()


def size_of(value) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if torch.is_tensor(value):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else value
    return sum(map(size_of, parts)) if isinstance(value, (dict, list, tuple)) else 0


def finite(value):
    """value with None for each NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
