"""What a published folder says of how its model writes, as transformers understands it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import from_pretrained, generate
from transformer_jax.checkpoints import writing
from transformer_jax.generation import Sampling

GOLDENS = Path(__file__).parents[1] / "zoo" / "goldens"


@pytest.fixture
def quick() -> Iterator[None]:
    """Compiles without most optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def said(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Any:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return writing(folder)


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({}, Sampling(0.0)),
        ({"do_sample": True}, Sampling(1.0, top_k=50)),
        ({"do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 0.9}, Sampling(0.6, top_p=0.9)),
        ({"do_sample": True, "temperature": 1, "top_k": 5, "top_p": 1}, Sampling(1.0, top_k=5, top_p=1.0)),
        ({"do_sample": None, "temperature": 0.6, "top_k": 5, "top_p": 0.5}, Sampling(0.0, top_k=5, top_p=0.5)),
        ({"suppress_tokens": [9, 3], "bad_words_ids": [[3], [5]]}, Sampling(0.0, never=(3, 5, 9))),
        ({"eos_token_id": [2, 5], "bad_words_ids": [[3], [5]]}, Sampling(0.0, never=(3,))),
    ],
    ids=["nothing", "drawn", "all", "integers", "of no use but beside a flag", "never", "an end is no bad word"],
)
def test_how_tokens_are_drawn(tmp_path: Path, fields: dict[str, Any], sampling: Sampling) -> None:
    assert said(tmp_path, {}, fields).sampling == sampling
    (tmp_path / "generation_config.json").unlink()
    assert said(tmp_path, fields).sampling == sampling


@pytest.mark.parametrize(
    ("config", "generation", "stop", "begin"),
    [
        ({}, None, (), None),
        ({"eos_token_id": 2, "bos_token_id": 1}, None, (2,), 1),
        ({"eos_token_id": 2, "decoder_start_token_id": 4}, {}, (2,), 4),
        ({"eos_token_id": 2}, {"eos_token_id": [7, 8]}, (7, 8), None),
        ({"eos_token_id": 2}, {"eos_token_id": None}, (2,), None),
        ({"bos_token_id": 1, "decoder_start_token_id": 0}, {"eos_token_id": 3}, (3,), 0),
        ({"bos_token_id": 1, "decoder_start_token_id": None}, None, (), 1),
        ({}, {"decoder_start_token_id": 6}, (), 6),
    ],
)
def test_which_tokens_begin_and_end_a_text(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, stop: tuple[int, ...], begin: int | None
) -> None:
    how = said(tmp_path, config, generation)
    assert (how.stop, how.begin) == (stop, begin)


def test_beside_a_generation_config_only_special_tokens_of_the_model_count(tmp_path: Path) -> None:
    how = said(tmp_path, {"do_sample": True, "top_p": 0.5, "num_beams": 4, "max_new_tokens": 9, "suppress_tokens": [3], "eos_token_id": 2}, {})
    assert how.sampling == Sampling(0.0) and how.not_done == {} and how.max_new_tokens is None and how.stop == (2,)


def test_what_is_asked_for_and_not_done_is_named(tmp_path: Path) -> None:
    idle = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_p": None, "length_penalty": 1.0, "transformers_version": "5.0"}
    how = said(tmp_path, {}, {**idle, "num_beams": 4, "bad_words_ids": [[5], [6, 7]], "forced_bos_token_id": 3, "max_new_tokens": 11})
    assert how.not_done == {"num_beams": 4, "forced_bos_token_id": 3, "bad_words_ids": [[6, 7]]}
    assert how.max_new_tokens == 11 and how.sampling.never == (5,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"do_sample": "yes"}, "do_sample: expected true or false, received 'yes'"),
        ({"temperature": -0.5}, "temperature: expected a number of at least 0, received -0.5"),
        ({"top_k": 2.5}, "top_k: expected an integer of at least 0, received 2.5"),
        ({"top_p": "a"}, r"top_p: expected a probability in \(0, 1\], received 'a'"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected an integer of at least 1, received 0"),
        ({"eos_token_id": []}, r"eos_token_id: expected a token, or a list of tokens, received \[\]"),
        ({"eos_token_id": True}, "eos_token_id: expected a token, or a list of tokens, received True"),
        ({"decoder_start_token_id": [1]}, r"decoder_start_token_id: expected a token, received \[1\]"),
        ({"suppress_tokens": [-1]}, r"suppress_tokens: expected a list of tokens, received \[-1\]"),
        ({"bad_words_ids": [5]}, r"bad_words_ids: expected a list of lists of tokens, received \[5\]"),
        ({"bad_words_ids": [[]]}, r"bad_words_ids: expected a list of lists of tokens, received \[\[\]\]"),
        ([1], "expected an object, received list"),
    ],
    ids=str,
)
def test_a_field_that_is_not_what_it_is_to_be_is_refused_with_the_file(tmp_path: Path, fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"generation_config\.json: " + message):
        said(tmp_path, {}, fields)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff"])
def test_a_file_that_is_no_json_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"generation_config\.json: expected JSON, received a file that is none: "):
        writing(tmp_path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("case", "generation", "expected"),
    [
        ("llama", {"eos_token_id": [44, 28], "suppress_tokens": [4]}, [14, 28]),
        ("llama", {"eos_token_id": [28, 19], "bad_words_ids": [[57], [33], [19]]}, [4, 28]),
        ("gpt2", {"bad_words_ids": [[57], [55]], "eos_token_id": 39}, [26, 5, 51, 51, 51, 51, 51, 6, 51, 51, 5, 39]),
        ("t5", {"decoder_start_token_id": 0, "eos_token_id": 1, "suppress_tokens": [53]}, [45, 45, 45, 33, 55, 17, 33, 33, 17, 34, 34, 17, 34, 34]),
        ("t5", {"decoder_start_token_id": 7, "bad_words_ids": [[53], [17]], "eos_token_id": [2, 9]}, [33, *13 * [34]]),
    ],
)
def test_the_text_is_that_of_transformers(tmp_path: Path, case: str, generation: dict[str, Any], expected: list[int]) -> None:
    """`generate(tokens, max_new_tokens=14)` of transformers 5.23 on these folders, for the tokens 1, 27, 30."""
    folder = tmp_path / case
    shutil.copytree(GOLDENS / case, folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    model, variables = from_pretrained(folder)
    how, tokens = writing(folder), jnp.array([[1, 27, 30]])
    inputs = {"tokens": jnp.full((1, 1), how.begin), "source": tokens} if hasattr(model, "encode") else {"tokens": tokens}
    new = np.asarray(generate(model, variables, max_new_tokens=14, sampling=how.sampling, stop=how.stop, **inputs))[0].tolist()
    assert new == expected + (14 - len(expected)) * [how.stop[0]]
