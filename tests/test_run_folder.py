"""The folder of a run, and what it prints."""

import hashlib
import json
import os
import tempfile

from plumbing import folder as folders
from tests import ROOT
from tests.checks import assert_raises
from tests.world import (
    HARD,
    files_of,
    from_scratch,
    log_of,
    run_pretrain,
    run_train,
    settings_of,
    tiny_world,
    write_file,
)


def test_run_folder__args_json_says_where_each_value_came_from():
    _, out, _ = run_train("--option", "gvac", "--smart", "--con", "--hlh", steps=1)
    settings = folders.read_settings(out)
    assert settings["args"]["lr"] == {"value": .01, "from": "given"}
    assert settings["args"]["pool"] == {"value": "cls", "from": "default"}
    assert settings["args"]["batch_size"]["from"] == "given"
    assert {"torch", "numpy", "python", "threads"} <= set(settings["machine"])
    world = tiny_world()[0]
    assert len([n for n in settings["digests"] if n.startswith("data")]) == 9
    with open(os.path.join(world, "sts-dev.csv"), "rb") as file:
        assert settings["digests"][os.path.join("data", "sts-dev.csv")] == (
            hashlib.sha256(file.read()).hexdigest())
    _, source = settings_of("--option", "gvac")
    assert source["lr"] == "Table 1, Gradient Vaccine + RR" and source["seed"] == "default"


def test_run_folder__a_used_one_is_refused_and_left_alone():
    out = run_train(steps=1)[1]
    before = files_of(out)
    status, _, errors = run_train("--out", out)
    assert status == 2 and "another run" in errors and "--resume" in errors
    assert files_of(out) == before
    full = write_file("something")
    status, _, errors = run_train("--out", full)
    assert status == 2 and "holds files" in errors and os.listdir(full) == ["x.csv"]


def test_run_folder__a_checkpoint_is_never_seen_half_written():
    # replace() must leave the old file in place whatever happens while the new one is made.
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "x")
    folders.write_json(path, [1])

    def fails(temporary):
        with open(temporary, "w") as file:
            file.write("half")
        raise OSError("disk full")
    with assert_raises("disk full", error=OSError):
        folders.replace(path, fails)
    with open(path) as file:
        assert json.load(file) == [1]


def test_run_folder__every_name_in_the_log_is_in_docs():
    with open(os.path.join(ROOT, "docs", "runs.md"), encoding="utf-8") as file:
        page = file.read()
    names = {"skipped"}
    _, out, _ = run_train(*HARD, "--log-layers", steps=12)
    _, pretrained, _ = run_pretrain(*from_scratch())
    for line in log_of(out) + log_of(pretrained):
        names |= set(line)
    for name in names:
        general = name.replace("_sst", "_T").replace("_para", "_T", 1).replace("_sts", "_T")
        general = general.replace("_T_T", "_T_U")
        assert f"`{general}`" in page, f"{name} is not explained in the README"
