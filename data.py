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
Leaves out: texts longer than the encoder's position table (they are truncated, a pair's
longer sentence first).
"""

import csv
import dataclasses
import os
import re
import unicodedata
import warnings

import numpy as np
import torch

from plumbing import vocabulary


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


def normalize(text: str, lower_case=True, strip_accents=True, chinese=True) -> str:
    """Clean, set Chinese characters apart, lower-case, strip accents.   [Devlin, code]

    The settings are those of the weights: a cased BERT has lower_case and strip_accents
    False. "Été\tnaïve" -> "ete naive"
    """
    kept = []
    for c in text:
        # Control characters vanish without leaving a gap: "c\x0bd" -> "cd".
        if c in "\0\ufffd" or (c not in "\t\n\r" and unicodedata.category(c)[0] == "C"):
            continue
        # A CJK character is a word of its own; Hangul and Kana are not included.
        cjk = chinese and not c.isascii() and any(a <= ord(c) <= b for a, b in CJK)
        kept.append(" " if c.isspace() else f" {c} " if cjk else c)
    text = "".join(kept)
    if lower_case:
        text = text.lower()
    if strip_accents:
        # After lower-casing: İ -> i + a dot above, and the dot is then dropped.
        text = "".join(c for c in vocabulary.decompose(text)
                       if unicodedata.category(c) != "Mn")
    return text


def basic_tokens(text: str, lower_case=True, strip_accents=True, chinese=True) -> list[str]:
    """normalize(), then split at blanks and at punctuation.   [Devlin et al. 2018, code]

    "Été naïve, $5.00" -> ["ete", "naive", ",", "$", "5", ".", "00"]
    """
    text = normalize(text, lower_case, strip_accents, chinese)
    return "".join(f" {c} " if is_punctuation(c) else c for c in text).split()


class WordPiece:
    """Text -> sub-word ids, greedy longest match first.   [Wu et al. 2016; report 4.1]

    path: a model's folder, or its vocab.txt; the tokenizer's settings are read from the
    files beside it. vocab_size: rows of the embedding table that the ids must fit. Raises
    ValueError for a vocabulary that does not, or that lacks one of BERT's special tokens.
    "[SEP]" in a text is text, not the separator: nobody can write one into their question.
    """

    def __init__(self, path, vocab_size: int | None = None):
        self.vocabulary = v = vocabulary.read(path, vocab_size)
        self.path, self.tokens = v.path, v.tokens
        self.ids = {token: i for i, token in enumerate(v.tokens)}
        self.pad, self.unk, self.cls, self.sep = (
            self.ids[v.control[f"{name}_token"]] for name in ("pad", "unk", "cls", "sep"))
        self.settings = v.lower_case, v.strip_accents, v.chinese
        self.seen = {}          # raw word -> its ids

    def save(self, folder):
        """Write vocab.txt and tokenizer_config.json as they were when they were loaded."""
        self.vocabulary.save(folder)

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

    def __call__(self, text: str) -> list[int]:
        """str -> list of ids, without [CLS] and [SEP]."""
        def clean(text):
            return normalize(text, *self.settings)
        ids = []
        for part, added in self.vocabulary.split(text, clean):
            if added is not None:               # "[E1]", if it was added to the vocabulary
                ids.append(added)
                continue
            for word in BLANKS.split(part):
                # Why: English repeats itself. Keyed on the raw word, one look-up replaces
                # all the steps above for 19 words of 20. None of them looks across a blank.
                known = self.seen.get(word)
                if known is None:
                    known = [piece for token in basic_tokens(word, *self.settings)
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


def load(folder, task, split, tokenizer):
    """Read one of nine files.   (folder, heads.Task, "train" | "dev" | "test") -> Dataset

    Rows that lack a field are skipped with one warning. Raises FileNotFoundError, or
    ValueError naming file and line.
    """
    suffix = "test-student" if split == "test" else split
    path = os.path.join(folder, f"{task.file}-{suffix}.csv")
    if not os.path.exists(path):
        raise FileNotFoundError(f"needed the {split} set of {task.name} as {path}, there "
                                f"is no such file; give the folder of the nine CSV files "
                                f"with --data")
    label = None if split == "test" else task.label
    needed = ["id", *task.texts, *([label] if label else [])]
    ids, tokens, labels, skipped = [], [], [], []
    with open(path, encoding="utf-8", newline="") as file:
        # Not line.split("\t"): two rows in a hundred are quoted and hold tabs or newlines.
        rows = csv.DictReader(file, delimiter="\t")
        try:
            for column in needed:
                if column not in (rows.fieldnames or []):
                    raise ValueError(f"{path}, line 1: needed the columns "
                                     f"{', '.join(needed)} separated by tabs, got "
                                     f"{str(rows.fieldnames)[:80]}")
            for row in rows:
                if None in row or any(row[column] in (None, "") for column in needed):
                    skipped.append(rows.line_num)
                    continue
                ids.append(row["id"])
                tokens.append(tuple(tokenizer(row[column]) for column in task.texts))
                if label:
                    labels.append(parse_label(row[label], task, path, rows.line_num))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}, after line {rows.line_num}: needed UTF-8 text with "
                             f"tabs, got {error}; copy the file again") from None
    if skipped:
        warnings.warn(f"{path}: skipped {len(skipped)} rows that lack a field or have one "
                      f"too many, the first at line {skipped[0]}")
    if not ids:
        raise ValueError(f"{path}: needed at least one example, got none; "
                         f"copy the file again")
    return Dataset(path, ids, tokens, np.array(labels, np.float32) if label else None)


def parse_label(text, task, path, line):
    """"3" or "2.75" -> float, checked against the task's range."""
    low, high, whole = task.label_range
    kind = "a whole number" if whole else "a number"
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high or (whole and value != int(value)):
        raise ValueError(f"{path}, line {line}: {task.label} must be {kind} from {low} to "
                         f"{high}, got {text[:40]!r}; mend or remove that line")
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


def read_predictions(path):
    """What write_predictions() wrote.   -> {id: value}; raises ValueError naming the line

    Ids are stripped and lower-cased, as the course's grader does.
    """
    found = {}
    with open(path, encoding="utf-8") as file:
        next(file, None)                                # the header
        for number, line in enumerate(file, 2):
            example, _, value = line.partition(",")
            try:
                found[example.strip().lower()] = float(value)
            except ValueError:
                raise ValueError(f"{path}, line {number}: needed id , value, got "
                                 f"{line[:40]!r}; predict again") from None
    return found
