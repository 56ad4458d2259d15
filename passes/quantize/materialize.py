"""Turns a plan into operations: QuantizeLinear/DequantizeLinear where ONNX has the type, else QONNX Quant.

The forms are those that onnxruntime fuses and that are small in the file: one scale and zero point per
activation value and one Q/DQ pair, weights without zero point, int32 biases whose scale is a product in the
graph. The dequantized value takes the name of the float value that it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...compiler.ir import walk
from ...compiler.ir.quant import QuantParams
from .biases import bias_add
from .constants import ConstantWriter, Floats, Integers, params_of
from .dynamic import write_blocks, write_dynamic
from .emit import Emitter
from .plan import Decision, QuantPlan, Site


def apply_plan(
    model: ir.Model,
    plan: QuantPlan,
    *,
    integers: Mapping[Site, Integers] | None = None,
    bias_shift: Mapping[str, Floats] | None = None,
) -> int:
    """Rewrite the main graph of `model` as a plan with scales says; returns how many sites changed.

    Args:
        model: float model, edited in place.
        plan: made for this model.
        integers: weights chosen by a rounding method, by site, in the weight's shape.
        bias_shift: node name -> what is added to its bias, `[channels]`.
    """
    out = Emitter(model)
    nodes = {node.name or "": node for node in model.graph}
    missing = [name for name in plan.nodes() if name not in nodes]
    assert not missing, f"the plan names nodes that the model lacks: {missing[:3]}"
    constants = ConstantWriter(out, integers or {})
    activations = [d for d in plan.activations().values() if not d.dynamic]
    _write_activations(out, plan, nodes, activations)
    _write_constants(constants, plan, nodes, dict(bias_shift or {}))
    for site, decision in plan.decisions.items():
        if not decision.dynamic:
            continue
        if block := _block_of(plan, site):
            write_blocks(out, nodes[site.node], _index(site), block)
        else:
            write_dynamic(out, nodes[site.node], _index(site), decision)
    constants.finish()
    return len(plan)


def _block_of(plan: QuantPlan, site: Site) -> int:
    """Return the block size of the weights beside an activation; 0 without blocks."""
    weight = plan.get(Site.read(site.node, 1))
    return 0 if weight is None else weight.spec.block_size


def _index(site: Site) -> int:
    return int(site.port.removeprefix("in"))


def _write_constants(
    constants: ConstantWriter, plan: QuantPlan, nodes: Mapping[str, ir.Node], shifts: dict[str, Floats]
) -> None:
    sites = [site for site, decision in plan.decisions.items() if decision.role == "bias"]
    biases = [(nodes[site.node], *_holder(nodes[site.node], site)) for site in sites]
    for site, decision in plan.decisions.items():
        node = nodes[site.node]
        if decision.role == "weight":
            constants.weight(node, _index(site), decision)
        elif decision.role == "table":
            constants.table(node, decision)
    for node, holder, index in biases:  # last: they are written in units of their weights' scales
        constants.bias(node, holder, index, shifts.pop(node.name or "", None))
    for name, shift in shifts.items():
        constants.float_bias(nodes[name], 2, shift)


def _holder(node: ir.Node, site: Site) -> tuple[ir.Node, int]:
    """Return the node that reads the bias of a layer, and as which operand; weights are still constants."""
    if site != Site.added(site.node):
        return node, _index(site)
    found = bias_add(node)
    assert found is not None, f"{node.name} is planned with a bias behind it"
    return found


def _write_activations(
    out: Emitter, plan: QuantPlan, nodes: Mapping[str, ir.Node], decisions: list[Decision]
) -> None:
    values = {value.name: value for value in walk.values_of(out.graph)}
    readers: dict[str, list[tuple[ir.Node, int]]] = {}
    written: set[str] = set()
    for site, decision in plan.decisions.items():
        if decision.role != "activation" or decision.dynamic:
            continue
        if site.port.startswith("out"):
            written.add(decision.value)
        else:
            readers.setdefault(decision.value, []).append((nodes[site.node], _index(site)))
    for decision in decisions:
        value = values[decision.value]
        quantized = _pair(out, value, decision)
        if decision.value in written:
            _replace(out, value, quantized)
        else:
            for node, index in readers[decision.value]:
                node.replace_input_with(index, quantized[-1])


def _pair(out: Emitter, value: ir.Value, decision: Decision) -> list[ir.Value]:
    """Insert the quantizer of `value` behind it; returns what was made, the float result last."""
    params, base = params_of(decision, np.zeros(0, np.float32)), decision.value
    if decision.spec.bits != 8:
        made = [out.fake_quantize(value, params, 0, base)]
    else:
        made = _linear_pair(out, value, params, base)
    out.insert(made, value)
    return made


def _linear_pair(out: Emitter, value: ir.Value, params: QuantParams, base: str) -> list[ir.Value]:
    signed = params.spec.signed
    # The zero point is written down even when it is 0: onnxruntime does not fuse Gemm without it.
    zero = params.zero_point.astype(np.int8 if signed else np.uint8)
    scale = out.constant(np.asarray(params.scale, np.float32), f"{base}_scale")
    inputs: list[ir.Value | None] = [scale, out.constant(zero, f"{base}_zero")]
    dtype = ir.DataType.INT8 if signed else ir.DataType.UINT8
    q = out.node("QuantizeLinear", [value, *inputs], value, base=f"{base}_int", dtype=dtype)
    return [q, out.node("DequantizeLinear", [q, *inputs], value, base=f"{base}_dq")]


def _replace(out: Emitter, value: ir.Value, made: list[ir.Value]) -> None:
    """Let every reader of `value`, graph outputs too, read the dequantized value, which takes its name."""
    first = made[0].producer()
    assert first is not None, "a quantizer is a node"
    name = str(value.name)
    walk.replace_value(value, made[-1])
    first.replace_input_with(0, value)
    walk.rename(value, out.fresh(f"{name}_raw"))
