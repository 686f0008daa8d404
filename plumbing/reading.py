"""Files that a run or a tool wrote, checked as they are read.

A file that is not what it should be is a ValueError of one line: the file, the place in it,
what was needed and what is there.
"""

import json

from plumbing.console import printable

NUMBER = (int, float)
WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number",
         NUMBER: "a number"}


def mistake(path, needed, got, line=None):
    """The ValueError for a wrong file.   line: its number, if there is one"""
    place = path if line is None else f"{path}, line {line}"
    got = got if isinstance(got, str) else json.dumps(got)
    return ValueError(f"{printable(place)}: needed {needed}, got {printable(got, 80)}")


def is_a(value, kind):
    """isinstance(), but True is no number, and neither is 1e400, which JSON can write."""
    if not isinstance(value, NUMBER) or kind is object:
        return isinstance(value, kind)
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < 1e300


def check_fields(path, value, fields, line=None, only=False):
    """A JSON value -> the same, if it is an object with these fields.   {name: type}

    only: it must have no others.
    """
    if (not isinstance(value, dict) or not fields.keys() <= value.keys()
            or (only and fields.keys() != value.keys())):
        raise mistake(path, f"an object with {', '.join(fields) or 'names'}"
                      + (" and nothing else" if only else ""), value, line)
    for name, kind in fields.items():
        if not is_a(value[name], kind):
            raise mistake(path, f"{printable(name)} to be {WORDS[kind]}", value[name], line)
    return value


def check_list(path, values, kind, line=None):
    """A JSON value -> the same, if it is a list of such values.   kind: a type"""
    if not isinstance(values, list) or not all(is_a(value, kind) for value in values):
        raise mistake(path, f"a list, each part {WORDS[kind]}", values, line)
    return values


def parse(path, text, line=None):
    """JSON text -> its value; NaN and Infinity are not JSON"""
    def refuse(word):
        raise ValueError(word)
    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):        # the latter: nested 1,000 deep
        raise mistake(path, "JSON", text.strip() or "nothing", line) from None


def read_text(path):
    """A whole file of UTF-8 text"""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise mistake(path, "UTF-8 text", f"{error.reason} at byte {error.start}") from None


def read_json(path, fields, only=False):
    """A file with one JSON object, checked by check_fields()"""
    return check_fields(path, parse(path, read_text(path)), fields, only=only)


def read_json_lines(path, growing=False):
    """A file with a JSON object on each line.   -> [object]

    growing: a last line without its end is left out, as its writer may not be done.
    """
    text = read_text(path)
    lines = text.splitlines()
    if growing and not text.endswith("\n"):
        lines = lines[:-1]
    return [check_fields(path, parse(path, line, number), {}, number)
            for number, line in enumerate(lines, 1)]


def listed(texts):
    """The texts of a call, if they are several.   Raises ValueError for a single one"""
    if isinstance(texts, (str, bytes, dict)) or not hasattr(texts, "__iter__"):
        raise ValueError(f"needed a list of texts, or of pairs, got {str(texts)[:60]!r}; "
                         f"put a single one into [ ]")
    return texts


def texts_of(example, number, what):
    """A text, or a tuple or list of texts.   -> a tuple of so many, or raises ValueError"""
    parts = tuple(example) if isinstance(example, (tuple, list)) or (
        hasattr(example, "tolist") and getattr(example, "ndim", 0)) else (example,)
    if len(parts) != number or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{what} needs {number} text(s), got {str(example)[:60]!r}")
    return parts
