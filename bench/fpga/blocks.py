"""Fits the formula of estimate_matrix.py to random blocks as the circuit is traced.

    python -m pared.bench.fpga.blocks [--blocks 300]

Prints the constants, and the error of what stands in the module now, on the same blocks.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...backends.fpga.circuit import trace
from ...backends.fpga.estimate_matrix import Block, block_cost, distinct, signed_digits
from ...backends.fpga.graph import Dense, Ints, Network, Wire

Floats = npt.NDArray[np.float64]


def random_block(rng: np.random.Generator) -> tuple[Ints, int]:
    """Return weights of 1 to 8 bits, dense or sparse, and the largest input."""
    rows, columns = int(rng.choice([4, 8, 16, 32, 64])), int(rng.choice([9, 16, 25, 36, 64]))
    bits, narrow = int(rng.choice([1, 2, 3, 4, 6, 8])), int(rng.choice([1, 2, 3, 4, 6, 8]))
    if bits == 1:
        weights = rng.choice([-1, 1], (rows, columns))
    else:
        most = 2 ** (bits - 1) - 1
        weights = np.clip(np.rint(rng.normal(0, most / 2.2, (rows, columns))), -most, most)
        weights = weights * (rng.random((rows, columns)) < rng.choice([0.1, 0.2, 0.5, 1.0]))
    weights = np.asarray(weights, np.int64)
    return weights[:, weights.any(axis=0)], 2**narrow - 1


def traced(weights: Ints, top: int) -> float:
    """Return da4ml's cost of a layer of these weights."""
    entry, output = (
        Wire(name, (size,), np.asarray(0), np.asarray(top), np.ones(()), np.zeros(()))
        for name, size in (("x", weights.shape[1]), ("y", len(weights)))
    )
    layer = Dense("block", ("x",), output, weights)
    none = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    network = Network((entry,), ("y",), (layer,), {"x": entry, "y": output}, none, none)
    return float(trace(network).logic.cost)


def features(weights: Ints, top: int) -> tuple[float, list[float]]:
    """Return the cost without sharing, and the logarithms that sharing follows."""
    rows = distinct(weights)
    digits, narrow = int(signed_digits(rows).sum()), np.log2(top + 1)
    wide = float(np.log2(np.abs(rows).sum(axis=1) * top + 1).mean())
    bipolar = float(np.all(np.abs(rows) == abs(rows.flat[0])))
    logs = [np.log(v) for v in (len(rows), rows.shape[1], digits / rows.size, wide / narrow)]
    return (digits - len(rows)) * (wide + narrow) / 2, [1.0, *logs, bipolar, bipolar * logs[0]]


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=300)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    data: list[tuple[list[float], float, float]] = []
    while len(data) < args.blocks:
        weights, top = random_block(rng)
        plain, logs = features(weights, top) if weights.any() else (0.0, [])
        cost = traced(weights, top) if plain > 3 else 0.0
        if cost:
            data.append((logs, float(np.log(cost / plain)), block_cost(Block(weights), top) / cost - 1))
    a, y, off = (np.array([one[i] for one in data]) for i in range(3))
    found = np.linalg.lstsq(a, y, rcond=None)[0]
    fitted = np.abs(np.exp(a @ found - y) - 1)
    names = ("_FACTOR", "_ROWS", "_COLUMNS", "_DENSITY", "_GROWTH", "_BIPOLAR", "_BIPOLAR_ROWS")
    values = [
        np.exp(v) if name in ("_FACTOR", "_BIPOLAR") else v for name, v in zip(names, found, strict=True)
    ]
    print(", ".join(f"{name} = {value:.3f}" for name, value in zip(names, values, strict=True)))
    print(f"error of this fit: median {np.median(fitted):.1%}, 90 % below {np.quantile(fitted, 0.9):.1%}")
    off = np.abs(off)
    print(f"of the module's constants: median {np.median(off):.1%}, 90 % below {np.quantile(off, 0.9):.1%}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
