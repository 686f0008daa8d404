"""A run's folder and what it tells while it works.

    args.json       each setting and where it came from, versions, seed
    metrics.jsonl   a line a step, and an evaluation line an epoch
    best/           the best model so far: config.json, vocab.txt, model.safetensors
    predictions/    dev and test, in the course's format
    result.json     the dev scores of the best model
"""

import json
import os
import sys
import time


def write_json(path, value):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


class Progress:
    """One line about a running loop: a bar on a terminal, a line now and then in a log."""

    def __init__(self, total, every=30.0, stream=None):
        self.total, self.every, self.stream = total, every, stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.start = self.last = time.monotonic()
        self.first = None           # the step at which this process began

    def show(self, step, text):
        """step: number of finished steps; text: what to say beside it."""
        now = time.monotonic()
        if self.first is None:
            self.first = step - 1
        if now - self.last < (0.2 if self.terminal else self.every) and step < self.total:
            return
        self.last = now
        rate = (step - self.first) / max(1e-9, now - self.start)
        left = (self.total - step) / rate
        line = f"{step}/{self.total}  {text}  {rate:.2f} steps/s  {clock(left)} left"
        if self.terminal:
            filled = 20 * step // self.total
            self.stream.write(f"\r[{'#' * filled}{'.' * (20 - filled)}] {line}\x1b[K")
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def clear(self):
        """Make room for a line of another kind."""
        if self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def clock(seconds):
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
