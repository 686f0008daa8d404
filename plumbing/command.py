"""How every command explains itself, and ends: a wrong flag or file gets one line and exit
status 2.
"""

import argparse
import errno
import os
import shutil
import sys
import textwrap
import warnings

from plumbing import console, machine, progress

LONGEST = 800      # characters of a message


class Help(argparse.RawDescriptionHelpFormatter):
    """Lines of at most 80 columns, those of examples as they are."""

    def __init__(self, prog, **_):
        columns = shutil.get_terminal_size().columns
        super().__init__(prog, max_help_position=26, width=max(40, min(80, columns - 2)))


class Parser(argparse.ArgumentParser):
    """argparse's, without abbreviated flags, and without 17 lines of usage at a mistake.

    doc: a module's docstring: its first line is the description, its indented lines with
    "python" are the usage and examples.
    """

    def __init__(self, doc, epilog=None):
        description, *lines = doc.splitlines()
        usage = "\n       ".join(line.strip().replace("%", "%%") for line in lines
                                if line.startswith("    ") and "python " in line)
        super().__init__(description=textwrap.fill(description, 80), usage=usage,
                         epilog=epilog, allow_abbrev=False, formatter_class=Help)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {console.printable(message, LONGEST)}\n")


def show_warning(message, *_):
    """A warning as one printable line, instead of Python's two with a line of code."""
    progress.make_room()
    return f"warning: {console.printable(str(message), LONGEST)}\n"


class Mistakes:
    """`with Mistakes() as mistakes:` a mistake in flags or files ends the body with one
    line; mistakes.status is then 2, or 130 after Ctrl-C.
    """

    status = 0

    def __enter__(self):
        console.prepare()
        warnings.formatwarning = show_warning
        return self

    def __exit__(self, kind, error, trace):
        name = os.path.basename(sys.argv[0])
        if isinstance(error, KeyboardInterrupt):        # before the first step
            self.status, text = 130, "stopped by Ctrl-C"
        elif isinstance(error, (ValueError, OSError)):
            self.status, text = 2, f"error: {explained(error)}"
        elif isinstance(error, (RuntimeError, MemoryError)) and machine.memory_asked(error):
            self.status, text = 2, (f"error: out of memory, {machine.memory_asked(error)} "
                                    f"were asked for; make the model, the batches or the "
                                    f"file smaller")
        else:
            return False
        print(f"{name}: {console.printable(text, LONGEST)}", file=sys.stderr)
        return True


def explained(error) -> str:
    """An exception's message as one line; what the disk says names the file."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full" + (f", cannot write {error.filename}" if error.filename
                                     else "") + "; make room, then resume or repeat this"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return " ".join(str(error).split())


def one_line(command) -> int:
    """Run command() -> its exit status; a mistake in flags or files is one line and 2."""
    with Mistakes() as mistakes:
        return command()
    return mistakes.status
