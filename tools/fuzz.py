"""Damaged files and absurd flags for everything that we read; what becomes of each.

    python tools/fuzz.py --seconds 60 --seed 0          exit status 1 if there are findings
    python tools/fuzz.py --seed 0 --only 1234           input 1234 again, and all it prints

An input is a whole file of the tiny world, or the flags of a command, damaged once to three
times: bits, pieces, lines, cells, encodings, and the structure of JSON, tensors and
checkpoints. It goes to the functions and commands that read it, in this process. Fine are

    loaded      it was read, and what was read passes the check of its kind
    refused     status 2 and one line on standard error, printable, which names the file

and these are findings:

    traceback   an exception that is no refusal       message   a line that is not as above
    hang        over 10 s                             memory    over 300 MB
    crash       the process ended                     silence   the check failed: a row
                vanished, or an edited checkpoint or log was accepted

The reader runs in a process of its own, which is replaced after a hang or a crash.
"""

import argparse
import collections
import contextlib
import copy
import dataclasses
import io
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import unittest.mock
import warnings
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

LIMIT_SECONDS, LIMIT_BYTES, LIMIT_MESSAGE = 10.0, 300e6, 1000
FINDINGS = ("traceback", "message", "hang", "memory", "crash", "silence")


class Loaded(Exception):
    """Raised where training would begin: all has been read by then."""


@dataclasses.dataclass
class Kind:
    """A file, or flags, and what reads it."""
    name: str
    folder: str                     # copied before the first input
    file: str                       # in it; "" for flags
    read: Callable                  # read(folder, argv) -> what was loaded
    check: Callable | None = None   # check(loaded, original bytes, bytes) -> what is wrong
    names: tuple = ()               # what a message may name instead of the file
    flags: Callable | None = None   # flags(rng, folder) -> argv
    writes: bool = False            # read() changes the folder


# --- Damage ---

ODD_TEXTS = ["", " ", '"', '""', "\t", "\n", "\r", "\0", "\x1b[2J\x07", "\u202e", "\u2028",
             "nan", "inf", "-1", "1e400", "9" * 400, "1_0", "٣", "é", "\ufeff", "🙂", "\ud800",
             "-9223372036854775808", "'", "\\", "%s", "{}", "None", "true", "../..", ",",
             "a" * 5000, "0x10", "5.0000001", "1e-320", "\x85", "ı", "a\u0301\u0316" * 500]
ODD_VALUES = [None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, 10 ** 30, 2 ** 63,
              float("nan"), float("inf"), "", "x", "\x1b[2J\u202e\n" * 40, "9" * 400, [], {},
              [[]], [1, 2], {"value": 1}, {"": None}, ["\ud800"]]


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
        return text.encode(rng.choice(["utf-16", "utf-8-sig", "cp1252", "utf-32", "utf-16-be",
                                       "latin-1"]), "replace")
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
    """A checkpoint or pytorch_model.bin, sometimes with a digest that fits what it holds."""
    from plumbing import folder
    try:
        value = torch.load(io.BytesIO(raw), weights_only=True)
    except Exception:                   # damaged before
        return damaged_bytes(rng, raw)
    tensors = [torch.zeros(3), torch.full((2, 2), float("nan")), torch.zeros(0),
               torch.zeros(4, dtype=torch.int64), torch.zeros(()).expand(10 ** 9),
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

def damaged_flags(parser, given, leave_out=("--help", "--download")):
    """flags(rng, folder): some of the parser's flags, some with values that they allow.

    given: what a command needs, with FOLDER for the folder.
    """
    def flags(rng, folder):
        argv = [word.replace("FOLDER", folder) for word in given]
        actions = [a for a in parser._actions
                   if a.option_strings and a.option_strings[-1] not in leave_out]
        for action in rng.sample(actions, rng.choice([1, 1, 2, 3, 6])):
            argv.append(action.option_strings[-1])
            if action.nargs == 0:
                continue
            fitting = list(map(str, action.choices or ["1", "2", "0.5", "0", "sst,sts", "cpu"]))
            argv.append(rng.choice(fitting) if rng.random() < .6 else odd_argument(rng))
        if rng.random() < .1:
            argv.insert(rng.randrange(len(argv) + 1), odd_argument(rng))
        return argv
    return flags


def odd_argument(rng):
    odd = rng.choice([text for text in ODD_TEXTS if text != "../.."] + [
        "-1", "1e999", "--", "-", "--los", "1" * 5000, "gpu7", "cuda:99", "meta", "mps",
        "__main__", "os.path", "x\udcff", "a" * 300, "nowhere", ".", "privateuseone", "0.0",
        "sst,sst", "1e-5", "1000000000", "4294967296", "torch", "@x", "-h"[:1]])
    return odd.replace("/", "_")        # nothing outside the folder that it runs in


# --- What is read ---

def build(root):
    """The tiny world with all that our commands write.   -> [Kind]"""
    import bert
    import data
    import heads
    import train
    from plumbing import folder, reading, safetensors, sources
    from tests import world
    from tools import analyze, baseline, predict, pretrain, results, table
    torch.set_num_threads(1)
    tiny, weights = world.tiny_world()
    tokenizer = data.WordPiece(weights)
    tasks = {task.name: task for task in heads.tasks()}

    def place(name):
        return os.path.join(root, name)

    # data/, weights in four forms, runs
    os.makedirs(place("data"))
    for name in os.listdir(tiny):
        if name.endswith(".csv"):
            shutil.copy(os.path.join(tiny, name), place("data"))
    labels = ["task\tid\tlabel"]
    for name, task in tasks.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ids = data.load(tiny, task, "test", str).ids
        labels += [f"{name}\t{example}\t{k % 2}" for k, example in enumerate(ids)]
    write(place("data/test-labels.csv"), "\n".join(labels).encode())
    shutil.copytree(weights, place("safe"))
    tensors = safetensors.load(os.path.join(weights, "model.safetensors"))
    for form, shards in (("bin", 1), ("shards", 2), ("binshards", 2)):
        shutil.copytree(weights, place(form))
        os.remove(place(f"{form}/model.safetensors"))
        base = "pytorch_model.bin" if "bin" in form else "model.safetensors"
        first, last = os.path.splitext(base)
        where = {}
        for k in range(shards):
            file = base if shards == 1 else f"{first}-{k}{last}"
            part = {name: t for i, (name, t) in enumerate(tensors.items()) if i % shards == k}
            where.update(dict.fromkeys(part, file))
            save = torch.save if "bin" in form else (lambda part, path:
                                                     safetensors.save(path, part))
            save(part, place(f"{form}/{file}"))
        if shards > 1:
            write(place(f"{form}/{base}.index.json"),
                  json.dumps({"weight_map": where}).encode())
    words = [token for token in tokenizer.tokens]
    write(place("safe/tokenizer_config.json"), json.dumps({
        "do_lower_case": True, "tokenizer_class": "BertTokenizer", "strip_accents": None,
        "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}}}).encode())
    write(place("safe/added_tokens.json"), json.dumps({words[-1]: len(words) - 1}).encode())
    write(place("safe/tokenizer.json"), json.dumps({
        "model": {"type": "WordPiece", "vocab": {w: i for i, w in enumerate(words)}},
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "added_tokens": [
            {"id": 0, "content": "[PAD]", "special": True}]}).encode())
    hard = ("--option", "gvac", "--smart", "--con", "--log-layers")
    inside = {"data_folder": place("data"), "weights": place("bin")}
    with world.signalled_at(5):
        _, out, _ = world.run_train(*hard, "--checkpoint-every", 2, steps=8, **inside)
    shutil.move(out, place("run"))
    _, out, errors = world.run_train(*hard, steps=2, **inside)
    shutil.move(out, place("done"))
    with world.signalled_at(2):
        _, out, _ = world.run_pretrain(*world.from_scratch(), "--checkpoint-every", 2)
    shutil.move(out, place("pretrained"))
    os.makedirs(place("text"))
    write(place("text/texts.txt"), "\n".join(
        ["a good movie\tthe best movie"] * 5 + ["it is bad", "what is it ?"] * 5).encode())
    os.makedirs(place("results"))
    record = results.Result(2, "data", "weights", ["cpu"], [results.RowResult(
        results.ROWS[1].name, ["python train.py --option seq"],
        {"0": {"sst": .5, "para": .5, "sts": .5, "overall": .5, "minutes": 1.0},
         "1": {"sst": .5, "para": .6, "sts": .5, "overall": .5, "minutes": 1.0}})],
        {"majority": {"sst": .2, "para": .6, "sts": 0.0, "overall": .4}})
    write(place("results/table2-x.json"), json.dumps(dataclasses.asdict(record)).encode())
    write(place("results/expected.json"), json.dumps(results.expected(record)).encode())

    # Nine files: each row that was not touched is loaded, or named in a warning.
    def rows_stay(loaded, original, raw):
        dataset, warned = loaded
        before = original.decode().splitlines()
        after = set(raw.decode("utf-8-sig", "replace").splitlines())
        missing = [line for line in before[1:] if line in after
                   and line.split("\t")[1].strip() not in dataset.ids]
        if missing and not warned:
            return f"the row {missing[0]!r} vanished"
        ids = [example.strip().lower() for example in dataset.ids]
        if len(set(ids)) < len(ids):
            return "an id occurs twice"
        if dataset.labels is not None and not ((dataset.labels >= 0)
                                               & (dataset.labels <= 5)).all():
            return "a label is out of range"

    def read_set(task, split):
        def read(path, argv):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                dataset = data.load(path, task, split, tokenizer)
            for warning in caught:
                warnings.warn(str(warning.message))
            return dataset, caught
        return read

    kinds = [Kind(f"data/{os.path.basename(path)}", place("data"), os.path.basename(path),
                  read_set(task, split), rows_stay)
             for task in tasks.values() for split in ("train", "dev", "test")
             for path in [data.path_of("", task, split)]]
    kinds.append(Kind("test-labels", place("data"), "test-labels.csv",
                      lambda path, argv: table.read_test_labels(path)))

    # Weights, vocabularies
    def weights_are_finite(model, original, raw):
        if not all(p.isfinite().all() for p in model.parameters()):
            return "a weight is not finite"

    def read_weights(path, argv):
        model = bert.BertModel.from_pretrained(path)
        return model

    weight_files = {"safe": ["model.safetensors", "config.json"],
                    "bin": ["pytorch_model.bin"],
                    "shards": ["model.safetensors.index.json", "model-0.safetensors"],
                    "binshards": ["pytorch_model.bin.index.json", "pytorch_model-1.bin"]}
    for form, files in weight_files.items():
        others = tuple(name for name in os.listdir(place(form)) if "model" in name)
        kinds += [Kind(f"{form}/{file}", place(form), file, read_weights,
                       weights_are_finite, ("config.json", *others)) for file in files]

    def whole_vocabulary(loaded, original, raw):
        vocabulary, warned = loaded
        if len(vocabulary.tokens) != len(words) and not warned:
            return f"{len(vocabulary.tokens)} tokens instead of {len(words)}"

    def read_vocabulary(path, argv):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = data.WordPiece(path, len(words))
        found("[PAD] Été unaffable 中 [E1] 00")
        return found, caught
    tokenizer_files = ("vocab.txt", "tokenizer_config.json", "tokenizer.json",
                       "added_tokens.json")
    kinds += [Kind(f"tokenizer/{file}", place("safe"), file, read_vocabulary,
                   whole_vocabulary, tokenizer_files) for file in tokenizer_files]

    # Runs that are resumed, up to where training would begin
    seen = {}

    def fit(training, session=None, *args, **more):
        if session is not None:         # None: table.py, whose runs are other processes
            seen["state"] = folder.content_digest([training.state(), session.step])
        raise Loaded

    def resume(module):
        def read(path, argv):
            with unittest.mock.patch.object(module, "fit", fit), contextlib.suppress(Loaded):
                status = module.main(["--resume", path])
                return status or seen.pop("state", None)
            return seen.pop("state", None)
        return read

    for name, module in (("run", train), ("pretrained", pretrain)):
        whole = set()
        for lost in (None, "last.pt"):
            trial = shutil.copytree(place(name), place("trial"))
            if lost:
                os.remove(os.path.join(trial, lost))
            with contextlib.redirect_stdout(io.StringIO()):
                whole.add(resume(module)(trial, []))
            shutil.rmtree(trial)
        counted = folder.load_checkpoint(place(f"{name}/last.pt"))["metrics_bytes"]

        def same_run(state, original, raw, whole=whole):
            if state not in whole and not digest_fits(raw):
                return "it was accepted, and training goes on from another state"

        def same_settings(state, original, raw):
            if not same_json(original, raw):
                return "it was accepted, though it is not what the run wrote"

        def same_log(state, original, raw, counted=counted):
            if raw[:counted] != original[:counted]:
                return "it was accepted, though it is not what the run wrote"
        kinds += [
            Kind(f"{name}/last.pt", place(name), "last.pt", resume(module), same_run,
                 ("last.pt", "before.pt", "args.json", "metrics.jsonl"), writes=True),
            Kind(f"{name}/args.json", place(name), "args.json", resume(module),
                 same_settings, writes=True),
            Kind(f"{name}/metrics.jsonl", place(name), "metrics.jsonl", resume(module),
                 same_log, writes=True)]
    # One that was killed before its first checkpoint, so that only args.json is left
    shutil.copytree(place("run"), place("young"))
    for name in ("last.pt", "before.pt", "metrics.jsonl"):
        if os.path.exists(place(f"young/{name}")):
            os.remove(place(f"young/{name}"))
    with open(place("young/args.json"), encoding="utf-8") as file:
        settings = json.load(file)
    del settings["digest"]                  # as older versions wrote it
    write(place("young/args.json"), json.dumps(settings).encode())
    kinds.append(Kind("young/args.json", place("young"), "args.json", resume(train),
                      names=("--", "csv", "weights"), writes=True))

    # A finished run
    def read_best(path, argv):
        tokenizer, model = predict.load(path)
        return predict.answer(model, tokenizer, list(model.tasks.values()),
                              [("good movie",), ("a", "b")], torch.device("cpu"))
    kinds += [Kind(f"done/best/{file}", place("done/best"), file, read_best,
                   names=("vocab.txt", "config.json", "model.safetensors",
                          "tokenizer_config.json"))
              for file in ("config.json", "model.safetensors", "vocab.txt",
                           "tokenizer_config.json")]

    def read_analysis(path, argv):
        with unittest.mock.patch.dict(sys.modules, {"matplotlib.figure": None}):
            return analyze.main([path])
    kinds += [Kind(f"analyze/{file}", place("done"), file, read_analysis, writes=True,
                   names=("data",) if file == "args.json" else ())
              for file in ("metrics.jsonl", "args.json", "result.json", "best/config.json",
                           *(f"predictions/{name}-dev-output.csv" for name in tasks))]

    one = table.Run(results.ROWS[1], 0, ["--option", "seq"], "", list(tasks), None)
    with contextlib.redirect_stderr(io.StringIO()):
        truth = table.read_test_labels(place("data"))

    def read_scores(path, argv):
        run = dataclasses.replace(one, folder=path)
        table.check_inputs([run], place("data"), place("bin"))
        found = table.collect(3, [run], truth, place("data"), "weights")
        return results.markdown(found), found

    def scores_are_finite(loaded, original, raw):
        text, found = loaded
        for row in found.rows:
            for scores in row.seeds.values():
                if not all(map(math.isfinite, scores.values())):
                    return "a score is not finite"
    kinds += [Kind(f"table/{file}", place("done"), file, read_scores, scores_are_finite,
                   names=("data",) if file == "args.json" else ())
              for file in ("result.json", "args.json",
                           *(f"predictions/{name}-test-output.csv" for name in tasks))]

    def read_record(path, argv):
        found = results.Result.read(os.path.join(path, "table2-x.json"))
        return results.markdown(found)
    kinds.append(Kind("results/table2", place("results"), "table2-x.json", read_record))

    def read_expected(path, argv):
        with unittest.mock.patch.object(sources, "SAMPLE", path):
            return sources.expected({"option": "seq"})
    kinds.append(Kind("sample/expected.json", place("results"), "expected.json",
                      read_expected))
    tokens, model = predict.load(place("done"))
    kinds += [
        Kind("predict --file", place("text"), "texts.txt", lambda path, argv:
             predict.answer_file(model, tokens, list(model.tasks.values()),
                                 torch.device("cpu"), os.path.join(path, "texts.txt"))),
        Kind("pretrain --text", place("text"), "texts.txt", lambda path, argv:
             pretrain.read_texts(os.path.join(path, "texts.txt"), tokenizer)),
        Kind("pretrain --text CSV", place("data"), "sts-train.csv", lambda path, argv:
             pretrain.read_texts(os.path.join(path, "sts-train.csv"), tokenizer)),
        Kind("baseline", place("data"), "quora-train.csv", lambda path, argv:
             baseline.majority_scores(path)),
        Kind("reading", place("done"), "result.json", lambda path, argv:
             reading.read_json(os.path.join(path, "result.json"), {"dev": dict}))]

    # Flags
    def command(module):
        def read(path, argv):
            from tools import table as tables
            with unittest.mock.patch.object(module, "fit", fit, create=True), \
                    unittest.mock.patch.object(tables, "perform_all", fit), \
                    unittest.mock.patch.dict(sys.modules, {"matplotlib.figure": None}), \
                    unittest.mock.patch.object(sys, "stdin", io.StringIO("good\n")), \
                    contextlib.chdir(path), contextlib.suppress(Loaded):
                return module.main(argv)
        return read
    os.makedirs(place("empty"))
    small = ["--data", place("data"), "--weights", place("bin")]
    flags = [
        ("train", train, _parser_of(train, "flags"), [*small, "--out", "FOLDER/out",
                                                      "--batch-size", "4"]),
        ("pretrain", pretrain, pretrain.parser(), ["--text", place("text/texts.txt"),
         "--vocab", place("bin/vocab.txt"), "--out", "FOLDER/out", "--hidden", "8",
         "--layers", "1", "--batch-size", "4"]),
        ("table", table, table.parser(), [*small, "--runs", "FOLDER/runs", "--table", "2"])]
    kinds += [Kind(f"flags of {name}", place("empty"), "", command(module), writes=True,
                   flags=damaged_flags(parser, given, ("--help", "--download", "--record",
                                                       "--render")))
              for name, module, parser, given in flags]
    return kinds


def _parser_of(module, name):
    return getattr(module, name).parser()


def write(path, raw):
    with open(path, "wb") as file:
        file.write(raw)


def same_json(a, b):
    try:
        return json.loads(a) == json.loads(b.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False


def digest_fits(raw):
    """Was a checkpoint forged, with a digest that fits?"""
    from plumbing import folder
    try:
        value = torch.load(io.BytesIO(raw), weights_only=True)
        return folder.content_digest({k: v for k, v in value.items()
                                      if k != "digest"}) == value["digest"]
    except Exception:                   # no: it is damaged
        return False


# --- One input ---

def attempt(kinds, originals, seed, number, verbose=False):
    """-> (name of its kind, its class, a note)"""
    rng = random.Random(f"{seed} {number}")
    kind, = rng.choices(kinds, [1 if slow else 8 for slow in map(is_slow, kinds)])
    place = kind.folder + (".written" if kind.writes else ".read")
    if kind.writes or not os.path.exists(place):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(kind.folder, place)
    argv, raw, original = [], b"", b""
    path = os.path.join(place, kind.file)
    if kind.flags:
        argv = kind.flags(rng, place)
    else:
        original = originals.setdefault(path, read_bytes(os.path.join(kind.folder,
                                                                      kind.file)))
        raw = damaged(rng, kind.file, original)
        write(path, raw)
    try:
        return kind.name, *outcome(kind, place, argv, original, raw, verbose)
    finally:
        if not kind.flags and not kind.writes:
            write(path, original)


def is_slow(kind):
    """Does it make a model or start a run? Such kinds take a tenth of a second."""
    return kind.writes or kind.name.startswith(("bin", "shards", "safe", "done", "predict"))


def read_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def outcome(kind, place, argv, original, raw, verbose):
    """Read one damaged input.   -> (class, note)"""
    from plumbing import command
    loaded, output, errors = [], io.StringIO(), io.StringIO()

    def run():
        loaded.append(kind.read(place, argv))
        return loaded[0] if type(loaded[0]) is int else 0
    begin, memory = time.monotonic(), peak_memory()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), \
                warnings.catch_warnings():
            warnings.simplefilter("always")
            status = command.one_line(run)
    except SystemExit as end:           # argparse
        status = end.code
    except BaseException as error:
        if verbose:
            traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", (f"{type(error).__name__}: {str(error)[:100]!r} in "
                             f"{os.path.basename(last.filename)}:{last.lineno}")
    if verbose:
        print(f"status {status}\n{output.getvalue()}{errors.getvalue()}\n{argv}")
    if time.monotonic() - begin > LIMIT_SECONDS:
        return "hang", f"{time.monotonic() - begin:.0f} s"
    if peak_memory() - memory > LIMIT_BYTES:
        return "memory", f"{(peak_memory() - memory) / 1e6:.0f} MB"
    lines = errors.getvalue().split("\n")[:-1]
    for line in lines:
        if not line.isprintable() or len(line) > LIMIT_MESSAGE:
            return "message", f"not printable or too long: {line[:200]!r}"
    if status == 0:
        wrong = kind.check and kind.check(loaded[0], original, raw)
        return ("silence", wrong) if wrong else ("loaded", "")
    lines = [line for line in lines if not line.startswith("warning: ")]
    if status != 2 or not lines or (len(lines) > 1 and "predict --file" not in kind.name):
        return "message", f"status {status}, {len(lines)} lines: {errors.getvalue()[:200]!r}"
    names = ("--", place, *kind.names) if kind.flags else (
        os.path.basename(kind.file), *kind.names)
    if not any(name in lines[-1] for name in names):
        return "message", f"names no file: {lines[-1][:200]!r}"
    return "refused", lines[-1]


def peak_memory():
    try:
        import resource
    except ImportError:                 # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- The processes ---

def work(root, seed, first, connection):
    """Inputs first, first + 1, … until the connection ends."""
    sys.argv[0] = "fuzz.py"
    kinds, originals = build(root), {}
    connection.send("ready")
    while True:
        connection.send((first, *attempt(kinds, originals, seed, first)))
        first += 1


def results_of(seed, seconds):
    """-> (number, kind, class, note), for as long as there is time"""
    context, number, end = multiprocessing.get_context("spawn"), 0, None
    while end is None or time.monotonic() < end:
        root = tempfile.mkdtemp(prefix="minbert-fuzz-")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(root, seed, number, theirs))
        process.start()
        theirs.close()
        try:
            if not ours.poll(120) or ours.recv() != "ready":
                raise EOFError
            end = end or time.monotonic() + seconds
            while time.monotonic() < end:
                if not ours.poll(2 * LIMIT_SECONDS):
                    yield number, "?", "hang", "it was ended"
                    number += 1
                    break
                number, *result = ours.recv()
                yield number, *result
                number += 1
        except EOFError:
            yield number, "?", "crash", f"exit status {process.exitcode}"
            number += 1
            if end is None:
                return
        finally:
            process.kill()
            process.join()
            shutil.rmtree(root, ignore_errors=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="without the start (60)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one input, with details")
    args = parser.parse_args(argv)
    if args.only is not None:
        with tempfile.TemporaryDirectory() as root:
            result = attempt(build(root), {}, args.seed, args.only, verbose=True)
        print(*result, sep=": ")
        return int(result[1] in FINDINGS)
    classes, by_kind, findings = collections.Counter(), {}, 0
    for number, kind, name, note in results_of(args.seed, args.seconds):
        classes[name] += 1
        by_kind.setdefault(kind, collections.Counter())[name] += 1
        if name in FINDINGS:
            findings += 1
            print(f"{name}: {kind}: {note}\n    again: python tools/fuzz.py --seed "
                  f"{args.seed} --only {number}", flush=True)
    for kind, counts in sorted(by_kind.items()):
        print(f"  {kind:32} " + ", ".join(f"{n} {name}" for name, n in sorted(
            counts.items())))
    print(f"{sum(classes.values())} inputs: " + ", ".join(
        f"{n} {name}" for name, n in sorted(classes.items())) + f"; {findings} findings")
    return int(findings > 0 or not classes)


if __name__ == "__main__":
    sys.exit(main())
