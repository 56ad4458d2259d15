"""Writes a perceptron as an int8 `.tflite` file, so that LiteRT can be timed on what it has no file of.

Weights per output channel, symmetric; activations per tensor, ranges from one batch of samples: what
TensorFlow's converter makes. Float input and output as in the ONNX model, by a Quantize and a Dequantize.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Floats = npt.NDArray[np.float32]
Scale = tuple[Floats, int]


@dataclass
class _File:
    """A model under construction; indices are those of its tables."""

    operators: list[int] = field(default_factory=list)
    tensors: list[object] = field(default_factory=list)
    buffers: list[object] = field(default_factory=list)
    steps: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.buffers.append(_schema().BufferT())  # the first one is the empty one

    def tensor(
        self,
        shape: Sequence[int],
        kind: str,
        scale: Scale | None = None,
        data: npt.NDArray[np.generic] | None = None,
    ) -> int:
        """Add a tensor and return its index."""
        s = _schema()
        made = s.TensorT()
        made.shape, made.type, made.name = list(shape), getattr(s.TensorType, kind), f"t{len(self.tensors)}"
        made.buffer = 0
        if data is not None:
            buffer = s.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            made.buffer = len(self.buffers)
            self.buffers.append(buffer)
        if scale is not None:
            made.quantization = s.QuantizationParametersT()
            made.quantization.scale = [float(x) for x in scale[0]]
            made.quantization.zeroPoint = [scale[1]] * len(scale[0])
        self.tensors.append(made)
        return len(self.tensors) - 1

    def step(self, operator: str, inputs: Sequence[int], output: int, relu: bool = False) -> None:
        """Add an operator."""
        s = _schema()
        code = getattr(s.BuiltinOperator, operator)
        if code not in self.operators:
            self.operators.append(code)
        made = s.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self.operators.index(code), list(inputs), [output]
        if operator == "FULLY_CONNECTED":
            made.builtinOptionsType = s.BuiltinOptions.FullyConnectedOptions
            made.builtinOptions = s.FullyConnectedOptionsT()
            made.builtinOptions.fusedActivationFunction = int(relu)
        self.steps.append(made)

    def content(self, first: int, last: int) -> bytes:
        """Return the file."""
        s = _schema()
        graph, model = s.SubGraphT(), s.ModelT()
        graph.tensors, graph.operators = self.tensors, self.steps
        graph.inputs, graph.outputs = [first], [last]
        model.version, model.subgraphs, model.buffers = 3, [graph], self.buffers
        model.operatorCodes = [_code(code) for code in self.operators]
        builder = import_module("flatbuffers").Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _schema() -> ModuleType:
    """Return LiteRT's own tables; the package has no types."""
    return import_module("ai_edge_litert.schema_py_generated")


def _code(code: int) -> object:
    made = _schema().OperatorCodeT()
    # Kernels with scales per output channel are versions 5 and later of FULLY_CONNECTED.
    made.builtinCode, made.deprecatedBuiltinCode = code, code
    made.version = 5 if code == _schema().BuiltinOperator.FULLY_CONNECTED else 2
    return made


def mlp_tflite(model: onnx.ModelProto, samples: Floats) -> bytes:
    """Return the int8 form of a chain of Gemm (transB = 1) and Relu.

    Args:
        model: float, with float input and output.
        samples: [n, inputs], for the ranges of the activations.
    """
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    gemms = [node for node in model.graph.node if node.op_type == "Gemm"]
    file, real, scale = _File(), samples, _range(samples)
    first = file.tensor((1, samples.shape[1]), "FLOAT32")
    value = file.tensor((1, samples.shape[1]), "INT8", scale)
    file.step("QUANTIZE", [first], value)
    for node in gemms:
        weight, bias = arrays[node.input[1]], arrays[node.input[2]]
        relu = node is not gemms[-1]
        real = real @ weight.T + bias
        real = np.maximum(real, 0) if relu else real
        steps = np.abs(weight).max(1) / np.float32(127)
        whole = np.rint(weight / steps[:, None]).astype(np.int8)
        unit = (steps * scale[0]).astype(np.float32)
        operands = [
            value,
            file.tensor(weight.shape, "INT8", (steps, 0), whole),
            file.tensor(bias.shape, "INT32", (unit, 0), np.rint(bias / unit).astype(np.int32)),
        ]
        scale = _range(real)
        value = file.tensor((1, len(bias)), "INT8", scale)
        file.step("FULLY_CONNECTED", operands, value, relu)
    last = file.tensor((1, real.shape[1]), "FLOAT32")
    file.step("DEQUANTIZE", [value], last)
    return file.content(first, last)


def _range(real: Floats) -> Scale:
    low, high = min(float(real.min()), 0.0), max(float(real.max()), 0.0)
    step = max(high - low, 1e-6) / 255
    return np.array([step], np.float32), int(np.clip(round(-128 - low / step), -128, 127))
