"""Cleaning up before anything else: the same function in fewer and simpler nodes.

The orders below are what the `canonicalize` macros stand for. They run once, without a fixpoint loop: the
second round of `fold-shapes`, `fold-constants` and `eliminate` is for shapes that are known only after the
first.
"""

EXACT_ORDER = (
    "fold-branches",
    "fold-shapes",
    "fold-constants",
    "eliminate",
    "fold-shapes",
    "fold-constants",
    "eliminate",
    "dedupe-constants",
    "dead-code",
)
"""-O1: the outputs stay the same bit for bit."""

ORDER = (
    *EXACT_ORDER[:7],
    "fold-pad",
    "fold-batchnorm",
    "fold-affine",
    "dedupe-constants",
    "dead-code",
)
"""-O2: layers absorb normalisation, scales, biases and padding; rounding may differ."""

PAYLOAD_ORDER = ("relu-into-quantizer", "compact-constants")
"""After quantization, before a payload is written."""
