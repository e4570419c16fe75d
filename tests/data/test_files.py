import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax.data import files
from transformer_jax.data.files import read, read_blocks
from transformer_jax.tokenize import BytePairs

# Words of at most 24 bytes, and white space of all kinds, but never so much of either that a block of 101 bytes has no end of a word.
WORDS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | st.sampled_from(["don't", "it's", "17", "é漢🦉", "...", "\x1c"]))
GAPS = st.sampled_from([" ", "\n", "  ", "\r\n", "\t ", " \n\n ", "\n\n\n\t", "\u3000 "])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.txt"


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(files, "BLOCK", 101)
    return 101


@given(text=st.text(st.sampled_from("a é漢🦉\n\r"), max_size=101), size=st.sampled_from([1, 2, 3, 7, 101]))
def test_blocks_together_are_the_text_wherever_they_end(tmp_path_factory, text, size):
    path = tmp_path_factory.getbasetemp() / "blocks.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK", size)
        assert "".join(read_blocks(str(path), field="f")) == text


@given(words=WORDS, gaps=st.data())
def test_the_byte_pairs_of_blocks_are_those_of_the_whole_and_so_is_what_is_trained_on_them(tmp_path_factory, words, gaps):
    text = "".join(word + gaps.draw(GAPS) for word in words * 5)
    path = tmp_path_factory.getbasetemp() / "pairs.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK", 101)
        blocks = list(read_blocks(str(path), field="f"))
    vocabulary = BytePairs(311).train([text])
    assert BytePairs(311).train(iter(blocks)) == vocabulary
    np.testing.assert_array_equal(np.concatenate([vocabulary.encode(block) for block in blocks]), vocabulary.encode(text))


def test_a_block_ends_with_a_word_where_there_is_one(file, block):
    file.write_text("some words and more\n" * 53)
    blocks = list(read_blocks(str(file), field="f"))
    assert len(blocks) >= 10
    assert all(re.fullmatch(r"\s?(?s:.*)(some|words|and|more)", text) for text in blocks[:-1])


def test_a_block_is_short_even_where_no_word_ends(file, block):
    file.write_text(" " + "x" * 1009)
    assert max(map(len, read_blocks(str(file), field="f"))) <= 2 * block


@pytest.mark.parametrize("at", [0, 50, 100, 101, 102, 1000])
def test_a_byte_that_is_not_utf_8_is_named_by_its_place_in_the_file(file, block, at):
    file.write_bytes(b"a " * (at // 2) + b"a" * (at % 2) + b"\x89PNG" + b"a" * 301)
    with pytest.raises(ValueError, match=rf"Some\.field: expected UTF-8 text files, received '.*some\.txt', whose byte {at} \(0x89\) is not UTF-8"):
        read(str(file), field="Some.field")


@pytest.mark.parametrize("at", [3, 99, 100, 101])
def test_a_character_cut_off_at_the_end_is_named(file, block, at):
    file.write_bytes(b"a" * at + "漢".encode()[:2])
    with pytest.raises(ValueError, match=rf"whose byte {at} \(0xe6\) is not UTF-8"):
        read(str(file), field="f")


def test_line_ends_are_left_as_they_are(file):
    file.write_bytes(b"a\r\nb\rc\n")
    assert read(str(file), field="f") == "a\r\nb\rc\n"
