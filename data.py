"""From the course's files to batches of ids, and back to prediction files.

    4.1    WordPiece: text -> ids, as BERT was pre-trained on it
    4.1    load(): the nine CSV files
    3.4    join_pair(), collate(): a pair as one sequence (CON), or as two
    3.3    Stream: "saved state iterator that cycled once it reached the end of the dataset"
    4.2    write_predictions(), read_predictions(): what the course's grader reads

Symbols: N examples in a file, B of them in a batch, T tokens in the longest of the batch.
Text becomes ids once, when a file is loaded; padding is added batch by batch, at the end
only. Batches hold examples of like length: in batches of random examples up to half of all
tokens would be padding, which costs as much time as text.
D18: 3.3 doesn't say what becomes of a set's last, smaller batch. Here every batch has B
examples, and what is left over comes first in the next pass.
Leaves out: cased vocabularies, and texts longer than the encoder's position table (they are
truncated, a pair's longer sentence first).
"""

import dataclasses
import math
import os
import re
import unicodedata

import numpy as np
import torch

from plumbing import tsv


# --- 4.1 WordPiece ---

# What separates words: categories Zs, Zl, Zp, and the three controls that count as blanks.
BLANKS = re.compile("[ \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
       (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
MAX_CHARACTERS = 100            # a longer word is [UNK], as in the released BERT


def is_punctuation(c):
    """Every ASCII symbol counts, "$" and "^" too; of the rest, Unicode's category P."""
    return ("!" <= c <= "/" or ":" <= c <= "@" or "[" <= c <= "`" or "{" <= c <= "~"
            or unicodedata.category(c).startswith("P"))


def basic_tokens(text):
    """Clean, lower-case, strip accents, split off punctuation.   [Devlin et al. 2018, code]

    "Été naïve, $5.00" -> ["ete", "naive", ",", "$", "5", ".", "00"]
    """
    kept = []
    for c in text:
        # Control characters vanish without leaving a gap: "c\x0bd" -> "cd".
        if c in "\0\ufffd" or (c not in "\t\n\r" and unicodedata.category(c)[0] == "C"):
            continue
        # A CJK character is a word of its own; Hangul and Kana are not of them.
        kept.append(f" {c} " if any(a <= ord(c) <= b for a, b in CJK) else c)
    tokens = []
    for word in "".join(kept).split():
        # Lower-case before decomposing: İ -> i + a dot above, and the dot is then dropped.
        word = "".join(c for c in unicodedata.normalize("NFD", word.lower())
                       if unicodedata.category(c) != "Mn")
        spaced = "".join(f" {c} " if is_punctuation(c) else c for c in word)
        tokens += spaced.split()
    return tokens


class WordPiece:
    """Text -> sub-word ids, greedy longest match first.   [Wu et al. 2016; report 4.1]

    vocab_size: rows of the embedding table that the ids must fit. Raises ValueError for a
    vocabulary that does not, or that lacks one of BERT's special tokens.
    "[SEP]" in a text is text, not the separator: nobody can write one into their question.
    """

    def __init__(self, path, vocab_size=None):
        try:
            with open(path, encoding="utf-8") as file:
                self.tokens = [line.rstrip("\n") for line in file]
        except FileNotFoundError:
            raise FileNotFoundError(f"needed BERT's vocabulary beside its weights; there "
                                    f"is no {path}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} must be UTF-8 text, got {error.reason} at byte "
                             f"{error.start}; use BERT's vocab.txt") from None
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        missing = [t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if t not in self.ids]
        if missing:
            raise ValueError(f"{path} has no {missing[0]} among its {len(self.tokens)} "
                             f"lines; use BERT's vocab.txt")
        # Some tables are padded to a multiple of 64.
        if vocab_size is not None and not 0 <= vocab_size - len(self.tokens) < 64:
            raise ValueError(f"{path} has {len(self.tokens)} entries, the weights beside "
                             f"it were trained with {vocab_size}; use the one that came "
                             f"with them")
        self.path = path
        self.pad, self.unk, self.cls, self.sep = (
            self.ids[t] for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"))
        self.seen = {}          # raw word -> its ids

    def pieces(self, token):
        """unaffable -> un ##aff ##able; if any rest has no match, the whole is [UNK]."""
        if len(token) > MAX_CHARACTERS:
            return [self.unk]
        found, start = [], 0
        while start < len(token):
            for end in range(len(token), start, -1):
                piece = self.ids.get(("##" if start else "") + token[start:end])
                if piece is not None:
                    break
            else:
                return [self.unk]
            found.append(piece)
            start = end
        return found

    def save(self, folder):
        with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8") as file:
            file.write("".join(token + "\n" for token in self.tokens))

    def __call__(self, text):
        """str -> list of ids, without [CLS] and [SEP]."""
        ids = []
        for word in BLANKS.split(text):
            # Why: English repeats itself. Keyed on the raw word, one look-up replaces all
            # the steps above for 19 words of 20. None of them looks across a blank.
            known = self.seen.get(word)
            if known is None:
                known = [piece for token in basic_tokens(word)
                         for piece in self.pieces(token)]
                self.seen[word] = known
            ids += known
        return ids


# --- 4.1 The CSV files ---

@dataclasses.dataclass
class Dataset:
    """The examples of one file: ids, texts as token ids, labels (None for a test set)."""
    path: str
    ids: list               # [N] strings, as in the file
    tokens: list            # [N] tuples of one or two lists of ids
    labels: np.ndarray      # [N] float32

    def __len__(self):
        return len(self.ids)


def path_of(folder: str, task, split: str) -> str:
    """Where one of the nine files is, or would be.   split: "train", "dev" or "test" """
    suffix = "test-student" if split == "test" else split
    return os.path.join(folder, f"{task.file}-{suffix}.csv")


def load(folder: str, task, split: str, tokenizer) -> Dataset:
    """Read one of nine files.   (folder, heads.Task, "train" | "dev" | "test") -> Dataset

    Rows that lack a field are skipped with one warning. Raises FileNotFoundError, or
    ValueError naming file and line.
    """
    path = path_of(folder, task, split)
    if not os.path.exists(path):
        raise FileNotFoundError(f"needed the {split} set of {task.name} as {path}, there "
                                f"is no such file; give the folder of the CSV files with "
                                f"--data")
    label = [] if split == "test" else [task.label]
    lines, ids, tokens, labels = {}, [], [], []
    for line, (example, *values) in tsv.read(path, ["id", *task.texts, *label]):
        note_id(lines, example, path, line)
        ids.append(example)
        tokens.append(tuple(tokenizer(text) for text in values[:len(task.texts)]))
        if label:
            labels.append(parse_label(values[-1], task, path, line))
    if not ids:
        raise ValueError(f"{path}: needed at least one example, got none; "
                         f"copy the file again")
    return Dataset(path, ids, tokens, np.array(labels, np.float32) if label else None)


def note_id(lines: dict[str, int], example: str, path: str, line: int) -> str:
    """Add an id to lines {id: line}, stripped and lower-cased as all readers compare ids.

    Returns it. Raises ValueError for one that is there already, or that holds a line's end.
    """
    name = example.strip().lower()
    if "\n" in example:
        raise ValueError(f"{path}, line {line}: an id must stand in one line, got "
                         f"{example[:40]!r}; rename it")
    if name in lines:
        raise ValueError(f"{path}, lines {lines[name]} and {line} have the same id, "
                         f"{name[:40]!r} (blanks around it and upper case don't count); "
                         f"rename or remove one of them")
    lines[name] = line
    return name


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def parse_number(text: str) -> float:
    """"3", "2.75 " or "1e-05" -> float; anything else is NaN.

    float() alone would also read "1_0" as 10 and "٣" as 3.
    """
    return float(text) if NUMBER.fullmatch(text.strip()) else float("nan")


def parse_label(text: str, task, path: str, line: int) -> float:
    """"3" or "2.75" -> float, checked against the task's range."""
    value = parse_number(text)
    in_range = task.lowest <= value <= task.highest
    if not in_range or (task.whole_labels and value != int(value)):
        kind = "a whole number" if task.whole_labels else "a number"
        raise ValueError(f"{path}, line {line}: {task.label} must be {kind} from "
                         f"{task.lowest} to {task.highest}, got {text[:40]!r}; mend or remove that line")
    return value


# --- 3.4 Comparison contextual embeddings (CON) ---

def truncate_pair(a, b, budget):
    """Lengths after dropping one token at a time from the longer side, from b on a tie.

    a, b: tokens of the two sentences; budget: tokens that they may have together.
    (10, 3, 9) -> (6, 3); (5, 5, 9) -> (5, 4). In closed form: b may keep half of the
    budget, or whatever a leaves free. Cutting the end of the whole row instead would often
    remove all of b, and with it what there is to compare.
    """
    keep_b = min(b, max(budget // 2, budget - a))
    return min(a, budget - keep_b), keep_b


def join_pair(a, b, cls, sep, max_length):
    """A pair as one row of at most max_length ids, and its segments.   [report 3.4]

        [CLS] a [SEP] b [SEP]        0 … 0 1 … 1: the first [SEP] is 0, the last one 1

    a, b: lists of ids, cut by truncate_pair(); cls, sep: ids -> (row, segments), two lists.
    "Standalone sentences have less context than comparing them side by side": in one row
    every word of a can attend to every word of b, in every layer. Apart, all that is known
    of a sentence must fit the one vector that the head gets.
    """
    keep_a, keep_b = truncate_pair(len(a), len(b), max_length - 3)
    # Trap: without the first [SEP] "good not" + "bad" and "good" + "not bad" are the same
    # row but for their segment ids.
    row = [cls, *a[:keep_a], sep, *b[:keep_b], sep]
    return row, [0] * (keep_a + 2) + [1] * (keep_b + 1)


@dataclasses.dataclass
class Batch:
    """Tensors for one forward pass.

    R = B rows; without CON a pair task has R = 2B: first all first sentences, then all
    second ones, so that one pass through the encoder serves both.
    """
    input_ids: torch.Tensor         # [R, T]
    token_type_ids: torch.Tensor    # [R, T], or None for all 0
    attention_mask: torch.Tensor    # [R, T], 1 for tokens, or None if nothing is padded
    labels: torch.Tensor            # [B] float32, or None

    def to(self, device):
        def moved(tensor):
            return None if tensor is None else tensor.to(device, non_blocking=True)
        return Batch(*(moved(getattr(self, f.name)) for f in dataclasses.fields(self)))


def collate(dataset, indices, tokenizer, joint, max_length):
    """Examples -> Batch.   indices [B]; joint is CON; max_length in tokens, with specials.

    joint:     a pair as one row, by join_pair()                     [report 3.4]
    otherwise: [CLS] a [SEP] and [CLS] b [SEP] as rows of their own
    """
    cls, sep = tokenizer.cls, tokenizer.sep
    examples = [dataset.tokens[i] for i in indices]
    segments = None
    if joint and len(examples[0]) == 2:
        rows, segments = zip(*(join_pair(a, b, cls, sep, max_length) for a, b in examples))
    else:
        rows = [[cls, *texts[k][:max_length - 2], sep]
                for k in range(len(examples[0])) for texts in examples]
    T = max(map(len, rows))
    padded = any(len(row) < T for row in rows)

    # Trap: pad with [PAD]'s id, segment 0 and mask 0, at the end. The mask alone is what
    # keeps padding out; where nothing is padded it is None, which saves adding zeros.
    def fill(lists, value):
        return torch.tensor([row + [value] * (T - len(row)) for row in lists])      # [R, T]

    labels = None if dataset.labels is None else torch.from_numpy(dataset.labels[indices])
    return Batch(fill(rows, tokenizer.pad), None if segments is None else fill(segments, 0),
                 fill([[1] * len(row) for row in rows], 0) if padded else None, labels)


# --- 3.3 Batches ---

def lengths(dataset, joint):
    """Tokens that each example takes in a row, to sort by.   -> [N]

    Apart, a row is as long as the longer of the two sentences; together, as both.
    """
    together = sum if joint else max
    return np.array([together(map(len, texts)) for texts in dataset.tokens])


class Stream:
    """Endless batches, without replacement: pass after shuffled pass.   [report 3.3]

    next() -> indices [B]. The shuffled passes over the N examples form one long sequence,
    of which batch b takes the places b·B to (b+1)·B. Within a pass up to WINDOW batches at
    a time are sorted by length and cut anew, then shuffled: batch-mates are alike in length
    but otherwise random. The batch in which a pass ends holds what is left over of it (D18)
    and is filled up from the next: no example comes again before all others have come.
    `position` is [generation, batches drawn], two integers, all that a checkpoint needs:
    every order comes from a generator seeded by (seed, position), not by what came before.
    """

    WINDOW = 64

    def __init__(self, lengths, batch_size, seed):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, list(seed)
        self.position = [0, 0]
        self.window = None, None        # (generation, its first batch's number), batches

    def restart(self):
        """Begin a new order, dropping the rest of this pass (--fresh-streams)."""
        self.position = [self.position[0] + 1, 0]

    def next(self):
        """-> indices [B]"""
        N, B = len(self.lengths), self.batch_size
        generation, b = self.position
        this_pass = b * B // N
        # The batches that lie wholly in this pass: first … last - 1.
        first, last = -(-this_pass * N // B), (this_pass + 1) * N // B
        if b < last:
            start = first + (b - first) // self.WINDOW * self.WINDOW
            count = min(self.WINDOW, last - start)
        else:
            start, count = b, 1         # the one in which this pass ends and another begins
        if self.window[0] != (generation, start):
            self.window = (generation, start), self.batches_of(generation, start, count)
        self.position = [generation, b + 1]
        return self.window[1][b - start]

    def batches_of(self, generation, start, count):
        """Batches start to start + count of the sequence.   -> [count, B]"""
        N, B = len(self.lengths), self.batch_size
        picks, at, end = [], start * B, (start + count) * B         # places in the sequence
        while at < end:
            this_pass, inside = divmod(at, N)
            order = np.random.default_rng([*self.seed, generation, 0, this_pass])
            picks.append(order.permutation(N)[inside:inside + end - at])
            at += len(picks[-1])
        picks = np.concatenate(picks)
        picks = picks[np.argsort(self.lengths[picks], kind="stable")].reshape(count, B)
        shuffle = np.random.default_rng([*self.seed, generation, 1, start])
        return picks[shuffle.permutation(count)]


def in_order_of_length(lengths, batch_size):
    """Every example once, longest first (so that memory runs out at once or never)."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i:i + batch_size] for i in range(0, len(order), batch_size)]


# --- 4.2 Prediction files ---

def write_predictions(path, task, ids, predictions):
    """Write what the course's grader reads: "id , value" lines under a header.

    The odd spaces are part of the format. predictions [N], in the order of ids.
    """
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(f"id \t {task.prediction_column} \n")
        for example, value in zip(ids, predictions.tolist()):
            file.write(f"{example} , {value} \n")


def read_predictions(path: str) -> dict[str, float]:
    """What write_predictions() wrote.   -> {id: value}; raises ValueError naming the line

    Ids are stripped and lower-cased, as the course's grader does. They may hold commas.
    """
    lines, found = {}, {}
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
        if not re.match(r"\s*id[\s,]", header, re.IGNORECASE):
            raise ValueError(f"{path}, line 1: needed the header id and the column's name, "
                             f"got {header[:40]!r}; predict again")
        for number, line in enumerate(file, 2):
            if not line.strip():
                continue
            example, _, text = line.rpartition(",")
            value = parse_number(text)
            if not example.strip() or not math.isfinite(value):
                raise ValueError(f"{path}, line {number}: needed id , number, got "
                                 f"{line[:80]!r}; predict again")
            found[note_id(lines, example, path, number)] = value
    return found
