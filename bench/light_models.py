"""The nine real architectures that the onnx package carries, with their constant weights made random.

The files under `onnx/backend/test/data/light` keep the graph of a published model and fill every weight with
one constant. Here weights follow He initialisation (arXiv 1502.01852) and normalization statistics spread
around neutral, so that activations keep their scale through the depth and differ from channel to channel.
The layer before a softmax is scaled so that probabilities differ without being zeros and ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

NAMES = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50",
    "shufflenet", "squeezenet", "vgg19", "zfnet512",
)  # fmt: skip


def light_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """Return the architecture `name` with random weights; the same seed gives the same weights."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    model = onnx.load(folder / f"light_{name}.onnx")
    rng = np.random.default_rng(seed)
    sizes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    roles = _roles(model)
    filled = [n for n in model.graph.node if n.op_type == "ConstantOfShape" and n.input[0] in sizes]
    for node in filled:
        shape = tuple(int(size) for size in sizes[node.input[0]])
        array = _draw(roles.get(node.output[0], "bias"), shape, rng)
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        model.graph.node.remove(node)
    _drop_unused(model)
    model.ir_version = max(model.ir_version, 8)  # before version 4 every initializer must be an input too
    _settle_logits(model, rng)
    return model


def _roles(model: onnx.ModelProto) -> dict[str, str]:
    """Return parameter name -> weight, bias, scale or variance, by how it is used."""
    roles: dict[str, str] = {}
    views = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Unsqueeze"}
    for node in model.graph.node:
        inputs = [views.get(name, name) for name in node.input]
        if node.op_type in ("Conv", "Gemm"):
            roles[inputs[1]] = "weight"
        elif node.op_type == "BatchNormalization":
            roles |= {inputs[1]: "scale", inputs[4]: "variance"}
        elif node.op_type == "Mul":
            roles |= dict.fromkeys(inputs, "scale")
    return roles


def _draw(role: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if role == "weight":
        fan_in = int(np.prod(shape[1:]))
        return np.asarray(rng.standard_normal(shape) * np.sqrt(2 / fan_in), np.float32)
    if role in ("scale", "variance"):
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    return (0.05 * rng.standard_normal(shape)).astype(np.float32)


def _drop_unused(model: onnx.ModelProto) -> None:
    """Remove shape initializers that nothing reads, and graph inputs that repeat an initializer."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [t for t in model.graph.initializer if t.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    names = {t.name for t in kept}
    inputs = [i for i in model.graph.input if i.name not in names and i.name in used]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _settle_logits(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Scale the layer that feeds the softmax, in place, to logits with a standard deviation of 2."""
    makers = {name: node for node in model.graph.node for name in node.output}
    softmax = next((node for node in model.graph.node if node.op_type == "Softmax"), None)
    layer = makers.get(softmax.input[0]) if softmax is not None else None
    while layer is not None and layer.op_type not in ("Gemm", "Conv"):
        layer = makers.get(layer.input[0])
    if layer is None:
        return
    deviation = _deviation(model, layer.output[0], rng)
    for tensor in model.graph.initializer:
        if tensor.name in layer.input[1:]:
            scaled = numpy_helper.to_array(tensor) * np.float32(2 / deviation)
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))


def _deviation(model: onnx.ModelProto, value: str, rng: np.random.Generator) -> float:
    """Return the standard deviation of a value for one random image."""
    import onnxruntime as ort

    model.graph.output.append(onnx.ValueInfoProto(name=value))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    del model.graph.output[-1]
    image = rng.standard_normal((1, 3, 224, 224)).astype(np.float32)
    (found,) = session.run([value], {session.get_inputs()[0].name: image})
    return float(np.std(found))
