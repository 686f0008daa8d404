"""The flags of train.py, one for each ablation, and what is rejected: values out of range,
flags that contradict each other, and flags that would change nothing.
"""

import argparse
import math
import sys

from plumbing import command, machine

LARGEST = 10 ** 9       # of a rate or a factor: float32 holds its square


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
        names = [name.strip() for name in text.split(",")]
        if set(names) - set(known) or len(set(names)) < len(names):
            raise argparse.ArgumentTypeError(f"needed some of {','.join(known)}, got "
                                             f"{text[:40]!r}")
        return [name for name in known if name in names]
    return convert


def task_weights(text):
    """An argparse type: "sst=1,para=.5" -> {"sst": 1.0, "para": 0.5}."""
    weights = {}
    for entry in text.split(","):
        name, value = (part.strip() for part in entry.partition("=")[::2])
        if not value:
            raise argparse.ArgumentTypeError(f"needed NAME=WEIGHT, got {entry[:40]!r}")
        if name in weights:
            raise argparse.ArgumentTypeError(f"two weights for {name[:40]!r}; needed one")
        weights[name] = number(float, 0, LARGEST)(value)
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


def parse(parser, argv, recipes):
    """argv -> (args, {name: "given" | "recipe NAME" | "default"}).

    recipes: {name: flags}; those of --recipe are taken where argv has no other.
    """
    args, source = parser.parse_args(argv), given(parser, argv)
    if args.recipe:
        words = recipes[args.recipe].split()
        if args.cosine:         # it takes the place of CON
            words = [word for word in words if word != "--con"]
        for name, where in given(parser, words).items():
            if where == "given" and source[name] != "given":
                source[name] = f"recipe {args.recipe}"
        args = parser.parse_args([*words, *(sys.argv[1:] if argv is None else argv)])
    return args, source


USAGE = """Fine-tune one BERT for sentiment, paraphrase and similarity.

    python train.py [FLAG …]
"""
MORE = """\
examples:
  python train.py                                     the sample, round robin
  python train.py --option gvac --smart --con --hlh   the report's best system
  python train.py --con --data DIR --weights DIR --epochs 3 --lr 2e-5

In brackets: the value of a flag that is not given, and where it comes from.
"Table 1": with the flags of a row of the report's Table 1, that row's value;
"sample": on the sample, which is used if there are no other data.
D1, D2, …: errors and gaps in the report, by their numbers in docs/errata.md.
"""


def by_default(name, default, table, sample) -> str:
    """The values that a flag takes if it is not given: "1e-05; Table 1: also 2e-05 …"

    default, sample: rows, as train.Row makes them; table: the rows of Table 1.
    """
    def said(value):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if default is None:
        return ""
    own = getattr(default, name)
    others = sorted({getattr(row, name) for row in table} - {own})
    parts = [said(own)]
    if others:
        parts.append(f"Table 1: also {', '.join(map(said, others))}")
    if getattr(sample, name) != own:
        parts.append(f"sample: {said(getattr(sample, name))}")
    return f"({'; '.join(parts)})"


def parser(tasks, options, default=None, table=(), sample=None, recipes=()):
    """The flags of train.py; a value left None comes from a row of Table 1.

    tasks, options, recipes: the names that --tasks, --option and --recipe know; the rest is
    for --help alone: see by_default().
    """
    whole, share, amount = number(int, 1), number(float, 0, 1), number(float, 0, LARGEST)

    def row(name):
        return by_default(name, default, table, sample)
    p = command.Parser(USAGE, epilog=MORE)
    g = p.add_argument_group("what the report compares")
    g.add_argument("--option", type=option_name(options), default="rr", metavar="NAME",
                   help=f"{', '.join(options)}: sequential (Algorithm 1), round robin "
                   f"(Algorithm 2), with gradient surgery, with gradient vaccine; or a "
                   f"treatment of your own, FILE.py:FUNCTION, or a library's, torchjd:NAME "
                   f"(rr; ours)")
    g.add_argument("--recipe", choices=list(recipes), help=f"flags that go together: "
                   f"{', '.join(recipes)}; other flags win over them (none)")
    g.add_argument("--smart", action="store_true",
                   help="both SMART terms, report 3.5 (off)")
    g.add_argument("--con", action="store_true",
                   help="encode a pair together, report 3.4 (off)")
    g.add_argument("--hlh", action="store_true",
                   help="hidden layers in the heads, report 3.6 (off)")
    g.add_argument("--cosine", action="store_true",
                   help="the cosine of a pair's two vectors in its head; without --con "
                   "(off; ours)")
    g.add_argument("--tasks", type=task_list(tasks), default=",".join(tasks),
                   metavar="NAME,…", help=f"train only some ({','.join(tasks)})")
    g.add_argument("--task-weights", type=task_weights, metavar="NAME=W,…",
                   help="factors of the tasks' losses, as in sst=2,para=.5 (1 each; ours)")
    g.add_argument("--para-first", type=number(int, 0), metavar="N",
                   help=f"epochs on paraphrase alone first, report 3.5.1 "
                   f"{row('para_first')}")
    g.add_argument("--fresh-streams", action="store_true",
                   help="reshuffle every set at each epoch: Table 2's row without RR (off)")
    g.add_argument("--freeze", action="store_true", help="train the heads only (off)")
    g = p.add_argument_group("optimization")
    g.add_argument("--batch-size", type=whole, metavar="N",
                   help=f"examples of a task at once {row('batch_size')}")
    g.add_argument("--accumulate", type=whole, metavar="N",
                   help=f"batches to one update: 2 where Table 1 says batch size 32 "
                   f"{row('accumulate')}")
    g.add_argument("--epochs", type=whole, metavar="N",
                   help=f"passes over the aligned set {row('epochs')}")
    g.add_argument("--max-steps", type=whole, metavar="N",
                   help="end after N updates (with the last epoch)")
    g.add_argument("--align", choices=tasks, help="the set whose size makes an epoch "
                   "(sts, report 3.3; without it the smallest)")
    g.add_argument("--lr", type=amount, metavar="RATE", help=f"learning rate {row('lr')}")
    g.add_argument("--warmup", type=share, metavar="SHARE",
                   help=f"share of the updates in which the learning rate rises; if not 0, "
                   f"it then falls to 0 {row('warmup')}")
    g.add_argument("--clip", type=amount, default=1.0, metavar="NORM",
                   help="largest norm of an update's gradient, 0 for none (1; BERT)")
    g.add_argument("--weight-decay", type=amount, default=0.0, metavar="RATE",
                   help="on matrices (0; course)")
    g.add_argument("--r-drop", type=amount, default=0.0, metavar="α",
                   help="pass each batch twice with different dropout, and add α times the "
                   "divergence of the outputs; 0 for one pass (0; ours, from R-Drop)")
    g.add_argument("--vaccine-granularity", choices=["model", "layer", "matrix"],
                   default="model", help="what has a target of its own (model; report)")
    g.add_argument("--vaccine-beta", type=share, default=0.01, metavar="β",
                   help="how fast targets follow (0.01; Gradient Vaccine)")
    g = p.add_argument_group("SMART")
    g.add_argument("--smart-weight", type=amount, default=1.0, metavar="λ",
                   help="factor of R_s, 0 for none (1; ours)")
    g.add_argument("--smart-eps", type=amount, default=0.02, metavar="ε",
                   help="largest change of an embedding (0.02; ours, SMART has 1e-5)")
    g.add_argument("--smart-steps", type=number(int, 1, 1000), default=1, metavar="N",
                   help="ascent steps (1; SMART)")
    g.add_argument("--bregman-weight", type=amount, default=0.1, metavar="μ",
                   help="factor of D_Breg, 0 for none (0.1; ours, SMART has 1)")
    g = p.add_argument_group("model")
    g.add_argument("--max-length", type=number(int, 5), metavar="TOKENS",
                   help="cut texts, and with --con pairs, that are longer (the positions "
                   "that the weights have: 512 in bert-base; sample: 64)")
    g.add_argument("--pool", choices=["cls", "mean"],
                   help=f"a sequence as BERT's pooler output, or the mean over its tokens "
                   f"{row('pool')}")
    g.add_argument("--dropout", type=number(float, 0, 0.99), metavar="P",
                   help="everywhere (what config.json says: 0.1 in bert-base; sample: 0)")
    g.add_argument("--sst-loss", choices=["ce", "mse"], default="ce",
                   help="cross-entropy or squared error (ce; the report has mse, see D1)")
    g.add_argument("--sts-loss", choices=["mse", "ce"], default="mse",
                   help="the same for STS (mse; the report has ce, see D1)")
    g = p.add_argument_group("run")
    g.add_argument("--data", type=text, metavar="DIR",
                   help="folder of the CSV files (data/, or else the sample)")
    g.add_argument("--weights", type=text, metavar="DIR|NAME",
                   help="a pre-trained BERT: a folder, a name under weights/, or an "
                   "installed package (weights/bert-base-uncased/, or else the sample's)")
    g.add_argument("--download", action="store_true",
                   help="get data/ and weights/bert-base-uncased/, 450 MB, and end")
    g.add_argument("--out", type=text, metavar="DIR",
                   help="new folder for this run (one under runs/)")
    g.add_argument("--resume", type=text, metavar="RUN",
                   help="continue the run in this folder")
    g.add_argument("--checkpoint-every", type=whole, default=500, metavar="N",
                   help="updates between checkpoints; there is one after each evaluation "
                   "too (500; ours)")
    g.add_argument("--eval-every", type=whole, metavar="N",
                   help="evaluate on dev after every N updates too, and choose the best "
                   "model there (after epochs only)")
    g.add_argument("--patience", type=whole, metavar="N",
                   help="end after N evaluations in a row without a better dev score; "
                   "those of --para-first do not count (never)")
    g.add_argument("--log-layers", action="store_true",
                   help="log each layer's cosines between task gradients too (off)")
    g.add_argument("--tensorboard", action="store_true",
                   help="write the log as event files too, to RUN/tensorboard/ (off; needs "
                   "the package tensorboard)")
    g.add_argument("--seed", type=number(int, 0, 2 ** 32 - 1), default=0, metavar="N",
                   help="of the heads, dropout, orders and noise (0)")
    g.add_argument("--device", type=text, default="auto", metavar="NAME",
                   help="cpu, cuda, cuda:1, …, mps (auto: cuda, else mps, else cpu)")
    g.add_argument("--amp", choices=["auto", "off", *machine.HALVES], default="auto",
                   help="forward passes in bfloat16, or in float16 with scaled losses "
                   "(auto: bf16 where the machine has it, fp16 on a GPU without it)")
    return p


def check(parser, args, source, trained):
    """End with one line if two flags contradict each other, or one would change nothing.

    source: {name: "given" or another word}; trained: the heads.Task of each of --tasks.
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
            (args.cosine and args.con, "--cosine", "--con",
             "there is no cosine where a pair is encoded as one sequence"),
            (args.cosine and not any(t.pair and t.num_outputs == 1 for t in trained),
             "--cosine", f"--tasks {tasks}" + " --sts-loss ce" * (args.sts_loss == "ce"),
             "it needs a task of pairs with one output"),
            (args.smart and args.smart_weight == args.bregman_weight == 0,
             "--smart", "--smart-weight 0 --bregman-weight 0", "nothing is left of it"),
            (args.smart and args.smart_weight and not args.smart_eps, "--smart",
             "--smart-eps 0", "nothing is perturbed; --smart-weight 0 leaves R_s out"),
            *((is_on and task.divergence is None, flag, f"--tasks {tasks}",
               f"{task.name} has no divergence; give it one in heads.tasks()")
              for flag, is_on in (("--smart", args.smart), ("--r-drop", args.r_drop))
              for task in trained),
            (args.align and args.align not in args.tasks, f"--align {args.align}",
             f"--tasks {tasks}", "align to a set that is trained on"),
            (args.align and option == "seq", f"--align {args.align}", "--option seq",
             "Algorithm 1 reads every set to its end"),
            (args.para_first and "para" not in args.tasks,
             f"--para-first {args.para_first}", f"--tasks {tasks}",
             "add para to the tasks"),
            (args.amp in machine.HALVES and args.smart and args.smart_weight
             and args.smart_eps < machine.SMALLEST_CHANGE[args.amp], f"--amp {args.amp}",
             f"--smart-eps {args.smart_eps:g}",
             "so small a change is lost in 16 bits; use --amp auto"),
            (args.eval_every and args.max_steps and args.eval_every >= args.max_steps,
             f"--eval-every {args.eval_every}", f"--max-steps {args.max_steps}",
             "the run would end first")):
        if wrong:
            parser.error(f"{one} and {other} contradict each other: {why}")
    for name, epochs in (("epochs", args.epochs), ("para-first", args.para_first)):
        if min(epochs, args.max_steps or epochs) > 10 ** 5:
            parser.error(f"--{name} {epochs} is more than a run can take; needed at most "
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
