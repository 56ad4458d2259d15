"""Pruning of single weights and of patterns that kernels use, and repair without training."""
