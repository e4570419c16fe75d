"""The transformer of 2017: sines and cosines, layer norm after each sublayer, ReLU, one table of tokens for both sides and the head.

It was not published in this form: config.json has the paper's names, and tensors those of torch.nn.Transformer, beside `embedding.weight`. As in the paper, and
unlike there by default, attention has no biases and no norm follows the last layer.
"""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import (
    Attention,
    Causal,
    CrossAttention,
    Dense,
    Embedding,
    Group,
    LanguageModel,
    LayerNorm,
    NoMask,
    Residual,
    Sinusoidal,
    Stack,
    XavierInit,
)
from transformer_jax.models import EncoderDecoderConfig
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import layers, places
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm, table


def config(s: Settings) -> EncoderDecoderConfig:
    s.only("tie_word_embeddings", True)
    rate, heads = s("P_drop", 0.1), s("h")
    embedding = Embedding(Sinusoidal(), scale=True, dropout=rate)
    mlp = Dense(s("d_ff"), activation="relu", bias=True)

    def stack(*mixers: Any) -> Stack:
        return Stack((Group(s("N"), tuple(Residual(layer, after=LayerNorm(), dropout=rate) for layer in (*mixers, mlp))),))

    return EncoderDecoderConfig(
        s("vocab_size"), d_model=s("d_model"), max_length=s("max_length", 512), encoder=stack(Attention(heads, mask=NoMask())),
        decoder=stack(Attention(heads, mask=Causal()), CrossAttention(heads)), source_embedding=embedding, target_embedding=embedding,
        initialization=XavierInit(),
    )  # fmt: skip


def settings(model: Any) -> dict[str, Any] | None:
    match model:
        case EncoderDecoderConfig(source_embedding=Embedding(Sinusoidal())):
            encoder = layers(model.encoder)
            match encoder[:1]:
                case [(Residual(Attention(heads)), Residual(Dense(d_ff)))]:
                    return {
                        "vocab_size": model.vocab_size,
                        "d_model": model.d_model,
                        "d_ff": d_ff,
                        "h": heads,
                        "N": len(encoder),
                        "P_drop": model.source_embedding.dropout,
                        "max_length": model.max_length,
                    }
    return None


def tensors(model: EncoderDecoderConfig) -> Iterator[Tensor]:
    yield table("embedding.weight", Place(("source_embedding", "embedding")))
    for side, stack, mixers in (("encoder", model.encoder, ("self_attn",)), ("decoder", model.decoder, ("self_attn", "multihead_attn"))):
        for n, (*attentions, mlp) in enumerate(places(stack, len(mixers) + 1, side)):
            at = f"{side}.layers.{n}"
            for m, (mixer, attention) in enumerate(zip(mixers, attentions), 1):
                projections = tuple(attention / "layer" / name / "kernel" for name in ("query", "key", "value"))
                yield Tensor(f"{at}.{mixer}.in_proj_weight", projections, inputs=1)
                yield from linear(f"{at}.{mixer}.out_proj", attention / "layer/out", inputs=2)
                yield from norm(f"{at}.norm{m}", attention / "after")
            yield from linear(f"{at}.linear1", mlp / "layer/up")
            yield from linear(f"{at}.linear2", mlp / "layer/down")
            yield from norm(f"{at}.norm{len(mixers) + 1}", mlp / "after")


FAMILY = Family(
    "the transformer of 2017",
    paper="Vaswani et al., arXiv:1706.03762",
    unusual="layer norm after each sublayer and none at the end",
    model_type="transformer",
    architectures={"Transformer": LanguageModel},
    prefix="",
    config=config,
    settings=settings,
    tensors=tensors,
    # Section 5.1: about 37,000 tokens; table 3.
    presets={
        "transformer-base": {"vocab_size": 37000, "N": 6, "d_model": 512, "d_ff": 2048, "h": 8, "P_drop": 0.1},
        "transformer-big": {"vocab_size": 37000, "N": 6, "d_model": 1024, "d_ff": 4096, "h": 16, "P_drop": 0.3},
    },
)
