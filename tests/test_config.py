import dataclasses
import json
import sys
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax.config import Config, differences, from_json, to_json
from transformer_jax.layers import (
    Alibi,
    Attention,
    Branch,
    Causal,
    Dense,
    Embedding,
    Gated,
    GPT2Init,
    Group,
    LanguageModel,
    LayerNorm,
    Learned,
    NoMask,
    NoNorm,
    NoPosition,
    NormalInit,
    Parallel,
    RelativeBias,
    Residual,
    RMSNorm,
    Rope,
    Sinusoidal,
    SlidingWindow,
    Softcap,
    Stack,
    T5Init,
    XavierInit,
)
from transformer_jax.layers.masks import Not
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.precision import Precision


@dataclass(frozen=True)
class Sizes(Config):
    """A user's own config, of the annotations that no built-in has."""

    pair: tuple[int, str] = (1, "a")
    _: KW_ONLY
    either: int | tuple[int, ...] = 3
    kind: Literal["x", "y", 3] = "x"
    anything: Any = None
    rate: float = 0.5

    @dataclass(frozen=True)
    class Inner(Config):
        n: int = 0


def decoder(**changes: Any) -> DecoderOnlyConfig:
    mask = Causal() & (SlidingWindow(5, right=1) | ~Causal())
    heads = {"num_kv_heads": 2, "head_dim": 10, "score": (Softcap(30.0),), "position": Rope(5e5, fraction=0.5), "qk_norm": RMSNorm(1e-5)}
    attention = Residual(
        Attention(6, mask=mask, qkv_bias=True, scale=0.25, dropout=0.1, **heads), pre=LayerNorm(bias=False), post=RMSNorm(offset=1.0), dropout=0.3
    )
    both = Residual(Parallel((Branch(Attention(6, mask=NoMask()), pre=RMSNorm()), Dense(7, activation="relu"))), after=LayerNorm(1e-3))
    groups = (Group(3, (attention, Residual(Gated(13), pre=RMSNorm()))), Group(2, (both,), share=True, remat="products"))
    whole = DecoderOnlyConfig(
        None,
        d_model=18,
        max_length=31,
        stack=Stack(groups, score=(RelativeBias(8), Alibi())),
        embedding=Embedding(Learned(), dropout=0.2, scale=True),
        head=LanguageModel(tied=False, softcap=30.0),
        initialization=T5Init(11),
    )
    return whole.replace(**changes)


@pytest.mark.parametrize(
    ("make", "expected", "received"),
    [
        (lambda: Attention(8, mask=Causal), "Attention.mask: expected a Mask config", "Causal'>; give an instance: Causal(...)"),
        (lambda: Attention(8, mask=Causal(), position=Rope), "Attention.position: expected a Position config", "Rope'>; give an instance: Rope(...)"),
        (lambda: Attention(8, mask=Causal(), position="rope"), "Attention.position: expected a Position config", "'rope'"),
        (lambda: Attention(8, mask=Causal(), position=None), "Attention.position: expected a Position config", "None"),
        (
            lambda: Attention(8, mask=Causal(), position=Learned()),
            "Attention.position: expected a scheme that acts on heads",
            "Learned(offset=0); it belongs to the embedding's",
        ),
        (lambda: Attention(8, mask=Causal(), score=[Alibi()]), "Attention.score: expected a tuple of a Score config", "[Alibi()]; put it in a tuple"),
        (lambda: Attention(8, mask=Causal(), score=Alibi()), "Attention.score: expected a tuple of a Score config", "Alibi(); put it in a tuple"),
        (lambda: Attention(8, mask=Causal(), score=(Alibi,)), "Attention.score: expected a tuple of a Score config", "Alibi"),
        (lambda: Attention(True, mask=Causal()), "Attention.num_heads: expected int", "True"),
        (lambda: Attention(8.0, mask=Causal()), "Attention.num_heads: expected int", "8.0"),
        (lambda: Attention(8, mask=Causal(), num_kv_heads="2"), "Attention.num_kv_heads: expected int or None", "'2'"),
        (lambda: Attention(8, mask=Causal(), scale=True), "Attention.scale: expected float or None", "True"),
        (lambda: Causal() & 3, "And.b: expected a Mask config", "3"),
        (lambda: LayerNorm(scale=1), "LayerNorm.scale: expected bool", "1"),
        (lambda: Embedding(Rope()), "Embedding.position: expected a scheme that acts on embeddings", "it belongs to an attention's"),
        (lambda: Stack(Group(1, (Residual(Dense(3)),))), "Stack.groups: expected a tuple of a Group config", "put it in a tuple"),
        (lambda: Stack((Residual(Dense(3)),)), "Stack.groups: expected a tuple of a Group config", "Residual("),
        (lambda: Group(1, (Dense(3),)), "Group.sublayers: expected a tuple of a Residual config", "Dense("),
        (lambda: Group(1, (Residual(Dense(3)),), remat="all"), "Group.remat: expected one of 'nothing', 'products', 'everything'", "'all'"),
        (lambda: Residual(RMSNorm()), "Residual.layer: expected a Layer config", "RMSNorm("),
        (lambda: Precision(compute="fp16"), "Precision.compute: expected one of 'float32'", "'fp16'"),
        (lambda: Sizes((1, 2)), "Sizes.pair: expected a tuple of", "(1, 2)"),
        (lambda: Sizes((1, "a", "b")), "Sizes.pair: expected a tuple of", "(1, 'a', 'b')"),
        (lambda: Sizes(either="a"), "Sizes.either: expected int or a tuple of int", "'a'"),
        (lambda: Sizes(kind="z"), "Sizes.kind: expected one of 'x', 'y', 3", "'z'"),
        (lambda: Sizes(rate="0.5"), "Sizes.rate: expected float", "'0.5'"),
    ],
)
def test_a_wrong_type_is_refused_where_it_is_written(make, expected, received):
    with pytest.raises(TypeError) as error:
        make()
    assert str(error.value).startswith(expected)
    assert received in str(error.value).partition("received ")[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(6, mask=Causal(), num_kv_heads=4), "Attention.num_kv_heads: expected a divisor of num_heads = 6, received 4"),
        (lambda: Attention(0, mask=Causal()), "Attention.num_heads: expected more than 0, received 0"),
        (lambda: Attention(2, mask=Causal(), head_dim=-1), "Attention.head_dim: expected more than 0, received -1"),
        (lambda: Attention(2, mask=Causal(), dropout=1.0), "Attention.dropout: expected a rate in [0, 1), received 1.0"),
        (lambda: Residual(Dense(3), dropout=-0.1), "Residual.dropout: expected a rate in [0, 1), received -0.1"),
        (lambda: Embedding(dropout=float("nan")), "Embedding.dropout: expected a rate in [0, 1), received nan"),
        (lambda: Dense(3, activation="gleu"), "Dense.activation: expected one of relu, gelu"),
        (lambda: Gated(3, activation="silo"), "received 'silo' (nearest: silu)"),
        (lambda: Gated(0), "Gated.d_ff: expected more than 0, received 0"),
        (lambda: Group(0, (Residual(Dense(3)),)), "Group.repeat: expected more than 0, received 0"),
        (lambda: Group(1, ()), "Group.sublayers: expected at least one, received none"),
        (lambda: Stack(()), "Stack.groups: expected at least one, received none"),
        (lambda: Not(NoMask()), "Not.a: expected a mask that rules something out"),
        (lambda: SlidingWindow(-1), "left"),
        (lambda: Softcap(0.0), "Softcap.cap: expected more than 0, received 0.0"),
        (lambda: Rope(fraction=1.5), "Rope.fraction: expected a share in (0, 1], received 1.5"),
        (lambda: Stack((Group(1, (Residual(Dense(3)),)),), score=(Alibi(),)), "Stack.score: expected mixers with one and the same num_heads, received none"),
        (
            lambda: Stack((Group(1, tuple(Residual(Attention(n, mask=Causal())) for n in (2, 3))),), score=(Alibi(),)),
            "Stack.score: expected mixers with one and the same num_heads, received [2, 3]",
        ),
        (
            lambda: decoder(d_model=20).replace(stack=Stack((Group(1, (Residual(Attention(3, mask=Causal())),)),))),
            "expected a divisor of d_model = 20, received 3",
        ),
        (lambda: decoder(d_model=15, embedding=Embedding(Sinusoidal())), "Sinusoidal: expected an even d_model, received 15"),
        (lambda: Parallel(()), "Parallel.branches: expected at least one, received none"),
        (lambda: Softcap(float("nan")), "Softcap.cap: expected more than 0, received nan"),
        (lambda: decoder(max_length=0), "DecoderOnlyConfig.max_length: expected more than 0, received 0"),
    ],
)
def test_a_value_that_cannot_work_is_refused_on_construction(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


def test_an_integer_will_do_for_a_float_and_stays_as_it_was_written():
    assert LayerNorm(1) == LayerNorm(1.0)
    assert Sizes(anything=[1], either=(2, 3), kind=3).either == (2, 3)


def test_configs_are_values_frozen_hashable_and_compared_by_content():
    assert decoder() == decoder()
    assert hash(decoder()) == hash(decoder())
    assert len({decoder(), decoder(), decoder(d_model=12)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        decoder().d_model = 3  # type: ignore[misc]


def test_all_fields_but_the_first_are_given_by_name_and_a_group_takes_two_by_place():
    assert Group(2, (Residual(Dense(3)),)).repeat == 2
    for wrong in (lambda: Attention(2, Causal()), lambda: Dense(3, "gelu"), lambda: Residual(Dense(3), RMSNorm()), lambda: LayerNorm(1e-5, True)):
        with pytest.raises(TypeError, match="positional argument"):
            wrong()


def test_replace_changes_fields_checks_them_and_refuses_one_that_there_is_not():
    assert Dense(3).replace(d_ff=5, bias=True) == Dense(5, bias=True)
    with pytest.raises(TypeError, match=r"Dense has no field 'dff'; it has d_ff, activation, bias, dropout"):
        Dense(3).replace(dff=5)
    with pytest.raises(TypeError, match=r"Dense.d_ff: expected int"):
        Dense(3).replace(d_ff="5")
    with pytest.raises(ValueError, match=r"expected more than 0"):
        Dense(3).replace(d_ff=0)


def test_walk_visits_every_nested_config_outermost_first():
    part = Residual(Parallel((Branch(Dense(3), pre=RMSNorm()), Gated(5))))
    found = [type(config).__name__ for config in part.walk()]
    assert found == ["Residual", "Parallel", "Branch", "Dense", "RMSNorm", "Gated", "NoNorm", "NoNorm", "NoNorm"]


def test_a_rich_model_config_survives_json():
    text = to_json(decoder())
    assert from_json(text, DecoderOnlyConfig) == decoder()
    assert to_json(from_json(text, DecoderOnlyConfig)) == text
    assert json.loads(text)["stack"]["groups"][0]["sublayers"][0]["layer"]["type"] == "transformer_jax.layers.mixers.attention:Attention"


def test_a_users_own_type_nested_in_another_class_survives_json():
    config = Sizes((5, "b"), either=(1, 2), kind=3, anything=Sizes.Inner(7))
    assert from_json(to_json(config), Sizes) == config
    assert ":Sizes.Inner" in to_json(config)


norms = st.one_of(
    st.just(NoNorm()), st.builds(LayerNorm, st.floats(1e-8, 1), scale=st.booleans(), bias=st.booleans()), st.builds(RMSNorm, offset=st.floats(-2, 2))
)
masks = st.recursive(
    st.one_of(st.just(Causal()), st.builds(SlidingWindow, st.integers(0, 9), right=st.integers(0, 9))),
    lambda inner: st.one_of(st.builds(lambda a, b: a & b, inner, inner), st.builds(lambda a, b: a | b, inner, inner), st.builds(lambda a: ~a, inner)),
    max_leaves=3,
)
rates = st.floats(0, 0.99)
scores = st.lists(st.one_of(st.just(Alibi()), st.builds(Softcap, st.floats(0.1, 100)), st.builds(RelativeBias, bidirectional=st.booleans())), max_size=2).map(
    tuple
)
attentions = st.builds(
    lambda kv, group, **rest: Attention(kv * group, num_kv_heads=kv, head_dim=6, **rest),
    st.integers(1, 3), st.integers(1, 3), mask=st.one_of(masks, st.just(NoMask())), score=scores, qk_norm=norms, dropout=rates,
    position=st.one_of(st.just(NoPosition()), st.builds(Rope, st.floats(1, 1e6))),
)  # fmt: skip
mlps = st.one_of(*(st.builds(kind, st.integers(1, 99), activation=st.sampled_from(["relu", "silu"]), bias=st.booleans()) for kind in (Dense, Gated)))
layers = st.one_of(
    attentions, mlps, st.lists(st.one_of(mlps, st.builds(Branch, attentions, pre=norms)), min_size=1, max_size=3).map(lambda b: Parallel(tuple(b)))
)
sublayers = st.builds(Residual, layers, pre=norms, post=norms, after=norms, dropout=rates)
groups = st.builds(
    Group,
    st.integers(1, 5),
    st.lists(sublayers, min_size=1, max_size=3).map(tuple),
    share=st.booleans(),
    remat=st.sampled_from(["nothing", "products", "everything"]),
)
models = st.builds(
    DecoderOnlyConfig, st.one_of(st.none(), st.integers(1, 99)), d_model=st.integers(1, 49).map(lambda half: 2 * half), max_length=st.integers(1, 99),
    stack=st.builds(Stack, st.lists(groups, min_size=1, max_size=3).map(tuple), final_norm=norms),
    embedding=st.builds(Embedding, st.sampled_from([NoPosition(), Learned(), Sinusoidal()]), norm=norms, scale=st.booleans()),
    initialization=st.sampled_from([NormalInit(), GPT2Init(0.1), XavierInit(), T5Init()]),
)  # fmt: skip


@given(models)
def test_any_model_config_survives_json_and_differs_in_nothing_from_its_copy(config):
    back = from_json(to_json(config), DecoderOnlyConfig)
    assert back == config
    assert hash(back) == hash(config)
    assert differences(config, back) == []


def test_a_class_that_is_not_imported_is_named_with_the_way_to_import_it_and_stays_so(tmp_path, monkeypatch):
    (tmp_path / "unseen_module.py").write_text("raise AssertionError('the file of settings ran code')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"the outermost value: expected a class of an imported module, received 'unseen_module:Thing'.*--import FILE\|MODULE"):
        from_json('{"type": "unseen_module:Thing"}', Config)
    assert "unseen_module" not in sys.modules


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:int",
        "builtins:eval",
        "transformer_jax.config:Config",
        "transformer_jax.layers.base:Build",
        "transformer_jax.config:Config.replace",
        "json:loads",
    ],
)
def test_the_name_of_what_is_no_config_class_is_refused(name):
    with pytest.raises(ValueError, match=r"stack: expected the name of a config class, received .*, which is not one"):
        from_json(json.dumps({"type": "transformer_jax.models.decoder_only:DecoderOnlyConfig", "stack": {"type": name, "command": "true"}}), Config)


@pytest.mark.parametrize("name", ["", ":", "os:", "os", ":system", "os:path..join", "nowhere:Class", 3, None, ["os", "system"]])
def test_a_malformed_name_of_a_class_is_refused(name):
    with pytest.raises(ValueError, match="expected a class of an imported module"):
        from_json(json.dumps({"type": name}), Config)


def test_looking_up_a_class_runs_no_code_of_a_module(monkeypatch):
    module = type(sys)("lazy_module")
    asked = []

    def make(name):
        asked.append(name)
        raise AttributeError(name)

    module.__getattr__ = make
    monkeypatch.setitem(sys.modules, "lazy_module", module)
    with pytest.raises(ValueError, match="expected a class of an imported module, received 'lazy_module:Thing'"):
        from_json('{"type": "lazy_module:Thing"}', Config)
    assert "Thing" not in asked


def edited(change) -> str:
    data = json.loads(to_json(decoder()))
    change(data["stack"]["groups"][0]["sublayers"][1]["layer"])
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda gated: gated.update(activaton="relu"), ValueError, "stack.groups.0.sublayers.1.layer: Gated has no field 'activaton' (nearest: activation)"),
        (lambda gated: gated.pop("d_ff"), ValueError, "stack.groups.0.sublayers.1.layer: Gated needs a field 'd_ff'"),
        (lambda gated: gated.pop("type"), ValueError, "stack.groups.0.sublayers.1.layer: expected an object with a field 'type', received one with d_ff"),
        (lambda gated: gated.update(d_ff="13"), TypeError, "stack.groups.0.sublayers.1.layer: Gated.d_ff: expected int, received '13'"),
        (lambda gated: gated.update(type="transformer_jax.layers.norm:RMSNorm"), ValueError, "stack.groups.0.sublayers.1.layer: RMSNorm has no field 'd_ff'"),
    ],
)
def test_a_mistake_in_json_is_named_with_its_place(change, kind, message):
    with pytest.raises(kind) as error:
        from_json(edited(change), DecoderOnlyConfig)
    assert str(error.value).startswith(message)


def test_json_of_something_else_is_refused():
    with pytest.raises(ValueError, match="not JSON"):
        from_json("{", Config)
    with pytest.raises(TypeError, match="expected a DecoderOnlyConfig, received Dense"):
        from_json(to_json(Dense(3)), DecoderOnlyConfig)
    with pytest.raises(TypeError, match="expected a Config, received tuple"):
        from_json(f"[{to_json(Dense(3))}]", Config)


def test_a_field_left_out_of_json_has_its_default():
    assert from_json('{"type": "transformer_jax.layers.mlps.dense:Dense", "d_ff": 3}', Dense) == Dense(3)


def test_differences_name_the_paths_and_both_values():
    one = decoder()
    first, second = one.stack.groups
    gated = first.sublayers[1]
    other = one.replace(
        d_model=24,
        vocab_size=7,
        embedding=Embedding(Sinusoidal(), dropout=0.2, scale=True),
        stack=one.stack.replace(groups=(first.replace(sublayers=(first.sublayers[0], gated.replace(layer=Gated(17)))), second.replace(remat="everything"))),
    )
    assert differences(one, one.replace()) == []
    assert differences(one, other) == [
        "vocab_size: null -> 7",
        "d_model: 18 -> 24",
        "stack.groups.0.sublayers.1.layer.d_ff: 13 -> 17",
        'stack.groups.1.remat: "products" -> "everything"',
        "embedding.position: Learned -> Sinusoidal",
    ]
    assert [line.partition(":")[0] for line in differences(one.stack, one.stack.replace(score=(Alibi(),)))] == ["score"]
