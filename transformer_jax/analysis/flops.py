"""Floating-point operations of any function's matrix products, counted before it runs."""

import collections
import math
from collections.abc import Callable
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn

from transformer_jax.analysis.jaxprs import Path, called, module_path, trace


def flops(fn: Callable[..., Any], *args: Any) -> dict[Path, int]:
    """FLOPs of the matrix products and convolutions in `fn(*args)`, by the module that they belong to; nothing is compiled or run.

    A product `[B, M, K] x [B, K, N]` is 2 * B * M * K * N, and one of M rows in groups, `jax.lax.ragged_dot`, 2 * M * K * N; other operations count as none. A
    scan counts its length times, a conditional as its dearest branch, a while loop once, for nobody knows its length. Into Pallas kernels one cannot see: for a
    model take `backend="reference"`, whose attention is two plain products over all of T x T, though other backends skip the tiles that a mask rules out.

    Args:
        fn: a function of arrays, such as `model.apply` or `jax.value_and_grad(loss)`.
        args: arrays, or anything with their shapes and dtypes, such as `jax.ShapeDtypeStruct`.

    Returns:
        A count for each path of names: those of flax's modules and of `jax.named_scope`, as `("stack", "groups_0", "layers", "sublayers_0", "layer", "query")`.
    """
    return dict(_count(trace(fn, *args)))


def _count(jaxpr: Jaxpr) -> collections.Counter[Path]:
    found: collections.Counter[Path] = collections.Counter()
    for eqn in jaxpr.eqns:
        path = module_path(eqn)
        for inner, n in _within(eqn).items():
            found[*path, *inner] += n
    return found


def _within(eqn: JaxprEqn) -> collections.Counter[Path]:
    p = eqn.params
    operands, results = ([getattr(var.aval, "shape", ()) for var in side] for side in (eqn.invars, eqn.outvars))
    match eqn.primitive.name:
        case "dot_general":
            (contracting, _), _ = p["dimension_numbers"]
            return collections.Counter({(): 2 * math.prod(results[0]) * math.prod(operands[0][axis] for axis in contracting)})
        case "ragged_dot_general":
            (contracting, _), _ = (dims := p["ragged_dot_dimension_numbers"]).dot_dimension_numbers
            # Each row belongs to one group. Where rows are summed over, the result has an axis of groups, which costs nothing more.
            groups = math.prod(operands[2][-1:]) if dims.lhs_ragged_dimensions[0] in contracting else 1
            return collections.Counter({(): 2 * math.prod(results[0]) * math.prod(operands[0][axis] for axis in contracting) // groups})
        case "conv_general_dilated":
            outputs, *_ = p["dimension_numbers"].rhs_spec
            return collections.Counter({(): 2 * math.prod(results[0]) * math.prod(operands[1]) // operands[1][outputs]})
        case "scan":
            return collections.Counter({path: n * p["length"] for path, n in _count(p["jaxpr"].jaxpr).items()})
        case "while":
            return _count(p["cond_jaxpr"].jaxpr) + _count(p["body_jaxpr"].jaxpr)
        case "cond":
            return max((_count(branch.jaxpr) for branch in p["branches"]), key=lambda counts: counts.total())
    inner = called(eqn)
    return collections.Counter() if inner is None else _count(inner)
