"""The progress line: it fits a terminal that changes its width, and spares a log."""

import contextlib
import fcntl
import io
import itertools
import math
import os
import re
import struct
import termios
import time
import unittest.mock
import warnings

from plumbing import command, loop, progress
from tests.checks import assert_close, assert_equal
from tests.test_run_contract import FakeFolder


@contextlib.contextmanager
def clock_of_ours():
    """Within this, time passes only as the list's one number is increased."""
    now = [1000.0]
    with unittest.mock.patch.object(time, "monotonic", lambda: now[0]):
        yield now


class Terminal:
    """A pseudo-terminal, and a screen that folds long lines anew when its width changes.

    stream: where to write; rows(): what is to be seen.
    """

    def __init__(self, columns):
        self.ours, theirs = os.openpty()
        self.stream = open(theirs, "w", encoding="utf-8")
        self.lines, self.line, self.at = [""], 0, 0         # unfolded; the cursor's place
        self.resize(columns)

    def resize(self, columns):
        self.columns = columns
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))

    def read(self):
        written = b""
        self.stream.write("\a")            # what comes before it has been written by then
        self.stream.flush()
        while not written.endswith(b"\a"):
            written += os.read(self.ours, 1 << 16)
        for part in re.findall(r"\x1b\[\w|.", written.decode()[:-1], re.S):
            if part == "\r":
                self.at -= self.at % self.columns
            elif part == "\n":
                self.line, self.at = self.line + 1, 0
                self.lines[self.line:] = [""]
            elif part == "\x1b[J":
                self.lines[self.line:] = [self.lines[self.line][:self.at]]
            elif part == "\x1b[K":         # no further than this row
                text, end = self.lines[self.line], self.at - self.at % self.columns
                text = text[:self.at].ljust(end + self.columns) + text[end + self.columns:]
                self.lines[self.line] = text.rstrip()
            else:
                text = self.lines[self.line].ljust(self.at)
                self.lines[self.line] = text[:self.at] + part + text[self.at + 1:]
                self.at += 1

    def rows(self):
        self.read()
        found = [line[i:i + self.columns] for line in self.lines
                 for i in range(0, len(line) or 1, self.columns)]
        return [row.rstrip() for row in found if row.strip()]


FIELDS = ["  loss sst 1.21", " para .52", " sts .88", "  epoch 3/8", "  dev .776"]


def test_run_progress__it_leaves_one_line_on_a_terminal_that_changes_its_width():
    terminal = Terminal(80)
    terminal.stream.write("run: x\n")
    with clock_of_ours() as now:
        shown = progress.Progress(744, stream=terminal.stream)
        for step, columns in enumerate([80, 80, 60, 120, 79, 40, 60, 20, 10, 200, 80], 1):
            terminal.resize(columns)
            now[0] += 1
            shown.show(step, FIELDS)
            first, *rest = terminal.rows()
            assert_equal((first[:5], len(rest)), ("run: ", 1),
                         f"{columns} columns, smeared: {rest}")
            assert rest[0].find(f"{step}/744") >= 0 and len(rest[0]) < columns, rest
        terminal.resize(30)             # and then another line is printed
        shown.clear()
        terminal.stream.write("epoch 1: dev\n")
        assert_equal(terminal.rows(), ["run: x", "epoch 1: dev"])


def test_run_progress__what_finds_no_room_is_left_out_the_least_important_first():
    def line(columns):
        return progress.fitted("275/744", "2:08<3:38", 2.148, FIELDS, .37, columns)
    assert_equal(line(119), "[#######.............] 275/744 [2:08<3:38, 2.1/s]  loss sst "
                            "1.21 para .52 sts .88  epoch 3/8  dev .776")
    assert_equal(line(79), "275/744 [2:08<3:38, 2.1/s]  loss sst 1.21 para .52 sts .88  "
                           "epoch 3/8  dev .776")
    assert_equal(line(59), "275/744 [2:08<3:38, 2.1/s]  loss sst 1.21 para .52 sts .88")
    assert_equal(line(30), "275/744 [2:08<3:38, 2.1/s]")
    for columns in range(200):
        assert len(line(columns)) <= columns
    slow = progress.fitted("1/9", "0:04<0:32", .25, [], .1, 79)
    assert "4.0 s each" in slow, slow


def test_run_progress__a_log_gets_few_lines_the_first_one_soon():
    log = io.StringIO()
    with clock_of_ours() as now:
        shown = progress.Progress(36000, stream=log)
        for step in range(1, 36001):            # ten hours
            now[0] += 1
            shown.show(step, FIELDS)
    lines = log.getvalue().splitlines()
    assert_equal(lines[0], "5/36000  loss sst 1.21 para .52 sts .88  epoch 3/8  dev .776  "
                           "1.00 steps/s  0:05 elapsed  9:59:55 left")
    assert_equal([line.split("/")[0] for line in lines[:3]], ["5", "35", "65"])
    assert lines[-1].startswith("36000/36000 ") and 100 < len(lines) < 300, len(lines)
    assert "\x1b" not in log.getvalue() and "\r" not in log.getvalue()


def test_run_progress__what_soon_ends_shows_nothing():
    terminal, log, seen = Terminal(80), io.StringIO(), []
    for stream, silent in ((terminal.stream, .9), (log, 29)):
        for seconds in (silent, 3 * silent):
            with clock_of_ours() as now, unittest.mock.patch("sys.stderr", stream):
                for row in progress.track(["a", "b", "c", "d"], "x.csv", "rows"):
                    now[0] += seconds / 4
                    if row == "d" and stream is terminal.stream:
                        seen.append(terminal.rows())
    assert_equal(seen, [[], ["[###############.....] x.csv 3/4 rows [0:02<0:01, 1.5/s]"]])
    assert_equal(terminal.rows(), [], "it is removed at its end")
    assert_equal(log.getvalue().splitlines(), [
        "x.csv 2/4 rows  0.05 rows/s  0:44 elapsed  0:44 left",
        "x.csv 4/4 rows  0.05 rows/s  1:27 elapsed  0:00 left"])


def test_run_progress__names_of_files_command_no_terminal():
    log = io.StringIO()
    progress.Progress(2, label="a\x1b[2J\u4e2d.csv", every=0.0, stream=log).show(1)
    assert log.getvalue().startswith("a\\x1b[2J?.csv 1/2  "), log.getvalue()


def test_run_progress__losses_are_running_means():
    means = progress.Means()
    for value in (1, 2, 6):
        means.add("sst", value)
    assert_close(means.values["sst"], 3, 1e-12, "the mean of the first values")
    for value in [3] * 47 + [53]:           # the 51st: 49/50 · 3 + 53/50 = 4
        means.add("sst", value)
    assert_close(means.values["sst"], 4, 1e-12, mistakes={
        "the mean of all values, however old": 203 / 51})


def test_run_progress__a_loop_shows_means_epoch_and_dev():
    # A clock that strikes at each look: on a real one, a pause may hide the lines after it.
    log, clock = io.StringIO(), itertools.count(0.0, .001)
    with unittest.mock.patch("sys.stderr", log), unittest.mock.patch.object(
            progress.time, "monotonic", lambda: next(clock)):
        session = loop.Loop(FakeFolder(), dict, 4, 100)
        session.progress.every = 0.0
        for epoch, steps in session.parts(["ab", "cd"]):
            for step, _ in steps:
                session.log_step({"step": step + 1, "epoch": epoch + 1, "lr": .1,
                                  "loss_sst": float(step), "norm_sst": 9.0,
                                  "loss_scale": 2.0 ** 16,      # float16's, no task's
                                  "loss_sts": float("nan") if step == 1 else 2.0})
            session.log({"step": session.step, "dev": {"sst": .5, "overall": .7641}})
    lines = [line.partition("  0.")[0].partition("  ")[2].rsplit("  ", 3)[0]
             for line in log.getvalue().splitlines()]
    assert_equal(lines, ["loss sst .00 sts 2.00  epoch 1/2",
                         "loss sst .50 sts 2.00  epoch 1/2",
                         "loss sst 1.00 sts 2.00  epoch 2/2  dev .764",
                         "loss sst 1.50 sts 2.00  epoch 2/2  dev .764"])


def test_run_progress__while_updates_are_skipped_it_says_how_many():
    log, clock = io.StringIO(), itertools.count(0.0, .001)     # as above
    with unittest.mock.patch("sys.stderr", log), unittest.mock.patch.object(
            progress.time, "monotonic", lambda: next(clock)):
        session = loop.Loop(FakeFolder(), dict, 4, 100)
        session.progress.every, session.epochs = 0.0, 1
        for loss in (2.0, math.nan, math.nan, 3.0):
            session.log_step({"step": 1, "epoch": 1, "loss_sst": loss,
                              **({} if loss == loss else {"skipped": 1})})
    said = [line.split("  ")[1] for line in log.getvalue().splitlines()]
    assert_equal(said, ["loss sst 2.00", "skipped 1 in a row", "skipped 2 in a row",
                        "loss sst 2.50"], "losses of before, or of skipped updates")


def test_run_progress__a_warning_takes_the_place_of_the_line():
    terminal = Terminal(60)
    with unittest.mock.patch("sys.stderr", terminal.stream), warnings.catch_warnings():
        warnings.formatwarning = command.show_warning
        warnings.simplefilter("always")
        progress.Progress(9).show(1, FIELDS)
        warnings.showwarning(UserWarning("odd"), UserWarning, "x.py", 1)
    assert_equal(terminal.rows(), ["warning: odd"])


def test_run_progress__clock_rounds_to_the_nearest_second():
    assert_equal([progress.clock(s) for s in (0.4, 0.6, 59.6, 3599.7, 125)],
                 ["0:00", "0:01", "1:00", "1:00:00", "2:05"], mistakes={
        "seconds are rounded down": ["0:00", "0:00", "0:59", "59:59", "2:05"],
        "seconds are rounded up": ["0:01", "0:01", "1:00", "1:00:00", "2:05"]})


def test_run_progress__speed_is_that_of_this_process():
    # Resumed after 90 of 100 steps; 5 more in 10 seconds: 0.5 a second, 10 s for the rest.
    log = io.StringIO()
    with clock_of_ours() as now:
        shown = progress.Progress(100, done=90, every=0.0, stream=log)
        now[0] += 10
        shown.show(95, [" text"])
    assert "0.50 steps/s" in log.getvalue(), (
        f"steps of an earlier process are counted: {log.getvalue()!r}")
    assert "0:10 left" in log.getvalue(), f"the time left is wrong: {log.getvalue()!r}"
