"""One clean line out of what OpenVINO 2026.4 throws; the texts were taken from it."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from pared.backends.cpu import openvino_engine
from pared.backends.cpu.openvino_reason import reason_of
from pared.compiler.errors import UnsupportedOp

_HEAD = """Exception from src/inference/src/cpp/core.cpp:132:
Exception from src/inference/src/dev/plugin.cpp:59:
"""
_CONVERSION = """Check 'false' failed at src/frontends/common_translators/src/unconverted_ops_report.cpp:151:
FrontEnd API failed with OpConversionFailure:
Model wasn't fully converted."""

_RANK = f"""{_HEAD}{_CONVERSION} Failed operations detailed log:
-- Conv-15 with a message:
While validating ONNX node '<Node(Conv): za>': Check 'data.get_partial_shape().rank().is_static()' failed at \
src/frontends/onnx/frontend/src/op/conv.cpp:38:
FrontEnd API failed with GeneralFailure:
The input data tensor's rank has to be known (static)

-- ReduceMean-15 with a message:
Unsupported input type dynamic

Summary:
-- Conversion is failed for: Conv-15, ReduceMean-15


"""
_TYPE = f"""{_HEAD}{_CONVERSION} Failed operations detailed log:
-- ReduceMean-15 with a message:
Check '(supported_types.find(ov_input.get_element_type()) != supported_types.end())' failed at \
src/frontends/onnx/frontend/src/op/reduce.cpp:134:
While validating ONNX node '<Node(ReduceMean): /model/ReduceMean_output_0>':
Unsupported input type dynamic

"""
_RULE = f"""{_HEAD}{_CONVERSION}
Summary:
-- No conversion rule found for operations: StringNormalizer-17, finn.custom_op.general.MultiThreshold


"""


@pytest.mark.parametrize(
    ("thrown", "reason"),
    [
        (_RANK, "Conv: The input data tensor's rank has to be known (static)"),
        (_TYPE, "ReduceMean: Unsupported input type dynamic"),
        (_RULE, "it has no rule for StringNormalizer, finn.custom_op.general.MultiThreshold"),
        (f"{_HEAD}bad shape", "bad shape"),
        (_HEAD, "it gives no reason"),
        ("plain words", "plain words"),
    ],
)
def test_the_sentence_is_kept_and_the_places_are_not(thrown: str, reason: str) -> None:
    assert reason_of(RuntimeError(thrown)) == reason


def test_a_long_reason_ends_between_words() -> None:
    said = reason_of(RuntimeError("word " * 100))
    assert said.endswith("word ...")
    assert len(said) <= 164


@pytest.mark.skipif(not openvino_engine.installed(), reason="openvino is not installed")
@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
def test_a_model_that_openvino_refuses_is_refused_in_one_line(tmp_path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("StringNormalizer", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.STRING, [2])],
        [value("y", TensorProto.STRING, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedOp) as caught:
        openvino_engine._compile(tmp_path / "model.onnx", 1)
    assert caught.value.message == "OpenVINO cannot run model.onnx: it has no rule for StringNormalizer"
