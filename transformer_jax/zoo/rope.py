"""Rotary positions as published configs write them: `rope_theta` beside `rope_scaling`, or both in `rope_parameters`."""

from collections.abc import Mapping
from typing import Any

from transformer_jax.config import nearest
from transformer_jax.layers import LinearScaling, Llama3Scaling, LongRopeScaling, NoScaling, Rope, RopeScaling, YarnScaling
from transformer_jax.zoo.settings import Settings


def rope_parameters(s: Settings, *, theta: float = 1e4, partial: bool = False, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of rotary positions in one place, whichever version wrote them.

    Args:
        s: of the config.json.
        theta: the family's default.
        partial: whether the family has heads of which only a part turns.
        default: what the family takes where there is neither rope_parameters nor rope_scaling.

    Raises:
        ValueError: the two places say different things. NotImplementedError: a part turns, where the family turns all.
    """
    newer, older = s("rope_parameters", None), s("rope_scaling", None)
    given = newer or older or default or {}
    if not isinstance(given, dict) or (newer and older and newer != older):
        raise ValueError(f"config.json: rope_parameters, rope_scaling: expected an object in one of them, received {newer!r} and {older!r}")
    outside = {
        "rope_theta": s.one_of("rope_theta", "rotary_emb_base", default=None),
        "partial_rotary_factor": s.one_of("partial_rotary_factor", "rotary_pct", default=None),
    }
    found = {"rope_theta": theta, **agreeing(outside, given)}
    if not partial and found.get("partial_rotary_factor", 1.0) != 1:
        raise NotImplementedError(f"config.json: partial_rotary_factor: expected 1, as whole heads turn, received {found['partial_rotary_factor']}")
    return found


def agreeing(outside: Mapping[str, Any], inside: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of rotary positions that stand in two places of a config.json, as one; those that are None are not there.

    Raises:
        ValueError: the places say different things.
    """
    outside = {name: value for name, value in outside.items() if value is not None}
    for name in outside.keys() & inside.keys():
        if outside[name] != inside[name]:
            raise ValueError(f"config.json: {name}: expected one value, received {outside[name]!r} beside {inside[name]!r} in rope_parameters or rope_scaling")
    return {**outside, **inside}


def rope(parameters: Mapping[str, Any], s: Settings) -> Rope:
    """Ours.

    Raises:
        NotImplementedError: a type that we have not. ValueError: a field of the type is missing, or one too many.
    """
    left = dict(parameters)
    theta, fraction = left.pop("rope_theta"), left.pop("partial_rotary_factor", 1.0)
    kinds = [kind for name in ("rope_type", "type") if (kind := left.pop(name, None))]
    kind = kinds[0] if kinds else "default"
    if kind not in _READERS:
        raise NotImplementedError(f"config.json: rope_type: expected one of {', '.join(_READERS)}, received {kind!r}{nearest(str(kind), _READERS)}")
    left.setdefault("original_max_position_embeddings", s("original_max_position_embeddings", None) or s("max_position_embeddings"))
    try:
        scaling = _READERS[kind](left)
    except TypeError:
        raise ValueError(f"config.json: rope_scaling: expected numbers, received {dict(parameters)}") from None
    except KeyError as error:
        raise ValueError(f"config.json: rope_scaling: expected a field {error.args[0]!r} for rope type {kind!r}, received {dict(parameters)}") from None
    left.pop("original_max_position_embeddings", None)
    if left:
        raise ValueError(f"config.json: rope_scaling: expected fields of rope type {kind!r}, received also {', '.join(map(repr, left))}")
    return Rope(float(theta), fraction=float(fraction), scaling=scaling)


def _linear(p: dict[str, Any]) -> RopeScaling:
    return LinearScaling(float(p.pop("factor")))


def _llama3(p: dict[str, Any]) -> RopeScaling:
    return Llama3Scaling(
        float(p.pop("factor")), original_length=p.pop("original_max_position_embeddings"), low_freq_factor=float(p.pop("low_freq_factor")),
        high_freq_factor=float(p.pop("high_freq_factor")),
    )  # fmt: skip


def _yarn(p: dict[str, Any]) -> RopeScaling:
    return YarnScaling(
        float(p.pop("factor")), original_length=p.pop("original_max_position_embeddings"), beta_fast=float(p.pop("beta_fast", None) or 32),
        beta_slow=float(p.pop("beta_slow", None) or 1), truncate=p.pop("truncate", True), attention_factor=p.pop("attention_factor", None), **_mscales(p),
    )  # fmt: skip


def _mscales(p: dict[str, Any]) -> dict[str, Any]:
    """They count where both are given."""
    found = p.pop("mscale", None), p.pop("mscale_all_dim", None)
    return dict(zip(("mscale", "mscale_all_dim"), map(float, found))) if all(found) else {}


def _longrope(p: dict[str, Any]) -> RopeScaling:
    return LongRopeScaling(
        tuple(p.pop("short_factor")), long_factors=tuple(p.pop("long_factor")), original_length=p.pop("original_max_position_embeddings"),
        factor=p.pop("factor", None), attention_factor=p.pop("attention_factor", None),
    )  # fmt: skip


_READERS = {"default": lambda p: NoScaling(), "linear": _linear, "llama3": _llama3, "longrope": _longrope, "yarn": _yarn}


def rope_settings(position: Rope) -> dict[str, Any]:
    """Theirs, as every version reads them.

    Raises:
        NotImplementedError: a scaling that they have not.
    """
    scaling = position.scaling
    match scaling:
        case NoScaling():
            fields = None
        case LinearScaling(factor):
            fields = {"rope_type": "linear", "factor": factor}
        case Llama3Scaling(factor):
            bounds = {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
            fields = {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": scaling.original_length, **bounds}
        case YarnScaling(factor):
            fields = {
                "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": scaling.original_length, "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow, "truncate": scaling.truncate,
                **_given(attention_factor=scaling.attention_factor),
                **({"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all_dim} if scaling.mscale_all_dim else {}),
            }  # fmt: skip
        case LongRopeScaling(short):
            factors = {"short_factor": list(short), "long_factor": list(scaling.long_factors)}
            optional = _given(factor=scaling.factor, attention_factor=scaling.attention_factor)
            fields = {"rope_type": "longrope", "original_max_position_embeddings": scaling.original_length, **factors, **optional}
        case _:
            raise NotImplementedError(f"Rope.scaling: expected one that config.json can say ({', '.join(_READERS)}), received {type(scaling).__name__}")
    return {"rope_theta": position.theta, "rope_scaling": fields}


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
