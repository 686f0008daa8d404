"""Make typical mistakes in copies of our source, and see that the tests notice each one.

    python tools/mutants.py           all of them, in a few minutes
    python tools/mutants.py WORD …    those whose part or mistake contains a WORD

A mutant is a small edit of one function, or of a module. It counts as killed if a test of
its own part fails and that test's name or message contains the words that point to the
mistake: a check that merely says "wrong" teaches nobody. At the end stand the edits that no
test can notice, with the reason; they are tried too, and must pass.

An edit names its function and a piece of its source, so that it breaks loudly, with
"fragment not found", when the source has changed: write the same mistake into the new code.
"""

import ast
import functools
import multiprocessing
import os
import shutil
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from plumbing import command
from tools.climber import claim_of, climb
from tools.mutant_list import EQUIVALENT, MUTANTS
from tools.source import copy_tree, read, write

PROCESSES = 2
CHUNK = 12              # mutants of one part that a process tries in a row


@functools.cache
def parsed(file):
    source = read(ROOT, file)
    return source, ast.parse(source)


def place_of(name):
    """"optim.AdamW.step" or "optim" -> (file, first line from 0, one after the last)"""
    parts = name.split(".")
    depth = 2 if parts[0] in ("plumbing", "tools") else 1
    file = os.path.join(*parts[:depth]) + ".py"
    source, node = parsed(file)
    for part in parts[depth:]:
        node = next((child for child in node.body if getattr(child, "name", "") == part),
                    None)
        if node is None:
            raise ValueError(f"there is no function {name}; the source has changed, write "
                             f"the same mistake into the new code")
    if len(parts) == depth:
        return file, 0, len(source.splitlines())
    return file, node.lineno - 1, node.end_lineno


def mutated(function, old, new):
    """-> (file, its source with the edit).   Raises ValueError if old is not there"""
    if isinstance(old, str):
        old, new = (old,), (new,)
    file, first, end = place_of(function)
    lines = parsed(file)[0].splitlines(keepends=True)
    body = "".join(lines[first:end])
    for piece, other in zip(old, new):
        if piece not in body:
            raise ValueError(f"fragment not found in {function}: {piece!r}; the source has "
                             f"changed, write the same mistake into the new code")
        body = body.replace(piece, other)
    return file, "".join([*lines[:first], body, *lines[end:]])


def failures(folder, part, until=None):
    """Run a part's tests on a copy.   -> ["claim: message", …] of those that fail

    until: words that end the search when a failure has them.
    """
    try:
        return [f"{claim_of(r['name'])}: {r['message']}"
                for r in climb(folder, [part], 60.0, until) if r["state"] == "FAIL"]
    except RuntimeError as error:       # they ended the process
        return [str(error)]


def attempt(folder, part, function, old, new, until=None):
    """Mutate, run, put the file back.   -> failures"""
    file, source = mutated(function, old, new)
    write(source, folder, file)
    try:
        return failures(folder, part, until)
    finally:
        shutil.copyfile(os.path.join(ROOT, file), os.path.join(folder, file))


def try_chunk(job):
    """(folder, part, mutants, equivalents) -> [(as it should be?, line to print), …]"""
    place, part, mutants, equivalents = job
    folder = os.path.join(place, str(os.getpid()))
    if not os.path.exists(folder):
        copy_tree(folder)
    # What fails and should not is tried once more: the machine may have been busy.
    broken = failures(folder, part) and failures(folder, part)
    if broken:
        raise ValueError(f"{part} fails without any mistake: {broken[0]}")
    lines = []
    for function, old, new, mistake, hint in mutants:
        failed, tries = attempt(folder, part, function, old, new, hint), 1
        if failed and not any(hint in line for line in failed):
            failed, tries = attempt(folder, part, function, old, new, hint), 2
        right = [line for line in failed if hint in line]
        said = right[0].split(":")[0] + ", at the second try" * (tries > 1) if right else (
            " | ".join(line[:300] for line in failed) or "no test fails")
        state = "killed" if right else "UNCLEAR" if failed else "ALIVE"
        lines.append((bool(right), f"{state}  {part}  {function}: {mistake}  <-  {said}"))
    for function, old, new, reason in equivalents:
        failed = (attempt(folder, part, function, old, new)
                  and attempt(folder, part, function, old, new))
        lines.append((not failed, f"{'DIFFERS' if failed else 'same'}  {part}  {function}: "
                                  f"{new} for {old}: {failed[0] if failed else reason}"))
    return lines


def main(argv=None):
    p = command.Parser(__doc__)
    p.add_argument("words", nargs="*", help="only parts or mistakes that contain one")
    words = p.parse_args(argv).words

    def chosen(edits):
        """[(part, edit), …] of those asked for"""
        return [(part, edit) for part, mutants in edits.items() for edit in mutants
                if not words or any(word in text for word in words
                                    for text in (part, edit[0], edit[3]))]
    mutants, equivalents = chosen(MUTANTS), chosen(EQUIVALENT)
    if not mutants + equivalents:
        p.error(f"no part or mistake contains {' or '.join(map(repr, words))}")
    start, right = time.monotonic(), []
    place = tempfile.mkdtemp(prefix="minbert-mutants-")
    jobs = []
    for part in dict.fromkeys(part for part, _ in mutants + equivalents):
        own = [edit for other, edit in mutants if other == part]
        jobs += [(place, part, own[i:i + CHUNK], []) for i in range(0, len(own), CHUNK)]
        same = [edit for other, edit in equivalents if other == part]
        jobs += [(place, part, [], same)] if same else []
    try:
        with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
            for lines in pool.imap_unordered(try_chunk, jobs):
                right += [good for good, _ in lines]
                print(*(line for _, line in lines), sep="\n", flush=True)
    except ValueError as error:
        p.error(str(error))
    finally:
        shutil.rmtree(place)
    print(f"{len(mutants)} mistakes, {len(equivalents)} edits that change nothing: "
          f"{right.count(False)} are not as they should be; "
          f"{time.monotonic() - start:.0f} s")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
