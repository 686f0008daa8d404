"""tools/make_sample.py, and the sample it wrote."""

import os
import pathlib
import tempfile
import unittest.mock
import warnings

import data
import heads
import train
from plumbing import sources
from tests.checks import assert_equal, assert_one_line
from tests.world import run_tool
from tools import make_sample


def test_tools_make_sample__same_bytes_and_files_that_load_without_a_word():
    few = {task: (40, 12, 12) for task in make_sample.SIZES}
    unlabelled, folders = make_sample.unlabelled, [tempfile.mkdtemp() for _ in range(2)]
    with unittest.mock.patch.multiple(
            make_sample, SIZES=few, unlabelled=lambda *args: unlabelled(*args[:2], 60)):
        for folder in folders:
            make_sample.write_sample(pathlib.Path(folder), 0)
    for name in os.listdir(folders[0]):
        a, b = (pathlib.Path(folder, name).read_bytes() for folder in folders)
        assert a == b, f"{name} differs from one time to the next"
    tokenizer = data.WordPiece(os.path.join(folders[0], "vocab.txt"))
    for task in heads.tasks():
        texts = []
        for split, number in (("train", 40), ("dev", 12), ("test", 12)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                dataset = data.load(folders[0], task, split, tokenizer)
            assert len(dataset) == number
            assert not any(tokenizer.unk in ids for pair in dataset.tokens for ids in pair)
            texts += [str(sorted(pair)) for pair in dataset.tokens]
        assert len(set(texts)) == 64, "a text occurs twice"


def test_tools_make_sample__the_sample_is_what_it_writes_and_is_small():
    folder = pathlib.Path(tempfile.mkdtemp())
    make_sample.write_sample(folder, 0)
    for path in folder.iterdir():
        assert path.read_bytes() == pathlib.Path(sources.SAMPLE, path.name).read_bytes(), (
            f"{path.name} is not what make_sample.py writes; make the sample again")
    assert sum(path.stat().st_size for path in pathlib.Path(sources.SAMPLE).iterdir()) < 5e6


def test_tools_make_sample__train_takes_it_and_says_so_first_and_last():
    place = tempfile.mkdtemp()      # a ROOT where nothing was downloaded
    with unittest.mock.patch.object(sources, "ROOT", place):
        status, output, _ = run_tool(train, "--max-steps", 1, "--out",
                                     os.path.join(place, "run"))
    assert_equal(status, 0)
    lines = output.splitlines()
    for first, word in ((0, "This is the sample"), (2, "--download")):
        assert word in lines[first] and word in lines[first - 3]
    assert f"--lr {train.SAMPLE_ROW.lr} (the sample's)" in output


def test_tools_make_sample__other_files_are_kept():
    few = {task: (40, 12, 12) for task in make_sample.SIZES}
    place = pathlib.Path(tempfile.mkdtemp())
    with unittest.mock.patch.multiple(
            make_sample, SIZES=few, pretraining_lines=lambda *_: [("a text",)]):
        flags = ("--out", place / "sample", "--pretrain", place / "text")
        for _ in range(2):
            assert_equal(run_tool(make_sample, *flags)[0], 0, "the same bytes may be there")
        (place / "text").write_text("mine")
        (place / "sample" / "vocab.txt").unlink()
        status, _, errors = run_tool(make_sample, *flags)
    assert_one_line(status, errors, "text is there already")
    assert (place / "text").read_text() == "mine"
    assert not (place / "sample" / "vocab.txt").exists(), "all or nothing"
    for name in ("--out", "--pretrain"):
        assert_one_line(*run_tool(make_sample, *flags, name, "")[::2], name, "empty")


def test_tools_make_sample__fewer_than_one_line_is_refused():
    place = os.path.join(tempfile.mkdtemp(), "sample")
    for number in (0, -5):
        status, _, errors = run_tool(make_sample, "--out", place, "--lines", number)
        assert_one_line(status, errors, "--lines", "of at least 1")
    assert not os.path.exists(place)
