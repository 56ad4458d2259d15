"""Finds out, by loading tiny models, which versions of the ONNX format onnxruntime takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OnnxSupport:
    """Newest versions each side knows; None when nothing at all loaded.

    Attributes:
        onnx_ir_version: what the onnx package writes by default.
        onnxruntime_ir_version: the newest that onnxruntime loads.
        written_ir_version: what pared writes at most: the smaller of the two.
        onnx_opset: newest default-domain opset of the onnx package.
        onnxruntime_opset: newest default-domain opset that onnxruntime loads.
    """

    onnx_ir_version: int
    onnxruntime_ir_version: int | None
    written_ir_version: int | None
    onnx_opset: int
    onnxruntime_opset: int | None


def probe_onnx_support() -> OnnxSupport:
    """Load models of one Identity node with falling versions until onnxruntime takes one."""
    import onnx

    newest_ir, newest_opset = int(onnx.IR_VERSION), int(onnx.defs.onnx_opset_version())
    ir_version = next((v for v in range(newest_ir, 2, -1) if _loads(v, 13)), None)
    opset = next((v for v in range(newest_opset, 6, -1) if _loads(ir_version or newest_ir, v)), None)
    written = min(newest_ir, ir_version) if ir_version is not None else None
    return OnnxSupport(newest_ir, ir_version, written, newest_opset, opset)


def _loads(ir_version: int, opset: int) -> bool:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal only: a refusal is the answer, not a problem
    try:
        ort.InferenceSession(_identity(ir_version, opset), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's exception classes differ between versions; any refusal counts
        return False
    return True


def _identity(ir_version: int, opset: int) -> bytes:
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    opsets = [helper.make_opsetid("", opset)]
    model: onnx.ModelProto = helper.make_model(graph, ir_version=ir_version, opset_imports=opsets)
    return bytes(model.SerializeToString())
