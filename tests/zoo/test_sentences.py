"""Heads in place of a folder's own, and vectors of sentences as sentence-transformers describes them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from transformer_jax import EncoderOnly, from_pretrained, save_pretrained
from transformer_jax.layers import FirstToken, LanguageModel, LastToken, MaskedLanguageModel, Mean, NoHead, Pool, SentenceEmbedding, SequenceClassifier

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
    with pytest.raises(ValueError, match=r"GPT-2 by config\.json, head=Masked.* that none of its tensors hold: head/logits/bias, head/norm"):
        from_pretrained(GOLDENS / "gpt2", head=MaskedLanguageModel())


def test_a_head_of_the_folders_kind_takes_all_that_the_folders_head_has() -> None:
    with pytest.raises(ValueError, match=r"Llama 2 to 3.2 by config.json, head=LanguageModel\(tied=True.*left over: lm_head.weight"):
        from_pretrained(GOLDENS / "llama", head=LanguageModel())
    model, _ = from_pretrained(GOLDENS / "llama", head=LanguageModel(tied=False, softcap=3.0))
    assert model.config.head.softcap == 3.0


def test_a_head_changes_no_shape_of_the_folders_model() -> None:
    with pytest.raises(ValueError, match=r"T5.* by config\.json, head=LanguageModel.*: head/"):
        from_pretrained(GOLDENS / "t5-encoder", head=LanguageModel(tied=False))
    model, _ = from_pretrained(GOLDENS / "t5-encoder", head=LanguageModel())
    assert isinstance(model, EncoderOnly)


def test_without_the_head_there_is_the_pooler_that_the_folder_has(tmp_path: Path, rewritten: Any, output: Any) -> None:
    pooler = {"bert.pooler.dense.weight": np.eye(30), "bert.pooler.dense.bias": np.zeros(30)}
    folder = rewritten("bert", tmp_path, lambda tensors: tensors | pooler)
    assert not from_pretrained(folder)[0].config.pooler
    features = output(folder, head=NoHead())
    np.testing.assert_allclose(output(folder, head=NoHead(), method="pooled"), np.tanh(features[[0, 1], [2, 0]]), rtol=1e-5)


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
    assert model.config.head == SentenceEmbedding(Mean()) and model.config.pooler
    save_pretrained(tmp_path / "ours", model, variables)
    before, after = (load_file(folder / "model.safetensors") for folder in (theirs, tmp_path / "ours"))
    assert before.keys() == after.keys() and "pooler.dense.weight" in after
    features = output("bert-model", method="features")
    np.testing.assert_allclose(output(theirs), [features[0, 2:].mean(0), features[1].mean(0)], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(output(tmp_path / "ours", head=NoHead()), output("bert-model"))


def test_what_a_head_cannot_say_is_refused(tmp_path: Path, rewritten: Any) -> None:
    dense = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
    for n, (modules, pooling, message) in enumerate(
        [
            ([TRANSFORMER, POOLING, dense], {"pooling_mode": "mean"}, r"modules\.json: expected .*, received Transformer, Pooling, Dense"),
            ([TRANSFORMER, POOLING], {"pooling_mode_max_tokens": True}, r"1_Pooling/config\.json: pooling_mode: expected one of mean, cls, .*, received max"),
            ([TRANSFORMER, POOLING], {}, r"pooling_mode: expected one of mean, cls, lasttoken, received none"),
            ([TRANSFORMER, POOLING], {"pooling_mode": 5}, r"pooling_mode: expected one of mean, cls, lasttoken, received 5"),
            ([], {}, r"modules\.json: expected Transformer, Pooling and perhaps Normalize, received none"),
            ([TRANSFORMER, POOLING], {"pooling_mode": ["cls", "mean"]}, r"received cls, mean"),
        ]
    ):
        with pytest.raises(NotImplementedError, match=message):
            from_pretrained(described(rewritten, tmp_path / str(n), modules, pooling))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("modules.json", b"[{", r"modules\.json: expected JSON, received a file that is none"),
        ("modules.json", b"{}", r"modules\.json: expected a list, received dict"),
        ("modules.json", b'[{"type": "Transformer"}]', r"modules\.json: expected a list of modules, each with a type and a path"),
        ("1_Pooling/config.json", b"\xff{", r"1_Pooling/config\.json: expected JSON, received a file that is none"),
        ("1_Pooling/config.json", b"[]", r"1_Pooling/config\.json: expected an object, received list"),
    ],
)
def test_files_that_are_none_are_refused_with_their_names(tmp_path: Path, rewritten: Any, name: str, content: bytes, message: str) -> None:
    folder = described(rewritten, tmp_path, [TRANSFORMER, POOLING], {"pooling_mode": "mean"})
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder)
    (folder / name).unlink()
    if name != "modules.json":
        with pytest.raises(FileNotFoundError, match=r"1_Pooling/config\.json: expected a file, received none"):
            from_pretrained(folder)


@dataclass(frozen=True)
class Largest(Pool):
    """The largest of each feature."""

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        return jnp.where(valid[..., None], x, -jnp.inf).max(1)


def test_a_pool_that_no_file_can_say_leaves_what_was_there(tmp_path: Path, output: Any) -> None:
    model, variables = from_pretrained(GOLDENS / "bert-model", head=SentenceEmbedding(normalize=True))
    save_pretrained(tmp_path, model, variables)
    before = output(tmp_path)
    other = model.clone(config=model.config.replace(head=SentenceEmbedding(Largest())))
    with pytest.raises(NotImplementedError, match=r"SentenceEmbedding\.pool: expected one of Mean, FirstToken, LastToken, received Largest\(\)"):
        save_pretrained(tmp_path, other, jax.tree.map(lambda a: 2 * a, variables))
    np.testing.assert_array_equal(output(tmp_path), before)
    save_pretrained(tmp_path, model.clone(config=model.config.replace(head=NoHead())), variables)
    assert not (tmp_path / "modules.json").exists()
