"""The flags of train.py, one for each ablation, and what is rejected: values out of range,
flags that contradict each other, and flags that would change nothing.
"""

import argparse
import math

from plumbing import command


def text(value):
    """An argparse type: anything but the empty string, which a script's unset variable is.
    """
    if not value.strip():
        raise argparse.ArgumentTypeError("needed a value, got an empty one")
    return value


def number(kind, low, high=float("inf")):
    """An argparse type: a number from low to high, or else one clear line."""
    def convert(text):
        try:
            value = kind(text) if len(text) < 100 else float("nan")
        except ValueError:
            value = float("nan")
        if not (low <= value <= high and math.isfinite(value)):         # also for NaN
            limits = (f"from {low} to {high}" if math.isfinite(high)
                      else f"of at least {low}")
            raise argparse.ArgumentTypeError(
                f"needed {'a whole number' if kind is int else 'a number'} {limits}, got "
                f"{text[:40]!r}")
        return value
    return convert


def task_list(known):
    """An argparse type: "sts,sst" -> ["sst", "sts"], in the order of the known tasks."""
    def convert(text):
        names = text.split(",")
        if set(names) - set(known) or len(set(names)) < len(names):
            raise argparse.ArgumentTypeError(f"needed some of {','.join(known)}, got "
                                             f"{text[:40]!r}")
        return [name for name in known if name in names]
    return convert


def task_weights(text):
    """An argparse type: "sst=1,para=.5" -> {"sst": 1.0, "para": 0.5}."""
    weights = {}
    for entry in text.split(","):
        name, _, value = entry.partition("=")
        if not value:
            raise argparse.ArgumentTypeError(f"needed NAME=WEIGHT, got {entry[:40]!r}")
        weights[name] = number(float, 0)(value)
        if weights[name] == 0:
            raise argparse.ArgumentTypeError(f"needed a weight above 0, got {entry!r}; "
                                             f"--tasks leaves a task out")
    return weights


def option_name(known):
    """An argparse type: one of the known options, or FILE.py:NAME or torchjd:NAME."""
    def convert(text):
        if text not in known and not all(text.partition(":")):
            raise argparse.ArgumentTypeError(f"needed {', '.join(known)}, FILE.py:FUNCTION "
                                             f"or torchjd:NAME, got {text[:60]!r}")
        return text
    return convert


def accepts(action, value):
    """Is `value` what a parser's flag could have become?   action: of parser._actions"""
    if action.nargs == 0:
        return isinstance(value, bool)
    try:
        for part in [value] if action.nargs is None else value or []:
            word = str(part)
            if isinstance(part, list):          # as task_list and task_weights make them
                word = ",".join(part)
            elif isinstance(part, dict):
                word = ",".join(f"{name}={weight}" for name, weight in part.items())
            made = (action.type or str)(word)
            if part is not None and (type(made), made) != (type(part), part) or (
                    action.choices and part not in [None, *action.choices]):
                return False
    except (argparse.ArgumentTypeError, TypeError, ValueError):
        return value is None
    return True


def given(parser, argv):
    """{name: "given" or "default"}: which flags the caller wrote out."""
    # With every default None, what is left None was not given.
    values = vars(parser.parse_args(argv, argparse.Namespace(
        **{action.dest: None for action in parser._actions})))
    # Trap: not `value in (None, False)`. 0 == False in Python, and 0 may well be given.
    return {name: "default" if value is None or value is False else "given"
            for name, value in values.items()}


def parser(tasks, options):
    """One flag for one ablation. None is filled in from Table 1.

    tasks, options: the names that --tasks and --option know.
    """
    whole, share, amount = number(int, 1), number(float, 0, 1), number(float, 0)
    p = command.Parser(description="Fine-tune one BERT for sentiment, paraphrase and "
                       "similarity.")
    g = p.add_argument_group("what the report compares")
    g.add_argument("--option", type=option_name(options), default="rr", metavar="|".join(
                   options), help="sequential (Algorithm 1), round robin (Algorithm 2), "
                   "with gradient surgery, with gradient vaccine (ours: rr); or a "
                   "treatment of your own, FILE.py:FUNCTION, or a library's, torchjd:NAME")
    g.add_argument("--smart", action="store_true", help="both SMART terms (report 3.5)")
    g.add_argument("--con", action="store_true", help="encode a pair together (report 3.4)")
    g.add_argument("--hlh", action="store_true",
                   help="hidden layers in the heads (report 3.6)")
    g.add_argument("--tasks", type=task_list(tasks), default=",".join(tasks),
                   metavar="NAME,…", help=f"train only some of {','.join(tasks)} (report, "
                   f"Table 2)")
    g.add_argument("--task-weights", type=task_weights, metavar="NAME=W,…",
                   help="multiply the tasks' losses (ours: 1 for each)")
    g.add_argument("--para-first", type=number(int, 0), metavar="N",
                   help="N epochs on paraphrase alone first (report 3.5.1: 5 with SMART, "
                   "else 0)")
    g.add_argument("--fresh-streams", action="store_true",
                   help="reshuffle every set at each epoch: the row without RR "
                   "(report, Table 2)")
    g.add_argument("--freeze", action="store_true", help="train the heads only (course)")
    g = p.add_argument_group("optimization")
    g.add_argument("--batch-size", type=whole,
                   help="examples of a task at once (report, Table 1)")
    g.add_argument("--accumulate", type=whole, metavar="N",
                   help="batches to one update (report, Table 1: 2 where it says batch 32)")
    g.add_argument("--epochs", type=whole,
                   help="passes over the aligned set (report, Table 1; else 15)")
    g.add_argument("--max-steps", type=whole, metavar="N",
                   help="stop after N updates (ours)")
    g.add_argument("--align", choices=tasks,
                   help="the set whose size makes an epoch (report 3.3: sts)")
    g.add_argument("--lr", type=amount, help="(report, Table 1; else 1e-5)")
    g.add_argument("--warmup", type=share, metavar="SHARE", help="share of updates "
                   "in which the learning rate rises; if not 0, it then falls to 0 "
                   "(report: 0)")
    g.add_argument("--clip", type=amount, default=1.0, metavar="NORM",
                   help="largest norm of an update's gradient, 0 for none (BERT: 1)")
    g.add_argument("--weight-decay", type=amount, default=0.0,
                   help="on matrices (course: 0)")
    g.add_argument("--vaccine-granularity", choices=["model", "layer", "matrix"],
                   default="model", help="what has a target of its own (report: model)")
    g.add_argument("--vaccine-beta", type=share, default=0.01,
                   help="(Gradient Vaccine: 0.01)")
    g = p.add_argument_group("SMART")
    g.add_argument("--smart-weight", type=amount, default=1.0, help="λ_s (ours)")
    g.add_argument("--smart-eps", type=amount, default=0.02,
                   help="radius ε (ours; SMART: 1e-5)")
    g.add_argument("--smart-steps", type=whole, default=1, help="ascent steps (SMART: 1)")
    g.add_argument("--bregman-weight", type=amount, default=0.1, help="μ (ours; SMART: 1)")
    g = p.add_argument_group("model")
    g.add_argument("--pool", choices=["cls", "mean"],
                   help="a sequence as BERT's pooler output, or the mean over its tokens "
                   "(cls)")
    g.add_argument("--dropout", type=number(float, 0, 0.99), metavar="P",
                   help="everywhere (default: what config.json says)")
    g.add_argument("--sst-loss", choices=["ce", "mse"], default="ce", help="(ours, see D1)")
    g.add_argument("--sts-loss", choices=["mse", "ce"], default="mse",
                   help="(ours, see D1)")
    g = p.add_argument_group("run")
    g.add_argument("--data", type=text, metavar="DIR",
                   help="folder of the CSV files (data/)")
    g.add_argument("--weights", type=text, metavar="DIR|NAME",
                   help="a pre-trained BERT: a folder, a name under weights/, or an "
                   "installed package (weights/bert-base-uncased)")
    g.add_argument("--download", action="store_true",
                   help="get data/ and weights/bert-base-uncased/, then stop")
    g.add_argument("--out", type=text, metavar="DIR", help="new folder for this run (under "
                   "runs/)")
    g.add_argument("--resume", type=text, metavar="RUN",
                   help="continue the run in this folder")
    g.add_argument("--checkpoint-every", type=whole, default=500, metavar="N",
                   help="updates between checkpoints; there is one at each epoch's end "
                   "(ours)")
    g.add_argument("--log-layers", action="store_true",
                   help="log each layer's cosines between task gradients too (ours: off)")
    g.add_argument("--tensorboard", action="store_true",
                   help="write the log as event files too, to RUN/tensorboard/ (off; needs "
                   "the package tensorboard)")
    g.add_argument("--seed", type=number(int, 0, 2 ** 32 - 1), default=0,
                   help="of the heads, dropout, orders and noise (0)")
    g.add_argument("--device", type=text, default="auto",
                   help="cpu, cuda, cuda:1, … (auto: cuda if there is one)")
    g.add_argument("--amp", choices=["auto", "off", "bf16"], default="auto",
                   help="bfloat16 in the forward passes (auto: where the machine has it)")
    return p


def check(parser, args, source):
    """End with one line if two flags contradict each other, or one would change nothing.

    source: {name: "given" or another word}.
    """
    tasks, option = ",".join(args.tasks), args.option
    treated = option not in ("seq", "rr")
    unknown = set(args.task_weights or {}) - set(args.tasks)
    if unknown:
        parser.error(f"--task-weights names {', '.join(sorted(unknown))}, and --tasks is "
                     f"{tasks}; needed weights of tasks that are trained")
    for wrong, one, other, why in (
            (treated and len(args.tasks) == 1, f"--tasks {tasks}",
             f"--option {option}",
             "one task has nothing to conflict with; use --option rr"),
            (treated and args.freeze, "--freeze", f"--option {option}",
             "what is treated would be frozen; use --option rr"),
            (args.align and args.align not in args.tasks, f"--align {args.align}",
             f"--tasks {tasks}", "align to a set that is trained on"),
            (args.align and option == "seq", f"--align {args.align}", "--option seq",
             "Algorithm 1 reads every set to its end"),
            (args.para_first and "para" not in args.tasks,
             f"--para-first {args.para_first}", f"--tasks {tasks}",
             "add para to the tasks"),
            (args.amp == "bf16" and args.smart and args.smart_weight
             and args.smart_eps < 1e-2, "--amp bf16", f"--smart-eps {args.smart_eps:g}",
             "so small a change is lost in bfloat16; use --amp auto")):
        if wrong:
            parser.error(f"{one} and {other} contradict each other: {why}")
    if min(args.epochs, args.max_steps or args.epochs) > 10 ** 5:
        parser.error(f"--epochs {args.epochs} is more than a run can take; needed at most "
                     f"100000, or so many --max-steps")
    for name, needs, present in (
            ("smart_weight", "--smart", args.smart),
            ("bregman_weight", "--smart", args.smart),
            ("smart_eps", "--smart, and a --smart-weight above 0",
             args.smart and args.smart_weight),
            ("smart_steps", "--smart, and a --smart-weight above 0",
             args.smart and args.smart_weight),
            ("sst_loss", "sst among --tasks", "sst" in args.tasks),
            ("sts_loss", "sts among --tasks", "sts" in args.tasks),
            ("vaccine_granularity", "--option gvac", option == "gvac"),
            ("vaccine_beta", "--option gvac", option == "gvac"),
            ("log_layers", "a treatment, such as --option pcgrad, which keeps gradients "
             "apart", treated)):
        if source[name] == "given" and not present:
            parser.error(f"--{name.replace('_', '-')} would change nothing: "
                         f"it needs {needs}")
