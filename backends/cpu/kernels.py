"""Which nodes onnxruntime's CPU build has kernels for, read from its own registry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import onnx
import onnx_ir as ir

from ...compiler import ort
from ...compiler.backend import Verdict
from ...compiler.ops import EXPANSIONS

# onnxruntime wraps a node without a float16 kernel in casts to float32.
_RUNS_AS = {"tensor(float16)": "tensor(float)"}

# Pairs of a type parameter such as `T` and the dtype that an input or output gives it.
Types = Sequence[tuple[str, str]]


def verdict(node: ir.Node, opset: int) -> Verdict:
    """Say whether onnxruntime runs a node with the dtypes it has; own operators run expanded.

    Args:
        node: with dtypes inferred; a value without one is taken to fit.
        opset: version of the node's domain that the model imports.
    """
    # A Constant needs no kernel: it becomes an initializer when the model is loaded.
    if (node.domain, node.op_type) in {*EXPANSIONS, ("", "Constant")}:
        return Verdict.yes()
    name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    schema = _schema(node.domain, node.op_type, opset)
    if schema is None:
        known = (node.domain, node.op_type) in _kernels()
        return Verdict.yes() if known else Verdict.no(f"onnxruntime {ort.version()} does not know {name}")
    kernels = _kernels().get((node.domain, node.op_type), [])
    kernels = [kernel for kernel in kernels if kernel.takes_version(schema.since_version)]
    have = _types(node, schema)
    # An operator defined by others runs as those.
    composed = schema.has_function or schema.has_context_dependent_function  # type: ignore[attr-defined]
    if composed or any(_takes(kernel, have) for kernel in kernels):
        return Verdict.yes()
    what = f"onnxruntime {ort.version()} has no CPU kernel for {name}-{schema.since_version}"
    return Verdict.no(f"{what} with {_shown(have)}; it has {_offers(kernels)}" if kernels else what)


def _takes(kernel: ort.Kernel, have: Types) -> bool:
    """Tell whether every dtype is among those registered; parameters that are not registered take all."""
    return all(
        parameter not in kernel.types
        or not {dtype, _RUNS_AS.get(dtype, dtype)}.isdisjoint(kernel.types[parameter])
        for parameter, dtype in have
    )


@cache
def _kernels() -> dict[tuple[str, str], list[ort.Kernel]]:
    found: dict[tuple[str, str], list[ort.Kernel]] = {}
    for kernel in ort.kernels():
        found.setdefault((kernel.domain, kernel.op_type), []).append(kernel)
    return found


@cache
def _schema(domain: str, op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _types(node: ir.Node, schema: onnx.defs.OpSchema) -> list[tuple[str, str]]:
    pairs = [*_typed(node.inputs, schema.inputs), *_typed(node.outputs, schema.outputs)]
    return list(dict.fromkeys(pairs))


def _typed(
    values: Sequence[ir.Value | None], formal: Sequence[onnx.defs.OpSchema.FormalParameter]
) -> list[tuple[str, str]]:
    pairs = []
    for index, value in enumerate(values):
        if value is not None and isinstance(value.type, ir.TensorType) and formal:
            # The last parameter of a variadic operator stands for all that follow.
            parameter = formal[min(index, len(formal) - 1)].type_str
            pairs.append((parameter, f"tensor({value.type.dtype.name.lower()})"))
    return pairs


def _shown(have: Types) -> str:
    return ", ".join(f"{parameter} = {_plain(dtype)}" for parameter, dtype in have)


def _offers(kernels: Sequence[ort.Kernel]) -> str:
    offers: dict[str, set[str]] = {}
    for kernel in kernels:
        for parameter, types in kernel.types.items():
            offers.setdefault(parameter, set()).update(_plain(dtype) for dtype in types)
    return "; ".join(
        f"{parameter}: {', '.join(sorted(types))}" for parameter, types in sorted(offers.items())
    )


def _plain(dtype: str) -> str:
    return dtype.removeprefix("tensor(").removesuffix(")")
