"""Generation with a cache.

A text longer than the model's max_length is written through a moving window: when the cache is full, it is filled anew from the last half of the text.
The n-th token is drawn with fold_in(key, n), so `stream` and `generate` write the same text.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.generation.sampling import Sampling
from transformer_jax.models import Model
from transformer_jax.typing import Array, Tokens, Valid


def generate(
    model: Model,
    variables: Any,
    tokens: Tokens,
    max_new_tokens: int,
    *,
    key: Array | None = None,
    sampling: Sampling = Sampling(),
    stop: int | tuple[int, ...] | None = None,
    valid: Valid | None = None,
    source: Tokens | None = None,
    source_valid: Valid | None = None,
) -> Array:
    """Continues prompts, in one compiled program.

    Args:
        model: in either layout; `unstacked` is the faster one.
        variables: `{"params": ...}`.
        tokens: prompts, integers `[B, T]`, 1 <= T <= max_length.
        max_new_tokens: how many to add.
        key: what random choices are drawn with; not needed where the temperature is 0.
        sampling: how tokens are drawn.
        stop: a token that ends a text, or several; all after it are the (first of the) tokens that do.
        valid: `[B, T]`, False at padding (put it on the left, so that every prompt ends where the new text begins).
        source: integers `[B, S]`, what an encoder-decoder reads; the prompts are then beginnings of targets.
        source_valid: `[B, S]`, False at the sources' padding, on either side.

    Returns:
        The new tokens, int32 `[B, max_new_tokens]`.

    Raises:
        ValueError: a prompt that is empty or beyond max_length, a token outside the vocabulary, no key, or a model that gives no logits of next tokens.
    """
    tokens, valid, key = _checked(model, tokens, max_new_tokens, key, sampling, valid)
    memory = _memory(model, variables, tokens, source, source_valid)
    return _generate(model, variables, tokens, valid, memory, key, max_new_tokens, sampling, _several(stop))


def stream(
    model: Model,
    variables: Any,
    tokens: Tokens,
    max_new_tokens: int,
    *,
    key: Array | None = None,
    sampling: Sampling = Sampling(),
    stop: int | tuple[int, ...] | None = None,
    valid: Valid | None = None,
    source: Tokens | None = None,
    source_valid: Valid | None = None,
) -> Iterator[np.ndarray]:
    """The same tokens as `generate`'s, one at a time as int32 `[B]`; ends early once every text has met `stop`. Arguments and errors as there."""
    tokens, valid, key = _checked(model, tokens, max_new_tokens, key, sampling, valid)
    memory = _memory(model, variables, tokens, source, source_valid)
    return _stream(model, variables, tokens, valid, memory, key, max_new_tokens, sampling, _several(stop))


def _several(stop: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return () if stop is None else stop if isinstance(stop, tuple) else (stop,)


def _checked(model: Model, tokens: Any, max_new_tokens: int, key: Any, sampling: Sampling, valid: Any) -> tuple[Array, Array, Array]:
    if not hasattr(model, "step"):
        raise ValueError(f"model: expected one that writes, a DecoderOnly or EncoderDecoder, received {type(model).__name__}")
    shape, longest, vocab = jnp.shape(tokens), model.config.max_length, model.config.vocab_size
    if len(shape) != 2 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise ValueError(f"tokens: expected integers of shape [B, T], received {jnp.result_type(tokens)} {shape}")
    if not 1 <= shape[1] <= longest:
        raise ValueError(f"tokens: expected a prompt of 1 to {longest} tokens (max_length), received {shape[1]}; give its end: tokens[:, -{longest}:]")
    if not isinstance(tokens, jax.core.Tracer) and tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) >= (vocab or 0)):
        raise ValueError(f"tokens: expected tokens of the vocabulary, 0 to {(vocab or 0) - 1}, received {int(tokens.min())} to {int(tokens.max())}")
    if valid is not None and jnp.shape(valid) != shape:
        raise ValueError(f"valid: expected the shape of tokens, {shape}, received {jnp.shape(valid)}")
    if valid is not None and not isinstance(valid, jax.core.Tracer) and not np.asarray(valid)[:, -1].all():
        raise ValueError("valid: expected padding on the left, so that each prompt ends at the last place; received a prompt that does not")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, received {max_new_tokens}")
    if key is None:
        if sampling.temperature > 0:
            raise ValueError("key: expected a jax.random.key, received None; give one, or Sampling(temperature=0)")
        key = jax.random.key(0)
    return jnp.asarray(tokens, jnp.int32), jnp.ones(shape, bool) if valid is None else jnp.asarray(valid, bool), key


def _memory(model: Model, variables: Any, tokens: Array, source: Any, source_valid: Any) -> tuple[Any, ...]:
    """What `step` takes after the cache when it fills one: an encoder's output and which of it is valid, or nothing."""
    encodes = hasattr(model, "encode")
    if (source is None) == encodes:
        wants = "integers [B, S] for an encoder-decoder, received None" if encodes else f"None for a {type(model).__name__}, received an array"
        raise ValueError(f"source: expected {wants}")
    if not encodes:
        return ()
    if jnp.shape(source)[:1] != tokens.shape[:1]:
        raise ValueError(f"source: expected a row for each of the {tokens.shape[0]} prompts, received shape {jnp.shape(source)}")
    valid = jnp.ones(jnp.shape(source), bool) if source_valid is None else jnp.asarray(source_valid, bool)
    return _encode(model, variables, jnp.asarray(source), valid), valid


@partial(jax.jit, static_argnums=0)
def _encode(model: Model, variables: Any, source: Array, valid: Array) -> Array:
    return cast(Array, model.apply(variables, source, valid=valid, method="encode"))


@partial(jax.jit, static_argnums=(0, 5))
def _prefill(model: Any, variables: Any, tokens: Array, valid: Array, memory: tuple[Any, ...], length: int) -> tuple[Array, Any]:
    """The logits of the next token `[B, V]`, and a cache of a length that holds the tokens, with room to grow."""
    cache = model.init_cache(tokens.shape[0], length)
    logits, cache = cast(Any, model.apply(variables, tokens, cache, *memory, valid=valid, method="step"))
    return logits[:, -1], cache


@partial(jax.jit, static_argnums=0)
def _advance(model: Model, variables: Any, token: Array, cache: Any) -> tuple[Array, Any]:
    logits, cache = cast(Any, model.apply(variables, token[:, None], cache, method="step"))
    return logits[:, -1], cache


@partial(jax.jit, static_argnums=(4, 5))
def _draw(logits: Array, key: Array, n: Array, done: Array, sampling: Sampling, stop: tuple[int, ...]) -> tuple[Array, Array]:
    token = sampling(logits, jax.random.fold_in(key, n))
    if stop:
        token = jnp.where(done, stop[0], token)
        done = done | jnp.isin(token, jnp.array(stop, token.dtype))
    return token, done


def _window(model: Model) -> int:
    """How much of the text fills the cache anew."""
    return max(1, model.config.max_length // 2)


def _length(model: Model, tokens: Array, max_new_tokens: int) -> int:
    """Slots of a cache for the whole text, or as many as there may be: every step reads them all."""
    return min(model.config.max_length, tokens.shape[1] + max_new_tokens)


def _stream(
    model: Model, variables: Any, tokens: Array, valid: Array, memory: Any, key: Array, max_new_tokens: int, sampling: Sampling, stop: tuple[int, ...]
) -> Iterator[np.ndarray]:
    keep, length, done = _window(model), _length(model, tokens, max_new_tokens), jnp.zeros(tokens.shape[0], bool)
    logits, cache = _prefill(model, variables, tokens, valid, memory, length)
    used = tokens.shape[1]
    text, flags = np.asarray(tokens), np.asarray(valid)
    for n in range(max_new_tokens):
        token, done = _draw(logits, key, jnp.int32(n), done, sampling, stop)
        yield np.asarray(token)
        if n + 1 == max_new_tokens or bool(done.all()):
            return
        text = np.append(text, np.asarray(token)[:, None], 1)[:, -keep:]
        flags = np.append(flags, np.ones((len(flags), 1), bool), 1)[:, -keep:]
        if used == model.config.max_length:
            logits, cache = _prefill(model, variables, jnp.asarray(text), jnp.asarray(flags), memory, length)
            used = text.shape[1]
        else:
            logits, cache = _advance(model, variables, token, cache)
            used += 1


@partial(jax.jit, static_argnums=(0, 6, 7, 8))
def _generate(
    model: Model, variables: Any, tokens: Array, valid: Array, memory: Any, key: Array, max_new_tokens: int, sampling: Sampling, stop: tuple[int, ...]
) -> Array:
    longest, keep, length = model.config.max_length, _window(model), _length(model, tokens, max_new_tokens)

    def fill(tokens: Array, valid: Array, n: Any, count: int, done: Array) -> tuple[Array, Array]:
        """Tokens n, ..., n + count - 1 `[B, count]` of the new text, from a cache filled with the text before them."""
        logits, cache = _prefill(model, variables, tokens, valid, memory, length)
        first, done = _draw(logits, key, n, done, sampling, stop)

        def one(carry: Any, m: Array) -> tuple[Any, Array]:
            token, cache, done = carry
            logits, cache = _advance(model, variables, token, cache)
            token, done = _draw(logits, key, m, done, sampling, stop)
            return (token, cache, done), token

        (_, _, done), rest = jax.lax.scan(one, (first, cache, done), n + jnp.arange(1, count))
        return jnp.concatenate([first[:, None], rest.T], 1), done

    count = min(max_new_tokens, longest - tokens.shape[1] + 1)
    new, done = fill(tokens, valid, 0, count, jnp.zeros(tokens.shape[0], bool))
    text, flags = jnp.concatenate([tokens, new], 1), jnp.concatenate([valid, jnp.ones_like(new, bool)], 1)
    left = max_new_tokens - count
    if left == 0:
        return new
    each = longest - keep + 1
    rounds = -(-left // each)

    def go_on(carry: Any, r: Array) -> tuple[Any, Array]:
        window, flags, done = carry
        new, done = fill(window, flags, count + r * each, each, done)
        window, flags = (jnp.concatenate(pair, 1)[:, -keep:] for pair in ((window, new), (flags, jnp.ones_like(new, bool))))
        return (window, flags, done), new

    _, more = jax.lax.scan(go_on, (text[:, -keep:], flags[:, -keep:], done), jnp.arange(rounds))
    more = jnp.swapaxes(more, 0, 1).reshape(tokens.shape[0], -1)
    return jnp.concatenate([new, more[:, :left]], 1)
