"""4.1, 4.2 and 3.3: other people's CSV files, prediction files, the order of batches."""

import csv
import gzip
import io
import os
import shlex
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

import data
import heads
from plumbing import tsv
from tests.checks import assert_close, assert_equal, assert_raises
from tests.world import FakeTokenizer, write_file
from tools import results

HEADER = "\tid\tsentence1\tsentence2\tsimilarity\n"


def load(text, split="train", task=2, binary=None):
    """One file with STS's examples (task 0: SST's).   -> (data.Dataset, its warnings)"""
    task = heads.tasks()[task]
    name = os.path.basename(data.path_of("", task, split))
    folder = write_file(text, name, binary)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = data.load(folder, task, split, str)       # str: texts instead of ids
    return dataset, [str(warning.message) for warning in caught]


def rows(*lines):
    return HEADER + "\n".join(lines) + "\n"


def of_sst(*lines):
    return load("\n".join(["\tid\tsentence\tsentiment", *lines]) + "\n", task=0)


# --- Quotes ---

def test_4_1_quotes__a_stray_quote_is_a_character_of_its_own_line():
    got, said = load(rows('0\tx\t"a b\tc\t1', "1\ty\td\te\t2", '2\tz\t"f\tg "h"\t3'))
    assert_equal(got.tokens, [('"a b', "c"), ("d", "e"), ('"f', 'g "h"')],
                 "no row may vanish in a field that is never closed")
    assert len(said) == 1 and "sts-train.csv: 2 rows" in said[0]
    assert "line 2, then 4" in said[0] and "quote" in said[0]


def test_4_1_quotes__a_row_never_vanishes_in_a_field_that_closes_rows_later():
    # From "a to 6" there would be one field with an end of line: two rows in one.
    got, said = load(rows('0\tx\t"a\tb\t1', '1\ty\tc 6"\td\t2', "2\tz\te\tf\t3"))
    assert_equal(got.tokens, [('"a', "b"), ('c 6"', "d"), ("e", "f")])
    assert len(said) == 1 and "line 2" in said[0]


def test_4_1_quotes__two_quoted_sentences_are_not_one_field():
    got, said = load(rows('0\tx\t"No , he said .\tShe said no ."\t1'))
    assert_equal(got.tokens, [('"No , he said .', 'She said no ."')])
    assert len(said) == 1


def test_4_1_quotes__words_in_quotes_stay_in_quotes():
    got, said = of_sst('0\tx\t"Great" film\t3', "1\ty\tsays \"no\"\t1")
    assert_equal(got.tokens, [('"Great" film',), ('says "no"',)])
    assert len(said) == 1 and "line 2" in said[0]


def test_4_1_quotes__a_quoted_field_may_hold_ends_of_lines_tabs_and_quotes():
    texts = ['a\nb "c"\n\nd\te', '"', "f\r\n g\n"]
    file = io.StringIO()
    table = csv.writer(file, delimiter="\t", lineterminator="\n")
    table.writerow(["", "id", "sentence1", "sentence2", "similarity"])
    for i, text in enumerate(texts):
        table.writerow([i, f"x{i}", text, text, 2.5])
    got, said = load(file.getvalue())
    assert_equal(got.tokens, [(text.replace("\r\n", "\n"),) * 2 for text in texts])
    assert said == [] and got.ids == ["x0", "x1", "x2"]


def test_4_1_quotes__ends_of_lines_in_a_tables_first_column():
    got, said = load('sentence\tid\tsentiment\n"a\nb"\tx\t3\nc\ty\t1\n', task=0)
    assert got.tokens == [("a\nb",), ("c",)] and said == []


def test_4_1_quotes__the_file_ends_inside_a_quote():
    got, said = load(rows("0\tx\ta\tb\t1", '1\ty\tc\t"d\t2'))
    assert got.tokens == [("a", "b"), ("c", '"d')] and "line 3" in said[0]
    got, said = load(rows("0\tx\ta\tb\t1", '1\ty\t"c'))
    assert got.ids == ["x"] and len(said) == 2 and "skipped 1 row " in said[1]


def test_4_1_quotes__writing_without_quotes_loses_no_row():
    rng = np.random.default_rng(0)
    parts = ['"', '"a', 'a"', '"a"', '"a" b', '"""', 'a', 'b "c"']
    for _ in range(300):
        texts = [" of ".join(["x"] * (i % 2) + [*rng.choice(parts, 2)]) for i in range(8)]
        got, said = of_sst(*(f"{i}\tid{i}\t{text}\t1" for i, text in enumerate(texts)))
        assert_equal(got.ids, [f"id{i}" for i in range(8)], f"texts {texts}")


# --- Rows ---

def test_4_1_rows__ends_of_lines_marks_and_blank_lines_of_every_system():
    want = load(rows("0\tx\ta\tb\t1", "1\ty\tc\td\t2"))[0]
    text = "\n" + HEADER + "0\tx\ta\tb\t1\n\n \n1\ty\tc\td\t2\n\n"
    for mark in ("", "\ufeff"):
        for end in ("\n", "\r\n", "\r"):
            got, said = load(mark + text.replace("\n", end))
            assert got.ids == want.ids and got.tokens == want.tokens and said == []
            assert (got.labels == want.labels).all()


def test_4_1_rows__first_column_may_be_the_id_after_a_byte_order_mark():
    got, _ = load("\ufeffid\tsentence\tsentiment\nx\ta\t3\n", task=0)
    assert got.ids == ["x"]


def test_4_1_rows__columns_after_the_needed_ones_are_ignored():
    got, said = load(HEADER[:-1] + "\tnote\n0\tx\ta\tb\t1\tlong\n1\ty\ta\tb\t2\n")
    assert got.ids == ["x", "y"] and said == []
    got, said = load(rows("0\tx\ta\tb\t1\t\t", "1\ty\ta\tb\t2\tmore"))
    assert got.ids == ["x", "y"] and len(said) == 1 and "line 3" in said[0]


def test_4_1_rows__skipped_ones_are_counted_with_their_lines():
    # The quoted field takes lines 2 and 3, so the first short row is line 4.
    got, said = load(rows('0\tx\t"a\nb"\tc\t1', "1\ty\ta", *["2\t\ta\tb\t1"] * 6))
    assert got.ids == ["x"] and len(said) == 1
    assert "skipped 7 rows" in said[0] and "line 4, then 5, 6, 7, 8, …" in said[0]


def test_4_1_rows__fields_may_be_long():
    long = "a " * 200_000
    got, said = load(rows(f"0\tx\t{long}\tb\t1", f'1\ty\t"{long}""\n"\tb\t1'))
    assert got.tokens[0][0] == long and got.tokens[1][0] == long + '"\n' and said == []


def test_4_1_rows__reading_takes_linear_time():
    # Were each stray quote sought to the end of the file: 10,000² / 2 lines.
    for line in ('0\tx\t"a b\t1', '"a', '"""a', 'x"\t"y', '\t"a' * 9, '""' * 9):
        folder, start = write_file(HEADER + f"{line}\n" * 10_000), time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tsv.read(os.path.join(folder, "x.csv"), ["id", "sentence1"])
        assert time.process_time() - start < 3, f"slow on lines of {line!r}"


# --- Files of another kind ---

def converted(text, encoding, task=0):
    """Load a file that is refused, run the command of the message, load it again."""
    try:
        load("", task=task, binary=text.encode(encoding))
    except ValueError as error:
        message = str(error)
    assert "\n" not in message and len(message) < 700, message
    command = shlex.split(message[message.index("python -c"):])
    subprocess.run([sys.executable, *command[1:]], check=True)
    with open(f"{command[-1]}.old", "rb") as file:
        assert_equal(file.read(), text.encode(encoding), "the user's own file is kept")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = data.load(os.path.dirname(command[-1]), heads.tasks()[task], "train", str)
    return message, dataset


def test_4_1_kinds__commas_semicolons_and_bars_are_named_and_converted():
    for separator, name in ((",", "commas"), (";", "semicolons"), ("|", "bars")):
        text = separator.join(["id", '"sentence"', "sentiment"]) + "\n" + separator.join(
            ["x", f'"a{separator} ""b"" é"', "3"]) + "\n"
        message, got = converted(text, "utf-8")
        assert f"got text separated by {name};" in message
        assert got.tokens == [(f'a{separator} "b" é',)] and got.labels == [3]


def test_4_1_kinds__other_encodings_are_named_and_converted():
    text = 'id\tsentence\tsentiment\nx\t"Un café\t3\ny\tçà\t1\n'
    for encoding, name in (("utf-16", "UTF-16"), ("utf-16-le", "UTF-16-LE"),
                           ("utf-16-be", "UTF-16-BE"), ("utf-32", "UTF-32"),
                           ("cp1252", "byte 0xe9 at line 2) but probably Windows-1252")):
        message, got = converted(text, encoding)
        assert name in message, message
        assert_equal(got.tokens, [('"Un café',), ("çà",)], encoding)


def test_4_1_kinds__another_encoding_and_another_separator_need_one_command():
    message, got = converted("id;sentence;sentiment\nx;café;3\n", "cp1252")
    assert "Windows-1252 separated by semicolons" in message and got.tokens == [("café",)]
    message, got = converted("id,sentence,sentiment\nx,café,3\n", "utf-16")
    assert "UTF-16 text separated by commas" in message and got.tokens == [("café",)]


def test_4_1_kinds__damaged_files_are_named():
    good = "id\tsentence\tsentiment\nx\té è\t3\n".encode()
    for binary, words in ((good + b"y\t\xff\t1\n", ["1 bytes", "0xff at line 3", "again"]),
                          (good + b"y\ta\0b\t1\n", ["line 3", "byte that is 0"]),
                          (b"\x89PNG\r\n\x1a\n\0\0\0\rI", ["not UTF-8", "again"]),
                          (good[:22] + "x\tХороший фильм, умный\t3\n".encode("cp1251") * 9,
                           ["don't tell", "0xd5 at line 2", "iconv"]),
                          (gzip.compress(good), ["gunzip"]), (b"PK\3\4\xff", ["zip"]),
                          (b"", ["empty", "sentiment"])):
        with assert_raises("ids-sst-train.csv", *words):
            load("", task=0, binary=binary)


def test_4_1_kinds__wrong_columns_are_shown():
    for text in ("sentence\tlabel\nx\t1\n", "id\tsentence\tid\tsentiment\n", "<html>\n"):
        with assert_raises("line 1", "id, sentence, sentiment", text[:2]):
            load(text, task=0)


# --- Ids and labels ---

def test_4_1_ids__twins_are_refused_with_both_lines():
    for other in ("Ab", "ab ", " AB"):
        for split in ("train", "dev", "test"):
            with assert_raises("lines 2 and 4", "'ab'"):
                load(rows("0\tab\ta\tb\t1", "1\tc\ta\tb\t2", f"2\t{other}\ta\tb\t3"), split)


def test_4_1_ids__stand_in_one_line():
    with assert_raises("line 2", "one line"):
        load(rows('0\t"a\nb"\ta\tb\t1'))


def test_4_1_labels__plain_decimal_numbers_alone():
    texts = ["3 ", " 2.75", "+1", "5.", ".5", "1e0", "5e-05", "0.0\x1c"]
    got, _ = load(rows(*(f"0\tx{i}\ta\tb\t{text}" for i, text in enumerate(texts))))
    assert_close(got.labels, [3, 2.75, 1, 5, .5, 1, 5e-5, 0])
    for text in ("٣", "1_0", "nan", "inf", "2,5", "0x1", "1e999", "-1", "5.01", "three"):
        with assert_raises("line 2", "similarity", "number from 0"):
            load(rows(f"0\tx\ta\tb\t{text}"))
    with assert_raises("line 2", "whole number", "'2.5'"):
        of_sst("0\tx\ta\t2.5")


def test_4_1_path_of__files_that_are_missing_can_be_asked_for():
    sst = heads.tasks()[0]
    assert data.path_of("d", sst, "test") == os.path.join("d", "ids-sst-test-student.csv")
    with assert_raises("ids-sst-dev.csv", "--data", error=FileNotFoundError):
        data.load(tempfile.mkdtemp(), sst, "dev", str)


# --- 4.2 Prediction files ---

def predictions(text):
    return results.read_predictions(os.path.join(write_file(text, "p.csv"), "p.csv"))


def test_4_2_read_predictions__ids_with_commas_and_blanks_come_back():
    path = os.path.join(tempfile.mkdtemp(), "p.csv")
    ids = ["a,b", " C , 3 ", "d\u2028e", '"']
    data.write_predictions(path, heads.tasks()[2], ids, np.arange(4) / 2)
    assert_equal(results.read_predictions(path),
                 {"a,b": 0, "c , 3": .5, "d\u2028e": 1, '"': 1.5})


def test_4_2_read_predictions__marks_and_blank_lines_do_no_harm():
    for text in ("\ufeffid \t P \nx , 1 \n\n", "id,P\r\nx,1\r\n"):
        assert predictions(text) == {"x": 1}


def test_4_2_read_predictions__bad_lines_are_named():
    for text, words in (("x , 1 \ny , 2 \n", ["line 1", "header"]), ("", ["line 1"]),
                        ("id \t P \nx , 1 \nX, 2 \n", ["lines 2 and 3", "'x'"]),
                        ("id \t P \nx 1 \n", ["line 2", "x 1"]),
                        ("id \t P \n, 1 \n", ["line 2"])):
        with assert_raises("p.csv", *words):
            predictions(text)
    for value in ("nan", "inf", "", "1_0", "٣", "one"):
        with assert_raises("p.csv", "line 2"):
            predictions(f"id \t P \nx , {value} \n")


# --- 3.3 and 3.4 The order of batches ---

def test_3_3_lengths__a_pair_as_one_row_is_as_long_as_both_sentences():
    dataset = data.Dataset("", ["x", "y"], [([1] * 9, [1]), ([1] * 6, [1] * 6)], None)
    assert_equal(data.lengths(dataset, True).tolist(), [10, 12], mistakes={
        "the longer sentence alone was counted": [9, 6]})
    assert_equal(data.lengths(dataset, False).tolist(), [9, 6], mistakes={
        "both sentences were counted": [10, 12]})
    row = data.collate(dataset, [1], FakeTokenizer, True, 40).input_ids
    assert row.shape[1] == 12 + 3, "[CLS] and two [SEP]s are the same for all"


def test_3_3_Stream__restart_inside_a_group_draws_a_new_order_at_once():
    lengths = np.random.default_rng(0).integers(3, 30, 300)
    stream, fresh = data.Stream(lengths, 4, (7, 1)), data.Stream(lengths, 4, (7, 1))
    before = [stream.next().tolist() for _ in range(3)]
    stream.restart()
    fresh.position = [1, 0]
    after = [stream.next().tolist() for _ in range(3)]
    assert after == [fresh.next().tolist() for _ in range(3)], "position is all the state"
    assert after != before, "the old group went on"


def test_3_3_Stream__each_group_is_shuffled_in_an_order_of_its_own():
    # All lengths differ, so an order of batches is seen in the lengths' ranks.
    stream = data.Stream(np.random.default_rng(0).permutation(1280), 4, (0, 0))
    orders = [np.argsort([stream.lengths[stream.next()].max() for _ in range(64)]).tolist()
              for _ in range(5)]
    assert len({tuple(order) for order in orders}) == 5, "groups were shuffled alike"


def test_3_3_Stream__the_batch_between_two_passes_stays_alone():
    # N = 10, B = 4, as drawn in the docstring.
    stream = data.Stream(np.ones(10, int), 4, (0, 0))
    assert_equal([stream.group_of(batch) for batch in range(6)],
                 [range(2), range(2), range(2, 3), range(3, 5), range(3, 5), range(5, 7)])
