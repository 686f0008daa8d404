"""The tests: a file for each section of the report, and what they share.

    checks.py     assert_close, assert_equal, assert_raises, …
    world.py      the tiny model, data and runs that tests share
    oracles.py    the naive forms of what the modules compute fast

No network, no downloads. They run on the CPU, also where there is a GPU, with the same
numbers everywhere.
"""

import atexit
import os
import shutil
import tempfile

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The course's nine CSV files, for the few tests that need them: test_all.py --data.
DATA = os.environ.get("MINBERT_DATA")

# GPUs are not seen, unless the test of a GPU says so.
GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
if "MINBERT_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"       # Windows would drop an empty one
    torch.backends.mps.is_available = lambda: False

# The tensors here are so small that several threads only get in each other's way.
torch.set_num_threads(1)

# What the shell says of its terminal or of the network is not what the tests are about.
os.environ.update(TERM="xterm", no_proxy="127.0.0.1,localhost")
os.environ.pop("COLUMNS", None)

# Everything that the tests write goes here and is removed at the end.
SCRATCH = tempfile.mkdtemp(prefix="minbert-test-")
tempfile.tempdir = SCRATCH
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
