"""Products counted from the program as it is written are those that XLA's compiled program holds."""

import collections
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.analysis import flops
from transformer_jax.layers import Attention, Build, Causal, Context


def products_in(hlo: str) -> int:
    """2 * M * N * K * batch of every dot in the text of an HLO module, those in loops as often as the loop turns."""
    own: collections.Counter[str] = collections.Counter()
    calls: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    shapes: dict[str, list[int]] = {}
    entry = computation = ""
    for line in hlo.splitlines():
        if head := re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line):
            computation, shapes = head[2], {}
            entry = computation if head[1] else entry
        elif op := re.match(r"\s+(?:ROOT )?%([\w.-]+) = \w+\[([\d,]*)\]\S* (\S+?)\(", line):
            shapes[op[1]] = [int(n) for n in op[2].split(",") if n]
            if op[3] == "dot":
                left = shapes[re.search(r"dot\(%([\w.-]+)", line)[1]]
                axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)[1].split(",")
                own[computation] += 2 * math.prod(shapes[op[1]]) * math.prod(left[int(axis)] for axis in axes)
        turns = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
        for called in re.findall(r"(?:calls|body|condition|to_apply)=%([\w.-]+)", line):
            calls[computation].append((called, int(turns[1]) if turns else 1))
        assert " while(" not in line or turns, "a loop of unknown length"
        assert " custom-call(" not in line or "dot" not in line, "a product out of sight"

    def total(name: str) -> int:
        return own[name] + sum(times * total(called) for called, times in calls[name])

    return total(entry)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forward", "training"])
def test_the_count_is_that_of_the_compiled_program(program: Callable[..., Any], name: str, kind: str) -> None:
    it = program(name, kind, "reference")
    assert sum(flops(it.fn, *it.args).values()) == pytest.approx(products_in(it.compiled.as_text()), rel=0.02)


def test_a_product_of_rows_in_groups_costs_what_one_group_would_and_so_does_each_of_its_gradients() -> None:
    """R rows of K by G matrices of K x N."""
    R, K, N, G = 13, 7, 5, 3
    rows, kernel, sizes = jnp.zeros((R, K)), jnp.zeros((G, K, N)), jnp.zeros(G, jnp.int32)
    assert flops(jax.lax.ragged_dot, rows, kernel, sizes) == {(): 2 * R * K * N}
    gradients = jax.grad(lambda rows, kernel, sizes: jax.lax.ragged_dot(rows, kernel, sizes).sum(), (0, 1))
    assert flops(gradients, rows, kernel, sizes) == {(): 3 * 2 * R * K * N}


def test_each_product_is_found_at_the_module_that_makes_it(normal: Callable[..., jax.Array]) -> None:
    """By hand: B 2, T 7, D 15, N 3 heads of H 5, one of keys and values."""
    model = Attention(3, mask=Causal(), num_kv_heads=1).make(Build(d_model=15, backend="reference"))
    x = normal(2, 7, 15)
    variables = model.init(jax.random.key(0), x, Context())

    def loss(variables: Any, x: jax.Array) -> jax.Array:
        return model.apply(variables, x, Context()).sum()

    def by_module(found: dict[Any, int]) -> dict[str, int]:
        totals: collections.Counter[str] = collections.Counter()
        for path, n in found.items():
            totals[path[-1] if path and path[-1] in ("query", "key", "value", "out") else "scores and values"] += n
        return {name: n for name, n in totals.items() if n}

    rows = 2 * 7
    forward = {
        "query": 2 * rows * 15 * 15,
        "key": 2 * rows * 15 * 5,
        "value": 2 * rows * 15 * 5,
        "out": 2 * rows * 15 * 15,
        "scores and values": 2 * (2 * rows * 7 * 3 * 5),
    }
    assert by_module(flops(loss, variables, x)) == forward
    both = by_module(flops(jax.value_and_grad(loss, (0, 1)), variables, x))
    assert both == {name: 3 * n for name, n in forward.items()}


def turns(carry: jax.Array, w: jax.Array) -> Any:
    return carry @ w, None


W, X = np.ones((5, 7, 7), np.float32), np.ones((3, 7), np.float32)
ONE = 2 * 3 * 7 * 7


@pytest.mark.parametrize(
    ("fn", "products"),
    [
        (lambda x: x @ W[0], 1),
        (lambda x: jax.lax.scan(turns, x, W)[0], 5),
        (lambda x: jax.lax.scan(turns, x, W, unroll=2)[0], 5),
        (jax.vmap(lambda x: x @ W[0]), 1),
        (jax.jit(jax.checkpoint(lambda x: x @ W[0] @ W[1])), 2),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ W[0] @ W[1], x), 2),
        (lambda x: jax.lax.while_loop(lambda x: (x @ W[0])[0, 0] > 0, lambda x: x @ W[0] @ W[1], x), 3),
        (lambda x: jnp.tanh(x).sum(), 0),
    ],
    ids=["product", "scan", "unrolled", "vmap", "checkpoint", "cond", "while", "none"],
)
def test_what_runs_within_is_counted(fn: Callable[..., Any], products: int) -> None:
    assert sum(flops(fn, X).values()) == products * ONE


def test_a_convolution_counts_each_output_s_window() -> None:
    """y [2, 9, 11] from x [2, 13, 6] and a kernel [5, 3, 11] in two groups: 15 products to an output."""

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2)

    assert sum(flops(convolve, jnp.ones((2, 13, 6)), jnp.ones((5, 3, 22))).values()) == 2 * (2 * 9 * 22) * 15
