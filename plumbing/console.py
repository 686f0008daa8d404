"""What the program prints must never end it, nor command the terminal.

    prepare()       standard output and standard error that no encoding, closed pipe or full
                    disk can break
    printable()     text from files, with escape sequences made visible
    quoted()        a path in a command that can be copied
"""

import codecs
import io
import os
import sys
import time

# What Windows code pages and plain ASCII lack of the characters that we print.
STAND_INS = {"θ": "theta", "φ": "phi", "β": "beta", "λ": "lambda", "μ": "mu", "ε": "eps",
             "δ": "delta", "σ": "sigma", "Σ": "sum", "‖": "||", "²": "^2", "³": "^3",
             "ᵀ": "^T", "√": "sqrt", "·": "*", "×": "x", "±": "+-", "←": "<-", "→": "->",
             "≤": "<=", "≥": ">=", "∞": "inf", "…": "...", "–": "-", "½": "1/2",
             "\u0303": "~"}


def stand_in(error):
    """Error handler for codecs: θ -> theta; what has no stand-in -> \\u escapes."""
    found = "".join(STAND_INS.get(c) or c.encode("ascii", "backslashreplace").decode()
                    for c in error.object[error.start:error.end])
    return found, error.end


class Lenient(io.RawIOBase):
    """A stream's lowest layer that drops what cannot be written."""

    def __init__(self, raw, name):
        self.raw, self.name, self.told = raw, name, False

    def writable(self):
        return True

    def fileno(self):
        return self.raw.fileno()

    def isatty(self):
        return self.raw.isatty()

    def write(self, block):
        rest = memoryview(block)
        try:
            while rest:
                written = self.raw.write(rest)
                if written is None:         # a full pipe that does not wait for its reader
                    time.sleep(0.01)
                rest = rest[written or 0:]
        except BrokenPipeError:             # the reader, `head` perhaps, has seen enough
            pass
        except OSError as error:
            if self.name == "<stdout>" and not self.told:
                self.told = True
                print(f"warning: standard output: {error.strerror}; what is printed is "
                      f"lost, but the program goes on", file=sys.stderr)
        return len(block)


def prepare() -> None:
    """Make sys.stdout and sys.stderr unable to raise; every command calls this first."""
    codecs.register_error("stand-in", stand_in)
    # Trap: if the caller has closed a stream, the next file that is opened would get its
    # number, and whatever C code prints would end up in that file.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif stream is getattr(sys, f"__{name}__") and hasattr(stream, "buffer"):
            try:
                stream.flush()
            except OSError:
                pass
            setattr(sys, name, lenient(stream))
        elif hasattr(stream, "reconfigure"):        # a test's, or an embedding program's
            stream.reconfigure(errors="stand-in")


def lenient(stream):
    """The same stream, but nothing that is written to it raises."""
    unbuffered = not hasattr(stream.buffer, "raw")              # python -u
    raw = Lenient(stream.buffer if unbuffered else stream.buffer.raw, stream.name)
    return io.TextIOWrapper(raw if unbuffered else io.BufferedWriter(raw),
                            encoding=stream.encoding, errors="stand-in",
                            line_buffering=stream.line_buffering,
                            write_through=stream.write_through)


# Control characters (ESC and BEL among them), ends of lines, what turns the direction of
# writing round, and halves of surrogate pairs, which no encoding can write.
UNSAFE = [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029,
          *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF, *range(0xD800, 0xE000)]
ESCAPES = {code: chr(code).encode("ascii", "backslashreplace").decode() if code > 0x7F
           else repr(chr(code))[1:-1] for code in UNSAFE}


def printable(text: str, limit: int | None = None) -> str:
    """Text that a terminal shows and does not obey: "\\x1b[2J" -> "\\\\x1b[2J".

    limit: how many characters to return at most; what is cut off is shown as "…".
    """
    if limit is None or len(text) <= limit:
        shown = text.translate(ESCAPES)
        if limit is None or len(shown) <= limit:
            return shown
    return text[:limit].translate(ESCAPES)[:limit - 1] + "…"


def quoted(path) -> str:
    """A path as a command takes it, in "" if it has a blank (Windows has no '')."""
    path = printable(path)
    return f'"{path}"' if " " in path else path
