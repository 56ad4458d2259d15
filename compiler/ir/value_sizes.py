"""Refuses graphs whose inner values could not be held: a small ConstantOfShape can ask for terabytes."""

from __future__ import annotations

import math
from typing import Final

import onnx_ir as ir

from ..errors import ModelError
from .walk import all_nodes, node_label, static_shape

# Two gigabytes of float32 in one activation; the largest real ones are some hundred times smaller.
MOST_ELEMENTS: Final = 1 << 29


def check_value_sizes(model: ir.Model) -> None:
    """Look at the sizes of what nodes compute, where they are known; weights may be as large as they are.

    Raises:
        ModelError: `value-too-large`, naming node and size.
    """
    for node in all_nodes(model):
        for value in node.outputs:
            elements = math.prod(static_shape(value) or ())
            if elements > MOST_ELEMENTS:
                raise ModelError(
                    "value-too-large",
                    f"{node_label(node)} computes {value.name!r} with {elements} elements; "
                    f"at most {MOST_ELEMENTS} are taken",
                    "bind smaller sizes with --shape, or check where the file comes from",
                )
