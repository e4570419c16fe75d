"""What a model remembers of earlier tokens."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from flax import struct

from pallas_kernels import masks
from transformer_jax.layers.base import Build, Context
from transformer_jax.layers.stack import Stack
from transformer_jax.models.base import check_tokens, count_valid
from transformer_jax.typing import Hidden, Positions, Tokens, Valid


class Cache(struct.PyTreeNode):
    """What a model remembers of earlier tokens, and of a memory.

    Attributes:
        index: slots in use, a scalar.
        positions: of the token in each slot, `[B, S]`.
        valid: whether a slot holds a token that may be attended to, `[B, S]`.
        memory_valid: the same of the memory's places, `[B, M]`; M = 0 for a model without memory.
        layers: the sublayers' own caches.
    """

    index: jax.Array
    positions: Positions
    valid: Valid
    memory_valid: Valid
    layers: Any


# So that jax.export can store a step.
jax.export.register_pytree_node_serialization(
    Cache, serialized_name="transformer_jax.models.Cache", serialize_auxdata=lambda aux: b"", deserialize_auxdata=lambda data: ()
)


def empty(stack: Stack, build: Build, batch: int, length: int, memory_length: int = 0) -> Cache:
    """A cache that remembers nothing yet."""
    if length > build.max_length:
        raise ValueError(f"max_length: expected at most the model's own, {build.max_length}, received {length}")
    zeros = jnp.zeros((batch, length), jnp.int32)
    layers = stack.init_cache(build, batch, length, memory_length)
    return Cache(jnp.int32(0), zeros, zeros.astype(bool), jnp.zeros((batch, memory_length), bool), layers)


def advance(cache: Cache, tokens: Tokens, valid: Valid | None) -> tuple[Tokens, Context, Cache, jax.Array]:
    """The tokens, what the layers are to know of them, the cache with their places taken, and whether it had room."""
    slots = cache.positions.shape[1]
    check_tokens(tokens, slots, "the cache's length")
    T = tokens.shape[1]
    valid = jnp.ones(tokens.shape, bool) if valid is None else valid
    positions = cache.valid.sum(-1, keepdims=True, dtype=jnp.int32) + count_valid(valid)

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, cache.index, 1)

    fits = cache.index + T <= slots
    cache = cache.replace(positions=write(cache.positions, positions), valid=write(cache.valid, valid))
    context = Context(positions, masks.valid(cache.valid), valid, kv_positions=cache.positions, index=cache.index)
    return jnp.where(valid, tokens, 0), context, cache.replace(index=cache.index + T), fits


def remember(cache: Cache, context: Context, memory: Hidden | None, memory_valid: Valid | None) -> tuple[Context, Cache]:
    """With a memory to look at: a new one, or the one that the cache has."""
    if memory is not None:
        valid = jnp.ones(memory.shape[:2], bool) if memory_valid is None else memory_valid
        if valid.shape != memory.shape[:2]:
            raise ValueError(f"memory_valid: expected the shape of memory without features, {memory.shape[:2]}, received {valid.shape}")
        cache = cache.replace(memory_valid=valid)
    elif memory_valid is not None:
        raise ValueError("memory_valid: expected none without a memory, received an array; the cache knows its own")
    elif cache.memory_valid.shape[1] == 0:
        raise ValueError("memory: expected that of `encode` at the first step, received None and a cache that has none")
    return context.replace(memory=memory, memory_mask=masks.valid(cache.memory_valid)), cache
