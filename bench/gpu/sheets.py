"""Rates that data sheets promise, and the least time that a workload takes at given rates."""

from __future__ import annotations

from dataclasses import dataclass

from .nets import Net
from .products import Chain, Product


@dataclass(frozen=True)
class Roof:
    """Rates of a device.

    Attributes:
        bytes_per_s: memory: the better of a copy (bytes read and written) and a sum (bytes read).
        fp16, int8: operations per second of matrix products, an addition and a product being two.
        source: measured here, or which data sheet.
    """

    bytes_per_s: float
    fp16: float
    int8: float
    source: str


_NVIDIA = "NVIDIA data sheet"
# Dense rates (with sparsity they are double), fp16 summed in float32. Sources, all of nvidia.com: data sheets
# "NVIDIA H100 Tensor Core GPU" (SXM), "NVIDIA H200 Tensor Core GPU" (SXM), "NVIDIA A100 Tensor Core GPU"
# (80GB SXM), "NVIDIA L40S GPU", "NVIDIA L4 Tensor Core GPU" (sparse figures halved).
DATA_SHEETS = {
    "H100 SXM (sm_90)": Roof(3.35e12, 989e12, 1979e12, f"{_NVIDIA}, H100 SXM, HBM3"),
    "H200 SXM (sm_90)": Roof(4.8e12, 989e12, 1979e12, f"{_NVIDIA}, H200 SXM, HBM3e"),
    "A100 80GB SXM (sm_80)": Roof(2.039e12, 312e12, 624e12, f"{_NVIDIA}, A100 80GB SXM, HBM2e"),
    "L40S (sm_89)": Roof(0.864e12, 362e12, 733e12, f"{_NVIDIA}, L40S, GDDR6"),
    "L4 (sm_89)": Roof(0.3e12, 121e12, 242e12, f"{_NVIDIA}, L4, GDDR6"),
}


@dataclass(frozen=True)
class Load:
    """The least that must be done for one inference.

    Attributes:
        operations: additions and products.
        bytes: weights, input and output once each; what lies between layers may stay in caches.
        unit: `fp16` or `int8`: whose rate counts.
    """

    operations: float
    bytes: float
    unit: str

    def seconds(self, roof: Roof) -> float:
        """Return the least time: the longer one of computing and moving."""
        rate = roof.int8 if self.unit == "int8" else roof.fp16
        return max(self.operations / rate, self.bytes / roof.bytes_per_s)

    def bound(self, roof: Roof) -> str:
        """Say which one it is."""
        rate = roof.int8 if self.unit == "int8" else roof.fp16
        return "compute" if self.operations / rate > self.bytes / roof.bytes_per_s else "memory"


def load_of(what: Net | Chain | Product, precision: str, batch: int) -> Load:
    """Return what one inference must do; a chain's load is that of one of its products."""
    if isinstance(what, Chain):
        return Load(2 * what.width**2, what.weight_bytes, "fp16")
    if isinstance(what, Product):
        return Load(2 * what.macs, 3 * what.size**2, "int8")
    width = 1 if precision == "int8" else 2
    sizes = 1
    for size in what.shape:
        sizes *= size
    sizes += what.classes * (what.shape[0] if len(what.shape) == 2 else 1)
    # Input and output stay floats: 2 bytes in half precision, 4 around an int8 network.
    moved = what.parameters * width + batch * sizes * (4 if width == 1 else 2)
    return Load(2 * what.macs * batch, moved, "int8" if precision == "int8" else "fp16")
