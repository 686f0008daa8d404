"""Graded cases of 3.4: CON encoding."""

import data

# --- 3.4 CON encoding ---

def con__truncate_pair(r):
    return [list(data.truncate_pair(*(int(n) for n in r.integers(0, 14, 2)),
                                    int(r.integers(0, 24)))) for _ in range(150)]


def joined(r, low, high):
    a, b = (r.integers(10, 999, r.integers(1, 8)).tolist() for _ in range(2))
    cls, sep = (int(n) for n in r.permutation(10)[:2])
    row, segments = data.join_pair(a, b, cls, sep, int(r.integers(low, high)))
    return list(row), list(segments), a, b


def con__join_pair_with_separators_and_segments(r):
    return [joined(r, 20, 30) for _ in range(10)]


def con__join_pair_cuts_words_only(r):
    return [joined(r, 5, 15) for _ in range(40)]
