"""Attention with user-written masks and scores, fast and differentiable, one meaning on every backend. Needs jax alone."""

from pallas_kernels.flash import masks, scores
from pallas_kernels.flash.api import attention, explain
from pallas_kernels.flash.request import Dropout
from pallas_kernels.flash.tables import lookup

__all__ = ["Dropout", "attention", "explain", "lookup", "masks", "scores"]
