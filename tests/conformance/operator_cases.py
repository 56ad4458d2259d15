"""One table of single-operator models, for every backend: operator, inputs, attributes, allowed rounding.

A backend joins by running `models()` and comparing with the reference by `Case.tolerance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper

Array = npt.NDArray[np.generic]
OPSET = 21


@dataclass(frozen=True)
class Case:
    """One operator on fixed inputs.

    Attributes:
        op: operator of the default domain.
        inputs: arrays, None for one left out.
        attributes: as ONNX spells them.
        outputs: how many.
        terms: rounding errors of the type that may add up in one result, in units of `scale`.
        scale: size of the intermediate values; 0: the largest result.
        tag: tells cases of one operator apart.
    """

    op: str
    inputs: tuple[Array | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    terms: int = 4
    scale: float = 0.0
    tag: str = ""

    @property
    def name(self) -> str:
        """Return what pytest shows."""
        kinds = next(x.dtype.name for x in self.inputs if x is not None)
        return "-".join(part for part in (self.op, kinds, self.tag) if part)

    def feeds(self) -> dict[str, Array]:
        """Return the inputs by name."""
        return {f"x{i}": x for i, x in enumerate(self.inputs) if x is not None}

    def tolerance(self, want: Array) -> float:
        """Return the largest absolute difference that rounding explains; 0 for integers."""
        if want.dtype.kind != "f":
            return 0.0
        finite = np.abs(want[np.isfinite(want)].astype(np.float64))
        return self.terms * float(np.finfo(want.dtype).eps) * (self.scale or float(finite.max(initial=0)))

    def model(self) -> ir.Model:
        """Return the model, shapes inferred."""
        names = ["" if x is None else f"x{i}" for i, x in enumerate(self.inputs)]
        values = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in zip(names, self.inputs, strict=True)
            if x is not None
        ]
        outputs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, names, outputs, name=self.op, **self.attributes)
        graph = helper.make_graph([node], "g", values, [onnx.ValueInfoProto(name=name) for name in outputs])
        opsets = [helper.make_opsetid("", OPSET)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def draw(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32, seed: int = 0) -> Array:
    """Return normal floats, or integers from -9 (0 if unsigned) to 9."""
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    if kind.kind in "iu":
        return rng.integers(0 if kind.kind == "u" else -9, 10, shape).astype(kind)
    return rng.normal(size=shape).astype(kind)


def ints(*values: int) -> Array:
    """Return an int64 vector."""
    return np.array(values, np.int64)


FLOATS = (np.float32, np.float16, np.float64)
NUMBERS = (*FLOATS, np.int32, np.int64)


def _unary() -> Iterator[Case]:
    for op in ("Abs", "Neg", "Sign"):
        yield from (Case(op, (draw((3, 4), t),)) for t in NUMBERS)
    yield from (Case("Relu", (draw((3, 4), t),)) for t in (*FLOATS, np.int32))
    for op in ("Ceil", "Exp", "Floor", "Round", "Sigmoid", "Tanh"):
        yield from (
            Case(op, (draw((3, 40), t),), terms=16, scale=1.0 if op != "Exp" else 0.0) for t in FLOATS
        )
    for op in ("Elu", "Erf", "HardSigmoid", "HardSwish", "LeakyRelu", "Selu", "Softplus", "Softsign", "Mish"):
        yield from (Case(op, (draw((3, 40), t),), terms=16, scale=2.0) for t in FLOATS[:2])
    yield Case("Celu", (draw((3, 40)),), terms=16)
    for op in ("Sin", "Cos", "Tan", "Sinh", "Cosh", "Asinh", "Atan"):
        yield Case(op, (draw((3, 40)),), terms=16)
    for op in ("Acos", "Asin", "Atanh"):
        yield Case(op, (np.clip(draw((3, 40)), -0.9, 0.9),), terms=16)
    for op in ("Log", "Sqrt", "Reciprocal", "Acosh"):
        yield Case(op, (np.abs(draw((3, 40))) + 1,), terms=16)
    yield from (Case("Gelu", (draw((3, 40)),), {"approximate": a}, terms=16, tag=a) for a in ("none", "tanh"))
    yield Case("Not", (draw((3, 4), bool),))


def _binary() -> Iterator[Case]:
    for op in ("Add", "Sub", "Mul", "Max", "Min"):
        yield from (Case(op, (draw((2, 3, 4), t), draw((3, 1), t, 1))) for t in NUMBERS)
    for t in NUMBERS:
        yield Case("Div", (draw((2, 3), t), np.abs(draw((2, 3), t, 1)) + np.asarray(1, t)))
    for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        yield from (Case(op, (draw((2, 9), t), draw((2, 9), t, 1))) for t in (np.float32, np.int32))
    for op in ("And", "Or", "Xor"):
        yield Case(op, (draw((2, 9), bool), draw((2, 9), bool, 1)))
    yield Case("Pow", (np.abs(draw((2, 9))), draw((2, 9), np.float32, 1)), terms=16)
    yield Case("Pow", (draw((2, 9)), np.float32(2)), tag="square")
    yield Case("PRelu", (draw((2, 3, 4)), draw((3, 1), np.float32, 1)))
    yield Case("Mod", (draw((2, 9), np.int32), np.abs(draw((2, 9), np.int32, 1)) + np.int32(1)))
    yield Case("Where", (draw((2, 9), bool), draw((2, 9)), draw((2, 9), np.float32, 1)))
    yield from (
        Case("Clip", (draw((2, 9), t), np.asarray(-1, t), np.asarray(1, t))) for t in (np.float32, np.int32)
    )
    yield from (Case(op, tuple(draw((2, 9), np.float32, i) for i in range(3))) for op in ("Sum", "Mean"))


def _layers() -> Iterator[Case]:
    for t in (np.float32, np.float16, np.float64):
        yield Case("MatMul", (draw((2, 5, 7), t), draw((7, 3), t, 1)), terms=7, scale=16)
        yield Case(
            "Gemm", (draw((5, 7), t), draw((3, 7), t, 1), draw((3,), t, 2)), {"transB": 1}, terms=7, scale=16
        )
    yield Case("MatMul", (draw((4, 5), np.int32), draw((5, 3), np.int32, 1)))
    yield Case("MatMul", (draw((5,)), draw((2, 5, 3), np.float32, 1)), terms=5, scale=16, tag="vector")
    a, b, c = draw((7, 5)), draw((7, 3), np.float32, 1), draw((5, 1), np.float32, 2)
    yield Case("Gemm", (a, b, c), {"transA": 1, "alpha": 0.5, "beta": 2.0}, terms=9, scale=16, tag="factors")
    yield Case(
        "Einsum", (draw((2, 3, 4)), draw((2, 4, 5), np.float32, 1)), {"equation": "bij,bjk->bik"}, scale=16
    )
    yield from _convolutions()


def _convolutions() -> Iterator[Case]:
    shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
        ("plain", (2, 3, 8, 7), (4, 3, 3, 3), {}),
        ("wide", (1, 16, 8, 7), (4, 16, 3, 3), {"pads": [1, 0, 2, 1]}),
        ("point", (2, 9, 5, 5), (4, 9, 1, 1), {"strides": [2, 1]}),
        ("depthwise", (2, 4, 8, 8), (8, 1, 3, 3), {"group": 4, "dilations": [2, 1]}),
        ("groups", (2, 6, 8, 8), (4, 3, 3, 2), {"group": 2, "strides": [2, 2]}),
        ("same-upper", (1, 2, 7, 8), (3, 2, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
        ("same-lower", (1, 2, 7, 8), (3, 2, 3, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
        ("valid", (1, 2, 7, 8), (3, 2, 3, 2), {"auto_pad": "VALID"}),
        ("line", (2, 3, 20), (4, 3, 5), {"pads": [2, 2], "dilations": [3]}),
        ("volume", (1, 2, 5, 6, 5), (3, 2, 2, 3, 2), {"strides": [1, 2, 1]}),
    )
    for tag, x, w, attributes in shapes:
        bias = draw((w[0],), np.float32, 2)
        yield Case("Conv", (draw(x), draw(w, np.float32, 1), bias), attributes, terms=72, scale=4, tag=tag)
    yield Case("Conv", (draw((1, 3, 6, 6), np.float16), draw((2, 3, 3, 3), np.float16, 1)), terms=27, scale=4)
    transposed: tuple[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
        ("plain", (2, 3, 5, 4), (3, 4, 3, 3), {}),
        ("strided", (1, 3, 5, 4), (3, 4, 3, 2), {"strides": [2, 3], "pads": [1, 0, 1, 1]}),
        ("groups", (1, 4, 5, 4), (4, 3, 3, 3), {"group": 2, "output_padding": [1, 1], "strides": [2, 2]}),
        ("dilated", (1, 2, 5), (2, 3, 3), {"dilations": [2]}),
        ("shaped", (1, 2, 5, 5), (2, 3, 3, 3), {"output_shape": [10, 10], "strides": [2, 2]}),
        ("same", (1, 2, 5, 5), (2, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    )
    for tag, x, w, attributes in transposed:
        yield Case("ConvTranspose", (draw(x), draw(w, np.float32, 1)), attributes, terms=36, scale=4, tag=tag)


def _pooling() -> Iterator[Case]:
    options: tuple[tuple[str, dict[str, Any]], ...] = (
        ("plain", {"kernel_shape": [3, 2]}),
        ("padded", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("ceil", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("ceil-padded", {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]}),
        ("dilated", {"kernel_shape": [2, 2], "dilations": [2, 3]}),
        ("same", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    )
    for tag, attributes in options:
        yield Case("MaxPool", (draw((2, 3, 8, 8)),), attributes, tag=tag)
        yield Case("AveragePool", (draw((2, 3, 8, 8)),), attributes, terms=9, tag=tag)
        with_pad = {**attributes, "count_include_pad": 1}
        yield Case("AveragePool", (draw((2, 3, 8, 8)),), with_pad, terms=9, tag=f"{tag}-counting")
    yield Case("MaxPool", (draw((2, 3, 8, 8), np.uint8),), {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]})
    yield Case("MaxPool", (draw((1, 2, 6, 6)),), {"kernel_shape": [2, 2]}, outputs=2, tag="indices")
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        yield Case(op, (draw((2, 3, 4, 5)),), terms=20, scale=1)
    yield Case("LpPool", (draw((1, 2, 6, 6)),), {"kernel_shape": [2, 2], "p": 2})


def _reductions() -> Iterator[Case]:
    for op in (
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
    ):
        yield Case(op, (draw((3, 4, 5)), ints(1, -1)), {"keepdims": 0}, terms=20, scale=20)
        yield Case(op, (draw((3, 4, 5)),), terms=60, scale=60, tag="all")
    for op in ("ReduceSum", "ReduceMax"):
        yield Case(op, (draw((3, 4, 5), np.int64), ints(0)))
    yield Case("ReduceProd", (draw((3, 4)), ints(1)))
    yield Case("ReduceLogSumExp", (draw((3, 4)), ints(1)), terms=16, scale=4)
    yield Case("ReduceSum", (draw((3, 4)),), {"noop_with_empty_axes": 1}, tag="noop")
    for op in ("ArgMax", "ArgMin"):
        yield Case(op, (draw((3, 9)),), {"axis": 1, "keepdims": 0})
    for op in ("Softmax", "LogSoftmax"):
        yield from (Case(op, (draw((3, 9), t),), {"axis": axis}, terms=24, scale=4, tag=str(axis))
                    for t in (np.float32, np.float16) for axis in (0, -1))  # fmt: skip
    yield Case("CumSum", (draw((3, 9)), np.asarray(1)), {"reverse": 1, "exclusive": 1}, terms=9, scale=9)
    yield Case("TopK", (draw((3, 9)), ints(4)), outputs=2)
    yield Case(
        "TopK",
        (draw((3, 9), np.int64), ints(4)),
        {"largest": 0, "axis": 0} | {"axis": 1},
        outputs=2,
        tag="ties",
    )


def _normalizations() -> Iterator[Case]:
    channels = tuple(draw((3,), np.float32, i) for i in range(1, 4))
    variance = np.abs(draw((3,), np.float32, 5)) + np.float32(0.5)
    yield Case("BatchNormalization", (draw((2, 3, 4, 4)), *channels, variance), terms=8, scale=8)
    yield Case("InstanceNormalization", (draw((2, 3, 4, 4)), *channels[:2]), terms=32, scale=8)
    yield Case(
        "LayerNormalization",
        (draw((2, 3, 8)), *(draw((8,), np.float32, i) for i in (1, 2))),
        terms=32,
        scale=8,
    )
    yield Case("GroupNormalization", (draw((2, 4, 3, 3)), *(draw((4,), np.float32, i) for i in (1, 2))),
               {"num_groups": 2}, terms=64, scale=8)  # fmt: skip
    yield Case("LRN", (draw((2, 7, 3, 3)),), {"size": 3, "alpha": 0.5, "beta": 0.7, "bias": 1.5}, terms=16)
    yield from (
        Case("LpNormalization", (draw((2, 7)),), {"p": p, "axis": 1}, terms=8, tag=str(p)) for p in (1, 2)
    )


def _shapes() -> Iterator[Case]:
    x = draw((2, 3, 4))
    yield Case("Concat", (x, draw((2, 5, 4), np.float32, 1)), {"axis": 1})
    yield Case("DepthToSpace", (draw((1, 8, 2, 3)),), {"blocksize": 2})
    yield Case("DepthToSpace", (draw((1, 8, 2, 3)),), {"blocksize": 2, "mode": "CRD"}, tag="crd")
    yield Case("SpaceToDepth", (draw((1, 2, 4, 6)),), {"blocksize": 2})
    yield Case("Expand", (draw((3, 1)), ints(2, 3, 4)))
    yield Case("Flatten", (x,), {"axis": 2})
    yield Case("Gather", (x, np.array([[0, -1]])), {"axis": 1})
    yield Case("GatherElements", (x, np.abs(draw((2, 3, 2), np.int64)) % 4), {"axis": 2})
    yield Case("GatherND", (x, np.array([[0, 1], [1, 2]])))
    yield Case("OneHot", (ints(0, 2, 9), np.asarray(3), np.float32([0, 5])))
    modes = ("constant", "edge", "reflect", "wrap")
    yield from (Case("Pad", (x, ints(0, 1, 1, 0, 1, 2)), {"mode": mode}, tag=mode) for mode in modes)
    yield Case("Pad", (x, ints(1, -1), np.float32(7), ints(2)), tag="axes")
    yield Case("Range", (np.asarray(1), np.asarray(9), np.asarray(3)))
    yield Case("Reshape", (x, ints(0, -1)))
    yield Case(
        "ScatterElements", (x, np.zeros((2, 1, 4), np.int64), draw((2, 1, 4), np.float32, 1)), {"axis": 1}
    )
    yield Case("ScatterND", (x, np.array([[1], [0]]), draw((2, 3, 4), np.float32, 1)))
    yield Case("Shape", (x,))
    yield Case("Size", (x,))
    yield Case("Slice", (x, ints(2, 0), ints(-9, 2), ints(1, 2), ints(-1, 1)))
    yield Case("Split", (draw((2, 9)), ints(2, 7)), {"axis": 1}, outputs=2)
    yield Case("Squeeze", (draw((2, 1, 3)), ints(1)))
    yield Case("Unsqueeze", (x, ints(0, -1)))
    yield Case("Tile", (x, ints(1, 2, 3)))
    yield Case("Transpose", (x,), {"perm": [2, 0, 1]})
    yield Case("Trilu", (draw((4, 4)),), {"upper": 0})
    yield Case("NonZero", (draw((3, 4), bool),))
    yield Case("Identity", (x,))
    for source, to in (
        (np.float32, np.int32),
        (np.int64, np.float32),
        (np.float32, np.float16),
        (np.float32, bool),
    ):
        yield Case(
            "Cast",
            (draw((3, 4), source),),
            {"to": helper.np_dtype_to_tensor_dtype(np.dtype(to))},
            tag=np.dtype(to).name,
        )


def _resizing() -> Iterator[Case]:
    x = draw((1, 2, 5, 6))
    up, down = np.float32([1, 1, 2, 1.5]), np.float32([1, 1, 0.6, 0.5])
    places = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    for where in places:
        for tag, scales in (("up", up), ("down", down)):
            given = {"coordinate_transformation_mode": where}
            yield Case(
                "Resize",
                (x, None, scales),
                {"mode": "linear", **given},
                terms=32,
                tag=f"linear-{where}-{tag}",
            )
            yield Case(
                "Resize", (x, None, scales), {"mode": "cubic", **given}, terms=64, tag=f"cubic-{where}-{tag}"
            )
    for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        yield Case(
            "Resize", (x, None, np.float32([1, 1, 2, 3])), {"nearest_mode": nearest}, tag=f"nearest-{nearest}"
        )
    yield Case("Resize", (x, None, None, ints(1, 2, 9, 4)), {"mode": "linear"}, terms=32, tag="sizes")


def _recurrent() -> Iterator[Case]:
    steps, batch, data, hidden = 4, 3, 5, 6
    x = draw((steps, batch, data))
    for op, gates, states in (("RNN", 1, 1), ("GRU", 3, 1), ("LSTM", 4, 2)):
        for direction in ("forward", "reverse", "bidirectional"):
            count = 2 if direction == "bidirectional" else 1
            w = draw((count, gates * hidden, data), np.float32, 1) * np.float32(0.3)
            r = draw((count, gates * hidden, hidden), np.float32, 2) * np.float32(0.3)
            b = draw((count, 2 * gates * hidden), np.float32, 3)
            start = tuple(draw((count, batch, hidden), np.float32, 4 + i) for i in range(states))
            attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
            shared = {"outputs": 1 + states, "terms": 64, "scale": 4.0}
            yield Case(op, (x, w, r, b), attributes, tag=direction, **shared)
            lengths = np.array([4, 2, 3], np.int32)
            yield Case(op, (x, w, r, b, lengths, *start), attributes, tag=f"{direction}-lengths", **shared)
            if op == "GRU":
                before = {**attributes, "linear_before_reset": 1}
                yield Case(op, (x, w, r, b), before, tag=f"{direction}-before-reset", **shared)
            if op == "LSTM":
                peepholes = draw((count, 3 * hidden), np.float32, 7)
                yield Case(
                    op,
                    (x, w, r, b, None, *start, peepholes),
                    attributes,
                    tag=f"{direction}-peepholes",
                    **shared,
                )
    relu = {"hidden_size": hidden, "activations": ["Relu"], "clip": 1.0}
    w, r = draw((1, hidden, data), np.float32, 1), draw((1, hidden, hidden), np.float32, 2) * np.float32(0.1)
    yield Case("RNN", (x, w, r), relu, outputs=2, terms=64, scale=4.0, tag="relu-clip")


def _quantization() -> Iterator[Case]:
    x = draw((3, 4)) * np.float32(3)
    for kind in (np.int8, np.uint8, np.int16, np.uint16):
        zero = np.asarray(3, kind)
        yield Case("QuantizeLinear", (x, np.float32(0.1), zero), tag=np.dtype(kind).name)
        yield Case("DequantizeLinear", (draw((3, 4), kind), np.float32(0.1), zero))
    channels = np.float32([0.1, 0.2, 0.3, 0.4])
    yield Case("QuantizeLinear", (x, channels, np.int8([1, 2, 3, 4])), {"axis": 1}, tag="axis")
    yield Case("DequantizeLinear", (draw((3, 4), np.int8), channels[:3]), {"axis": 0}, tag="axis")
    yield Case("DequantizeLinear", (draw((3, 4), np.int32) * np.int32(10**8), np.float32(0.1)))
    blocks = np.abs(draw((3, 2))) + np.float32(0.1)
    yield Case(
        "DequantizeLinear", (draw((3, 4), np.int8), blocks), {"axis": 1, "block_size": 2}, tag="blocks"
    )
    yield Case("QuantizeLinear", (x, blocks), {"axis": 1, "block_size": 2, "output_dtype": 3}, tag="blocks")
    yield Case("DynamicQuantizeLinear", (x,), outputs=3)
    yield Case("MatMulInteger", (draw((3, 4), np.uint8), draw((4, 2), np.int8), np.uint8(3)))
    yield Case("ConvInteger", (draw((1, 2, 5, 5), np.uint8), draw((3, 2, 3, 3), np.uint8, 1), np.uint8(3)))


def cases() -> list[Case]:
    """Return the whole table."""
    parts = (
        _unary,
        _binary,
        _layers,
        _pooling,
        _reductions,
        _normalizations,
        _shapes,
        _resizing,
        _recurrent,
        _quantization,
    )
    return [case for part in parts for case in part()]
