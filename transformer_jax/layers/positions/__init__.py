"""Position schemes. Learned and sinusoidal positions are added to embeddings; rotary ones turn queries and keys."""

from transformer_jax.layers.positions.base import NoPosition, Position
from transformer_jax.layers.positions.learned import Learned
from transformer_jax.layers.positions.rotary import Rope
from transformer_jax.layers.positions.scaling import LinearScaling, Llama3Scaling, LongRopeScaling, NoScaling, NtkScaling, RopeScaling, YarnScaling
from transformer_jax.layers.positions.sinusoidal import Sinusoidal

__all__ = [
    "Learned", "LinearScaling", "Llama3Scaling", "LongRopeScaling", "NoPosition", "NoScaling", "NtkScaling", "Position", "Rope", "RopeScaling", "Sinusoidal",
    "YarnScaling",
]  # fmt: skip
