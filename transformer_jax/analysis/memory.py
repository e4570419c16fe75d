"""Bytes that a function keeps for its backward pass, and the most that it holds at once, found before it runs."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from transformer_jax.analysis.jaxprs import Path, bytes_of, called, module_path, trace
from transformer_jax.analysis.liveness import peak


def activation_bytes(fn: Callable[..., Any], *args: Any) -> dict[Path, int]:
    """Bytes that reverse-mode differentiation of `fn(*args)` keeps from the forward pass, by the module that made them.

    An array counts once, in however many shapes; the arguments do not, nor does what depends on none of them, such as a table of angles: XLA makes it anew.

    Args:
        fn: a differentiable function, such as a loss of variables and a batch.
        args: arrays, or anything with their shapes and dtypes.

    Returns:
        Bytes for each path of names, as for `flops`. The residual stream between the layers of a stack, all that full remat keeps, is at the path of its group.
    """
    jaxpr = trace(lambda *args: jax.vjp(fn, *args)[1], *args)
    free = _free(jaxpr, set(jaxpr.invars))
    found: collections.Counter[Path] = collections.Counter()
    wholes = _wholes(jaxpr)
    for var in {wholes.get(var, var) for var in jaxpr.outvars if not isinstance(var, Literal)}:
        if (path := _origin(jaxpr, var, free)) is not None:
            found[path] += bytes_of(var.aval)
    return dict(found)


_SAME_BYTES = {"broadcast_in_dim", "copy", "expand_dims", "reshape", "squeeze", "transpose"}


def _free(jaxpr: Jaxpr, arguments: set[Any]) -> set[Any]:
    """The variables that cost nothing to keep: arguments, in whatever shape, and what is made of constants alone."""
    constants = {*jaxpr.constvars}
    for eqn in jaxpr.eqns:
        if {var for var in eqn.invars if not isinstance(var, Literal)} <= constants:
            constants.update(eqn.outvars)
    return constants | arguments | {var for var, whole in _wholes(jaxpr).items() if whole in arguments}


def _wholes(jaxpr: Jaxpr) -> dict[Any, Any]:
    """For each variable that is another one in another shape, the other."""
    found: dict[Any, Any] = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _SAME_BYTES and bytes_of(eqn.invars[0].aval) == bytes_of(eqn.outvars[0].aval) and not isinstance(eqn.invars[0], Literal):
            found[eqn.outvars[0]] = found.get(eqn.invars[0], eqn.invars[0])
    return found


def _origin(jaxpr: Jaxpr, var: Any, free: set[Any]) -> Path | None:
    """The modules that made a variable; None for one that is free."""
    if isinstance(var, Literal) or var in free:
        return None
    place = next((n for n, eqn in enumerate(jaxpr.eqns) if var in eqn.outvars), None)
    if place is None:
        return ()
    eqn, path = jaxpr.eqns[place], _path(jaxpr.eqns[place:])
    inner, carried = called(eqn), range(0)
    if eqn.primitive.name == "scan":
        inner, first = eqn.params["jaxpr"].jaxpr, eqn.params["num_consts"]
        carried = range(first, first + eqn.params["num_carry"])
    if inner is None:
        return path
    given = {inner.invars[n] for n, atom in enumerate(eqn.invars) if n not in carried and (isinstance(atom, Literal) or atom in free)}
    within = _origin(inner, inner.outvars[eqn.outvars.index(var)], _free(inner, given))
    return None if within is None else (*path, *within)


def _path(eqns: Sequence[JaxprEqn]) -> Path:
    """The modules of the first equation. What all turns of a loop share jax moves before it, without the loop's own names and `jvp()`."""
    first, path = eqns[0], module_path(eqns[0])
    following = next((eqn for eqn in eqns if "(" in str(eqn.source_info.name_stack)), first)
    return path if following is first else (*module_path(following), *path)


def peak_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """The most bytes that the compiled `fn(*args)` holds at once beside its arguments, results included: what XLA reports as `temp_size_in_bytes +
    output_size_in_bytes - alias_size_in_bytes` in `compiled.memory_analysis()`, predicted without compiling.

    The rule, found on XLA's CPU backend. Operations run in the order written; what nobody needs does not. One gets a buffer

    - if it is a product, a reduction, a gather, a scatter, a sort or a loop,
    - or if it is read by one of these, reductions aside, by several operations, or returned (broadcasts, slices and conversions are computed for each reader).

    Every other one is fused into its reader, and reshapes cost nothing. A buffer lasts to its last reader. An elementwise result takes over that of an operand
    that ends there, unless there is a reshape or a transpose between the two; a loop's state that of its start. A loop needs what one turn needs beside what
    goes in and out, a conditional what its neediest branch does, and a product copies of operands whose batch axes are not the leading ones.

    For models of float32 it is within 15 % of XLA:CPU's. Too low by a quarter are remat around attention in tiles, from 256 tokens on, and bfloat16, of which
    XLA:CPU holds float32 copies. Of a stack unrolled in full (`unroll=0`) XLA mixes the layers: within 30 %, and with remat far too low, for XLA:CPU then
    computes nothing again and keeps as much as without.

    Args:
        fn: a function of arrays, such as `jax.value_and_grad(loss)`.
        args: arrays, or anything with their shapes and dtypes.
    """
    return peak(trace(fn, *args))
