"""One row times a 4096 x 4096 matrix of few bits, weights cold, beside onnxruntime's MatMulNBits.

    python -m pared.bench.cpu.lowbit_gemv [--rounds 15]

Random weights. Each call reads the next of enough copies of the weights to exceed every cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...backends.cpu.native.isa import Isa
from ...backends.cpu.native.kernels import lowbit_gemv, quantize_blocks
from ..meter import Comparison, compare_latency, pinned
from ..results import Page
from . import layer_peers as peers
from .kernels import aligned, bind, memory_read, rotate, this_isa

Run = Callable[[], object]
Numbers = npt.NDArray[np.number]
SIZE = 4096
COPIES = 8
FORMS: tuple[tuple[lowbit_gemv.Bits, int, int], ...] = (
    (4, 32, 8),
    (4, 128, 8),
    (2, 32, 2),
    (1, 32, 1),
)
ABOUT = f"""`python -m pared.bench.cpu.lowbit_gemv`. [1, {SIZE}] x [{SIZE}, {SIZE}], float32 scales per block,
activations quantized to int8 per block inside the timing, batch 1, one pinned core, candidates interleaved,
CPU time per run. Weights are cold: {COPIES} copies of them are read in turn. Peer: onnxruntime's MatMulNBits
at accuracy_level 4 (int8 activations as well), one session per copy, buffers bound once.

Bandwidth: bytes of weights and scales per second; its share is that of NumPy adding up as many bytes of
int64, cold as well, in the same rounds."""


def own_product(bits: lowbit_gemv.Bits, block: int, zero: int, isa: Isa) -> tuple[Run, int]:
    """Return a call (activations quantized, then the product) and the bytes of weights and scales."""
    spec = lowbit_gemv.LowbitGemvSpec(1, SIZE, SIZE, bits, block, zero)
    quantizer = quantize_blocks.QuantizeBlocksSpec(1, SIZE, block, zero)
    rng = np.random.default_rng(0)
    x = aligned(rng.standard_normal((1, SIZE), np.float32))
    q = aligned(np.zeros((1, SIZE), np.int8))
    scale = aligned(np.zeros((1, spec.blocks), np.float32))
    correction, y = aligned(scale.astype(np.int32)), aligned(np.zeros((1, SIZE), np.float32))
    stored = rng.integers(0, 2**bits, (SIZE, SIZE))
    weight = 2 * stored - 1 if bits == 1 else stored - zero
    scales = rng.random((SIZE, spec.blocks), np.float32) / np.float32(100)
    (stream,) = lowbit_gemv.pack(spec, weight, scales)
    quantize = bind(quantize_blocks.build(quantizer, isa), isa, [x, q, scale, correction], 1)
    module = lowbit_gemv.build(spec, isa)
    products = [
        bind(module, isa, [q, scale, correction, aligned(stream), y], spec.tasks()) for _ in range(COPIES)
    ]
    quantize()
    products[0]()
    _check(y[0], q[0], scale[0], weight, scales, block)
    product = rotate(products)

    def run() -> object:
        quantize()
        return product()

    return run, stream.nbytes


def _check(y: Numbers, q: Numbers, scale: Numbers, weight: Numbers, scales: Numbers, block: int) -> None:
    """Compare with float64; every term is exact there, float32 sums of `blocks` terms are not."""
    dots = (weight.astype(np.float64) * q.astype(np.float64)).reshape(SIZE, -1, block).sum(-1)
    terms = dots * scales.astype(np.float64) * scale.astype(np.float64)
    bound = terms.shape[1] * np.finfo(np.float32).eps * np.abs(terms).sum(-1)
    assert (np.abs(y - terms.sum(-1)) <= bound).all(), "the kernel computes something else"


def _cpu_us(found: Comparison, name: str) -> float:
    return 1e3 * found.latencies[name].cpu_ms


def _peer_cells(found: Comparison) -> list[str]:
    return [f"{_cpu_us(found, 'ORT'):.0f}", f"{_cpu_us(found, 'ORT') / _cpu_us(found, 'own'):.2f}"]


def main() -> None:
    """Measure and write docs/results/cpu_lowbit_gemv.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("docs/results/cpu_lowbit_gemv.md"))
    arguments = parser.parse_args()
    isa = this_isa()
    headings = ["bits", "block", "MB", "us", "GB/s", "of the memory", "ORT us", "x ORT"]
    page = Page(arguments.output, "Low-bit matrix-vector products, weights cold", ABOUT, headings)
    with pinned(1):
        for bits, block, zero in FORMS:
            run, weight_bytes = own_product(bits, block, zero, isa)
            candidates = {"own": run, "memory": memory_read(weight_bytes, COPIES)}
            if bits > 1:
                sessions = [peers.block_product(bits, block, SIZE, seed) for seed in range(COPIES)]
                candidates["ORT"] = rotate([peers.in_onnxruntime(model) for model in sessions])
            found = compare_latency(candidates, rounds=arguments.rounds, iterations=20 * arguments.rounds)
            us = _cpu_us(found, "own")
            share = _cpu_us(found, "memory") / us

            cells = _peer_cells(found) if "ORT" in candidates else ["", ""]
            page.add(
                bits,
                block,
                f"{weight_bytes / 1e6:.1f}",
                f"{us:.0f}",
                f"{weight_bytes / us / 1e3:.1f}",
                f"{share:.0%}",
                *cells,
            )
    page.remark("onnxruntime has no weights of one bit. `x ORT`: how many times as long it takes.")


if __name__ == "__main__":
    main()
