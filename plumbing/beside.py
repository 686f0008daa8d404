"""What a file of the user's imports from its folder: it must get that, at a resume too."""

import ast
import importlib.util
import os
import sys
import warnings

from plumbing import machine

OURS = {"plumbing", "tests", "tools", *(name.partition(".")[0] for name in machine.CODE)}


def imported(path, before):
    """The modules that a file has loaded from its folder.   -> [path], without ours

    before: names of the modules that were loaded earlier. Raises ValueError if an import of
    what lies there gets another module of that name: ours, or Python's.
    """
    folder, files = os.path.dirname(os.path.realpath(path)), []
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        top = name.partition(".")[0]
        if file and top not in OURS and os.path.realpath(file).startswith(
                (os.path.join(folder, f"{top}.py"), os.path.join(folder, top, ""))):
            files.append(os.path.realpath(file))
    for file in [path, *files]:
        check(file, folder)
    return sorted(files)


def check(file, folder):
    """Raise ValueError if a file's import of what is in the folder gets something else."""
    with open(file, "rb") as source, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = [*ast.walk(ast.parse(source.read()))]
    for node in nodes:
        names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                 [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        for name in {name.partition(".")[0] for name in names} - {""}:
            own = [place for place in (os.path.join(folder, f"{name}.py"),
                                       os.path.join(folder, name, "__init__.py"))
                   if os.path.exists(place)]
            got = importlib.util.find_spec(name).origin if own else None
            if own and os.path.realpath(got) not in own:
                raise ValueError(f"{file}, line {node.lineno}: import {name} gets {got}, "
                                 f"not {own[0]}; rename that")
