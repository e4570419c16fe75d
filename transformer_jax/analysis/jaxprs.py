"""Reading programs: what an equation calls, and which module it belongs to."""

import math
import re
from typing import Any, TypeAlias

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Names of modules and scopes, outermost first: ("stack", "groups_0", "layers", "sublayers_1", "layer", "up").
Path: TypeAlias = tuple[str, ...]

_REMAT = ("checkpoint", "rematted_computation")


def trace(fn: Any, *args: Any) -> Jaxpr:
    """The program of `fn(*args)`, of arrays or of what has their shape and dtype."""
    return jax.make_jaxpr(fn)(*args).jaxpr


def module_path(eqn: JaxprEqn) -> Path:
    """The modules that an equation was written by, within the equation whose program it is part of.

    What derivatives put around the names, `transpose(jvp(...))`, is taken off; of a call other than `__call__` flax makes one name with a dot, which goes too.
    """
    names = re.sub(r"\w+\(|\)", "", str(eqn.source_info.name_stack)).split("/")
    return tuple(name for name in names if name.isidentifier() and name not in _REMAT)


def called(eqn: JaxprEqn) -> Jaxpr | None:
    """The program that an equation runs once on its own operands, if it is such a call: jit, remat, a function with its own derivative, ..."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return None
    for value in eqn.params.values():
        jaxpr = value.jaxpr if isinstance(value, ClosedJaxpr) else value
        if isinstance(jaxpr, Jaxpr) and (len(jaxpr.invars), len(jaxpr.outvars)) == (len(eqn.invars), len(eqn.outvars)):
            return jaxpr
    return None


def bytes_of(value: Any) -> int:
    """Of an array, a variable's type, or anything with a shape and a dtype; 0 for what is no array."""
    return math.prod(value.shape) * value.dtype.itemsize if hasattr(value, "dtype") else 0
