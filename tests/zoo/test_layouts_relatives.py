"""Llama's relatives as transformers 4 writes their config.json: the goldens, which transformers 5 wrote, say the same; what is written suits both."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transformer_jax import zoo
from transformer_jax.layers import Attention, Build, Causal, Embedding, Gated, Group, LanguageModel, Residual, RMSNorm, Rope, SlidingWindow, Softcap, Stack
from transformer_jax.models import DecoderOnlyConfig

GOLDENS = Path(__file__).parent / "goldens"
SHORT, LONG = [1.1, 1.7, 2.3], [1.3, 4.1, 9.7]

# What the older file has in place of rope_parameters, layer_types and dtype.
OLDER: dict[str, dict[str, Any]] = {
    "mistral": {"rope_theta": 30.0},
    "qwen2": {"rope_theta": 1e4, "use_mrope": False},
    "qwen2-yarn": {"rope_theta": 90.0, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "qwen3-tied": {"rope_theta": 70.0, "rope_scaling": None},
    "gemma2": {"rope_theta": 1e4, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid", "sliding_window_size": 4},
    "gemma3": {
        "rope_theta": 500.0, "rope_local_base_freq": 20.0, "rope_scaling": {"rope_type": "linear", "factor": 3.0}, "sliding_window_pattern": 6,
        "cache_implementation": "hybrid",
    },
    "olmo2-model": {"rope_theta": 9e2, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "phi3": {"rope_theta": 50.0, "rope_scaling": None, "attention_bias": False},
    "phi3-long": {"rope_theta": 50.0, "rope_scaling": {"type": "su", "short_factor": SHORT, "long_factor": LONG}, "partial_rotary_factor": 0.75},
}  # fmt: skip


def golden(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((GOLDENS / name / "config.json").read_text(encoding="utf-8"))
    return values


def family(values: dict[str, Any]) -> zoo.Family:
    return next(family for family in zoo.FAMILIES if family.model_type == values["model_type"])


@pytest.mark.parametrize("name", OLDER)
def test_an_older_file_is_read_as_the_same_model(name: str) -> None:
    values = golden(name)
    older = {key: value for key, value in values.items() if key not in ("rope_parameters", "layer_types", "_sliding_window_pattern", "dtype")}
    assert family(values).read({**older, **OLDER[name], "torch_dtype": "bfloat16"}) == family(values).read(values)


@pytest.mark.parametrize("name", OLDER)
def test_older_versions_can_read_what_is_written(name: str) -> None:
    values = golden(name)
    written = family(values).write(family(values).read(values))
    assert written is not None and "rope_parameters" not in written
    for key, value in OLDER[name].items():
        if key in ("rope_theta", "rope_local_base_freq", "sliding_window_pattern", "partial_rotary_factor"):
            assert written[key] == value
    if name == "phi3-long":  # some versions take exactly these three fields
        assert written["rope_scaling"] == {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}


def test_layers_of_gemma_3_that_are_no_pattern_are_said_by_layer_types_alone() -> None:
    values = golden("gemma3-untied")
    written = family(values).write(family(values).read(values))
    assert written is not None and written["layer_types"] == values["layer_types"] and "sliding_window_pattern" not in written


def test_a_window_of_one_key_is_the_query_s_own() -> None:
    values = {**golden("mistral"), "sliding_window": 1}
    config = family(values).read(values)
    assert [part for part in config.walk() if isinstance(part, SlidingWindow)] == [SlidingWindow(0)]
    written = family(values).write(config)
    assert written is not None and written["sliding_window"] == 1


@pytest.mark.parametrize(
    ("name", "changes", "error", "words"),
    [
        ("qwen2", {"layer_types": ["full_attention"] * 2}, ValueError, "layer_types: expected one for each of 3 layers, received 2"),
        ("qwen2", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}, NotImplementedError, "received .'linear_attention'"),
        ("qwen2", {"use_sliding_window": False}, ValueError, "sliding_window: expected a number"),
        ("qwen2", {"use_mrope": True}, NotImplementedError, "use_mrope: expected False for Qwen2"),
        ("gemma2", {"use_bidirectional_attention": True}, NotImplementedError, "use_bidirectional_attention"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, NotImplementedError, "attn_logit_softcapping: expected None for Gemma 3"),
        ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, ValueError, "rope_parameters: expected those of full_attention"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, ValueError, "layer_types"),
        ("olmo2", {"clip_qkv": 8.0}, ValueError, "clip_qkv = 8.0"),
        ("phi3", {"attention_bias": True}, NotImplementedError, "attention_bias: expected False for Phi-3"),
    ],
)
def test_what_cannot_be_expressed_is_refused(name: str, changes: dict[str, Any], error: type[Exception], words: str) -> None:
    values = {**golden(name), **changes}
    with pytest.raises(error, match=words):
        family(values).read(values)



def test_what_attention_derives_from_other_fields_may_be_left_out() -> None:
    """A model of one's own that says neither how wide a head is nor how many keys' heads there are is the published one that says it."""
    scale = RMSNorm(offset=1.0)
    attention = Attention(4, mask=Causal(), position=Rope(), score=(Softcap(50.0),))
    layer = Residual(attention, pre=scale, post=scale), Residual(Gated(24, activation="gelu_tanh"), pre=scale, post=scale)
    config = DecoderOnlyConfig(
        19, d_model=20, max_length=8, stack=Stack((Group(2, layer),), final_norm=scale), embedding=Embedding(scale=True), head=LanguageModel(softcap=30.0)
    )  # fmt: skip
    found = {family.model_type: values for family in zoo.FAMILIES if (values := family.write(config)) is not None}
    assert list(found) == ["gemma2"]
    assert {key: found["gemma2"][key] for key in ("head_dim", "num_key_value_heads", "query_pre_attn_scalar")} == {
        "head_dim": 5, "num_key_value_heads": 4, "query_pre_attn_scalar": 5,
    }  # fmt: skip


def test_phi_3_with_the_length_of_its_first_training_has_the_factors_for_short_texts_and_the_amplitude_of_the_long() -> None:
    long = family(golden("phi3-long")).read(golden("phi3-long"))
    position = long.stack.groups[0].sublayers[0].layer.position
    build, short = (Build(long.d_model, max_length=n) for n in (long.max_length, position.scaling.original_length))
    assert position.scaling.amplitude(short) == position.scaling.amplitude(build) > 1
    rates = [position.scaling.rates(6, 1e4, b, "float32").tolist() for b in (short, build)]
    np.testing.assert_allclose([a / b for a, b in zip(*rates)], [b / a for a, b in zip(SHORT, LONG)], rtol=1e-6)
