"""Backend `nir`: models as NIR files, which this machine steps through in NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ....compiler.backend import Executable, Payload, Verdict
from ....compiler.errors import TargetError, nearest

if TYPE_CHECKING:
    import onnx_ir as ir

    from ....compiler.pass_api import Context
    from ....compiler.records import Json
    from ....compiler.target import Target
    from .. import graph as G
    from .unary import Unrolled

ENGINE = "stepper"
MODEL = "model.nir"
REPORT = "nir.json"
_NAMES = "names.json"

# What networks over time have beyond layers: the Scan, states at rest, neurons, comparisons.
_OVER_TIME = frozenset(["Scan", "Shape", "ConstantOfShape", "Greater", "Cast", "Neuron"])


class NirBackend:
    """Writes quantized models in NIR's portable nodes, and networks that came as NIR as they are."""

    name: ClassVar[str] = "nir"

    def supports(self, node: ir.Node, target: Target) -> Verdict:
        """Take what event layers and networks over time are made of; `lower` judges the graph as a whole."""
        from ..backend import EventBackend

        verdict = EventBackend().supports(node, target)
        over_time = target.allows(node).ok and node.op_type in _OVER_TIME
        return Verdict.yes() if over_time else verdict

    def engines(self, target: Target) -> Sequence[str]:
        """Return the target's engines, preferred first."""
        return [name for name in target.engines if name == ENGINE]

    def lower(self, model: ir.Model, target: Target, engine: str, ctx: Context) -> Payload:
        """Lower a model; `model` is not edited.

        Raises:
            TargetError: unknown engine.
            UnsupportedOp: `event-unsupported`, `nir-export`: the first node or layer that cannot be written.
            MissingTool: h5py is not installed.
        """
        from ..lower import notes
        from ..read import read
        from .encoding import FILE, encoding_of, write_encoding
        from .from_onnx import scan_of
        from .hdf5 import need_h5py
        from .unary import unroll
        from .write import write_nir

        _known(engine)
        need_h5py()
        scan = scan_of(model)
        if scan is not None:
            return _over_time(model, scan, engine)
        graph = read(model)
        ctx.check_cancelled()
        unrolled = unroll(graph)
        plain, names = _reference(model)
        nir, encoding = write_nir(unrolled.graph), write_encoding(encoding_of(graph))
        files = {MODEL: nir, FILE: encoding, "model.onnx": plain}
        report = json.dumps(_report(graph, unrolled), indent=1) + "\n"
        return Payload(engine, files, {}, {REPORT: report, _NAMES: names}, notes=notes(graph))

    def load(
        self, folder: Path, engine: str, options: Mapping[str, object], threads: int | None
    ) -> Executable:
        """Load a payload; one thread steps whatever `threads` says.

        Raises:
            ArtifactError: the payload is missing or damaged.
            MissingTool: h5py is not installed.
        """
        from .executable import load

        _known(engine)
        return load(folder / MODEL)


def _over_time(model: ir.Model, scan: ir.Node, engine: str) -> Payload:
    """Write a network that runs over time, as it came from NIR."""
    from .from_onnx import from_onnx
    from .plan import make_plan
    from .write import write_nir

    graph = from_onnx(scan)
    plan = make_plan(graph)
    plain, names = _reference(model)
    layers: list[Json] = [{"name": step.name, "kind": step.node.kind} for step in plan.steps]
    report: dict[str, Json] = {"dt": plan.dt, "layers": layers}
    files = {MODEL: write_nir(graph), "model.onnx": plain}
    return Payload(engine, files, {}, {REPORT: json.dumps(report, indent=1) + "\n", _NAMES: names})


def _known(engine: str) -> None:
    if engine != ENGINE:
        raise TargetError(
            "engine-unknown", f"backend nir has no engine {engine!r}", nearest(engine, [ENGINE])
        )


def _reference(model: ir.Model) -> tuple[bytes, str]:
    """Return the model that layers are verified against, and its shortened names."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from ....compiler.ir.compact import compact
    from ....compiler.ir.export import to_bytes
    from ....compiler.ops import expand_custom_ops

    plain = model.clone()
    if expand_custom_ops(plain):
        RemoveUnusedNodesPass()(plain)
    names = json.dumps(compact(plain), indent=0) + "\n"
    return to_bytes(plain), names


def _report(graph: G.EventGraph, unrolled: Unrolled) -> dict[str, Json]:
    """Return what a user of the file needs: what goes in, how many neurons stand for what."""
    entry = graph.inputs[0]
    return {
        "steps": 1,
        "dt": 1.0,
        "input": {
            "name": entry.name,
            "meaning": "counts: round(real / scale), then limited to low and high",
            "scale": entry.scale,
            "low": entry.low,
            "high": entry.high,
        },
        "output": {"name": graph.outputs[0].name, "meaning": "accumulators or counts, see model.json"},
        "layers": [{"name": name, "neurons": count} for name, count in unrolled.neurons.items()],
    }
