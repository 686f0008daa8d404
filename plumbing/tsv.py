"""A table in a text file: columns separated by tabs, under a line with their names.

    read(path, columns)     -> the rows, each with the number of the line that it begins at
    note_id(), parse_number()           what stands in them

Written for other people's files. A row is read, or named in a warning; it never vanishes. A
file of another kind is refused in one line with the command that converts it.

Why not the csv module: programs that quote nothing (those that wrote GLUE, for example)
leave fields such as `"Good , but long` behind, and csv reads from that quote to the next
one, however many rows lie between.
"""

import os
import re
import shlex
import warnings

OTHER_SEPARATORS = {",": "commas", ";": "semicolons", "|": "bars"}
KEEP_OLD = ("import csv,io,sys;p=sys.argv[1];b=open(p,'rb').read();"
            "open(p+'.old','xb').write(b);t=b.decode('{encoding}');"
            "f=open(p,'w',encoding='utf-8',newline='');")
TO_TABS = KEEP_OLD + (
    "csv.field_size_limit(2**31-1);csv.writer(f,delimiter='\\t').writerows("
    "csv.reader(io.StringIO(t,newline=''),delimiter='{separator}'))")
TO_UTF8 = KEEP_OLD + "f.write(t)"


def read(path: str, columns: list[str]) -> list[tuple[int, list[str]]]:
    """-> [(line, [value of each column]), …]

    Rows in which one of the columns is missing or blank are skipped, with one warning for
    the file. Further columns are ignored. Raises ValueError.
    """
    lines, header, names = decode(path, columns)
    places = [names.index(column) for column in columns]
    width = max(places) + 1
    rows, strays, short, long = [], [], [], []
    following = header + 1
    while following < len(lines):
        at, line = following, lines[following]
        if '"' in line:
            fields, following, stray = record(lines, at, width, len(names))
            if stray:
                strays.append(at + 1)
        else:
            fields, following = line.split("\t"), at + 1
        values = [fields[place] for place in places] if len(fields) >= width else [""]
        if all(values) and not any(map(str.isspace, values)):
            rows.append((at + 1, values))
            if any(fields[len(names):]):
                long.append(at + 1)
        elif line and not line.isspace():           # a blank line is no row
            short.append(at + 1)
    warn(path, strays, "{} with a quote that opens a field and does not close it, read as "
                       "a plain character")
    warn(path, short, "skipped {} with a missing or empty field")
    warn(path, long, "{} with more fields than the first line names, which were ignored")
    return rows


def warn(path: str, numbers: list[int], what: str) -> None:
    """One warning for all rows of a kind, with the numbers of the first five lines."""
    if numbers:
        rows = "1 row" if len(numbers) == 1 else f"{len(numbers)} rows"
        then = f", then {', '.join(map(str, numbers[1:5]))}" if numbers[1:] else ""
        more = ", …" if numbers[5:] else ""
        warnings.warn(f"{path}: {what.format(rows)}; the first at line {numbers[0]}{then}"
                      f"{more}", stacklevel=4)


# --- Quotes ---

def record(lines: list[str], first: int, width: int, columns: int):
    """The row that begins at lines[first].   -> (fields, place of the next, stray quote?)

    width: fields that a row needs; columns: names in the table's first line. A field in
    quotes may hold tabs, doubled quotes and ends of lines. A stray quote, which opens a
    field that is never closed, is a plain character.
    """
    fields: list[str] = []
    row, at, stray = first, 0, False
    while True:
        found = None
        if lines[row].startswith('"', at):
            found = quoted(lines, row, at)
            if found and found[1] > row and (
                    len(fields) >= columns or hides_row(lines[row:found[1] + 1], width)):
                found = None
            stray = stray or found is None
        if found:
            text, row, end = found
        else:
            end = lines[row].find("\t", at)
            end = len(lines[row]) if end < 0 else end
            text = lines[row][at:end]
        fields.append(text)
        if end == len(lines[row]):
            break
        at = end + 1
    # The quotes of `"No , he said .` TAB `She said no ."` are not one field's.
    plain = lines[first].split("\t")
    if len(fields) < width or (len(fields) != columns == len(plain)):
        return plain, first + 1, stray or len(fields) != len(plain)
    return fields, row + 1, stray


def quoted(lines: list[str], row: int, at: int):
    """The field that a quote opens at lines[row][at].   -> (text, row, end), or None

    Its closing quote stands before a tab or at the end of a line.
    """
    last, place = row, at + 1
    while last < len(lines):
        place = lines[last].find('"', place)
        if place < 0:
            last, place = last + 1, 0
        elif lines[last].startswith('"', place + 1):
            place += 2
        elif lines[last][place + 1:place + 2] in ("", "\t"):
            text = "\n".join(lines[row:last + 1])
            text = text[at + 1:len(text) - len(lines[last]) + place]
            return text.replace('""', '"'), last, place + 1
        else:
            return None
    return None


def hides_row(lines: list[str], width: int) -> bool:
    """Would a row vanish if a field went from the first of these lines to the last?

    A line with `width` fields is taken for a row. So is the last line only if the first is
    one too: after the closing quote it holds the rest of the row.
    """
    is_row = [line.count("\t") + 1 >= width for line in lines]
    return any(is_row[1:-1]) or (is_row[0] and is_row[-1])


# --- Kinds of files ---

def decode(path: str, columns: list[str]):
    """-> (the file's lines, where the one with the names is, the names)   ValueError"""
    with open(path, "rb") as file:
        raw = file.read()
    encoding, found = encoding_of(path, raw)
    text = raw.decode(encoding, "replace")
    # Not splitlines(): it also splits at form feeds and at U+2028, which texts may hold.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if "\0" in text:
        line = 1 + next(i for i, line in enumerate(lines) if "\0" in line)
        raise ValueError(f"{path}, line {line}: needed text, got a byte that is 0; copy "
                         f"the file again")
    header = next((i for i, line in enumerate(lines) if line.strip()), 0)
    names = [name.strip() for name in record([lines[header]], 0, 1, 0)[0]]
    others = [s for s in OTHER_SEPARATORS if not set(columns) <= set(names) and
              set(columns) <= {name.strip(' "') for name in lines[header].split(s)}]
    if others:
        found = (found or "text") + f" separated by {OTHER_SEPARATORS[others[0]]}"
    if found:
        command = (TO_TABS if others else TO_UTF8).format(
            encoding=encoding, separator=others[0] if others else "")
        name = shlex.quote(str(path)) if os.name == "posix" else f'"{path}"'
        raise ValueError(f"{path}: needed UTF-8 text separated by tabs, got {found}; "
                         f"convert it (the old one stays, as .old) with: python -c "
                         f'"{command}" {name}')
    if not text.strip():
        raise ValueError(f"{path}: needed the columns {', '.join(columns)}, got an empty "
                         f"file; copy the file again")
    for column in columns:
        if names.count(column) != 1:
            raise ValueError(f"{path}, line {header + 1}: needed the columns "
                             f"{', '.join(columns)}, each once, separated by tabs, got "
                             f"{lines[header][:80]!r}")
    return lines, header, names


def encoding_of(path: str, raw: bytes):
    """-> (its name, what it is in words, or "" for UTF-8)   Raises ValueError"""
    for mark, name in ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
                       (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if raw.startswith(mark):
            return name, f"{name.upper()} text"
    for mark, found in ((b"\x1f\x8b", "a gzip file; name it .csv.gz and gunzip it"),
                        (b"PK\x03\x04", "a zip archive, or Excel's; unpack or export it")):
        if raw.startswith(mark):
            raise ValueError(f"{path}: needed UTF-8 text separated by tabs, got {found}")
    # English in UTF-16 without a mark: every other byte is 0.
    head = raw[:1000]
    for name, zeros, others in (("utf-16-le", head[1::2], head[::2]),
                                ("utf-16-be", head[::2], head[1::2])):
        if zeros.count(0) > len(others) / 2 and 0 not in others:
            return name, f"{name.upper()} text"
    try:
        raw.decode("utf-8")
        return "utf-8-sig", ""
    except UnicodeDecodeError as error:
        where = f"byte 0x{raw[error.start]:02x} at line {1 + raw.count(10, 0, error.start)}"
    # Bytes that UTF-8 cannot read stand for themselves as U+DC80 to U+DCFF.
    rest = raw.decode("utf-8", "surrogateescape")
    bad = len(re.findall("[\udc80-\udcff]", rest))
    good = len(re.findall("[^\0-\x7f\udc80-\udcff]", rest))
    if good >= bad or 0 in raw:
        raise ValueError(f"{path}: needed UTF-8 text separated by tabs, got one with {bad} "
                         f"bytes that are not UTF-8 (the first is {where}); copy the file "
                         f"again")
    if bad > len(re.findall("[A-Za-z]", rest)):     # no Western text has so few
        raise ValueError(f"{path}: needed UTF-8 text separated by tabs, got another "
                         f"encoding, which its bytes don't tell ({where}); convert it, as "
                         f"by iconv -f ENCODING -t UTF-8 OLD > NEW")
    try:
        raw.decode("cp1252")
        return "cp1252", f"text that is not UTF-8 ({where}) but probably Windows-1252"
    except UnicodeDecodeError:
        return "latin-1", f"text that is not UTF-8 ({where}), perhaps Latin-1"


# --- Ids and numbers ---

def same_id(example: str) -> str:
    """An id as the course's grader compares them."""
    return example.strip().lower()


def note_id(lines: dict[str, int], example: str, path: str, line: int) -> str:
    """Add an id to lines {id: line}, as same_id() has it, and return it.

    Raises ValueError for one that is there already, or that holds a line's end.
    """
    name = same_id(example)
    if "\n" in example:
        raise ValueError(f"{path}, line {line}: an id must stand in one line, got "
                         f"{example[:40]!r}; rename it")
    if name in lines:
        raise ValueError(f"{path}, lines {lines[name]} and {line} have the same id, "
                         f"{name[:40]!r} (blanks around it and upper case don't count); "
                         f"rename or remove one of them")
    lines[name] = line
    return name


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def parse_number(text: str) -> float:
    """"3", "2.75 " or "1e-05" -> float; anything else is NaN.

    float() alone would also read "1_0" as 10 and "٣" as 3.
    """
    text = text.strip()
    return float(text) if NUMBER.fullmatch(text) else float("nan")
