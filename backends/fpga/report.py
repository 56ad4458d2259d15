"""What every layer is and does on data: type, range, saturation, difference against the model, work.

Goes into the artifact as `reports/layers.json`, whatever engine made the hardware.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...compiler.records import to_json
from ..reference import Evaluator
from .graph import Conv, Dense, Ints, Layer, Network, Requant, Wire
from .host import Host, real_of
from .read import read_network
from .simulate import simulate

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...compiler.backend import Arrays, Payload
    from ...compiler.data import Samples
    from ...compiler.target import Target

FILE = "layers.json"
_SAMPLES = 64
_BATCH = 16
_COUNTED = "zero weights count in macs and bops, not in nonzero_macs and nonzero_bops"


@dataclass(frozen=True)
class LayerFacts:
    """One layer.

    Attributes:
        type: of its values: `u4` has 4 bits without a sign, `s9` 9 with one, `bipolar` is -1 and +1.
        low, high: proven bounds of the integers.
        seen_low, seen_high: on the samples; None without samples.
        at_low, at_high: how many of `values` lie on the ends of a quantizer, where it saturates (behind a
            Relu the low end is its 0); None for layers that do not saturate.
        max_difference: largest difference of the reals against the model's own value, by the reference; None
            where the model has no such value.
        macs, bops: multiply-accumulates of one inference, and times the bits of both operands.
    """

    name: str
    kind: str
    output: str
    shape: tuple[int, ...]
    type: str
    low: int
    high: int
    seen_low: int | None
    seen_high: int | None
    values: int
    at_low: int | None
    at_high: int | None
    max_difference: float | None
    weight_bits: int | None
    macs: int
    nonzero_macs: int
    bops: int
    nonzero_bops: int


@dataclass
class _Seen:
    """What the samples showed of a wire."""

    low: int
    high: int
    values: int = 0
    at_low: int = 0
    at_high: int = 0
    difference: float | None = None


def with_layers(payload: Payload, model: ir.Model, target: Target, data: Samples | None) -> Payload:
    """Return a payload with the report of its layers attached."""
    network = read_network(model)
    some = None if data is None else data.head(_SAMPLES)
    facts = layer_facts(network, model, [] if some is None else list(some.batches(_batch(some))))
    report = {
        "samples": 0 if data is None else min(len(data), _SAMPLES),
        "samples_how": "the first of the calibration data" if data is not None else "none were given",
        "counted": _COUNTED,
        "energy_per_inference": None,
        "energy_how": f"no published energy of operations on {target.name}; nothing was measured",
        "layers": facts,
    }
    text = json.dumps(to_json(report), indent=1)
    return replace(payload, attachments={**payload.attachments, FILE: text})


def _batch(data: Samples) -> int:
    return _BATCH if data.batchable else 1


def layer_facts(network: Network, model: ir.Model, batches: Sequence[Arrays]) -> list[LayerFacts]:
    """Return the facts of every layer.

    Args:
        network: of `model`.
        model: the quantized model.
        batches: samples of its inputs, may be empty.
    """
    seen = _observed(network, model, batches) if batches else {}
    return [_facts(layer, network, seen.get(layer.output.name)) for layer in network.layers]


def _facts(layer: Layer, network: Network, seen: _Seen | None) -> LayerFacts:
    wire, (dense, sparse) = layer.output, _macs(layer)
    bits = _weight_bits(layer)
    both = (bits or 0) * network.wires[layer.inputs[0]].bits
    ends = seen is not None and isinstance(layer, Requant)
    return LayerFacts(
        layer.name, type(layer).__name__.lower(), wire.name, wire.shape, _type(wire), wire.least, wire.most,
        None if seen is None else seen.low, None if seen is None else seen.high,
        0 if seen is None else seen.values,
        seen.at_low if ends and seen else None, seen.at_high if ends and seen else None,
        None if seen is None else seen.difference, bits, dense, sparse, dense * both, sparse * both,
    )  # fmt: skip


def _type(wire: Wire) -> str:
    if wire.step == 2 and (wire.least, wire.most) == (-1, 1):
        return "bipolar"
    return f"{'s' if wire.signed else 'u'}{wire.bits}"


def _weight_bits(layer: Layer) -> int | None:
    """Return two's complement bits of the weights; 1 where all are -1 and +1."""
    if not isinstance(layer, Dense | Conv):
        return None
    largest = int(np.abs(layer.weights).max(initial=0))
    if largest == 1 and layer.weights.all():
        return 1
    return largest.bit_length() + 1


def _macs(layer: Layer) -> tuple[int, int]:
    """Return multiply-accumulates with zero weights, and without."""
    if not isinstance(layer, Dense | Conv):
        return 0, 0
    places = int(np.prod(layer.output.shape[1:])) if isinstance(layer, Conv) else 1
    return places * layer.weights.size, places * int(np.count_nonzero(layer.weights))


def _observed(network: Network, model: ir.Model, batches: Sequence[Arrays]) -> dict[str, _Seen]:
    """Run integers and reference side by side."""
    host, named = Host(network), {value.name for node in model.graph for value in node.outputs}
    wires = {layer.output.name: layer.output for layer in network.layers}
    known = [name for name in wires if name in named]
    evaluator = Evaluator(model, known)
    found: dict[str, _Seen] = {}
    for batch in batches:
        integers = simulate(network, host.encode(batch))
        truth = evaluator.run(batch)
        for name, wire in wires.items():
            _note(found, wire, integers[name], truth.get(name))
    return found


def _note(found: dict[str, _Seen], wire: Wire, q: Ints, truth: npt.NDArray[np.generic] | None) -> None:
    seen = found.setdefault(wire.name, _Seen(int(q.min()), int(q.max())))
    seen.low, seen.high = min(seen.low, int(q.min())), max(seen.high, int(q.max()))
    seen.values += q.size
    seen.at_low += int(np.count_nonzero(q == wire.least))
    seen.at_high += int(np.count_nonzero(q == wire.most))
    if truth is not None:
        real = real_of(wire, q, truth.dtype).astype(np.float64).reshape(truth.shape)
        off = float(np.abs(real - truth.astype(np.float64)).max(initial=0.0))
        seen.difference = max(seen.difference or 0.0, off)
