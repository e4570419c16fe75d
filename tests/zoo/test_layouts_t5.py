"""T5's files as transformers 4 wrote them: copies of the embeddings, a table that nothing reads, flags that say whether logits are scaled."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transformer_jax import from_pretrained
from transformer_jax.layers import LanguageModel
from transformer_jax.zoo import t5

GOLDENS = Path(__file__).parent / "goldens"
SOURCE, TARGET = jnp.arange(11)[None] + 7, jnp.arange(5)[None] + 23
NEW = ("scale_decoder_outputs", "dtype", "dense_act_fn", "is_gated_act", "is_decoder", "classifier_dropout")


def rewritten(golden: str, folder: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A golden with other settings, None for those to leave out, and further tensors."""
    values = {**json.loads((GOLDENS / golden / "config.json").read_text(encoding="utf-8")), **settings}
    (folder / "config.json").write_text(json.dumps({name: value for name, value in values.items() if value is not None}), encoding="utf-8")
    save_file({**load_file(GOLDENS / golden / "model.safetensors"), **tensors}, folder / "model.safetensors")
    return folder


def logits(folder: Path) -> np.ndarray:
    model, variables = from_pretrained(folder)
    return np.asarray(model.apply(variables, SOURCE, TARGET))


@pytest.mark.parametrize(("name", "tied"), [("t5", True), ("t5-v1_1", False)])
def test_files_of_transformers_4_have_copies_and_say_whether_the_head_is_tied(name: str, tied: bool, tmp_path: Path) -> None:
    stored = load_file(GOLDENS / name / "model.safetensors")
    copies = {f"{side}.embed_tokens.weight": stored["shared.weight"] for side in ("encoder", "decoder")}
    unread = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones((8, 3), np.float32)}
    head = {"lm_head.weight": stored["shared.weight"]} if tied else {}
    old = {**dict.fromkeys(NEW), "torch_dtype": "float32", "tie_word_embeddings": tied, "n_positions": 512, "output_past": True}
    folder = rewritten(name, tmp_path, old, {**copies, **unread, **head})
    np.testing.assert_array_equal(logits(folder), logits(GOLDENS / name))


def test_logits_of_an_untied_head_are_scaled_only_where_the_file_says_so(tmp_path: Path) -> None:
    folder = rewritten("t5-v1_1", tmp_path, {"scale_decoder_outputs": True}, {})
    np.testing.assert_allclose(logits(folder) * 24**0.5, logits(GOLDENS / "t5-v1_1"), rtol=1e-4, atol=1e-4)


def test_a_head_that_equals_the_embeddings_is_a_parameter_of_its_own_where_the_file_says_so(tmp_path: Path) -> None:
    shared = load_file(GOLDENS / "t5" / "model.safetensors")["shared.weight"]
    copies = {"lm_head.weight": shared, "encoder.embed_tokens.weight": shared}
    model, variables = from_pretrained(rewritten("t5", tmp_path, {"tie_word_embeddings": False, "scale_decoder_outputs": None}, copies))
    assert model.config.head == LanguageModel(tied=False)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"].T, variables["params"]["source_embedding"]["embedding"])


def test_settings_that_contradict_each_other_are_refused() -> None:
    values = {**t5.FAMILY.presets["t5-v1_1-small"], "dense_act_fn": "relu"}
    with pytest.raises(NotImplementedError, match="dense_act_fn: expected 'gelu_new'"):
        t5.FAMILY.read(values)
