"""ModernBERT: rotary positions, gated MLPs, norms before the sublayers, attention to a window in two of three layers."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import (
    Attention,
    Embedding,
    FirstToken,
    Gated,
    GPT2Init,
    Head,
    LayerNorm,
    MaskedLanguageModel,
    Mean,
    NoHead,
    NoMask,
    NoNorm,
    Residual,
    Rope,
    SequenceClassifier,
    SlidingWindow,
    Stack,
    TokenClassifier,
)
from transformer_jax.layers.head import LanguageModel
from transformer_jax.models import EncoderOnlyConfig
from transformer_jax.zoo.activations import THEIRS, activation
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import num_labels
from transformer_jax.zoo.rope import agreeing, rope, rope_settings
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import grouped, layers, places
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm, table

POOLS = {"cls": FirstToken(), "mean": Mean()}


def config(s: Settings) -> EncoderOnlyConfig:
    scale = LayerNorm(s("norm_eps", 1e-5), bias=s("norm_bias", False))
    bias, drop, half = s("attention_bias", False), s("attention_dropout", 0.0), s("local_attention", 128) // 2
    count, period = s("num_hidden_layers"), s("global_attn_every_n_layers", 3)
    kinds = s("layer_types", None) or ["sliding_attention" if n % period else "full_attention" for n in range(count)]
    masks = {"full_attention": NoMask(), "sliding_attention": SlidingWindow(half, right=half)}
    positions = _positions(s)
    mlp = Gated(s("intermediate_size"), activation=activation(s("hidden_activation", "gelu")), bias=s("mlp_bias", False), dropout=s("mlp_dropout", 0.0))

    def layer(n: int, kind: str) -> tuple[Residual, ...]:
        attention = Attention(
            s("num_attention_heads"), mask=masks[kind], position=positions[kind], qkv_bias=bias, out_bias=bias, dropout=drop
        )  # fmt: skip
        return Residual(attention, pre=scale if n else NoNorm(), dropout=drop), Residual(mlp, pre=scale)

    return EncoderOnlyConfig(
        s("vocab_size"), d_model=s("hidden_size"), max_length=s("max_position_embeddings", 8192),
        stack=Stack(grouped([layer(n, kind) for n, kind in enumerate(kinds)]), final_norm=scale),
        embedding=Embedding(norm=scale, dropout=s("embedding_dropout", 0.0)), head=_head(s, scale), initialization=GPT2Init(s("initializer_range", 0.02)),
    )  # fmt: skip


def _positions(s: Settings) -> dict[str, Rope]:
    """Those of each kind of layers, as transformers 4 writes them, or 5."""
    given, scaling = s("rope_parameters", None) or {}, s("rope_scaling", None) or {}
    names = {"full_attention": ("global_rope_theta", 160000.0), "sliding_attention": ("local_rope_theta", 10000.0)}
    if s("local_rope_theta", 0) is None:  # one for all layers
        names["sliding_attention"] = names["full_attention"]
    return {
        kind: rope({"rope_theta": theta, **agreeing({"rope_theta": s(name, None), **scaling}, given.get(kind) or {})}, s)
        for kind, (name, theta) in names.items()
    }


def _head(s: Settings, scale: LayerNorm) -> Head:
    bias, act = s("classifier_bias", False), activation(s("classifier_activation", "gelu"))
    drop, pool = s("classifier_dropout", 0.0), POOLS[s.only("classifier_pooling", *POOLS)]
    logits = LanguageModel(s("tie_word_embeddings", True), bias=s("decoder_bias", True))
    if s.head is SequenceClassifier:
        return SequenceClassifier(num_labels(s), activation=act, norm=scale, bias=bias, dropout=drop, pool=pool)
    if s.head is TokenClassifier:
        return TokenClassifier(num_labels(s), activation=act, norm=scale, bias=bias, dropout=drop)
    if s.head is NoHead:
        return NoHead()
    return MaskedLanguageModel(act, bias=bias, norm=scale, logits=logits)


def settings(model: Any) -> dict[str, Any] | None:
    if not isinstance(model, EncoderOnlyConfig) or not (found := layers(model.stack)):
        return None
    windows: set[int] = set()
    thetas: dict[str, Rope] = {}
    kinds = []
    for layer in found:
        match layer:
            case Residual(Attention(mask=NoMask(), position=Rope() as position) as attention), Residual(Gated() as mlp):
                kinds.append("full_attention")
            case Residual(Attention(mask=SlidingWindow(half), position=Rope() as position) as attention), Residual(Gated() as mlp):
                kinds.append("sliding_attention")
                windows.add(half)
            case _:
                return None
        thetas[kinds[-1]] = position
    match model.stack.final_norm:
        case LayerNorm(eps, bias=norm_bias):
            return {
                "vocab_size": model.vocab_size,
                "hidden_size": model.d_model,
                "intermediate_size": mlp.d_ff,
                "num_hidden_layers": len(found),
                "num_attention_heads": attention.num_heads,
                "hidden_activation": THEIRS[mlp.activation],
                "max_position_embeddings": model.max_length,
                "pad_token_id": None,  # theirs is beyond a smaller vocabulary
                "norm_eps": eps,
                "norm_bias": norm_bias,
                "attention_bias": attention.qkv_bias,
                "attention_dropout": attention.dropout,
                "embedding_dropout": model.embedding.dropout,
                "mlp_bias": mlp.bias,
                "mlp_dropout": mlp.dropout,
                "local_attention": 2 * max(windows, default=64),
                **_kinds(kinds),
                **_thetas(thetas),
                **_head_settings(model.head),
            }
    return None


def _kinds(kinds: list[str]) -> dict[str, Any]:
    """As 4 says them where it can, and as 5 does."""
    periods = [n for n in range(1, len(kinds) + 1) if kinds == ["sliding_attention" if i % n else "full_attention" for i in range(len(kinds))]]
    return {"layer_types": kinds, **({"global_attn_every_n_layers": periods[0]} if periods else {})}


def _thetas(positions: dict[str, Rope]) -> dict[str, Any]:
    said = {kind: rope_settings(position) for kind, position in positions.items()}
    names = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
    plain = {names[kind]: fields["rope_theta"] for kind, fields in said.items()}
    if not any(fields["rope_scaling"] for fields in said.values()):
        return plain
    return {**plain, "rope_parameters": {kind: {"rope_theta": f["rope_theta"], **(f["rope_scaling"] or {"rope_type": "default"})} for kind, f in said.items()}}


def _head_settings(head: Head) -> dict[str, Any]:
    match head:
        case MaskedLanguageModel(act):
            return {"classifier_activation": THEIRS[act], "classifier_bias": head.bias, "decoder_bias": head.logits.bias}
        case SequenceClassifier() | TokenClassifier() if head.activation is not None:
            pools = [name for name, pool in POOLS.items() if pool == getattr(head, "pool", None)]
            said = {"classifier_activation": THEIRS[head.activation], "classifier_bias": head.bias, "classifier_dropout": head.dropout}
            return {**said, **({"classifier_pooling": pools[0]} if pools else {})}
    return {}


def tensors(model: EncoderOnlyConfig) -> Iterator[Tensor]:
    yield table("model.embeddings.tok_embeddings.weight", Place(("embedding", "embedding")))
    yield from norm("model.embeddings.norm", Place(("embedding", "norm")))
    for n, (attention, mlp) in enumerate(places(model.stack)):
        at, layer = f"model.layers.{n}", attention / "layer"
        yield from norm(f"{at}.attn_norm", attention / "pre")
        yield from linear(f"{at}.attn.Wqkv", layer / "query", layer / "key", layer / "value")
        yield from linear(f"{at}.attn.Wo", layer / "out", inputs=2)
        yield from norm(f"{at}.mlp_norm", mlp / "pre")
        yield from linear(f"{at}.mlp.Wi", mlp / "layer/gate", mlp / "layer/up")
        yield from linear(f"{at}.mlp.Wo", mlp / "layer/down")
    yield from norm("model.final_norm", Place(("stack", "final_norm")))
    head = Place(("head",))
    yield from linear("head.dense", head / ("transform" if isinstance(model.head, MaskedLanguageModel) else "dense"))
    yield from norm("head.norm", head / "norm")
    yield from linear("decoder", head / "logits") if isinstance(model.head, MaskedLanguageModel) else linear("classifier", head)


def _preset(hidden_size: int, intermediate_size: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": 50368, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // 64, "max_position_embeddings": 8192, "classifier_pooling": "mean",
    }  # fmt: skip


FAMILY = Family(
    "ModernBERT",
    paper="arXiv:2412.13663",
    unusual="attention to 64 tokens on either side but in every third layer, which has slower rotary positions; no norm before the first",
    model_type="modernbert",
    architectures={
        "ModernBertForMaskedLM": MaskedLanguageModel,
        "ModernBertModel": NoHead,
        "ModernBertForSequenceClassification": SequenceClassifier,
        "ModernBertForTokenClassification": TokenClassifier,
    },
    prefix="model.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={"modernbert-base": _preset(768, 1152, 22), "modernbert-large": _preset(1024, 2624, 28)},
    ignored={
        "layer_norm_eps": "norm_eps is what is read",
        "position_embedding_type": "a field of BERT's that nothing reads",
        "initializer_cutoff_factor": "first values",
        "cls_token_id": "of the tokenizer",
        **dict.fromkeys(("sparse_prediction", "sparse_pred_ignore_index"), "which logits a loss needs"),
        **dict.fromkeys(("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad"), "how fast"),
    },
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
