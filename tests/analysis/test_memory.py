"""Bytes predicted from the program as it is written are those that XLA allots."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.analysis import activation_bytes, peak_bytes

MEGABYTE = 2**20


def allotted(compiled: Any) -> int:
    """What a compiled program takes beside its arguments."""
    stats = compiled.memory_analysis()
    return stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forward", "training"])
def test_the_peak_is_that_of_the_compiled_program(program: Callable[..., Any], name: str, kind: str) -> None:
    it = program(name, kind, "reference")
    assert peak_bytes(it.fn, *it.args) == pytest.approx(allotted(it.compiled), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["remat", "t5"])
def test_the_peak_of_training_in_tiles_is_that_of_the_compiled_program(program: Callable[..., Any], which: str) -> None:
    it = program(which, "training", "blockwise")
    assert peak_bytes(it.fn, *it.args) == pytest.approx(allotted(it.compiled), rel=0.15)


def chain(x: jax.Array) -> jax.Array:
    return jnp.tanh(jnp.exp(x) * 2 + 1)


def loop(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 9, lambda n, x: jnp.sin(x @ x), x)


def several(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, n: (x @ x, jnp.cos(x)), x, jnp.arange(4))


@pytest.mark.parametrize(
    ("fn", "megabytes"),
    [
        (chain, 1),
        (lambda x: chain(x).sum(), 0),
        (lambda x: (x @ x) @ x, 2),
        (lambda x: chain(x @ x), 1),
        (lambda x: (x @ x).T @ x, 2),
        (several, 6),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: (x @ x) @ x, x), 2),
        (lambda x: jnp.zeros((3, 512, 512)).at[1].set(x), 3),
        (lambda x: (chain(x @ x), x @ x)[1], 1),
    ],
    ids=["fused", "reduced", "products", "in place", "transposed", "loop", "cond", "update", "dead"],
)
def test_the_rule_for_buffers(fn: Callable[..., Any], megabytes: int) -> None:
    """Of an x of 1 MB, beside x itself."""
    x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    assert peak_bytes(fn, x) == pytest.approx(megabytes * MEGABYTE, rel=0.01, abs=64)
    assert allotted(jax.jit(fn).lower(x).compile()) == pytest.approx(megabytes * MEGABYTE, rel=0.01, abs=64 * 1024)


def test_what_is_kept_for_the_backward_pass_is_found_at_the_scope_that_made_it() -> None:
    """sin(x.w) keeps its cosine, exp its result, the product x, which is an argument, and a reshaped argument costs nothing."""

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        with jax.named_scope("sine"):
            y = jnp.sin(x @ w.reshape(7, 11))
        with jax.named_scope("exponential"):
            return jnp.exp(y).sum()

    assert activation_bytes(loss, jnp.ones(77), jnp.ones((5, 7))) == {("sine",): 4 * 5 * 11, ("exponential",): 4 * 5 * 11}


def test_a_loop_keeps_each_turn_and_constants_are_not_kept() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        angles = jnp.cos(jnp.arange(11.0))

        def turn(x: jax.Array, w: jax.Array) -> Any:
            with jax.named_scope("layer"):
                return jnp.sin(x * angles) * w, None

        return jax.lax.scan(turn, x, w)[0].sum()

    found = activation_bytes(loss, jnp.ones((6, 11)), jnp.ones((5, 11)))
    assert found == {("layer",): 6 * 2 * 4 * 5 * 11}  # sine and cosine


def test_what_all_turns_share_counts_once_at_the_scope_that_made_it() -> None:
    """sin(x) and its cosine are moved before the loop, where jax leaves their scope's name alone; exp's result is kept in two shapes."""

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        def turn(carry: jax.Array, _: None) -> Any:
            with jax.named_scope("layer"):
                return carry * jnp.sin(x), None

        with jax.named_scope("stack"):
            carry, _ = jax.lax.scan(turn, w, None, length=6)
        with jax.named_scope("head"):
            return (jnp.exp(carry).reshape(55) * w.reshape(55)).sum()

    size = 4 * 5 * 11
    assert activation_bytes(loss, jnp.ones((5, 11)), jnp.ones((5, 11))) == {("stack",): 6 * size, ("stack", "layer"): 2 * size, ("head",): size}


def test_remat_keeps_the_residual_stream_alone(cases: dict[str, Any]) -> None:
    kept = {}
    for name in ("gpt", "remat"):
        model = cases[name].config.make()
        tokens = jax.ShapeDtypeStruct((2, 32), jnp.int32)
        variables = jax.eval_shape(model.init, jax.random.key(0), tokens)

        def loss(variables: Any, tokens: Any, model: Any = model) -> Any:
            return model.apply(variables, tokens, method="features").sum()

        found = activation_bytes(loss, variables, tokens)
        kept[name] = {path: n for path, n in found.items() if path[:2] == ("stack", "groups_0")}
    assert kept["remat"] == {("stack", "groups_0"): 4 * 4 * 2 * 32 * 64}
    assert sum(kept["gpt"].values()) > 10 * sum(kept["remat"].values())
    assert np.all([len(path) > 2 for path in kept["gpt"]])
