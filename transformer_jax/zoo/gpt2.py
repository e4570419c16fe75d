"""GPT-2: learned positions, layer norm before each sublayer, GELU."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import Attention, Causal, Dense, Embedding, GPT2Init, Group, LayerNorm, Learned, Residual, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo.activations import THEIRS, activation
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures, decoder_head, decoder_head_tensors
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import places
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm, table


def config(s: Settings) -> DecoderOnlyConfig:
    scale, drop = LayerNorm(s("layer_norm_epsilon", 1e-5)), s("resid_pdrop", 0.1)
    s.only("scale_attn_weights", True)
    s.only("scale_attn_by_inverse_layer_idx", False)
    s.only("add_cross_attention", False)
    d_model = s("n_embd")
    attention = Attention(s("n_head"), mask=Causal(), qkv_bias=True, out_bias=True, dropout=s("attn_pdrop", 0.1))
    mlp = Dense(s("n_inner", None) or 4 * d_model, activation=activation(s("activation_function", "gelu_new")), bias=True)
    block = Residual(attention, pre=scale, dropout=drop), Residual(mlp, pre=scale, dropout=drop)
    return DecoderOnlyConfig(
        s("vocab_size"), d_model=d_model, max_length=s("n_positions"), stack=Stack((Group(s("n_layer"), block),), final_norm=scale),
        embedding=Embedding(Learned(), dropout=s("embd_pdrop", 0.1)), head=decoder_head(s, tied=True),
        initialization=GPT2Init(s("initializer_range", 0.02)),
    )  # fmt: skip


def settings(model: Any) -> dict[str, Any] | None:
    match model:
        case DecoderOnlyConfig(
            embedding=Embedding(Learned()),
            stack=Stack((Group(layers, (Residual(Attention() as attention, pre=LayerNorm(eps), dropout=drop), Residual(Dense() as mlp))),)),
        ):  # fmt: skip
            return {
                "vocab_size": model.vocab_size,
                "n_positions": model.max_length,
                "n_embd": model.d_model,
                "n_layer": layers,
                "n_head": attention.num_heads,
                "n_inner": mlp.d_ff,
                "activation_function": "gelu_new" if mlp.activation == "gelu_tanh" else THEIRS[mlp.activation],
                "resid_pdrop": drop,
                "embd_pdrop": model.embedding.dropout,
                "attn_pdrop": attention.dropout,
                "layer_norm_epsilon": eps,
            }
    return None


def tensors(model: DecoderOnlyConfig) -> Iterator[Tensor]:
    yield table("transformer.wte.weight", Place(("embedding", "embedding")))
    yield table("transformer.wpe.weight", Place(("embedding", "position", "embedding")))
    for n, (attention, mlp) in enumerate(places(model.stack)):
        at, layer = f"transformer.h.{n}", attention / "layer"
        yield from norm(f"{at}.ln_1", attention / "pre")
        yield from linear(f"{at}.attn.c_attn", layer / "query", layer / "key", layer / "value", transposed=False)
        yield from linear(f"{at}.attn.c_proj", layer / "out", inputs=2, transposed=False)
        yield from norm(f"{at}.ln_2", mlp / "pre")
        yield from linear(f"{at}.mlp.c_fc", mlp / "layer/up", transposed=False)
        yield from linear(f"{at}.mlp.c_proj", mlp / "layer/down", transposed=False)
    yield from norm("transformer.ln_f", Place(("stack", "final_norm")))
    yield from decoder_head_tensors(model.head, tokens="classifier")


def _preset(n_embd: int, n_layer: int, n_head: int) -> dict[str, Any]:
    return {"vocab_size": 50257, "n_positions": 1024, "n_embd": n_embd, "n_layer": n_layer, "n_head": n_head}


FAMILY = Family(
    "GPT-2",
    paper="Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
    unusual="products stored as [in, out], query, key and value in one",
    model_type="gpt2",
    architectures=decoder_architectures("GPT2", lm="LMHeadModel"),
    prefix="transformer.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={
        "gpt2": _preset(768, 12, 12),
        "gpt2-medium": _preset(1024, 24, 16),
        "gpt2-large": _preset(1280, 36, 20),
        "gpt2-xl": _preset(1600, 48, 25),
    },
    ignored={
        "n_ctx": "n_positions says it again",
        "reorder_and_upcast_attn": "softmax is float32 here in any case",
        **dict.fromkeys(("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"), "of another head"),
    },
    dropped={r"transformer\.h\.\d+\.attn\.(masked_)?bias": "the causal mask"},
    copies={"lm_head.weight": "transformer.wte.weight"},
)
