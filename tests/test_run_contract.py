"""What a run's files promise: the order of write, sync and rename, and what is counted."""

import contextlib
import io
import json
import os
import pathlib
import signal
import tempfile
import types
import unittest.mock
import warnings

import torch

from plumbing import folder as folders
from plumbing import loop, machine, sources
from tests.checks import assert_close, assert_equal, assert_raises
from tests.world import send


def new_folder():
    return folders.Folder.create(os.path.join(tempfile.mkdtemp(), "run"), {"args": {}})


def reopened(run):
    run.close()
    with open(run / "args.json", encoding="utf-8") as file:
        return folders.Folder.reopen(run.path, json.load(file))


# --- Checkpoints ---

def test_run_checkpoint__the_old_one_stays_until_the_new_one_is_on_the_disk():
    run = new_folder()
    run.checkpoint(state_at(1))
    save, fsync, seen = torch.save, os.fsync, []

    def note_save(state, path):
        seen.append(os.path.exists(run / "last.pt"))
        return save(state, path)

    def note_fsync(number):
        seen.append(os.path.exists(run / "last.pt"))
        return fsync(number)
    with unittest.mock.patch.object(torch, "save", note_save), \
            unittest.mock.patch.object(os, "fsync", note_fsync):
        run.checkpoint(state_at(2))
    assert all(seen), "last.pt was moved away before the new one was on the disk"
    states = [folders.load_checkpoint(run / name) for name in ("last.pt", "before.pt")]
    assert_equal([state and state["step"] for state in states], [2, 1],
                 "the checkpoint before the last is kept as before.pt")
    run.close()


def test_run_checkpoint__it_may_run_no_code():
    place = os.path.join(tempfile.mkdtemp(), "a checkpoint ran code")

    class Evil:
        def __reduce__(self):
            return os.mkdir, (place,)
    path = os.path.join(tempfile.mkdtemp(), "last.pt")
    torch.save({"theta": Evil(), "digest": ""}, path)
    assert folders.load_checkpoint(path) is None
    assert not os.path.exists(place), "a checkpoint ran code while it was loaded"


def test_run_checkpoint__its_digest_covers_every_number_and_name():
    one = torch.tensor([1.0, 2.0])
    digests = [folders.content_digest(value) for value in (
        {"a": one}, {"b": one}, {"a": one.flip(0)}, {"a": one.view(1, 2)},
        {"a": one.double()}, {"a": [one]}, {"a": {"a": one}}, {"a": one, "b": 1},
        {"a": one, "b": 2}, {"a": [1, 2]}, {"a": [[1], 2]})]
    assert_equal(len(set(digests)), len(digests), "two different contents, one digest")
    assert_equal(folders.content_digest({"a": 1, "b": 2}),
                 folders.content_digest({"b": 2, "a": 1}), "the order of keys may change")


def state_at(step):
    """What loop.Loop adds to a checkpoint."""
    return {"step": step, "parts": 0, "waited": 0, "seconds": 0.0, "best": None}


def test_run_checkpoint__seconds_of_saving_go_on_after_a_resume():
    run = new_folder()
    run.saving = 100.0
    run.log({"step": 1})
    run.checkpoint(state_at(1))
    assert run.saving > 100, "the seconds of this checkpoint are not counted"
    assert_close(reopened(run).saving, 100, 5, "the seconds of saving are lost on a resume",
                 mistakes={"the seconds of saving are lost on a resume": 0.0})


def test_run_checkpoint__a_replaced_one_is_found_by_what_it_says_of_its_log():
    run = new_folder()
    run.log({"step": 1})
    run.checkpoint(state_at(1))
    run.log({"step": 2})
    again = reopened(run)
    assert_equal(pathlib.Path(run / "metrics.jsonl").read_bytes(), b'{"step": 1}\n',
                 "metrics.jsonl is cut back to what the checkpoint counts")
    again.log({"step": "two"})
    again.checkpoint(state_at(2))
    assert_equal(reopened(again).state["step"], 2, "the digest goes on after a resume")


# --- Folders that are replaced, and their remains ---

def test_run_checkpoint__it_may_come_from_a_machine_with_other_devices():
    cpu, gpu = torch.ones(2), torch.zeros(3)
    here = {"random": {"cpu": cpu}, "scale": None, "x": 1}
    for saved in ({**here, "random": {"cpu": cpu, "cuda": gpu}},
                  {**here, "scale": {"value": 2.0}},
                  {"random": {"cpu": cpu, "cuda": gpu}, "scale": {"value": 2.0}, "x": 1}):
        for now, then in ((here, saved), (saved, here)):
            run = new_folder()
            run.state = dict(then)
            run.restore(lambda _: None, lambda now=now: dict(now))
            run.close()
    for wrong in ({"x": 2}, {"random": {"cpu": gpu}}, {"random": 5}):
        run = new_folder()
        run.state = {**here, **wrong}
        with assert_raises("does not fit this run"):    # closes it
            run.restore(lambda _: None, lambda: dict(here))


def test_run_start__a_failed_one_leaves_the_users_own_folder():
    own = tempfile.mkdtemp()
    folders.Folder.create(own, {"args": {}}).close()
    assert_equal(os.listdir(own), [], "what it made itself is removed")
    run = new_folder()
    run.close()
    assert not os.path.exists(run.path)


def test_run_best__written_synced_then_renamed():
    run, events = new_folder(), []
    replace, fsync = os.replace, os.fsync

    def write(path):
        os.mkdir(path)
        for name in ("a", "b"):
            pathlib.Path(path, name).write_text(name)
        events.append("write")

    def note_replace(*args):
        events.append("rename")
        return replace(*args)

    def note_fsync(number):
        events.append("sync")
        return fsync(number)
    with unittest.mock.patch.object(os, "replace", note_replace), \
            unittest.mock.patch.object(os, "fsync", note_fsync):
        run.replace_folder("best", write)
    assert_equal(events, ["write", "sync", "sync", "rename"], mistakes={
        "best/ is renamed without a sync": ["write", "rename"],
        "only one file of best/ is synced": ["write", "sync", "rename"],
        "best/ is synced after it was renamed": ["write", "rename", "sync", "sync"]})
    run.replace_folder("best", write)
    assert_equal(sorted(os.listdir(run.path)), ["args.json", "best", "metrics.jsonl"],
                 "remains of the old best/ are left")
    run.close()


def test_run_best__an_old_one_is_put_back_after_a_kill():
    run = new_folder()
    run.log({"step": 1})
    run.checkpoint(state_at(1))
    os.mkdir(run / "best.old")
    again = reopened(run)
    assert os.path.exists(again / "best"), "best.old was not put back"
    again.close()


def test_run_best__an_old_one_stays_until_the_new_one_is_written():
    run = new_folder()
    run.replace_folder("best", os.mkdir)

    def fails(path):
        assert os.path.exists(run / "best"), "best/ was removed before the new one is there"
        raise OSError("disk full")
    with assert_raises("disk full", error=OSError):
        run.replace_folder("best", fails)
    assert os.path.exists(run / "best"), "best/ is lost if writing the new one fails"
    run.close()


def test_run_start__remains_of_a_killed_one_block_nothing():
    for names in ((), ("args.json.new",), ("metrics.jsonl",),
                  ("args.json.new", "metrics.jsonl")):
        path = tempfile.mkdtemp()
        for name in names:
            pathlib.Path(path, name).touch()
        try:
            folders.check_free(path)
        except ValueError as error:
            raise AssertionError(f"remains of a killed start block the folder: "
                                 f"{names}") from error
    pathlib.Path(path, "metrics.jsonl").write_text("a line\n")
    with assert_raises("holds files"):          # steps were logged: that is no mere start
        folders.check_free(path)


# --- What the run depends on ---

def compare(before, now, was=None, machine=None):
    """folder.compare() with digests {name: text}.   -> the texts of all warnings"""
    place, paths = tempfile.mkdtemp(), {}
    for name, text in now.items():
        paths[name] = os.path.join(place, name)
        pathlib.Path(paths[name]).write_text(text)
    digests = {}
    for name, text in before.items():
        pathlib.Path(place, "x").write_text(text)
        digests[name] = folders.file_digest(os.path.join(place, "x"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folders.compare({"digests": digests, "machine": was or {}}, "run", paths,
                        machine or {})
    return [str(warning.message) for warning in caught]


def test_run_compare__changed_added_and_removed_files_are_refused_by_name():
    assert_equal(compare({"a": "1"}, {"a": "1"}), [])
    for before, now in (({"a": "1"}, {"a": "2"}), ({}, {"a": "1"}), ({"a": "1"}, {})):
        with assert_raises("a: not what the run", "put the old files back"):
            compare(before, now)


def test_run_compare__a_run_of_an_older_version_looked_at_fewer_files():
    now = {"a": "1", "special_tokens_map.json": "{}", "helper.py": ""}
    assert_equal(compare({"a": "1"}, now, {"torch": "1"}, {"torch": "1"}), [])
    with assert_raises("helper.py, special_tokens_map.json: not what the run"):
        compare({"a": "1"}, now, {"bert.py": "1"}, {"bert.py": "1"})


def test_run_compare__another_machine_is_a_warning():
    said = compare({}, {}, {"torch": "1", "cores": 2}, {"torch": "2", "cores": 2})
    assert_equal(len(said), 1, "another version of torch must give one warning")
    assert "torch is 2, was 1" in said[0], said


def test_run_files__the_vocabulary_is_one_of_them():
    place = tempfile.mkdtemp()
    for name in ("config.json", "vocab.txt", "model.safetensors", "pytorch_model.bin",
                 "notes.md"):
        pathlib.Path(place, name).touch()
    table = os.path.join(place, "x.csv")
    pathlib.Path(table).touch()
    sets = {"train": {"sst": types.SimpleNamespace(path=table)}, "dev": {}}
    assert_equal(sorted(sources.files_of(sets, place)), [os.path.join("data", "x.csv")] + [
        os.path.join("weights", name) for name in (
            "config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt")],
        "a file that the run reads gets no digest")


# --- The loop ---

def test_run_loop__a_request_just_before_an_evaluation_ends_it_at_once():
    with loop.Stop() as stop, contextlib.suppress(loop.Interrupted):
        send(signal.SIGTERM)
        with stop.abandon():
            raise AssertionError("a request waits for the end of the evaluation")


def test_run_loop__a_request_during_an_evaluation_ends_it_at_once():
    with loop.Stop() as stop, contextlib.suppress(loop.Interrupted):
        with stop.abandon():
            send(signal.SIGTERM)
            raise AssertionError("a request waits for the end of the evaluation")
    with loop.Stop() as stop:       # in a step it only asks
        with stop.abandon():
            pass
        send(signal.SIGTERM)
        assert_equal(stop.asked, signal.SIGTERM, "asked is the signal's number")


def test_run_loop__a_request_while_the_ranks_compare_is_not_lost():
    def largest(number):
        send(signal.SIGTERM)
        return number

    with loop.Stop() as stop:
        with unittest.mock.patch.object(loop.ranks, "largest", largest):
            assert_equal(stop.agreed(), 0, "the ranks had compared before it came")
        assert_equal(stop.agreed(), signal.SIGTERM, "the next time they see it")


class FakeFolder:
    """What Loop needs of a Folder; it keeps what is written."""

    def __init__(self, state=None):
        self.state, self.written, self.lines = state, [], []

    def checkpoint(self, state):
        self.written.append(state)

    def log(self, line):
        self.lines.append(line)

    def close(self):
        pass


def steps_of(folder, plan, every=100, stop_at=None):
    """The (epoch, step, item) that a Loop yields."""
    seen = []
    with contextlib.redirect_stderr(io.StringIO()), \
            loop.Loop(folder, dict, sum(map(len, plan)), every) as session:
        with contextlib.suppress(loop.Interrupted):
            for epoch, steps in session.parts(plan):
                for step, item in steps:
                    seen.append((epoch, step, item))
                    if step == stop_at:
                        send(signal.SIGTERM)
    return seen


def test_run_loop__steps_go_on_after_the_last_checkpoint():
    plan = ["ab", "cde"]
    every = [(0, 0, "a"), (0, 1, "b"), (1, 2, "c"), (1, 3, "d"), (1, 4, "e")]
    assert_equal(steps_of(FakeFolder(), plan), every, mistakes={
        "items are not counted from their epoch's beginning": [
            (0, 0, "a"), (0, 1, "a"), (1, 2, "c"), (1, 3, "c"), (1, 4, "c")],
        "steps are counted anew in each epoch": [(0, 0, "a"), (0, 1, "b"), (1, 2, "e")]})
    session = loop.Loop(FakeFolder({"step": 2, "parts": 1}), dict, 5, 100)
    assert_equal([epoch for epoch, _ in session.parts(plan)], [1],
                 "a finished epoch, with its evaluation, is done again after a resume")
    for step, epochs, left in ((1, 0, 1), (2, 1, 2), (3, 1, 3), (2, 0, 2)):
        found = steps_of(FakeFolder({"step": step, "parts": epochs}), plan)
        assert_equal(found, every[left:], f"resumed after {step} steps")


def test_run_loop__checkpoints_at_their_steps_at_epochs_ends_and_at_a_signal():
    folder = FakeFolder()
    steps_of(folder, ["abc", "de"], every=2)
    assert_equal([(state["step"], state["parts"]) for state in folder.written],
                 [(2, 0), (3, 1), (4, 1), (5, 2)], mistakes={
        "an epoch's end writes no checkpoint": [(2, 0), (4, 1)],
        "the epoch is not finished yet in its last checkpoint": [
            (2, 0), (3, 0), (4, 1), (5, 1)]})
    folder = FakeFolder()
    assert_equal(len(steps_of(folder, ["abc", "de"], stop_at=1)), 2,
                 "a signal ends the loop after the step in which it came")
    assert_equal([state["step"] for state in folder.written], [2],
                 "a signal writes a checkpoint")


def test_run_loop__parts_end_at_every_nth_step_and_with_their_epoch():
    assert_equal(loop.cut(["abc", "def", "g"], 2),
                 [(0, "ab"), (0, "c"), (1, "d"), (1, "ef"), (2, "g")], mistakes={
        "steps are counted from each epoch's start": [
            (0, "ab"), (0, "c"), (1, "de"), (1, "f"), (2, "g")]})
    assert_equal(loop.cut(["abc", "def"], 3), [(0, "abc"), (1, "def")])
    assert_equal(loop.cut(["abc", "de"], None), [(0, "abc"), (1, "de")])


def test_run_loop__patience_lasts_through_a_resume():
    folder = FakeFolder()
    session = loop.Loop(folder, dict, 5, 100, patience=2)
    for _, steps in session.parts(["ab", "c", "de"]):
        list(steps)
        session.waited += 1         # no evaluation is better
    assert_equal([(state["step"], state["waited"]) for state in folder.written],
                 [(2, 1), (3, 2)], "it ends after two parts without a better model")
    for state, left in zip(folder.written, (1, 0)):
        session = loop.Loop(FakeFolder(state), dict, 5, 100, patience=2)
        seen = 0
        for _, steps in session.parts(["ab", "c", "de"]):
            list(steps)
            session.waited, seen = session.waited + 1, seen + 1
        assert_equal(seen, left, "a resume forgets how many evaluations were no better")


def test_run_loop__seconds_before_a_resume_are_counted():
    session = loop.Loop(FakeFolder({"seconds": 100.0}), dict, 1, 1)
    assert_close(session.seconds, 100, 5, "the seconds before a resume are not counted",
                 mistakes={"the seconds before a resume are not counted": 0.0})
    session.checkpoint()
    assert session.folder.written[0]["seconds"] >= 100, "a checkpoint holds the seconds"


def test_run_loop__the_best_model_is_remembered_through_a_resume():
    best = {"epoch": 3, "selected": .5}
    session = loop.Loop(FakeFolder({"best": best}), dict, 1, 1)
    assert_equal(session.best, best, "which model is the best is lost on a resume")
    session.checkpoint()
    assert_equal(session.folder.written[0]["best"], best, "a checkpoint lacks `best`")


def test_run_loop__updates_skipped_in_a_row_are_counted_through_a_resume():
    session = loop.Loop(FakeFolder({"skipped_in_a_row": 12}), dict, 5, 100)
    with contextlib.redirect_stderr(io.StringIO()):
        session.log_step({"skipped": 1})
    assert_equal(session.skipped, 13, "a diverged run would end well after a resume")
    session.checkpoint()
    assert_equal(session.folder.written[-1]["skipped_in_a_row"], 13)


def test_run_loop__divergence_is_told_apart_from_one_bad_step():
    theta, bad = torch.zeros(3), torch.tensor([0.0, float("nan")])
    loop.check_divergence(theta, 19, 5, {"loss_sst": float("nan")})
    with assert_raises("20 updates in a row", "loss_sst", "--lr", error=loop.Diverged):
        loop.check_divergence(theta, 20, 30, {"loss_sst": float("nan")})
    with assert_raises("parameters", "update 6", error=loop.Diverged):
        loop.check_divergence(bad, 1, 5, {"loss_sst": 1.0})


# --- The generators ---

def test_run_machine__a_GPUs_generator_is_saved_and_restored():
    for module, name in ((torch.cuda, "cuda:1"), (torch.mps, "mps")):
        restored, device = [], torch.device(name)
        with unittest.mock.patch.multiple(
                module, get_rng_state=lambda device: f"that of {device}",
                set_rng_state=lambda *state: restored.append(state)):
            states = machine.random_states(device)
            assert_equal(states.get(device.type), f"that of {name}",
                         "the GPU's generator is not saved")
            machine.set_random_states(states, device)
            # what a run on another machine has left lacks it
            machine.set_random_states({"cpu": states["cpu"]}, device)
        assert_equal(restored, [(f"that of {name}", device)],
                     "the GPU's generator is not restored")


def test_run_machine__the_CPUs_generator_is_saved_and_restored():
    states = machine.random_states(torch.device("cpu"))
    first = torch.rand(3)
    machine.set_random_states(states, torch.device("cpu"))
    assert_close(torch.rand(3), first, 0, "the CPU's generator is not restored")


# --- The log ---

def test_run_json__numbers_that_are_not_finite_become_null():
    run = new_folder()
    run.log({"a": float("nan"), "b": {"c": float("inf")}, "d": 1.5})
    run.checkpoint({})
    run.close()
    with open(run / "metrics.jsonl") as file:
        assert_equal(json.load(file), {"a": None, "b": {"c": None}, "d": 1.5})
