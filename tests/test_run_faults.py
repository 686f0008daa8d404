"""What must not hurt a run: edited files, a second process, full disks, divergence."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest.mock

import torch

from plumbing import folder as folders
from plumbing import machine
from tests import ROOT
from tests.checks import assert_equal, assert_one_line
from tests.world import (
    files_of,
    log_of,
    resume,
    run_train,
    send,
    signalled_at,
    tiny_world,
    uninterrupted,
    with_file,
)


def stopped(*flags, at=5, steps=12):
    """The folder of a run that was stopped in its step `at`."""
    with signalled_at(at):
        return run_train("--option", "gvac", *flags, steps=steps)[1]


def edit_json(path, change):
    """Apply change(object) to a JSON file, as a person with an editor would."""
    with open(path, encoding="utf-8") as file:
        value = json.load(file)
    change(value)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)


# --- Checkpoint, args.json and metrics.jsonl belong together ---

def test_run_folder__an_edited_args_json_is_refused():
    out = stopped()
    edit_json(os.path.join(out, "args.json"),
              lambda settings: settings["args"]["lr"].update(value=.02))
    status, _, errors = resume(out)
    assert_one_line(status, errors, "args.json", "changed")
    # Nor does a digest that fits help: the checkpoint knows another.
    edit_json(os.path.join(out, "args.json"), lambda settings: settings.update(
        digest=folders.content_digest({key: value for key, value in settings.items()
                                       if key != "digest"})))
    status, _, errors = resume(out)
    assert_one_line(status, errors, "args.json", "last.pt")


def test_run_folder__files_of_another_run_are_refused():
    for name in ("last.pt", "args.json", "metrics.jsonl"):
        out, other = stopped(), stopped("--seed", 1)
        os.replace(os.path.join(other, name), os.path.join(out, name))
        status, _, errors = resume(out)
        assert_one_line(status, errors, "args.json" if name == "last.pt" else name)


def test_run_folder__one_flipped_bit_in_the_log_is_noticed():
    out = stopped()
    path = os.path.join(out, "metrics.jsonl")
    with open(path, "rb") as file:
        content = bytearray(file.read())
    content[100] ^= 1
    with open(path, "wb") as file:
        file.write(content)
    status, _, errors = resume(out)
    assert_one_line(status, errors, "metrics.jsonl")


def test_run_folder__a_flag_that_is_newer_than_the_run_takes_its_default():
    out = stopped("--smart", "--con", "--hlh", "--epochs", 2, "--para-first", 1,
                  "--accumulate", 2, at=1)

    def forget(settings):       # as written by a version that had no --log-layers
        del settings["args"]["log_layers"], settings["digest"]
    os.remove(os.path.join(out, "last.pt"))
    edit_json(os.path.join(out, "args.json"), forget)
    status, _, errors = resume(out, "--log-layers")
    assert_one_line(status, errors, "--log-layers is newer than the run")
    assert_equal(resume(out)[0], 0)
    assert files_of(out) == uninterrupted()


def test_run_folder__a_run_of_another_version_says_so():
    out = stopped(at=1)
    os.remove(os.path.join(out, "last.pt"))

    def from_the_future(settings):
        settings["args"]["telepathy"] = {"value": True, "from": "given"}
        del settings["digest"]
    edit_json(os.path.join(out, "args.json"), from_the_future)
    status, _, errors = resume(out)
    assert_one_line(status, errors, "telepathy", "version")


def test_run_folder__a_new_file_in_the_data_folder_does_not_matter():
    moved = with_file("data", "ids-sst-test-student.csv", None)["data_folder"]
    with signalled_at(2):
        _, out, _ = run_train(steps=4, data_folder=moved)
    with open(os.path.join(moved, "notes.csv"), "w") as file:
        file.write("mine")
    assert_equal(resume(out)[0], 0)


def test_run_folder__best_holds_the_vocabulary_that_was_loaded():
    import multitask
    weights = with_file("weights", "vocab.txt", None)["weights"]
    vocab = os.path.join(weights, "vocab.txt")
    with open(os.path.join(tiny_world()[1], "vocab.txt"), "rb") as file:
        content = file.read()
    with open(vocab, "wb") as file:
        file.write(content)
    original = multitask.treat

    def lose_the_file(*args, **more):
        if os.path.exists(vocab):
            os.remove(vocab)
        return original(*args, **more)
    with unittest.mock.patch.object(multitask, "treat", lose_the_file):
        status, out, errors = run_train(weights=weights)
    assert status == 0, errors
    with open(os.path.join(out, "best", "vocab.txt"), "rb") as file:
        assert_equal(file.read(), content)


# --- One process a folder; nothing of the user's is removed ---

def test_run_folder__a_second_process_is_refused_while_the_first_one_lives():
    out = stopped()
    hold = ("import sys; from plumbing import folder; f = folder.Folder(sys.argv[1], {});"
            "print('held', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", hold, out], cwd=ROOT, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert_equal(other.stdout.readline(), "held\n")
        before = files_of_folder(out)
        status, _, errors = resume(out)
        assert_one_line(status, errors, "another process", out)
        assert_equal(files_of_folder(out), before)
        other.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    assert_equal(resume(out)[0], 0, "a dead process must not leave the folder locked")


def files_of_folder(path):
    found = {}
    for name in sorted(os.listdir(path)):
        if os.path.isfile(os.path.join(path, name)):
            with open(os.path.join(path, name), "rb") as file:
                found[name] = file.read()
    return found


def test_run_folder__a_failed_start_removes_its_own_files_alone():
    import multitask
    out = os.path.join(tempfile.mkdtemp(), "run")

    def fails(*args, **more):
        open(os.path.join(out, "notes.new"), "w").close()       # somebody else's
        raise ValueError("the first step fails")
    with unittest.mock.patch.object(multitask, "treat", fails):
        assert_equal(run_train("--out", out)[0], 2)
    assert_equal(os.listdir(out), ["notes.new"])
    status, _, errors = run_train("--out", out)
    assert_one_line(status, errors, "holds files")
    os.remove(os.path.join(out, "notes.new"))
    assert_equal(run_train("--out", out)[0], 0, "nothing may block the same command")


def test_run_folder__two_runs_in_one_second_get_two_folders():
    path = os.path.join(tempfile.mkdtemp(), "gvac-20260101-000000")
    assert_equal(folders.unused(path), path)
    os.mkdir(path)
    assert_equal(folders.unused(path), path + "-2")
    os.mkdir(path + "-2")
    assert_equal(folders.unused(path), path + "-3")


def test_run_folder__write_sync_rename_in_this_order():
    path, calls = os.path.join(tempfile.mkdtemp(), "x"), []

    def recorded(name, f):
        def call(*args):
            calls.append(name)
            return f(*args)
        return unittest.mock.patch.object(os, name, call)

    def write(temporary):
        calls.append("write")
        with open(temporary, "w") as file:
            file.write("new")
    with recorded("fsync", os.fsync), recorded("replace", os.replace):
        folders.replace(path, write, keep=lambda: calls.append("keep"))
    assert_equal(calls, ["write", "fsync", "keep", "replace"])


def test_run_folder__the_log_is_on_the_disk_before_a_checkpoint_counts_it():
    run = folders.Folder.create(os.path.join(tempfile.mkdtemp(), "run"), {"args": {}})
    calls, fsync, save = [], os.fsync, torch.save
    size = {"synced": 0}

    def note_fsync(number):
        if number == run.metrics.fileno():
            size["synced"] = os.path.getsize(run / "metrics.jsonl")
        calls.append("fsync")
        return fsync(number)

    def note_save(state, path):
        calls.append("save")
        assert_equal(state["metrics_bytes"], size["synced"], "bytes that are not synced")
        return save(state, path)
    run.log({"step": 1})
    with unittest.mock.patch.object(os, "fsync", note_fsync), \
            unittest.mock.patch.object(torch, "save", note_save):
        run.checkpoint({})
    assert_equal(calls, ["fsync", "save", "fsync"])
    run.close()


# --- Disk, memory, divergence ---

def test_run_faults__a_full_disk_is_called_one_and_the_last_checkpoint_stays():
    def full(state, path):
        with open(path, "wb") as file:
            file.write(b"half a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device")
    out, original = os.path.join(tempfile.mkdtemp(), "run"), torch.save
    saves = []

    def save(state, path):
        saves.append(path)
        return (original if len(saves) == 1 else full)(state, path)
    with unittest.mock.patch.object(torch, "save", save):
        status, _, errors = run_train("--out", out, "--checkpoint-every", 2, steps=6)
    assert_one_line(status, errors, "the disk is full", os.path.join(out, "last.pt"))
    assert not os.path.exists(os.path.join(out, "last.pt.new"))
    assert_equal(folders.load_checkpoint(os.path.join(out, "last.pt"))["step"], 2)
    assert_equal(resume(out)[0], 0)


def test_run_faults__out_of_memory_says_what_to_try():
    import multitask
    for error in (
            MemoryError("Unable to allocate 7.45 GiB for an array"),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't "
                         "allocate memory: you tried to allocate 327 bytes.")):
        with unittest.mock.patch.object(multitask, "treat", side_effect=error):
            status, _, errors = run_train()
        assert_one_line(status, errors, "out of memory", "--batch-size 2 --accumulate 2",
                        machine.memory_asked(error))
    assert machine.memory_asked(RuntimeError("shapes differ")) is None


def test_run_faults__a_run_that_diverges_stops_with_status_1():
    status, out, errors = run_train("--lr", 1e9, "--option", "gvac", "--epochs", 200,
                                    steps=1000)
    assert_equal(status, 1)
    assert "diverged" in errors and "--lr" in errors and out in errors, errors
    steps = log_of(out)
    assert len(steps) < 30, f"it went on for {len(steps)} steps"

    def no_json(word):
        raise AssertionError(f"{word} is not JSON")
    with open(os.path.join(out, "metrics.jsonl"), encoding="utf-8") as file:
        for line in file:
            json.loads(line, parse_constant=no_json)


def test_run_faults__20_skipped_updates_in_a_row_are_enough():
    import multitask
    with unittest.mock.patch.object(multitask, "treat", lambda *args, **more: None):
        status, out, errors = run_train("--epochs", 200, steps=1000)
    assert_equal(status, 1)
    assert "20 updates in a row" in errors, errors
    assert_equal([line["skipped"] for line in log_of(out) if "dev" not in line], [1] * 20)


def test_run_faults__skipped_updates_are_counted_through_a_resume():
    import multitask
    original, count = multitask.treat, []

    def skip_the_second(*args, **more):
        count.append(1)
        if len(count) == 4:
            send(signal.SIGTERM)
        return None if len(count) == 2 else original(*args, **more)
    with unittest.mock.patch.object(multitask, "treat", skip_the_second):
        _, out, _ = run_train(steps=6)
    _, output, _ = resume(out)
    with open(os.path.join(out, "result.json"), encoding="utf-8") as file:
        assert_equal(json.load(file)["skipped"], 1)
    assert "1 updates were skipped" in output, output


# --- Flags ---

def test_run_refusals__empty_and_absurd_values():
    for flags in (["--resume", ""], ["--data", ""], ["--weights", " "], ["--out", ""],
                  ["--epochs", "9" * 310], ["--seed", "9" * 40], ["--lr", "1" * 400],
                  ["--device", "privateuseone"], ["--device", "gpu"],
                  ["--weights", "__main__"],
                  ["--epochs", 10 ** 9, "--max-steps", 10 ** 9]):
        status, _, errors = run_train(*flags)
        assert_one_line(status, errors, flags[0])
        assert len(errors) < 400, errors


def test_run_refusals__many_epochs_cost_nothing_if_the_steps_are_few():
    status, _, errors = run_train("--epochs", 10 ** 9, steps=2)
    assert status == 0, errors
