"""Files of BART and Marian as transformers 4 wrote them: copies of the embeddings, tables of sines, fields that say what the model cannot express."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transformer_jax import from_pretrained, save_pretrained
from transformer_jax.layers import Sinusoidal
from transformer_jax.zoo import bart, marian

GOLDENS = Path(__file__).parent / "goldens"
SOURCE, TARGET = jnp.arange(11)[None] + 7, jnp.arange(5)[None] + 23
OLD = {
    "num_hidden_layers": 2, "num_attention_heads": 3, "normalize_before": False, "add_bias_logits": False, "add_final_layer_norm": False, "num_beams": 4,
    "gradient_checkpointing": False, "classif_dropout": 0.1, "encoder_layerdrop": 0.0, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {},
    "torch_dtype": "float32", "tie_word_embeddings": None, "dtype": None,
}  # fmt: skip


def rewritten(name: str, folder: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A golden with other settings, None for those to leave out, and other tensors."""
    values = {**json.loads((GOLDENS / name / "config.json").read_text(encoding="utf-8")), **settings}
    (folder / "config.json").write_text(json.dumps({field: value for field, value in values.items() if value is not None}), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    return folder


def outputs(folder: Path) -> np.ndarray:
    model, variables = from_pretrained(folder)
    return np.asarray(model.apply(variables, SOURCE, TARGET))


def copies(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict.fromkeys(("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"), stored["model.shared.weight"])


def test_barts_copies_are_known(tmp_path: Path) -> None:
    stored = load_file(GOLDENS / "bart" / "model.safetensors")
    kept = {"normalize_embedding": True, "static_position_embeddings": False, "extra_pos_embeddings": 2, "force_bos_token_to_be_generated": False}
    versions = {f"model.{side}.version": np.ones(1, np.float32) for side in ("encoder", "decoder")}
    folder = rewritten("bart", tmp_path, {**OLD, **kept}, {**stored, **copies(stored), **versions})
    np.testing.assert_array_equal(outputs(folder), outputs(GOLDENS / "bart"))


def test_marians_tables_of_sines_are_no_parameters(tmp_path: Path) -> None:
    stored = load_file(GOLDENS / "marian" / "model.safetensors")
    sines = {f"model.{side}.embed_positions.weight": np.ones((16, 24), np.float32) for side in ("encoder", "decoder")}
    kept = {"normalize_embedding": False, "static_position_embeddings": True, "extra_pos_embeddings": 61, "decoder_vocab_size": None}
    folder = rewritten("marian", tmp_path, {**OLD, **kept}, {**stored, **copies(stored), **sines})
    np.testing.assert_array_equal(outputs(folder), outputs(GOLDENS / "marian"))


def test_a_model_without_a_head_has_names_without_a_prefix_or_with_it(tmp_path: Path) -> None:
    prefixed = {f"model.{name}": array for name, array in load_file(GOLDENS / "bart-model" / "model.safetensors").items()}
    np.testing.assert_array_equal(outputs(rewritten("bart-model", tmp_path, {}, prefixed)), outputs(GOLDENS / "bart-model"))


def test_an_untied_head_is_refused(tmp_path: Path) -> None:
    stored = load_file(GOLDENS / "bart" / "model.safetensors")
    folder = rewritten("bart", tmp_path, {}, {**stored, "lm_head.weight": 2 * stored["model.shared.weight"]})
    with pytest.raises(NotImplementedError, match="tie_word_embeddings: expected True for BART, received False"):
        from_pretrained(folder)


@pytest.mark.parametrize("field", ["normalize_before", "add_final_layer_norm", "static_position_embeddings"])
def test_what_barts_shape_cannot_express_is_refused(field: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{field}: expected False for BART, received True"):
        bart.FAMILY.read({**bart.FAMILY.presets["bart-base"], field: True})


def test_two_vocabularies_of_different_sizes_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="decoder_vocab_size: expected 58101"):
        marian.FAMILY.read({**marian.FAMILY.presets["opus-mt-en-de"], "decoder_vocab_size": 40000})


def test_interleaved_sines_are_nobodys(tmp_path: Path) -> None:
    model, variables = from_pretrained(GOLDENS / "marian")
    c = model.config
    other = c.replace(source_embedding=c.source_embedding.replace(position=Sinusoidal()), target_embedding=c.target_embedding.replace(position=Sinusoidal()))
    with pytest.raises(ValueError, match="expected one that a family of the zoo can express"):
        save_pretrained(tmp_path, other.make(), variables)
