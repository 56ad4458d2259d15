"""The weights of onnxruntime's MatMulNBits, unpacked.

    y = x @ dequantized.T,  dequantized[n, k] = (code[n, k] - zero[n, k / block]) * scale[n, k / block]

Codes lie packed, the first in the lowest bits, in `B` [N, blocks, block * bits / 8]; zeros likewise, each row
of them beginning on a byte; without zeros they are 2^(bits - 1). `accuracy_level` only permits an engine to
round activations; nothing here does. Source: onnxruntime/docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import UnsupportedOp
from .walk import constant, int_attribute, node_label

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """What DequantizeLinear takes: [K, N] codes, [blocks, N] scales and zeros, blocks along axis 0."""

    codes: Array
    scale: Array
    zero: Array
    block: int


def block_weights(node: ir.Node) -> BlockWeights:
    """Return the weights of a MatMulNBits; those of two bits are stored in four.

    Raises:
        UnsupportedOp: `matmul-nbits`, widths, operands or layouts that DequantizeLinear cannot say.
    """
    depth, outputs, bits, block = (int_attribute(node, name, 4) for name in ("K", "N", "bits", "block_size"))
    packed, scale = (constant(value) for value in node.inputs[1:3])
    if bits not in (2, 4, 8) or int_attribute(node, "weight_prepacked", 0):
        raise _refused(node, f"has weights of {bits} bits, or packed for one CPU")
    if packed is None or scale is None or packed.dtype != np.uint8:
        raise _refused(node, "has weights or scales that are not constant bytes and floats")
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        raise _refused(node, "reorders its inputs by groups (g_idx)")
    blocks = -(-depth // block)
    codes = unpacked(np.asarray(packed, np.uint8).reshape(outputs, -1), bits)[:, :depth]
    zero = _zeros(node, bits, outputs, blocks)
    kind = np.uint8 if bits == 8 else ml_dtypes.uint4
    return BlockWeights(
        np.ascontiguousarray(codes.T).astype(kind),
        np.ascontiguousarray(scale.reshape(outputs, blocks).T),
        np.ascontiguousarray(zero.T).astype(kind),
        block,
    )


def unpacked(packed: Bytes, bits: int) -> Bytes:
    """Return the codes of rows of bytes, the first in the lowest bits.

    >>> unpacked(np.array([[0x21, 0x43]], np.uint8), 4)
    array([[1, 2, 3, 4]], dtype=uint8)
    """
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(codes.reshape(*packed.shape[:-1], -1), np.uint8)


def _zeros(node: ir.Node, bits: int, outputs: int, blocks: int) -> Bytes:
    value = node.inputs[3] if len(node.inputs) > 3 else None
    if value is None:
        return np.full((outputs, blocks), 1 << (bits - 1), np.uint8)
    zero = constant(value)
    if zero is None:
        raise _refused(node, "has zero points that are not constant")
    if zero.dtype == np.uint8:
        return unpacked(np.asarray(zero, np.uint8).reshape(outputs, -1), bits)[:, :blocks]
    whole = np.rint(zero.astype(np.float32))
    if bool((whole != zero.astype(np.float32)).any() or (whole < 0).any() or (whole >= 1 << bits).any()):
        raise _refused(node, "has zero points that are no codes")
    return np.asarray(whole.reshape(outputs, blocks), np.uint8)


def _refused(node: ir.Node, what: str) -> UnsupportedOp:
    return UnsupportedOp("matmul-nbits", f"{node_label(node)} {what}", "export blocks of 2, 4 or 8 bits")
