"""Python's library as data, on a library of a few files, and on the real one where that is the point."""

import lzma
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from transformer_jax.data import PythonPackages, PythonSource, PythonTokens, python_library
from transformer_jax.data.python_library import KINDS, Source, compressed_bits, kinds, library, trigram_errors
from transformer_jax.tokenize import Bytes

CODE = 'def f(x):  # why\n    return f"{x}" + 0x1f\n'


def test_each_character_has_the_kind_of_its_token() -> None:
    letters = dict(zip("ckn/0o.s", KINDS))
    text = "def f(x):  # why\n    return 'a' + 0x1f\n"
    wanted = "kkk.nono" + "o" + "..ccccc/" + "....kkkkkk.sss.o.0000/"
    labels = kinds(text)
    assert labels is not None and [KINDS[n] for n in labels] == [letters[c] for c in wanted]


def test_a_string_over_lines_is_one_token_and_what_is_no_python_has_no_kinds() -> None:
    labels = kinds('x = """a\nb"""\n')
    assert labels is not None and [KINDS[n] for n in labels[4:12]] == ["string"] * 8
    assert kinds("x = (") is None and kinds('"""') is None
    fstring = kinds(CODE)
    assert fstring is not None and KINDS[fstring[CODE.index('f"')]] == "string"


def test_the_table_of_trigrams_is_that_of_a_plain_count() -> None:
    rng = np.random.default_rng(0)
    train, held_out = ([("".join(rng.choice(list("abé"), n)), rng.integers(0, 3, n).astype(np.int32)) for n in sizes] for sizes in ((50, 7), (13, 1, 29)))
    counts: dict[str, Counter[int]] = {}
    for text, labels in train:
        for n, label in enumerate(labels.tolist()):
            counts.setdefault(f"\n{text}\n"[n : n + 3], Counter())[label] += 1
    common = sum(counts.values(), Counter()).most_common(1)[0][0]

    def guess(trigram: str) -> int:
        return min(counts[trigram], key=lambda k: (-counts[trigram][k], k)) if trigram in counts else common

    wrong = [guess(f"\n{text}\n"[n : n + 3]) != label for text, labels in held_out for n, label in enumerate(labels)]
    assert trigram_errors(train, held_out) == pytest.approx(np.mean(wrong))


def test_compressed_bits_are_those_of_xz() -> None:
    files = [b"a" * 999, bytes(range(256)) * 3]
    alone, together = compressed_bits(files)
    sizes = [len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) for data in (*files, b"".join(files))]
    assert alone == pytest.approx(8 * (sizes[0] + sizes[1]) / 1767) and together == pytest.approx(8 * sizes[2] / 1767)


def test_the_real_library_is_split_by_file_and_always_the_same() -> None:
    train, held_out = library(0.05)
    assert not {file.path for file in train} & {file.path for file in held_out}
    assert len(held_out) == round(0.05 * (len(train) + len(held_out))) > 10
    assert not [file.path for file in train + held_out if "/test/" in f"/{file.path}" or "site-packages" in file.path]
    assert library(0.05) == (train, held_out)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Source], list[Source]]:
    rng = np.random.default_rng(0)

    def files(count: int, package: str) -> list[Source]:
        return [Source(f"{package}/{n}.py", f"{package} = {n} + {rng.integers(1000)}\n" * 9) for n in range(count)]

    parts = files(5, "one") + files(7, "two") + files(2, "rare"), files(2, "one") + files(3, "two") + [Source("alone.py", "x = 'é'\n")]
    monkeypatch.setattr(python_library, "library", lambda held_out: parts)
    return parts


def test_source_is_all_files_end_to_end(small: tuple[list[Source], list[Source]]) -> None:
    data = PythonSource(Bytes()).prepare(16)
    texts = ["".join(file.text for file in part).encode() for part in small]
    np.testing.assert_array_equal(data.train[3]["tokens"], list(texts[0][3:20]))
    np.testing.assert_array_equal(data.held_out[2]["tokens"], list(texts[1][32:49]))
    assert data.bytes_per_token == 1 and f"{len(texts[1])} held out" not in data.summary


def test_tokens_are_characters_with_their_kinds_file_by_file(small: tuple[list[Source], list[Source]]) -> None:
    data = PythonTokens().prepare(10)
    assert data.labels == KINDS
    example = data.train[0]
    assert data.vocabulary.decode(example["tokens"]) == small[0][0].text[:10]
    assert [KINDS[n] for n in example["labels"][:7]] == ["name"] * 3 + ["space", "operator", "space", "number"]
    last = data.held_out[len(data.held_out) - 1]
    assert (last["tokens"] >= 0).sum() == (last["labels"] >= 0).sum() == len("x = 'é'\n")


def test_passages_are_of_packages_on_both_sides_and_some_of_each_if_asked(small: tuple[list[Source], list[Source]]) -> None:
    data = PythonPackages(2, tokenizer=Bytes()).prepare(32)
    assert data.labels == ("one", "two")
    for part, files in zip((data.train, data.held_out), small):
        for n in range(len(part)):
            text = bytes(part[n]["tokens"][part[n]["tokens"] >= 0].tolist()).decode()
            assert any(text in file.text for file in files if file.path.startswith(data.labels[int(part[n]["label"])]))
    few = PythonPackages(2, tokenizer=Bytes(), labelled=3).prepare(32)
    assert Counter(int(few.train[n]["label"]) for n in range(len(few.train))) == {0: 3, 1: 3}
    assert len(few.held_out) == len(data.held_out)
    with pytest.raises(ValueError, match=r"PythonPackages\.packages: expected at most 2, which this Python's library has, received 3"):
        PythonPackages(3, tokenizer=Bytes()).prepare(32)


@pytest.mark.parametrize(
    ("make", "field"),
    [(lambda: PythonPackages(1), "packages"), (lambda: PythonPackages(labelled=-1), "labelled"), (lambda: PythonSource(held_out=1.0), "held_out")],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ValueError, match=rf"\.{field}: expected"):
        make()
