"""GPT-NeoX and Pythia: attention and the MLP in parallel, each behind a norm of its own; a quarter of a head's features turns."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import Attention, Branch, Causal, Dense, Embedding, Group, LayerNorm, NormalInit, Parallel, Residual, Rope, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo.activations import THEIRS, activation
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures, decoder_head, decoder_head_tensors
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import places
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm, table


def config(s: Settings) -> DecoderOnlyConfig:
    scale, drop, bias = LayerNorm(s("layer_norm_eps", 1e-5)), s("hidden_dropout", 0.0), s("attention_bias", True)
    d_model, heads, position = s("hidden_size"), s("num_attention_heads"), rope({"partial_rotary_factor": 0.25, **rope_parameters(s, partial=True)}, s)
    if (turning := int(d_model // heads * position.fraction)) % 2:
        raise NotImplementedError(f"config.json: rotary_pct: expected a share that turns an even number of features, received {position.fraction} ({turning})")
    attention = Attention(heads, mask=Causal(), position=position, qkv_bias=bias, out_bias=bias, dropout=s("attention_dropout", 0.0))
    mlp = Dense(s("intermediate_size"), activation=activation(s("hidden_act", "gelu")), bias=True)
    sublayers: tuple[Residual, ...] = Residual(attention, pre=scale, dropout=drop), Residual(mlp, pre=scale, dropout=drop)
    if s("use_parallel_residual", True):
        sublayers = (Residual(Parallel((Branch(attention, pre=scale), Branch(mlp, pre=scale))), dropout=drop),)
    return DecoderOnlyConfig(
        s("vocab_size"), d_model=d_model, max_length=s("max_position_embeddings", 2048),
        stack=Stack((Group(s("num_hidden_layers"), sublayers),), final_norm=scale), embedding=Embedding(dropout=drop),
        head=decoder_head(s, dropout=s("classifier_dropout", 0.1)), initialization=NormalInit(s("initializer_range", 0.02)),
    )  # fmt: skip


def settings(model: Any) -> dict[str, Any] | None:
    match model:
        case DecoderOnlyConfig(stack=Stack((Group(layers, (Residual(Parallel((Branch(attention), Branch(mlp))), dropout=drop),)),))):
            parallel = True
        case DecoderOnlyConfig(stack=Stack((Group(layers, (Residual(attention, dropout=drop), Residual(mlp))),))):
            parallel = False
        case _:
            return None
    match attention, mlp, model.stack.final_norm:
        case Attention(position=Rope() as position), Dense(), LayerNorm(eps):
            rotary = rope_settings(position)
            return {
                "vocab_size": model.vocab_size,
                "hidden_size": model.d_model,
                "intermediate_size": mlp.d_ff,
                "num_hidden_layers": layers,
                "num_attention_heads": attention.num_heads,
                "hidden_act": THEIRS[mlp.activation],
                "max_position_embeddings": model.max_length,
                "layer_norm_eps": eps,
                "use_parallel_residual": parallel,
                "attention_bias": attention.qkv_bias,
                "attention_dropout": attention.dropout,
                "hidden_dropout": drop,
                "rotary_emb_base": rotary["rope_theta"],
                "rotary_pct": position.fraction,
                "rope_scaling": rotary["rope_scaling"],
            }
    return None


def tensors(model: DecoderOnlyConfig) -> Iterator[Tensor]:
    yield table("gpt_neox.embed_in.weight", Place(("embedding", "embedding")))
    parallel = len(model.stack.groups[0].sublayers) == 1
    for n, layer in enumerate(places(model.stack, each=1 if parallel else 2)):
        attention, mlp = (layer[0] / "layer/branches_0", layer[0] / "layer/branches_1") if parallel else layer
        at, heads = f"gpt_neox.layers.{n}", attention / "layer"
        yield from norm(f"{at}.input_layernorm", attention / "pre")
        yield from linear(f"{at}.attention.query_key_value", heads / "query", heads / "key", heads / "value", groups=model.stack.num_heads)
        yield from linear(f"{at}.attention.dense", heads / "out", inputs=2)
        yield from norm(f"{at}.post_attention_layernorm", mlp / "pre")
        yield from linear(f"{at}.mlp.dense_h_to_4h", mlp / "layer/up")
        yield from linear(f"{at}.mlp.dense_4h_to_h", mlp / "layer/down")
    yield from norm("gpt_neox.final_layer_norm", Place(("stack", "final_norm")))
    yield from decoder_head_tensors(model.head, lm="embed_out", tokens="classifier")


def _preset(hidden_size: int, layers: int, heads: int, vocab_size: int = 50304, act: str = "gelu") -> dict[str, Any]:
    return {
        "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": 4 * hidden_size, "num_hidden_layers": layers, "num_attention_heads": heads,
        "hidden_act": act, "max_position_embeddings": 2048,
    }  # fmt: skip


FAMILY = Family(
    "GPT-NeoX and Pythia",
    paper="arXiv:2204.06745, arXiv:2304.01373",
    unusual="attention and the MLP in parallel, with a norm each; a quarter of a head's features turns; a head's query, key and value lie together",
    model_type="gpt_neox",
    architectures=decoder_architectures("GPTNeoX"),
    prefix="gpt_neox.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={
        "pythia-14m": _preset(128, 6, 4),
        "pythia-70m": _preset(512, 6, 8),
        "pythia-160m": _preset(768, 12, 12),
        "pythia-410m": _preset(1024, 24, 16),
        "pythia-1b": _preset(2048, 16, 8),
        "pythia-1.4b": _preset(2048, 24, 16),
        "pythia-2.8b": _preset(2560, 32, 32),
        "pythia-6.9b": _preset(4096, 32, 32, 50432),
        "pythia-12b": _preset(5120, 36, 40, 50688),
        "gpt-neox-20b": _preset(6144, 44, 64, 50432, "gelu_fast"),
    },
    ignored={
        "is_decoder": "attention is causal in any case",
        **dict.fromkeys(("attention_probs_dropout_prob", "hidden_dropout_prob"), "names that only the first files have; nothing reads them"),
    },
    dropped={
        r"gpt_neox\.layers\.\d+\.attention\.(masked_)?bias": "the causal mask",
        r"gpt_neox\.layers\.\d+\.attention\.rotary_emb\.inv_freq": "the frequencies of the rotary positions",
    },
    renamed={r"^lm_head\.": "embed_out."},
    copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
)
