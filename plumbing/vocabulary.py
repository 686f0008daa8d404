"""Read a BERT's vocabulary and the settings of its tokenizer, and write them again.

    vocab.txt               one token a line; its line, counted from 0, is its id
    tokenizer_config.json   lower-casing, accents, Chinese characters, added tokens
    tokenizer.json          all of that in one file, as new libraries write it
    added_tokens.json       {token: id} of tokens that were appended later
    special_tokens_map.json names of special tokens, as old libraries wrote it
    config.json             sometimes the tokenizer's class

vocab.txt or tokenizer.json must be there. A setting comes from tokenizer_config.json, or
else from tokenizer.json, or else is that of bert-base-uncased. Added tokens are found in a
text before it is split, as "[E1]" in "x[E1]y"; BERT's special tokens ([CLS], [SEP], …)
are not: nobody can write a separator into their question.
Leaves out: other tokenizers than BERT's, and never_split, which new libraries ignore too.
"""

import dataclasses
import json
import os
import re
import unicodedata
import warnings

from plumbing.checkpoint import missing, read_json, read_text
from plumbing.safetensors import shown

CONTROL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
           "sep_token": "[SEP]", "mask_token": "[MASK]"}
# Classes that split text as BERT's does. GENERIC ones take all from tokenizer.json.
CLASSES = ("BertTokenizer", "BertTokenizerLegacy", "DistilBertTokenizer",
           "ElectraTokenizer", "ConvBertTokenizer", "LxmertTokenizer",
           "MobileBertTokenizer", "DPRQuestionEncoderTokenizer",
           "DPRContextEncoderTokenizer")
GENERIC = ("PreTrainedTokenizer", "TokenizersBackend", "AutoTokenizer")
# Handed on when a tokenizer is saved: others need them.
KEPT = ("model_max_length", "padding_side", "truncation_side", "model_input_names",
        "clean_up_tokenization_spaces")


@dataclasses.dataclass
class Added:
    """A token that is looked for in the text itself, before it is split into words."""
    content: str
    id: int
    normalized: bool = True     # looked for in the lower-cased text
    single_word: bool = False   # not inside another word
    special: bool = False


@dataclasses.dataclass
class Vocabulary:
    """What read() found. tokens[id] is a token; those from `base` on were added later."""
    path: str
    tokens: list
    base: int
    lower_case: bool
    strip_accents: bool
    chinese: bool               # a Chinese character is a word of its own
    control: dict               # {"pad_token": "[PAD]", …}
    added: list                 # of Added
    kept: dict                  # entries of tokenizer_config.json for others

    def __post_init__(self):
        self.patterns = None

    def split(self, text, normalize):
        """-> [(text, None) or (added token, its id)], in the order of the text.

        normalize: str -> str, the lower-casing and so on. A token with normalized=False
        is found in the text as it is; then the rest is normalized, and searched for others.
        """
        if self.patterns is None:
            self.patterns = [
                pattern([a for a in self.added if not a.normalized], str),
                pattern([a for a in self.added if a.normalized], normalize)]
        parts = [(text, None)]
        for (found, ids), change in zip(self.patterns, (str, normalize)):
            if found is None:
                continue
            before, parts = parts, []
            for part, token in before:
                if token is not None:
                    parts.append((part, token))
                    continue
                # split() gives text, match, text, match, …, text.
                for i, piece in enumerate(found.split(change(part))):
                    parts.append((piece, ids[piece] if i % 2 else None))
        return parts

    def save(self, folder, max_length=None):
        """Write vocab.txt and tokenizer_config.json as loaded, not as they are by now."""
        with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8",
                  newline="\n") as file:
            file.writelines(f"{token}\n" for token in self.tokens[:self.base])
        entries = {"tokenizer_class": "BertTokenizer", "do_lower_case": self.lower_case,
                   "strip_accents": self.strip_accents,
                   "tokenize_chinese_chars": self.chinese, **self.control, **self.kept}
        if max_length:
            entries["model_max_length"] = max_length
        if self.added:
            entries["added_tokens_decoder"] = {
                str(a.id): {"content": a.content, "lstrip": False, "rstrip": False,
                            "normalized": a.normalized, "single_word": a.single_word,
                            "special": a.special} for a in self.added}
        with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8",
                  newline="\n") as file:
            json.dump(entries, file, indent=2)
            file.write("\n")


def pattern(added, change):
    """Added tokens -> (a regular expression that splits a text at them, {match: id})"""
    ids = {change(a.content): a.id for a in added if change(a.content)}
    single = {change(a.content) for a in added if a.single_word}
    if not ids:
        return None, ids
    longest_first = sorted(ids, key=len, reverse=True)
    return re.compile("(" + "|".join(
        rf"(?<!\w){re.escape(t)}(?!\w)" if t in single else re.escape(t)
        for t in longest_first) + ")"), ids


def decompose(text):
    """unicodedata.normalize("NFD", text), in time linear in len(text).

    Why: CPython sorts a run of n accents by insertion, n² steps: 13 s for 130,000 of them.
    """
    if text.isascii():
        return text
    kept, marks = [], []
    for c in "".join(unicodedata.normalize("NFD", c) for c in text):
        if unicodedata.combining(c):
            marks.append(c)
            continue
        if marks:               # sorted() is stable, as the standard asks
            kept += sorted(marks, key=unicodedata.combining)
            marks = []
        kept.append(c)
    return "".join(kept + sorted(marks, key=unicodedata.combining))


# --- Reading ---

def read(path, vocab_size=None):
    """A model's folder, or the vocab.txt in it -> Vocabulary, checked.

    vocab_size: rows of the embedding table that the ids must fit. Raises FileNotFoundError,
    or ValueError naming the file. Another file than vocab.txt is read by itself.
    """
    path = os.fspath(path)
    path = os.path.join(path, "vocab.txt") if os.path.isdir(path) else path
    folder, name = os.path.split(path)

    def beside(other):
        other = os.path.join(folder, other)
        return read_json(other) if name == "vocab.txt" and os.path.exists(other) else {}
    settings, whole = beside("tokenizer_config.json"), beside("tokenizer.json")
    if "added_tokens_decoder" not in settings:
        settings = {**settings, **beside("special_tokens_map.json")}
    refuse_other_tokenizers(os.path.join(folder, "tokenizer_config.json"), settings)
    if settings.get("tokenizer_class") is None:     # old Japanese BERTs name it there alone
        settings = {**settings,
                    "tokenizer_class": beside("config.json").get("tokenizer_class")}
        refuse_other_tokenizers(os.path.join(folder, "config.json"), settings)
    tokens = read_lines(path) if os.path.exists(path) else None
    if whole:
        json_path = os.path.join(folder, "tokenizer.json")
        tokens = model_tokens(json_path, whole, tokens)
        path = path if os.path.exists(path) else json_path
    if tokens is None:
        found = missing(folder, name) if os.path.islink(path) else (
            f"there is neither {path} nor a tokenizer.json")
        raise FileNotFoundError(f"needed BERT's vocabulary beside its weights; {found}")
    base = len(tokens)
    added = added_tokens(path, tokens, settings, whole, beside("added_tokens.json"))
    control = {kind: content(settings.get(kind)) or usual
               for kind, usual in CONTROL.items()}
    for token in list(control.values())[:4]:
        if tokens.count(token) != 1:
            raise ValueError(f"{path} has {tokens.count(token) or 'no'} {shown(token, '')} "
                             f"among its {len(tokens)} lines, needed one; use BERT's "
                             f"vocab.txt")
    check_size(path, len(tokens), vocab_size)
    normalizer = part(path, whole, "normalizer", dict)
    generic = str(settings.get("tokenizer_class")).startswith(GENERIC)
    if generic and normalizer.get("clean_text") is False:
        raise ValueError(f"{os.path.join(folder, 'tokenizer.json')}: needed BERT's own "
                         f"tokenizer, where clean_text is True, got False; use another")

    def flag(name, normalizers_name):
        first, second = settings.get(name), normalizer.get(normalizers_name)
        for value in (first, second):
            if value not in (None, True, False):
                raise ValueError(f"{path}: {name} of its tokenizer must be true or false, "
                                 f"got {shown(value)}; copy its files again")
        return second if first is None or (generic and normalizer) else first
    lower_case = flag("do_lower_case", "lowercase")
    if lower_case is None:
        warn_if_cased(path, tokens)
        lower_case = True
    strip_accents = flag("strip_accents", "strip_accents")
    if "strip_accents" in settings and not generic:
        strip_accents = settings["strip_accents"]
    if strip_accents is None:                   # BERT's default: only where it lower-cases
        strip_accents = lower_case
    return Vocabulary(path, tokens, base, lower_case, strip_accents,
                      flag("tokenize_chinese_chars", "handle_chinese_chars") is not False,
                      control, [a for a in added if a.content not in control.values()],
                      {key: settings[key] for key in KEPT if key in settings})


def part(path, entries, key, *kinds):
    """entries[key], checked to be of one of these kinds; if absent, an empty first kind."""
    value = entries.get(key)
    if value is not None and not isinstance(value, kinds):
        raise ValueError(f"{path}: {key} must be a {kinds[0].__name__}, got "
                         f"{shown(value)}; copy it again")
    return kinds[0]() if value is None else value


def content(token):
    """A token as the JSON files have it, "[E1]" or {"content": "[E1]", …} -> str or None"""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None


def read_lines(path):
    """vocab.txt -> its tokens. A byte order mark, CRLF, blank lines at the end are fine."""
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if "" in lines:
        raise ValueError(f"{path}, line {lines.index('') + 1}: needed a token, got a blank "
                         f"line; copy the vocabulary again")
    return lines


def refuse_other_tokenizers(path, settings):
    """Raise ValueError if tokenizer_config.json asks for another tokenizer than BERT's."""
    kind = settings.get("tokenizer_class")
    if kind is not None and str(kind).removesuffix("Fast") not in CLASSES + GENERIC:
        raise ValueError(f"{path}: needed BERT's own tokenizer, got {shown(kind)}; use a "
                         f"BERT with a WordPiece vocab.txt")
    for key in ("do_basic_tokenize", "do_wordpiece_tokenize"):
        if settings.get(key) is False:
            raise ValueError(f"{path}: {key} must not be false, BERT's tokenizer needs "
                             f"that step; use a BERT with a WordPiece vocab.txt")


def model_tokens(path, whole, lines):
    """The tokens of a tokenizer.json, which must agree with vocab.txt's lines, or None."""
    model, added = part(path, whole, "model", dict), part(path, whole, "added_tokens", list)
    vocab = part(path, model, "vocab", dict)
    steps = [("normalizer", part(path, whole, "normalizer", dict).get("type"),
              "BertNormalizer"),
             ("pre_tokenizer", part(path, whole, "pre_tokenizer", dict).get("type"),
              "BertPreTokenizer"),
             ("model", model.get("type", "WordPiece"), "WordPiece")]
    steps += [(key, model.get(key, ours), ours) for key, ours in
              (("continuing_subword_prefix", "##"), ("max_input_chars_per_word", 100))]
    for step, got, ours in steps:
        if got != ours:
            raise ValueError(f"{path}: needed BERT's own tokenizer, where {step} is "
                             f"{ours}, got {shown(got, '')}; use a BERT with a WordPiece "
                             f"vocab.txt")
    if (not all(type(i) is int and 0 <= i < 2 * len(vocab) for i in vocab.values())
            or len(set(vocab.values())) < len(vocab)):
        raise ValueError(f"{path} has no vocab from tokens to ids of their own from 0 on; "
                         f"copy it again")
    # A token that stood twice in vocab.txt has left a hole at its first place. A text has
    # no word that is empty or holds a line break, so such tokens are holes as well.
    tokens = [hole(i) for i in range(max(vocab.values(), default=-1) + 1)]
    for token, i in vocab.items():
        if token and not re.search("[\r\n\ud800-\udfff]", token):
            tokens[i] = token
    if lines is None:
        return tokens
    ids = {line: i for i, line in enumerate(lines)}     # of two equal lines the last counts
    for i, token in enumerate(tokens):
        if token != hole(i) and ids.get(token) != i:
            raise ValueError(f"{path} and the vocab.txt beside it differ: {shown(token)} "
                             f"has the id {i} here and {ids.get(token, 'none')} there; "
                             f"remove the file that does not belong to the weights")
    later = {content(entry) for entry in added}
    for line, i in ids.items():
        if line not in vocab and line not in later:
            raise ValueError(f"{path} and the vocab.txt beside it differ: here is no "
                             f"{shown(line)}, there it has the id {i}; remove the file "
                             f"that does not belong to the weights")
    return lines


def hole(i):
    """A name for an id that no token has; no text can contain it."""
    return f"[no token {i}]"


def added_tokens(path, tokens, settings, whole, appended):
    """Collect the added tokens of all files; append new ones to `tokens`.   -> [Added]"""
    found = {}                  # content -> Added
    folder = os.path.dirname(path)
    files = [os.path.join(folder, f"{name}.json")
             for name in ("added_tokens", "tokenizer", "tokenizer_config")]

    def add(file, entry, i, **defaults):
        text = content(entry)
        if text is None or type(i) is not int or i < 0:
            raise ValueError(f"{file}: an added token is {shown(entry)} with id "
                             f"{shown(i)}, needed a text and a number; copy the file again")
        entry = {**defaults, **(entry if isinstance(entry, dict) else {})}
        found[text] = Added(text, i, *(bool(entry.get(key, key == "normalized")) for key in
                                       ("normalized", "single_word", "special")))

    special = set()
    for key in ("additional_special_tokens", "extra_special_tokens"):
        named = part(files[2], settings, key, list, dict)
        if isinstance(named, dict):
            named = named.values()
        special |= {content(token) for token in named}
    for text, i in appended.items():
        add(files[0], text, i, normalized=text not in special, special=text in special)
    for entry in part(files[1], whole, "added_tokens", list):
        add(files[1], entry, entry.get("id") if isinstance(entry, dict) else None)
    for i, entry in part(files[2], settings, "added_tokens_decoder", dict).items():
        add(files[2], entry, int(i) if i.isdecimal() and len(i) < 10 else None)
    known = {token: i for i, token in enumerate(tokens)}
    for a in sorted(found.values(), key=lambda a: a.id):
        if a.id == len(tokens):
            tokens.append(a.content)
        elif a.id < len(tokens) and tokens[a.id] == hole(a.id):
            tokens[a.id] = a.content
        elif a.id > len(tokens) or tokens[a.id] != a.content:
            got = shown(tokens[a.id]) if a.id < len(tokens) else "none"
            raise ValueError(f"{path}: the added token {shown(a.content)} has id {a.id}, "
                             f"where the vocabulary of {len(tokens)} has {got}; copy the "
                             f"tokenizer's files again, all from one place")
    for text in sorted(special - {None} - set(found)):
        if text not in known:
            tokens.append(text)
        found[text] = Added(text, known.get(text, len(tokens) - 1), False, False, True)
    return list(found.values())


def check_size(path, count, vocab_size):
    """Raise ValueError if `count` tokens don't fit an embedding table of vocab_size rows.

    Some tables are padded to a multiple of 8 to 128 rows. Any other surplus means that a
    line is missing, so that all ids behind it are wrong.
    """
    if vocab_size is None or count == vocab_size:
        return
    if vocab_size not in [-(-count // m) * m for m in (8, 16, 32, 64, 128)]:
        raise ValueError(f"{path} has {count} entries, the weights beside it were trained "
                         f"with {vocab_size}; copy the vocabulary that they were trained "
                         f"with")
    warnings.warn(f"{path} has {count} entries, the embedding table {vocab_size} rows: "
                  f"taken for padding. If a line is missing, every id behind it is wrong")


def warn_if_cased(path, tokens):
    """Warn where nothing says whether to lower-case, and many tokens have capitals."""
    cased = sum(token != token.lower() for token in tokens if token[:1] != "[")
    if cased > len(tokens) / 20:
        warnings.warn(f"{path} has {cased} tokens with capitals, so it looks cased, but "
                      f"texts are lower-cased: to keep their case, write "
                      f"{{\"do_lower_case\": false}} into tokenizer_config.json beside it")
