"""This tree as text: functions found in the syntax tree, and copies of the tree.

Used by make_assignment.py and mutants.py.
"""

import ast
import os
import shutil

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODULES = ("bert", "data", "heads", "multitask", "optim", "smart", "train", "test_all")
COPIED = (*(f"{name}.py" for name in MODULES), "plumbing", "tests", "tools", "sample",
          "results", "docs", "README.md", "CITATION.cff", "LICENSE", "requirements.txt",
          "pyproject.toml")


def copy_tree(folder, leave_out=()):
    """Copy this tree to a new folder, but for files that match a pattern of leave_out."""
    os.makedirs(folder)
    for name in COPIED:
        source, target = os.path.join(ROOT, name), os.path.join(folder, name)
        if os.path.isdir(source):
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(
                "__pycache__", ".*", *leave_out))
        elif os.path.exists(source):
            shutil.copyfile(source, target)


def find(source, names):
    """The def of ["AdamW", "step"] in a module's source.   -> (its class or None, node)"""
    node, outer = ast.parse(source), None
    for name in names:
        outer, node = node, next(
            (child for child in node.body if getattr(child, "name", None) == name
             and isinstance(child, (ast.ClassDef, ast.FunctionDef))), None)
        if node is None:
            return None, None
    return outer if isinstance(outer, ast.ClassDef) else None, node


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def write(text, *path):
    with open(os.path.join(*path), "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def original(function, root=ROOT):
    """"optim.AdamW.step" -> (file, its source, class or None, node).   Raises ValueError"""
    names = function.split(".")
    depth = 2 if names[0] == "plumbing" else 1
    file, node = os.path.join(*names[:depth]) + ".py", None
    if os.path.exists(os.path.join(root, file)) and names[depth:]:
        source = read(root, file)
        outer, node = find(source, names[depth:])
    is_function = isinstance(node, ast.FunctionDef)
    if not is_function:
        raise ValueError(f"there is no function {function}; needed one of a module, such "
                         f"as bert.attention or optim.AdamW.step")
    return file, source, outer, node


def first_line(node):
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def docstring_end(node):
    """The last line of a def's or class's head: of its docstring, if it has one."""
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        return first.end_lineno
    return first.lineno - 1


def with_body(source, node, body):
    """`source` with another body for a def, whose head and docstring stay."""
    lines = source.splitlines()
    head = docstring_end(node)
    if ast.get_docstring(node, clean=False) is None:        # comments may follow the head
        while head > node.lineno and not lines[head - 1].rstrip().endswith(":"):
            head -= 1
    indent = " " * (node.col_offset + 4)
    return "\n".join(lines[:head] + [indent + line for line in body]
                     + lines[node.end_lineno:]) + "\n"


def without_skipped_tests(source):
    """A file of tests without those that call skip_in_a_copy()."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef) and any(
                getattr(part, "id", "") == "skip_in_a_copy" for part in ast.walk(node)):
            stop = node.end_lineno
            while stop < len(lines) and not lines[stop].strip():
                stop += 1
            del lines[node.lineno - 1:stop]
    return "\n".join(lines).rstrip() + "\n"
