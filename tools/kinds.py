"""Everything that our commands read, and what reads it, for fuzz.py.

    make_world(root)        the tiny world of tests/, with all that our commands write
    kinds(root)             its files and flags, with what reads each and what must be true
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
import unittest.mock
import warnings
from collections.abc import Callable

import torch

import bert
import data
import heads
import multitask
import train
from plumbing import flags, folder, runs, safetensors, sources
from tests import world
from tools import analyze, baseline, predict, pretrain, results, table
from tools.damage import digest_fits, flags_of

TASKS = {task.name: task for task in heads.tasks()}


@dataclasses.dataclass
class Kind:
    """A file, or flags, and what reads it."""
    name: str
    folder: str                     # read() gets a copy of it
    file: str                       # in it; "" for flags
    read: Callable                  # read(folder, argv) -> what was loaded, or a status
    check: Callable | None = None   # check(loaded, original bytes, bytes) -> what is wrong
    names: tuple = ()               # what a message may name instead of the file
    flags: Callable | None = None   # flags(rng, folder) -> argv
    writes: bool = False            # read() changes the folder
    slow: bool = False              # it takes a tenth of a second

    def named_by(self, message, place):
        """Does a refusal name the file?"""
        own = ("--", "argument", place) if self.flags else (os.path.basename(self.file),)
        return any(name in message for name in own + self.names)


class Loaded(Exception):
    """Raised where training would begin: all has been read by then."""


# --- The world ---

def write(path, raw):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(raw if isinstance(raw, bytes) else json.dumps(raw).encode())


def make_world(root):
    """data/, four forms of weights, runs in four states, texts and results."""
    def place(name):
        return os.path.join(root, name)
    tiny, weights = world.tiny_world()
    shutil.copytree(tiny, place("data"), ignore=lambda _, names: [
        name for name in names if not name.endswith(".csv")])
    labels = ["task\tid\tlabel"]
    for name, task in TASKS.items():
        ids = data.load(tiny, task, "test", str).ids
        labels += [f"{name}\t{example}\t{k % 2}" for k, example in enumerate(ids)]
    write(place("data/test-labels.csv"), "\n".join(labels).encode())
    write(place("text/texts.txt"), "\n".join(
        ["a good movie\tthe best movie"] * 5 + ["it is bad", "what is it ?"] * 5).encode())

    shutil.copytree(weights, place("safe"))
    tensors = safetensors.load(os.path.join(weights, "model.safetensors"))
    for form, base in (("bin", "pytorch_model.bin"), ("shards", "model.safetensors"),
                       ("binshards", "pytorch_model.bin")):
        shutil.copytree(weights, place(form))
        os.remove(place(f"{form}/model.safetensors"))
        first, last = os.path.splitext(base)
        files = [base] if form == "bin" else [f"{first}-{k}{last}" for k in (0, 1)]
        where = {name: files[i % len(files)] for i, name in enumerate(tensors)}
        for file in files:
            part = {name: t for name, t in tensors.items() if where[name] == file}
            if last == ".bin":
                torch.save(part, place(f"{form}/{file}"))
            else:
                safetensors.save(place(f"{form}/{file}"), part)
        if form != "bin":
            write(place(f"{form}/{base}.index.json"), {"weight_map": where})

    words = world.WORDS
    padding = {"content": "[PAD]", "special": True}
    write(place("safe/tokenizer_config.json"), {
        "do_lower_case": True, "tokenizer_class": "BertTokenizer", "strip_accents": None,
        "added_tokens_decoder": {"0": padding}})
    write(place("safe/added_tokens.json"), {words[-1]: len(words) - 1})
    write(place("safe/tokenizer.json"), {
        "model": {"type": "WordPiece", "vocab": {w: i for i, w in enumerate(words)}},
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "added_tokens": [
            {"id": 0, **padding}]})

    flags = ("--option", "gvac", "--smart", "--con", "--log-layers")
    inside = {"data_folder": place("data"), "weights": place("bin")}
    with world.signalled_at(5):
        _, out, _ = world.run_train(*flags, "--checkpoint-every", 2, steps=8, **inside)
    shutil.move(out, place("run"))
    shutil.move(world.run_train(*flags, steps=2, **inside)[1], place("done"))
    with world.signalled_at(4):
        _, out, _ = world.run_pretrain(*world.from_scratch(), "--checkpoint-every", 2)
    shutil.move(out, place("pretrained"))
    # One that was killed before its first checkpoint, of a version without digests
    shutil.copytree(place("run"), place("young"), ignore=shutil.ignore_patterns(
        "*.pt", "*.jsonl", "best"))
    with open(place("young/args.json"), encoding="utf-8") as file:
        settings = json.load(file)
    del settings["digest"]
    write(place("young/args.json"), settings)

    scores = {"sst": .5, "para": .6, "sts": .5, "overall": .5}
    record = results.Result(2, "data", "weights", ["cpu"], [results.RowResult(
        results.ROWS[1].name, ["python train.py --option seq"],
        {str(seed): {**scores, "minutes": 1.0} for seed in (0, 1)})], {"majority": scores})
    write(place("results/table2-x.json"), dataclasses.asdict(record))
    write(place("results/expected.json"), results.expected(record))
    os.makedirs(place("empty"))


# --- Data ---

def kinds_of_data(place, tokenizer):
    """Nine files, labels and texts. A row that was not touched is read, or named."""
    def rows_stay(loaded, original, raw):
        dataset, warned = loaded
        after = set(raw.decode("utf-8-sig", "replace").splitlines())
        for line in original.decode().splitlines()[1:]:
            if line in after and line.split("\t")[1].strip() not in dataset.ids:
                return None if warned else f"the row {line!r} vanished"
        ids = [example.strip().lower() for example in dataset.ids]
        if len(set(ids)) < len(ids):
            return "an id occurs twice"
        if dataset.labels is not None and not all(0 <= x <= 5 for x in dataset.labels):
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

    found = [Kind(f"data/{file}", place("data"), file, read_set(task, split), rows_stay)
             for task in TASKS.values() for split in ("train", "dev", "test")
             for file in [data.path_of("", task, split)]]
    texts = place("text")
    return [
        *found,
        Kind("test-labels", place("data"), "test-labels.csv",
             lambda path, argv: table.read_test_labels(path)),
        Kind("baseline", place("data"), "quora-train.csv",
             lambda path, argv: baseline.majority_scores(path, TASKS.values())),
        Kind("pretrain --text CSV", place("data"), "sts-train.csv", lambda path, argv:
             pretrain.read_texts(os.path.join(path, "sts-train.csv"), tokenizer)),
        Kind("pretrain --text", texts, "texts.txt", lambda path, argv:
             pretrain.read_texts(os.path.join(path, "texts.txt"), tokenizer)),
        Kind("predict --file", texts, "texts.txt", lambda path, argv: predict.main(
            [place("done"), "--file", os.path.join(path, "texts.txt")]), slow=True)]


# --- Weights and vocabularies ---

def kinds_of_weights(place):
    def finite(model, original, raw):
        if not all(p.isfinite().all() for p in model.parameters()):
            return "a weight is not finite"

    def read_weights(path, argv):
        return bert.BertModel.from_pretrained(path)

    def same_size(loaded, original, raw):
        tokenizer, warned = loaded
        if len(tokenizer.tokens) != len(world.WORDS) and not warned:
            return f"{len(tokenizer.tokens)} tokens instead of {len(world.WORDS)}"

    def read_vocabulary(path, argv):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tokenizer = data.WordPiece(path, len(world.WORDS))
        tokenizer("[PAD] Été unaffable 中 [E1] 00")
        return tokenizer, caught

    def read_best(path, argv):
        with unittest.mock.patch.object(sys, "stdin", world.Typed("good\na\tb\n")):
            return predict.main([path])

    found = []
    for form, files in (("safe", ["model.safetensors", "config.json"]),
                        ("bin", ["pytorch_model.bin"]),
                        ("shards", ["model.safetensors.index.json", "model-0.safetensors"]),
                        ("binshards", ["pytorch_model.bin.index.json",
                                       "pytorch_model-1.bin"])):
        others = tuple(name for name in os.listdir(place(form)) if "model" in name)
        found += [Kind(f"{form}/{file}", place(form), file, read_weights, finite,
                       ("config.json", *others), slow=True) for file in files]
    files = "vocab.txt", "tokenizer_config.json", "tokenizer.json", "added_tokens.json"
    found += [Kind(f"tokenizer/{file}", place("safe"), file, read_vocabulary, same_size,
                   files) for file in files]
    files = "config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"
    found += [Kind(f"best/{file}", place("done/best"), file, read_best, None, files,
                   slow=True) for file in files]
    return found


# --- Runs ---

def reader(module, arguments=()):
    """read(folder, argv) for a command, up to where training would begin.

    What it has read by then is returned as a digest of the state that it would train from.
    """
    def read(path, argv):
        seen = []

        def fit(training, session, *args, **more):
            seen.append(folder.content_digest([runs.state(training), session.step]))
            raise Loaded
        with unittest.mock.patch.object(module, "fit", fit, create=True), \
                unittest.mock.patch.object(table, "perform_all", side_effect=Loaded), \
                unittest.mock.patch.object(sys, "stdin", world.Typed("good\n")), \
                contextlib.suppress(Loaded):
            here = os.getcwd()
            os.chdir(path)          # relative paths among the flags lead nowhere else
            try:
                status = module.main([path if word == "FOLDER" else word
                                      for word in [*arguments, *argv]])
            finally:
                os.chdir(here)
            return status
        return seen[0] if seen else 0
    return read


def kinds_of_resumes(place):
    """Runs that were stopped. An edited one must not go on."""
    found = []
    for name, module in (("run", train), ("pretrained", pretrain)):
        resume = reader(module, ["--resume", "FOLDER"])
        whole = set()
        for lost in ("nothing", "last.pt"):
            trial = shutil.copytree(place(name), place("trial"),
                                    ignore=shutil.ignore_patterns(lost))
            whole.add(resume(trial, []))
            shutil.rmtree(trial)
        counted = folder.load_checkpoint(place(f"{name}/last.pt"))["metrics_bytes"]

        def same_state(state, original, raw, whole=whole):
            if state not in whole and not digest_fits(raw):
                return "accepted, and training would go on from another state"

        def same_settings(state, original, raw):
            if json.loads(raw.decode("utf-8-sig")) != json.loads(original):
                return "accepted, though the run did not write it"

        def same_log(state, original, raw, counted=counted):
            if raw[:counted] != original[:counted]:
                return "accepted, though the run did not write it"
        for file, check in (("last.pt", same_state), ("args.json", same_settings),
                            ("metrics.jsonl", same_log)):
            # A run of pre-training looks for its texts before it compares digests.
            found.append(Kind(f"{name}/{file}", place(name), file, resume, check,
                              ("csv", "vocab"), writes=True, slow=True))
    found.append(Kind("young/args.json", place("young"), "args.json",
                      reader(train, ["--resume", "FOLDER"]),
                      names=("--", "csv", "weights", "young"), writes=True, slow=True))
    return found


def kinds_of_results(place):
    """What analyze.py and table.py read of a finished run, and what they write."""
    one = table.Run(results.ROWS[1], 0, ["--option", "seq"], "", list(TASKS), None)
    truth = table.read_test_labels(place("data"))

    def read_scores(path, argv):
        run = dataclasses.replace(one, folder=path)
        table.check_inputs([run], place("data"), place("bin"))
        found = table.collect(3, [run], truth, place("data"), "weights")
        return results.markdown(found), found

    def finite(loaded, original, raw):
        for row in loaded[1].rows:
            for scores in row.seeds.values():
                if not all(map(math.isfinite, scores.values())):
                    return "a score is not finite"

    def read_record(path, argv):
        return results.markdown(results.Result.read(os.path.join(path, "table2-x.json")))

    def read_expected(path, argv):
        with unittest.mock.patch.object(sources, "SAMPLE", path):
            return sources.expected({"option": "seq"})

    predictions = {split: [f"predictions/{name}-{split}-output.csv" for name in TASKS]
                   for split in ("dev", "test")}
    found = [Kind(f"analyze/{file}", place("done"), file, reader(analyze, ["FOLDER"]),
                  names=("csv",) if file == "args.json" else (), writes=True, slow=True)
             for file in ("metrics.jsonl", "args.json", "result.json", "best/config.json",
                          *predictions["dev"])]
    found.append(Kind("analyze/stopped/metrics.jsonl", place("run"), "metrics.jsonl",
                      reader(analyze, ["FOLDER"]), writes=True, slow=True))
    found += [Kind(f"table/{file}", place("done"), file, read_scores, finite,
                   names=("data",) if file == "args.json" else ())
              for file in ("result.json", "args.json", *predictions["test"])]
    return [*found,
            Kind("results/table2", place("results"), "table2-x.json", read_record),
            Kind("sample/expected.json", place("results"), "expected.json", read_expected)]


# --- Flags ---

def kinds_of_flags(place):
    small = ["--data", place("data"), "--weights", place("bin")]
    parser = flags.parser(list(TASKS), ["seq", "rr", *multitask.TREATMENTS])
    commands = [
        (train, parser, [*small, "--out", "FOLDER", "--batch-size", "4"]),
        (pretrain, pretrain.parser(), [
            "--text", place("text/texts.txt"), "--vocab", place("bin/vocab.txt"), "--out",
            "FOLDER", "--hidden", "8", "--layers", "1", "--batch-size", "4"]),
        (table, table.parser(), [*small, "--runs", "FOLDER", "--table", "2"])]
    # --record and --render write into this tree.
    never = ("--help", "--download", "--record", "--render")
    return [Kind(f"flags of {module.__name__}", place("empty"), "",
                 reader(module, arguments), flags=flags_of(its, never), writes=True,
                 slow=True)
            for module, its, arguments in commands]


def kinds(root):
    """-> [Kind]; the world must have been made."""
    def place(name):
        return os.path.join(root, name)
    tokenizer = data.WordPiece(place("bin"))
    return [*kinds_of_data(place, tokenizer), *kinds_of_weights(place),
            *kinds_of_resumes(place), *kinds_of_results(place), *kinds_of_flags(place)]
