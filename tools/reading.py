"""Files that a run or a user wrote, checked as they are read.

A file that is not what it should be is a ValueError of one line: the file, the place in it,
what was needed and what is there.
"""

import json

from plumbing.console import printable

LONGEST = 80        # characters of a wrong value that a message shows


def mistake(path, needed, got, line=None):
    """The ValueError for a wrong file.   line: its number, where there is one"""
    place = path if line is None else f"{path}, line {line}"
    got = got if isinstance(got, str) else json.dumps(got, ensure_ascii=False)
    if len(got) > LONGEST:
        got = got[:LONGEST] + " …"
    return ValueError(f"{printable(place)}: needed {needed}, got {printable(got)}")


def check_fields(path, value, fields, line=None):
    """A JSON value -> the same, if it is an object with these fields.   {name: kind}

    A kind is a type or a tuple of types. A number is (int, float), which a bool is not.
    """
    needed = f"an object with {', '.join(fields)}"
    if not isinstance(value, dict):
        raise mistake(path, needed, value, line)
    for name, kind in fields.items():
        if not isinstance(value.get(name), kind) or isinstance(value[name], bool):
            found = value[name] if name in value else f"no {name}"
            raise mistake(path, f"{needed}, {name} of the right kind", found, line)
    return value


def parse_json(path, text, fields, line=None):
    """JSON text -> its object, checked by check_fields()."""
    try:
        value = json.loads(text)
    except ValueError:
        raise mistake(path, "JSON", text.strip() or "nothing", line) from None
    return check_fields(path, value, fields, line)


def read_text(path):
    """A whole file of UTF-8 text."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise mistake(path, "UTF-8 text", f"{error.reason} at byte {error.start}") from None


def read_json(path, fields):
    """A file with one JSON object, checked by check_fields()."""
    return parse_json(path, read_text(path), fields)


def read_json_lines(path, fields):
    """A file with a JSON object on each line, all of them checked.   -> [object]"""
    return [parse_json(path, line, fields, number)
            for number, line in enumerate(read_text(path).splitlines(), 1)]
