"""The four 3x3 layers of ResNet-18 in one bit, bits in and out, beside the peers in float and int8.

    python -m pared.bench.cpu.binary_layers [--rounds 15]

Random weights and thresholds. Every kernel's output is compared with NumPy before it is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...backends.cpu.native.isa import Isa
from ...backends.cpu.native.kernels import binarize, conv_binary
from ...backends.cpu.native.kernels.bits import Code, pack
from ..meter import Comparison, compare_latency, pinned
from ..results import Page
from . import layer_peers as peers
from .kernels import aligned, bind, popcount_peak, this_isa

Run = Callable[[], object]
Numbers = npt.NDArray[np.number]
LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
CODES = {
    "binary": (Code.BINARY, Code.BINARY),
    "binary x ternary": (Code.BINARY, Code.TERNARY),
    "ternary": (Code.TERNARY, Code.TERNARY),
    "2-bit": (Code.UINT2, Code.INT2),
}
ABOUT = """`python -m pared.bench.cpu.binary_layers`. 3x3 convolutions, stride 1, zero padding, batch 1, one
pinned core, candidates interleaved, CPU time per run. Peers: onnxruntime and OpenVINO in float32 and int8
(uint8 to uint8, per-channel weights, fused), buffers bound once, Python's call (about 10 us) included;
ours is called through ctypes (about 1 us). Ours reads bits and writes bits: BatchNorm and sign are thresholds
in the kernel.

Peak: XOR, popcount and add on 28 accumulators with all operands in the first-level cache, measured in the
same rounds. Share of it: popcounts that the kernel does (taps in the padding are left out) times 32."""


REMARK = """`x` says how many times as long the peer takes. `binarize`:
float32 values of the layer's size into bits, what fusing the threshold saves. The padding that is left out is
18 % of the taps at 7x7 and 2 % at 56x56; GMAC/s count them, the share of the peak does not. Ternary weights
on binary data need one popcount like binary ones, but reach their speed only where a row has no tiles between
those at its edges (14x14 and 7x7); narrower tiles helped (56x56: 304 us at 14 pixels, 188 at 7, 141 at 8),
unrolled taps did not."""


@dataclass(frozen=True)
class Own:
    """A kernel of ours that is ready to run, and the bit products it makes."""

    run: Run
    products: int


def own_layer(spec: conv_binary.ConvBinarySpec, isa: Isa) -> Own:
    """Compile a layer on random data, check it against NumPy."""
    rng = np.random.default_rng(0)
    data = rng.choice(spec.data.values, (1, spec.height, spec.width, spec.channels))
    weight = rng.choice(spec.weight.values, (spec.out_channels, spec.channels, *spec.kernel))
    assert isinstance(spec.output, Code), "bits out"
    thresholds = np.sort(rng.integers(-20, 21, (spec.out_channels, spec.output.thresholds)), axis=1)
    words = pack(data, spec.data).reshape(1, spec.height, spec.width, -1)
    arrays = [words, *conv_binary.pack(spec, weight, thresholds=thresholds)]
    out = aligned(np.zeros(spec.out_shape, np.uint32))
    run = bind(conv_binary.build(spec, isa), isa, [*map(aligned, arrays), out], spec.tasks())
    run()
    reached = (_sums(data, weight)[..., None] >= thresholds).sum(-1)
    want = pack(np.array(spec.output.values)[reached], spec.output)
    np.testing.assert_array_equal(out, want.reshape(out.shape))
    return Own(run, spec.popcounts() * 32)


def _sums(data: Numbers, weight: Numbers) -> Numbers:
    """3x3 convolution with a border of zeros, in float64, which is exact here."""
    wide = np.pad(data.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(1, 2))
    return np.asarray(np.tensordot(windows, weight.astype(np.float64), ([3, 4, 5], [1, 2, 3])))


def own_binarize(channels: int, size: int, isa: Isa) -> Run:
    """Compile the binarization of a float layer's output."""
    spec = binarize.BinarizeSpec(size * size, channels, channels)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((spec.pixels, channels), np.float32)
    signs = rng.choice([-1, 1], channels)
    arrays = [x, *binarize.pack(spec, rng.standard_normal((channels, 1)), signs)]
    out = np.zeros((spec.pixels, channels // 32), np.uint32)
    return bind(binarize.build(spec, isa), isa, [aligned(a) for a in (*arrays, out)], spec.tasks())


def compare(channels: int, size: int, isa: Isa, rounds: int) -> tuple[Comparison, dict[str, float]]:
    """Time one layer in every form; also returns the bit products of ours per call, `peak` included."""
    peak, products = popcount_peak(isa)
    work, candidates = {"peak": products}, {"peak": peak}
    for name, (data, weight) in CODES.items():
        spec = conv_binary.ConvBinarySpec(
            1, size, size, channels, channels, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), data, weight, data
        )
        own = own_layer(spec, isa)
        work[name], candidates[name] = own.products, own.run
    candidates["binarize"] = own_binarize(channels, size, isa)
    for kind, make in (("f32", peers.float_convolution), ("int8", peers.int8_convolution)):
        model = make(channels, size)
        candidates[f"ORT {kind}"] = peers.in_onnxruntime(model)
        candidates[f"OV {kind}"] = peers.in_openvino(model)
    return compare_latency(candidates, rounds=rounds, iterations=20 * rounds), work


def _cpu_us(found: Comparison, name: str) -> float:
    return 1e3 * found.latencies[name].cpu_ms


def main() -> None:
    """Measure and write docs/results/cpu_binary_layers.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("docs/results/cpu_binary_layers.md"))
    arguments = parser.parse_args()
    isa = this_isa()
    peer_names = ("ORT f32", "OV f32", "ORT int8", "OV int8")
    headings = ["layer", "form", "us", "GMAC/s", "of the peak", "x ORT f32", "x best int8"]
    page = Page(arguments.output, "Binary layers: popcount kernels beside float and int8", ABOUT, headings)
    with pinned(1):
        for channels, size in LAYERS:
            found, work = compare(channels, size, isa, arguments.rounds)
            layer = f"{channels} ch {size}x{size}"
            best = min(("ORT int8", "OV int8"), key=lambda name: _cpu_us(found, name))
            macs = channels * channels * 9 * size * size
            rate = work["peak"] / _cpu_us(found, "peak")
            for name in (*CODES, "binarize", *peer_names):
                us = _cpu_us(found, name)
                share = f"{work[name] / us / rate:.0%}" if name in work else ""
                against = [f"{_cpu_us(found, base) / us:.2f}" for base in ("ORT f32", best)]
                layer_like = name != "binarize"
                speed = f"{macs / us / 1e3:.0f}" if layer_like else ""
                page.add(layer, name, f"{us:.1f}", speed, share, *(against if layer_like else ["", ""]))
            page.add(layer, "peak", f"{_cpu_us(found, 'peak'):.1f}", f"{rate / 1e3:.0f}", "100%", "", "")
    page.remark(REMARK)


if __name__ == "__main__":
    main()
