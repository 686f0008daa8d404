"""README.md and docs/ agree with the code, the tests and the results."""

import glob
import importlib
import os
import re

import numpy as np

import test_all
import train
from plumbing import sources
from tests.checks import assert_equal
from tools import results

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


def pages():
    """{path from the root: text} of the README and all pages of docs/"""
    paths = ["README.md", *sorted(glob.glob("docs/*.md", root_dir=ROOT))]
    return {path: read(path) for path in paths}


def anchors(text):
    """The anchors that GitHub gives to a page's headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
            for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def test_docs__the_readme_is_a_front_page():
    text = read("README.md")
    assert len(text.splitlines()) <= 180 and len(text.encode()) <= 12 * 1024


def test_docs__every_link_leads_somewhere():
    texts = pages()
    for path, text in texts.items():
        links = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
        for link in ("".join(pair) for pair in links):
            if link.startswith("https://"):
                continue
            place, _, anchor = link.partition("#")
            target = (os.path.normpath(os.path.join(os.path.dirname(path), place))
                      if place else path)
            assert os.path.exists(os.path.join(ROOT, target)), f"{path}: no {link}"
            if anchor:
                assert anchor in anchors(texts[target]), f"{path}: no heading for {link}"


def test_docs__every_row_of_a_table_has_its_headers_cells():
    checked = 0
    for path, text in pages().items():
        text = re.sub(r"```.*?```|\\\|", "", text, flags=re.DOTALL)
        for lines in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            head, rule, *rows = lines.splitlines()
            assert re.fullmatch(r"[|:\- ]+", rule), f"{path}: no line below {head}"
            for row in (rule, *rows):
                assert row.count("|") == head.count("|"), f"{path}: {row}"
            checked += len(rows)
    assert checked > 300


def test_docs__the_code_of_the_readme_gives_its_numbers():
    idea = re.search(r"```python\n(.*?)```", read("README.md"), re.DOTALL)[1]
    found = {}
    exec(idea.replace("print", "str"), found)
    for name, value in {"gram": [[1, -1], [-1, 2]], "treated": [[.5, .5], [0, 1]],
                        "update": [.5, 1.5], "left": [[.5, .5], [.5, 1]],
                        "C": [[1, .5], [1, 1]]}.items():
        np.testing.assert_allclose(found[name], value, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(found["vaccine"].target[0, 1], -.00707, atol=5e-6)


def test_docs__the_quick_start_quotes_what_is_printed():
    text = read("README.md")
    settings = vars(train.parse("--option gvac --smart --con --hlh --data sample --weights "
                                "sample".split())[0])
    line = re.search("to be expected, .*(?=\\.\\.\\.)", text)[0]
    assert sources.expected(settings).startswith(line)
    for line, count in re.findall(r"^    done  (.+)  \(\d+ of (\d+)\)$", text,
                                  re.MULTILINE):
        assert int(count) == sum(test.line == line for test in test_all.all_tests()), line


def test_docs__the_readmes_map_names_functions_that_exist():
    table = read("README.md").partition("## Where everything is")[2].partition("\n## ")[0]
    checked = 0
    for line in table.splitlines():
        cells = line.split("|")
        for module, names in re.findall(r"\]\((\w+)\.py\):((?:,? `[\w.]+`)+)",
                                        cells[3] if len(cells) > 3 else ""):
            for name in re.findall(r"`([\w.]+)`", names):
                here = importlib.import_module(module)
                for part in name.split("."):
                    assert hasattr(here, part), f"README.md: no {name} in {module}.py"
                    here = getattr(here, part)
                checked += 1
    assert checked > 25


def test_docs__the_readmes_results_are_those_of_the_results_folder():
    table = results.Result.read(os.path.join(
        ROOT, "results", "question-methods-sample-sample.json"))
    rows = {row.commands[0].removeprefix("python train.py "): row.seeds
            for row in table.rows}
    lines = re.findall(r"^\| `(--option [^`]+)` \|[^|]+\|(.+)\|$", read("README.md"),
                       re.MULTILINE)
    assert_equal([flags for flags, _ in lines], list(rows))
    base = rows[lines[0][0]]
    for flags, cells in lines:
        expected = []
        for name in ("sst", "para", "sts", "overall"):
            if rows[flags] is base:
                mean = np.mean([seed[name] for seed in base.values()])
                expected.append(f"{mean:.3f}".removeprefix("0"))
            else:
                expected.append(results.difference([
                    found[name] - base[seed][name] for seed, found in rows[flags].items()]))
        assert [cell.strip() for cell in cells.split("|")] == expected, flags


def test_docs__the_means_of_three_seeds_on_the_recipes_page_are_those_of_the_results():
    found = set()
    for path in glob.glob("results/*-minilm-*.json", root_dir=ROOT):
        if "conflicts" not in path:
            for row in results.Result.read(os.path.join(ROOT, path)).rows:
                found.add(tuple(
                    f"{np.mean([seed[name] for seed in row.seeds.values()]):.3f}"
                    for name in ("sst", "para", "sts", "overall")))
    tables = read("docs", "recipe.md").partition("means of three seeds")[2]
    rows = re.findall(r"^\| `--.*?\|(.+)\|$", tables.partition("Single runs")[0],
                      re.MULTILINE)
    assert len(rows) > 15
    for cells in rows:
        assert tuple(f"0{cell.strip()}" for cell in cells.split("|")) in found, cells


def test_docs__every_erratum_names_tests_that_exist():
    text = read("docs", "errata.md")
    assert {int(n) for n in re.findall(r"^### D(\d+): ", text, re.MULTILINE)} == set(
        range(1, 19))
    links = re.findall(r"\[`(test_\w+__D\d+)…`\]\(\.\./(tests/\w+\.py)\)", text)
    assert len(links) >= 14
    for name, path in links:
        assert f"def {name}_" in read(path), f"{path} has no {name}…"
