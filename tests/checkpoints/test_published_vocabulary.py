"""The tokenizer.json beside a published model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from transformer_jax.checkpoints import published_vocabulary
from transformer_jax.tokenize import load


def test_it_is_the_one_in_the_folder_which_may_leave_tokens_of_the_model_unused(published: Callable[..., Path], tmp_path: Path) -> None:
    folder = published(tmp_path / "llama", "llama")
    vocabulary = published_vocabulary(folder, 61)
    assert vocabulary == load(folder / "tokenizer.json") and vocabulary.vocab_size < 61
    assert published_vocabulary(str(folder), vocabulary.vocab_size) == vocabulary


def test_one_that_is_missing_or_larger_than_the_model_is_refused(published: Callable[..., Path], tmp_path: Path) -> None:
    folder = published(tmp_path / "llama", "llama")
    size = load(folder / "tokenizer.json").vocab_size
    message = rf"llama/tokenizer\.json: expected a tokenizer of at most {size - 1} tokens \(the model's vocab_size\), received one of {size}; take the one"
    with pytest.raises(ValueError, match=message):
        published_vocabulary(folder, size - 1)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"llama: expected a tokenizer\.json beside config\.json, received a folder without; transformers writes it"):
        published_vocabulary(folder, 61)
