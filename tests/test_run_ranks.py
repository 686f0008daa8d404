"""Runs by several processes: the updates, scores and files of one process.

The rest of it takes longer, and is in test_run_torchrun.py.
"""

import os
import signal
import tempfile
import unittest.mock

import torch

from plumbing import ranks
from tests import processes
from tests.checks import assert_close, assert_equal
from tests.processes import compare, flags_of, interrupted, state_of, trained
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
    assert_equal(ranks.about(4, None, []), "")
    assert_equal(ranks.resuming("my runs/a"), 'python train.py --resume "my runs/a"')


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
    assert_equal(len(log_of(out)), 4)
    # Nothing but progress, and of no step twice, as if of another rank.
    steps = [line.split("/")[0] for line in errors.splitlines()]
    assert all(map(str.isdigit, steps)) and len(steps) == len(set(steps)), errors


def test_run_ranks__a_mistake_is_one_line_and_status_2_for_all():
    used = trained(1, steps=1)
    for more, words in ((["--epochs", 0], "--epochs"), (["--data", "/none"], "/none"),
                        (["--out", used], "holds another run"),
                        (["--device", "cuda:1"], "--device")):
        out = os.path.join(tempfile.mkdtemp(), "run")
        statuses, output, errors = processes.run(3, *flags_of(out, *more))
        assert_equal(statuses, [2] * 3, errors)
        assert len(errors.splitlines()) == 1 and words in errors, errors
        assert not os.path.exists(out)


def test_run_ranks__nobody_acts_before_all_have_met():
    # Rank 1 ends where it meets the others; they must not know of the wrong flag by then.
    out = os.path.join(tempfile.mkdtemp(), "run")
    statuses, _, errors = processes.run(
        3, *flags_of(out, "--epochs", 0),
        at={"rank": 1, "call": "plumbing.ranks.largest", "number": 1,
            "signal": signal.SIGKILL})
    assert_equal(statuses, [1, -9, 1], errors)
    assert "another process" in errors and "--epochs" not in errors, errors


def test_run_ranks__before_the_folder_is_there_nobody_is_told_to_resume_it():
    # Killed while the data are loaded, or while rank 0 makes the folder; and just after.
    for rank, call, there in ((1, "train.prepare", False), (1, "data.load", False),
                              (0, "plumbing.folder.write_json", False),
                              (1, "plumbing.ranks.start_generators", True)):
        out = os.path.join(tempfile.mkdtemp(), "run")
        statuses, _, errors = processes.run(
            2, *flags_of(out), limit=30,
            at={"rank": rank, "call": call, "number": 1, "signal": signal.SIGKILL})
        assert_equal(statuses, [-9 if r == rank else 1 for r in range(2)], errors)
        lines = [line for line in errors.splitlines() if "train.py" in line]
        assert len(lines) == 1 and "another process" in lines[0], errors
        assert_equal("--resume" in lines[0], there, f"killed in {call}: {lines[0]}")
        again = ["--resume", out] if there else flags_of(out)
        statuses, _, errors = processes.run(2, *again)
        assert_equal(statuses, [0, 0], errors)


def test_run_ranks__a_treatment_of_ones_own_may_draw_numbers_and_keep_a_state():
    # It draws from a generator that is another one in each process.
    path = os.path.join(tempfile.mkdtemp(), "own.py")
    with open(path, "w") as file:
        file.write("import os\nimport numpy as np\n\nclass Own:\n    step = 0\n\n"
                   "    def __call__(self, gram, losses):\n        self.step += 1\n"
                   "        rng = np.random.default_rng(os.getpid())\n"
                   "        self.drawn = rng.random(len(gram))\n"
                   "        return self.drawn + losses / self.step\n")
    out = trained(3, "--option", f"{path}:Own")
    assert state_of(out)["treatment"]["attributes"]["units"]["list"][0]["attributes"][
        "step"]["value"] == 3
    # Had the ranks updated by numbers of their own, their θ would differ, and
    # with_generators() would have refused to write the checkpoint.


def test_run_ranks__each_rank_has_a_dropout_of_its_own():
    def states(*more):
        return {state["cpu"].numpy().tobytes()
                for state in state_of(trained(3, *more, steps=1))["ranks"]}
    assert len(states("--dropout", 0)) == 1, "without dropout SMART's noise must be shared"
    assert len(states("--dropout", .1)) == 3, "ranks drop the same places of their slices"


def test_run_ranks__as_many_processes_resume_bit_for_bit():
    more = "--option", "gvac", "--smart", "--dropout", .1
    whole, (out, output) = trained(2, *more, steps=6), interrupted(2, *more)
    assert f"torchrun --nproc-per-node 2 train.py --resume {out}" in output
    statuses, output, errors = processes.run(2, "--resume", out)
    assert statuses == [0, 0], errors
    assert files_of(out) == files_of(whole), "it does not go on as it would have"
    assert "other random numbers" not in output
