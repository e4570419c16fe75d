"""Noise for denoising objectives. A negative token is padding, to the right of its row."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.typing import Array, Tokens


def mask_tokens(key: Array, tokens: Tokens, *, rate: float = 0.15, mask_token: int, vocab_size: int) -> tuple[Tokens, Tokens]:
    """BERT's corruption (Devlin et al., arXiv:1810.04805, section 3.1): each token is chosen with probability `rate`, independently.

    Of the chosen, 80% become `mask_token`, 10% a token drawn uniformly, perhaps the same again, and 10% stay as they are.

    Args:
        key: decides everything.
        tokens: signed integers `[B, T]`.
        rate: in [0, 1].
        mask_token: what stands for a hidden token.
        vocab_size: ordinary tokens, of which some replace others, are 0 to vocab_size - 1.

    Returns:
        (inputs, labels), both like tokens. A label is -1 where nothing is to be predicted, padding included.

    Raises:
        TypeError: tokens are not signed integers.
        ValueError: tokens have another shape, or a number is out of range.
    """
    _check(tokens, mask_token=mask_token)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: expected a share from 0 to 1, received {rate}")
    if vocab_size < 1:
        raise ValueError(f"vocab_size: expected at least 1, received {vocab_size}")
    choose, kind, draw = jax.random.split(key, 3)
    chosen = (jax.random.uniform(choose, tokens.shape, jnp.float32) < rate) & (tokens >= 0)
    share = jax.random.uniform(kind, tokens.shape, jnp.float32)
    drawn = jax.random.randint(draw, tokens.shape, 0, vocab_size, jnp.int32).astype(tokens.dtype)
    noise = jnp.where(share < 0.8, mask_token, jnp.where(share < 0.9, drawn, tokens))
    return jnp.where(chosen, noise, tokens), jnp.where(chosen, tokens, -1)


def corrupt_spans(
    key: Array,
    tokens: Tokens,
    *,
    rate: float = 0.15,
    mean_span: float = 3.0,
    first_sentinel: int,
    end_token: int,
    source_length: int,
    target_length: int,
) -> tuple[Tokens, Tokens]:
    """T5's corruption (Raffel et al., arXiv:1910.10683, section 3.1.4), as in its released code (`random_spans_noise_mask`).

    A row of n tokens has round(rate * n) noise tokens, at least 1 and at most n - 1, in round(noise / mean_span) spans, at least 1; halves are rounded to
    the even number, but no more spans than kept tokens. Kept and noise spans take turns, a kept one first. All ways to cut the kept tokens into so many
    spans are equally likely, and so are those to cut the noise.

        tokens  a b c d e f g h     noise: c d, h
        source  a b X e f g Y end   each noise span is one sentinel
        target  X c d Y h end       each kept span is one sentinel

    X is `first_sentinel`, Y the token before it, and so on. As in the released code, a row ends with noise (with a single span, that is always the last
    tokens), and, unlike in the paper's figure 2, no sentinel follows it in the target.

    Args:
        key: decides everything.
        tokens: signed integers `[B, T]`. A row may be shorter than T. One of a single token keeps it; one of none stays empty.
        rate: share of noise, between 0 and 1.
        mean_span: noise tokens to a span, at least 1.
        first_sentinel: sentinel i, counted from 0, is first_sentinel - i.
        end_token: ends every source and target.
        source_length, target_length: of the results; `span_lengths` gives the least.

    Returns:
        (source `[B, source_length]`, target `[B, target_length]`) in tokens' dtype, -1 to the right.

    Raises:
        TypeError: tokens are not signed integers.
        ValueError: tokens have another shape, a number is out of range, a length is too short for rows of T tokens, or `first_sentinel` is too low.
    """
    _check(tokens, end_token=end_token)
    counts = _span_counts(tokens.shape[-1], rate, mean_span)
    for name, given, least in zip(("source_length", "target_length"), (source_length, target_length), _lengths(counts)):
        if given < least:
            raise ValueError(f"{name}: expected at least {least} for rows of {tokens.shape[-1]} tokens, received {given}; span_lengths gives both")
    if first_sentinel + 1 < (most := counts[-1, 1]):
        raise ValueError(f"first_sentinel: expected at least {most - 1}, for {most} sentinels down to 0, received {first_sentinel}")

    def row(key: Array, tokens: Array) -> tuple[Array, Array]:
        length = (tokens >= 0).sum(dtype=jnp.int32)
        noise = _noise(key, length, tokens.shape[0], counts)
        kept = ~noise & (jnp.arange(tokens.shape[0]) < length)
        shorten = partial(_shortened, tokens, length=length, first_sentinel=first_sentinel, end_token=end_token)
        return shorten(noise, size=source_length), shorten(kept, size=target_length)

    return jax.vmap(row)(jax.random.split(key, tokens.shape[0]), tokens)


def span_lengths(length: int, *, rate: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """Lengths of `corrupt_spans`' (source, target) for a row of `length` tokens, end tokens included. No shorter row has longer ones.

    Raises:
        ValueError: a number is out of range.
    """
    return _lengths(_span_counts(length, rate, mean_span))


def _lengths(counts: np.ndarray) -> tuple[int, int]:
    noise, spans = counts[-1].tolist()
    return max(len(counts) - 1, 2) - noise + spans + 1, noise + spans + 1


def _span_counts(length: int, rate: float, mean_span: float) -> np.ndarray:
    """How many noise tokens and spans a row of n <= length tokens has, int32 [length + 1, 2]. A row of less than 2 counts as 2, cut off afterwards."""
    if length < 1:
        raise ValueError(f"length: expected rows of at least 1 token, received {length}")
    if not 0 < rate < 1:
        raise ValueError(f"rate: expected a share between 0 and 1, both excluded, received {rate}")
    if not mean_span >= 1:
        raise ValueError(f"mean_span: expected at least 1 token, received {mean_span}")
    n = np.maximum(np.arange(length + 1), 2)
    noise = np.clip(np.round(n * rate), 1, n - 1)
    spans = np.clip(np.round(noise / mean_span), 1, n - noise)  # not more than kept tokens, one of which at least goes before each
    return np.stack([noise, spans], 1).astype(np.int32)


def _noise(key: Array, length: Array, size: int, counts: np.ndarray) -> Array:
    """Which of `size` places are noise."""
    noise, spans = jnp.asarray(counts)[length]
    most = int(counts[-1, 1])
    kept_key, noise_key = jax.random.split(key)
    kept_ends = _random_ends(kept_key, jnp.maximum(length, 2) - noise, spans, size, most)
    noise_ends = _random_ends(noise_key, noise, spans, size, most)
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), noise_ends[:-1]])
    borders = jnp.stack([kept_ends + before, kept_ends + noise_ends], 1).ravel()  # where noise begins, where it ends, and so on
    places = jnp.arange(size, dtype=jnp.int32)
    return (jnp.searchsorted(borders, places, side="right") % 2 == 1) & (places < length)


def _random_ends(key: Array, items: Array, segments: Array, size: int, most: int) -> Array:
    """Where each of `segments` <= `most` runs, none empty, of `items` <= `size` things ends; filled up with `items` to `[most]`."""
    places = jnp.arange(1, size + 1, dtype=jnp.int32)
    order = jnp.argsort(jnp.where(places < items, jax.random.uniform(key, places.shape, jnp.float32), 2.0))
    return jnp.sort(jnp.where(jnp.arange(most) < segments - 1, places[order[:most]], items))


def _shortened(tokens: Array, replaced: Array, *, length: Array, size: int, first_sentinel: int, end_token: int) -> Array:
    """The row with one sentinel for each run of what is replaced, and the end token, `[size]`."""
    first = replaced & ~jnp.pad(replaced, (1, 0))[:-1]
    values = jnp.where(first, first_sentinel + 1 - jnp.cumsum(first), tokens)
    stays = (jnp.arange(tokens.shape[0]) < length) & (first | ~replaced)
    place = jnp.cumsum(stays)
    row = jnp.full(size, -1, tokens.dtype).at[jnp.where(stays, place - 1, size)].set(values.astype(tokens.dtype), mode="drop")
    return row.at[jnp.where(length > 0, place[-1], size)].set(end_token, mode="drop")


def _check(tokens: Array, **special: int) -> None:
    if not jnp.issubdtype(tokens.dtype, jnp.signedinteger):
        raise TypeError(f"tokens: expected signed integers, negative where there is padding, received {tokens.dtype}")
    if tokens.ndim != 2:
        raise ValueError(f"tokens: expected the shape [B, T], received {list(tokens.shape)}")
    for name, token in special.items():
        if token < 0:
            raise ValueError(f"{name}: expected a token, 0 or more, received {token}")
