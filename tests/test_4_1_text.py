"""4.1 Text: WordPiece and CSV files."""

import os
import tempfile
import warnings

import data
import heads
from tests.checks import assert_close, assert_equal, assert_raises
from tests.world import tiny_tokenizer, write_file


def test_4_1_basic_tokens__known_cases():
    for text, want in (
            ("Hello, World!", "hello , world !"), ("Été naïve", "ete naive"),
            ("it's $5.00/kg foo_bar", "it ' s $ 5 . 00 / kg foo _ bar"),
            ("你好abc", "你 好 abc"), ("c\x0bd", "cd"), ("a\u200bb", "ab"),
            ("a\u00adb", "ab"),
            ("a\u00a0b", "a b"), ("a\u2028b", "a b"), ("a\ue000b", "ab"), ("\u0130", "i"),
            ("straße", "straße"), ("a\ufffdb\0c", "abc"), ("€5 – ok…", "€5 – ok …"),
            ("[SEP]", "[ sep ]"), ("", ""), ("ΟΣ Σ", "οσ σ"),
            ("a\U000e0fffb", "a\U000e0fffb")):         # no character yet
        got = " ".join(data.basic_tokens(text))
        assert got == want, f"{text!r}: got {got!r}, expected {want!r}"


def test_4_1_WordPiece__greedy_longest_match_first():
    tokenizer = tiny_tokenizer()

    def words(text):
        return [tokenizer.tokens[i] for i in tokenizer(text)]
    assert words("unaffable") == ["un", "##aff", "##able"]
    assert_equal(words("cat"), ["cat"], "the longest match, though c is a piece too")
    assert words("unaffableX") == ["[UNK]"], "an unmatched rest makes the whole word [UNK]"
    assert words("Plays, playing") == ["play", "##s", ",", "play", "##ing"]
    assert words("it's $5.00/a_b") == ["it", "'", "[UNK]", "$", "5", ".", "00", "/", "a",
                                       "_", "b"]
    assert words("[SEP]") == ["[UNK]", "[UNK]", "[UNK]"], "text cannot contain a separator"


def test_4_1_WordPiece__words_over_100_characters_are_unknown():
    tokenizer = tiny_tokenizer()
    tokenizer.wordpieces["##a"] = 5
    try:
        assert tokenizer.pieces("a" * 100) == [5] * 100
        assert tokenizer.pieces("a" * 101) == [tokenizer.unk]
    finally:
        del tokenizer.wordpieces["##a"]


def test_4_1_WordPiece__cache_by_raw_word_changes_nothing():
    text = ("plays\tplaying\u00a0it's\u2003$5.00 caf\u00e9 "
            "\u4f60\u597da c\x0bd\u200b , a\u0301b")
    tokenizer = data.WordPiece(tiny_tokenizer().path)
    want = [i for token in data.basic_tokens(text) for i in tokenizer.pieces(token)]
    assert tokenizer(text) == want and tokenizer(text) == want


def load_sts(text, binary=None):
    folder = write_file(text, "sts-train.csv", binary)
    return data.load(folder, heads.tasks()[2], "train", tiny_tokenizer())


STS_HEADER = "\tid\tsentence1\tsentence2\tsimilarity\n"


def test_4_1_load__quoted_fields_may_hold_tabs_and_quotes():
    got = load_sts(STS_HEADER + '0\tx\t"a\tb ""c"""\td\t2.75\n1\ty\te\t a\t5.0\n')
    ids = tiny_tokenizer().ids
    assert got.ids == ["x", "y"]
    assert got.tokens[0] == ([ids["a"], ids["b"], 1, ids["c"], 1], [ids["d"]])
    assert_close(got.labels, [2.75, 5.0], 0, "labels must stay floats")


def test_4_1_load__rows_without_a_field_are_skipped_with_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = load_sts(STS_HEADER + "0\tx\ta\tb\t1.0\n1\ty\ta\n2\tz\ta\tb\t\n"
                       "3\tw\ta\tb\t2\n")
    assert got.ids == ["x", "w"] and len(caught) == 1
    assert "skipped 2" in str(caught[0].message) and "line 3" in str(caught[0].message)


def test_4_1_load__bad_files_are_refused_with_file_and_line():
    for text, words in (
            ("", ["empty", "similarity"]), ("id,sentence1\n", ["line 1", "sentence2"]),
            (STS_HEADER, ["at least one example"]),
            (STS_HEADER + "0\tx\ta\tb\t1\n1\ty\ta\tb\t5.5\n",
             ["line 3", "from 0 to 5", "'5.5'"]),
            (STS_HEADER + "0\tx\ta\tb\tfive\n", ["line 2", "'five'"]),
            (STS_HEADER + "0\tx\ta\tb\tnan\n", ["line 2", "'nan'"])):
        with assert_raises("sts-train.csv", *words):
            load_sts(text)
    with assert_raises("sts-train.csv", "UTF-8"):
        load_sts("", binary=bytes(range(128, 256)) * 20)
    with assert_raises("sts-dev.csv", "--data", error=FileNotFoundError):
        data.load(tempfile.mkdtemp(), heads.tasks()[2], "dev", tiny_tokenizer())


def test_4_1_load__a_vocabulary_without_special_tokens_is_refused():
    with assert_raises("vocab.txt", "[PAD]"):
        data.WordPiece(os.path.join(write_file("a\nb\n", "vocab.txt"), "vocab.txt"))
    with assert_raises("vocab.txt", "UTF-8"):
        data.WordPiece(os.path.join(write_file("", "vocab.txt", b"\xff\xfe\xfa"),
                                    "vocab.txt"))
