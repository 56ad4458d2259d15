"""Count where onnxruntime's quantized operators differ from the reference semantics; prints a Markdown table.

Run: python bench/integer_agreement.py [seconds per row set] [seed]
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from pared.backends.reference import evaluate
from pared.compiler.ort import make_session, optimized_model, run_session

Array = npt.NDArray[np.number]
Drawn = tuple[str, ir.Model, dict[str, Array]]

TIES = (0.1, 0.2, 0.05, 0.3)


def quantized(
    op: str,
    data: dict[str, tuple[Array, Array, Array]],
    consts: dict[str, tuple[Array, Array, Array]],
    out: tuple[Array, Array],
    attributes: dict[str, int | float | list[int]],
    axes: dict[str, int] | None = None,
    bias: Array | None = None,
) -> ir.Model:
    """Build DequantizeLinear of every operand (q, scale, zero point) -> op -> QuantizeLinear; int32 bias."""
    arrays: dict[str, Array] = {"ys": out[0], "yz": out[1]}
    nodes, values, names = [], [], []
    for name, (q, scale, zero) in (data | consts).items():
        arrays |= {f"{name}s": scale, f"{name}z": np.broadcast_to(zero, scale.shape)}
        if name in consts:
            arrays[name] = q
        else:
            values.append(
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(q.dtype), q.shape)
            )
        axis = (axes or {})[name] if scale.ndim else 0
        inputs = [name, f"{name}s", f"{name}z"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}f"], axis=axis))
        names.append(f"{name}f")
    if bias is not None:
        unit = data["x"][1] * consts["w"][1]
        arrays |= {"b": bias, "bs": np.asarray(unit, np.float32)}
        nodes.append(helper.make_node("DequantizeLinear", ["b", "bs"], ["bf"], axis=0))
        names.append("bf")
    nodes.append(helper.make_node(op, names, ["r"]))
    nodes[-1].attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    nodes.append(helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["y"]))
    kind = helper.np_dtype_to_tensor_dtype(out[1].dtype)
    graph = helper.make_graph(
        nodes, "g", values, [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(a).copy(), name) for name, a in arrays.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


class Draw:
    """Random operands; `ties` makes scales whose quotients are round."""

    def __init__(self, rng: np.random.Generator, ties: bool) -> None:
        self.rng, self.ties = rng, ties

    def scale(self, low: float, high: float, shape: tuple[int, ...] = ()) -> Array:
        """Return float32 scales."""
        drawn = self.rng.choice(TIES, shape) if self.ties else self.rng.uniform(low, high, shape)
        return np.asarray(drawn, np.float32)

    def integers(self, kind: str, shape: tuple[int, ...] = ()) -> Array:
        """Return integers over the whole range of `kind`."""
        info = np.iinfo(kind)
        return np.asarray(self.rng.integers(info.min, info.max + 1, shape), kind)

    def operand(self, kind: str, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
        """Return (q, scale, zero point) with one scale."""
        return self.integers(kind, shape), self.scale(0.005, 0.05), self.integers(kind)


def layer(draw: Draw) -> Drawn:
    """Draw a Conv, ConvTranspose, Gemm or MatMul with int8 weights."""
    rng = draw.rng
    op = str(rng.choice(["Conv", "ConvTranspose", "Gemm", "MatMul"]))
    # onnxruntime fuses signed data on ARM only
    kind = "uint8" if op in ("MatMul", "Conv") else str(rng.choice(["uint8", "int8"]))
    attributes: dict[str, int | float | list[int]] = {}
    if op.startswith("Conv"):
        group, depth, fan = (int(v) for v in rng.choice([(1, 3, 4), (2, 2, 3), (4, 1, 1), (8, 1, 2)]))
        attributes = {"group": group, "pads": rng.integers(0, 2, 4).tolist()}
        attributes |= {name: rng.integers(1, 3, 2).tolist() for name in ("strides", "dilations")}
        x_shape: tuple[int, ...] = (2, group * depth, 9, 8)
        kernel = tuple(rng.integers(1, 4, 2).tolist())
        w_shape = (group * fan, depth, *kernel) if op == "Conv" else (group * depth, fan, *kernel)
        outputs, axis = group * fan, 0 if op == "Conv" else 1
    else:
        depth, outputs, axis = int(rng.integers(1, 80)), int(rng.integers(2, 20)), 1
        x_shape, w_shape = (8, depth), (depth, outputs)
    channels = (
        (outputs,) if rng.random() < 0.5 and not (op == "ConvTranspose" and attributes["group"] != 1) else ()
    )
    w = draw.integers("int8", w_shape), draw.scale(0.002, 0.02, channels), np.zeros((), np.int8)
    x = draw.operand(kind, x_shape)
    bias = None if op == "MatMul" else rng.integers(-9999, 9999, outputs).astype(np.int32)
    out = (np.asarray(draw.scale(0.05, 0.4) * 2, np.float32), draw.integers(kind))
    return op, quantized(op, {"x": x}, {"w": w}, out, attributes, {"w": axis}, bias), {"x": x[0]}


def other(draw: Draw) -> Drawn:
    """Draw another operator that onnxruntime has a quantized kernel for."""
    table: tuple[tuple[str, int, dict[str, int | float | list[int]]], ...] = (
        ("Add", 2, {}), ("Mul", 2, {}), ("AveragePool", 1, {"kernel_shape": [3, 3], "strides": [2, 2]}),
        ("GlobalAveragePool", 1, {}), ("LeakyRelu", 1, {"alpha": 0.1}), ("Sigmoid", 1, {}),
        ("Softmax", 1, {"axis": 1}),
    )  # fmt: skip
    op, count, attributes = table[int(draw.rng.integers(len(table)))]
    kind, shape = str(draw.rng.choice(["uint8", "int8"])), (4, 16, 9, 9)
    data = {name: draw.operand(kind, shape) for name in ("x", "z")[:count]}
    model = quantized(op, data, {}, (draw.scale(0.005, 0.08), draw.integers(kind)), attributes)
    return op, model, {name: operand[0] for name, operand in data.items()}


def rows(ties: bool, seconds: float, seed: int) -> Iterator[str]:
    """Measure for `seconds` per family and yield table rows."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for family in (layer, other):
        draw, end = Draw(np.random.default_rng(seed), ties), time.monotonic() + seconds
        while time.monotonic() < end:
            op, model, feeds = family(draw)
            fused = sorted(
                {n.op_type for n in optimized_model(model).graph.node if n.op_type.startswith("Q")}
            )
            kernel = next((name for name in fused if name != "QuantizeLinear"), f"{op} in float")
            want = evaluate(model, feeds)["y"]
            got = run_session(make_session(model), feeds)["y"]
            gap = np.abs(want.astype(int) - got.astype(int))
            counts[op, kernel, "models"] += 1
            counts[op, kernel, "values"] += gap.size
            counts[op, kernel, "differ"] += int((gap > 0).sum())
            counts[op, kernel, "most"] = max(counts[op, kernel, "most"], int(gap.max(initial=0)))
    for op, kernel in sorted({key[:2] for key in counts}):
        numbers = " | ".join(str(counts[op, kernel, key]) for key in ("models", "values", "differ", "most"))
        yield f"| {op} | {kernel} | {'ties' if ties else 'random'} | {numbers} |"


def main() -> None:
    """Print the table."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    print("| Operator | onnxruntime's kernel | Scales | Models | Values | Differ | Largest step |")
    print("|---|---|---|---|---|---|---|")
    for ties in (False, True):
        print("\n".join(rows(ties, seconds, seed)))


if __name__ == "__main__":
    main()
