"""What commands say of files that were changed, of wrong flags, of the machine."""

import contextlib
import errno
import io
import os
import tempfile
import unittest.mock

import torch

from plumbing import command, flags, folder, reading
from tests.checks import assert_equal, assert_raises
from tests.test_run_faults import edit_json, files_of_folder, stopped
from tests.world import resume, run_train, write_file

DEEP = "[" * 10 ** 5


def one_line(error):
    """What a command that raises this says.   -> (exit status, text)"""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        status = command.one_line(unittest.mock.Mock(side_effect=error))
    return status, errors.getvalue()


# --- Files that a run or a tool wrote ---

def test_run_reading__what_is_no_json_is_named_with_its_line():
    for text in ("", "{", DEEP, "9" * 5000, '{"a": NaN}', '{"a": 1} x'):
        path = os.path.join(write_file(text, "x.json"), "x.json")
        with assert_raises("x.json", "JSON"):
            reading.read_json(path, {})
    path = os.path.join(write_file('{"a": 1}\n{"a": 1}\n{"a"\n', "x.jsonl"), "x.jsonl")
    with assert_raises("x.jsonl, line 3", '{"a"'):
        reading.read_json_lines(path)
    path = os.path.join(write_file("", "x.json", b'{"a": "\xff"}'), "x.json")
    with assert_raises("x.json", "UTF-8", "byte 7"):
        reading.read_json(path, {})


def test_run_reading__fields_have_their_kinds():
    fields = {"score": reading.NUMBER, "name": str, "seeds": int}
    right = {"score": .5, "name": "x", "seeds": 3}
    assert_equal(reading.check_fields("x.json", right, fields), right)
    for name, value in (("score", True), ("score", "1"), ("score", float("inf")),
                        ("score", 10 ** 400), ("name", None), ("seeds", 1.5)):
        with assert_raises("x.json", name):
            reading.check_fields("x.json", {**right, name: value}, fields)
    with assert_raises("an object with score, name, seeds", "[]"):
        reading.check_fields("x.json", [], fields)
    with assert_raises("nothing else"):
        reading.check_fields("x.json", {**right, "more": 1}, fields, only=True)
    with assert_raises("a list, each part a text", "line 7"):
        reading.check_list("x.json", ["a", 1], str, line=7)


def test_run_reading__values_of_a_run_must_be_such_as_its_flags_allow():
    parser = flags.parser(["sst", "para", "sts"], ["rr", "gvac"])
    actions = {action.dest: action for action in parser._actions}
    for name, right, wrong in (
            ("lr", .01, "much"), ("epochs", 3, 3.5), ("epochs", 3, -3), ("smart", True, 1),
            ("tasks", ["sst", "sts"], ["sts", "sst"]), ("tasks", ["sst"], "sst"),
            ("tasks", ["para"], [3]), ("option", "gvac", "magic"), ("align", "sst", "x"),
            ("task_weights", {"sst": 2.0}, {"sst": "2"}), ("out", "runs/x", ["runs/x"]),
            ("dropout", None, False), ("seed", 0, True)):
        assert flags.accepts(actions[name], right), (name, right)
        assert not flags.accepts(actions[name], wrong), (name, wrong)
    settings = {"args": {"lr": {"value": "x\x1b[2J", "from": "given"}}}
    with assert_raises("args.json", "--lr", "\\x1b"):
        folder.values_of(settings, "run", parser)


# --- Checkpoints ---

def forge(path, change):
    """Change a checkpoint, and give it the digest that fits."""
    state = folder.load_checkpoint(path)
    change(state)
    torch.save({**state, "digest": folder.content_digest(state)}, path)


def test_run_reading__a_forged_checkpoint_is_refused_by_what_it_lacks():
    for name, value in (("step", -1), ("metrics_bytes", 10 ** 30), ("parts", "2"),
                        ("best", [1]), ("seconds", None), ("metrics_digest", 3)):
        out = stopped()
        forge(os.path.join(out, "last.pt"), lambda state, name=name, value=value:
              state.update({name: value}))
        status, _, errors = resume(out)
        assert status == 2 and "last.pt" in errors and name in errors, errors


def test_run_reading__a_checkpoint_cannot_ask_for_more_memory_than_it_has_bytes():
    out = stopped(at=8)
    path = os.path.join(out, "last.pt")
    state = folder.load_checkpoint(path)
    torch.save({**state, "theta": torch.zeros(()).expand(10 ** 12), "digest": "x"}, path)
    assert folder.load_checkpoint(path) is None


def test_run_reading__a_failed_resume_removes_nothing():
    import multitask
    out = stopped(at=1)
    for name in ("last.pt", "metrics.jsonl"):       # as if it was killed before its first
        os.remove(os.path.join(out, name))          # checkpoint
    before = files_of_folder(out)
    with unittest.mock.patch.object(multitask, "treat", side_effect=ValueError("no")):
        assert_equal(resume(out)[0], 2)
    assert_equal({**files_of_folder(out), **before}, files_of_folder(out))
    assert_equal(resume(out)[0], 0)


def test_run_reading__without_its_best_model_a_run_is_not_resumed():
    out = stopped("--epochs", "2", at=12, steps=20)
    os.rename(os.path.join(out, "best"), os.path.join(out, "elsewhere"))
    status, _, errors = resume(out)
    assert status == 2 and os.path.join(out, "best") + " is missing" in errors, errors
    os.rename(os.path.join(out, "elsewhere"), os.path.join(out, "best.old"))
    assert_equal(resume(out)[0], 0, "a kill between two renames leaves best.old")


def test_run_reading__an_older_args_json_must_have_right_values():
    out = stopped(at=1)
    os.remove(os.path.join(out, "last.pt"))

    def older(settings):
        settings["args"]["lr"] = 3
        del settings["digest"]
    edit_json(os.path.join(out, "args.json"), older)
    status, _, errors = resume(out)
    assert status == 2 and "args.json, lr" in errors, errors


# --- The machine ---

def test_run_reading__a_drive_without_locks_is_only_a_warning():
    for code, expected in ((errno.ENOTSUP, 0), (errno.EAGAIN, 2)):
        with unittest.mock.patch.object(folder, "lock", side_effect=OSError(code, "no")):
            assert_equal(run_train(steps=1)[0], expected)


def test_run_reading__a_disk_that_is_full_while_best_is_written():
    import heads
    out = os.path.join(tempfile.mkdtemp(), "run")

    def full(self, path, *_):
        os.makedirs(path)
        raise OSError(errno.ENOSPC, "No space left on device")
    with unittest.mock.patch.object(heads.MultitaskBert, "save_pretrained", full):
        status, _, errors = run_train("--out", out, steps=2)
    assert status == 2 and "the disk is full" in errors, errors
    assert os.path.join(out, "best.new") in errors and not os.path.exists(
        os.path.join(out, "best.new"))
    assert_equal(resume(out)[0], 0)


def test_run_command__every_end_is_one_printable_line():
    for error, status, words in (
            (ValueError("a\nb\x1b[2J" + "c" * 9999), 2, ["a b", "\\x1b", "…"]),
            (FileNotFoundError(2, "No such file", "x.csv"), 2, ["x.csv: no such file"]),
            (OSError(errno.ENOSPC, "No space", "x"), 2, ["the disk is full", "write x"]),
            (OSError(errno.ENOSPC, "No space"), 2, ["the disk is full", "room"]),
            (MemoryError("Unable to allocate 7.4 GiB"), 2, ["memory", "7.4 GiB"]),
            (KeyboardInterrupt(), 130, ["Ctrl-C"])):
        got, text = one_line(error)
        assert_equal(got, status)
        assert text[:-1].isprintable() and text.count("\n") == 1 and len(text) < 1000
        assert all(word in text for word in words), text


def test_run_command__wrong_flags_are_shown_printable_and_bounded():
    p = command.Parser("Does x.\n\n    python x.py")
    p.add_argument("--kind", choices=["a", "b"])
    for argv in (["--\x1b[2J"], ["--kind", "c" * 9999], ["--ki", "a"]):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                p.parse_args(argv)
            except SystemExit as end:
                assert_equal(end.code, 2)
        text = errors.getvalue()
        assert text[:-1].isprintable() and len(text) < 1000, ascii(text)
