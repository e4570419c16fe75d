from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import EncoderOnly, unstacked
from transformer_jax.layers import (
    Attention,
    Dense,
    Embedding,
    FirstToken,
    Group,
    LanguageModel,
    LastToken,
    LayerNorm,
    Learned,
    MaskedLanguageModel,
    Mean,
    NoHead,
    NoMask,
    Residual,
    SentenceEmbedding,
    SequenceClassifier,
    Stack,
    TokenClassifier,
)
from transformer_jax.models import EncoderOnlyConfig
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, V, D, C = 2, 7, 29, 12, 5
HEADS = {
    "masked": MaskedLanguageModel(),
    "untied": MaskedLanguageModel("relu", logits=LanguageModel(tied=False)),
    "first": SequenceClassifier(C),
    "last": SequenceClassifier(C, pool=LastToken(), activation="gelu"),
    "mean": SequenceClassifier(C, pool=Mean(), activation=None),
    "tokens": TokenClassifier(C),
    "sentence": SentenceEmbedding(),
    "none": NoHead(),
}


def bert(head, **fields):
    sublayers = tuple(Residual(layer, after=LayerNorm()) for layer in (Attention(3, mask=NoMask(), qkv_bias=True, out_bias=True), Dense(17, bias=True)))
    embedding = Embedding(Learned(), norm=LayerNorm(), token_types=2)
    return EncoderOnlyConfig(V, d_model=D, max_length=13, stack=Stack((Group(2, sublayers),)), embedding=embedding, head=head, **fields)


@pytest.fixture(scope="module", params=[name if name in ("masked", "first") else pytest.param(name, marks=pytest.mark.slow) for name in HEADS])
def m(request, filled):
    model = bert(HEADS[request.param]).make()
    return request.param, model, filled(model, jnp.zeros((1, 2), jnp.int32)), jax.jit(model.apply)


def tokens_of(seed):
    return np.random.default_rng(seed).integers(0, V, (B, T)).astype("int32")


def published(name, params, tokens, types):
    """BERT out of flax's own parts, and its heads by hand."""
    norm = lambda p, x: nn.LayerNorm(epsilon=1e-5).apply({"params": p}, x)  # noqa: E731
    dense = lambda p, x: x @ p["kernel"] + p["bias"]  # noqa: E731
    e = params["embedding"]
    x = norm(e["norm"], e["embedding"][tokens] + e["position"]["embedding"][: tokens.shape[1]] + e["token_types"][types])
    for n in range(2):
        p = jax.tree.map(lambda a, n=n: a[n], params["stack"]["groups_0"]["layers"])
        heads = nn.MultiHeadDotProductAttention(num_heads=3, qkv_features=D)
        x = norm(p["sublayers_0"]["after"], x + heads.apply({"params": p["sublayers_0"]["layer"]}, x, x))
        x = norm(p["sublayers_1"]["after"], x + dense(p["sublayers_1"]["layer"]["down"], nn.gelu(dense(p["sublayers_1"]["layer"]["up"], x), approximate=False)))
    h = params.get("head", {})
    if name in ("masked", "untied"):
        x = norm(h["norm"], (nn.gelu(dense(h["transform"], x), approximate=False) if name == "masked" else nn.relu(dense(h["transform"], x))))
        return x @ e["embedding"].T + h["logits"]["bias"] if name == "masked" else x @ h["logits"]["kernel"]
    if name == "first":
        return dense(h, jnp.tanh(dense(h["dense"], x[:, 0])))
    if name == "last":
        return dense(h, nn.gelu(dense(h["dense"], x[:, -1]), approximate=False))
    return {"mean": lambda: dense(h, x.mean(1)), "tokens": lambda: dense(h, x), "sentence": lambda: x.mean(1), "none": lambda: x}[name]()


def test_it_is_bert_with_each_head(m, close):
    name, _, variables, apply = m
    tokens, types = tokens_of(0), (tokens_of(1) % 2)
    out = apply(variables, tokens, token_types=types)
    shapes = {"masked": (B, T, V), "untied": (B, T, V), "tokens": (B, T, C), "none": (B, T, D), "sentence": (B, D)}
    assert out.shape == shapes.get(name, (B, C))
    close(out, published(name, variables["params"], tokens, types))
    np.testing.assert_array_equal(apply(variables, tokens), apply(variables, tokens, token_types=np.zeros_like(tokens)))


def test_padding_on_either_side_changes_nothing(m, close):
    _, _, variables, apply = m
    tokens = tokens_of(2)
    expected = apply(variables, tokens)
    for left in (0, 3, 6):
        padded = np.random.default_rng(left).integers(-9, 99, (B, 13)).astype("int32")
        padded[:, left : left + T] = tokens
        valid = np.zeros((B, 13), bool)
        valid[:, left : left + T] = True
        out = apply(variables, padded, valid=valid)
        close(out if out.ndim == 2 else out[:, left : left + T], expected, times=2)


def test_init_gives_parameters_only_and_prelogits_are_half_of_a_call(m, close):
    name, model, variables, apply = m
    assert set(jax.eval_shape(model.init, jax.random.key(0), tokens_of(0))) == {"params"}
    x, unembedding = jax.jit(partial(model.apply, method="prelogits"))(variables, tokens_of(0))
    close(x if unembedding is None else unembedding(x), apply(variables, tokens_of(0)))
    low = model.clone(precision=Precision(compute="bfloat16")).apply(variables, tokens_of(0))
    assert low.dtype == ("bfloat16" if name in ("none", "sentence") else "float32")


def test_the_pooler_gives_a_vector_of_the_first_token_beside_what_the_head_gives(filled, close):
    model = bert(SentenceEmbedding(Mean()), pooler=True).make()
    tokens, valid = tokens_of(0), jnp.arange(T) >= jnp.array([[0], [2]])
    variables = filled(model, tokens)
    features, pooled = (model.apply(variables, tokens, valid=valid, method=method) for method in ("features", "pooled"))
    pooler = variables["params"]["pooler"]
    close(pooled, np.tanh(features[[0, 1], [0, 2]] @ pooler["kernel"] + pooler["bias"]))
    close(model.apply(variables, tokens, valid=valid), Mean()(features, valid))
    layer_by_layer = unstacked(model, variables)
    close(layer_by_layer[0].apply(layer_by_layer[1], tokens, valid=valid, method="pooled"), pooled)
    with pytest.raises(ValueError, match=r"EncoderOnlyConfig.pooler: expected True for method='pooled', received False; give config.replace"):
        bert(NoHead()).make().apply(variables, tokens, method="pooled")


def test_pools_take_valid_tokens_only(normal):
    x, valid = normal(3, 5, 4), np.array([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]], bool)
    x = jnp.where(valid[..., None], x, 1e9)
    np.testing.assert_array_equal(FirstToken()(x, valid), np.stack([x[0, 1], x[1, 0], x[2, 3]]))
    np.testing.assert_array_equal(LastToken()(x, valid), np.stack([x[0, 3], x[1, 4], x[2, 3]]))
    np.testing.assert_allclose(Mean()(jnp.where(valid[..., None], x, 7.0), valid), np.stack([x[0, 1:4].mean(0), x[1].mean(0), x[2, 3]]), rtol=1e-6)
    assert np.isfinite(Mean()(x, np.zeros_like(valid))).all()


def test_a_head_without_its_size_says_how_to_fill_it_in():
    config = bert(SequenceClassifier()).replace(vocab_size=None)
    filled = config.filled_in(V, C)
    assert (filled.vocab_size, filled.head.num_labels) == (V, C)
    assert filled.filled_in(3, 2) == filled
    with pytest.raises(ValueError, match=r"SequenceClassifier\.num_labels: expected a number, received None"):
        EncoderOnly(config.replace(vocab_size=V)).init(jax.random.key(0), tokens_of(0))
    with pytest.raises(ValueError, match=r"model\.head\.num_labels: expected at least the data's 6, received 5"):
        filled.filled_in(V, 6)
    with pytest.raises(ValueError, match=r"model.vocab_size: expected at least the data's 30, received 29"):
        filled.filled_in(30, C)


@pytest.mark.parametrize("make", [lambda: SequenceClassifier(0), lambda: TokenClassifier(3, dropout=1.0), lambda: SequenceClassifier(3, activation="gelo")])
def test_sizes_rates_and_names_are_checked(make):
    with pytest.raises(ValueError, match="Classifier"):
        make()
