import os
import resource
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.data import Text, files
from transformer_jax.tokenize import BytePairs, Bytes, ByteVocabulary, Characters, CharacterVocabulary

CONTEXT = 7


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Two files of many blocks; the held out part has a character that the rest has not."""
    monkeypatch.setattr(files, "BLOCK", 101)
    rng = np.random.default_rng(0)
    words = ["to", "be", "or", "naïve", "Ωμέγα", "漢字", "🦉", "don't", "\r\n\r\n", "\t", "the", "question:"]
    for name, count in (("a.txt", 307), ("b.txt", 211)):
        (tmp_path / name).write_bytes(" ".join(rng.choice(words, count)).encode())
    with (tmp_path / "b.txt").open("a", encoding="utf-8") as file:
        file.write(" ∞")
    return str(tmp_path / "a.txt"), str(tmp_path / "b.txt")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


def examples(dataset) -> np.ndarray:
    return np.stack([dataset[n]["tokens"] for n in range(len(dataset))])


def same(a, b) -> None:
    assert (a.vocabulary, a.summary, a.digest) == (b.vocabulary, b.summary, b.digest)
    for one, other in ((a.train, b.train), (a.held_out, b.held_out)):
        np.testing.assert_array_equal(examples(one), examples(other))
        assert one[0]["tokens"].dtype == np.int32


def tokens_file(cache: Path) -> Path:
    (path,) = cache.glob("*/tokens.bin")
    return path


@pytest.mark.parametrize("tokenizer", [Characters(), Bytes(), BytePairs(283)])
@pytest.mark.parametrize("held_out", [0.1, 0.37, 0.9])
def test_with_a_cache_the_examples_are_the_same(texts, cache, tokenizer, held_out):
    config = Text(texts, tokenizer=tokenizer, held_out=held_out)
    expected = config.prepare(CONTEXT)
    for _ in range(2):  # made, and found again
        same(config.replace(cache=str(cache)).prepare(CONTEXT), expected)
    assert len(list(cache.iterdir())) == 1


def test_the_text_of_python_can_be_cached_too(cache):
    cached, expected = (Text(tokenizer=Bytes(), cache=folder).prepare(1009) for folder in (str(cache), ""))
    assert (cached.summary, cached.digest, len(cached.train)) == (expected.summary, expected.digest, len(expected.train))
    np.testing.assert_array_equal(examples(cached.held_out), examples(expected.held_out))


def test_what_is_cached_is_found_again_whatever_the_files_are_called(texts, cache, tmp_path, monkeypatch):
    config = Text(texts, cache=str(cache))
    expected = config.prepare(CONTEXT)
    (tmp_path / "both.txt").write_bytes(b"".join(Path(file).read_bytes() for file in texts))
    monkeypatch.setattr(Characters, "train", None)
    monkeypatch.setattr(CharacterVocabulary, "encode", None)
    same(config.prepare(CONTEXT), expected)
    same(config.replace(files=(str(tmp_path / "both.txt"),)).prepare(CONTEXT), expected)


def test_a_changed_file_is_noticed_though_its_size_and_time_are_the_same(texts, cache):
    config = Text(texts, tokenizer=Bytes(), cache=str(cache))
    before = config.prepare(CONTEXT)
    path = Path(texts[0])
    times, data = path.stat(), path.read_bytes()
    path.write_bytes(b"#" + data[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = config.prepare(CONTEXT)
    assert after.digest != before.digest and after.train[0]["tokens"][0] == ord("#")
    same(after, config.replace(cache="").prepare(CONTEXT))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("change", [{"tokenizer": Bytes()}, {"held_out": 0.2}])
def test_another_tokenizer_or_fraction_makes_other_tokens(texts, cache, change):
    Text(texts, cache=str(cache)).prepare(CONTEXT)
    config = Text(texts, cache=str(cache)).replace(**change)
    same(config.prepare(CONTEXT), config.replace(cache="").prepare(CONTEXT))
    assert len(list(cache.iterdir())) == 2


def test_another_context_uses_the_same_tokens(texts, cache):
    for context in (CONTEXT, 11):
        same(Text(texts, cache=str(cache)).prepare(context), Text(texts).prepare(context))
    assert len(list(cache.iterdir())) == 1


def test_tokens_take_two_bytes_where_they_fit_and_four_where_not(cache, tmp_path):
    characters = "".join(chr(code) for code in range(0x20, 0x10FFFF) if not 0xD800 <= code < 0xE000)
    for count, width in ((65_520, 2), (65_521, 4)):  # and 16 for all other characters
        (tmp_path / "many.txt").write_text(characters[:count] + "ab" * 4000)
        config = Text((str(tmp_path / "many.txt"),), cache=str(cache / str(width)))
        prepared = config.prepare(CONTEXT)
        assert prepared.vocabulary.vocab_size == count + 16
        assert tokens_file(cache / str(width)).stat().st_size == width * (count + 8000)
        assert prepared.train[count - CONTEXT - 1]["tokens"][-1] == count - 1
        assert prepared.vocabulary.decode(prepared.train[count - 20]["tokens"]) == characters[count - 20 : count - 12]


def test_memory_does_not_grow_with_the_text(cache, tmp_path):
    path = tmp_path / "large.txt"
    line = "some words, and some more: naïve\n"
    path.write_bytes(line.encode() * 900_001)
    assert path.stat().st_size > 30e6
    tracemalloc.start()
    try:
        prepared = Text((str(path),), cache=str(cache)).prepare(CONTEXT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 7e6  # some blocks at once; without a cache it takes 300e6
    assert len(prepared.train) > 26e6
    assert prepared.vocabulary.decode(prepared.held_out[-1]["tokens"]) in line * 2


def test_an_error_half_way_leaves_nothing(texts, cache, monkeypatch):
    calls = []

    def fail(self, text):
        calls.append(text)
        if len(calls) == 17:
            raise RuntimeError("half-way")
        return np.frombuffer(text.encode(), np.uint8)

    monkeypatch.setattr(ByteVocabulary, "encode", fail)
    with pytest.raises(RuntimeError, match="half-way"):
        Text(texts, tokenizer=Bytes(), cache=str(cache)).prepare(CONTEXT)
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_not_taken_for_whole(texts, cache):
    script = f"""
        import os, signal
        from transformer_jax.data import Text, files
        from transformer_jax.tokenize import Bytes, ByteVocabulary

        files.BLOCK, encode, calls = 101, ByteVocabulary.encode, []

        def killed(self, text):
            calls.append(text)
            if len(calls) == 17:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(self, text)

        ByteVocabulary.encode = killed
        Text({texts!r}, tokenizer=Bytes(), cache={str(cache)!r}).prepare({CONTEXT})
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(list(cache.iterdir())) == 1  # the half of it
    config = Text(texts, tokenizer=Bytes(), cache=str(cache))
    same(config.prepare(CONTEXT), config.replace(cache="").prepare(CONTEXT))


def test_a_process_that_is_second_takes_what_the_first_has_made(texts, cache, monkeypatch):
    config = Text(texts, tokenizer=Bytes(), cache=str(cache))
    expected, train = config.replace(cache="").prepare(CONTEXT), Bytes.train

    def meanwhile(self, blocks):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bytes, "train", train)
            config.prepare(CONTEXT)
        return train(self, blocks)

    monkeypatch.setattr(Bytes, "train", meanwhile)
    same(config.prepare(CONTEXT), expected)
    assert len(list(cache.iterdir())) == 1


def shorten(tokens: Path) -> None:
    tokens.write_bytes(tokens.read_bytes()[:-1])


def forget_the_counts(tokens: Path) -> None:
    (tokens.parent / "about.json").write_text("{}")


@pytest.mark.parametrize("damage", [shorten, Path.unlink, forget_the_counts])
def test_a_damaged_folder_is_named(texts, cache, damage):
    config = Text(texts, cache=str(cache))
    config.prepare(CONTEXT)
    damage(tokens_file(cache))
    with pytest.raises(ValueError, match=rf"{cache}/[0-9a-f]+: expected the tokens that were written there, received files that cannot be read: .*; remove"):
        config.prepare(CONTEXT)


def test_a_full_disk_is_named_and_nothing_is_left(texts, cache):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1009, before[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written \(File too large\); make room, or give a folder on another disk: '.*cache/[0-9a-f]+'"):
            Text(texts, tokenizer=Bytes(), cache=str(cache)).prepare(CONTEXT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(cache.iterdir()) == []


def test_empty_and_short_texts_are_refused_as_without_a_cache(texts, cache, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(ValueError, match=r"Text\.files: expected text, received only empty files: .*empty\.txt"):
        Text((str(tmp_path / "empty.txt"),), cache=str(cache)).prepare(CONTEXT)
    with pytest.raises(ValueError, match="received 1 to train on and 0 held out"):
        Text((str(tmp_path / "empty.txt"), str(tmp_path / "short.txt")), tokenizer=Bytes(), cache=str(cache)).prepare(CONTEXT)


def test_a_byte_that_is_not_utf_8_is_named(texts, cache):
    with Path(texts[1]).open("ab") as file:
        place = file.tell()
        file.write(b"\xff")
    with pytest.raises(ValueError, match=rf"Text\.files: expected UTF-8 text files, received '.*b\.txt', whose byte {place} \(0xff\) is not UTF-8"):
        Text(texts, cache=str(cache)).prepare(CONTEXT)


def test_examples_of_a_cache_cannot_change_it(texts, cache):
    train = Text(texts, cache=str(cache)).prepare(CONTEXT).train
    before = train[0]["tokens"].copy()
    train[0]["tokens"][:] = 0
    np.testing.assert_array_equal(train[0]["tokens"], before)
