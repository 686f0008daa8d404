"""3.3 Which examples a batch gets, and how epochs are planned."""

import numpy as np

import data
import multitask
from tests.checks import assert_equal
from tests.world import training_of


def test_3_3_Stream__every_example_once_before_any_comes_again():
    # 530 examples in batches of 4: windows of 64, a pass ends inside a batch, and the batch
    # in which it ends is the only one with examples of two passes.
    stream = data.Stream(np.random.default_rng(0).integers(3, 30, 530), 4, (0, 0))
    drawn = np.concatenate([stream.next() for _ in range(530)])
    for start in range(0, len(drawn), 530):
        whole = drawn[start - start % 4:start - start % 4 + 532]
        assert set(whole) == set(range(530)), "an example of this pass is missing"
    assert (np.bincount(drawn) == 4).all()


def test_3_3_Stream__D18_left_over_examples_come_first_in_the_next_pass():
    stream = data.Stream(np.ones(10, int), 4, (0, 0))
    drawn = np.concatenate([stream.next() for _ in range(5)])
    assert len(set(drawn[:8])) == 8
    assert set(range(10)) - set(drawn[:8]) <= set(drawn[8:12]), "some were lost"
    assert (np.bincount(drawn) == 2).all()


def test_3_3_Stream__a_set_smaller_than_a_batch_still_fills_it():
    stream = data.Stream(np.ones(3, int), 8, (0, 0))
    assert (np.bincount(np.concatenate([stream.next() for _ in range(3)])) == 8).all()


def test_3_3_Stream__batch_mates_are_alike_in_length():
    lengths = np.random.default_rng(0).integers(3, 60, 5000)
    stream, order = data.Stream(lengths, 16, (0, 0)), np.random.default_rng(1)
    ours = sum(lengths[stream.next()].max() * 16 for _ in range(300))
    naive = sum(lengths[order.choice(5000, 16)].max() * 16 for _ in range(300))
    assert ours < 0.65 * naive, f"padded tokens: got {ours}, at random it is {naive}"


def test_3_3_Stream__position_is_all_its_state():
    lengths = np.random.default_rng(0).integers(3, 30, 300)
    a = data.Stream(lengths, 4, (7, 1))
    for _ in range(100):
        a.next()
    b = data.Stream(lengths, 4, (7, 1))
    b.position = list(a.position)
    assert all((a.next() == b.next()).all() for _ in range(100))
    first, again = (data.Stream(lengths, 4, (7, 1)) for _ in range(2))
    again.restart()
    assert ({i for _ in range(64) for i in first.next()}
            != {i for _ in range(64) for i in again.next()}), "restart() draws a new order"
    a.restart()
    assert a.position == [1, 0] and not (
        a.next() == data.Stream(lengths, 4, (7, 1)).next()).all()


def test_3_3_Stream__restart_inside_a_group_drops_the_rest_of_it():
    stream, fresh = (data.Stream(np.arange(530), 4, (0, 0)) for _ in range(2))
    for _ in range(5):
        stream.next()
    old = [data.Stream(np.arange(530), 4, (0, 0)).next().tolist()]
    stream.restart()
    fresh.position = [1, 0]
    assert_equal([stream.next().tolist()], [fresh.next().tolist()],
                 "a restart must begin a new order", mistakes={
        "restart() goes on with the old order": old})


def test_3_3_Stream__every_group_of_batches_is_shuffled_by_itself():
    # One pass of 4 groups of 64 batches; a batch's place by length within its group.
    stream = data.Stream(np.arange(1024), 4, (0, 0))
    means = np.array([stream.next().mean() for _ in range(256)]).reshape(4, 64)
    ranks = means.argsort(-1).tolist()
    assert ranks[0] != list(range(64)), "batches go from short to long: not shuffled"
    assert ranks[0] != ranks[1], "every group is shuffled alike"


def test_3_3_Stream__another_seed_is_another_order():
    a, b = ([data.Stream(np.arange(530), 4, seed).next().tolist()] for seed in
            ((0, 1), (1, 1)))
    assert a != b, "the seed is not used"


def test_3_3_lengths__a_joint_pair_is_as_long_as_both_its_sentences():
    dataset = data.Dataset("", ["x", "y"], [([7] * 5, [8] * 5), ([7] * 6, [8])], None)
    assert_equal(data.lengths(dataset, True).tolist(), [10, 7], mistakes={
        "joint pairs are sorted by their longer sentence": [5, 6]})
    assert_equal(data.lengths(dataset, False).tolist(), [5, 6], mistakes={
        "pairs apart are sorted by both sentences together": [10, 7]})


def test_3_3_in_order_of_length__the_longest_come_first():
    order = data.in_order_of_length(np.array([3, 9, 5, 9, 1]), 2)
    assert_equal([batch.tolist() for batch in order], [[1, 3], [2, 0], [4]], mistakes={
        "the shortest come first: too little memory shows late": [[4, 0], [2, 1], [3]]})


def test_3_3_plan__D18_left_over_batches_are_carried_into_the_next_epoch():
    _, plan = training_of("--epochs", "3", "--accumulate", "4")
    # 40 examples: 10 batches an epoch; after 10, 20, 30 batches 2, 5, 7 updates are whole.
    assert_equal([len(epoch) for epoch in plan], [2, 3, 2])


def test_3_3_plan__an_epoch_is_as_long_as_STS_or_else_the_smallest_set():
    def length(batches, **more):
        return len(multitask.plan(batches, False, 1, **more)[0])
    batches = {"sst": 5, "para": 9, "sts": 7}
    assert_equal(length(batches), 7, mistakes={"the smallest set makes an epoch": 5,
                                               "the largest set makes an epoch": 9})
    assert_equal(length({"sst": 5, "para": 9}), 5, "without STS the smallest set does")
    assert_equal(length(batches, aligned="para"), 9, "--align is not obeyed")


def test_3_3_plan__stops_after_max_steps_however_many_epochs_there_are():
    _, plan = training_of("--epochs", "1000000000", "--max-steps", "12")
    assert_equal([len(epoch) for epoch in plan], [10, 2])
    _, plan = training_of("--epochs", "3", "--max-steps", "10")
    assert_equal([len(epoch) for epoch in plan], [10])
