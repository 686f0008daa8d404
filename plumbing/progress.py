"""How far something is: one line, renewed in place on a terminal, or now and then in a log.

    Progress    of a loop:  275/744 [2:08<3:38, 2.1/s]  loss sst 1.21 para .52  epoch 3/8
    track()     of anything else that may take long: a file's rows, batches, a download
    Means       running means, as one batch's loss says little

2:08 have passed since the start, 3:38 are left. On a terminal the line always fits: what
finds no room is left out, the least important first.
"""

import io
import os
import re
import shutil
import sys
import time

from plumbing.console import printable

# To the line's start, and clear from there to the screen's end. The cursor waits at the
# start too. So if the window becomes narrower, and the terminal folds the old line in two,
# the next one still replaces both halves.
CLEAR = "\r\x1b[J"


class Progress:
    """Shows what is done of a total, with the speed and the time left.

    total: steps in all; label: of what; done: steps that an earlier process has taken;
    unit: what is counted, by default steps. brief: it may well end at once: nothing is
    shown in the first second, or the first half minute of a log. stream: where to, by
    default stderr; every: seconds between two lines of a log, more in one of many hours.
    """

    def __init__(self, total, label="", done=0, unit="", brief=False, every=30.0,
                 stream=None):
        self.total, self.first, self.unit, self.brief = total, done, unit, brief
        # A file's name may hold anything; these characters take one column each.
        self.label = printable(label, 30).encode("ascii", "replace").decode()
        self.every, self.stream = every, stream or sys.stderr or io.StringIO()
        self.terminal = is_terminal(self.stream)
        self.start, self.last = time.monotonic(), None      # when it was shown last

    def show(self, done, fields=()):
        """done: number of finished steps; fields: what else to say, most important first.

        Each field brings the blanks that stand before it.
        """
        now = time.monotonic()
        elapsed = now - self.start
        if self.last is None:       # a log's first line comes early, unless it is brief
            wait = (1 if self.terminal else self.every) if self.brief else (
                0 if self.terminal else min(5, self.every))
        else:
            wait = self.last - self.start + (
                0.2 if self.terminal else max(self.every, elapsed / 50))
        if elapsed < wait and (self.brief or done < self.total):
            return
        self.last = now
        rate = (done - self.first) / max(1e-9, elapsed)
        left = clock((self.total - done) / max(1e-9, rate))
        count = f"{self.label} {done}/{self.total}{self.unit and ' '}{self.unit}".lstrip()
        if self.terminal:
            line = fitted(count, f"{clock(elapsed)}<{left}", rate, fields,
                          done / max(1, self.total), width_of(self.stream) - 1)
            self.stream.write(f"{CLEAR}{line}\r")
        else:
            self.stream.write(f"{count}{''.join(fields)}  {rate:.2f} "
                              f"{self.unit or 'steps'}/s  {clock(elapsed)} elapsed  "
                              f"{left} left\n")
        self.stream.flush()

    def clear(self):
        """Make room for a line of another kind."""
        if self.last is not None:
            make_room(self.stream)


def fitted(count, times, rate, fields, share, columns):
    """The line for a terminal, at most so many columns wide.   share: what is done of all

    The count and the times come first, then the fields, the speed, and a bar.
    """
    room = columns - len(f"{count} [{times}]")
    kept = []
    for field in fields:
        if len(field) > room:
            break
        kept.append(field)
        room -= len(field)
    speed = f", {rate:.1f}/s" if rate >= 1 else f", {1 / max(1e-9, rate):.1f} s each"
    speed = speed if len(speed) <= room else ""
    room -= len(speed)
    width = min(20, room - 3)
    filled = int(width * share)
    bar = f"[{'#' * filled}{'.' * (width - filled)}] " if width >= 10 else ""
    return f"{bar}{count} [{times}{speed}]{''.join(kept)}"[:max(0, columns)]


def is_terminal(stream) -> bool:
    return bool(stream) and stream.isatty() and os.environ.get("TERM") != "dumb"


def width_of(stream) -> int:
    """Columns of the terminal behind a stream, as they are now."""
    try:        # not shutil's answer, which is about standard output
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


def make_room(stream=None):
    """Before anything else is printed: remove what a Progress may have left there."""
    stream = stream or sys.stderr
    if is_terminal(stream):
        stream.write(CLEAR)
        stream.flush()


def track(items, label, unit="", total=None):
    """Yields the items, and shows how far it is if that takes long.

    total: how many there are, if items is not a list.
    """
    progress = Progress(len(items) if total is None else total, label, unit=unit,
                        brief=True)
    try:
        for done, item in enumerate(items, 1):
            yield item
            progress.show(done)
    finally:
        progress.clear()


class Means:
    """A running mean for each name: of all values so far, later mostly of the last 50.

        mean ← mean + (value - mean) / min(n, 50)       n: the number of this value
    """

    def __init__(self):
        self.values, self.numbers = {}, {}

    def add(self, name, value):
        n = self.numbers[name] = min(50, self.numbers.get(name, 0) + 1)
        mean = self.values.get(name, 0.0)
        self.values[name] = mean + (value - mean) / n


def short(value, digits=2) -> str:
    """.52, 1.21: a number without its leading 0."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")


def clock(seconds: float) -> str:
    """125 -> "2:05", 3725 -> "1:02:05"; rounded to the nearest second."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
