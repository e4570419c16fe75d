"""Llama, and mixtures, as transformers 4 writes them: frequencies among the tensors, rotary positions in older fields, one file or shards."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

GOLDENS = Path(__file__).parent / "goldens"
NEWER = {"rope_parameters": None, "dtype": None, "torch_dtype": "bfloat16"}

# What the older file has in place of rope_parameters.
OLDER: dict[str, dict[str, Any]] = {
    "llama": {
        "rope_theta": 50.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
        "pretraining_tp": 1,
    },
    "llama-tied": {"rope_theta": 700.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "mixtral": {"rope_theta": 1e6, "router_jitter_noise": 0.0},
    "deepseek-v3": {
        "rope_theta": 100,
        "rope_scaling": {
            "type": "yarn", "factor": 40, "original_max_position_embeddings": 8, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        },
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "aux_loss_alpha": 0.001, "seq_aux": True, "moe_layer_freq": 1, "ep_size": 1,
    },
    "gpt-oss": {
        "rope_theta": 15000.0, "experts_per_token": 2, "initial_context_length": 64,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 64,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name.startswith("llama") else pytest.mark.slow) for name in OLDER])
def test_older_files_give_the_same(name: str, tmp_path: Path, rewritten: Any, output: Any) -> None:
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8)} if name.startswith("llama") else {}
    np.testing.assert_array_equal(output(rewritten(name, tmp_path, lambda tensors: tensors | frequencies, **NEWER, **OLDER[name])), output(name))


def test_the_layer_for_further_tokens_is_left_out(tmp_path: Path, rewritten: Any, output: Any) -> None:
    more = {"model.layers.61.eh_proj.weight": np.ones((3, 3)), "model.layers.61.mlp.experts.0.up_proj.weight": np.ones((3, 3))}
    np.testing.assert_array_equal(output(rewritten("deepseek-v3", tmp_path, lambda tensors: tensors | more)), output("deepseek-v3"))


def test_shards_give_what_one_file_gives(tmp_path: Path, output: Any) -> None:
    tensors = load_file(GOLDENS / "llama" / "model.safetensors")
    names = sorted(tensors)
    shards = {f"model-0000{n + 1}-of-00003.safetensors": names[n::3] for n in range(3)}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_bytes((GOLDENS / "llama" / "config.json").read_bytes())
    np.testing.assert_array_equal(output(tmp_path), output("llama"))


@pytest.mark.slow
def test_weights_in_four_bits_are_what_they_stand_for(tmp_path: Path, rewritten: Any, output: Any) -> None:
    """gpt-oss: 32 inputs of an output share a scale, two numbers a byte, outputs before inputs; plainly stored the inputs come first."""
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 16, (5, 48, 32))
    scales = draw.integers(124, 129, (5, 48, 1))
    numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])[codes] * 2.0 ** (scales - 127)
    blocks = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)[:, :, None]
    name = "model.layers.1.mlp.experts.gate_up_proj"
    packed = {f"{name}_blocks": blocks, f"{name}_scales": scales.astype(np.uint8)}
    quantised = rewritten(
        "gpt-oss", tmp_path / "q", lambda tensors: {n: a for n, a in tensors.items() if n != name} | packed, quantization_config={"quant_method": "mxfp4"}
    )  # fmt: skip
    plain = rewritten("gpt-oss", tmp_path / "p", lambda tensors: tensors | {name: numbers.swapaxes(1, 2).astype(np.float32)})
    np.testing.assert_array_equal(output(quantised), output(plain))
