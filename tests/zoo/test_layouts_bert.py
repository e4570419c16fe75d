"""BERT as the hub has it: older names, further heads' tensors, and none of the classes' names before the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transformer_jax import from_pretrained, save_pretrained
from transformer_jax.layers import NoHead

Arrays = dict[str, np.ndarray]

POOLER = {"pooler.dense.weight": np.ones((30, 30)), "pooler.dense.bias": np.ones(30)}


def older(tensors: Arrays) -> Arrays:
    """As bert-base-uncased has them."""
    named = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array for name, array in tensors.items()}
    named |= {f"bert.{name}": array for name, array in POOLER.items()}
    named |= {"cls.seq_relationship.weight": np.ones((2, 30)), "cls.seq_relationship.bias": np.ones(2)}
    return named | {
        "bert.embeddings.position_ids": np.arange(40)[None],
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }


def bare(tensors: Arrays) -> Arrays:
    return {name.removeprefix("bert."): array for name, array in tensors.items() if name.startswith("bert.")}


def test_older_names_and_heads_of_pretraining_change_nothing(tmp_path: Path, rewritten: Any, output: Any) -> None:
    fields = {"architectures": ["BertForPreTraining"], "position_embedding_type": "absolute", "pooler_type": "first_token_transform", "directionality": "bidi"}
    np.testing.assert_array_equal(output(rewritten("bert", tmp_path, older, **fields)), output("bert"))


def test_a_model_without_prefix_gives_its_features_and_whether_there_is_a_pooler_its_tensors_say(tmp_path: Path, rewritten: Any, output: Any) -> None:
    features = output("bert", method="features")
    for pooler in ({}, POOLER):
        folder = rewritten("bert", tmp_path / f"{len(pooler)}", lambda tensors, more=pooler: bare(tensors) | more, architectures=["BertModel"])
        np.testing.assert_array_equal(output(folder), features)
        model, variables = from_pretrained(folder)
        assert (model.config.head, model.config.pooler) == (NoHead(), bool(pooler))
        save_pretrained(tmp_path / f"{len(pooler)}_again", model, variables)
        assert from_pretrained(tmp_path / f"{len(pooler)}_again")[0].config == model.config
    np.testing.assert_allclose(output(folder, method="pooled"), np.tanh(1 + features[[0, 1], [2, 0]].sum(-1))[:, None] * np.ones((1, 30)), rtol=1e-5)


def test_half_a_pooler_is_refused(tmp_path: Path, rewritten: Any, output: Any) -> None:
    folder = rewritten("bert-model", tmp_path, lambda tensors: {name: array for name, array in tensors.items() if name != "pooler.dense.weight"})
    with pytest.raises(ValueError, match=r"missing: bert\.pooler\.dense\.weight"):
        output(folder)


def test_a_classifier_needs_its_pooler(tmp_path: Path, rewritten: Any, output: Any) -> None:
    folder = rewritten("bert-classes", tmp_path, lambda tensors: {name: array for name, array in tensors.items() if "pooler" not in name})
    with pytest.raises(ValueError, match=r"missing: bert\.pooler\.dense\.bias, bert\.pooler\.dense\.weight"):
        output(folder)


def test_an_untied_head_is_refused(tmp_path: Path, rewritten: Any, output: Any) -> None:
    folder = rewritten("bert", tmp_path, lambda tensors: tensors | {"cls.predictions.decoder.weight": np.ones((61, 30))}, tie_word_embeddings=False)
    with pytest.raises(NotImplementedError, match=r"tie_word_embeddings: expected True for BERT, received False"):
        output(folder)
