"""Write made-up data: nine CSV files in the course's format and a vocabulary.

    python tools/make_sample.py --out DIR                     seed 0
    python tools/make_sample.py --out DIR --pretrain FILE     unlabelled text too

4.1  review()       a review sentence and its class, 0 to 4, as in SST
4.1  questions()    two questions that ask the same, or only seem to, as in Quora
4.1  captions()     two captions and how far their scenes agree, 0 to 5, as in STS

In a review, words alone mislead ("not nearly as dull as its trailer"). A rewording often
shares few words with its question, and a question with two roles swapped shares all. A
caption's grade counts which part of the scene differs and by how much, not how many words.

The words, the templates and their notation are in sample_words.py.
The same seed gives the same bytes on every machine and version of Python: chance comes from
Random.random() alone, no order from a set, and fsum adds floats (sum does so in its own way
since 3.12).
Leaves out: all that the grammar does not say. A score on these files is no statement about
English.
"""

import csv
import os
import random
import re
import sys
import tempfile
from collections import Counter
from math import fsum
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from plumbing import command, files, flags
from tools import sample_words as words
from tools.sample_words import TERMS, THINGS, Part, Value, comparative, plural

SIZES = {"sst": (2000, 400, 400), "para": (6000, 600, 600), "sts": (1500, 400, 400)}
SHARES = (.13, .26, .19, .27, .15)    # of the five sentiment classes: those of SST
DUPLICATES = .45                      # chance of a paraphrase; .41 once repeats are out
SWAPS, INTENTS = .55, .25             # of the others: roles swapped; another thing asked
EXCHANGES = .5                        # share of scenes altered by an exchange as well
SST_NOISE, PARA_NOISE = .04, .03      # share of labels one class off; flipped
STS_NOISE = .25                       # standard deviation of what is added to a grade
BLOCK = 8                             # pre-training lines on one topic
ECHOES = .35                          # share of pre-training pairs of one text, twice


# --- words and templates ---

def pick(rng, items):
    """One of the items, all equally likely.

    Why not rng.choice: Python promises the same sequence in every version for random()
    alone."""
    return items[int(rng.random() * len(items))]


def shuffle(rng, items):
    """The items in a random order, as a new list."""
    return sorted(items, key=lambda item: rng.random())


def choose(rng, text):
    """Replace each (one|of|these) by one of its members, the innermost first."""
    while "(" in text:
        text = re.sub(r"\(([^()]*)\)", lambda match: pick(rng, match[1].split("|")), text)
    return text


def fill(text, said):
    """The template with said[slot] in place of each {slot}; single blanks, "an" before a
    vowel that sounds like one, a capital at the start."""
    text = " ".join(re.sub("{([^}]+)}", lambda match: said[match[1]], text).split())
    text = re.sub(r"\b([Aa]) (?=(?!us|uni|one\b|eu)[aeiou])", r"\1n ", text)
    return text[0].upper() + text[1:]


# --- 4.1 sentiment ---

BORDERS = (-2.2, -.5, .5, 2.2)   # between the five classes
MARGIN = .08                     # people would not agree on a score nearer to a border


def grow(rng, symbol):
    """(text, score) of a random phrase."""
    rule, text = pick(rng, words.GRAMMAR[symbol])
    text, scores = choose(rng, text), []
    while slot := re.search("{(.+?)}", text):
        part, score = grow(rng, slot[1])
        text = text.replace(slot[0], part, 1)
        scores += [] if score is None else [score]
    return text, words.judge(rule, scores)


def review(rng):
    """(sentence, class 0..4); draws until it makes sense and its class is clear."""
    while True:
        text, score = grow(rng, "sentence")
        long_words = [word for word in text.split() if len(word) > 4]
        clear = all(abs(score - border) > MARGIN for border in BORDERS)     # False for nan
        if clear and text.count(" but ") < 2 and len(long_words) == len(set(long_words)):
            text = text.replace("KIND", pick(rng, words.KINDS.split()))
            return fill(text, {}), sum(score > border for border in BORDERS)


# --- 4.1 paraphrase ---
#
# A rewording is another form of an intent; what spoils it is a swap, another value or
# another intent.

def ask(rng, form, values, wording):
    """The question; wording {value: word} remembers the synonyms, to say them again."""
    said = {}
    for name, value in sorted(values.items()):
        word = wording.setdefault(value, pick(rng, TERMS[value.kind][value.index]))
        said |= {name: word, name + "+": comparative(word)}
    return fill(choose(rng, form), said)


def draw_values(rng, slots):
    """{slot: value}; x and y are two groups of one class."""
    values = {}
    for names, kinds in slots.items():
        kind = pick(rng, kinds.split())
        order = shuffle(rng, range(len(TERMS[kind])))
        values.update((name, Value(kind, index))
                      for name, index in zip(names.split(","), order))
    return values


def used(form, values):
    """The slots of a form, in a fixed order."""
    return sorted(name for name in values if "{" + name in form)


def exchanged(values):
    return values | {"x": values["y"], "y": values["x"]}


def another(rng, form, values):
    """The values with one that the form names replaced by a sibling."""
    slot = pick(rng, used(form, values))
    kind = values[slot].kind
    siblings = [Value(kind, index) for index in range(len(TERMS[kind]))]
    return values | {slot: pick(rng, [v for v in siblings if v not in values.values()])}


def questions(rng, duplicate):
    """Two questions that ask the same or, with duplicate False, only look as if they did.

    Why: overlap must not give the answer away. Rewordings mostly take another form and new
    synonyms; the others keep their words more often, and a swap keeps them all."""
    family = pick(rng, words.QUESTIONS)
    intent = pick(rng, family.intents)
    values = draw_values(rng, family.slots)
    first, second = shuffle(rng, intent.forms)[:2]
    if rng.random() < (.2 if duplicate else .35):
        second = first
    other, way = values, rng.random()
    if ({"x", "y"} <= set(used(first, values)) and way < SWAPS
            and duplicate == intent.symmetric):
        other = exchanged(values)
    elif not duplicate and len(family.intents) > 1 and way > 1 - INTENTS:
        others = [one for one in family.intents if one is not intent]
        second = pick(rng, pick(rng, others).forms)
    elif not duplicate:
        other = another(rng, first, values)
    wording = {}
    one = ask(rng, first, values, wording)
    keep = rng.random() < (.4 if duplicate else .6)
    return one, ask(rng, second, other, wording if keep else {})


# --- 4.1 similarity ---
#
# A scene has a style, v, what s does, o, to whom, and p, where; sl and sn are the look and
# the number of s, ol and on those of o. Each is a Part or None.

WEIGHTS = {"v": .4, "s": .3, "o": .3, "sl": .12, "ol": .12, "sn": .1, "on": .1, "p": .2}
OF = {"sl": "s", "sn": "s", "o": "v", "ol": "o", "on": "o"}
SYNONYM, SIBLING = .97, .25           # agreement of two words; the same word 1, any other 0
def draw_scene(rng, activity, old=None, closeness=0):
    """A scene of the activity; where it can be, a part is that of the old scene with chance
    closeness, in a word of its own."""
    def draw(part, kinds, chance=1):
        was, kinds = old and old[part], kinds.split()
        if old and rng.random() < closeness:
            if was and was.kind in kinds:
                return was._replace(word=pick(rng, THINGS[was.kind][was.index]))
            if not was and chance < 1:
                return None
        if not kinds or rng.random() > chance:
            return None
        kind = pick(rng, kinds)
        index = int(rng.random() * len(THINGS[kind]))
        return Part(kind, index, pick(rng, THINGS[kind][index]))

    style = activity["style"]
    place = .7 if style in ("act", "behind", "both") else 1
    scene = {"style": style, "s": None}
    while not scene["s"] or agreement(scene["s"], scene["o"]) >= SYNONYM:
        scene |= {part: draw(part, activity[part], place if part == "p" else 1)
                  for part in "svop"}                  # again, if "a dog chasing a dog"
    for noun in "so":
        kind = scene[noun].kind if scene[noun] else ""
        scene[noun + "l"] = draw(noun + "l", words.LOOKS.get(kind, ""), .45)
        number = "number" if kind in words.COUNTED.split() else ""
        scene[noun + "n"] = draw(noun + "n", number)
    return scene


def exchange(scene, parts=("", "l", "n")):
    """The scene with s and o exchanged, or their looks ("l") or numbers ("n") only."""
    pairs = [("s" + part, "o" + part) for part in parts]
    return scene | {a: scene[b] for a, b in pairs} | {b: scene[a] for a, b in pairs}


def exchanges(scene, activity):
    """What of s and o may change places in a scene of the activity, for exchange()."""
    if not scene["o"]:
        return []
    s, o, ways = scene["s"].kind, scene["o"].kind, []
    if s in activity["o"] and o in activity["s"]:
        ways += [("", "l", "n"), ("", "l", "n")]        # twice as often as the others
    if s in words.LOOKS and words.LOOKS[s] == words.LOOKS.get(o):
        ways.append(("l",))
    if scene["sn"] and scene["on"]:
        ways.append(("n",))
    return ways


def agreement(one, two):
    """1 the same word, .97 synonyms, .25 siblings, 0 opposites and all others."""
    if one is None or two is None or one.kind != two.kind:
        return 0
    if one.index != two.index:
        return SIBLING if one.is_opposite == two.is_opposite else 0
    return SYNONYM if one.word != two.word else 1


def grade(one, two):
    """How far two scenes agree:  5 Σ w agreement / Σ w, over the parts that either has.

    How many and of what look count as far as the nouns agree ("two dogs" and "two cars"
    have little in common), and to whom it is done as far as the verbs do."""
    if two["style"] == "both":       # two who do the same may be named in either order
        two = two | {"style": ""}
        return max(grade(one, two), grade(one, exchange(two)))
    total = weight = 0
    for part, w in WEIGHTS.items():
        if one[part] or two[part]:
            head = agreement(one[OF[part]], two[OF[part]]) if part in OF else 1
            total += w * agreement(one[part], two[part]) * head
            weight += w
    return 5 * total / weight


def caption(rng, scene):
    """The scene in words; a headline, which has no full stop, does without articles."""
    said = {part: scene[part].word.lstrip("~") if scene[part] else "" for part in WEIGHTS}
    said["ing"], _, said["ed"] = said["v"].partition(":")
    for noun, verb in (("s", "is"), ("o", "are")):
        number = said[noun + "n"] or "a"
        name = said[noun] if number == "a" else plural(said[noun])
        said[noun.upper()] = f"{number} {said[noun + 'l']} {name}"
        said[verb] = "is" if number == "a" else "are"
    forms = [form for form in words.FORMS[scene["style"]][0]
             if said["p"] or not form.startswith("{p}")]
    text = re.sub(r" +([.,])", r"\1", fill(pick(rng, forms), said))
    return text if text[-1] == "." else fill(re.sub(r"\b[Aa]n? ", "", text), {})


def captions(rng, closeness):
    """(caption, caption, grade 0..5); closeness is the chance that a part stays.

    Why an exchange: the words stay and what they say does not."""
    activity = pick(rng, words.ACTIVITIES)
    one = draw_scene(rng, activity)
    if rng.random() > .5 + .5 * closeness:
        activity = pick(rng, words.ACTIVITIES)
    two = draw_scene(rng, activity, one, closeness)
    ways = exchanges(two, activity)
    if ways and closeness < 1 and rng.random() < EXCHANGES:
        two = exchange(two, pick(rng, ways))
    return caption(rng, one), caption(rng, two), grade(one, two)


# --- text without labels, vocabulary ---

def question_lines(rng):
    """Endless rewordings (text, text) on one topic; no line asks what the last one did."""
    family = pick(rng, words.QUESTIONS)
    base, before = draw_values(rng, family.slots), None
    while True:
        intent, values = pick(rng, family.intents), base
        form = intent.forms[0]
        if "y" in values and rng.random() < .5:
            values = exchanged(values)
        if rng.random() < .4:
            values = another(rng, form, values)
        said = [values[slot] for slot in used(form, values)]
        meaning = form, sorted(said) if intent.symmetric else said
        if meaning != before:
            before, wording = meaning, {}
            first, second = shuffle(rng, intent.forms)[:2]
            yield (ask(rng, first, values, wording),
                   ask(rng, second, values, wording if rng.random() < .4 else {}))


def caption_lines(rng):
    """Endless captions (text, text) of one scene each, all the scenes alike."""
    activity, before = pick(rng, words.ACTIVITIES), None
    base = draw_scene(rng, activity)
    while True:
        scene = draw_scene(rng, activity, base, .6)
        ways = exchanges(scene, activity)
        if ways and rng.random() < .5:
            scene = exchange(scene, pick(rng, ways))
        same = draw_scene(rng, activity, scene, 1)
        meaning = [part and Value(part.kind, part.index)
                   for name, part in scene.items() if name != "style"]
        if meaning != before:
            before = meaning
            yield caption(rng, scene), caption(rng, same)


def review_lines(rng):
    """Endless reviews, each with a verdict (text, text) that differs from the last one."""
    before = None
    while True:
        text, label = review(rng)
        if label != before:
            before = label
            verdict = pick(rng, list(words.VERDICTS.values())[label][0])
            yield text, fill(f"{pick(rng, ('', 'in short , '))}{verdict} .", {})


def pretraining_lines(rng, n, held_out=frozenset()):
    """n lines of the same language for pre-training: (text,) or (text, text).

    Most are pairs that belong together: a question and a rewording, two captions of one
    scene, a review and its verdict. A masked word is then given away by the other text, so
    attention across [SEP] is worth learning. BLOCK pairs on one topic follow each other, as
    sentences do in a document: what distinguishes neighbors is not the topic but what they
    say of it. No text of held_out occurs."""
    lines = []
    while len(lines) < n:
        kind = rng.random()
        if kind < .15:
            block = ((review(rng)[0],) for _ in range(BLOCK))
        else:
            block = (question_lines if kind < .5 else
                     caption_lines if kind < .8 else review_lines)(rng)
        for _ in range(BLOCK):
            line = next(block)
            if len(line) == 2 and rng.random() < ECHOES:
                line = line[0], line[0]
            if not held_out.intersection(line):
                lines.append(line)
    return lines[:n]


SUFFIXES = "ed ing ly er est es ies ier iest ness less ful able ment ion tion ous al en"


def vocabulary(texts):
    """WordPiece entries: special tokens, characters, endings, then the words of the texts.

    The most frequent word comes first, ties in alphabetical order. Every letter and digit
    is an entry, alone and as "##x", so that no word of letters is ever [UNK]."""
    counts = Counter(re.findall(r"\w+|[^\w\s]", " ".join(texts).lower()))
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries += sorted({char for word in counts for char in word} | set(letters))
    entries += ["##" + piece for piece in (*letters, *SUFFIXES.split())]
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return entries + [word for word in ordered if len(word) > 1]


# --- rows and files ---

def noisy(rng, task, label):
    """The label as people give it: off by a class, flipped, or the mean of 4 or 5 grades.

    The noise of a grade is a sum of 12 uniform numbers less 6: nearly Gaussian, variance 1,
    and unlike rng.gauss, nothing that a machine's logarithm may round in its own way."""
    if task == "sst":
        step = pick(rng, (-1, 1)) if rng.random() < SST_NOISE else 0
        return min(4, max(0, label + step))
    if task == "para":
        return float(label != (rng.random() < PARA_NOISE))
    score = label + STS_NOISE * (fsum(rng.random() for _ in range(12)) - 6)
    voters = 5 if rng.random() < .75 else 4
    return round(round(min(5, max(0, score)) * voters) / voters, 2)


def draw(rng, task):
    """One row (*texts, label) of the task, without noise."""
    if task == "para":
        duplicate = rng.random() < DUPLICATES
        return *questions(rng, duplicate), duplicate
    return review(rng) if task == "sst" else captions(rng, .2 + .8 * rng.random())


def draw_tasks(seed):
    """{task: (rows of train, of dev, of test)}; no two rows have the same texts, in any
    order."""
    tasks = {}
    for number, (task, (train, dev, test)) in enumerate(SIZES.items()):
        rng = random.Random(10 * seed + number)        # no task depends on the others
        size, found = train + dev + test, {}
        left = [round(share * size) for share in SHARES]
        while len(found) < size:
            *texts, label = draw(rng, task)
            key = tuple(sorted(text.lower() for text in texts))
            again = key in found or len(set(key)) < len(key)
            if again or task == "sst" and not left[label]:
                continue
            found[key] = *texts, noisy(rng, task, label)
            if task == "sst":
                left[label] -= 1
        # Why shuffled: common classes are full first, so rare ones stand at the end.
        some = shuffle(rng, found.values())
        tasks[task] = some[:train], some[train:train + dev], some[train + dev:]
    return tasks


def unlabelled(tasks, seed, n):
    """n lines for pre-training, with another seed and without any text of dev and test."""
    held_out = {text for splits in tasks.values() for split in splits[1:]
                for *texts, _ in split for text in texts}
    return pretraining_lines(random.Random(10 * seed + 4), n, held_out)


def write_table(path, header, rows):
    """A TAB separated file, quoted where a text has quotation marks."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *rows])


def write_sample(folder, seed):
    """The nine files, test-labels.csv and vocab.txt; returns {task: (train, dev, test)}."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks, test_labels = draw_tasks(seed), []
    rng = random.Random(10 * seed + 3)
    names = {"sst": ("ids-sst", "sentiment"), "para": ("quora", "is_duplicate"),
             "sts": ("sts", "similarity")}
    for task, (name, label) in names.items():
        columns, blank = ["sentence1", "sentence2"], ""
        if task == "sst":
            columns, blank = ["sentence"], " "         # a sentence of SST starts with one
        ids = iter(lambda: "".join(pick(rng, "0123456789abcdef") for _ in range(25)), "")
        train, dev, test = [[[i, next(ids), *(blank + text for text in texts), y]
                             for i, (*texts, y) in enumerate(rows)] for rows in tasks[task]]
        write_table(folder / f"{name}-train.csv", ["", "id", *columns, label], train)
        write_table(folder / f"{name}-dev.csv", ["", "id", *columns, label], dev)
        test_labels += [[task, row[1], row[-1]] for row in test]
        # The course's SST test file, and it alone, has two index columns.
        header, test = ["", "id", *columns], [row[:-1] for row in test]
        if task == "sst":
            header, test = ["0", *header], [[i + 1, float(i), *row] for i, *row in test]
        write_table(folder / f"{name}-test-student.csv", header, test)
    write_table(folder / "test-labels.csv", ["task", "id", "label"], test_labels)
    texts = [text for split in tasks.values() for *texts, _ in split[0] for text in texts]
    texts += [text for line in unlabelled(tasks, seed, 30000) for text in line]
    (folder / "vocab.txt").write_bytes(     # a line feed alone, on Windows too
        "".join(word + "\n" for word in vocabulary(texts)).encode())
    return tasks


def main(argv=None):
    parser = command.Parser(__doc__)
    parser.add_argument("--out", type=flags.text, required=True, metavar="DIR",
                        help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (ours: 0)")
    parser.add_argument("--pretrain", type=flags.text, metavar="FILE",
                        help="also write unlabelled text, one text or pair a line")
    parser.add_argument("--lines", type=flags.number(int, 1), default=30000,
                        help="in FILE (ours: 30000)")

    def run():
        args = parser.parse_args(argv)
        with tempfile.TemporaryDirectory() as folder:
            tasks = write_sample(Path(folder), args.seed)
            made = {Path(args.out) / path.name: path.read_bytes()
                    for path in sorted(Path(folder).iterdir())}
        if args.pretrain:
            lines = unlabelled(tasks, args.seed, args.lines)
            made[Path(args.pretrain)] = "".join(
                "\t".join(line) + "\n" for line in lines).encode()
        files.put(made)
        for path, content in made.items():
            print(f"{len(content):>9,} bytes  {path}")
        return 0
    return command.one_line(run)


if __name__ == "__main__":
    sys.exit(main())
