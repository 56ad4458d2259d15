"""What flows into the weights, loops included, accumulated in a stream: moments of their inputs.

The inputs of a weight are the vectors `x` that one of its rows is multiplied by: patches of a convolution's
input (im2col), rows of a Gemm's, the input or the previous hidden state of a recurrent cell. Values inside
Scan and Loop bodies are handed out as further scan outputs of a copy of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.data import Samples
from ...compiler.errors import DataError
from ...compiler.ir import walk
from ...compiler.ort import make_session, run_session
from ...compiler.pass_api import Context
from ..quantize.moments import Moments, conv_geometry, matrix_bytes, unfold, within_budget
from .weights import Use, Weight

Floats = npt.NDArray[np.floating]
Array = npt.NDArray[np.generic]


Parents = Mapping[ir.Graph, ir.Node]


def parents_of(model: ir.Model) -> Parents:
    """Return the control flow node around each body."""
    return {body: node for node in walk.all_nodes(model) for body in walk.bodies(node)}


def refuse_statistics(weight: Weight, parents: Parents) -> str | None:
    """Say why what flows into a weight cannot be observed, or None."""
    for use in weight.uses:
        if use.node.op_type == "ConvTranspose":
            return "inputs of ConvTranspose are not observed: use criterion=magnitude"
        for parent in _around(use.node, parents):
            if parent.op_type not in ("Scan", "Loop"):
                return f"inside {parent.op_type} {parent.name!r}, whose values are not observed"
    return None


def _around(node: ir.Node, parents: Parents) -> Iterator[ir.Node]:
    """Yield the control flow nodes whose bodies hold `node`, inner before outer."""
    graph = node.graph
    while isinstance(graph, ir.Graph) and graph in parents:
        yield parents[graph]
        graph = parents[graph].graph


@dataclass(frozen=True)
class Tap:
    """A value of the probe that a use reads, and how often it was stacked on the way out of loops."""

    use: Use
    value: str
    depth: int

    def inputs(self, array: Array, weight: Weight) -> Floats:
        """Arrange what was fetched as `[groups, n, k]` float32."""
        x: Floats = array.astype(np.float32, copy=False)
        node, view = self.use.node, weight.view
        if self.depth:
            x = x.reshape(-1, *x.shape[self.depth + 1 :]) if node.op_type == "Conv" else x
        if view.layout == "cell":
            return _cell_inputs(self.use, x, view.groups)
        if node.op_type == "Conv":
            return unfold(x, conv_geometry(node, view.shape[2:], x.shape[2:]))
        if node.op_type == "Gemm" and walk.int_attribute(node, "transA", 0):
            x = np.swapaxes(x, -1, -2)
        return x.reshape(1, -1, view.columns)


def _cell_inputs(use: Use, x: Floats, directions: int) -> Floats:
    """W reads the sequence; R reads hidden states, of which the last one in time goes nowhere.

    A GRU's candidate gate multiplies R by `r * h` (linear_before_reset = 0); its statistics are those of h.
    """
    batch_first = walk.int_attribute(use.node, "layout", 0) == 1
    if use.port == 1:
        flat = x.reshape(1, -1, x.shape[-1])
        return np.repeat(flat, directions, axis=0)
    states = x.transpose(1, 2, 0, 3) if batch_first else x
    mode = use.node.attributes["direction"].as_string() if "direction" in use.node.attributes else "forward"
    backward = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[mode]
    kept = [states[1:, d] if back else states[:-1, d] for d, back in enumerate(backward)]
    first = np.zeros((1, *states.shape[2:]), np.float32)  # the initial state, zero by default
    stacked = np.stack([np.concatenate([first, part]) for part in kept])
    return stacked.reshape(directions, -1, states.shape[-1])


def collect(
    model: ir.Model, weights: Sequence[Weight], samples: Samples, ctx: Context, *, gram: bool
) -> Iterator[tuple[Weight, Moments]]:
    """Run `model` over the samples and yield each weight with the statistics of its inputs.

    Memory is bounded by `GRAM_BUDGET_BYTES` and the activations of one sample: weights that do not fit
    together are observed in further passes over the data. Weights with several readers get the sum over
    all of them.

    Args:
        model: not edited meanwhile, except for weights that were yielded.
        weights: of `model`, none refused by `refuse_statistics`.
        samples: calibration inputs.
        ctx: progress and cancellation.
        gram: keep second moments, not only their diagonal.

    Raises:
        DataError: an input is not finite.
    """

    def size(weight: Weight) -> int:
        return matrix_bytes(weight.view.groups, weight.view.columns, gram)

    for chunk in within_budget(weights, size):
        yield from _collect(model, chunk, samples, ctx, gram)


def _collect(
    model: ir.Model, chunk: Sequence[Weight], samples: Samples, ctx: Context, gram: bool
) -> list[tuple[Weight, Moments]]:
    probe, taps = tapped(model, [use for weight in chunk for use in weight.uses])
    names = sorted({tap.value for tap in taps.values()})
    session = make_session(probe, extra_outputs=names)
    found = [(w, Moments(w.view.groups, w.view.columns, gram)) for w in chunk]
    for done, batch in enumerate(samples.batches(1), start=1):
        ctx.check_cancelled()
        values = run_session(session, batch, names)
        for weight, inputs in found:
            for use in weight.uses:
                tap = taps[use]
                inputs.add(tap.inputs(values[tap.value], weight))
        ctx.progress("layer inputs", done, len(samples))
    for weight, inputs in found:
        if not np.isfinite(inputs.power).all():
            raise DataError(
                "calibration-not-finite",
                f"what flows into {weight.name!r} is not finite on the calibration samples",
                "check the scaling of the inputs, or exclude the layer",
            )
    return found


def tapped(model: ir.Model, uses: Sequence[Use]) -> tuple[ir.Model, dict[Use, Tap]]:
    """Return a copy that shows what the uses read on its main graph."""
    probe = model.clone()
    # Bodies are cloned in the same order, so the n-th node of the copy is the n-th node.
    twins = dict(zip(walk.all_nodes(model), walk.all_nodes(probe), strict=True))
    read = [_read(probe, twins[use.node], use.port) for use in uses]
    shown = show(probe, read)
    return probe, {use: Tap(use, *place) for use, place in zip(uses, shown, strict=True)}


def show(probe: ir.Model, values: Sequence[ir.Value]) -> list[tuple[str, int]]:
    """Make values of any body visible on the main graph of `probe`, which is edited.

    Returns:
        Name on the main graph and number of axes that loops added in front, for each value.
    """
    parents = parents_of(probe)
    shown: dict[ir.Value, tuple[str, int]] = {}
    for value in values:
        if value not in shown:
            shown[value] = _shown(probe, value, parents)
    return [shown[value] for value in values]


def _read(probe: ir.Model, node: ir.Node, port: int) -> ir.Value:
    """Return what a use multiplies its weight by; a cell's hidden states are made an output."""
    if port != 2:
        value = node.inputs[0]
        assert value is not None, node
        return value
    states = node.outputs[0]
    if not states.name:
        like = node.inputs[0]
        assert like is not None, node
        states.name, states.type = walk.unique_name(probe, f"{node.name}_states"), like.type
    return states


def _shown(probe: ir.Model, value: ir.Value, parents: Parents) -> tuple[str, int]:
    """Hand a value out of the loops around it; returns the name on the main graph and the axes added."""
    depth = 0
    while isinstance(value.graph, ir.Graph) and value.graph in parents:
        value = _stacked(probe, value.graph, parents[value.graph], value)
        depth += 1
    return str(value.name), depth


def _stacked(probe: ir.Model, body: ir.Graph, loop: ir.Node, value: ir.Value) -> ir.Value:
    """Make a value of a body one more scan output of its loop."""
    copy = ir.node("Identity", [value], name=walk.unique_name(probe, f"{value.name}_shown"))
    copy.outputs[0].name, copy.outputs[0].type = f"{copy.name}_value", value.type
    copy.outputs[0].shape = None if value.shape is None else value.shape.copy()
    body.append(copy)
    body.outputs.append(copy.outputs[0])
    loop.resize_outputs(len(loop.outputs) + 1)
    result = loop.outputs[-1]
    result.name, result.type = walk.unique_name(probe, f"{value.name}_stacked"), value.type
    for key in ("scan_output_axes", "scan_output_directions"):
        if key in loop.attributes:
            loop.attributes[key] = ir.AttrInt64s(key, [*loop.attributes[key].as_ints(), 0])
    return result


def samples_needed(seen: Iterable[Moments], samples: int, *, gram: bool) -> int | None:
    """Return how many samples the statistics want when there are fewer, else None.

    Second moments have full rank only from `k` inputs on; a mean square has a relative deviation of 0.25
    from 32 independent ones on.
    """
    most = 0
    for inputs in seen:
        per_sample = max(inputs.count / max(samples, 1), 1e-9)
        wanted = inputs.size if gram else 32
        if inputs.count < wanted:
            most = max(most, int(np.ceil(wanted / per_sample)))
    return most or None
