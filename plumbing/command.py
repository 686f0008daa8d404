"""How every command ends: a wrong flag or file gets one line and exit status 2."""

import argparse
import errno
import os
import sys
import warnings

from plumbing import console, machine

LONGEST = 800      # characters of a message


class Parser(argparse.ArgumentParser):
    """argparse's, without abbreviated flags, and without 17 lines of usage at a mistake."""

    def __init__(self, **more):
        super().__init__(allow_abbrev=False, usage=argparse.SUPPRESS, **more)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {console.printable(message, LONGEST)}\n")


def show_warning(message, *_):
    """A warning as one printable line, instead of Python's two with a line of code."""
    return f"warning: {console.printable(str(message), LONGEST)}\n"


def one_line(command) -> int:
    """Run command() -> its exit status; a mistake in flags or files is one line and 2."""
    console.prepare()
    warnings.formatwarning = show_warning
    name = os.path.basename(sys.argv[0])
    try:
        return command()
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = "the disk is full" + (f", cannot write {error.filename}"
                                         if error.filename else "; make room, try again")
        elif isinstance(error, OSError) and error.strerror and error.filename:
            text = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
        print(f"{name}: error: {console.printable(text, LONGEST)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        asked = machine.memory_asked(error)
        if asked is None:
            raise
        print(f"{name}: error: out of memory, {asked} were asked for; make the model, the "
              f"batches or the file smaller", file=sys.stderr)
        return 2
    except KeyboardInterrupt:           # before the first step
        print(f"{name}: stopped by Ctrl-C", file=sys.stderr)
        return 130
