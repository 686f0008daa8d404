"""How every command ends: a wrong flag or file gets one line and exit status 2."""

import errno
import os
import sys
import warnings

from plumbing import console


def one_line(command) -> int:
    """Run command() -> its exit status; a mistake in flags or files is one line and 2."""
    console.prepare()
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    name = os.path.basename(sys.argv[0])
    try:
        return command()
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = f"the disk is full, cannot write {error.filename}"
        print(f"{name}: error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:           # before the first step
        return 130
