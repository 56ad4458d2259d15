"""Weights as sums of binary or ternary bases with scales; see `binarize.py`."""
