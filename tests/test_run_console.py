"""What a program prints must neither end it nor command the terminal."""

import os
import subprocess
import sys
import tempfile

from plumbing import console
from tests.checks import assert_equal

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PRINTS = """
import sys
from plumbing import console
console.prepare()
console.prepare()                       # twice does no harm
for i in range({lines}):
    print("λ θ̃ φᵀ ← × 😀 \\udc80", i)
    print("said", file=sys.stderr)
sys.stdout.flush()
open({done!r}, "w").close()
"""


def run(lines=1, encoding="utf-8", close=None, flags=(), **streams):
    """A program that prints so many lines.   -> (status, stdout, stderr, did it finish?)"""
    done = os.path.join(tempfile.mkdtemp(), "done")
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding,
                   "PYTHONPATH": ROOT}
    found = subprocess.run(
        [sys.executable, *flags, "-c", PRINTS.format(lines=lines, done=done)],
        env=environment, cwd=ROOT, preexec_fn=close and (lambda: os.close(close)),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}, check=False)
    return (found.returncode, (found.stdout or b"").decode(encoding).strip(),
            (found.stderr or b"").decode(encoding).strip(), os.path.exists(done))


def test_run_console__no_encoding_ends_a_program():
    for encoding, shown in (("ascii", "lambda theta~ phi^T <- x \\U0001f600 \\udc80 0"),
                            ("cp437", "lambda theta~ φ^T <- x \\U0001f600 \\udc80 0"),
                            ("cp1252", "lambda theta~ phi^T <- × \\U0001f600 \\udc80 0"),
                            ("utf-8", "λ θ̃ φᵀ ← × 😀 \\udc80 0")):
        assert_equal(run(encoding=encoding), (0, shown, "said", True), encoding)


def test_run_console__once_is_enough():
    found = subprocess.run(
        [sys.executable, "-c", "from plumbing import console; console.prepare(); "
         "print('θ')"], cwd=ROOT, capture_output=True, check=False,
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert_equal((found.returncode, found.stdout.strip()), (0, b"theta"),
                 "an encoding without θ ends the program")


def test_run_console__a_reader_that_leaves_early_ends_nothing():
    for flags in ((), ("-u",)):
        read, write = os.pipe()
        os.close(read)
        try:
            status, _, errors, finished = run(2000, stdout=write, flags=flags)
            assert_equal((status, finished), (0, True), f"{flags}")
            assert "warning" not in errors, "a reader that has seen enough is no fault"
            assert_equal(run(2000, stderr=write, flags=flags)[::3], (0, True), f"{flags}")
        finally:
            os.close(write)


def test_run_console__a_full_disk_ends_nothing_and_is_named_once():
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full:
            status, _, errors, finished = run(2000, stdout=full)
            assert (status, finished) == (0, True) and errors.count("said") == 2000
            assert errors.count("No space left") == 1 and "Traceback" not in errors
            assert_equal(run(2000, stderr=full)[::3], (0, True))
            assert_equal(run(2000, stdout=full, stderr=full)[::3], (0, True))


def test_run_console__closed_streams_end_nothing():
    if os.name == "posix":
        assert_equal(run(close=1), (0, "", "said", True))
        assert_equal(run(close=2), (0, "λ θ̃ φᵀ ← × 😀 \\udc80 0", "", True))


def test_run_console__files_do_not_take_a_closed_streams_number():
    if os.name == "posix":
        program = ("from plumbing import console; console.prepare(); import os; "
                   "print(os.open(os.devnull, os.O_RDONLY) > 2)")
        found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True,
                               preexec_fn=lambda: os.close(2), stdout=subprocess.PIPE)
        assert_equal(found.stdout.decode().strip(), "True")


def test_run_printable__escape_sequences_and_directions_are_shown():
    assert_equal(console.printable("a\x1b[2J\x07\x9b\x7f\r\n\tb"),
                 "a\\x1b[2J\\x07\\x9b\\x7f\\r\\n\\tb")
    for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A),
                 0x2028, 0xD800, 0xDFFF):
        assert_equal(console.printable(chr(code)), f"\\u{code:04x}")
    kept = "café 你好 λ 👩‍🔬 \\ \"' a\u0301"
    assert_equal(console.printable(kept), kept, "other characters stay as they are")


def test_run_printable__length_is_bounded():
    assert_equal(console.printable("abcdef", 6), "abcdef")
    assert_equal(console.printable("abcdefg", 6), "abcde…")
    for text in ("\x1b" * 50, "a" * 10**6, "\u202e" * 3):
        assert len(console.printable(text, 12)) <= 12
