"""Ask a trained model: sentiment of a sentence, paraphrase and similarity of a pair.

    python tools/predict.py RUN                                   type sentences
    python tools/predict.py RUN --file texts.txt [--task sts]     one text or pair a line
    echo "a fine film" | python tools/predict.py RUN

RUN is a run's folder, or its best/ alone, wherever that was copied. The two sentences of a
pair are separated by a TAB. Without --task a single sentence is asked for its sentiment, a
pair for paraphrase and similarity. An answer is one line, its parts separated by TABs: the
task, the prediction, the probabilities if the task has classes, the text.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data                                                         # noqa: E402
import heads                                                        # noqa: E402
from plumbing import machine, run                                   # noqa: E402


def load(path):
    """A run's folder or its best/   -> (data.WordPiece, heads.MultitaskBert)"""
    inner = os.path.join(path, "best")
    folder = inner if os.path.isdir(inner) else path
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise ValueError(f"{path} is neither a run's folder with a best/ in it nor a best/ "
                         f"folder itself; give one that train.py wrote")
    model = heads.MultitaskBert.from_pretrained(folder)
    return data.WordPiece(os.path.join(folder, "vocab.txt"),
                          model.bert.config.vocab_size), model


def parse(line, number, tasks):
    """One line -> its texts, one or two; tasks are those asked for, all if none was named.

    Raises ValueError with the line's number if no task takes as many.
    """
    texts = tuple(text.strip() for text in line.rstrip("\r\n").split("\t"))
    if not all(texts) or not any(len(texts) == len(task.texts) for task in tasks):
        wanted = sorted({len(task.texts) for task in tasks})
        kinds = {(1,): "one sentence", (2,): "two sentences separated by a TAB",
                 (1, 2): "one sentence, or two separated by a TAB"}
        raise ValueError(f"line {number}: needed {kinds[tuple(wanted)]}, got "
                         f"{line.strip()[:60]!r}")
    return texts


def answer(model, tokenizer, tasks, texts, *where):
    """[texts of a line, …] -> [its answers, …], each a list of lines

    All lines of one kind go through the encoder together, in batches of like length.
    """
    answers = [[] for _ in texts]
    for task in tasks:
        mine = [i for i, parts in enumerate(texts) if len(parts) == len(task.texts)]
        if not mine:
            continue
        dataset = data.Dataset("", mine, [tuple(map(tokenizer, texts[i])) for i in mine],
                               None)
        predicted, probabilities = heads.outputs(model, task, dataset, tokenizer, *where)
        whole = task.label_range[2] or task.num_outputs > 1
        for k, i in enumerate(mine):
            parts = [task.name, f"{predicted[k]:.{0 if whole else 3}f}"]
            if probabilities is not None:
                p = probabilities[k]
                parts.append(f"p {p:.3f}" if p.ndim == 0 else " ".join(
                    f"{c}:{value:.3f}" for c, value in enumerate(p)))
            answers[i].append("\t".join([*parts, *texts[i]]))
    return answers


def predict(args):
    """-> exit status"""
    tokenizer, model = load(args.run)
    device = machine.find_device(args.device)
    model = model.to(device)
    tasks = [model.tasks[args.task]] if args.task else list(model.tasks.values())
    if args.file:
        with open(args.file, encoding="utf-8") as file:
            try:
                lines = [(number, line) for number, line in enumerate(file, 1)
                         if line.strip()]
            except UnicodeDecodeError:
                raise ValueError(f"{args.file} must be UTF-8 text") from None
        # Every line is looked at before the first is answered.
        texts = [parse(line, f"{number} of {args.file}", tasks) for number, line in lines]
        for found in answer(model, tokenizer, tasks, texts, device):
            print("\n".join(found))
        return 0
    typing = sys.stdin.isatty()
    if typing:
        print("A sentence, or two separated by a TAB; Ctrl-D ends.\nsst: sentiment, 0 the "
              "most negative, 4 the most positive; para: 1 for a paraphrase; sts: "
              "similarity, 0 to 5", file=sys.stderr)
    for number, line in enumerate(sys.stdin, 1):
        if line.strip():
            try:
                found, = answer(model, tokenizer, tasks, [parse(line, number, tasks)],
                                device)
            except ValueError as error:
                if not typing:
                    raise
                print(error, file=sys.stderr)       # a slip of the finger ends nothing
                continue
            print("\n".join(found), flush=True)
    return 0


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False,
                                usage=argparse.SUPPRESS)
    p.add_argument("run", metavar="RUN", help="a run's folder, or its best/")
    p.add_argument("--task", choices=[task.name for task in heads.tasks()],
                   help="only this one (all that fit)")
    p.add_argument("--file", metavar="FILE", help="one text or pair a line (what you type)")
    p.add_argument("--device", default="auto", help="as in train.py")
    args = p.parse_args(argv)
    return run.one_line(lambda: predict(args))


if __name__ == "__main__":
    sys.exit(main())
