"""JSON that a run wrote, checked as it is read.

A file that is not what it should be is a ValueError of one line: the file, the place in it,
what was needed and what is there.
"""

import json

from plumbing.console import printable

NUMBER = (int, float)


def mistake(path, needed, got, line=None):
    """The ValueError for a wrong file.   line: its number, if there is one"""
    place = path if line is None else f"{path}, line {line}"
    got = got if isinstance(got, str) else json.dumps(got)
    return ValueError(f"{printable(place)}: needed {needed}, got {printable(got, 80)}")


def check_fields(path, value, fields, line=None):
    """A JSON value -> the same, if it is an object with these fields.   {name: type}"""
    if not isinstance(value, dict) or not fields.keys() <= value.keys():
        raise mistake(path, f"an object with {', '.join(fields) or 'names'}", value, line)
    for name, kind in fields.items():
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            kind = "a number" if kind == NUMBER else f"a {kind.__name__}"
            raise mistake(path, f"{printable(name)} to be {kind}", value[name], line)
    return value


def parse_json(path, text, fields, line=None):
    """JSON text -> its object, checked by check_fields()"""
    try:
        value = json.loads(text)
    except ValueError:
        raise mistake(path, "JSON", text.strip() or "nothing", line) from None
    return check_fields(path, value, fields, line)


def read_text(path):
    """A whole file of UTF-8 text"""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise mistake(path, "UTF-8 text", f"{error.reason} at byte {error.start}") from None


def read_json(path, fields):
    """A file with one JSON object, checked by check_fields()"""
    return parse_json(path, read_text(path), fields)


def read_json_lines(path):
    """A file with a JSON object on each line.   -> [object]"""
    return [parse_json(path, line, {}, number)
            for number, line in enumerate(read_text(path).splitlines(), 1)]
