"""Engine `openvino`, an extra: the `model.onnx` of engine `ort`, compiled by OpenVINO at load time."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ...compiler.backend import Array, Arrays, Payload, Signature
from ...compiler.errors import DataError, MissingTool, UnsupportedOp
from ...compiler.inputs import InputChecker
from ...compiler.openvino_import import no_openvino_telemetry
from ...compiler.ort_run import payload_path
from .openvino_reason import reason_of

if TYPE_CHECKING:
    import onnx_ir as ir
    import openvino


def installed() -> bool:
    """Tell whether OpenVINO is here, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def lower(model: ir.Model) -> Payload:
    """Write the payload of engine `ort`; OpenVINO reads the same file.

    Raises:
        MissingTool: OpenVINO is not installed.
    """
    _require()
    from . import ort_engine

    return ort_engine.lower(model, engine="openvino")


def load(folder: Path, threads: int | None) -> OpenVinoExecutable:
    """Load the payload from an artifact's folder.

    Raises:
        MissingTool: OpenVINO is not installed.
        UnsupportedOp: OpenVINO cannot run the model.
    """
    _require()
    return OpenVinoExecutable(payload_path(folder), threads)


class OpenVinoExecutable:
    """A model compiled by OpenVINO; each thread that calls `run` gets its own request."""

    def __init__(self, path: Path, threads: int | None) -> None:
        self._signature = _read_signature(path)
        self._compiled = _compile(path, threads)
        self._check = InputChecker(self._signature)
        self._names = [port.name for port in self._signature.outputs]
        self._local = threading.local()

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, dtype or shape."""
        arrays = self._check(inputs)
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        try:
            results = self._local.request.infer(arrays, share_inputs=True)
        except RuntimeError as err:
            raise DataError(
                "run-failed",
                f"OpenVINO could not run the model on these inputs: {reason_of(err)}",
                "check their values",
            ) from err
        return {name: results[name] for name in self._names}

    def close(self) -> None:
        """Free the model."""
        del self._local, self._compiled


def _require() -> None:
    if not installed():
        raise MissingTool(
            "openvino-missing", "engine openvino needs OpenVINO", "pip install 'pared[openvino]'"
        )


def _compile(path: Path, threads: int | None) -> openvino.CompiledModel:
    with no_openvino_telemetry():
        import openvino

    # OpenVINO would choose bfloat16 where the CPU has it; float32 is what the model says.
    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        return openvino.Core().compile_model(str(path), "CPU", config)
    except RuntimeError as err:
        raise UnsupportedOp(
            "openvino-unsupported", f"OpenVINO cannot run {path.name}: {reason_of(err)}", "use engine ort"
        ) from err


def _read_signature(path: Path) -> Signature:
    import onnx
    import onnx_ir as ir

    from ...compiler.ir.export import signature_of

    return signature_of(ir.from_proto(onnx.load(path, load_external_data=False)))
