"""Activations by the names that published configs give them."""

from transformer_jax.config import nearest

OURS = {
    "relu": "relu",
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "relu2": "squared_relu",
}
THEIRS = {"relu": "relu", "gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu", "tanh": "tanh", "squared_relu": "relu2"}


def activation(name: str) -> str:
    """Our name of an activation.

    Raises:
        NotImplementedError: there is none.
    """
    if name not in OURS:
        raise NotImplementedError(f"config.json: activation: expected one of {', '.join(OURS)}, received {name!r}{nearest(name, OURS)}")
    return OURS[name]
