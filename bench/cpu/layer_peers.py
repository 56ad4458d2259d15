"""Single layers in onnxruntime and OpenVINO: one thread, inputs and outputs bound once, defaults else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...compiler.backend import Array

Run = Callable[[], object]


def float_product(rows: int, depth: int, outputs: int) -> onnx.ModelProto:
    """Return a float product [rows, depth] x [depth, outputs] with a bias."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    constants = {"w": _random((depth, outputs)) / np.float32(depth**0.5), "b": _random((outputs,))}
    return _model(nodes, constants, TensorProto.FLOAT, [rows, depth], [rows, outputs])


def float_convolution(channels: int, size: int, outputs: int | None = None) -> onnx.ModelProto:
    """Return a 3x3 float convolution, stride 1, `channels` to `outputs`, on `size` x `size` pixels."""
    outputs = channels if outputs is None else outputs
    weight = _random((outputs, channels, 3, 3)) / np.float32(3 * channels**0.5)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])]
    constants = {"w": weight, "b": _random((outputs,))}
    if outputs != channels:
        to = [1, outputs, size, size]
        return _model(nodes, constants, TensorProto.FLOAT, [1, channels, size, size], to)
    return _model(nodes, constants, TensorProto.FLOAT, [1, channels, size, size])


def int8_convolution(channels: int, size: int) -> onnx.ModelProto:
    """Return the same layer from uint8 to uint8, per-channel int8 weights; engines fuse it to integers."""
    weight = np.random.default_rng(0).integers(-127, 128, (channels, channels, 3, 3)).astype(np.int8)
    constants: Mapping[str, Array] = {
        "w": weight,
        "ws": np.full(channels, 0.01, np.float32),
        "b": np.zeros(channels, np.int32),
        "bs": np.full(channels, 0.0002, np.float32),
        "s": np.array(0.02, np.float32),
        "z": np.array(128, np.uint8),
        "ys": np.array(1.5, np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bf"], axis=0),
        helper.make_node("Conv", ["xf", "wf", "bf"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "ys", "z"], ["y"]),
    ]
    return _model(nodes, constants, TensorProto.UINT8, [1, channels, size, size])


def block_product(
    bits: int, block: int, size: int, seed: int, level: int = 4, rows: int = 1
) -> onnx.ModelProto:
    """Return onnxruntime's MatMulNBits `[rows, size] x [size, size]`; accuracy_level 4 rounds activations."""
    rng = np.random.default_rng(seed)
    blocks = size // block
    codes = rng.integers(0, 256, (size, blocks, block * bits // 8)).astype(np.uint8)
    scales = rng.random(size * blocks, np.float32) / np.float32(100)
    node = helper.make_node("MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft")
    attributes = {"K": size, "N": size, "bits": bits, "block_size": block, "accuracy_level": level}
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return _model([node], {"q": codes, "s": scales}, TensorProto.FLOAT, [rows, size])


def _random(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def _model(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, Array],
    dtype: int,
    shape: list[int],
    made: list[int] | None = None,
) -> onnx.ModelProto:
    shapes = {"x": shape, "y": made or shape}
    ports = [helper.make_tensor_value_info(name, dtype, sizes) for name, sizes in shapes.items()]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "layer", ports[:1], ports[1:], stored)
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def in_onnxruntime(model: onnx.ModelProto) -> Run:
    """Return a call of the layer in onnxruntime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    x = ort.OrtValue.ortvalue_from_numpy(_input(model))
    y = ort.OrtValue.ortvalue_from_numpy(_input(model, model.graph.output[0]))
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    return lambda: session.run_with_iobinding(binding)


def in_openvino(model: onnx.ModelProto) -> Run:
    """Return a call of the layer in OpenVINO, in float32 where it is float."""
    import openvino as ov

    core = ov.Core()
    config = {
        "INFERENCE_NUM_THREADS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", config)
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(_input(model)))
    return lambda: request.infer()


def _input(model: onnx.ModelProto, port: onnx.ValueInfoProto | None = None) -> Array:
    kind = (port or model.graph.input[0]).type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    values = _random(tuple(shape))
    if kind.elem_type == TensorProto.FLOAT:
        return values
    return np.clip(np.rint(values * 32 + 128), 0, 255).astype(np.uint8)
