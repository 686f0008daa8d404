"""Runs by several processes: the updates, scores and files of one process.

The rest of it takes longer, and is in test_run_torchrun.py.
"""

import os
import tempfile
import unittest.mock

import torch

from plumbing import ranks
from tests import processes
from tests.checks import assert_close, assert_equal
from tests.processes import compare, flags_of, trained
from tests.world import files_of, log_of


def test_run_ranks__by_hand_a_mean_over_uneven_slices():
    # Losses 1, 2, 3, 6 on three ranks, 1 | 2 | 3 6: ¼ · 1 + ¼ · 2 + ½ · 4½ = 3 = 12 / 4.
    # Of two rows on three ranks the first has none: it counts nothing, 0 + ½ · 1 + ½ · 2.
    import data

    def loss_fn(task, batch, randn_like):
        return batch.labels.mean(), {"loss": batch.labels.mean()}
    for labels, expected in (([1, 2, 3, 6], [.25, .5, 2.25]), ([1, 2], [0, .5, 1])):
        ids = torch.arange(4 * len(labels)).view(2 * len(labels), 2)
        batch = data.Batch(ids, None, None, torch.tensor(labels, dtype=torch.float32))
        for rank in range(3):
            with unittest.mock.patch.object(ranks, "here", ranks.Here(rank, 3)):
                loss, log = ranks.on_slice(loss_fn)("sts", batch)
            assert_close(loss, expected[rank])
            assert_close(log["loss"], expected[rank])


def test_run_ranks__a_slice_of_pairs_has_both_sentences_and_the_whole_batchs_noise():
    # Rows 0 to 3 are first sentences, 4 to 7 second ones; rank 1 of 2 has pairs 2 and 3.
    import data
    seen = []

    def loss_fn(task, batch, randn_like):
        seen.append((batch, randn_like(torch.zeros(4, 5, 3))))
        return batch.labels.mean(), {}
    batch = data.Batch(torch.arange(8)[:, None].expand(8, 5).contiguous(), None, None,
                       torch.arange(4.0))
    torch.manual_seed(7)
    with unittest.mock.patch.object(ranks, "here", ranks.Here(1, 2)):
        ranks.on_slice(loss_fn)("sts", batch)
    torch.manual_seed(7)
    noise = torch.randn_like(torch.zeros(8, 5, 3))
    got, drawn = seen[0]
    assert_equal(got.input_ids[:, 0].tolist(), [2, 3, 6, 7])
    assert_equal(got.labels.tolist(), [2, 3])
    assert_close(drawn, noise[[2, 3, 6, 7]], 0)


def test_run_ranks__one_process_gets_back_what_it_gave():
    losses, items = {"loss_sst": 1.0}, [1, 2, 3]

    def function(gram):
        return gram
    assert ranks.on_slice(function) is function and ranks.from_first(function) is function
    assert ranks.summed(losses, None, [0], []) is losses
    assert ranks.share(items) is items and ranks.gather(items) is items
    assert ranks.with_generators(losses) is losses and ranks.largest(5) == 5
    assert ranks.about(4, None, []) == "" and ranks.command() == "python train.py"


def test_run_ranks__surgery_vaccine_and_smart_make_the_updates_of_one_process():
    compare("--option", "pcgrad", "--log-layers", "--fresh-streams", "--epochs", 2)
    compare("--option", "gvac", "--smart", "--hlh", "--para-first", 1, "--accumulate", 2,
            "--smart-steps", 2, steps=7)


def test_run_ranks__evaluation_and_predictions_are_those_of_one_process():
    # With a learning rate of 0 the model is the same. Dev has 12 examples, 3 batches of 5;
    # test has 6: on three ranks one of them has none.
    alone, *others = (trained(world, "--lr", 0, "--con", steps=1) for world in (1, 2, 3))
    for out in others:
        for name, content in files_of(alone).items():
            if name.startswith("predictions"):
                assert files_of(out)[name] == content, f"{name} differs"
        assert_equal(log_of(out)[-1], log_of(alone)[-1], "dev scores")


def test_run_ranks__only_rank_0_prints_and_writes():
    out = os.path.join(tempfile.mkdtemp(), "run")
    _, output, errors = processes.run(3, *flags_of(out))
    alone = trained(1)
    assert sorted(os.listdir(out)) == sorted(os.listdir(alone))
    assert_equal([output.count(f"run: {out}"), output.count("best on dev"),
                  output.count("3 processes")], [1, 1, 1])
    assert len(log_of(out)) == 4 and len(errors.splitlines()) <= 1, errors


def test_run_ranks__a_mistake_is_one_line_and_status_2_for_all():
    used = trained(1, steps=1)
    for more, words in ((["--epochs", 0], "--epochs"), (["--data", "/none"], "/none"),
                        (["--out", used], "holds another run"),
                        (["--device", "cuda:1"], "--device"),
                        (["--batch-size", 100], "--batch-size")):
        out = os.path.join(tempfile.mkdtemp(), "run")
        statuses, output, errors = processes.run(3, *flags_of(out, *more))
        assert_equal(statuses, [2] * 3, errors)
        assert len(errors.splitlines()) == 1 and words in errors, errors
        assert not os.path.exists(out)
