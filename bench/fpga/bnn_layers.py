"""Binary dense layers to be routed: of trained networks, and random ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...backends.fpga.graph import Dense, Ints, Requant
from ...backends.fpga.read import read_network
from ...compiler.ir.importer import import_model


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
    path = Path(os.environ.get("PARED_DATA", "")) / "models" / "tfc_1w1a_qonnx.onnx"
    return _layers(import_model(path).model) if path.is_file() else None


def tfc_hidden() -> Binary | None:
    """Return the second layer of tfc_1w1a, whole."""
    found = _tfc()
    what = "tfc_1w1a (Brevitas, MNIST), second layer, 64 -> 64"
    return None if found is None else Binary("tfc_hidden", what, *found[1])


def tfc_slice() -> Binary | None:
    """Return 64 of the 784 inputs of the first layer of tfc_1w1a, from the middle of the image."""
    found = _tfc()
    if found is None:
        return None
    rows = np.ascontiguousarray(found[0][0][:, 360:424])
    what = "tfc_1w1a, first layer, inputs 360..423 of 784 -> 64, thresholds 0"
    return Binary("tfc_slice", what, rows, np.zeros(len(rows), np.int64))


def digits() -> Binary | None:
    """Return the first layer of a binary network trained on the digits of scikit-learn."""
    from .nets import Spec, qonnx, train

    net = train(Spec("bin64", (64, 32), 1, 1, 1))
    rows, thresholds = _layers(import_model(qonnx(net)).model)[0]
    return Binary("digits", f"digits 64-64-32-10 at 1 bit ({net.top1:.1f} %), first layer", rows, thresholds)


def random() -> Binary | None:
    """Return fair coins."""
    rng = np.random.default_rng(0)
    rows = rng.choice(np.array([-1, 1]), (32, 64))
    return Binary("random", "random weights, 64 -> 32", rows, rng.integers(-8, 9, 32))


LAYERS: tuple[Callable[[], Binary | None], ...] = (tfc_hidden, random, tfc_slice, digits)
