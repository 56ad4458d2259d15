"""Layers and models with weights that are mostly zero, beside dense ones in onnxruntime and of pared's own.

    PARED_DATA=… python -m pared.bench.cpu.sparse_layers [--rounds 7] [--fashion FILE] [--only layers|models]

Random weights in the layers and in ResNet-18; `--fashion` is fashion_cnn.onnx of bench/train_fashion.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from ... import compile as compile_model
from ...backends.cpu.native import choose_f32, lower_sparse
from ...backends.cpu.native.choose_f32 import Candidate
from ...backends.cpu.native.isa import Isa
from ...backends.cpu.native.kernels.after_f32 import After
from ...backends.cpu.native.kernels.conv_f32 import ConvF32Spec
from ...backends.cpu.native.kernels.gemm_f32 import GemmF32Spec
from ...backends.cpu.native.kernels.strassen_f32 import StrassenF32Spec
from ...backends.cpu.native.kernels.window import Window
from ...backends.cpu.native.kernels.winograd_f32 import WinogradF32Spec
from ...backends.cpu.native.kernels.winograd_f32 import supports as fits_winograd
from ..data import found_folder
from ..meter import Comparison, compare_latency, pinned
from ..results import Page
from . import layer_peers as peers
from .kernels import rotate, this_isa
from .models import Native, in_onnxruntime
from .nets import resnet18

Run = Callable[[], object]
Floats = npt.NDArray[np.float32]
LEVELS = (0.4, 0.5, 0.7, 0.8, 0.9, 0.95)
PRUNED = 0.9
# Beyond every cache: calls take turns over copies of their weights.
COLD_BYTES = 96 << 20
HEADINGS = (
    "what", "zeros", "kernel", "own us", "own dense us", "ORT dense us", "x own dense", "x ORT dense",
    "weights KB", "dense KB",
)  # fmt: skip
ABOUT = """`python -m pared.bench.cpu.sparse_layers`. One pinned core, one thread, candidates interleaved,
medians of wall time; ratios are medians of the ratios of each round. Layers read and write activations as
they lie in a model (NHWC in pared's own kernels, ONNX layout in onnxruntime), so the layout changes that a
sparse kernel makes are in its time. `own dense` is the kernel that pared takes for the same layer without
zeros (Winograd, Strassen's scheme, plain), `weights KB` what the layer's packed weights take, indices
included. "any" zeros are random ones, 2:4/32 keeps two of four inputs for 32 outputs at once, 16x1 are blocks
of 16 outputs. Goals against onnxruntime's dense float: 3.6 with 90 % zeros anywhere, 1.9 for 2:4/32, 1.6
(50 %) and 4.5 (90 %) for 16x1 in products of one row."""
BREAK_EVEN = """Break-even of zeros anywhere against onnxruntime's dense code and pared's own plain products
lies below 40 %, at 7x7 with 512 channels at 40 to 55 %; against Winograd at 80 %: below that level the
compiler keeps Winograd (the rows show what sparse code would take). N:M meets Winograd at 1:4. Products of
one row with zeros anywhere stay dense: a kernel for them was not tried."""
MODELS = """Models are pruned by magnitude without repair, for their times; what pruning costs in accuracy
is on [a page of its own](prune_accuracy.md). Sizes of models are those of all packed constants; Winograd's
weights take four times the space of the layer's, which is why dense ones are larger than the files. In the
models "any" leaves the last dense layers as they are (one row), and shared32 leaves most 3x3 layers to
Winograd."""


@dataclass(frozen=True)
class Layer:
    """A layer without its weights' values.

    Attributes:
        window: over the data; a pointwise one is a matrix product, one row per batch.
    """

    name: str
    channels: int
    outs: int
    window: Window

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product."""
        return self.window.pointwise

    def weight(self) -> Floats:
        """Return random weights [outs, channels, kh, kw]."""
        shape = (self.outs, self.channels, *self.window.kernel)
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    def onnx(self) -> onnx.ModelProto:
        """Return the dense layer."""
        if self.is_product:
            return peers.float_product(self.window.batch, self.channels, self.outs)
        return peers.float_convolution(self.channels, self.window.height, self.outs)


def product(rows: int, depth: int, outs: int) -> Layer:
    """Return a matrix product."""
    return Layer(f"product {outs}x{depth}x{rows}", depth, outs, Window(rows, 1, 1, (1, 1)))


def convolution(channels: int, outs: int, size: int) -> Layer:
    """Return a 3x3 convolution with stride 1."""
    window = Window(1, size, size, (3, 3), pads=(1, 1, 1, 1))
    return Layer(f"3x3 {channels}->{outs}, {size}x{size}", channels, outs, window)


LAYERS = (
    product(512, 512, 512), product(256, 1152, 256), product(3136, 576, 64), convolution(128, 256, 16),
    convolution(64, 64, 56), convolution(512, 512, 7),
)  # fmt: skip
VECTORS = (product(1, 512, 512), product(1, 1024, 1024), product(1, 4096, 4096))


def anywhere(weight: Floats, zeros: float) -> Floats:
    """Return weights with a share of zeros anywhere."""
    return np.where(np.random.default_rng(1).random(weight.shape) < zeros, np.float32(0), weight)


def in_blocks(weight: Floats, zeros: float) -> Floats:
    """Return weights with a share of zeros in blocks of 16 outputs and one input."""
    gone = np.random.default_rng(1).random((-(-len(weight) // 16), *weight.shape[1:])) < zeros
    return np.where(gone.repeat(16, axis=0)[: len(weight)], np.float32(0), weight)


def some_of_four(weight: Floats, keep: int) -> Floats:
    """Return weights of which 32 outputs keep the same `keep` of four inputs."""
    flat = weight.reshape(len(weight), -1)
    ranks = np.random.default_rng(1).random((len(weight) // 32, flat.shape[1] // 4, 4)).argsort(axis=2)
    gone = (ranks >= keep).reshape(len(ranks), -1).repeat(32, axis=0)
    return np.where(gone, np.float32(0), flat).reshape(weight.shape)


def dense_kernel(layer: Layer, isa: Isa) -> Candidate:
    """Return the kernel of a layer without zeros."""
    window, channels, outs, after = layer.window, layer.channels, layer.outs, After(bias=True)
    if layer.is_product:
        halved = StrassenF32Spec(window.batch, channels, outs, after)
        if choose_f32.takes_strassen(halved, isa, False):
            return Candidate("strassen_f32", halved, False)
        return Candidate("gemm_f32", GemmF32Spec(window.batch, channels, outs, after), False)
    winograd = WinogradF32Spec(window, channels, outs, after)
    if fits_winograd(winograd, isa).ok and choose_f32.takes_winograd(winograd, isa, False):
        return Candidate("winograd_f32", winograd, False)
    return Candidate("conv_f32", ConvF32Spec(window, channels, outs, 1, after), False)


def _row(page: Page, found: Comparison, what: tuple[str, str, str], sizes: tuple[float, float]) -> None:
    us = {name: 1e3 * latency.median_ms for name, latency in found.latencies.items()}
    ratios = [f"{1 / found.ratio('own', name).median:.2f}" for name in ("dense", "ORT")]
    digits = 0 if us["own"] >= 100 else 1
    times = [f"{us[name]:.{digits}f}" for name in ("own", "dense", "ORT")]
    page.add(*what, *times, *ratios, *(f"{size / 1e3:.1f}" for size in sizes))


def _copies(size: float, cold: bool) -> int:
    return min(400, int(COLD_BYTES / size) + 1) if cold else 1


def measure(page: Page, layer: Layer, variants: Mapping[str, tuple[str, Floats]], rounds: int) -> None:
    """Add a row per variant: its name, its share of zeros as text, and its weights."""
    isa, dense = this_isa(), layer.weight()
    cold = dense.nbytes > 32 << 20
    times = _copies(dense.nbytes, cold)
    ort = rotate([peers.in_onnxruntime(layer.onnx()) for _ in range(times)])
    other = dense_kernel(layer, isa)
    plain = rotate([choose_f32.ready(other, isa) for _ in range(times)])
    for name, (zeros, weight) in variants.items():
        forms = lower_sparse.forms(isa, (layer.window, layer.window), weight, After(bias=True))
        form = min(forms, key=lambda form: form.nanoseconds)
        packed = lower_sparse.pack(form.spec, weight, np.zeros(len(weight), np.float32))[:3]
        size = sum(array.nbytes for array in packed)
        own = rotate([lower_sparse.prepared(form, weight, isa) for _ in range(_copies(size, cold))])
        candidates = {"own": own, "dense": plain, "ORT": ort}
        found = compare_latency(candidates, rounds=rounds, iterations=20 * rounds, limit=1.0)
        label = f"{name} {form.family.removesuffix('_f32')} of {other.family.removesuffix('_f32')}"
        _row(page, found, (layer.name, zeros, label), (size, dense.nbytes))


def layers(page: Page, rounds: int) -> None:
    """Measure single layers."""
    for layer in LAYERS:
        dense = layer.weight()
        rows = {f"any {z:.0%}": (f"{z:.0%}", anywhere(dense, z)) for z in LEVELS}
        rows |= {f"{k}:4/32": (f"{1 - k / 4:.0%}", some_of_four(dense, k)) for k in (2, 1)}
        measure(page, layer, rows, rounds)
    for layer in VECTORS:
        dense = layer.weight()
        rows = {f"16x1 {z:.0%}": (f"{z:.0%}", in_blocks(dense, z)) for z in (0.4, 0.5, 0.7, 0.9)}
        measure(page, layer, rows, rounds)


# --- whole models -----------------------------------------------------------------------------------------


def sources(fashion: Path | None) -> Iterator[tuple[str, Path]]:
    """Yield names and files of models; ResNet-18 is written into a temporary folder that stays for a step."""
    if (data := found_folder()) is not None:
        yield "kws_cnn_s", data / "models" / "kws_cnn_s.onnx"
    if fashion is not None:
        yield "fashion_cnn", fashion
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "resnet18.onnx"
        onnx.save(resnet18(), path)
        yield "ResNet-18", path


def model(page: Page, name: str, path: Path, pattern: str | None, rounds: int) -> None:
    """Measure a pruned model beside the same without zeros."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        sparsity = None if pattern == "shared32" else PRUNED
        pruned = compile_model(
            path, engine="native", threads=1, sparsity=sparsity, prune_criterion="magnitude", force=True,
            prune_pattern=pattern, output=folder / "pruned",
        )  # fmt: skip
        plain = compile_model(path, engine="native", threads=1, force=True, output=folder / "plain")
        own, dense = Native(pruned), Native(plain)
        candidates = {"own": own.run, "dense": dense.run, "ORT": in_onnxruntime(path)}
        found = compare_latency(candidates, rounds=rounds, iterations=20 * rounds, limit=6.0)
        steps = [
            step["kernel"] for step in json.loads((pruned.path / "reports/native.json").read_text())["steps"]
        ]
    sparse = sum(step.startswith("sparse") for step in steps)
    zeros = "50 %" if sparsity is None else f"{PRUNED:.0%}"
    kernel = f"{pattern or 'any'}, {sparse} of {len(steps)} steps sparse"
    _row(page, found, (f"model {name}", zeros, kernel), (own.constant_bytes, dense.constant_bytes))


def main() -> None:
    """Measure and write docs/results/cpu_sparse_layers.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--only", choices=("layers", "models"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/cpu_sparse_layers.md"))
    arguments = parser.parse_args()
    page = Page(arguments.output, "Sparse float layers", ABOUT, HEADINGS)
    with pinned(1):
        if arguments.only != "models":
            layers(page, arguments.rounds)
        if arguments.only != "layers":
            for name, path in sources(arguments.fashion):
                for pattern in (None, "16x1", "shared32"):
                    model(page, name, path, pattern, arguments.rounds)
    page.remark(BREAK_EVEN)
    page.remark(MODELS)


if __name__ == "__main__":
    main()
