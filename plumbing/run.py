"""A run's folder, its checkpoints, and what it tells while it works.

    args.json       each setting and its source, versions, digests of data and weights
    metrics.jsonl   a line a step, and an evaluation line an epoch
    best/           the best model so far: config.json, vocab.txt, model.safetensors
    last.pt         all that an exact resume needs; before.pt is the one before it
    predictions/    dev and test, in the course's format
    result.json     the dev scores of the best model; only a finished run has it

A process can be killed at any moment. So every file that a resume reads is written beside
its place, synced to the disk and then renamed, one indivisible step of the file system.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import warnings

import torch



# --- Files that are whole or absent ---

def sync(path):
    """Wait until a file's bytes are on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def replace(path, write, keep=None):
    """Let write(temporary path) make a file, and put it at `path` when it is on the disk.

    keep(), just before that, may put the old file elsewhere.
    """
    temporary = path + ".new"
    write(temporary)
    sync(temporary)
    if keep:
        keep()
    os.replace(temporary, path)


def write_json(path, value):
    def write(temporary):
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
    replace(path, write)


def file_digest(path, algorithm="sha256", prefix=b""):
    """Digest of a file's bytes, in hex."""
    digest = hashlib.new(algorithm, prefix)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_digest(value):
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


# --- The folder ---

class Folder:
    """A run's folder. state: what its newest whole checkpoint holds, a dict or None."""

    def __init__(self, path):
        self.path, self.state, self.metrics, self.new = path, None, None, False
        self.saving = 0.0       # seconds spent on checkpoints

    def __truediv__(self, name):
        return os.path.join(self.path, name)

    @classmethod
    def open(cls, args, source, settings, files, here):
        """A new folder at args.out, or, with the settings of a run, that of args.resume.

        files: {name: path} of all that the run depends on; here: machine.description().
        Raises ValueError if args.out holds anything, or a file is not the one that the run
        was started with.
        """
        found = {name: file_digest(path) for name, path in files.items()}
        if settings is None:
            return cls.create(args.out, {
                "args": {name: {"value": value, "from": source[name]}
                         for name, value in vars(args).items()},
                "machine": here, "digests": found})
        changed = [name for name in {**found, **settings["digests"]}
                   if found.get(name) != settings["digests"].get(name)]
        if changed:
            raise ValueError(f"{', '.join(sorted(changed))}: not what the run in "
                             f"{args.resume} was started with; put the old files back, or "
                             f"start a new run")
        for name, value in settings["machine"].items():
            if here.get(name) != value:
                warnings.warn(f"{name} is {here.get(name)}, was {value}: what follows will "
                              f"not be bit for bit what it would have been")
        return cls.reopen(args.resume)

    @classmethod
    def create(cls, path, settings):
        """A new folder with args.json."""
        check_free(path)
        os.makedirs(path, exist_ok=True)
        folder = cls(path)
        folder.new = True
        write_json(folder / "args.json", settings)
        folder.metrics = open(folder / "metrics.jsonl", "wb")
        return folder

    @classmethod
    def reopen(cls, path):
        """Go on in an existing folder, from its newest whole checkpoint.

        metrics.jsonl is cut back to that checkpoint. Returns a Folder; its state is None if
        no checkpoint was written yet, and the run then starts from its beginning. Raises
        ValueError if there are checkpoints but none is whole.
        """
        folder = cls(path)
        found = [name for name in ("last.pt", "before.pt") if os.path.exists(folder / name)]
        for name in found:
            folder.state = load_checkpoint(folder / name)
            if folder.state is not None:
                break
            # Out of the way, or it would soon take the place of the one that is whole.
            os.replace(folder / name, folder / (name + ".damaged"))
            print(f"{folder / name} is damaged; going back to the checkpoint before it")
        if found and folder.state is None:
            raise ValueError(f"no checkpoint in {path} can be read ({', '.join(found)}); "
                             f"start a new run")
        if not os.path.exists(folder / "best") and os.path.exists(folder / "best.old"):
            os.replace(folder / "best.old", folder / "best")
        folder.saving = (folder.state or {}).get("saving", 0.0)
        folder.metrics = open(folder / "metrics.jsonl", "ab")
        length = folder.state["metrics_bytes"] if folder.state else 0
        if folder.metrics.tell() < length:
            raise ValueError(f"{folder / 'metrics.jsonl'} has {folder.metrics.tell()} "
                             f"bytes, the checkpoint was written after {length}: the file "
                             f"was changed, so the run cannot go on; start it again")
        folder.metrics.truncate(length)
        folder.metrics.seek(length)     # or tell() would go on counting from the old end
        return folder

    def log(self, line):
        """One line of metrics.jsonl."""
        self.metrics.write(json.dumps(line).encode() + b"\n")

    def checkpoint(self, state):
        """Write last.pt; the one that was last becomes before.pt."""
        begin = time.monotonic()
        self.metrics.flush()
        os.fsync(self.metrics.fileno())
        state = {**state, "metrics_bytes": self.metrics.tell(), "saving": self.saving}
        state["digest"] = content_digest(state)

        def write(temporary):
            try:
                torch.save(state, temporary)
            except RuntimeError as error:       # torch's word for a full disk
                raise OSError(f"cannot write {temporary}: {error}".split("\n")[0]) from None

        def keep():
            if os.path.exists(self / "last.pt"):
                os.replace(self / "last.pt", self / "before.pt")
        replace(self / "last.pt", write, keep)
        self.saving += time.monotonic() - begin

    def replace_folder(self, name, write):
        """Let write(temporary folder) make a folder; put it in the place of an old one.

        No file system swaps two folders in one step; reopen() mends what a kill left.
        """
        temporary, old = self / (name + ".new"), self / (name + ".old")
        shutil.rmtree(temporary, ignore_errors=True)
        write(temporary)
        for file in os.listdir(temporary):
            sync(os.path.join(temporary, file))
        shutil.rmtree(old, ignore_errors=True)
        if os.path.exists(self / name):
            os.replace(self / name, old)
        os.replace(temporary, self / name)
        shutil.rmtree(old, ignore_errors=True)

    def close(self):
        """A new folder without a single step goes away again: its run failed at once."""
        nothing = self.metrics.tell() == 0 and not os.path.exists(self / "last.pt")
        self.metrics.close()
        if nothing and self.new:
            shutil.rmtree(self.path)


def check_free(path):
    """Raise ValueError if `path` holds anything but the remains of a killed start."""
    if os.path.exists(path) and not (os.path.isdir(path) and all(
            name.endswith(".new") for name in os.listdir(path))):
        kind = ("another run" if os.path.exists(os.path.join(path, "args.json"))
                else "files")
        raise ValueError(f"--out {path} holds {kind}; give a new folder, or go on with it "
                         f"by --resume {path}")


def read_settings(path):
    """args.json of the run at `path`.   Raises ValueError if there is none."""
    try:
        with open(os.path.join(path, "args.json"), encoding="utf-8") as file:
            settings = json.load(file)
        if not all(isinstance(settings[part], dict) and settings[part]
                   for part in ("args", "digests", "machine")):
            raise ValueError("it is not what a run writes")
        return settings
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"--resume {path} is not the folder of a run: args.json cannot be "
                         f"read ({error}); give a folder that train.py wrote") from None


def files_of(data, weights):
    """What training depends on.   (folder, folder) -> {name: path}"""
    names = ("config.json", "vocab.txt", "model.safetensors", "pytorch_model.bin")
    found = {os.path.join("data", name): os.path.join(data, name)
             for name in sorted(os.listdir(data)) if name.endswith(".csv")}
    found.update({os.path.join("weights", name): os.path.join(weights, name)
                  for name in names})
    return {name: path for name, path in found.items() if os.path.isfile(path)}


def resumed(args, source):
    """Settings of the run in args.resume, after a check that nothing else was asked for."""
    settings = read_settings(args.resume)
    if set(settings["args"]) != set(vars(args)):
        raise ValueError(f"--resume {args.resume} is not the folder of a run of this "
                         f"program: its args.json has other settings; give one that "
                         f"{os.path.basename(sys.argv[0])} wrote")
    values = {name: entry["value"] for name, entry in settings["args"].items()}
    for name, value in vars(args).items():
        if source[name] == "given" and name not in ("resume", "data", "weights"):
            flag = f"--{name.replace('_', '-')}"
            if values.get(name) != value:
                raise ValueError(f"{flag} {value} differs from the run in {args.resume}, "
                                 f"which has {values.get(name)}; leave it out, or start a "
                                 f"new run")
    for name in ("data", "weights"):        # may have moved: their digests are compared
        if source.get(name) == "given":
            values[name] = getattr(args, name)
    return argparse.Namespace(**{**values, "resume": args.resume}), settings


def load_checkpoint(path):
    """-> the state, or None if the file is damaged. weights_only: it can run no code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        digest = state.pop("digest")
        return state if content_digest(state) == digest else None
    except (PermissionError, MemoryError):
        raise               # that is no fault of the file's
    except Exception:       # cut short, overwritten, not ours: damaged one way or another
        return None


# --- Ctrl-C and SIGTERM ---

class Interrupted(Exception):
    """Raised out of a piece of work that may be abandoned at any point."""


class Stop:
    """Makes a first Ctrl-C or SIGTERM a request; a second Ctrl-C ends the process at once.

    As a context manager it listens. `asked` is the signal's number, or 0. In work under
    `with stop.abandon():` the request raises Interrupted, not waiting for a step's end.
    """

    def __init__(self):
        self.asked, self.abandoning = 0, False

    def __enter__(self):
        self.before = {number: signal.signal(number, self.hear)
                       for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def hear(self, number, frame):
        self.asked = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.abandoning:
            raise Interrupted

    @contextlib.contextmanager
    def abandon(self):
        self.abandoning = True
        try:
            if self.asked:          # the request came just before
                raise Interrupted
            yield
        finally:
            self.abandoning = False


# --- Progress ---

class Progress:
    """One line about a running loop: a bar on a terminal, a line now and then in a log."""

    def __init__(self, total, done=0, every=30.0, stream=None):
        self.total, self.first, self.every = total, done, every
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.start = self.last = time.monotonic()

    def show(self, done, text):
        """done: number of finished steps; text: what to say beside it."""
        now = time.monotonic()
        if now - self.last < (0.2 if self.terminal else self.every) and done < self.total:
            return
        self.last = now
        rate = (done - self.first) / max(1e-9, now - self.start)
        left = (self.total - done) / max(1e-9, rate)
        line = f"{done}/{self.total}  {text}  {rate:.2f} steps/s  {clock(left)} left"
        if self.terminal:
            filled = 20 * done // self.total
            self.stream.write(f"\r[{'#' * filled}{'.' * (20 - filled)}] {line}\x1b[K")
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def clear(self):
        """Make room for a line of another kind."""
        if self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def clock(seconds):
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


# --- The command line ---

def name_the_hole(kind, error, trace):
    """sys.excepthook: a part of the assignment that is still open gets one line.

    Named are the part that this command has met, and the first open one in the report's
    order if that is another. tools/assignment.json lists the parts.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.path.join(root, "tools", "assignment.json")
    if kind is not NotImplementedError or not os.path.exists(path):
        return sys.__excepthook__(kind, error, trace)
    with open(path, encoding="utf-8") as file:
        labels = [f"{part['section']} {part['name']}" for part in json.load(file)]
    source = ""
    for name in os.listdir(root):
        if name.endswith(".py") and name != "test_all.py":
            with open(os.path.join(root, name), encoding="utf-8") as file:
                source += file.read()
    first = next((label for label in labels if f'NotImplementedError("{label}")' in source),
                 str(error))
    print(f"{os.path.basename(sys.argv[0])}: "
          + (f"{error} is still to be written" if first == str(error) else
             f"{first} is still to be written, and {error}, which is needed here")
          + "; python test_all.py shows what is done", file=sys.stderr)


def one_line(command):
    """Run command() -> exit status; a wrong flag or file gets one line and status 2."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    sys.excepthook = name_the_hole
    try:
        return command()
    except (ValueError, OSError) as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:           # before the first step
        return 130
