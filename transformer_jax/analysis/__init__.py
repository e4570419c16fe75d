"""What a model is made of and what it costs, known before anything is compiled or run."""

from transformer_jax.analysis.costs import Complexity, Cost, Growth, Peak, complexity, costs, crossings, peak
from transformer_jax.analysis.draw import brief, draw
from transformer_jax.analysis.flops import flops
from transformer_jax.analysis.memory import activation_bytes, peak_bytes
from transformer_jax.analysis.parts import Part, part_of, parts
from transformer_jax.analysis.plot import plot_flops
from transformer_jax.analysis.report import describe
from transformer_jax.analysis.sizes import CacheBytes, cache_bytes, parameters

__all__ = [
    "CacheBytes", "Complexity", "Cost", "Growth", "Part", "Peak", "activation_bytes", "brief", "cache_bytes", "complexity", "costs", "crossings", "describe",
    "draw", "flops", "parameters", "part_of", "parts", "peak", "peak_bytes", "plot_flops",
]  # fmt: skip
