"""Ask a trained model: sentiment of a sentence, paraphrase and similarity of a pair.

    python tools/predict.py RUN                                   type sentences
    python tools/predict.py RUN --file texts.txt [--task sts]     one text or pair a line
    echo "a fine film" | python tools/predict.py RUN

RUN is a run's folder, or its best/ alone, wherever that was copied. The two sentences of a
pair are separated by a TAB. Without --task a single sentence is asked for its sentiment, a
pair for paraphrase and similarity. An answer is one line, with TABs between the task, the
prediction, the probabilities if the task has classes, and the text. A line that cannot be
answered gets one line on standard error; the others are answered.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data
import heads
from plumbing import command, machine
from plumbing.console import printable


def load(path):
    """A run's folder or its best/   -> (data.WordPiece, heads.MultitaskBert)"""
    best = os.path.join(path, "best")
    folder = best if os.path.isdir(best) else path
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise ValueError(f"{path} is neither a run's folder with a best/ in it nor a best/ "
                         f"folder itself; give one that train.py wrote")
    model = heads.MultitaskBert.from_pretrained(folder)
    return data.WordPiece(os.path.join(folder, "vocab.txt"),
                          model.bert.config.vocab_size), model


def parse(line, tasks):
    """One line -> its texts, one or two, without blanks around them.

    tasks: those asked for. Raises ValueError if none of them takes so many texts.
    """
    texts = tuple(text.strip() for text in line.split("\t"))
    numbers = {len(task.texts) for task in tasks}
    if not all(texts) or len(texts) not in numbers:
        needed = "one sentence, or two separated by a TAB"
        if numbers == {1}:
            needed = "one sentence"
        elif numbers == {2}:
            needed = "two sentences separated by a TAB"
        raise ValueError(f"needed {needed}, got {line.strip()[:60]!r}")
    return texts


def formatted(task, prediction, probabilities):
    """["sts", "3.142"], or ["sst", "1", "0:0.200 1:0.800 …"] for a task with classes"""
    # A class is printed whole, that of a similarity too (--sts-loss ce).
    if task.whole_labels or task.num_outputs > 1:
        parts = [task.name, f"{prediction:.0f}"]
    else:
        parts = [task.name, f"{prediction:.3f}"]
    if probabilities is None:
        return parts
    if probabilities.ndim == 0:
        return [*parts, f"p {probabilities:.3f}"]
    return [*parts, " ".join(f"{c}:{p:.3f}" for c, p in enumerate(probabilities))]


def answer(model, tokenizer, tasks, texts, device):
    """[texts of a line, …] -> [its answers, …], each a list of lines

    All lines of one kind go through the encoder together, in batches of like length.
    """
    answers = [[] for _ in texts]
    for task in tasks:
        asked = [i for i, parts in enumerate(texts) if len(parts) == len(task.texts)]
        if not asked:
            continue
        tokens = [tuple(map(tokenizer, texts[i])) for i in asked]
        predicted, probabilities = heads.outputs(
            model, task, data.Dataset("", asked, tokens, None), tokenizer, device=device)
        for k, i in enumerate(asked):
            parts = formatted(task, predicted[k],
                              None if probabilities is None else probabilities[k])
            answers[i].append("\t".join([*parts, *map(printable, texts[i])]))
    return answers


def complain(place, error):
    print(f"{printable(place)}: {error}", file=sys.stderr)


def answer_file(model, tokenizer, tasks, device, path):
    """All lines of a file together.   -> exit status: 2 if some could not be answered"""
    texts, status = [], 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if line.strip():
                    texts.append(parse(line, tasks))
            except UnicodeDecodeError as error:
                complain(f"{path}, line {number}", f"needed UTF-8 text, got {error.reason}")
                status = 2
            except ValueError as error:
                complain(f"{path}, line {number}", error)
                status = 2
    for lines in answer(model, tokenizer, tasks, texts, device):
        print("\n".join(lines))
    return status


def answer_input(model, tokenizer, tasks, device):
    """Each line of standard input as it comes.   -> exit status"""
    typed, status = sys.stdin.isatty(), 0
    if typed:
        print("Type a sentence, or two separated by a TAB; Ctrl-D ends.\nsst: sentiment, "
              "from 0, the most negative, to 4, the most positive; para: 1 for a "
              "paraphrase; sts: similarity, from 0 to 5", file=sys.stderr)
    for number, line in enumerate(sys.stdin, 1):
        if not line.strip():
            continue
        try:
            texts = parse(line, tasks)
        except ValueError as error:
            complain(f"line {number}", error)
            status = 0 if typed else 2          # a typo does not end the session
            continue
        lines, = answer(model, tokenizer, tasks, [texts], device)
        print("\n".join(lines), flush=True)
    return status


def predict(path, task=None, file=None, device="auto"):
    """-> exit status"""
    device = machine.find_device(device)
    tokenizer, model = load(path)
    model = model.to(device)
    tasks = [model.tasks[task]] if task else list(model.tasks.values())
    if file:
        return answer_file(model, tokenizer, tasks, device, file)
    return answer_input(model, tokenizer, tasks, device)


def main(argv=None):
    p = command.Parser(description=__doc__.splitlines()[0])
    p.add_argument("run", metavar="RUN", help="a run's folder, or its best/")
    p.add_argument("--task", choices=[task.name for task in heads.tasks()],
                   help="only this one (all that fit)")
    p.add_argument("--file", metavar="FILE", help="one text or pair a line (what you type)")
    p.add_argument("--device", default="auto", help="as in train.py")

    def run():
        args = p.parse_args(argv)
        return predict(args.run, args.task, args.file, args.device)
    return command.one_line(run)


if __name__ == "__main__":
    sys.exit(main())
