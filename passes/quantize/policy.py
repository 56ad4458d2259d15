"""From a graph and a policy to a plan without scales: what is quantized, what is refused and why."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ...compiler.exclusion import excluded_by
from ...compiler.ir import walk
from ...compiler.ir.quant import QuantSpec
from ...compiler.pass_api import Refusal
from .biases import bias_add, bias_sites
from .dynamic import refuse_blocks, refuse_dynamic
from .plan import Decision, QuantPlan, Role, Site
from .rules import NEUTRAL, RULES, STAYS_FLOAT, Choice, Policy

# A Relu behind one of these is left to its quantizer.
_ABSORBS_RELU = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul"})

# The integer kernels of these give float results as well; others gain only with a quantized result.
_FLOAT_RESULT = frozenset({"Gemm", "MatMul"})


def decide(graph: ir.Graph, policy: Policy, exclude: Sequence[str] = ()) -> QuantPlan:
    """Return the plan for one graph; scales are filled in by `assign`.

    Args:
        graph: main graph or a body; nested bodies are graphs of their own.
        policy: what to quantize to.
        exclude: node names or regular expressions (full match) that stay float.
    """
    choices, refusals, notes = _choose(graph, policy, exclude)
    if policy.act == "static":
        _drop_stranded(graph, choices, policy)
    else:
        choices = {node: c for node, c in choices.items() if c.kind in ("compute", "table") and c.weights}
    if policy.act == "dynamic":
        refusals += _keep_weights_only(choices, policy.weights == "block")
    return QuantPlan(_decisions(choices, policy), tuple(refusals), tuple(notes))


def _keep_weights_only(choices: dict[ir.Node, Choice], in_blocks: bool) -> list[Refusal]:
    """Take the activations off nodes without an integer form for run-time ranges, in place."""
    refusals = []
    for node, choice in choices.items():
        weight = next((node.inputs[index] for index in choice.weights), None)
        tensor = None if weight is None else walk.constant_tensor(weight)
        sizes = () if tensor is None else tuple(int(size) for size in tensor.shape.numpy())
        if in_blocks:
            reason = refuse_blocks(node, next(iter(choice.weights.values())), sizes)
        else:
            reason = refuse_dynamic(node, len(sizes))
        if choice.kind == "compute" and reason:
            choices[node] = dataclasses.replace(choice, activations=())
            refusals.append(Refusal(node.name or "", f"weights only: {reason}"))
    return refusals


def _choose(
    graph: ir.Graph, policy: Policy, exclude: Sequence[str]
) -> tuple[dict[ir.Node, Choice], list[Refusal], list[str]]:
    choices: dict[ir.Node, Choice] = {}
    refusals: list[Refusal] = []
    float_ops: Counter[str] = Counter()
    for node in graph:
        outcome = _outcome(node, policy, exclude)
        if isinstance(outcome, Choice):
            choices[node] = outcome
        elif outcome and node.op_type in STAYS_FLOAT and not node.domain:
            float_ops[node.op_type] += 1
        elif outcome:
            refusals.append(Refusal(node.name or "", outcome))
    _join_biases(choices)
    notes = [f"{count} x {op} in float: {STAYS_FLOAT[op]}" for op, count in sorted(float_ops.items())]
    return choices, refusals, notes


def _join_biases(choices: dict[ir.Node, Choice]) -> None:
    """Make the Add of a bias part of its product: no quantizer between them, one behind both; in place."""
    for node, choice in list(choices.items()):
        found = bias_add(node) if choice.kind == "compute" else None
        if found is not None and choices.pop(found[0], None) is not None:
            choices[node] = dataclasses.replace(choice, added=found[0])


def _outcome(node: ir.Node, policy: Policy, exclude: Sequence[str]) -> Choice | str | None:
    """Return what to do with a node, the reason why not, or None where there is nothing to say."""
    quantizable = not node.domain and node.op_type in RULES
    if (pattern := excluded_by(node.name or "", exclude)) is not None:
        return f"excluded by {pattern!r}" if quantizable else None
    if quantizable:
        choice = RULES[node.op_type](node, policy)
        return None if isinstance(choice, str) and _is_index_arithmetic(node) else choice
    if not node.domain and node.op_type in STAYS_FLOAT:
        return STAYS_FLOAT[node.op_type]
    if node.op_type in NEUTRAL:
        return None
    return (
        f"no quantization rule for {f'{node.domain}::' if node.domain else ''}{node.op_type}; it stays float"
    )


def _is_index_arithmetic(node: ir.Node) -> bool:
    """Say whether a node computes shapes or indices, which are no matter for quantization."""
    output = node.outputs[0]
    return output.dtype is not None and not output.dtype.is_floating_point()


def tail(node: ir.Node) -> ir.Value:
    """Return the value to quantize behind a node: its result, or that of a Relu/Clip which alone reads it.

    The quantizer does the clamping of such an activation by itself. The result of a product is what the Add
    of its bias gives.
    """
    added = bias_add(node)
    value = node.outputs[0] if added is None else added[0].outputs[0]
    follower = walk.only_user(value)
    alone = follower is None or follower.domain or follower.graph is not node.graph
    if alone or follower is None or node.op_type not in _ABSORBS_RELU:
        return value
    if follower.op_type == "Relu":
        return follower.outputs[0]
    is_clip = follower.op_type == "Clip" and all(
        v is None or walk.is_constant(v) for v in follower.inputs[1:]
    )
    return follower.outputs[0] if is_clip else value


def _drop_stranded(graph: ir.Graph, choices: dict[ir.Node, Choice], policy: Policy) -> None:
    """Remove flow nodes that do not lie between integer producers and integer consumers, in place.

    A flow node in the middle of float would pay for two conversions and gain nothing. Each round goes
    through the graph once in each direction; chains settle in one round.
    """
    while True:
        ready = _ready_values(graph, choices, policy)
        wanted = _wanted_values(choices)
        stranded = [
            node
            for node, choice in choices.items()
            if choice.kind in ("flow", "share")
            and (tail(node) not in wanted or any(node.inputs[i] not in ready for i in choice.activations))
        ]
        if not stranded:
            return
        for node in stranded:
            del choices[node]


def _ready_values(graph: ir.Graph, choices: Mapping[ir.Node, Choice], policy: Policy) -> set[ir.Value | None]:
    ready: set[ir.Value | None] = set(graph.inputs) if policy.io == "int8" else set()
    for node, choice in choices.items():
        flows = choice.kind in ("flow", "share") and all(node.inputs[i] in ready for i in choice.activations)
        if choice.kind == "compute" or flows:
            ready.add(tail(node))
    return ready


def _wanted_values(choices: Mapping[ir.Node, Choice]) -> set[ir.Value | None]:
    wanted: set[ir.Value | None] = set()
    for node, choice in reversed(list(choices.items())):
        if choice.kind == "compute" or tail(node) in wanted:
            wanted.update(node.inputs[i] for i in choice.activations)
    return wanted


def _decisions(choices: Mapping[ir.Node, Choice], policy: Policy) -> dict[Site, Decision]:
    wanted = _wanted_values(choices) if policy.act == "static" else set()
    found: dict[Site, Decision] = {}
    for node, choice in choices.items():
        name = node.name or ""
        for index, spec in choice.weights.items():
            found[Site.read(name, index)] = _constant(node.inputs[index], choice, spec)
        if policy.act == "none" or choice.kind == "table":
            continue
        for index in choice.activations:
            found[Site.read(name, index)] = _activation(node.inputs[index], policy)
        if policy.act == "static":
            found |= _results(node, choice, policy, wanted)
    return found


def _constant(value: ir.Value | None, choice: Choice, spec: QuantSpec) -> Decision:
    assert value is not None
    role: Role = "table" if choice.kind == "table" else "weight"
    return Decision(value.name or "", role, spec)


def _activation(value: ir.Value | None, policy: Policy) -> Decision:
    assert value is not None
    return Decision(value.name or "", "activation", policy.activation(), dynamic=policy.act == "dynamic")


def _results(
    node: ir.Node, choice: Choice, policy: Policy, wanted: set[ir.Value | None]
) -> dict[Site, Decision]:
    """Return decisions on the bias and the result of a node with static activations.

    Biases are integers where their node's operands are QuantizeLinear's; beside QONNX Quant they stay float.
    """
    name, found = node.name or "", dict[Site, Decision]()
    whole = policy.bits == 8 and policy.act_bits == 8
    if whole and not any(spec.block_size for spec in choice.weights.values()):
        own = None if choice.bias is None else Site.read(name, choice.bias)
        site = own if choice.added is None else Site.added(name)
        spec = QuantSpec(bits=32, signed=True, narrow=False, axis=0)
        found |= {s: Decision(b.name or "", "bias", spec) for s, b in bias_sites(node) if b and s == site}
    result = tail(node)
    if result in wanted or (choice.kind == "compute" and node.op_type not in _FLOAT_RESULT):
        found[Site.write(name)] = _activation(result, policy)
    return found


def shared_scales(graph: ir.Graph, plan: QuantPlan) -> dict[str, str]:
    """Return quantized value -> the quantized value whose scale it takes (chains resolved).

    Pooling by maximum and pure data movement keep the numbers: one scale before and behind them lets the
    kernels work on integers, and no range needs to be observed.
    """
    roots: dict[str, str] = {}
    for node in graph:
        read, written = plan.get(Site.read(node.name or "", 0)), plan.get(Site.write(node.name or ""))
        if read is None or written is None or read.role != "activation":
            continue
        outcome = RULES[node.op_type](node, Policy()) if node.op_type in RULES else ""
        if isinstance(outcome, Choice) and outcome.kind == "share" and read.value != written.value:
            roots[written.value] = roots.get(read.value, read.value)
    return roots
