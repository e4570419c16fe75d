import dataclasses
import itertools
import json
import re
from pathlib import Path

import grain
import numpy as np
import pytest

from transformer_jax.config import from_json, to_json
from transformer_jax.data import Text, batches
from transformer_jax.tokenize import BytePairs, Bytes, Characters

CONTEXT, BATCH = 7, 3


@pytest.fixture
def file(tmp_path: Path) -> str:
    """251 characters, of which the last 25 are held out by default and have a "z" that the rest has not."""
    text = "".join("abcdefghijklm"[n * n % 13] for n in range(250)) + "z"
    (tmp_path / "some.txt").write_text(text)
    return str(tmp_path / "some.txt")


def tokens(dataset: grain.MapDataset) -> np.ndarray:
    return np.stack([dataset[n]["tokens"] for n in range(len(dataset))])


def test_training_examples_are_all_windows(file: str) -> None:
    prepared = Text((file,), tokenizer=Bytes()).prepare(CONTEXT)
    expected = np.lib.stride_tricks.sliding_window_view(np.frombuffer(Path(file).read_bytes()[:226], np.uint8), CONTEXT + 1)
    assert len(prepared.train) == 226 - CONTEXT
    np.testing.assert_array_equal(tokens(prepared.train), expected)
    assert prepared.train[0].keys() == {"tokens"} and prepared.train[0]["tokens"].dtype == np.int32


@pytest.mark.parametrize("context", [1, 6, 7, 8, 23, 24])
def test_held_out_examples_predict_each_token_once(file: str, context: int) -> None:
    prepared = Text((file,), tokenizer=Bytes()).prepare(context)
    end = np.frombuffer(Path(file).read_bytes()[226:], np.uint8)
    windows = tokens(prepared.held_out)
    predicted = (len(end) - 1) // context * context
    assert windows.shape == (predicted // context, context + 1)
    np.testing.assert_array_equal(windows[:, :-1].ravel(), end[:predicted])
    np.testing.assert_array_equal(windows[:, 1:].ravel(), end[1 : predicted + 1])


def test_the_tokenizer_sees_the_training_part_only(file: str) -> None:
    prepared = Text((file,)).prepare(5)
    assert prepared.vocabulary == Characters().train([Path(file).read_text()[:226]])
    assert prepared.held_out[-1]["tokens"][-2:].tolist() == [prepared.vocabulary.vocab_size - 16 + digit for digit in (0x7, 0xA)]  # z


def test_files_are_joined_in_the_order_given(file: str, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_bytes("é\r\n漢".encode() * 31)
    prepared = Text((str(other), file), tokenizer=Bytes(), held_out=0.37).prepare(CONTEXT)
    assert (
        prepared.vocabulary.decode(tokens(prepared.train)[:, 0])
        == (("é\r\n漢" * 31) + Path(file).read_text())[: round(375 * 0.63)].encode()[:-CONTEXT].decode()
    )


def test_without_files_it_is_the_help_of_python_and_the_summary_counts_it() -> None:
    prepared = Text(tokenizer=BytePairs(307)).prepare(CONTEXT)
    text = prepared.vocabulary.decode(prepared.train[n]["tokens"][0] for n in range(1009))
    assert text.startswith('The "assert" statement')
    count = len(prepared.train) + CONTEXT
    assert re.fullmatch(
        rf"[\d,]+ characters, [\d,]+ tokens \({count:,} to train on, [\d,]+ held out\), vocabulary of 307",
        prepared.summary,
    )


def test_the_summary_is_exact(file: str) -> None:
    assert Text((file,)).prepare(CONTEXT).summary == "251 characters, 252 tokens (226 to train on, 26 held out), vocabulary of 23"


def test_examples_cannot_be_written_to(file: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        Text((file,)).prepare(CONTEXT).train[0]["tokens"][0] = 1


def test_the_config_survives_json(file: str) -> None:
    config = Text((file,), tokenizer=BytePairs(307), held_out=0.2)
    assert from_json(to_json(config), Text) == config


def take(iterator: grain.DatasetIterator, calls: int) -> np.ndarray:
    return np.stack([element["tokens"] for element in itertools.islice(iterator, calls)])


def test_a_batch_has_examples_and_tokens(file: str) -> None:
    train = Text((file,)).prepare(CONTEXT).train
    element = next(batches(train, batch=BATCH, seed=11))
    assert element["tokens"].shape == (BATCH, CONTEXT + 1) and element["tokens"].dtype == np.int32


def test_an_epoch_has_each_example_once_and_the_next_another_order() -> None:
    batched = batches(grain.MapDataset.range(77).map(lambda n: {"tokens": np.int32(n)}), batch=7, seed=11)
    first, second = take(batched, 11).ravel(), take(batched, 11).ravel()
    np.testing.assert_array_equal(np.sort(first), np.arange(77))
    np.testing.assert_array_equal(np.sort(second), np.arange(77))
    assert np.any(first != np.arange(77)) and np.any(first != second)


def test_batches_go_on_past_the_end_of_an_epoch_and_stay_full(file: str) -> None:
    train = Text((file,), tokenizer=Bytes()).prepare(23).train
    assert len(train) == 203
    assert take(batches(train, batch=5, seed=11), 46).shape == (46, 5, 24)


def test_a_batch_across_the_end_of_an_epoch_loses_no_example() -> None:
    batched = batches(grain.MapDataset.range(7).map(lambda n: {"tokens": np.int32(n)}), batch=3, seed=11)
    drawn = take(batched, 14).reshape(6, 7)
    np.testing.assert_array_equal(np.sort(drawn, 1), np.tile(np.arange(7), (6, 1)))


def test_a_single_example_is_repeated() -> None:
    single = grain.MapDataset.range(1).map(lambda n: {"tokens": np.int32(n)})
    np.testing.assert_array_equal(take(batches(single, batch=3, seed=11), 2), np.zeros((2, 3)))


def test_the_order_depends_on_the_seed_alone(file: str) -> None:
    train = Text((file,)).prepare(CONTEXT).train
    first, again, other = (take(batches(train, batch=BATCH, seed=seed), 70) for seed in (11, 11, 13))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_the_largest_seed_is_taken(file: str) -> None:
    train = Text((file,)).prepare(CONTEXT).train
    assert np.any(take(batches(train, batch=BATCH, seed=2**32 - 1), 5) != take(batches(train, batch=BATCH, seed=0), 5))


@pytest.mark.parametrize("calls", [0, 1, 17, 75, 80])
def test_a_restored_iterator_goes_on_exactly(file: str, calls: int) -> None:
    """An epoch is 73 batches; a state goes through JSON, as it does in a checkpoint."""
    train = Text((file,)).prepare(CONTEXT).train
    iterator = batches(train, batch=BATCH, seed=11)
    for _ in range(calls):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 20)
    resumed = batches(train, batch=BATCH, seed=11)
    resumed.set_state(state)
    np.testing.assert_array_equal(take(resumed, 20), expected)
    iterator.set_state(state)
    np.testing.assert_array_equal(take(iterator, 20), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch: expected at least 1, received 0"),
        ({"seed": -1}, r"Seed must be an integer between 0 and 2\*\*32-1 \(got seed=-1\)"),
    ],
)
def test_batches_refuse_sizes_and_seeds_out_of_range(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(grain.MapDataset.range(7), **({"batch": 2, "seed": 5} | change))


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_held_out_is_a_fraction(held_out: float) -> None:
    with pytest.raises(ValueError, match=rf"Text\.held_out: expected a fraction between 0 and 1, both excluded, received {held_out}"):
        Text(held_out=held_out)


def test_a_context_without_tokens_is_refused(file: str) -> None:
    with pytest.raises(ValueError, match="context: expected at least 1 token, received 0"):
        Text((file,)).prepare(0)


def test_a_missing_file_is_named(file: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"Text\.files: expected UTF-8 text files, received 'no\.txt', which does not exist \(the current folder is /"):
        Text((file, "no.txt")).prepare(CONTEXT)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"Text\.files: expected UTF-8 text files, received the folder '{tmp_path}'; name the files in it"):
        Text((str(tmp_path),)).prepare(CONTEXT)


def test_a_string_of_files_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Text\.files: expected a tuple of str, received 'some\.txt'; put it in a tuple"):
        Text("some.txt")  # type: ignore[arg-type]


def test_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"Text\.files: expected text, received only empty files: .*empty\.txt"):
        Text((str(tmp_path / "empty.txt"),)).prepare(CONTEXT)


def test_a_binary_file_is_refused_with_the_place_of_the_byte(tmp_path: Path) -> None:
    (tmp_path / "some.bin").write_bytes(b"text\r\n" + b"\x89PNG")
    with pytest.raises(
        ValueError, match=r"Text\.files: expected UTF-8 text files, received '.*some\.bin', whose byte 6 \(0x89\) is not UTF-8; convert it: iconv"
    ):
        Text((str(tmp_path / "some.bin"),)).prepare(CONTEXT)


@pytest.mark.parametrize(("held_out", "parts"), [(0.1, "226 to train on and 25 held out"), (0.9, "25 to train on and 226 held out")])
def test_a_text_too_short_is_refused_with_both_sizes(file: str, held_out: float, parts: str) -> None:
    config = Text((file,), tokenizer=Bytes(), held_out=held_out)
    message = rf"Text\.files: expected at least 26 tokens \(context \+ 1\) in either part, received {parts}; give more text, a smaller context"
    with pytest.raises(ValueError, match=message):
        config.prepare(25)
    prepared = config.prepare(24)
    assert min(len(prepared.train), len(prepared.held_out)) == 1


def test_what_is_prepared_cannot_be_changed(file: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Text((file,)).prepare(CONTEXT).summary = ""  # type: ignore[misc]
