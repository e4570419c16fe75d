"""Heads in place of a folder's own, and vectors of sentences as sentence-transformers describes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from transformer_jax import from_pretrained, save_pretrained
from transformer_jax.layers import FirstToken, LastToken, MaskedLanguageModel, Mean, NoHead, SentenceEmbedding, SequenceClassifier

GOLDENS = Path(__file__).parent / "goldens"
TRANSFORMER, POOLING, NORMALIZE = ({"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in (
    ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"),
))  # fmt: skip


def described(rewritten: Any, folder: Path, modules: list[dict[str, Any]], pooling: dict[str, Any], golden: str = "bert") -> Path:
    rewritten(golden, folder)
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    return folder


def test_a_head_may_take_the_place_of_the_folders_own(output: Any) -> None:
    features = output("bert", method="features")
    np.testing.assert_array_equal(output("bert", head=NoHead()), features)
    vectors = output("bert", head=SentenceEmbedding())
    np.testing.assert_allclose(vectors, [features[0, 2:].mean(0), features[1].mean(0)], rtol=1e-5, atol=1e-6)


def test_a_head_whose_parameters_the_folder_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"missing: bert\.pooler\.dense\.bias"):
        from_pretrained(GOLDENS / "bert", head=SequenceClassifier(3))
    with pytest.raises(ValueError, match=r"head/dense/(kernel|bias): expected tensors for its \d+ numbers, received tensors for 0"):
        from_pretrained(GOLDENS / "gpt2", head=MaskedLanguageModel())


@pytest.mark.parametrize(
    ("modules", "pooling", "head"),
    [
        ([TRANSFORMER, POOLING], {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, SentenceEmbedding(Mean())),
        ([TRANSFORMER, POOLING, NORMALIZE], {"pooling_mode_cls_token": True}, SentenceEmbedding(FirstToken(), normalize=True)),
        ([TRANSFORMER, POOLING], {"embedding_dimension": 30, "pooling_mode": "lasttoken"}, SentenceEmbedding(LastToken())),
    ],
)
def test_a_folder_of_sentence_transformers_says_its_head_and_is_written_again(
    tmp_path: Path, rewritten: Any, output: Any, modules: Any, pooling: Any, head: SentenceEmbedding
) -> None:  # fmt: skip
    model, variables = from_pretrained(described(rewritten, tmp_path / "theirs", modules, pooling))
    assert model.config.head == head
    save_pretrained(tmp_path / "ours", model, variables)
    again, _ = from_pretrained(tmp_path / "ours")
    assert again.config == model.config
    assert json.loads((tmp_path / "ours" / "config.json").read_text(encoding="utf-8"))["architectures"] == ["BertModel"]
    np.testing.assert_array_equal(output(tmp_path / "ours"), output(tmp_path / "theirs"))


def test_a_pooler_that_no_vector_is_made_with_is_kept(tmp_path: Path, rewritten: Any, output: Any) -> None:
    theirs = described(rewritten, tmp_path / "theirs", [TRANSFORMER, POOLING], {"pooling_mode": "mean"}, golden="bert-model")
    model, variables = from_pretrained(theirs)
    assert model.config.head == SentenceEmbedding(Mean(), pooler=True)
    save_pretrained(tmp_path / "ours", model, variables)
    before, after = (load_file(folder / "model.safetensors") for folder in (theirs, tmp_path / "ours"))
    assert before.keys() == after.keys() and "pooler.dense.weight" in after
    np.testing.assert_array_equal(output(theirs, head=SentenceEmbedding()), output(theirs))
    np.testing.assert_array_equal(output(tmp_path / "ours", head=NoHead()), output("bert-model"))


def test_what_a_head_cannot_say_is_refused(tmp_path: Path, rewritten: Any) -> None:
    dense = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
    for n, (modules, pooling, message) in enumerate(
        [
            ([TRANSFORMER, POOLING, dense], {"pooling_mode": "mean"}, r"modules\.json: expected .*, received Transformer, Pooling, Dense"),
            ([TRANSFORMER, POOLING], {"pooling_mode_max_tokens": True}, r"1_Pooling/config\.json: expected one of mean, cls, lasttoken, received max"),
            ([TRANSFORMER, POOLING], {"pooling_mode": ["cls", "mean"]}, r"received cls, mean"),
        ]
    ):
        with pytest.raises(NotImplementedError, match=message):
            from_pretrained(described(rewritten, tmp_path / str(n), modules, pooling))
