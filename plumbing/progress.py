"""One line about a running loop: a bar on a terminal, a line now and then in a log."""

import shutil
import sys
import time


class Progress:
    """Shows steps done, what the caller says, steps a second and the time left.

    total: steps in all; done: steps that an earlier process has taken; every: seconds
    between two lines of a log. stream: where to, by default stderr. unit: what is counted.
    """

    def __init__(self, total, done=0, every=30.0, stream=None, unit="steps"):
        self.total, self.first, self.every, self.unit = total, done, every, unit
        self.stream = stream or sys.stderr
        self.terminal = bool(self.stream) and self.stream.isatty()
        self.start = self.last = time.monotonic()
        self.estimated = False

    def show(self, done, text):
        """done: number of finished steps; text: what to say beside it."""
        now = time.monotonic()
        rate = (done - self.first) / max(1e-9, now - self.start)
        left = (self.total - done) / max(1e-9, rate)
        # One early line in a log, so that nobody waits half a minute for the first word.
        early = not self.estimated and now - self.start > 5
        pause = 0.2 if self.terminal else self.every
        if now - self.last < pause and done < self.total and not early:
            return
        self.last, self.estimated = now, True
        line = f"{done}/{self.total}  {text}  {rate:.2f} {self.unit}/s  {clock(left)} left"
        if self.terminal:
            filled = 20 * done // self.total
            line = f"[{'#' * filled}{'.' * (20 - filled)}] {line}"
            # A line as wide as the terminal would wrap, and each redraw leave one behind.
            line = line[:max(1, shutil.get_terminal_size().columns - 1)]
            self.stream.write(f"\r{line}\x1b[K")
        elif self.stream:
            self.stream.write(line + "\n")
        if self.stream:
            self.stream.flush()

    def clear(self):
        """Make room for a line of another kind."""
        if self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def clock(seconds: float) -> str:
    """125 -> "2:05", 3725 -> "1:02:05"; rounded to the nearest second."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
