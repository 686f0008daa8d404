"""A run's folder and its checkpoints.

    args.json       each setting and its source, versions, digests of data and weights
    metrics.jsonl   a line per step, and one per evaluation
    best/           the best model so far: config.json, vocab.txt, model.safetensors
    last.pt         all that an exact resume needs; before.pt is the one before it
    predictions/    dev and test, in the course's format
    result.json     the dev scores of the best model; only a finished run has it
    tensorboard/    with --tensorboard: metrics.jsonl as event files

A process can be killed at any moment. So every file that a resume reads is written to a
temporary file, fsynced and renamed, which is atomic; only metrics.jsonl is appended to,
fsynced before a checkpoint, and cut back to it by a resume. And a file can be changed by
hand or swapped: args.json holds a digest of itself, and a checkpoint those of args.json and
of the part of metrics.jsonl that it counts.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import warnings

import torch

from plumbing import flags, plugins, reading
from plumbing.console import quoted
from plumbing.files import (
    content_digest,
    file_digest,
    finite,
    naming,
    replace,
    size_of,
    sync,
    write_json,
)

if os.name == "nt":
    import msvcrt
else:
    import fcntl

# --- The folder ---

class Folder:
    """A run's folder. state: what its newest whole checkpoint holds, a dict or None."""

    def __init__(self, path, settings):
        self.path, self.state, self.settings_digest = path, None, settings.get("digest")
        self.created = False    # by this process?
        self.was_there = True   # the folder itself, before it was created
        self.saving = 0.0       # seconds spent on checkpoints
        self.board = None       # a board.Board that gets each line of the log too
        self.metrics = open(self / "metrics.jsonl", "ab")
        try:
            lock(self.metrics)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                self.metrics.close()
                raise ValueError(f"another process is using {path}; wait for its end, or "
                                 f"stop it") from None
            # Some network drives know no locks.
            warnings.warn(f"{path} cannot be locked ({error.strerror}): do not use it from "
                          f"two processes")
        self.metrics_digest = hashlib.sha256()

    def __truediv__(self, name) -> str:
        return os.path.join(self.path, name)

    @classmethod
    def create(cls, path, settings):
        """A new folder with args.json.   Raises ValueError if there is something in it."""
        check_free(path)
        was_there = os.path.isdir(path)
        os.makedirs(path, exist_ok=True)
        settings = {**settings, "digest": content_digest(settings)}
        folder = cls(path, settings)
        folder.created, folder.was_there = True, was_there
        write_json(folder / "args.json", settings)
        return folder

    @classmethod
    def reopen(cls, path, settings):
        """Go on in an existing folder, from its newest whole checkpoint.

        settings: of read_settings(). metrics.jsonl is cut back to that checkpoint. Returns
        a Folder; its state is None if no checkpoint was written yet: the run then starts
        from its beginning. Raises ValueError if there are checkpoints but none is whole, or
        if args.json or metrics.jsonl is not the one that the checkpoint was written with.
        """
        folder = cls(path, settings)
        try:
            folder.read_checkpoint()
            folder.cut_metrics()
        except BaseException:
            folder.metrics.close()
            raise
        return folder

    def read_checkpoint(self):
        found = [name for name in ("last.pt", "before.pt") if os.path.exists(self / name)]
        for name in found:
            self.state = load_checkpoint(self / name)
            if self.state is not None:
                break
            # Out of the way, or it would soon take the place of the one that is whole.
            os.replace(self / name, self / (name + ".damaged"))
            back = "" if name == found[-1] else "; going back to the checkpoint before it"
            print(f"{self / name} is damaged{back}")
        if found and self.state is None:
            raise ValueError(f"no checkpoint in {self.path} can be read "
                             f"({', '.join(found)}); start a new run")
        if self.state and self.state.get("settings_digest") != self.settings_digest:
            raise ValueError(f"{self / 'args.json'} is not the one that {self / name} was "
                             f"written with: one of the two was changed or belongs to "
                             f"another run; put the right one back, or start a new run")
        if not os.path.exists(self / "best") and os.path.exists(self / "best.old"):
            os.replace(self / "best.old", self / "best")
        if self.state:
            self.check_state(self / name)

    def check_state(self, path):
        """Raise ValueError if the checkpoint lacks what this module and loop.py need.

        Its digest is right by now, but only says that somebody wrote it so.
        """
        kinds = {"metrics_bytes": int, "metrics_digest": str, "saving": float, "step": int,
                 "parts": int, "waited": int, "seconds": float, "best": (dict, type(None))}
        if "skipped_in_a_row" in self.state:        # older versions did not count them
            kinds["skipped_in_a_row"] = int
        for name, kind in kinds.items():
            value = self.state.get(name, path)
            if not isinstance(value, kind) or name not in self.state or (
                    kind is int and not 0 <= value < 2 ** 60):
                raise ValueError(f"{path} has no {name} that this version can use; resume "
                                 f"the run with the version that wrote it")
        if self.state["best"] and not os.path.isdir(self / "best"):
            raise ValueError(f"{self / 'best'} is missing, the best model so far, which "
                             f"the run would not train again; put it back, or start a new "
                             f"run")
        self.saving = self.state["saving"]

    def restore(self, restore, state):
        """Give restore() the checkpoint; state() must then be the same.

        Raises ValueError if it does not fit: a digest that is right says nothing of that.
        """
        try:
            restore(self.state)
            found = state()
            saved = {name: self.state[name] for name in found}
            # A machine with other devices has other generators, and may need no loss scale.
            if "random" in found:
                both = found["random"].keys() & saved["random"].keys()
                for one in (found, saved):
                    one["random"] = {device: one["random"][device] for device in both}
            if None in (found.get("scale"), saved.get("scale")):
                found["scale"] = saved["scale"] = None
            wrong = "" if content_digest(found) == content_digest(saved) else "other shapes"
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError,
                ValueError) as error:
            wrong = f"{type(error).__name__}: {str(error)[:80]}"
        if wrong:
            self.metrics.close()
            raise ValueError(f"the checkpoint in {self.path} (last.pt) is whole, but does "
                             f"not fit this run ({wrong}); resume it with the version that "
                             f"wrote it, and its heads.tasks()")

    def cut_metrics(self):
        """Cut metrics.jsonl back to the lines that the checkpoint counts."""
        length = self.state["metrics_bytes"] if self.state else 0
        with open(self / "metrics.jsonl", "rb") as file:
            counted = file.read(length)
        self.metrics_digest.update(counted)
        if self.state and self.metrics_digest.hexdigest() != self.state["metrics_digest"]:
            raise ValueError(f"{self / 'metrics.jsonl'}: its first {length} bytes are not "
                             f"those that were there when the checkpoint was written; put "
                             f"the file back, or start a new run")
        self.metrics.truncate(length)
        self.metrics.seek(length)       # or tell() would go on counting from the old end

    def log(self, line: dict):
        """One line of metrics.jsonl; null stands for NaN and infinity."""
        text = json.dumps(finite(line), allow_nan=False).encode() + b"\n"
        with naming(self / "metrics.jsonl"):
            self.metrics.write(text)
            self.metrics.flush()        # for those who watch: analyze.py --watch, tail -f
        self.metrics_digest.update(text)
        if self.board:
            self.board.add(self.path, line)

    def checkpoint(self, state: dict):
        """Write last.pt; the one that was last becomes before.pt."""
        begin = time.monotonic()
        with naming(self / "metrics.jsonl"):
            self.metrics.flush()
            os.fsync(self.metrics.fileno())
        if self.board:
            self.board.flush()
        state = {**state, "metrics_bytes": self.metrics.tell(), "saving": self.saving,
                 "metrics_digest": self.metrics_digest.hexdigest(),
                 "settings_digest": self.settings_digest}
        state["digest"] = content_digest(state)

        def write(temporary):
            try:
                torch.save(state, temporary)
            except RuntimeError as error:       # torch's word for a disk that is full
                full = shutil.disk_usage(self.path).free < 1 << 20
                code = errno.ENOSPC if full else errno.EIO
                raise OSError(code, str(error).split("\n")[0], temporary) from None

        def keep():
            if os.path.exists(self / "last.pt"):
                os.replace(self / "last.pt", self / "before.pt")
        replace(self / "last.pt", write, keep)
        self.saving += time.monotonic() - begin

    def replace_folder(self, name, write):
        """Let write(temporary folder) make a folder; put it in the place of an old one.

        No file system swaps two folders in one step; reopen() repairs what a kill leaves.
        """
        temporary, old = self / (name + ".new"), self / (name + ".old")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with naming(temporary):
                write(temporary)
                for file in os.listdir(temporary):
                    sync(os.path.join(temporary, file))
        except BaseException:           # a full disk needs the room
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        if os.path.exists(self / name):
            os.replace(self / name, old)
        os.replace(temporary, self / name)
        shutil.rmtree(old, ignore_errors=True)

    def close(self):
        """If no step was ever logged, the start failed: remove what create() has made."""
        if self.board:
            self.board.close()
        nothing = self.created and self.metrics.tell() == 0
        with contextlib.suppress(OSError):      # lines that the last checkpoint lacks
            self.metrics.close()
        if nothing:
            for name in ("args.json", "metrics.jsonl"):
                if os.path.exists(self / name):
                    os.remove(self / name)
            if not self.was_there and not os.listdir(self.path):
                os.rmdir(self.path)


def lock(file):
    """Raise OSError if another process has locked `file`; a process's end unlocks it."""
    if os.name != "nt":
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:           # one byte far beyond the end, so that the file can still be read
        here = file.tell()
        file.seek(1 << 40)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        finally:
            file.seek(here)


def check_free(path):
    """Raise ValueError if `path` holds anything but the remains of a killed start."""
    remains = {"args.json.new", "metrics.jsonl"}
    started = os.path.join(path, "metrics.jsonl")
    if os.path.lexists(path) and not (
            os.path.isdir(path) and set(os.listdir(path)) <= remains
            and not (os.path.exists(started) and os.path.getsize(started))):
        kind = ("holds another run" if os.path.exists(os.path.join(path, "args.json"))
                else "holds files" if os.path.isdir(path) else "is no folder")
        resume = f", or go on with it by --resume {quoted(path)}" if "run" in kind else ""
        raise ValueError(f"--out {path} {kind}; give a new folder{resume}")


def new_path(words) -> str:
    """A path under runs/ for a run of today, such as runs/gvac-con-20260101-120000."""
    name = "-".join(re.sub(r"\W+", "-", word) for word in words)
    return unused(os.path.join("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"))


def unused(path) -> str:
    """path, or path-2, path-3, …: the first that does not exist."""
    number, candidate = 1, path
    while os.path.lexists(candidate):
        number += 1
        candidate = f"{path}-{number}"
    return candidate


def new_settings(args, source, files, machine) -> dict:
    """args.json: each value and where it is from; the machine; digests of what is read."""
    return {"args": {name: {"value": value, "from": source[name]}
                     for name, value in vars(args).items()},
            "machine": machine,
            "digests": {name: file_digest(path) for name, path in files.items()}}


def read_settings(path) -> dict:
    """args.json of the run at `path`.   Raises ValueError if there is none."""
    file = os.path.join(path, "args.json")
    settings = reading.read_json(file, {"args": dict, "digests": dict, "machine": dict})
    for name, entry in settings["args"].items():
        reading.check_fields(f"{file}, {name}", entry, {"value": object, "from": str},
                             only=True)
    without = {key: value for key, value in settings.items() if key != "digest"}
    if settings.get("digest", content_digest(without)) != content_digest(without):
        raise ValueError(f"{file} was changed after the run had written it; put the old "
                         f"one back, or start a new run")
    return settings


def compare(settings, path, files, machine, mended=False):
    """Is this what the run at `path` was started with?   Raises ValueError naming a file

    files: {name: path} of all that the run reads now; machine: what a result may depend on.
    Another machine, or other versions, are only a warning; so are other files of a
    treatment if `mended`, that is, if --option was given again.
    """
    found = {name: file_digest(file) for name, file in files.items()}
    if settings["machine"] and "bert.py" not in settings["machine"]:
        # An older version did not look at what else a treatment or tokenizer reads.
        found = {name: digest for name, digest in found.items() if name in
                 settings["digests"] or not name.endswith((".py", "tokens_map.json"))}
    changed = [name for name in {**found, **settings["digests"]}
               if settings["digests"].get(name) != found.get(name)]
    own = [name for name in changed if name.startswith(os.path.join("option", ""))]
    if changed and not (mended and changed == own):
        again = " give --option again to go on with the new ones," if changed == own else ""
        raise ValueError(f"{', '.join(sorted(changed))}: not what the run in {path} was "
                         f"started with; put the old files back,{again} or start a new run")
    before = settings["machine"]
    changed = [name for name, value in before.items() if machine.get(name) != value]
    code = own + [name for name in changed if name.endswith(".py")]
    for what in [*([f"changed since the run began: {', '.join(code)}"] if code else []),
                 *(f"{name} is {machine.get(name)}, was {before[name]}"
                   for name in changed if name not in code)]:
        warnings.warn(f"{what}; what follows may not be bit for bit what it would have "
                      f"been", stacklevel=2)


def values_of(settings, path, parser) -> dict:
    """{flag's name: value} of an args.json, checked by the parser of its command."""
    values = {name: entry["value"] for name, entry in settings["args"].items()}
    for action in parser._actions if parser else []:
        if action.dest in values and not flags.accepts(action, values[action.dest]):
            needed = ("tasks that heads.tasks() has, in its order" if action.dest == "tasks"
                      else f"a value that {action.option_strings[-1]} allows")
            raise reading.mistake(os.path.join(path, "args.json"), needed,
                                  values[action.dest])
    return values


def resumed(args, source, path, parser=None) -> tuple:
    """Settings of the run at `path`, after a check that nothing else was asked for.

    args, source: {flag's name: value}, {name: "given" or where it is from} of this command.
    Returns ({name: value} of the run, its args.json). A flag that is newer than the run
    takes its default. Raises ValueError for a flag that differs, or is newer and given, or
    that is unknown now, or that has a value which the parser would not take.
    """
    if not os.path.exists(os.path.join(path, "args.json")):
        raise ValueError(f"--resume {path} is not the folder of a run: it has no "
                         f"args.json; give a folder that a run has made")
    settings = read_settings(path)
    values = values_of(settings, path, parser)
    unknown = sorted(set(values) - set(args))
    if unknown:
        raise ValueError(f"--resume {path}: that run has settings which this version does "
                         f"not know ({', '.join(unknown)}); resume it with the program or "
                         f"version that wrote it")
    for name, value in args.items():
        flag = f"--{name.replace('_', '-')}"
        if name not in values and source[name] == "given" and name != "resume":
            raise ValueError(f"{flag} is newer than the run in {path}; leave it out, or "
                             f"start a new run")
        elif name not in values:
            values[name] = value
        elif name in ("data", "weights") or name == "option" and (
                plugins.short(value) == plugins.short(values[name])):
            # They may have moved: their digests are compared.
            values[name] = value if source[name] == "given" else values[name]
        elif source[name] == "given" and name != "resume" and values[name] != value:
            raise ValueError(f"{flag} {value} differs from the run in {path}, which has "
                             f"{values[name]}; leave it out, or start a new run")
    return values, settings


def load_checkpoint(path):
    """-> the state, or None if the file is damaged. weights_only: it can run no code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if size_of(state) > os.path.getsize(path):
            return None     # a tensor of stride 0 asks for any amount of memory
        digest = state.pop("digest")
        return state if content_digest(state) == digest else None
    except (PermissionError, MemoryError):
        raise               # that is no fault of the file's
    except Exception:       # cut short, overwritten, not ours: damaged one way or another
        return None
