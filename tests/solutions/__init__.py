"""Two right solutions of every part, written independently of our source and of each other.

No student gets them. Classes stand for modules: `class bert` holds
bert.attention, and so on. put_in() writes them into the holes of a hand-out.
"""

import ast
import os

from tools.source import find, read, write

ROOT = os.path.dirname(os.path.abspath(__file__))


def put_in(folder, style, modules=None):
    """Write the solutions of a style, "loops" or "arrays", into a hand-out's modules."""
    text = read(ROOT, f"{style}.py")
    lines, tree = text.splitlines(), ast.parse(text)
    imports = [lines[node.lineno - 1] for node in tree.body
               if isinstance(node, (ast.Import, ast.ImportFrom))
               and getattr(node, "module", "") not in ("smart", "multitask")]

    def insert(target, owner, depth):
        """The functions of a class of ours into a module or a class of the hand-out."""
        for node in owner.body:
            if isinstance(node, ast.ClassDef):
                target = insert(target, node, [*depth, node.name])
                continue
            body = [line[4 * (1 + len(depth)) - 4 * len(depth):]
                    for line in lines[node.lineno - 1:node.end_lineno]]
            _, hole = find(target, [*depth, node.name])
            rows = target.splitlines()
            if hole is None:        # a helper: before the class's end
                _, outer = find(target, depth)
                start = stop = outer.end_lineno
                body = ["", *body]
            else:
                start, stop = hole.lineno - 1, hole.end_lineno
            target = "\n".join([*rows[:start], *body, *rows[stop:]]) + "\n"
        return target
    for module in tree.body:
        if isinstance(module, ast.ClassDef) and (not modules or module.name in modules):
            source = read(folder, f"{module.name}.py")
            source = insert(source, module, [])
            _, _, rest = source.partition('"""\n\n')        # after the docstring
            head = source[:len(source) - len(rest)]
            write(head + "\n".join(imports) + "\n" + rest, folder, f"{module.name}.py")
