"""Small networks for the tests of pruning."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from pared.compiler.data import Samples, open_samples
from pared.compiler.ir.export import signature_of
from pared.compiler.ir.importer import import_model
from pared.compiler.manager import Manager
from pared.compiler.pass_api import Context, PassStats
from pared.compiler.pipeline import parse_pipeline
from pared.compiler.registry import MACROS, PASSES

Shape = tuple[int | str, ...]


def graph(
    body: str,
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Mapping[str, np.ndarray],
) -> ir.Model:
    """Import a model given as ONNX text of nodes, with float inputs and outputs."""
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]> g ({_ports(inputs)}) => ({_ports(outputs)}) {{ {body} }}'
    )
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in weights.items())
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type.lower()}{index}"
    return import_model(model).model


def _ports(ports: Mapping[str, Shape]) -> str:
    return ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in ports.items())


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mlp(seed: int = 0, sizes: tuple[int, ...] = (24, 32, 10)) -> ir.Model:
    """Gemm, Relu, Gemm, ...; nodes gemm0, gemm2, ...; weights w0, w1, ..."""
    pairs = enumerate(itertools.pairwise(sizes))
    weights = {f"w{i}": normal(seed + i, a, b) for i, (a, b) in pairs}
    weights |= {f"b{i}": normal(seed + 50 + i, b) for i, b in enumerate(sizes[1:])}
    lines, value = [], "x"
    for i in range(len(sizes) - 1):
        last = i == len(sizes) - 2
        lines.append(f"{'y' if last else f'h{i}'} = Gemm({value}, w{i}, b{i})")
        value = f"r{i}"
        lines += [] if last else [f"r{i} = Relu(h{i})"]
    return graph("\n".join(lines), {"x": ("n", sizes[0])}, {"y": ("n", sizes[-1])}, weights)


def convnet(seed: int = 0) -> ir.Model:
    """Convolution, depthwise convolution, grouped convolution, dense layer."""
    weights = {
        "w0": normal(seed, 8, 3, 3, 3),
        "w1": normal(seed + 1, 8, 1, 3, 3),
        "w2": normal(seed + 2, 8, 4, 1, 1),
        "w3": normal(seed + 3, 8, 5),
        "axes": np.array([2, 3]),
    }
    body = """
        a = Conv<pads=[1,1,1,1]>(x, w0)
        b = Relu(a)
        c = Conv<group=8>(b, w1)
        d = Conv<group=2>(c, w2)
        e = ReduceMean<keepdims=0>(d, axes)
        y = MatMul(e, w3)
    """
    return graph(body, {"x": ("n", 3, 8, 8)}, {"y": ("n", 5)}, weights)


def lstm(seed: int = 0, op: str = "LSTM", hidden: int = 6, directions: int = 1) -> ir.Model:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    weights = {
        "w": normal(seed, directions, gates * hidden, 5),
        "r": normal(seed + 1, directions, gates * hidden, hidden),
    }
    how = "bidirectional" if directions == 2 else "forward"
    body = f'_, y = {op}<hidden_size={hidden}, direction="{how}">(x, w, r)'
    return graph(body, {"x": (7, 1, 5)}, {"y": (directions, 1, hidden)}, weights)


def scan(seed: int = 0) -> ir.Model:
    """A recurrent net whose step is the body of a Scan: s' = tanh([x s] W)."""
    body = helper.make_graph(
        [
            helper.make_node("Concat", ["x_t", "s"], ["both"], axis=1, name="concat"),
            helper.make_node("MatMul", ["both", "w"], ["pre"], name="step"),
            helper.make_node("Tanh", ["pre"], ["s_next"], name="tanh"),
            helper.make_node("Identity", ["s_next"], ["out"], name="copy"),
        ],
        "body",
        [
            _info("s", 1, 6),
            _info("x_t", 1, 4),
        ],
        [
            _info("s_next", 1, 6),
            _info("out", 1, 6),
        ],
        [numpy_helper.from_array(normal(seed, 10, 6), "w")],
    )
    node = helper.make_node("Scan", ["s0", "x"], ["last", "ys"], num_scan_inputs=1, body=body, name="scan")
    main = helper.make_graph(
        [node],
        "main",
        [_info("x", 7, 1, 4)],
        [_info("last", 1, 6)],
        [numpy_helper.from_array(np.zeros((1, 6), np.float32), "s0")],
    )
    model = helper.make_model(main, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return import_model(model).model


def _info(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def given_data(model: ir.Model, **arrays: np.ndarray) -> Samples:
    return open_samples(arrays, signature_of(model), purpose="calibration")


def samples(model: ir.Model, count: int = 64, seed: int = 9, scale: np.ndarray | float = 1.0) -> Samples:
    """Correlated inputs with a mean."""
    port = model.graph.inputs[0]
    assert port.shape is not None
    shape = [1 if not isinstance(dim, int) else dim for dim in port.shape]
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    mix = rng.normal(size=(size, size)) / np.sqrt(size)
    x = (rng.normal(size=(count, size)) @ mix + 0.5) * scale
    whole = x.reshape(count, *shape) if shape[0] != 1 else x.reshape(count, *shape[1:])
    return given_data(model, **{str(port.name): whole.astype(np.float32)})


def run(model: ir.Model, text: str, data: Samples | None = None, exclude: tuple[str, ...] = ()) -> ir.Model:
    return ran(model, text, data, exclude)[0]


def ran(
    model: ir.Model, text: str, data: Samples | None = None, exclude: tuple[str, ...] = ()
) -> tuple[ir.Model, PassStats]:
    """Run a pipeline with every check; returns the model and the account of its last pass."""
    passes = parse_pipeline(text, PASSES, MACROS)
    result = Manager(verify_each=True).run(model, passes, Context(calibration=data, exclude=exclude))
    return result.model, result.records[-1].stats


def weight(model: ir.Model, name: str) -> np.ndarray:
    """An initializer of any graph, by name."""
    for g in [model.graph, *(b for n in model.graph for b in _bodies(n))]:
        if name in g.initializers:
            tensor = g.initializers[name].const_value
            assert tensor is not None
            return tensor.numpy()
    raise KeyError(name)


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
