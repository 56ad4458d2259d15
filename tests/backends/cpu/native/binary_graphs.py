"""Small QONNX graphs that mix bits, bytes and floats; constants are random, scales powers of two or not."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pared.compiler.ir.importer import import_model

QONNX = "qonnx.custom_op.general"


class Graph:
    """A graph under construction; every method adds nodes and returns a value's name."""

    def __init__(self, seed, shape):
        self.rng, self.shape = np.random.default_rng(seed), shape
        self.nodes, self.constants = [], []

    def constant(self, array, dtype=np.float32):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def node(self, op, *inputs, domain="", **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, domain=domain, **attributes))
        return name

    def quant(self, x, scale, bits, signed=1, narrow=0):
        parameters = [self.constant(value) for value in (scale, 0.0, bits)]
        flags = {"signed": signed, "narrow": narrow, "rounding_mode": "ROUND"}
        return self.node("Quant", x, *parameters, domain=QONNX, **flags)

    def code(self, x, code, scale=0.5):
        """Quantize to a code."""
        if code == "binary":
            return self.node("BipolarQuant", x, self.constant(scale), domain=QONNX)
        if code == "sign":
            return self.node("Sign", x)
        flags = {"ternary": (1, 1), "int2": (1, 0), "uint2": (0, 0)}[code]
        return self.quant(x, scale, 2.0, *flags)

    def signs(self, shape, axis):
        """Add binary weights with a scale per output channel."""
        sizes = [1] * len(shape)
        sizes[axis] = shape[axis]
        scale = self.rng.uniform(0.1, 0.9, sizes).astype(np.float32)
        weight = self.constant(self.rng.standard_normal(shape))
        return self.node("BipolarQuant", weight, self.constant(scale), domain=QONNX)

    def conv(self, x, inputs, outputs, kernel=3, weight=None, **attributes):
        weight = weight or self.signs((outputs, inputs, kernel, kernel), 0)
        pads = {"pads": [kernel // 2] * 4, **attributes}
        return self.node("Conv", x, weight, **pads)

    def normalize(self, x, channels):
        rng = self.rng
        arrays = (
            rng.standard_normal(channels), rng.standard_normal(channels), rng.standard_normal(channels),
            rng.uniform(0.5, 4, channels),
        )  # fmt: skip
        return self.node("BatchNormalization", x, *[self.constant(array) for array in arrays])

    def model(self, y, shape):
        """Return the imported model from x to `y`."""
        ports = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)
            for name, sizes in (("x", self.shape), (y, shape))
        ]
        graph = helper.make_graph(self.nodes, "g", ports[:1], ports[1:], self.constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(QONNX, 1)]
        return import_model(helper.make_model(graph, opset_imports=opsets, ir_version=10)).model

    def input(self):
        """Return an input with ties: many values are multiples of 1/4."""
        x = self.rng.standard_normal(self.shape).astype(np.float32) * 2
        return np.where(self.rng.random(self.shape) < 0.3, np.rint(x * 4) / 4, x).astype(np.float32)
