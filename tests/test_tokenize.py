import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.tokenize import (
    BytePairs,
    BytePairVocabulary,
    Bytes,
    ByteVocabulary,
    Characters,
    CharacterVocabulary,
    PublishedVocabulary,
    Vocabulary,
    load,
    pieces,
)

TEXT = "the cat sat on the mat,\r\n\tthe rat sat on the cat: 17 + 19 = 36; naïve Ωμέγα\n\n" * 3
VOCABULARIES = {tokenizer: tokenizer.train([TEXT]) for tokenizer in (Characters(), Bytes(), BytePairs(283))}

every_kind = pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=lambda v: type(v).__name__)
known_and_unknown = st.text() | st.text(st.sampled_from(sorted(set(TEXT)) + ["é", "漢", "🦉"]))


@every_kind
@settings(max_examples=60, deadline=None)
@given(text=known_and_unknown)
def test_decode_gives_back_what_was_encoded(vocabulary: Vocabulary, text: str) -> None:
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert np.all((ids >= 0) & (ids < vocabulary.vocab_size))
    assert vocabulary.decode(ids) == text


@settings(max_examples=60, deadline=None)
@given(training=st.text(), text=st.text())
def test_characters_give_back_text_whatever_they_were_trained_on(training: str, text: str) -> None:
    vocabulary = Characters().train([training])
    assert vocabulary.decode(vocabulary.encode(text + training)) == text + training


@settings(max_examples=10, deadline=None)
@given(training=st.text(), text=st.text())
def test_byte_pairs_give_back_text_whatever_they_were_trained_on(training: str, text: str) -> None:
    vocabulary = BytePairs(263).train([training])
    assert vocabulary.decode(vocabulary.encode(text + training)) == text + training


@every_kind
def test_empty_text_has_no_tokens(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode("").shape == (0,) and vocabulary.encode("").dtype == np.int32
    assert vocabulary.decode([]) == ""


@every_kind
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sampled_ids_decode_to_the_same_text_at_once_and_in_pieces(vocabulary: Vocabulary, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, vocabulary.vocab_size - 1) | st.integers(vocabulary.vocab_size - 16, vocabulary.vocab_size - 1)))
    parts = list(pieces(vocabulary, ids))
    assert "".join(parts) == vocabulary.decode(ids)
    assert all(parts)


@every_kind
def test_pieces_come_with_the_last_token_of_each_character_and_never_split_one(vocabulary: Vocabulary) -> None:
    text = "the é漢🦉 mat"
    taken: list[int] = []

    def sampled() -> Iterator[int]:
        for i in vocabulary.encode(text):
            taken.append(i)
            yield i

    seen = ""
    for piece in pieces(vocabulary, sampled()):
        seen += piece
        assert vocabulary.decode(taken) == seen  # nothing read ahead, nothing held back
        assert text.startswith(seen)
    assert seen == text


def test_characters_are_numbered_in_order_and_followed_by_hexadecimal_digits() -> None:
    vocabulary = Characters().train(["cab", "bad"])
    assert vocabulary == CharacterVocabulary("abcd") and vocabulary.vocab_size == 4 + 16
    utf8 = [0xC, 0x3, 0xA, 0x9]  # é
    np.testing.assert_array_equal(vocabulary.encode("déb"), [3, *(4 + digit for digit in utf8), 1])


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([2 + 0xC], "\ufffd"),
        ([0, 2 + 0xC, 1], "a\ufffdb"),
        ([2 + 0xC, 2 + 0x3], "\ufffd"),
        ([2 + 0xC, 2 + 0x3, 0], "\ufffda"),
        ([2 + 0xC, 2 + 0x3, 2 + 0xA, 0], "\ufffd\ufffda"),
        ([2 + 0xC, 2 + 0x3, 2 + 0xA, 2 + 0x9, 0], "éa"),
        ([2 + 0xE, 2 + 0xD, 2 + 0xA, 2 + 0x0, 2 + 0x8, 2 + 0x0], "\ufffd" * 3),  # a surrogate
    ],
)
def test_broken_digits_decode_to_replacement_characters(ids: list[int], text: str) -> None:
    assert CharacterVocabulary("ab").decode(ids) == text
    assert "".join(pieces(CharacterVocabulary("ab"), ids)) == text


def test_bytes_are_those_of_utf8() -> None:
    np.testing.assert_array_equal(ByteVocabulary().encode(TEXT), list(TEXT.encode()))
    assert Bytes().train([]).vocab_size == 256
    assert ByteVocabulary().decode([0x61, 0xC3, 0x62]) == "a\ufffdb"


def test_byte_pairs_merge_up_to_the_size_asked_for() -> None:
    assert VOCABULARIES[BytePairs(283)].vocab_size == 283
    assert len(VOCABULARIES[BytePairs(283)].encode(TEXT)) < len(TEXT.encode()) / 2
    assert BytePairs(283).train(["aaaa"]).vocab_size < 283
    assert BytePairs(283).train([TEXT]) == VOCABULARIES[BytePairs(283)]


@settings(max_examples=30, deadline=None)
@given(text=known_and_unknown)
def test_the_tokenizers_library_reads_byte_pair_files_and_agrees(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "tokenizer.json"
    vocabulary = VOCABULARIES[BytePairs(283)]
    if not path.exists():
        vocabulary.save(path)
    library = tokenizers.Tokenizer.from_file(str(path))
    np.testing.assert_array_equal(vocabulary.encode(text), library.encode(text).ids)
    assert library.decode(library.encode(text).ids) == text


@every_kind
def test_a_saved_vocabulary_loads_as_the_same_value(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text("what was there before")
    vocabulary.save(path)
    assert load(path) == vocabulary and type(load(path)) is type(vocabulary)
    np.testing.assert_array_equal(load(str(path)).encode(TEXT), vocabulary.encode(TEXT))
    json.loads(path.read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["vocabulary.json"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    ByteVocabulary().save(tmp_path / "vocabulary.json")
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        CharacterVocabulary("ab").save(tmp_path / "vocabulary.json")
    assert load(tmp_path / "vocabulary.json") == ByteVocabulary()
    assert [p.name for p in tmp_path.iterdir()] == ["vocabulary.json"]


WORDS = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?")).to_str()
NO_BYTES = tokenizers.Tokenizer(tokenizers.models.BPE()).to_str()


@pytest.mark.parametrize(
    ("content", "received"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "can't decode byte 0xff"),
        (b"[1, 2]", "received tuple"),
        (b'{"characters": "ab"}', "received one with characters"),
        (b'{"type": "transformer_jax.tokenize:Bytes"}', "received Bytes"),
        (b'{"type": "transformer_jax.tokenize:CharacterVocabulary", "characters": 7}', "received 7"),
        (b'{"type": "transformer_jax.tokenize:CharacterVocabulary", "characters": "ba"}', "sorted by code point, received 'ba'"),
        (b'{"type": "transformer_jax.tokenize:CharacterVocabulary", "characters": "aa"}', "sorted by code point, received 'aa'"),
        (b'{"model": {}}', "expected one that the tokenizers library reads"),
    ],
)
def test_load_refuses_what_is_no_vocabulary(content: bytes, received: str, tmp_path: Path) -> None:
    (tmp_path / "some.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.json: expected a vocabulary, as Vocabulary\.save writes it, received .*" + received):
        load(tmp_path / "some.json")


@pytest.mark.parametrize(("content", "text", "ids", "back"), [(WORDS, "a", [0], "a"), (WORDS, "b", [1], "?"), (NO_BYTES, "ab", [], "")])
def test_load_takes_a_tokenizer_json_that_loses_something(content: str, text: str, ids: list[int], back: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    vocabulary = load(tmp_path / "tokenizer.json")
    assert isinstance(vocabulary, PublishedVocabulary)
    assert vocabulary.encode(text).tolist() == ids and vocabulary.decode(ids) == back
    vocabulary.save(tmp_path / "again.json")
    assert load(tmp_path / "again.json") == vocabulary


def test_a_published_vocabulary_knows_what_goes_around_a_text_and_writes_it_as_it_comes() -> None:
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"<0xC3>": 0, "<0xA9>": 1, "▁a": 2, "b": 3, "▁": 4, "a": 5}, [("▁", "a")], byte_fallback=True))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    library.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<s>", "</s>"])
    library.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 6), ("</s>", 7)])
    vocabulary = PublishedVocabulary(library.to_str())
    assert vocabulary.vocab_size == 8
    assert vocabulary.encode("a abé").tolist() == [2, 2, 3, 0, 1]
    assert vocabulary.encode_whole("a").tolist() == [6, 2, 7]
    assert list(pieces(vocabulary, [6, 2, 2, 3, 0, 1, 7])) == ["a", " a", "b", "é"]
    assert vocabulary.decode([2, 0]) == library.decode([2, 0])
    with pytest.raises(ValueError, match="expected integers from 0 to 7, received 8"):
        vocabulary.decode([8])


def test_byte_pairs_with_special_tokens_are_published_ones_which_know_them(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_str(BytePairs(283).train([TEXT]).tokenizer_json)
    size = library.get_vocab_size()
    library.add_special_tokens(["<s>", "<mask>"])
    library.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", size)])
    library.save(str(tmp_path / "tokenizer.json"))
    vocabulary = load(tmp_path / "tokenizer.json")
    assert isinstance(vocabulary, PublishedVocabulary)
    assert vocabulary.encode_whole("\0").tolist() == [size, *vocabulary.encode("\0")] and vocabulary.id_of("<mask>") == size + 1
    assert vocabulary.decode([size, *vocabulary.encode("a\0"), size + 1]) == "a\0"
    with pytest.raises(ValueError, match="expected a byte-level BPE without special tokens, received one with <mask>, <s>"):
        BytePairVocabulary(library.to_str())


def test_load_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        load(tmp_path / "missing.json")


def test_byte_pairs_that_lack_a_byte_or_change_text_are_refused() -> None:
    content = json.loads(BytePairs(283).train([TEXT]).tokenizer_json)
    for change in ({"normalizer": {"type": "Lowercase"}}, {"normalizer": {"type": "NFC"}}, {"pre_tokenizer": None}):
        with pytest.raises(ValueError, match="expected a byte-level BPE that gives text back, received one that makes"):
            BytePairVocabulary(json.dumps(content | change))
    tokens = [token for token in content["model"]["vocab"] if token != "Ā"]  # the byte 0
    content["model"] |= {"vocab": {token: n for n, token in enumerate(tokens)}}
    with pytest.raises(ValueError, match="expected a byte-level BPE that gives text back"):
        BytePairVocabulary(json.dumps(content))


@every_kind
def test_a_lone_surrogate_is_refused_by_name_and_place(vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match=r"text: expected Unicode text, received the lone surrogate '\\ud83e' at index 2; text.encode"):
        vocabulary.encode("ab\ud83e")


@pytest.mark.parametrize("tokenizer", [Characters(), BytePairs(283)])
def test_training_refuses_a_lone_surrogate(tokenizer: Characters | BytePairs) -> None:
    with pytest.raises(ValueError, match=r"surrogate"):
        tokenizer.train(["ab", "c\ud83e"])


@every_kind
@pytest.mark.parametrize("past", [False, True])
def test_an_id_out_of_range_is_refused(vocabulary: Vocabulary, past: bool) -> None:
    bad = vocabulary.vocab_size if past else -1
    with pytest.raises(ValueError, match=f"ids: expected integers from 0 to {vocabulary.vocab_size - 1}, received {bad}"):
        vocabulary.decode(np.array([1, bad]))
    with pytest.raises(ValueError, match=f"received {bad}"):
        list(pieces(vocabulary, [1, bad]))


def test_a_vocab_size_without_room_for_the_bytes_is_refused() -> None:
    assert BytePairs(256).train([TEXT]).vocab_size == 256
    with pytest.raises(ValueError, match=r"BytePairs\.vocab_size: expected at least 256, a token for each byte, received 255"):
        BytePairs(255)


@pytest.mark.parametrize("vocabulary", [VOCABULARIES[Characters()], CharacterVocabulary("")], ids=["known", "unknown"])
def test_characters_encode_a_megabyte_in_well_under_a_second(vocabulary: Vocabulary) -> None:
    text = (TEXT * 4327)[:1_000_003]
    start = time.process_time()
    vocabulary.encode(text)
    assert time.process_time() - start < 0.5
