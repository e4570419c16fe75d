import hashlib
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.config import from_json, to_json
from transformer_jax.data import Pairs, batches
from transformer_jax.tokenize import BytePairs, Bytes, Characters

CONTEXT = 11


@pytest.fixture
def file(tmp_path: Path):
    """`file(content)`: a path with these lines, or these bytes."""

    def write(content: bytes | list[str], name: str = "pairs.tsv") -> str:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else "".join(f"{line}\n" for line in content).encode())
        return str(tmp_path / name)

    return write


LINES = [f"{n}+{m}\t{n + m}" for n in range(13) for m in range(7)]


def read_back(prepared, part) -> list[str]:
    """The lines that examples were made of; what is behind the padding would show as an error."""
    examples = [getattr(prepared, part)[n] for n in range(len(getattr(prepared, part)))]
    sides = [[example[side] for side in ("source", "target")] for example in examples]
    for ids in (ids for pair in sides for ids in pair):
        assert ids.shape == (CONTEXT,) and ids.dtype == np.int32
        assert np.all(ids[(ids >= 0).sum() :] == -1)
    return ["\t".join(prepared.vocabulary.decode(ids[: (ids >= 0).sum()]) for ids in pair) for pair in sides]


@pytest.mark.parametrize("tokenizer", [Characters(), Bytes(), BytePairs(271)])
def test_examples_are_the_lines_each_on_one_side_in_their_order(file, tokenizer):
    prepared = Pairs((file(LINES),), tokenizer=tokenizer).prepare(CONTEXT)
    train, held_out = read_back(prepared, "train"), read_back(prepared, "held_out")
    assert len(held_out) == 9 and not set(train) & set(held_out)
    assert [line for line in LINES if line in train] == train and [line for line in LINES if line in held_out] == held_out
    assert len(train) + len(held_out) == len(LINES)


def test_held_out_are_the_sources_whose_sha256_comes_first(file):
    prepared = Pairs((file(LINES),), held_out=0.25).prepare(CONTEXT)
    sources = sorted((line.split("\t")[0] for line in LINES), key=lambda source: hashlib.sha256(source.encode()).hexdigest())
    assert sorted(line.split("\t")[0] for line in read_back(prepared, "held_out")) == sorted(sources[:23])


def test_equal_sources_are_on_one_side_and_the_order_of_lines_does_not_matter(file):
    lines = [f"{n % 17}\t{n}" for n in range(101)]
    prepared = Pairs((file(lines),), held_out=0.3).prepare(CONTEXT)
    train, held_out = ({line.split("\t")[0] for line in read_back(prepared, part)} for part in ("train", "held_out"))
    assert len(held_out) == 5 and len(train) == 12 and not train & held_out
    turned = Pairs((file(lines[::-1], "turned.tsv"),), held_out=0.3).prepare(CONTEXT)
    assert read_back(turned, "held_out") == read_back(prepared, "held_out")[::-1]
    assert turned.digest != prepared.digest


def test_one_vocabulary_is_trained_on_both_sides_of_the_training_part_only(file):
    prepared = Pairs((file(LINES),)).prepare(CONTEXT)
    held_out = read_back(prepared, "held_out")
    other = Pairs((file([line + "!" if line in held_out else line for line in LINES], "other.tsv"),)).prepare(CONTEXT)
    assert other.vocabulary == prepared.vocabulary == Characters().train(line.replace("\t", "") for line in LINES)
    assert read_back(other, "held_out") == [line + "!" for line in held_out]


def test_several_files_and_windows_line_ends_and_a_last_line_without_one(file):
    whole = Pairs((file(LINES),)).prepare(CONTEXT)
    first, last = file("\r\n".join(LINES[:31]).encode(), "a.tsv"), file("\n".join(LINES[31:]).encode(), "b.tsv")
    parts = Pairs((first, last)).prepare(CONTEXT)
    assert parts.digest == whole.digest and parts.vocabulary == whole.vocabulary
    assert read_back(parts, "train") == read_back(whole, "train") and read_back(parts, "held_out") == read_back(whole, "held_out")


def test_only_line_ends_end_lines(file):
    lines = [f"{n}a\u2028b\x0bc\x1cd\te" for n in range(23)]
    prepared = Pairs((file(lines),)).prepare(CONTEXT)
    assert sorted(read_back(prepared, "train") + read_back(prepared, "held_out")) == sorted(lines)


def test_the_longest_source_and_target_fit(file):
    lines = [*LINES, "s" * CONTEXT + "\t" + "t" * (CONTEXT - 1)]
    prepared = Pairs((file(lines),), tokenizer=Bytes()).prepare(CONTEXT)
    assert lines[-1] in read_back(prepared, "train") + read_back(prepared, "held_out")


def test_the_summary_is_exact_and_there_are_no_classes(file):
    prepared = Pairs((file(LINES),)).prepare(CONTEXT)
    assert prepared.summary == "91 pairs (82 to train on, 9 held out), vocabulary of 27"
    assert prepared.labels == ()


def test_pairs_make_batches(file):
    prepared = Pairs((file(LINES),)).prepare(CONTEXT)
    element = next(batches(prepared.train, batch=5, seed=0))
    assert {name: (a.shape, a.dtype) for name, a in element.items()} == dict.fromkeys(("source", "target"), ((5, CONTEXT), np.int32))


def test_examples_of_pairs_cannot_be_written_to(file):
    with pytest.raises(ValueError, match="read-only"):
        Pairs((file(LINES),)).prepare(CONTEXT).train[0]["source"][0] = 1


def test_pairs_survive_json(file):
    config = Pairs(("a.tsv", "b.tsv"), tokenizer=BytePairs(271), held_out=0.2)
    assert from_json(to_json(config), Pairs) == config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no tab", "expected source<TAB>target, received no tab"),
        ("", "expected source<TAB>target, received no tab"),
        ("a\tb\tc", "expected source<TAB>target, received 2 tabs"),
        ("\tb", "expected source<TAB>target, received an empty source"),
        ("a\t", "expected source<TAB>target, received an empty target"),
        ("s" * 12 + "\tb", r"expected a source of at most 11 tokens \(the model's max_length\), received 12; shorten it, or give a larger max_length"),
        ("a\t" + "t" * 11, r"expected a target of at most 10 tokens \(the model's max_length less one for the end\), received 11; shorten it"),
    ],
)
@pytest.mark.parametrize("at", [0, 37, 91])
def test_a_bad_line_is_named(file, line, message, at):
    first, second = file(LINES, "first.tsv"), file([*LINES[:at], line, *LINES[at:]], "second.tsv")
    with pytest.raises(ValueError, match=rf"Pairs\.files: .*second\.tsv, line {at + 1}: {message}"):
        Pairs((first, second), tokenizer=Bytes()).prepare(CONTEXT)


@pytest.mark.parametrize(
    ("lines", "held_out", "message"),
    [
        (["a\tb"] * 31, 0.5, "received 1, of which 0 would be held out; give more, or another Pairs.held_out than 0.5"),
        (["a\tb", "c\td", "e\tf", "g\th"], 0.1, "received 4, of which 0 would be held out"),
        (["a\tb", "c\td", "e\tf", "g\th"], 0.9, "received 4, of which 4 would be held out"),
    ],
)
def test_too_few_lines_are_refused(file, lines, held_out, message):
    with pytest.raises(ValueError, match=rf"Pairs\.files: expected enough different texts to train on some and hold out others, {message}"):
        Pairs((file(lines),), held_out=held_out).prepare(CONTEXT)


def test_files_that_are_empty_or_none_are_refused(file):
    with pytest.raises(ValueError, match=r"Pairs\.files: expected an example to a line, received only empty files: .*pairs\.tsv"):
        Pairs((file([]),)).prepare(CONTEXT)
    with pytest.raises(ValueError, match=r"Pairs\.files: expected at least one file, received none"):
        Pairs(())


@pytest.mark.parametrize("held_out", [0.0, 1.0, float("nan")])
def test_held_out_is_a_fraction_of_pairs(held_out):
    with pytest.raises(ValueError, match=rf"Pairs\.held_out: expected a fraction between 0 and 1, both excluded, received {held_out}"):
        Pairs(("a.tsv",), held_out=held_out)


def test_a_context_without_tokens_is_refused_for_pairs(file):
    with pytest.raises(ValueError, match="context: expected at least 1 token, received 0"):
        Pairs((file(LINES),)).prepare(0)


def test_a_missing_or_a_binary_file_of_pairs_is_named(file):
    with pytest.raises(FileNotFoundError, match=r"Pairs\.files: expected UTF-8 text files, received 'no\.tsv', which does not exist"):
        Pairs(("no.tsv",)).prepare(CONTEXT)
    with pytest.raises(ValueError, match=r"Pairs\.files: expected UTF-8 text files, received '.*pairs\.tsv', whose byte 4 \(0x89\) is not UTF-8"):
        Pairs((file(b"a\tb\n\x89PNG"),)).prepare(CONTEXT)
