"""Losses fused with the product that they follow."""

from pallas_kernels.loss.cross_entropy import CrossEntropy, linear_cross_entropy

__all__ = ["CrossEntropy", "linear_cross_entropy"]
