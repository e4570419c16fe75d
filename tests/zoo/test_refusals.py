"""Nothing is passed over in silence: not a field of config.json, not a tensor, not a way of generating positions."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax import from_pretrained, save_pretrained, unstacked, zoo
from transformer_jax.layers import LayerNorm, RMSNorm

GOLDENS = Path(__file__).parent / "goldens"


def values_of(golden: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((GOLDENS / golden / "config.json").read_text(encoding="utf-8"))
    return values


@pytest.mark.parametrize("family", zoo.FAMILIES, ids=[family.model_type for family in zoo.FAMILIES])
def test_a_field_that_nobody_knows_is_refused(family: zoo.Family) -> None:
    name, preset = next(iter(family.presets.items()))
    assert zoo.config(name) == family.read(preset)
    with pytest.raises(ValueError, match=r"expected fields that .* is known to have, received zq_37 = 3; take out what does not change the model"):
        family.read({**preset, "zq_37": 3})


@pytest.mark.parametrize("family", zoo.FAMILIES, ids=[family.model_type for family in zoo.FAMILIES])
def test_a_reason_is_given_for_what_is_ignored_or_dropped(family: zoo.Family) -> None:
    assert all(len(reason) > 5 for reason in (*family.ignored.values(), *family.dropped.values()))


def test_a_field_that_is_missing_is_named() -> None:
    values = {name: value for name, value in values_of("llama").items() if name != "hidden_size"}
    with pytest.raises(ValueError, match=r"config\.json: Llama 2 to 3\.2 needs a field 'hidden_size', which is not there"):
        zoo.llama.FAMILY.read(values)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llama", {"model_type": "lama"}, r"model_type: expected one of .*llama.*, received 'lama' \(nearest: llama"),
        ("llama", {"architectures": 5}, "architectures: expected one of LlamaForCausalLM, .*, received 5"),
        ("llama", {"architectures": [["x"]]}, "architectures: expected one of LlamaForCausalLM, .*, received x"),
        ("llama", {"architectures": [3]}, "architectures: expected one of LlamaForCausalLM, .*, received 3"),
        ("llama", {"architectures": ["LlamaForCasualLM"]}, r"expected one of LlamaForCausalLM, .* LlamaForCasualLM \(nearest: LlamaForCausalLM"),
        ("llama", {"hidden_act": "mish"}, "expected one of relu, .*, received 'mish'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10.0, "factor": 2.0}}, "rope_type: expected one of .*, received 'dynamic'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: expected False for GPT-2, received True"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise: expected 0.0 for Mixtral, received 0.1"),
        ("gpt-oss", {"swiglu_alpha": 2.0}, "swiglu_alpha: expected 1.702 for gpt-oss, received 2.0"),
        ("deepseek-v3", {"topk_method": "greedy"}, "topk_method: expected 'noaux_tc' for DeepSeek V3, received 'greedy'"),
        ("deepseek-v3", {"quantization_config": {"quant_method": "gptq"}}, "quant_method"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused(name: str, fields: dict[str, Any], message: str, tmp_path: Path, rewritten: Any) -> None:
    with pytest.raises(NotImplementedError, match=message):
        from_pretrained(rewritten(name, tmp_path, **fields))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors | {"model.layers.0.self_attn.extra": np.ones(3)}, r"left over: model\.layers\.0\.self_attn\.extra"),
        (lambda tensors: {n: a for n, a in tensors.items() if n != "model.norm.weight"}, r"missing: model\.norm\.weight"),
        (lambda tensors: tensors | {"model.norm.weight": np.ones(35)}, r"tensor model\.norm\.weight: expected shape \(36,\) by config\.json, received \(35,\)"),
        (lambda tensors: {n: a for n, a in tensors.items() if ".1." not in n}, r"missing: model\.layers\.1\..* and \d+ more"),
    ],
    ids=["left over", "missing", "shape", "layer"],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(change: Any, message: str, tmp_path: Path, rewritten: Any) -> None:
    with pytest.raises(ValueError, match=message):
        from_pretrained(rewritten("llama", tmp_path, change))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder with a published model, received one that does not exist"):
        from_pretrained(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="expected a folder with a published model, received one without config"):
        from_pretrained(tmp_path)
    for text, message in (("{", "expected JSON"), ("[]", "expected an object, received list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            from_pretrained(tmp_path)


def test_a_model_that_no_family_can_express_is_not_written(tmp_path: Path) -> None:
    model, variables = from_pretrained(GOLDENS / "llama-tied")
    config = model.config
    other = config.replace(stack=config.stack.replace(final_norm=LayerNorm()))
    with pytest.raises(ValueError, match="model: expected one that a family of the zoo can express"):
        save_pretrained(tmp_path / "out", other.make(), variables)
    other = config.replace(stack=config.stack.replace(final_norm=RMSNorm(0.5)))
    with pytest.raises(ValueError, match=r"expected one that Llama 2 to 3\.2 can express, received one that would be read as another: stack\.groups"):
        save_pretrained(tmp_path / "out", other.make(), variables, family="llama")
    with pytest.raises(ValueError, match=r"family: expected one of .*, received 'lama' \(nearest: llama\)"):
        save_pretrained(tmp_path / "out", model, variables, family="lama")
    assert not (tmp_path / "out").exists()


def test_arguments_that_are_none_are_told_what_they_are_to_be() -> None:
    for arguments, message in (
        ({"precision": "bfloat16"}, r"precision: expected a Precision, such as Precision\('bfloat16'\), received 'bfloat16'"),
        ({"dtype": "bfloat16"}, r"expected fields out of backend, .*, received 'dtype'; dtypes are those of precision=Precision"),
        ({"backend": ["reference"]}, r"backend: expected a str, received \['reference'\]"),
        ({"bakend": "reference"}, r"received 'bakend' \(nearest: backend\)"),
        ({"family": "gemma"}, r"family: expected a zoo\.Family, or None for the one that config\.json names, received 'gemma'"),
    ):
        with pytest.raises(TypeError, match=message):
            from_pretrained(GOLDENS / "llama", **arguments)


def test_special_tokens_and_names_of_classes_may_be_a_folders(tmp_path: Path, rewritten: Any) -> None:
    names = {"0": "no", "1": "yes", "2": "perhaps"}
    folder = rewritten("bert-classes", tmp_path / "theirs", id2label=names, bos_token_id=7, eos_token_id=[2, 9])
    model, variables = from_pretrained(folder)
    save_pretrained(tmp_path / "ours", model, variables, about=folder)
    written = json.loads((tmp_path / "ours" / "config.json").read_text(encoding="utf-8"))
    assert (written["id2label"], written["bos_token_id"], written["eos_token_id"]) == (names, 7, [2, 9])
    model, variables = from_pretrained(GOLDENS / "bert")  # which has no classes
    save_pretrained(tmp_path / "others", model, variables, about=folder)
    assert "id2label" not in json.loads((tmp_path / "others" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"none/config\.json: expected that of a published model, with a model_type, received one without"):
        save_pretrained(tmp_path / "ours", model, variables, about=tmp_path / "none")


def test_variables_that_are_not_the_models_are_not_written(tmp_path: Path) -> None:
    model, variables = from_pretrained(GOLDENS / "llama-tied")
    less = {"params": {name: part for name, part in variables["params"].items() if name != "embedding"}}
    for given, message in (
        (from_pretrained(GOLDENS / "llama")[1], "variables: expected those of the model, with head/kernel none, received"),
        (variables["params"], "with embedding/embedding .* received none"),
        (less, "with embedding/embedding .* received none"),
        (unstacked(model, variables)[1], "with stack/groups_0/layers/sublayers_0/.* received none"),
        (jax.tree.map(lambda a: a.astype("int8"), variables), "expected parameters of one dtype out of float32, .*, received int8"),
    ):
        with pytest.raises(ValueError, match=message):
            save_pretrained(tmp_path / "out", model, given)
    for field, message in (("hidden_size", "d_model: 36 -> 12"), ("zq_37", "received zq_37 = 12")):
        with pytest.raises(ValueError, match=f"about: expected fields that say nothing of the model, such as eos_token_id, received others: .*{message}"):
            save_pretrained(tmp_path / "out", model, variables, about={field: 12})
    for about, message in (
        ({"model_type": "bert"}, "about: expected fields that say nothing of the model, such as eos_token_id, received model_type, which the model decides"),
        ({"dtype": "bfloat16"}, "received dtype, which the model decides"),
        ({"eos_token_id": "</s>"}, "about: eos_token_id: expected a token, or a list of tokens, received '</s>'"),
    ):
        with pytest.raises(ValueError, match=message):
            save_pretrained(tmp_path / "out", model, variables, about=about)
    assert not (tmp_path / "out").exists()


def test_tensors_that_are_no_floats_are_refused(tmp_path: Path, rewritten: Any) -> None:
    folder = rewritten("llama", tmp_path, lambda tensors: tensors | {"model.norm.weight": np.ones(36, np.int8)})
    with pytest.raises(ValueError, match=r"tensor model\.norm\.weight: expected one of float32, .*, received int8; where it is quantised"):
        from_pretrained(folder)


@pytest.mark.parametrize("rope", [[1], {"rope_type": "linear", "rope_theta": 10.0, "factor": None}], ids=["a list", "null"])
def test_rotary_positions_that_are_none_are_refused(rope: Any, tmp_path: Path, rewritten: Any) -> None:
    with pytest.raises(ValueError, match=r"config\.json: rope_"):
        from_pretrained(rewritten("llama", tmp_path, rope_parameters=rope))


def test_a_misspelt_field_is_told_its_neighbour() -> None:
    with pytest.raises(ValueError, match=r"received rms_norm_epss = 0.1 \(nearest: rms_norm_eps\)"):
        zoo.llama.FAMILY.read({**values_of("llama"), "rms_norm_epss": 0.1})


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llama", {"hidden_size": "36"}, "expected fields of the types and sizes that Llama .*: .*d_model: expected int, received '36'"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters, rope_scaling: expected an object in one of them"),
        ("bloom", {"n_head": 2, "num_attention_heads": 3}, "expected one value for .*num_attention_heads.*, which are the same"),
        ("llama", {"rope_theta": 7.0}, "rope_theta: expected one value, received 7.0 beside .* in rope_parameters or rope_scaling"),
        ("gemma3", {"rope_theta": 7.0}, "rope_theta: expected one value, received 7.0 beside"),
        ("gemma3", {"rope_local_base_freq": 7.0}, "rope_theta: expected one value, received 7.0 beside"),
        ("modernbert", {"global_rope_theta": 7.0}, "rope_theta: expected one value, received 7.0 beside"),
        ("modernbert", {"local_rope_theta": 7.0}, "rope_theta: expected one value, received 7.0 beside"),
        ("gemma3", {"sliding_window_pattern": 0, "layer_types": None}, "expected fields of the types and sizes"),
    ],
)  # fmt: skip
def test_fields_that_contradict_one_another_or_have_another_type_are_refused(name: str, fields: dict[str, Any], message: str) -> None:
    values = {**values_of(name), **fields}
    family = next(family for family in zoo.FAMILIES if family.model_type == values["model_type"])
    with pytest.raises(ValueError, match=message):
        family.read(values)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path, rewritten: Any) -> None:
    name = "bert.embeddings.LayerNorm."
    folder = rewritten("bert", tmp_path, lambda tensors: tensors | {f"{name}gamma": tensors[f"{name}weight"]})
    with pytest.raises(ValueError, match=r"expected one of them, as both are bert\.embeddings\.LayerNorm\.weight of BERT, received two"):
        from_pretrained(folder)


def test_what_a_file_leaves_out_is_what_its_family_means_by_it() -> None:
    left_out = {"n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob", "first_k_dense_replace", "n_shared_experts"}
    preset = zoo.deepseek.V3.presets["deepseek-v3"]
    assert zoo.deepseek.V3.read({name: value for name, value in preset.items() if name not in left_out}) == zoo.config("deepseek-v3")
    preset = zoo.gpt_oss.FAMILY.presets["gpt-oss-20b"]
    less = {name: value for name, value in preset.items() if name not in ("rope_scaling", "num_key_value_heads")}
    assert zoo.gpt_oss.FAMILY.read(less) == zoo.config("gpt-oss-20b")


def test_a_model_is_written_as_the_family_that_it_was_read_as(tmp_path: Path) -> None:
    for name, family in (("phi3", "phi3"), ("mistral", "mistral"), ("xlm-roberta", "xlm-roberta"), ("falcon-serial", "falcon")):
        model, variables = from_pretrained(GOLDENS / name)
        save_pretrained(tmp_path / name, model, variables)
        assert json.loads((tmp_path / name / "config.json").read_text())["model_type"] == model.family == family
    assert zoo.model("phi-3-mini-4k").family == "phi3"


def test_texts_may_be_longer_than_those_of_training_where_no_table_has_their_length(tmp_path: Path) -> None:
    model, _ = from_pretrained(GOLDENS / "phi3-long", max_length=400)
    assert model.config.max_length == 400
    with pytest.raises(ValueError, match=r"wpe\.weight: expected shape \(80, 30\) by config\.json, max_length=80, received \(40, 30\)"):
        from_pretrained(GOLDENS / "gpt2", max_length=80)
