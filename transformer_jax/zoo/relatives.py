"""What Llama and its relatives have in common: rotary attention, gated MLPs, RMSNorm; how their config.json says it, and what their tensors are called."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformer_jax.layers import And, Attention, Causal, Embedding, Experts, Gated, Layer, Mask, NormalInit, Residual, RMSNorm, Rope, SlidingWindow, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo.activations import THEIRS, activation
from transformer_jax.zoo.heads import decoder_head, decoder_head_tensors
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import Layer as Sublayers
from transformer_jax.zoo.stacks import grouped, layers, places
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm, table

MlpTensors = Callable[[str, Place, Layer], Iterator[Tensor]]
GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
# The norms that a layer can have, as (sublayer, field) by the names of their tensors.
PRE = {"input_layernorm": (0, "pre"), "post_attention_layernorm": (1, "pre")}
PRE_AND_POST = {
    "input_layernorm": (0, "pre"), "post_attention_layernorm": (0, "post"), "pre_feedforward_layernorm": (1, "pre"), "post_feedforward_layernorm": (1, "post"),
}  # fmt: skip


def attention(s: Settings, *, head_dim: int | None = None, kv_heads: int | None = None, **fields: Any) -> Attention:
    """`fields` are those of ours that the family says in its own way; `head_dim` and `kv_heads` are the family's defaults."""
    return Attention(
        s("num_attention_heads"), num_kv_heads=s("num_key_value_heads", kv_heads), head_dim=s("head_dim", head_dim), dropout=s("attention_dropout", 0.0),
        **fields,
    )  # fmt: skip


def mlp(s: Settings, *, name: str = "hidden_act", default: str = "silu", bias: bool = False) -> Gated:
    """`name` is the field that names the activation."""
    return Gated(s("intermediate_size"), activation=activation(s(name, default)), bias=bias)


def decoder(
    s: Settings, stack: Sequence[Sublayers], norm: RMSNorm, *, max_length: int, tied: bool = False, embedding: Embedding = Embedding(), **logits: Any
) -> DecoderOnlyConfig:  # fmt: skip
    """The model of some layers; `max_length` and `tied` are the family's defaults, `logits` fields of a language model's head."""
    return DecoderOnlyConfig(
        s("vocab_size"), d_model=s("hidden_size"), max_length=s("max_position_embeddings", max_length), stack=Stack(grouped(stack), final_norm=norm),
        embedding=embedding, head=decoder_head(s, tied=tied, **logits), initialization=NormalInit(s("initializer_range", 0.02)),
    )  # fmt: skip


def causal(window: int | None) -> Mask:
    """The mask of a query that sees `window` keys, its own among them; None for all before it."""
    return Causal() if window is None else Causal() & SlidingWindow(window - 1)


def window(mask: Mask) -> int | None:
    """The reverse of `causal`."""
    match mask:
        case And(Causal(), b=SlidingWindow(left)):
            return left + 1
    return None


def windows(s: Settings, derived: Sequence[bool], size: int | None) -> list[int | None]:
    """The window of each layer, None for those that see everything.

    Args:
        s: whose layer_types say which layers are which.
        derived: which layers have windows where it has none.
        size: of a window.

    Raises:
        ValueError: a layer is left out, or there is no size. NotImplementedError: a kind of layer that the family has not.
    """
    kinds = s("layer_types", None) or ["sliding_attention" if sliding else "full_attention" for sliding in derived]
    if len(kinds) != len(derived):
        raise ValueError(f"config.json: layer_types: expected one for each of {len(derived)} layers, received {len(kinds)}")
    if other := set(kinds) - {"sliding_attention", "full_attention"}:
        raise NotImplementedError(f"config.json: layer_types: expected 'sliding_attention' or 'full_attention', received {sorted(other)}")
    if size is None and "sliding_attention" in kinds:
        raise ValueError("config.json: sliding_window: expected a number, for layer_types has sliding_attention, received none")
    return [size if kind == "sliding_attention" else None for kind in kinds]


def window_settings(stack: Stack) -> dict[str, Any]:
    """sliding_window and layer_types."""
    found = [window(attention.mask) for attention in attentions(stack)]
    size = next((size for size in found if size is not None), None)
    return {"sliding_window": size, "layer_types": ["full_attention" if size is None else "sliding_attention" for size in found]}


def upper_windows(s: Settings) -> list[int | None]:
    """The windows of Qwen's layers: those from max_window_layers on have one, where use_sliding_window says so."""
    used, first, size = s("use_sliding_window", False), s("max_window_layers", 28), s("sliding_window", 4096)
    return windows(s, [used and size is not None and n >= first for n in range(s("num_hidden_layers"))], size if used else None)


def upper_window_settings(stack: Stack) -> dict[str, Any]:
    """The reverse; with layer_types only where a layer has a window, for they are younger than the other fields."""
    fields = window_settings(stack)
    kinds = fields["layer_types"]
    if fields["sliding_window"] is None:
        return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": len(kinds)}
    return {**fields, "use_sliding_window": True, "max_window_layers": kinds.index("sliding_attention")}


def attentions(stack: Stack) -> list[Attention]:
    """Of each layer that has one."""
    return [attention.layer for attention, _ in layers(stack) if isinstance(attention.layer, Attention)]


def first_layer(model: Any, *kinds: type[Layer]) -> tuple[Attention, Any, Rope] | None:
    """The first layer's attention, MLP and positions; None for a model of another shape, or with an MLP of none of the kinds (`Gated` unless given).

    Whether all layers are alike is seen when what was written is read.
    """
    match model:
        case DecoderOnlyConfig(stack=Stack(final_norm=RMSNorm()) as stack):
            match layers(stack):
                case [(Residual(Attention(position=Rope() as position) as attention), Residual(mlp)), *_] if isinstance(mlp, kinds or Gated):
                    return attention, mlp, position
    return None


def mlps(stack: Stack) -> tuple[list[Gated], list[Experts]]:
    """The layers' MLPs: the dense ones, and the mixtures."""
    found = [mlp.layer for _, mlp in layers(stack)]
    return [mlp for mlp in found if isinstance(mlp, Gated)], [mlp for mlp in found if isinstance(mlp, Experts)]


def load_balance(s: Settings, top_k: int, coefficient: float = 0.001) -> float:
    """The weight of the load-balance loss. Theirs is top_k times ours, and is used where output_router_logits says so."""
    weight = s("router_aux_loss_coef", coefficient)
    return float(weight * top_k) if s("output_router_logits", False) else 0.0


def settings(model: DecoderOnlyConfig, attention: Attention, mlp: Any, *, name: str = "hidden_act") -> dict[str, Any]:
    """The fields that all have; `name` as for `mlp`."""
    assert isinstance(model.stack.final_norm, RMSNorm)
    mlp = mlp.mlp if isinstance(mlp, Experts) else mlp
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": mlp.d_ff,
        "num_hidden_layers": len(layers(model.stack)),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim or model.d_model // attention.num_heads,
        name: THEIRS[mlp.activation],
        "max_position_embeddings": model.max_length,
        "rms_norm_eps": model.stack.final_norm.eps,
        "attention_dropout": attention.dropout,
    }


def tensors(model: DecoderOnlyConfig, norms: Mapping[str, tuple[int, str]] = PRE, *, mlp_tensors: MlpTensors | None = None) -> Iterator[Tensor]:
    """Of a model whose norms are so called; `mlp_tensors` are those of each MLP, given their names' beginning, their place, and the layer."""
    yield from around(model)
    for n, (sublayers, configs) in enumerate(zip(places(model.stack), layers(model.stack))):
        at, (attention, mlp) = f"model.layers.{n}", sublayers
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            yield from linear(f"{at}.self_attn.{theirs}_proj", attention / "layer" / ours)
        yield from linear(f"{at}.self_attn.o_proj", attention / "layer/out", inputs=2)
        for theirs, ours in (("q", "query"), ("k", "key")):
            yield from norm(f"{at}.self_attn.{theirs}_norm", attention / "layer" / f"{ours}_norm")
        yield Tensor(f"{at}.self_attn.sinks", (attention / "layer/sinks",))
        yield from (mlp_tensors or gated_tensors)(f"{at}.", mlp / "layer", configs[1].layer)
        yield from norms_of(at, sublayers, norms)


def gated_tensors(at: str, place: Place, mlp: Layer) -> Iterator[Tensor]:
    """Of a gated MLP, or of a mixture of them with or without a shared one."""
    if not isinstance(mlp, Experts):
        yield from gated(f"{at}mlp.", place)
        return
    yield from linear(f"{at}mlp.gate", place / "router")
    yield Tensor(f"{at}mlp.gate.e_score_correction_bias", (place / "router/correction",))
    for n in range(mlp.num_experts):
        yield from gated(f"{at}mlp.experts.{n}.", place[n] / "mlp")
    yield from gated(f"{at}mlp.shared_experts.", place / "shared")


def gated(at: str, place: Place, names: Mapping[str, str] = GATED) -> Iterator[Tensor]:
    """Of one gated MLP, with the names of its products."""
    for ours, theirs in names.items():
        yield from linear(at + theirs, place / ours)


def around(model: DecoderOnlyConfig) -> Iterator[Tensor]:
    """What stands before and after the layers."""
    yield table("model.embed_tokens.weight", Place(("embedding", "embedding")))
    yield from norm("model.norm", Place(("stack", "final_norm")))
    yield from decoder_head_tensors(model.head)


def norms_of(at: str, sublayers: Sequence[Place], norms: Mapping[str, tuple[int, str]] = PRE) -> Iterator[Tensor]:
    """A layer's norms."""
    for name, (n, field) in norms.items():
        yield from norm(f"{at}.{name}", sublayers[n] / field)
