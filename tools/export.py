"""Write one task of a run as the library transformers' own classifier.

    python tools/export.py RUN --task sst --out DIR

DIR can then be used without this code:

    transformers.pipeline("text-classification", "DIR")("a fine film")

The library's BertForSequenceClassification has one linear layer on BERT's pooler output,
and takes a pair as one sequence. A model of ours is exactly that for a task of single
texts, or with --con for a task of pairs, if it has --pool cls and no --hlh; any other is
refused. A task with one logit z for two classes gets two, 0 and z: softmax(0, z) is σ(z).
With truncation=True the library cuts long texts where the run did (--max-length); of a pair
it may keep one token more of the other text. It reads "[SEP]" in a text as the separator;
here it is text.
"""

import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import bert
from plumbing import command, flags, safetensors
from tools import predict


def check(model, task):
    """Raise ValueError if the library's architecture cannot hold this task."""
    for wrong, ours, theirs in (
            (model.settings["hlh"], "its head has hidden layers (--hlh)",
             "has one linear layer"),
            (model.pool == "mean", "it takes the mean over the tokens (--pool mean)",
             "takes the pooler output"),
            (task.pair and not model.con, "it encodes a pair's texts apart (no --con)",
             "encodes them as one sequence")):
        if wrong:
            raise ValueError(f"{task.name} cannot be exported: {ours}, and the library's "
                             f"classifier {theirs}")


def classifier(model, task):
    """-> (weight [C, H], bias [C], names of the C labels; none for a number)"""
    last = model.heads[task.name].layers[-1]
    weight, bias = last.weight.detach(), last.bias.detach()
    if task.probabilities is None:
        return weight, bias, []
    if task.num_outputs == 1:       # the logits 0 and z
        weight = torch.cat([torch.zeros_like(weight), weight])
        bias = torch.cat([torch.zeros_like(bias), bias])
    return weight, bias, list(task.classes or map(str, range(len(bias))))


def export(model, name, out):
    """Write config.json, model.safetensors and the tokenizer's files to the folder `out`.

    Raises ValueError for a task that the model does not have, or that cannot be exported.
    """
    if name not in model.tasks:
        raise ValueError(f"--task {name}: this model has {', '.join(model.tasks)}")
    if name not in model.trained:
        raise ValueError(f"--task {name} was not trained: its head is random; export "
                         f"{' or '.join(model.trained)}")
    task = model.tasks[name]
    check(model, task)
    if os.path.exists(out) and os.listdir(out):
        raise ValueError(f"--out {out} is not empty; give a new folder")
    weight, bias, names = classifier(model, task)
    labels = ({"id2label": dict(enumerate(names)),
               "label2id": {label: k for k, label in enumerate(names)},
               "problem_type": "single_label_classification"} if names else
              {"id2label": {0: task.label}, "label2id": {task.label: 0},
               "problem_type": "regression"})
    os.makedirs(out, exist_ok=True)
    model.bert.config.to_json(os.path.join(out, "config.json"),
                              architectures=["BertForSequenceClassification"], **labels)
    encoder = {f"bert.{bert.checkpoint_name(key)}": p
               for key, p in model.bert.state_dict().items()}
    safetensors.save(os.path.join(out, "model.safetensors"),
                     {**encoder, "classifier.weight": weight, "classifier.bias": bias})
    model.tokenizer.save(out, model.max_length)
    print(f"{out}: {name}, {', '.join(names) or task.label}")


def main(argv=None):
    p = command.Parser(__doc__)
    p.add_argument("run", metavar="RUN", help="a run's folder, or its best/")
    p.add_argument("--task", required=True, metavar="NAME", help="which of its tasks")
    p.add_argument("--out", type=flags.text, required=True, metavar="DIR",
                   help="a new folder")

    def run():
        args = p.parse_args(argv)
        export(predict.load(args.run), args.task, args.out)
        return 0
    return command.one_line(run)


if __name__ == "__main__":
    sys.exit(main())
