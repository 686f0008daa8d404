"""Where data and weights are found, and how they are downloaded."""

import contextlib
import hashlib
import http.server
import io
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import unittest.mock

import heads
import train
from plumbing import ranks, sources
from tests import DATA
from tests.checks import assert_equal, assert_raises
from tests.world import tiny_world


def test_run_weights__names_of_folders_and_packages():
    _, weights = tiny_world()
    assert sources.find_weights(weights) == os.path.abspath(weights)
    place = tempfile.mkdtemp()
    shutil.copytree(weights, os.path.join(place, "some_tiny_model", "model"))
    pathlib.Path(place, "some_tiny_model", "__init__.py").touch()
    sys.path.insert(0, place)
    try:
        assert sources.find_weights("some-tiny-model") == os.path.join(
            place, "some_tiny_model", "model")
    finally:
        sys.path.remove(place)
    with unittest.mock.patch.object(sources, "ROOT", place):
        shutil.copytree(weights, os.path.join(place, "weights", "tiny"))
        assert sources.find_weights("tiny") == os.path.join(place, "weights", "tiny")
        with assert_raises("--download"):
            sources.find_weights(None)
        with assert_raises("--download"):
            sources.find_data(None)


def test_run_weights__the_sample_is_taken_whole_or_announced_never_mixed_in():
    data_folder, weights = tiny_world()
    place = tempfile.mkdtemp()
    sample = os.path.join(place, "little")
    shutil.copytree(data_folder, sample)
    shutil.copytree(weights, sample, dirs_exist_ok=True)
    with unittest.mock.patch.multiple(sources, ROOT=place, SAMPLE=sample):
        assert sources.find(None, None) == (sample, sample)
        assert sources.find("little", None) == (sample, sample), "by name, from anywhere"
        assert sources.find(None, weights) == (sample, os.path.abspath(weights))
        with assert_raises("--download"):       # its small BERT is of no use elsewhere
            sources.find(data_folder, None)
        shutil.copytree(weights, os.path.join(place, "weights", "bert-base-uncased"))
        with assert_raises("--download"):         # half of a download
            sources.find(None, None)
        shutil.copytree(data_folder, os.path.join(place, "data"))
        assert_equal(sources.find(None, None), (os.path.join(place, "data"), os.path.join(
            place, "weights", "bert-base-uncased")))
        assert_equal(sources.find("little", None), (sample, sample),
                     "the sample's data with what was downloaded")


@contextlib.contextmanager
def serving(files, cut=()):
    """A local HTTP server.   -> (its URL, names asked for); `cut` breaks off halfway"""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.lstrip("/")
            asked.append(name)
            if name not in files:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[name])))
            self.end_headers()
            self.wfile.write(files[name][:len(files[name]) // 2] if name in cut
                             else files[name])

        def log_message(self, *_):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()


def test_run_download__files_are_checked_and_kept():
    a, b = b"some,csv\n" * 2000, b"weights" * 3000
    data_files = {"a.csv": hashlib.sha1(b"blob %d\0" % len(a) + a).hexdigest()}
    weight_files = {"model.safetensors": (len(b), hashlib.sha256(b).hexdigest())}
    root = tempfile.mkdtemp()
    places = [os.path.join(root, "data", "a.csv"),
              os.path.join(root, "weights", "bert-base-uncased", "model.safetensors")]

    def download(url):
        with contextlib.redirect_stderr(io.StringIO()):
            sources.download(root, url, url, data_files, weight_files)
    served = {"a.csv": a, "model.safetensors": b}
    with (serving(served, cut=["model.safetensors"]) as (url, asked),
          assert_raises("model.safetensors")):
        download(url)
    assert os.path.exists(places[0]) and not os.path.exists(os.path.dirname(places[1])), (
        "an incomplete file must not stay")
    with serving({**served, "model.safetensors": b[::-1]}) as (url, asked):
        with assert_raises("not the file it should be"):
            download(url)
        assert asked == ["model.safetensors"], (
            "what is there and right is not fetched again")
    with serving(served) as (url, asked):
        download(url)
        assert [pathlib.Path(place).read_bytes() for place in places] == [a, b]
        download(url)
        assert asked == ["model.safetensors"]
    for number, own in enumerate((b"damaged", b"the user's"), 1):
        pathlib.Path(places[0]).write_bytes(own)
        with serving(served) as (url, asked):
            download(url)
            assert asked == ["a.csv"], "what is damaged on the disk is fetched again"
        kept = f"{places[0]}.old{'-2' * (number == 2)}"
        assert os.path.exists(kept), "what was there is gone"
        assert_equal([pathlib.Path(path).read_bytes() for path in (places[0], kept)],
                     [a, own], "what was there may be the user's own, and is kept")


def test_run_download__one_of_several_processes_does_it():
    for rank, times in ((0, 1), (1, 0)):
        with (unittest.mock.patch.object(ranks.here, "rank", rank),
              unittest.mock.patch.object(sources, "download", return_value=0) as download):
            assert_equal(train.main(["--download"]), 0)
        assert_equal(download.call_count, times, f"rank {rank}")


def test_run_download__without_a_network_it_says_what_still_works():
    with serving({}) as (url, _), assert_raises("cannot download", "404", "--data"):
        sources.download(tempfile.mkdtemp(), url, url)
    with assert_raises("cannot download", "--data DIR"):          # the server is gone
        sources.download(tempfile.mkdtemp(), url, url)


def test_run_download__sources_are_the_nine_files_and_three_of_weights():
    names = {f"{task.file}-{split}.csv" for task in heads.tasks()
             for split in ("train", "dev", "test-student")}
    assert set(sources.DATA) == names and all(len(v) == 40 for v in sources.DATA.values())
    assert set(sources.WEIGHTS) == {"config.json", "vocab.txt", "model.safetensors"}
    if DATA:
        assert all(sources.is_right(os.path.join(DATA, name), sources.DATA[name])
                   for name in names if not name.startswith("quora"))
