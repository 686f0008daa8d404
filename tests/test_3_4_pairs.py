"""3.4 Comparison contextual embeddings: two sentences in one sequence."""

import numpy as np

import data
from tests import oracles
from tests.checks import assert_equal
from tests.world import FakeTokenizer


def test_3_4_truncate_pair__by_hand():
    assert_equal(tuple(data.truncate_pair(5, 5, 9)), (5, 4), mistakes={
        "on a tie a was cut; b must be": (4, 5)})
    assert_equal(tuple(data.truncate_pair(10, 3, 9)), (6, 3), mistakes={
        "only b was cut": (9, 0), "both were cut to a half": (4, 3),
        "both were cut by the same number": (8, 1), "a half each, the rest to a": (5, 3)})


def test_3_4_truncate_pair__equals_dropping_one_token_at_a_time():
    for a, b, n, want in ((10, 3, 9, (6, 3)), (5, 5, 9, (5, 4)), (5, 5, 7, (4, 3)),
                          (3, 10, 9, (3, 6)), (7, 6, 4, (2, 2)), (0, 5, 3, (0, 3))):
        assert_equal(tuple(data.truncate_pair(a, b, n)), want,
                     f"lengths {a} and {b}, budget {n}")
    for a in range(8):
        for b in range(8):
            for n in range(14):
                assert_equal(tuple(data.truncate_pair(a, b, n)),
                             tuple(oracles.naive_truncate_pair(a, b, n)),
                             f"lengths {a} and {b}, budget {n}")


def test_3_4_join_pair__by_hand():
    row, segments = data.join_pair([7, 8], [9], 2, 3, 40)
    assert_equal(list(row), [2, 7, 8, 3, 9, 3], mistakes={
        "the [SEP] between the sentences is missing": [2, 7, 8, 9, 3],
        "the last [SEP] is missing": [2, 7, 8, 3, 9],
        "a second [CLS] is before b": [2, 7, 8, 3, 2, 9, 3],
        "[CLS] is missing": [7, 8, 3, 9, 3]})
    assert_equal(list(segments), [0, 0, 0, 0, 1, 1], mistakes={
        "the first [SEP] was put in b's segment; it belongs to a's, 0": [0, 0, 0, 1, 1, 1],
        "the last [SEP] was put in a's segment; it belongs to b's, 1": [0, 0, 0, 0, 1, 0],
        "segments begin at 1": [1, 1, 1, 1, 2, 2],
        "segments are all 0": [0, 0, 0, 0, 0, 0]})


def test_3_4_join_pair__long_texts_are_cut_and_keep_their_separators():
    # 12 in all, 9 of them words: 6 and 3 are left of 10 and 3.
    row, segments = data.join_pair(list(range(10, 20)), [20, 21, 22], 2, 3, 12)
    assert_equal(list(row), [2, 10, 11, 12, 13, 14, 15, 3, 20, 21, 22, 3],
                 "max_length counts [CLS] and both [SEP]s", mistakes={
        "the whole row was cut at its end": [2, *range(10, 20), 3],
        "only two special tokens were counted":
                    [2, 10, 11, 12, 13, 14, 15, 16, 3, 20, 21, 22, 3],
        "special tokens were not counted": [2, *range(10, 19), 3, 20, 21, 22, 3],
        "the words' beginnings were cut off": [2, *range(14, 20), 3, 20, 21, 22, 3]})
    assert_equal(list(segments), [0] * 8 + [1] * 4)
    a, b = list(range(10, 20)), [20, 21, 22]
    data.join_pair(a, b, 2, 3, 12)
    assert_equal([len(a), len(b)], [10, 3], "the caller's lists, those of the data set, "
                 "were cut; cut copies")


def test_3_4_collate__pair_as_one_sequence():
    dataset = data.Dataset("", ["x", "y"], [([7, 8], [9]), ([7], [8, 9, 10])], None)
    batch = data.collate(dataset, [0, 1], FakeTokenizer, True, 40)
    assert batch.input_ids.tolist() == [[2, 7, 8, 3, 9, 3, 0], [2, 7, 3, 8, 9, 10, 3]], (
        f"got {batch.input_ids.tolist()}, expected [CLS] a [SEP] b [SEP] and padding "
        f"at the end")
    assert_equal(batch.token_type_ids.tolist(), [[0, 0, 0, 0, 1, 1, 0],
                                                 [0, 0, 0, 1, 1, 1, 1]], mistakes={
        "padding is in segment 1; it must be 0": [[0, 0, 0, 0, 1, 1, 1],
                                                  [0, 0, 0, 1, 1, 1, 1]]})
    assert_equal(batch.attention_mask.tolist(), [[1, 1, 1, 1, 1, 1, 0], [1] * 7], mistakes={
        "padding is visible: attention_mask must be 0 there": [[1] * 7, [1] * 7]})
    assert batch.labels is None


def test_3_4_collate__pair_as_two_sequences():
    dataset = data.Dataset("", ["x", "y"], [([7, 8], [9]), ([7], [8, 9])],
                           np.array([1, 0], np.float32))
    batch = data.collate(dataset, [0, 1], FakeTokenizer, False, 40)
    assert_equal(batch.input_ids.tolist(), [[2, 7, 8, 3], [2, 7, 3, 0], [2, 9, 3, 0],
                                            [2, 8, 9, 3]])
    assert batch.token_type_ids is None and batch.labels.tolist() == [1, 0]


def test_3_4_collate__labels_are_those_of_the_indices():
    dataset = data.Dataset("", list("xyz"), [([7],), ([8],), ([9],)],
                           np.array([1, 2, 3], np.float32))
    batch = data.collate(dataset, np.array([2, 0]), FakeTokenizer, False, 40)
    assert_equal(batch.labels.tolist(), [3, 1], "labels", mistakes={
        "the labels are those of the first examples": [1, 2]})


def test_3_4_collate__long_texts_are_cut_and_keep_their_separators():
    dataset = data.Dataset("", ["x"], [(list(range(10, 20)), list(range(20, 23)))], None)
    row = data.collate(dataset, [0], FakeTokenizer, True, 12).input_ids.tolist()
    assert_equal(row, [[2, 10, 11, 12, 13, 14, 15, 3, 20, 21, 22, 3]])
    batch = data.collate(dataset, [0], FakeTokenizer, False, 5)
    assert batch.input_ids.tolist() == [[2, 10, 11, 12, 3], [2, 20, 21, 22, 3]]
    assert batch.attention_mask is None, "nothing is padded, so no mask is needed"
