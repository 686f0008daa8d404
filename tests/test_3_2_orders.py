"""3.2, 3.3 The orders in which a step takes the tasks: Algorithms 1 and 2."""

import multitask
from tests.checks import assert_equal


def test_3_2_sequential__one_task_after_the_other():
    assert_equal(multitask.sequential({"sst": 2, "sts": 1, "para": 3}),
                 [("sst",), ("sst",), ("sts",), ("para",), ("para",), ("para",)], mistakes={
        "the tasks take turns; Algorithm 1 finishes one before the next":
            [("sst",), ("sts",), ("para",), ("sst",), ("para",), ("para",)],
        "a step is a name; it must be a tuple of one":
            ["sst", "sst", "sts", "para", "para", "para"],
        "each task has one step": [("sst",), ("sts",), ("para",)],
        "a step is a list; it must be a tuple": [
            ["sst"], ["sst"], ["sts"], ["para"], ["para"], ["para"]]})


def test_3_3_round_robin__all_tasks_in_every_step():
    every = ("sst", "para", "sts")
    assert_equal(multitask.round_robin({"sst": 5, "para": 9, "sts": 2}, "sts"),
                 [every] * 2, mistakes={
        "the epoch is as long as the largest set": [every] * 9,
        "the epoch is as long as the first set": [every] * 5,
        "each task has its own steps": [("sst",), ("para",), ("sts",)] * 2,
        "the tasks were sorted": [("para", "sst", "sts")] * 2,
        "a step is a list; it must be a tuple": [list(every)] * 2})
    assert_equal(multitask.round_robin({"sst": 3, "para": 9, "sts": 2}, "sst"),
                 [every] * 3, mistakes={
        "the epoch is as long as the smallest set, or STS's, whatever `aligned` says":
            [every] * 2})
