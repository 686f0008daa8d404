"""Ask a trained model about sentences and pairs of your own, for each of its tasks.

    python tools/predict.py RUN                     type sentences
    python tools/predict.py RUN --file texts.txt    one text or pair a line
    python tools/predict.py RUN --file FILE --task sts
    echo "a fine film" | python tools/predict.py RUN
    python tools/predict.py RUN --serve             a page to type in

RUN is a run's folder, or its best/ alone, wherever that was copied. The two sentences of a
pair are separated by a TAB. Without --task a sentence is given to all tasks of sentences
that were trained, a pair to all such tasks of pairs. An answer is one line, with TABs
between the task, the prediction, the probabilities if the task has classes, and the text. A
line that cannot be answered gets one line on standard error; the others are answered.

From Python: heads.MultitaskBert.from_pretrained("RUN/best").predict("sst", ["a fine film"])
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import heads
from plumbing import command, flags, machine
from plumbing.console import printable
from tools import serve


def load(path, device="cpu"):
    """A run's best model, by the run's folder or its best/.   -> heads.MultitaskBert

    Raises what from_pretrained() raises, and ValueError if there is no vocabulary.
    """
    best = os.path.join(path, "best")
    model = heads.MultitaskBert.from_pretrained(best if os.path.isdir(best) else path,
                                                device)
    if model.tokenizer is None:
        raise ValueError(f"{path} has no vocab.txt, without which no text can be read; put "
                         f"that of the initial weights there")
    return model


PORT = 8000             # of the page


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


def meaning(task):
    """What its predictions mean, for whoever types."""
    if task.classes:
        labels = range(int(task.lowest), int(task.highest) + 1)
        said = ", ".join(f"{label} {name}" for label, name in zip(labels, task.classes))
    else:
        said = f"{task.label}, from {task.lowest:g} to {task.highest:g}"
    return f"  {task.name} ({'a pair' if task.pair else 'a sentence'}): {said}"


def answer(model, tasks, texts):
    """[texts of a line, …] -> [its answers, …], each a list of lines

    All lines of one kind go through the encoder together, in batches of like length.
    """
    answers = [[] for _ in texts]
    for task in tasks:
        asked = [i for i, parts in enumerate(texts) if len(parts) == len(task.texts)]
        predicted, probabilities = model.predict(
            task.name, [texts[i] for i in asked], with_probabilities=True)
        for k, i in enumerate(asked):
            parts = formatted(task, predicted[k],
                              None if probabilities is None else probabilities[k])
            answers[i].append("\t".join([*parts, *map(printable, texts[i])]))
    return answers


def complain(place, error):
    print(f"{printable(place)}: {error}", file=sys.stderr)


def decoded(line, number):
    """A line's bytes as text; ValueError if they are not UTF-8."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"needed UTF-8 text, got {error.reason}") from None


def answer_file(model, tasks, path):
    """All lines of a file together.   -> exit status: 2 if some could not be answered"""
    texts, status = [], 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line = decoded(line, number)
                if line.strip():
                    texts.append(parse(line, tasks))
            except ValueError as error:
                complain(f"{path}, line {number}", error)
                status = 2
    for lines in answer(model, tasks, texts):
        print("\n".join(lines))
    return status


def answer_input(model, tasks):
    """Each line of standard input as it comes.   -> exit status"""
    typed, status = sys.stdin.isatty(), 0
    if typed:
        print("Type a sentence, or two separated by a TAB; Ctrl-D ends.",
              *map(meaning, tasks), sep="\n", file=sys.stderr)
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            line = decoded(line, number)
            if not line.strip():
                continue
            texts = parse(line, tasks)
        except ValueError as error:
            complain(f"line {number}", error)
            status = 0 if typed else 2          # a typo does not end the session
            continue
        lines, = answer(model, tasks, [texts])
        print("\n".join(lines), flush=True)
    return status


def predict(path, name=None, file=None, device="auto", port=None):
    """path: a run's folder, or its best/; name: of a task; port: of a page.   -> status"""
    model = load(path, machine.find_device(device))
    if name and name not in model.tasks:
        raise ValueError(f"--task {name}: this model has {', '.join(model.tasks)}")
    tasks = [model.tasks[name] for name in ([name] if name else model.trained)]
    left_out = [other for other in model.tasks if other not in model.trained]
    if not tasks:
        raise ValueError(f"{path}: no task of this model was trained; choose one with "
                         f"--task")
    if left_out and not name:
        print(f"warning: not asked, as it was not trained: {', '.join(left_out)}",
              file=sys.stderr)
    if port is not None:
        return serve.serve(model, tasks, os.path.basename(os.path.abspath(path)), port)
    return answer_file(model, tasks, file) if file else answer_input(model, tasks)


def main(argv=None):
    p = command.Parser(__doc__)
    p.add_argument("run", metavar="RUN", help="a run's folder, or its best/")
    p.add_argument("--task", metavar="NAME", help=f"only this one of the model's tasks, "
                   f"such as {heads.tasks()[0].name} (all that fit)")
    p.add_argument("--file", type=flags.text, metavar="FILE",
                   help="one text or pair a line (what you type)")
    p.add_argument("--serve", action="store_true",
                   help="open a page on this machine, for a browser")
    p.add_argument("--port", type=flags.number(int, 0, 65535), metavar="N",
                   help=f"of that page ({PORT}; 0: any that is free)")
    p.add_argument("--device", default="auto", help="as in train.py")

    def run():
        args = p.parse_args(argv)
        if args.port is not None and not args.serve:
            p.error("--port is that of --serve; add it")
        if args.file and args.serve:
            p.error("--file and --serve exclude each other; leave one out")
        port = PORT if args.serve and args.port is None else args.port
        return predict(args.run, args.task, args.file, args.device, port)
    return command.one_line(run)


if __name__ == "__main__":
    sys.exit(main())
