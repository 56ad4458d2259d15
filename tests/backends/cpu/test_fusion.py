import json

import numpy as np
import onnx_ir as ir
from onnx_text import parse

from pared.backends.cpu.backend import CpuBackend
from pared.backends.cpu.fusion import check_fusion
from pared.compiler.pass_api import Context
from pared.targets import load_target

IO = "(float[1, 4, 8, 8] x) => (float[1, 8, 6, 6] y)"
QUANTIZED = """
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear<axis = 0>(w, ws)
    bs = Mul(ws, s)
    bd = DequantizeLinear<axis = 0>(b, bs)
    c = Conv(xd, wd, bd)
    yq = QuantizeLinear(c, s, z)
    y = DequantizeLinear(yq, s, z)
"""
# No quantizer follows, so there is nothing to requantize to.
HALF = QUANTIZED.replace("c = Conv", "y = Conv").split("    yq =")[0]


def model(body: str) -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "w": rng.integers(-127, 128, (8, 4, 3, 3), dtype=np.int8),
        "ws": np.full(8, 0.01, np.float32),
        "b": rng.integers(-99, 99, 8, dtype=np.int32),
    }
    return parse(body, IO, weights)


def test_a_quantized_convolution_runs_on_integers():
    fusion = check_fusion(model(QUANTIZED))
    assert fusion.ops["QLinearConv"] == 1
    assert fusion.integer_layers == 1
    assert fusion.complete


def test_a_convolution_left_in_float_is_named():
    fusion = check_fusion(model(HALF))
    assert fusion.integer_layers == 0
    assert fusion.float_layers == ("y",)
    assert not fusion.complete


def test_a_float_model_has_no_quantized_layers():
    plain = parse("y = Relu(x)", "(float[2] x) => (float[2] y)")
    fusion = check_fusion(plain)
    assert (fusion.ops, fusion.integer_layers, fusion.complete) == ({"Relu": 1}, 0, True)


def test_the_model_is_left_alone():
    found = model(QUANTIZED)
    before = ir.to_proto(found).SerializeToString()
    check_fusion(found)
    assert ir.to_proto(found).SerializeToString() == before


def test_the_payload_says_what_fused():
    payload = CpuBackend().lower(model(QUANTIZED), load_target("cpu"), "ort", Context())
    record = json.loads(payload.attachments["fusion.json"])
    assert (record["integer_layers"], record["float_layers"], record["ops"]["QLinearConv"]) == (1, [], 1)


def test_a_float_payload_says_nothing_of_fusion():
    plain = parse("y = Relu(x)", "(float[2] x) => (float[2] y)")
    assert "fusion.json" not in CpuBackend().lower(plain, load_target("cpu"), "ort", Context()).attachments
