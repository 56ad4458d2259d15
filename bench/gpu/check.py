"""Says whether what a candidate computes is right, before its speed means anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from . import torch_nets
from .candidate import Array, device
from .nets import Net
from .products import Chain, Product

# Allowed errors, as shares of the greatest wanted value. Half floats round to 2^-11: dozens of layers in a
# row, each rounding weights and results, gave 0.0007 to 0.005 in onnxruntime on a CPU; bfloat16 is 8 times
# as coarse.
HALF, BFLOAT = 0.02, 0.16
# Integer networks end in a few float operations; a step of the last integers is a hundred times as much.
INTEGER = 1e-4


@dataclass(frozen=True)
class Check:
    """The finding on one candidate.

    Attributes:
        error: greatest difference, as a share of the greatest wanted value.
        limit: what is allowed.
        against: what it was compared with.
    """

    error: float
    limit: float
    against: str

    @property
    def ok(self) -> bool:
        """Whether it is right; NaN is not."""
        return self.error <= self.limit


def no_tf32() -> None:
    """Make float32 mean float32; at the start of a process, since torch.compile starts anew at a change."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def wanted(what: Net | Chain | Product, batch: int) -> Array:
    """Return the result as it should be: float32 by torch without TF32 (`no_tf32`), or exact integers."""
    with torch.no_grad():
        if isinstance(what, Product):
            return _exact(what)
        if isinstance(what, Chain):
            x = torch.from_numpy(what.sample()).half().float().to(device())
            for matrix in torch_nets.real_matrices(what, device()):
                x = x @ matrix
            return np.asarray(x.cpu().numpy())
        module = torch_nets.TorchNet(what, torch.float32, device())
        x = torch_nets.input_tensor(what.sample(batch), torch.float32, device())
        return np.asarray(module(x).cpu().numpy())


def _exact(product: Product) -> Array:
    """Float64 holds these sums exactly; then as docs/semantics.md has it."""
    x, w = (torch.from_numpy(a).to(device(), torch.float64) for a in (product.sample(), product.weights()))
    real = (x @ w).float() * float(product.factor)
    return np.asarray(real.round().clamp(-128, 127).to(torch.int8).cpu().numpy())


def compare(got: Array, want: Array, limit: float, against: str) -> Check:
    """Compare arrays of one size."""
    if got.size != want.size:
        return Check(float("inf"), limit, f"{against}; its shape is {got.shape}, not {want.shape}")
    left, right = got.astype(np.float64).reshape(-1), want.astype(np.float64).reshape(-1)
    error = float(np.max(np.abs(left - right)) / max(float(np.max(np.abs(right))), 1e-30))
    return Check(error, limit, against)


def judge(what: Net | Chain | Product, got: Array, want: Array, kept: Mapping[str, Array] | None) -> Check:
    """Judge one result.

    Args:
        what: the workload.
        got: the result.
        want: of `wanted`.
        kept: rows that the integer reference computed, of int8 networks.
    """
    if kept is not None:
        rows = [int(row) for row in kept["rows"]]
        return compare(got[rows], kept["want"], INTEGER, f"integer reference, rows {rows}")
    if isinstance(what, Product):
        if got.dtype == np.int32:
            factor = np.float32(what.factor)
            got = np.clip(np.rint(got.astype(np.float32) * factor), -128, 127)
        return compare(got, want, 0.0, "exact integers")
    return compare(got, want, HALF, "torch float32")
