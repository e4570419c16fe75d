"""Falcon: attention and the MLP in parallel, few keys and values, rotary positions."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import Attention, Branch, Causal, Dense, Group, LayerNorm, NormalInit, Parallel, Residual, Rope, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo.activations import THEIRS, activation
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures, decoder_head, decoder_head_tensors
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import places
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm, table


def config(s: Settings) -> DecoderOnlyConfig:
    d_model, heads, bias = s.one_of("hidden_size", "n_embed"), s("num_attention_heads"), s("bias", False)
    scale, drop, attention_drop = LayerNorm(s("layer_norm_epsilon", 1e-5)), s("hidden_dropout", 0.0), s("attention_dropout", 0.0)
    s.only("alibi", False)  # theirs is rounded to bfloat16 and divided by sqrt(head_dim)
    s.only("apply_residual_connection_post_layernorm", False)
    grouped = s("new_decoder_architecture", False)
    parallel, few, given = s("parallel_attn", True), s("multi_query", True), s("num_kv_heads", None)
    if grouped:
        s.only("parallel_attn", True)
    norms = s.only("num_ln_in_parallel_attn", *((None, 1, 2) if grouped else (None, 1)))
    attention = Attention(
        heads, num_kv_heads=given or heads if grouped else 1 if few else heads, mask=Causal(), position=rope(rope_parameters(s), s), qkv_bias=bias,
        out_bias=bias, dropout=attention_drop,
    )  # fmt: skip
    mlp = Dense(s("ffn_hidden_size", None) or 4 * d_model, activation=activation(s("activation", "gelu")), bias=bias)
    if grouped and norms != 1:
        layer: tuple[Residual, ...] = (Residual(Parallel((Branch(attention, pre=scale), Branch(mlp, pre=scale))), dropout=drop),)
    elif parallel:
        layer = (Residual(Parallel((attention, mlp)), pre=scale, dropout=drop),)
    else:
        layer = Residual(attention, pre=scale, dropout=attention_drop), Residual(mlp, pre=scale, dropout=drop)
    return DecoderOnlyConfig(
        s("vocab_size"), d_model=d_model, max_length=s("max_position_embeddings", 2048), stack=Stack((Group(s("num_hidden_layers"), layer),), final_norm=scale),
        head=decoder_head(s, tied=True, dropout=drop), initialization=NormalInit(s("initializer_range", 0.02)),
    )  # fmt: skip


def settings(model: Any) -> dict[str, Any] | None:
    match model:
        case DecoderOnlyConfig(stack=Stack((Group(layers, (Residual(Parallel((Branch(attention), Branch(mlp))), dropout=drop),)),))):
            norms, parallel = 2, True
        case DecoderOnlyConfig(stack=Stack((Group(layers, (Residual(Parallel((attention, mlp)), dropout=drop),)),))):
            norms, parallel = 1, True
        case DecoderOnlyConfig(stack=Stack((Group(layers, (Residual(attention), Residual(mlp, dropout=drop))),))):
            norms, parallel = 1, False
        case _:
            return None
    match attention, mlp, model.stack.final_norm:
        case Attention(heads, position=Rope() as position), Dense(), LayerNorm(eps):
            grouped = norms == 2 or attention.kv_heads not in (1, heads)
            return {
                "vocab_size": model.vocab_size,
                "hidden_size": model.d_model,
                "ffn_hidden_size": mlp.d_ff,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "activation": THEIRS[mlp.activation],
                "max_position_embeddings": model.max_length,
                "layer_norm_epsilon": eps,
                "bias": mlp.bias,
                "alibi": False,
                "parallel_attn": parallel,
                "new_decoder_architecture": grouped,
                "attention_dropout": attention.dropout,
                "hidden_dropout": drop,
                **({"num_kv_heads": attention.kv_heads, "num_ln_in_parallel_attn": norms} if grouped else {"multi_query": attention.kv_heads == 1}),
                **rope_settings(position),
            }
    return None


def tensors(model: DecoderOnlyConfig) -> Iterator[Tensor]:
    yield table("transformer.word_embeddings.weight", Place(("embedding", "embedding")))
    sublayers = model.stack.groups[0].sublayers
    groups = next(part.kv_heads for part in model.stack.groups[0].walk() if isinstance(part, Attention))
    for n, layer in enumerate(places(model.stack, each=len(sublayers))):
        at = f"transformer.h.{n}"
        match sublayers[0].layer:
            case Parallel((Branch(), Branch())):
                attention, mlp = layer[0] / "layer/branches_0/layer", layer[0] / "layer/branches_1/layer"
                yield from norm(f"{at}.ln_attn", layer[0] / "layer/branches_0/pre")
                yield from norm(f"{at}.ln_mlp", layer[0] / "layer/branches_1/pre")
            case Parallel():
                attention, mlp = layer[0] / "layer/branches_0", layer[0] / "layer/branches_1"
                yield from norm(f"{at}.input_layernorm", layer[0] / "pre")
            case _:
                attention, mlp = layer[0] / "layer", layer[1] / "layer"
                yield from norm(f"{at}.input_layernorm", layer[0] / "pre")
                yield from norm(f"{at}.post_attention_layernorm", layer[1] / "pre")
        yield from linear(f"{at}.self_attention.query_key_value", attention / "query", attention / "key", attention / "value", groups=groups)
        yield from linear(f"{at}.self_attention.dense", attention / "out", inputs=2)
        yield from linear(f"{at}.mlp.dense_h_to_4h", mlp / "up")
        yield from linear(f"{at}.mlp.dense_4h_to_h", mlp / "down")
    yield from norm("transformer.ln_f", Place(("stack", "final_norm")))
    yield from decoder_head_tensors(model.head, tokens="classifier")


def _preset(hidden_size: int, layers: int, heads: int, **few: Any) -> dict[str, Any]:
    return {"vocab_size": 65024, "hidden_size": hidden_size, "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": 2048, **few}


FAMILY = Family(
    "Falcon",
    paper="arXiv:2311.16867",
    unusual="attention and the MLP in parallel, behind one norm or with one each; one key and value for all queries, or for each group",
    model_type="falcon",
    architectures=decoder_architectures("Falcon"),
    prefix="transformer.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={
        "falcon-7b": _preset(4544, 32, 71, multi_query=True),
        "falcon-40b": _preset(8192, 60, 128, num_kv_heads=8, new_decoder_architecture=True),
        "falcon-180b": _preset(14848, 80, 232, num_kv_heads=8, new_decoder_architecture=True),
    },
    dropped={r"transformer\.h\.\d+\.self_attention\.rotary_emb\.inv_freq": "the frequencies of the rotary positions"},
    copies={"lm_head.weight": "transformer.word_embeddings.weight"},
)
