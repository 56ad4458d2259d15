"""Binary dense layers to be routed: of trained networks, and random ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from ...backends.fpga.graph import Dense, Ints, Network, Requant
from ...backends.fpga.read import read_network
from ...compiler.ir.importer import import_model
from ..data import found_folder

_HALF = 32


@dataclass(frozen=True, eq=False)
class Binary:
    """`rows @ x >= thresholds` of x = -1, +1.

    Attributes:
        name: of the layer.
        what: in words.
        rows: [channels, inputs] of -1 and +1.
        thresholds: [channels].
    """

    name: str
    what: str
    rows: Ints
    thresholds: Ints


def _layers(model: ir.Model) -> list[tuple[Ints, Ints]]:
    """Return weights and thresholds (rising) of the binary dense layers."""
    network = read_network(model)
    behind = {layer.inputs[0]: layer for layer in network.layers if isinstance(layer, Requant)}
    found = []
    for layer in network.layers:
        if isinstance(layer, Dense) and layer.output.name in behind:
            cut = behind[layer.output.name]
            rows = layer.weights * cut.sign[:, None]
            found.append((rows, np.ascontiguousarray(np.broadcast_to(cut.thresholds[:, 0], len(rows)))))
    return found


def _tfc() -> list[tuple[Ints, Ints]] | None:
    path = (found_folder() or Path()) / "models" / "tfc_1w1a_qonnx.onnx"
    return _layers(import_model(path).model) if path.is_file() else None


def tfc_hidden() -> Binary | None:
    """Return the second layer of tfc_1w1a, whole."""
    found = _tfc()
    what = "tfc_1w1a (Brevitas, MNIST), second layer, 64 -> 64"
    return None if found is None else Binary("tfc_hidden", what, *found[1])


def tfc_half() -> Binary | None:
    """Return half of the channels of the second layer of tfc_1w1a."""
    found = _tfc()
    if found is None:
        return None
    rows, thresholds = found[1]
    what = "tfc_1w1a, second layer, 64 -> channels 0..31 of 64"
    return Binary("tfc_half", what, rows[:_HALF], thresholds[:_HALF])


def tfc_slice() -> Binary | None:
    """Return 64 of the 784 inputs of the first layer of tfc_1w1a, from the middle of the image."""
    found = _tfc()
    if found is None:
        return None
    rows = np.ascontiguousarray(found[0][0][:_HALF, 360:424])
    what = "tfc_1w1a, first layer, inputs 360..423 of 784 -> channels 0..31 of 64, thresholds 0"
    return Binary("tfc_slice", what, rows, np.zeros(len(rows), np.int64))


def digits() -> Binary | None:
    """Return the first layer of a binary network trained on the digits of scikit-learn."""
    from .nets import Spec, qonnx, train

    net = train(Spec("bin64", (64, 32), 1, 1, 1))
    rows, thresholds = _layers(import_model(qonnx(net)).model)[0]
    what = f"digits 64-64-32-10 at 1 bit ({net.top1:.1f} % top-1), first layer, 64 -> channels 0..31 of 64"
    return Binary("digits", what, rows[:_HALF], thresholds[:_HALF])


def random() -> Binary | None:
    """Return fair coins."""
    rng = np.random.default_rng(0)
    rows = rng.choice(np.array([-1, 1]), (_HALF, 64))
    return Binary("random", "random weights, 64 -> 32", rows, rng.integers(-8, 9, _HALF))


@dataclass(frozen=True, eq=False)
class Sparse:
    """A layer of few inputs per neuron and its quantizer."""

    name: str
    what: str
    network: Network


def _sparse(fan_in: int, bits: int, weight_bits: int) -> Callable[[], Sparse]:
    """Return a maker of 32 random neurons on 64 inputs."""

    def make() -> Sparse:
        rng = np.random.default_rng(0)
        top = 2 ** (weight_bits - 1) - 1 or 1
        rows = np.zeros((_HALF, 64), np.float32)
        for row in rows:
            places = rng.choice(64, fan_in, replace=False)
            row[places] = rng.choice([-1, 1], fan_in) * rng.integers(1, top + 1, fan_in)
        what = f"64 inputs of {bits} bits, {_HALF} neurons of {fan_in} inputs, weights of {weight_bits} bits"
        return Sparse(f"sparse_{fan_in}x{bits}_w{weight_bits}", what, read_network(_model(rows, bits)))

    return make


def _model(rows: npt.NDArray[np.float32], bits: int) -> ir.Model:
    """Return quantized inputs, the layer, and a quantizer whose levels are spread over the layer's sums."""
    spread = float(np.sqrt((rows**2).sum(axis=1).mean() * ((4**bits - 1) / 12)))
    scale = 2.0 ** round(np.log2(max(3 * spread / 2**bits, 1.0)))
    arrays = {
        "w": rows, "one": 1.0, "scale": scale, "zero": 0.0, "bits": bits, "wide": 4.0,
        "offset": np.full(len(rows), 0.5 * scale if bits > 1 else 0.5),
    }  # fmt: skip
    domain = "qonnx.custom_op.general"
    nodes = [
        helper.make_node("Quant", ["x", "one", "zero", "bits"], ["xq"], domain=domain, signed=0, narrow=0),
        helper.make_node("Quant", ["w", "one", "zero", "wide"], ["wq"], domain=domain, signed=1, narrow=0),
        helper.make_node("Gemm", ["xq", "wq", "offset"], ["h"], transB=1),
        helper.make_node("Quant", ["h", "scale", "zero", "bits"], ["y"], domain=domain, signed=0, narrow=0),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size])
        for name, size in (("x", rows.shape[1]), ("y", len(rows)))
    ]
    stored = [numpy_helper.from_array(np.asarray(a, np.float32), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "sparse", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    return import_model(helper.make_model(graph, opset_imports=opsets, ir_version=10)).model


DESIGNS: tuple[Callable[[], Binary | Sparse | None], ...] = (
    tfc_half,
    digits,
    random,
    tfc_slice,
    tfc_hidden,
    _sparse(3, 2, 3),
    _sparse(4, 2, 3),
    _sparse(6, 2, 3),
    _sparse(6, 1, 3),
    _sparse(12, 1, 1),
)
