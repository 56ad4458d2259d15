"""Quantized Add of two uint8 images: dequantize, add, activate, quantize, see `add_formula`.

One row per task, 64 bytes at a time: widened by unpacking, converted, two fused multiply-adds, rounded,
packed with saturation; 9 vector instructions per 16 bytes. In place (y is a or b) when the images have the
same border. Measured: 16 KiB in 1.9 us (26 GB/s read and written, 6.8 cycles per 16 bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .....compiler.backend import Array, Verdict
from .add_formula import AddFormula
from .int8_tiles import Image

if TYPE_CHECKING:
    import tvm

    from ..isa import Isa


@dataclass(frozen=True)
class AddInt8Spec:
    """An Add of fixed shape.

    Parameters of the kernel: a, b, y (uint8 [bytes] each), begin, end.

    Attributes:
        a, b, y: images of the same size and pitch.
        formula: the arithmetic, see `add_formula.add_formula`.
    """

    a: Image
    b: Image
    y: Image
    formula: AddFormula

    def tasks(self) -> int:
        """Return the number of tasks: rows."""
        return self.y.batch * self.y.height

    def macs(self) -> int:
        """Return 0: there are no products to count."""
        return 0

    def bytes(self) -> int:
        """Return the bytes read and written once."""
        return self.a.bytes + self.b.bytes + self.y.bytes


def supports(spec: AddInt8Spec, isa: Isa) -> Verdict:
    """Say whether the kernel computes `spec`."""
    sizes = {(i.batch, i.height, i.width, i.pitch) for i in (spec.a, spec.b, spec.y)}
    if len(sizes) > 1:
        return Verdict.no(f"images of one size and pitch are needed, got {sorted(sizes)}")
    if spec.y.pitch % 16:
        return Verdict.no(f"pixels of whole vectors of 16 bytes are needed, got {spec.y.pitch}")
    return Verdict.yes()


def pack(spec: AddInt8Spec) -> list[Array]:
    """Return no constants: the scales stand in the code."""
    return []


def build(spec: AddInt8Spec, isa: Isa) -> tvm.IRModule:
    """Return the module whose `main` computes `spec`."""
    from .add_int8_emit import build_add

    return build_add(spec, isa)
