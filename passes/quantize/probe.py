"""Sessions for calibration: the float model, its weights shared with onnxruntime instead of copied."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from ...compiler.ops import expand_custom_ops
from ...compiler.ort import IR_VERSION, OWN_DOMAINS, make_session, run_checked

if TYPE_CHECKING:
    import onnxruntime

Array: TypeAlias = npt.NDArray[np.generic]

# Below this, copies cost nothing worth saving; above, onnxruntime had better map the files by itself than
# have them written a second time.
_LEAST_SHARED, _MOST_SHARED = 16 << 20, 512 << 20
_LEAST_TENSOR = 4096

_TYPES = {ir.DataType.FLOAT: np.float32, ir.DataType.INT8: np.int8, ir.DataType.INT64: np.int64}


class Probe:
    """Runs a model for values inside it.

    The arrays of big weights stay where they are: onnxruntime uses them in place, and `Probe` keeps them
    alive. Layout optimisations, which would copy every weight, are off then.
    """

    def __init__(self, model: ir.Model, outputs: Sequence[str]) -> None:
        big = _big_weights(model)
        self._shared: list[onnxruntime.OrtValue] = []
        size = sum(array.nbytes for array in big.values())
        if not _LEAST_SHARED <= size <= _MOST_SHARED:
            self._session = make_session(model, extra_outputs=outputs)
        else:
            with _on_disk(model, big, outputs) as path:
                self._session = _shared_session(path, big, self._shared)
        self._arrays = big  # after the session, which is then destroyed first

    def run(self, inputs: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Return the values named; raises `DataError` when a node fails on the inputs."""
        return run_checked(self._session, inputs, list(outputs))


def _big_weights(model: ir.Model) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _TYPES and tensor.nbytes >= _LEAST_TENSOR:
            found[name] = np.ascontiguousarray(tensor.numpy())
    return found


@contextmanager
def _on_disk(model: ir.Model, big: dict[str, Array], outputs: Sequence[str]) -> Iterator[Path]:
    """Yield a model file whose big weights are in a file beside it: optimisers may want to read them."""
    slim = model.clone()
    with tempfile.TemporaryDirectory(prefix="pared-") as folder:
        offset = 0
        with (Path(folder) / "weights.bin").open("wb") as file:
            for name, array in big.items():
                value = slim.graph.initializers[name]
                file.write(array.data)
                dtype = ir.DataType.from_numpy(array.dtype)
                value.const_value = ir.ExternalTensor(
                    "weights.bin", offset, array.nbytes, dtype, shape=ir.Shape(array.shape), name=name
                )
                offset += array.nbytes
        if any(node.domain in OWN_DOMAINS for node in slim.graph.all_nodes()):
            expand_custom_ops(slim)
        proto: onnx.ModelProto = ir.to_proto(slim)
        proto.ir_version = min(proto.ir_version, IR_VERSION)
        present = {output.name for output in proto.graph.output}
        proto.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs) if name not in present
        )
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        yield path


def _shared_session(
    path: Path, big: dict[str, Array], kept: list[onnxruntime.OrtValue]
) -> onnxruntime.InferenceSession:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    for name, array in big.items():
        kept.append(ort.OrtValue.ortvalue_from_numpy(array))
        options.add_initializer(name, kept[-1])
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
