"""From the course's files to batches of ids, and back to prediction files.

    4.1    WordPiece: text -> ids, as BERT was pre-trained on it
    4.1    load(): the nine CSV files
    3.4    join_pair(), collate(): a pair as one sequence (CON), or as two
    3.3    Stream: "saved state iterator that cycled once it reached the end of the dataset"
    4.2    write_predictions(): what the course's grader reads

Symbols: N examples in a file, B of them in a batch, T tokens in the longest of the batch.
Text becomes ids once, when a file is loaded; padding is added batch by batch, at the end
only. Batches hold examples of like length: in batches of random examples up to half of all
tokens would be padding, which costs as much time as text.
D18: 3.3 doesn't say what becomes of a set's last, smaller batch. Here every batch has B
examples, and what is left over comes first in the next pass.
Truncates texts longer than the encoder's position table, a pair's longer sentence first.
"""

import dataclasses
import os
import re
import unicodedata

import numpy as np
import torch

from plumbing import progress, tsv, vocabulary

# --- 4.1 WordPiece ---

# Whitespace: Unicode's categories Zs, Zl, Zp, and the control characters \t, \n and \r.
BLANKS = re.compile("[ \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
       (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
REMOVED = ("Cc", "Cf", "Co", "Cs")      # control, format, private, half a character
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
        # Control characters vanish without leaving a gap: "c\x0bd" -> "cd". Not Cn, what
        # this Python's Unicode does not know: a newer emoji is [UNK], as an older one is.
        if c in "\0\ufffd" or (c not in "\t\n\r" and unicodedata.category(c) in REMOVED):
            continue
        # A CJK character is a word of its own; Hangul and Kana are not included.
        cjk = chinese and not c.isascii() and any(a <= ord(c) <= b for a, b in CJK)
        kept.append(" " if c.isspace() else f" {c} " if cjk else c)
    text = "".join(kept)
    if lower_case:
        # Why: at a word's end str.lower() makes Σ ς; tokenizers, letter by letter, σ.
        text = text.replace("Σ", "σ").lower()
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
        # Tokens that were added later are found in a text, by split(), but never in a word.
        self.wordpieces = {token: i for i, token in enumerate(v.tokens[:v.base])}
        self.pad, self.unk, self.cls, self.sep = (
            self.ids[v.control[f"{name}_token"]] for name in ("pad", "unk", "cls", "sep"))
        self.settings = v.lower_case, v.strip_accents, v.chinese
        self.seen = {}          # raw word -> its ids

    def __deepcopy__(self, memo):
        return self             # it never changes: SMART's teacher shares the model's

    def save(self, folder, max_length=None):
        """Write vocab.txt and tokenizer_config.json as they were when they were loaded.

        max_length: of a row of tokens, for other libraries' truncation.
        """
        self.vocabulary.save(folder, max_length)

    def pieces(self, token):
        """unaffable -> un ##aff ##able; if any rest has no match, the whole is [UNK]."""
        if len(token) > MAX_CHARACTERS:
            return [self.unk]
        found, start = [], 0
        while start < len(token):
            for end in range(len(token), start, -1):
                piece = self.wordpieces.get(("##" if start else "") + token[start:end])
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
    ids: list[str]                  # [N], as in the file
    tokens: list[tuple]             # [N], each one or two lists of ids
    labels: np.ndarray | None       # [N] float32; None: a test set

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
    lines: dict[str, int] = {}              # id -> its line
    ids, tokens, labels = [], [], []
    rows = tsv.read(path, ["id", *task.texts, *label])
    for line, (example, *values) in progress.track(rows, os.path.basename(path), "rows"):
        tsv.note_id(lines, example, path, line)
        ids.append(example)
        tokens.append(tuple(tokenizer(text) for text in values[:len(task.texts)]))
        if label:
            labels.append(parse_label(values[-1], task, path, line))
    if not ids:
        raise ValueError(f"{path}: needed at least one example below the names of the "
                         f"columns, got none; fill it, or copy it again")
    return Dataset(path, ids, tokens, np.array(labels, np.float32) if label else None)


def load_sets(path, tasks, trained, tokenizer) -> tuple:
    """What there is of the nine files.   -> ({split: {task: Dataset}}, [missing file, …])

    Trained tasks need their train and dev sets; everything else is taken if it is there.
    """
    sets, missing = {"train": {}, "dev": {}, "test": {}}, []
    for split in sets:
        for name, task in tasks.items():
            if name not in trained and split == "train":
                continue
            if name in trained and split != "test" or os.path.exists(
                    path_of(path, task, split)):
                sets[split][name] = load(path, task, split, tokenizer)
            else:
                missing.append(os.path.basename(path_of(path, task, split)))
    return sets, missing


def parse_label(text: str, task, path: str, line: int) -> float:
    """"3" or "2.75" -> float, checked against the task's range."""
    value = tsv.parse_number(text)
    in_range = task.lowest <= value <= task.highest
    if not in_range or (task.whole_labels and value != int(value)):
        kind = "a whole number" if task.whole_labels else "a number"
        raise ValueError(f"{path}, line {line}: {task.label} must be {kind} from "
                         f"{task.lowest} to {task.highest}, got {text[:40]!r}; mend or "
                         f"remove that line")
    return value


# --- 3.4 Comparison contextual embeddings (CON) ---

def truncate_pair(len_a, len_b, budget):
    """Lengths after dropping one token at a time from the longer side, from b on a tie.

    len_a, len_b: numbers of tokens of the two sentences; budget: what they may have
    together. (10, 3, 9) -> (6, 3); (5, 5, 9) -> (5, 4). In closed form: b may keep half of
    the budget, or whatever a leaves free. Cutting the end of the whole row instead would
    often remove all of b, and with it what there is to compare.
    """
    keep_b = min(len_b, max(budget // 2, budget - len_a))
    return min(len_a, budget - keep_b), keep_b


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
    """Tensors for one forward pass.   R = B rows, or 2B for a pair task without CON

    The 2B rows are all first sentences, then all second ones: one pass through the encoder
    serves both.
    """
    input_ids: torch.Tensor                 # [R, T]
    token_type_ids: torch.Tensor | None     # [R, T]; None: all 0
    attention_mask: torch.Tensor | None     # [R, T], 1 for tokens; None: nothing is padded
    labels: torch.Tensor | None             # [B] float32; None: a test set

    def to(self, device):
        # Only with CUDA: elsewhere the host's tensor may be freed before it is copied.
        on_gpu = torch.device(device).type == "cuda"

        def moved(tensor):
            return None if tensor is None else tensor.to(device, non_blocking=on_gpu)
        return Batch(moved(self.input_ids), moved(self.token_type_ids),
                     moved(self.attention_mask), moved(self.labels))


def collate(dataset: Dataset, indices, tokenizer, joint: bool, max_length: int) -> Batch:
    """Examples -> Batch.   indices [B]; joint is CON; max_length counts [CLS] and [SEP]

    joint:     a pair as one row, by join_pair()                     [report 3.4]
    otherwise: [CLS] a [SEP] and [CLS] b [SEP] as two rows
    """
    cls, sep = tokenizer.cls, tokenizer.sep
    examples = [dataset.tokens[i] for i in indices]         # B tuples of one or two lists
    segments = None
    if joint and len(examples[0]) == 2:
        joined = [join_pair(a, b, cls, sep, max_length) for a, b in examples]
        rows, segments = [row for row, _ in joined], [s for _, s in joined]
    else:
        rows = [[cls, *texts[k][:max_length - 2], sep]
                for k in range(len(examples[0])) for texts in examples]
    T = max(len(row) for row in rows)
    padded = any(len(row) < T for row in rows)

    # Trap: pad at the end, with [PAD]'s id, segment 0 and mask 0. The mask alone keeps
    # padding out of the attention. Without padding it is None, which saves adding zeros.
    def fill(lists, value):
        return torch.tensor([row + [value] * (T - len(row)) for row in lists])      # [R, T]

    return Batch(
        input_ids=fill(rows, tokenizer.pad),
        token_type_ids=None if segments is None else fill(segments, 0),
        attention_mask=fill([[1] * len(row) for row in rows], 0) if padded else None,
        labels=(None if dataset.labels is None else
                torch.from_numpy(dataset.labels[indices])))


# --- 3.3 Batches ---

def lengths(dataset: Dataset, joint: bool) -> np.ndarray:
    """The number of tokens that sets the length of each example's row.   -> [N]

    A pair as one row (CON) needs both sentences; as two rows, the longer one counts.
    """
    total = sum if joint else max
    return np.array([total(len(text) for text in texts) for texts in dataset.tokens])


class Stream:
    """Endless batches, without replacement: pass after shuffled pass.   [report 3.3]

    next() -> indices [B]. The shuffled passes over the N examples stand one after another
    in one long sequence, which is cut into batches of B. With N = 10 and B = 4:

        pass    0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 1 1 2 2 2 2 …
        batch   0 0 0 0 1 1 1 1 2 2 2 2 3 3 3 3 4 4 4 4 5 5 5 5 …
        group   |- sorted ----| |alone| |- sorted ----| |- sorted …

    Up to GROUP batches of one pass form a group: their examples are sorted by length, cut
    into batches again, and these are shuffled. So the examples of a batch have about the
    same length but are otherwise random. Batch 2 takes the rest of pass 0 and begins pass
    1 (D18). It stays alone, so that no example comes again before all others have come.
    `position` is [restarts, next batch], all that a checkpoint needs: the random numbers
    are seeded by the place in the sequence, not by what was drawn before.
    """

    GROUP = 64

    def __init__(self, lengths: np.ndarray, batch_size: int, seed):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, list(seed)
        self.position = [0, 0]
        self.generation, self.group = 0, range(0)   # what is in self.batches
        self.batches = np.empty((0, batch_size), int)

    def restart(self) -> None:
        """Begin a new order and drop the rest of this pass (--fresh-streams)."""
        self.position = [self.position[0] + 1, 0]

    def next(self) -> np.ndarray:
        """-> indices [B]"""
        generation, batch = self.position
        if generation != self.generation or batch not in self.group:
            self.generation, self.group = generation, self.group_of(batch)
            self.batches = self.batches_of(generation, self.group)
        self.position = [generation, batch + 1]
        return self.batches[batch - self.group.start]

    def group_of(self, batch: int) -> range:
        """The numbers of the batches that are sorted together with this one."""
        N, B = len(self.lengths), self.batch_size
        this_pass = batch * B // N                      # the pass of its first example
        first = -(-this_pass * N // B)                  # the pass's first whole batch
        end = (this_pass + 1) * N // B                  # one after its last whole batch
        if batch >= end:
            return range(batch, batch + 1)
        start = batch - (batch - first) % self.GROUP
        return range(start, min(start + self.GROUP, end))

    def batches_of(self, generation: int, group: range) -> np.ndarray:
        """The batches of a group.   -> indices [len(group), B]"""
        N, B = len(self.lengths), self.batch_size
        picks, at, end = [], group.start * B, group.stop * B    # places in the sequence
        while at < end:
            this_pass, inside = divmod(at, N)
            order = np.random.default_rng([*self.seed, generation, 0, this_pass])
            picks.append(order.permutation(N)[inside:inside + end - at])
            at += len(picks[-1])
        indices = np.concatenate(picks)
        by_length = indices[np.argsort(self.lengths[indices], kind="stable")]
        shuffle = np.random.default_rng([*self.seed, generation, 1, group.start])
        return by_length.reshape(-1, B)[shuffle.permutation(len(group))]


def in_order_of_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches that hold every example once, the longest first.   -> [indices [≤ B], …]

    The first batch is the largest, so if memory is too small we know at once.
    """
    order = np.argsort(-lengths, kind="stable")
    return [order[i:i + batch_size] for i in range(0, len(order), batch_size)]


# --- 4.2 Prediction files ---

def write_predictions(path, task, ids, predictions):
    """Write what the course's grader reads: "id , value" lines under a header.

    The odd spaces are part of the format. predictions [N], in the order of ids. Raises
    ValueError if there are more or fewer of them.
    """
    if len(ids) != len(predictions):
        raise ValueError(f"needed a prediction for each of {len(ids)} ids, got "
                         f"{len(predictions)}")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(f"id \t {task.prediction_column} \n")
        for example, value in zip(ids, np.asarray(predictions).tolist()):
            file.write(f"{example} , {value} \n")
