"""What the command line refuses: values out of range, and flags that would change nothing."""

import argparse


def number(kind, low, high=float("inf")):
    """An argparse type: a number from low to high, else one clear line."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:            # also for NaN
            raise argparse.ArgumentTypeError(
                f"needed {'a whole number' if kind is int else 'a number'} from {low} to "
                f"{high}, got {text!r}")
        return value
    return convert


def check(parser, args, source):
    """End with one line if two flags contradict each other, or one would change nothing."""
    tasks, option = ",".join(args.tasks), args.option
    for wrong, one, other, why in (
            (option in ("pcgrad", "gvac") and len(args.tasks) == 1, f"--tasks {tasks}",
             f"--option {option}", "one task has nothing to conflict with; use --option rr"),
            (option in ("pcgrad", "gvac") and args.freeze, "--freeze", f"--option {option}",
             "what is treated would be frozen; use --option rr"),
            (args.align and args.align not in args.tasks, f"--align {args.align}",
             f"--tasks {tasks}", "align to a set that is trained on"),
            (args.align and option == "seq", f"--align {args.align}", "--option seq",
             "Algorithm 1 reads every set to its end"),
            (args.para_first and "para" not in args.tasks, f"--para-first {args.para_first}",
             f"--tasks {tasks}", "add para to the tasks")):
        if wrong:
            parser.error(f"{one} and {other} contradict each other: {why}")
    for name, needs, present in (
            ("smart_weight", "--smart", args.smart), ("bregman_weight", "--smart", args.smart),
            ("smart_eps", "--smart, and a --smart-weight above 0", args.smart
             and args.smart_weight), ("smart_steps", "--smart, and a --smart-weight above 0",
                                      args.smart and args.smart_weight),
            ("vaccine_granularity", "--option gvac", option == "gvac"),
            ("vaccine_beta", "--option gvac", option == "gvac")):
        if source[name] == "given" and not present:
            parser.error(f"--{name.replace('_', '-')} would change nothing: it needs {needs}")
