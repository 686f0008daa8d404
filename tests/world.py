"""What tests share: a tiny BERT, batches and CSV files; toy problems; runs of train.py.

Each helper imports the project's modules itself, when it is called: an error in one module
then fails only the tests that need this module.
"""

import contextlib
import functools
import io
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import unittest.mock

import numpy as np
import torch

# --- A tiny encoder ---

# The sizes of the tiny encoder, as arguments of BertConfig.
SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 4, "intermediate_size": 32, "max_position_embeddings": 40}


def small_bert(seed=0, std=0.2, **changes):
    """A tiny random encoder, in eval mode; std is large so that differences show."""
    import bert
    torch.manual_seed(seed)
    config = bert.BertConfig(**{**SMALL, "initializer_range": std, **changes})
    return bert.BertModel(config).eval()


def flat_model(rows=3, con=True, **changes):
    """A tiny multitask model and its parameters as one vector θ."""
    import heads
    import optim
    model = heads.MultitaskBert(small_bert(**changes), con=con)
    return model, optim.FlatParameters(model.blocks(), rows)


class FakeTokenizer:
    pad, unk, cls, sep = 0, 1, 2, 3


def tiny_batch(joint, pair=True, seed=0):
    """Four examples of unequal length.   -> (data.Dataset, data.Batch)"""
    import data
    rng = np.random.default_rng(seed)
    tokens = [tuple(rng.integers(5, 50, rng.integers(2, 9)).tolist()
                    for _ in range(1 + pair)) for _ in range(4)]
    dataset = data.Dataset("", ["w", "x", "y", "z"], tokens,
                           np.array([0, 1, 1, 0], np.float32))
    return dataset, data.collate(dataset, np.arange(4), FakeTokenizer, joint, 40)


# --- Toy problems for the treatments ---

def random_problems(number, seed=0):
    """Task gradients of very different sizes and angles, with orders."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        K, P = rng.integers(2, 6), rng.integers(2, 9)
        gradients = rng.normal(size=(K, P)) * rng.lognormal(size=(K, 1))
        orders = [[j for j in rng.permutation(K).tolist() if j != i] for i in range(K)]
        yield gradients, orders, rng


def gram_of(gradients):
    """The inner products of all pairs.   [K, P] -> [K, K]"""
    gradients = np.array(gradients, np.float64)
    return gradients @ gradients.T


ROWS = {"a": 0, "b": 1}        # the toy tasks' rows of G
NOTHING = ("no gradient arrived in G: flat.attach(rows[task]) comes before each task's "
           ".backward()")


def toy(rows=2):
    """Two tasks with a shared vector w and a head each.   -> (flat, loss_fn)

    Tasks "a" and "b": loss = scale · (w · c + s · h), where the batch is the scale, c is
    (1, 0) for "a" and (-1, 1) for "b", s 3 and 5.
    """
    import optim
    w = torch.nn.Parameter(torch.zeros(1, 2))
    h = [torch.nn.Parameter(torch.zeros(1, 1)) for _ in range(2)]
    own = {"a": (torch.tensor([1.0, 0]), 3.0, h[0]),
           "b": (torch.tensor([-1.0, 1]), 5.0, h[1])}
    flat = optim.FlatParameters([optim.Block("shared", {"w": w}),
                                 optim.Block("head a", {"h_a": h[0]}, shared=False),
                                 optim.Block("head b", {"h_b": h[1]}, shared=False)], rows)

    def loss_fn(task, batch):
        c, s, head = own[task]
        loss = batch * (w[0] @ c + s * head[0, 0])
        return loss, {"loss": loss.detach()}
    return flat, loss_fn


def toy_step(treatment, micro_batches=({"a": 1.0, "b": 1.0},), clip=0.0,
             granularity="model"):
    """backward() and treat() on the toy problem.   -> (flat, what treat() returned)"""
    import multitask
    flat, loss_fn = toy()
    multitask.backward(flat, list(micro_batches), loss_fn, ROWS)
    assert flat.G.any(), NOTHING
    treated = multitask.treat(flat, multitask.regions(flat, granularity), ROWS,
                              treatment, clip, np.random.default_rng(0))
    return flat, treated


# --- Files ---

VOCABULARY = ("[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e good bad not very movie how what "
              "is the best way to learn python cat dog man runs sits on mat grass ? . , "
              "##s ##ing 1 2 3 4 red blue two three play ##ed un ##aff ##able it ' $ / _ 5 "
              "00")
WORDS = VOCABULARY.split()


def write_file(text, name="x.csv", binary=None):
    """A new folder with one file.   -> the folder"""
    folder = tempfile.mkdtemp(prefix="minbert-file-")
    with open(os.path.join(folder, name), "wb") as file:
        file.write(text.encode() if binary is None else binary)
    return folder


@functools.cache
def tiny_world():
    """The nine CSV files and a tiny random BERT.   -> (data folder, weights folder)"""
    import heads
    folder = tempfile.mkdtemp(prefix="minbert-test-")
    rng = np.random.default_rng(0)
    words = WORDS[10:32]
    for task in heads.tasks():
        for split, number in (("train", 40), ("dev", 12), ("test-student", 6)):
            columns = ["id", *task.texts] + ([] if "test" in split else [task.label])
            lines = ["\t".join(["", *columns])]
            for i in range(number):
                label = (rng.integers(task.lowest, task.highest + 1) if task.whole_labels
                         else round(5 * rng.random(), 2))
                # The last word of each text tells the label, so that it can be learned.
                texts = [" ".join([*rng.choice(words, rng.integers(1, 8)),
                                   WORDS[5 + int(label)]])
                         for _ in task.texts]
                label = f"{label:.1f}" if task.name == "para" else str(label)
                row = [str(i), f"{task.name[0]}{split[0]}{i:023x}", *texts]
                lines.append("\t".join(row + ([] if "test" in split else [label])))
            with open(os.path.join(folder, f"{task.file}-{split}.csv"), "w") as file:
                file.write("\n".join(lines) + "\n")
    weights = os.path.join(folder, "weights")
    small_bert(vocab_size=len(WORDS)).save_pretrained(weights)
    with open(os.path.join(weights, "vocab.txt"), "w") as file:
        file.write("\n".join(WORDS) + "\n")
    return folder, weights


def with_file(kind, name, content):
    """A copy of the tiny world's data or weights with one file replaced (None: removed).

    kind: "data" or "weights".   -> the argument of run_train() that names the copy
    """
    world, weights = tiny_world()
    folder = shutil.copytree(world if kind == "data" else weights,
                             os.path.join(tempfile.mkdtemp(), kind))
    path = os.path.join(folder, name)
    os.remove(path)
    if content is not None:
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
    return {"data_folder" if kind == "data" else "weights": folder}


@functools.cache
def tiny_tokenizer():
    import data
    return data.WordPiece(os.path.join(tiny_world()[1], "vocab.txt"))


# --- Runs of train.py ---

def run_train(*flags, steps=2, data_folder=None, weights=None):
    """`python train.py …` on the tiny world.   -> (exit status, out folder, stderr)"""
    import train
    folder, small = tiny_world()
    out = os.path.join(tempfile.mkdtemp(prefix="minbert-run-"), "run")
    status, _, errors = run_tool(
        train, "--data", data_folder or folder, "--weights", weights or small, "--out", out,
        "--amp", "off", "--lr", 0.01, "--batch-size", 4, "--accumulate", 1, "--para-first",
        0, "--epochs", 1, "--max-steps", steps, *flags)
    return status, out, errors


def resume(out, *flags):
    """`python train.py --resume OUT …`   -> (exit status, stdout, stderr)"""
    import train
    return run_tool(train, "--resume", out, *flags)


class Typed(io.TextIOWrapper):
    """Takes the place of sys.stdin.   content: text, or bytes; typed: at a keyboard"""

    def __init__(self, content, typed=False):
        content = content if isinstance(content, bytes) else content.encode()
        super().__init__(io.BytesIO(content), "utf-8")
        self.typed = typed

    def isatty(self):
        return self.typed


def run_tool(module, *flags, stdin="", typed=False):
    """A command's main(), in this process.   -> (exit status, stdout, stderr)

    stdin, typed: as in Typed.
    """
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), \
            unittest.mock.patch.object(sys, "stdin", Typed(stdin, typed)):
        try:
            status = module.main(list(map(str, flags)))
        except SystemExit as end:       # argparse
            status = end.code
    return status, output.getvalue(), errors.getvalue()


def training_of(*flags, sst=None):
    """What train.py makes of the flags on the tiny world.   -> (train.Training, plan)

    sst: how many training examples of SST there are, if not all 40.
    """
    import train
    args, _ = settings_of("--device", "cpu", "--batch-size", "4", *flags)
    training = train.prepare(args, torch.device("cpu"), contextlib.nullcontext)
    if sst:
        dataset = training.sets["train"]["sst"]
        dataset.ids, dataset.tokens = dataset.ids[:sst], dataset.tokens[:sst]
    return training, train.make_plan(args, training.sets["train"])


def settings_of(*flags):
    """(args, sources) as on data of one's own; the sample has a row of its own."""
    import train
    folder, weights = tiny_world()
    return train.parse(["--data", folder, "--weights", weights, *flags])


@functools.cache
def fingerprint(*flags):
    """The encoder's weights after two steps with these flags, as one vector.

    Without dropout, so that a flag cannot pass by merely shifting the random numbers.
    """
    from plumbing import safetensors
    status, out, errors = run_train("--dropout", 0, *flags)
    assert status == 0, errors
    tensors = safetensors.load(os.path.join(out, "best", "model.safetensors"))
    return torch.cat([tensor.double().flatten() for name, tensor in tensors.items()
                      if not name.startswith("heads.")])


def files_of(out):
    """{name: bytes} of all that a run must reproduce; clock times are exempt."""
    import heads
    names = ["metrics.jsonl", "best/model.safetensors", "best/config.json"] + [
        f"predictions/{task.name}-{split}-output.csv" for task in heads.tasks()
        for split in ("dev", "test")]
    found = {}
    for name in names:
        with open(os.path.join(out, name), "rb") as file:
            found[name] = file.read()
    return found


def log_of(out):
    """The lines of a run's metrics.jsonl."""
    with open(os.path.join(out, "metrics.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def send(number):
    """signal.raise_signal(), but not if that would end the tests themselves."""
    deaf = signal.SIG_DFL, signal.default_int_handler
    assert signal.getsignal(number) not in deaf, (
        f"nobody listens to signal {number}: it would end the process at once")
    signal.raise_signal(number)


def signalled_at(step, number=signal.SIGTERM):
    """Within this context the process gets a signal in the middle of its step `step`."""
    import multitask
    original, count = multitask.treat, itertools.count(1)

    def treat_and_signal(*args, **more):
        if next(count) == step:
            send(number)
        return original(*args, **more)
    return unittest.mock.patch.object(multitask, "treat", treat_and_signal)


# A run in which as much as possible has a state that must survive an interruption.
HARD = ("--option", "gvac", "--smart", "--con", "--hlh", "--epochs", 2, "--para-first", 1,
        "--accumulate", 2)


@functools.cache
def uninterrupted():
    """The files of the HARD run, left alone."""
    return files_of(run_train(*HARD, steps=12)[1])


@functools.cache
def analyzed():
    """A finished run that has everything analyze.py reads. Do not change it."""
    return run_train("--option", "gvac", "--con", "--log-layers", "--epochs", 2,
                     steps=20)[1]


# --- Runs of tools/pretrain.py ---

def run_pretrain(*flags, steps=6):
    """`python tools/pretrain.py …` on the tiny world's texts.   -> (status, out, stderr)"""
    from tools import pretrain
    world, _ = tiny_world()
    out = os.path.join(tempfile.mkdtemp(prefix="minbert-pretrain-"), "run")
    status, _, errors = run_tool(
        pretrain, "--text", os.path.join(world, "quora-train.csv"),
        os.path.join(world, "ids-sst-train.csv"), "--out", out, "--batch-size", 8,
        "--max-steps", steps, "--amp", "off", *flags)
    return status, out, errors


def from_scratch():
    """The flags of pretrain.py for a tiny new encoder."""
    vocab = os.path.join(tiny_world()[1], "vocab.txt")
    return "--vocab", vocab, "--hidden", 16, "--layers", 1


def skip_without_torchjd():
    """torchjd and what some of its weightings need."""
    from tests.checks import skip_without
    skip_without("torchjd", "qpsolvers", "quadprog")
