"""Elementwise operations on a Hopper chip: those that the compiler has, and the others by those that it has.

tests/kernels/test_hopper.py lowers each for the chip, with its derivative, and compares it with what jax makes of it elsewhere: a new one belongs there too.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def _log1p(x: Any) -> Any:
    """log(1 + x), by three terms of its series where 1 + x would lose x; to 1e-5 of itself."""
    return jnp.where(jnp.abs(x) < 0.01, x * (1.0 - x * (0.5 - x * (1 / 3))), jnp.log(1.0 + x))


def _expm1(x: Any) -> Any:
    """exp(x) - 1, likewise."""
    return jnp.where(jnp.abs(x) < 0.01, x * (1.0 + x * (0.5 + x * (1 / 6))), jnp.exp(x) - 1.0)


def _tanh(x: Any) -> Any:
    """By exp where that loses no digits, by its series to x**9 where x is small: the chip's own is off by 5e-4 of its value."""
    y = x * x
    series = x * (1.0 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835)))))
    return jnp.where(y < 0.09, series, 1.0 - 2.0 / (jnp.exp(2.0 * x) + 1.0))


def _within_a_turn(x: Any) -> Any:
    """x less whole turns of 2 pi, which is taken in two parts: the chip's own sine is right to 1e-6 between -pi and pi."""
    turns = _floor(x * (0.5 / math.pi) + 0.5)
    return x - turns * 6.28125 - turns * (2 * math.pi - 6.28125)


def _truncated(x: Any) -> Any:
    return jnp.where(jnp.abs(x) < 2.0**23, x.astype(jnp.int32).astype(jnp.float32), x)


def _floor(x: Any) -> Any:
    near = _truncated(x)
    return jnp.where(near > x, near - 1.0, near)


def _power(x: Any, y: Any) -> Any:
    """|x|^y by exponential and logarithm, with the sign that x^y has for whole y and NaN for the others."""
    y = y.astype(jnp.float32)
    size = jnp.where(y == 0.0, jnp.ones_like(x), jnp.exp2(y * jnp.log2(jnp.abs(x))))
    half = 0.5 * y
    odd = jnp.where(half == _floor(half), size, -size)
    return jnp.where(x < 0.0, jnp.where(y == _floor(y), odd, jnp.full_like(x, jnp.nan)), size)


# Elementwise primitives that the compiler lacks, by those that it has.
REWRITTEN: dict[str, Callable[..., Any]] = {
    "add_any": lambda a, b: a + b,
    "copy": lambda a: a,
    "reshard": lambda a: a,
    "stop_gradient": lambda a: a,
    "square": lambda a: a * a,
    "not": lambda a: a ^ jnp.ones_like(a) if a.dtype == jnp.bool_ else ~a,
    "rem": lambda a, b: a - b * _truncated(a / b) if jnp.issubdtype(a.dtype, jnp.floating) else jax.lax.rem(a, b),
    "tanh": _tanh,
    "sin": lambda a: jnp.sin(_within_a_turn(a)),
    "cos": lambda a: jnp.cos(_within_a_turn(a)),
    "cbrt": lambda a: jnp.sign(a) * jnp.exp2(jnp.log2(jnp.abs(a)) * (1 / 3)),
    "log1p": _log1p,
    "expm1": _expm1,
    "floor": _floor,
    "ceil": lambda a: -_floor(-a),
    "is_finite": lambda a: jnp.abs(a) < jnp.inf,
    "pow": _power,
    "sinh": lambda a: jnp.where(jnp.abs(a) < 0.3, a * (1.0 + a * a * (1 / 6 + a * a * (1 / 120))), 0.5 * (jnp.exp(a) - jnp.exp(-a))),
    "cosh": lambda a: 0.5 * (jnp.exp(a) + jnp.exp(-a)),
    "tan": lambda a: jnp.sin(_within_a_turn(a)) / jnp.cos(_within_a_turn(a)),
}
PLAIN = frozenset(
    {
        "abs", "add", "and", "bitcast_convert_type", "clamp", "convert_element_type", "div", "eq", "exp", "exp2", "ge", "gt",
        "le", "log", "log2", "logistic", "lt", "max", "min", "mul", "ne", "neg", "one_minus_square", "or", "round", "rsqrt",
        "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sqrt", "sub", "xor",
    }
)  # fmt: skip
