"""Make typical mistakes in copies of our source, and see that the tests notice each one.

    python tools/mutants.py                 all of them, in about a minute
    python tools/mutants.py WORD …          those whose part or mistake contains a WORD

A mutant is a small edit of one function. It counts as killed if a test of its own part
fails and that test's name or message contains the words that point to the mistake: a check
that merely says "wrong" teaches nobody. At the end stand the edits that no test can notice,
with the reason; they are tried too, and must pass.

An edit names its function and a piece of its source, so that it breaks loudly, with
"fragment not found", when the source has changed: write the same mistake into the new code.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tools.climber import climb
from tools.mutant_list import EQUIVALENT, MUTANTS
from tools.source import copy_tree, original


def mutated(folder, function, old, new):
    """-> (file, its source with the edit).   Raises ValueError if old is not there"""
    if isinstance(old, str):
        old, new = (old,), (new,)
    file, source, _, node = original(function, folder)
    lines = source.splitlines(keepends=True)
    body = "".join(lines[node.lineno - 1:node.end_lineno])
    for piece, other in zip(old, new):
        if piece not in body:
            raise ValueError(f"fragment not found in {function}: {piece!r}; the source has "
                             f"changed, write the same mistake into the new code")
        body = body.replace(piece, other)
    return file, "".join([*lines[:node.lineno - 1], body, *lines[node.end_lineno:]])


def failures(folder, part):
    """Run a part's tests on a copy.   -> ["claim: message", …] of those that fail"""
    return [f"{r['name'].split('__', 1)[1].replace('_', ' ')}: {r['message']}"
            for r in climb(folder, [part], limit=20.0) if r["state"] == "FAIL"]


def attempt(folder, part, function, old, new):
    """Mutate, run, put the file back.   -> failures"""
    file, source = mutated(folder, function, old, new)
    with open(os.path.join(folder, file), "w", encoding="utf-8", newline="\n") as target:
        target.write(source)
    try:
        return failures(folder, part)
    finally:
        shutil.copyfile(os.path.join(ROOT, file), os.path.join(folder, file))


def main(argv=None):
    p = argparse.ArgumentParser(description="Try typical mistakes on copies of the source.",
                                usage=argparse.SUPPRESS)
    p.add_argument("words", nargs="*", help="only parts or mistakes that contain one")
    words = p.parse_args(argv).words

    def asked(part, mutant):
        return not words or any(word in text for word in words
                                for text in (part, mutant[0], mutant[3]))
    start, killed, survivors = time.monotonic(), 0, 0
    place = tempfile.mkdtemp(prefix="minbert-mutants-")
    folder = os.path.join(place, "copy")
    copy_tree(folder)
    chosen = [(part, mutant) for part, mutants in MUTANTS.items() for mutant in mutants
              if asked(part, mutant)]
    same = [(part, mutant) for part, mutants in EQUIVALENT.items() for mutant in mutants
            if asked(part, mutant)]
    try:
        for part in dict.fromkeys(part for part, _ in chosen + same):
            broken = failures(folder, part)
            if broken:
                raise ValueError(f"{part} fails without any mistake: {broken[0]}")
        for part, (function, old, new, mistake, hint) in chosen:
            failed = attempt(folder, part, function, old, new)
            right = [line for line in failed if hint in line]
            killed += bool(right)
            survivors += not right
            print(f"{'killed' if right else 'UNCLEAR' if failed else 'ALIVE'}  {part}  "
                  f"{function}: {mistake}  <-  "
                  + ((right or failed or ["no test fails"])[0].split(":")[0]
                     if right or not failed else " | ".join(failed)), flush=True)
        for part, (function, old, new, reason) in same:
            failed = attempt(folder, part, function, old, new)
            survivors += bool(failed)
            print(f"{'DIFFERS' if failed else 'same'}  {part}  {function}: {new} for "
                  f"{old}: {failed[0] if failed else reason}", flush=True)
    except ValueError as error:
        p.error(str(error))
    finally:
        shutil.rmtree(place)
    print(f"{killed} of {len(chosen)} mistakes were noticed, each by a test of its part "
          f"that names it; {len(same)} edits change nothing; "
          f"{time.monotonic() - start:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
