"""Run docs/tour.ipynb, and write it back with small outputs.

    python tools/tour.py            after a change of its code, or of what it shows

The notebook itself is the source: edit it in Jupyter, then run this. It keeps text and PNG
figures, drops versions and warnings, and notes a digest of the code, so that a test sees
code that was edited and not run. Cells with the tag "varies" print numbers that depend on
the processor or on time; the test that runs the tour does not compare these.
Needs nbclient, ipykernel and matplotlib.
"""

import base64
import copy
import hashlib
import importlib.util
import io
import json
import os
import re
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:            # python tools/tour.py
    sys.path.append(ROOT)

from plumbing import command

PATH = os.path.join(ROOT, "docs", "tour.ipynb")
NEEDED = ("nbclient", "ipykernel", "matplotlib")
NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*\.?\d*(?:e[-+]?\d+)?")


def read():
    with open(PATH, encoding="utf-8") as file:
        return json.load(file)


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source_of(cell):
    return "".join(cell["source"])


def digest(notebook):
    """SHA-256 of all code, which is what the outputs come from."""
    code = [source_of(cell) for cell in code_cells(notebook)]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


# --- What is kept of a run ---

def small_png(encoded):
    """A figure in 64 colors: a third of the size.   base64 -> base64"""
    from PIL import Image  # matplotlib needs it too
    picture, out = Image.open(io.BytesIO(base64.b64decode(encoded))), io.BytesIO()
    picture.convert("RGB").quantize(64).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def kept_outputs(outputs):
    """Text, as one output for each stretch of it, and figures.

    What goes to stderr, such as progress on a slow machine, is not kept.
    """
    kept = []
    for output in outputs:
        if output.get("name") == "stdout":
            text = "".join(output["text"])
            if kept and kept[-1].get("name") == "stdout":
                text = "".join(kept.pop()["text"]) + text
            kept.append({"name": "stdout", "output_type": "stream",
                         "text": text.splitlines(keepends=True)})
        elif "image/png" in output.get("data", {}):
            kept.append({"data": {"image/png": small_png(output["data"]["image/png"])},
                         "metadata": {}, "output_type": "display_data"})
    return kept


def cleaned(notebook):
    """A notebook that was run, without what names the machine or the moment."""
    cells, count = [], 0
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags")
        new = {"cell_type": cell["cell_type"], "id": cell["id"],
               "metadata": {"tags": tags} if tags else {},
               "source": source_of(cell).splitlines(keepends=True)}
        if cell["cell_type"] == "code":
            count += 1
            new.update(execution_count=count, outputs=kept_outputs(cell["outputs"]))
        cells.append(new)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {
        "code_sha256": digest(notebook), "kernelspec": kernel,
        "language_info": {"name": "python"}}}


# --- A run ---

def run(notebook):
    """Run all cells in a new kernel, started in docs/.   -> cleaned() result

    Raises ValueError naming the cell that failed.
    """
    import nbclient
    import nbformat
    running = nbformat.from_dict(copy.deepcopy(notebook))
    for cell in running.cells:
        cell.source = source_of(cell)
    client = nbclient.NotebookClient(
        running, timeout=600, kernel_name="python3",
        resources={"metadata": {"path": os.path.dirname(PATH)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"])      # no words about its ports
    try:
        client.execute()
    except nbclient.exceptions.DeadKernelError:
        raise ValueError("the tour's kernel ended; is there enough memory?") from None
    except nbclient.exceptions.CellExecutionError as error:
        failed = next(cell.id for cell in running.cells if cell.cell_type == "code" and any(
            output.output_type == "error" for output in cell.outputs))
        raise ValueError(f"{os.path.relpath(PATH, ROOT)}, cell {failed}: {error.ename}: "
                         f"{error.evalue}") from None
    return cleaned(running)


# --- What differs ---

def printed(cell):
    """The lines that a cell has printed."""
    return "".join("".join(output["text"]) for output in cell["outputs"]
                   if output["output_type"] == "stream").splitlines()


def same_line(was, now):
    """Equal words, and numbers that another processor's rounding may have given."""
    numbers = [[float(number.replace(",", "")) for number in NUMBER.findall(line)]
               for line in (was, now)]
    return NUMBER.sub("0", was).split() == NUMBER.sub("0", now).split() and all(
        abs(a - b) <= .006 + .01 * abs(a) for a, b in zip(*numbers))


def differences(stored, fresh):
    """Where a run gave something else than is stored.   -> lines

    Of a cell with the tag "varies" only the kinds of its outputs are compared.
    """
    found = []
    for old, new in zip(code_cells(stored), code_cells(fresh)):
        was, now = ([output["output_type"] for output in cell["outputs"]]
                    for cell in (old, new))
        if was == now and "varies" not in old["metadata"].get("tags", []):
            was, now = printed(old), printed(new)
        if len(was) != len(now) or not all(map(same_line, was, now)):
            found.append(f"cell {old['id']}: stored {was}, now {now}")
    return found


def main(argv=None):
    p = command.Parser(__doc__)

    def write_back():
        p.parse_args(argv)
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"needed: pip install {' '.join(missing)}")
        print("running the tour, which takes a minute or two")
        start, fresh = time.monotonic(), run(read())
        with open(PATH, "w", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(fresh, ensure_ascii=False, indent=1) + "\n")
        print(f"{PATH}, {time.monotonic() - start:.0f} s")
        return 0
    return command.one_line(write_back)


if __name__ == "__main__":
    sys.exit(main())
