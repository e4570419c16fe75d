"""Which tokens may be drawn, against numpy, and how often each is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax.config import from_json, to_json
from transformer_jax.generation import Sampling

DRAWS = 4000


def draw(sampling: Sampling, logits: Any, count: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Tokens `[count, B]`, each with a key of its own."""
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.vmap(lambda key: sampling(jnp.asarray(logits, jnp.float32), key))(keys))


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def allowed(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> list[set[int]]:
    """The sets, one row at a time."""
    sets = []
    for row in logits:
        order = np.argsort(-row)[:top_k]
        if top_p is not None:
            p = softmax(row[order] / temperature)
            order = order[: 1 + int(np.searchsorted(np.cumsum(p), top_p))]
        sets.append({int(token) for token in order})
    return sets


@given(
    seed=st.integers(0, 99),
    vocab=st.sampled_from([2, 7, 19]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 20),
    top_p=st.none() | st.sampled_from([0.05, 0.37, 0.8, 0.999, 1.0]),
)
def test_all_tokens_of_the_set_are_drawn_and_no_other(seed: int, vocab: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = np.random.default_rng(seed).permuted(np.linspace(-1, 1, 3 * vocab).reshape(vocab, 3), axis=0).T
    tokens = draw(Sampling(temperature, top_k=top_k, top_p=top_p), logits)
    for n, expected in enumerate(allowed(logits, temperature, top_k, top_p)):
        drawn = set(tokens[:, n].tolist())
        assert drawn <= expected
        p = softmax(logits[n] / temperature)
        assert {token for token in expected if p[token] > 0.01} <= drawn


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, None, None), (0.5, None, None), (2.0, None, None), (0.7, 4, None), (1.3, 5, 0.9)])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = np.array([[0.3, -1.2, 1.9, 0.8, -0.4, 1.1, -2.0]], np.float32)
    expected = np.where([n in allowed(logits, temperature, top_k, top_p)[0] for n in range(7)], softmax(logits[0] / temperature), 0)
    expected = DRAWS * expected / expected.sum()
    counts = np.bincount(draw(Sampling(temperature, top_k=top_k, top_p=top_p), logits)[:, 0], minlength=7)
    assert not counts[expected == 0].any()
    chi_square = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    assert chi_square < 22.5  # 0.1 % for 6 degrees of freedom


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.0, top_k=3), Sampling(5.0, top_k=1), Sampling(5.0, top_p=1e-6), Sampling(1e-3)], ids=str)
def test_greedy_takes_the_likeliest_whatever_the_key(sampling: Sampling) -> None:
    logits = np.random.default_rng(0).normal(size=(5, 23))
    np.testing.assert_array_equal(draw(sampling, logits, count=20), np.tile(logits.argmax(-1), (20, 1)))


@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"temperature": 0.0, "top_k": 2}, {"temperature": 5.0}, {"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_what_is_never_drawn_counts_as_though_it_were_not_there(how: dict[str, Any]) -> None:
    """Of top_k and top_p too: the rest takes its place. Tokens beyond the vocabulary are none of it."""
    logits = np.random.default_rng(1).normal(size=(3, 11)).astype(np.float32)
    never = (0, 7, int(logits[0].argmax()), int(logits[1].argmax()))
    kept = np.setdiff1d(np.arange(11), never)
    drawn = draw(Sampling(**how, never=(*never, 11, 50256)), logits, count=500)
    alone = draw(Sampling(**how), logits[:, kept], count=4000)
    assert not np.isin(drawn, never).any()
    for n in range(3):
        assert set(drawn[:, n].tolist()) <= set(kept[alone[:, n]].tolist())


def test_rows_are_drawn_apart_and_the_same_key_draws_the_same() -> None:
    logits = np.zeros((64, 11))
    first, again, other = (draw(Sampling(), logits, count=1, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other) and len(set(first[0].tolist())) == 11
    assert first.dtype == np.int32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -0.1}, "temperature: expected a number of at least 0, received -0.1"),
        ({"temperature": float("nan")}, "temperature: expected a number of at least 0, received nan"),
        ({"top_k": 0}, "top_k: expected at least 1, received 0"),
        ({"top_p": 0.0}, r"top_p: expected a probability in \(0, 1\], received 0.0"),
        ({"top_p": 1.1}, r"top_p: expected a probability in \(0, 1\], received 1.1"),
        ({"never": (3, -1)}, r"never: expected tokens, integers of at least 0, received \(3, -1\)"),
        ({"top_p": float("nan")}, r"top_p: expected a probability in \(0, 1\], received nan"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**change)


def test_it_is_a_config() -> None:
    sampling = Sampling(0.8, top_k=40, top_p=0.9, never=(3, 5))
    assert from_json(to_json(sampling), Sampling) == sampling and hash(sampling) == hash(Sampling(0.8, top_k=40, top_p=0.9, never=(3, 5)))
