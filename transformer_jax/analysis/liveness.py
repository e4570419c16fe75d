"""When the buffers of a program live; `peak_bytes` says by which rule."""

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from transformer_jax.analysis.jaxprs import bytes_of, called

_VIEWS = {"bitcast_convert_type", "copy", "expand_dims", "name", "optimization_barrier", "reshape", "squeeze"}
_MOVES = {"broadcast_in_dim", "concatenate", "dynamic_slice", "iota", "pad", "rev", "slice", "transpose"}
_REPEATED = {"broadcast_in_dim", "convert_element_type", "iota", "slice"}
_REDUCTIONS = {"argmax", "argmin", "cumsum", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum"}
_UPDATES = {"dynamic_update_slice", "scatter", "scatter-add"}
_WHOLE = {"cond", "conv_general_dilated", "dot_general", "gather", "ragged_dot_general", "scan", "sort", "while"} | _UPDATES


@dataclass(eq=False)
class _Value:
    """An array. Arguments and constants have size 0: they are somebody else's."""

    size: int = 0


@dataclass(eq=False)
class _Step:
    """An operation. `inside`: bytes that it needs while it runs; `updates`: how many of its results may take over an operand's buffer."""

    name: str
    operands: Sequence[_Value]
    results: Sequence[_Value]
    inside: int = 0
    updates: int = 0


def peak(jaxpr: Jaxpr) -> int:
    """The most bytes alive at once, arguments not counted, results counted."""
    steps: list[_Step] = []
    results = _inline(jaxpr, [_Value() for _ in jaxpr.invars], steps)
    return _peak(steps, results, returned=True)


def _inline(jaxpr: Jaxpr, arguments: Sequence[_Value], steps: list[_Step]) -> list[_Value]:
    """Appends a program's steps, those of calls in their place; returns its results."""
    known: dict[Any, _Value] = dict(zip(jaxpr.invars, arguments))

    def value(atom: Any) -> _Value:
        return _Value() if isinstance(atom, Literal) else known.setdefault(atom, _Value())

    for eqn in jaxpr.eqns:
        operands = [value(atom) for atom in eqn.invars]
        if inner := called(eqn):
            results = _inline(inner, operands, steps)
        elif eqn.primitive.name == "scan" and eqn.params["unroll"] >= eqn.params["length"]:
            results = _unrolled(eqn, operands, steps)
        else:
            results = [_Value(bytes_of(var.aval)) for var in eqn.outvars]
            steps.append(_Step(eqn.primitive.name, operands, results, _inside(eqn), _updates(eqn)))
        known.update(zip(eqn.outvars, results))
    return [value(atom) for atom in jaxpr.outvars]


def _unrolled(eqn: JaxprEqn, operands: Sequence[_Value], steps: list[_Step]) -> list[_Value]:
    body, consts, carries = eqn.params["jaxpr"].jaxpr, eqn.params["num_consts"], eqn.params["num_carry"]
    first = consts + carries
    carry, turns = list(operands[consts:first]), []
    for _ in range(eqn.params["length"]):
        slices = _slices(body.invars[first:], operands[first:], steps)
        results = _inline(body, [*operands[:consts], *carry, *slices], steps)
        carry = results[:carries]
        turns.append(results[carries:])
    stacked = [_Value(bytes_of(var.aval)) for var in eqn.outvars[carries:]]
    steps.extend(_Step("concatenate", parts, [whole]) for parts, whole in zip(zip(*turns), stacked))
    return [*carry, *stacked]


def _slices(variables: Sequence[Any], wholes: Sequence[_Value], steps: list[_Step]) -> list[_Value]:
    slices = [_Value(bytes_of(var.aval)) for var in variables]
    steps.extend(_Step("slice", [whole], [part]) for whole, part in zip(wholes, slices))
    return slices


def _inside(eqn: JaxprEqn) -> int:
    p = eqn.params
    match eqn.primitive.name:
        case "dot_general":
            _, batch = p["dimension_numbers"]
            return sum(bytes_of(var.aval) for var, axes in zip(eqn.invars, batch) if tuple(axes) != tuple(range(len(axes))))
        case "scan":
            return _turn(p["jaxpr"].jaxpr, p["num_consts"] + p["num_carry"])
        case "while":
            return _turn(p["body_jaxpr"].jaxpr, len(p["body_jaxpr"].jaxpr.invars))
        case "cond":
            return max(0, max(peak(branch.jaxpr) for branch in p["branches"]) - sum(bytes_of(var.aval) for var in eqn.outvars))
    return 0


def _turn(body: Jaxpr, whole: int) -> int:
    """What one turn of a loop needs beside what comes in and goes out: its first arguments come whole, of the others it takes slices."""
    steps: list[_Step] = []
    variables = body.invars[whole:]
    slices = _slices(variables, [_Value() for _ in variables], steps)
    results = _inline(body, [*(_Value() for _ in range(whole)), *slices], steps)
    return _peak(steps, results, returned=False)


def _updates(eqn: JaxprEqn) -> int:
    name = eqn.primitive.name
    return int(eqn.params["num_carry"]) if name == "scan" else len(eqn.outvars) if name in {"while", *_UPDATES} else 0


def _peak(steps: Sequence[_Step], results: Sequence[_Value], *, returned: bool) -> int:
    steps = _needed(steps, results)
    stored = _stored(steps, results if returned else ())
    buffers, replaceable = _places(steps, stored)

    def read(values: Sequence[_Value]) -> set[_Value]:
        return {buffer for value in values for buffer in buffers.get(value, ())}

    stages = [(step, read(step.operands), [v for v in step.results if v in stored]) for step in steps if not stored.isdisjoint(step.results)]
    last = {buffer: n for n, (_, operands, made) in enumerate(stages) for buffer in (*operands, *made)}
    last.update(dict.fromkeys(read(results), len(stages)))
    ending = collections.defaultdict(set)
    for buffer, n in last.items():
        ending[n].add(buffer)
    alive = most = 0
    for n, (step, operands, made) in enumerate(stages):
        free = [buffer.size for buffer in operands & ending[n] if step.updates or any(buffer in replaceable[v] for v in made)]
        taken = 0
        for value in made[: step.updates or None]:
            if value.size in free:
                free.remove(value.size)
                taken += value.size
        new = sum(value.size for value in made)
        most = max(most, alive + new - taken + step.inside)
        alive += new - sum(buffer.size for buffer in ending[n])
    return most


def _needed(steps: Sequence[_Step], results: Sequence[_Value]) -> list[_Step]:
    live, needed = set(results), []
    for step in reversed(steps):
        if not live.isdisjoint(step.results):
            needed.append(step)
            live.update(step.operands)
    return needed[::-1]


def _stored(steps: Sequence[_Step], returned: Sequence[_Value]) -> set[_Value]:
    """What gets a buffer of its own."""
    readers: dict[_Value, set[Any]] = collections.defaultdict(set)
    stored = set()
    for value in returned:
        readers[value].add(None)
    for step in reversed(steps):
        for value in step.operands:
            readers[value] |= readers[step.results[0]] if step.name in _VIEWS else {step}
        for value in step.results:
            mine = readers[value]
            several = len(mine) > 1 and step.name not in _REPEATED
            whole = step.name in _WHOLE | _REDUCTIONS or several or any(reader is None or reader.name in _WHOLE for reader in mine)
            if whole and step.name not in _VIEWS:
                stored.add(value)
    return stored


def _places(steps: Sequence[_Step], stored: set[_Value]) -> tuple[dict[_Value, set[_Value]], dict[_Value, set[_Value]]]:
    """The buffers that a value is made of, and for one in a buffer those that it may take over."""
    buffers: dict[_Value, set[_Value]] = {}
    same: dict[_Value, set[_Value]] = {}  # made of these by nothing but elementwise operations
    replaceable: dict[_Value, set[_Value]] = {}
    for step in steps:
        moves = step.name in _VIEWS | _MOVES | _WHOLE | _REDUCTIONS
        for value in step.results:
            made_of = {buffer for operand in step.operands for buffer in buffers.get(operand, ())}
            over = set() if moves else {buffer for operand in step.operands if operand.size == value.size for buffer in same.get(operand, ())}
            replaceable[value] = over
            buffers[value], same[value] = ({value}, {value}) if value in stored else (made_of, over)
    return buffers, replaceable
