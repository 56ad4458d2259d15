"""What an artifact is measured beside: the float original in other runtimes, with their default options."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from ..compiler.backend import Arrays
from ..compiler.errors import MissingTool, ModelError, PipelineError, nearest
from ..compiler.openvino_import import no_openvino_telemetry

Runner = Callable[[Arrays], object]

# The artifact itself is the candidate of this kind.
OWN = "pared"


def _artifact(path: Path, threads: int) -> Runner:
    from ..compiler.runtime import load

    return load(path, threads).run


def _onnxruntime(path: Path, threads: int) -> Runner:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # its exception classes differ between versions; any refusal is the answer
        raise ModelError("peer-refused", f"onnxruntime does not load {path}: {_first_line(err)}") from err
    return lambda inputs: session.run(None, dict(inputs))


def _openvino(path: Path, threads: int) -> Runner:
    with no_openvino_telemetry():
        import openvino as ov

    core = ov.Core()
    config = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
    try:
        compiled = core.compile_model(core.read_model(str(path)), "CPU", config)
    except RuntimeError as err:
        raise ModelError("peer-refused", f"openvino does not load {path}: {_first_line(err)}") from err
    request = compiled.create_infer_request()
    return lambda inputs: request.infer(dict(inputs))


def _first_line(err: Exception) -> str:
    return str(err).strip().splitlines()[0][:300] if str(err).strip() else type(err).__name__


# Kind -> (module that must be importable, maker of a runner).
_KINDS: Mapping[str, tuple[str, Callable[[Path, int], Runner]]] = {
    OWN: ("pared.compiler.runtime", _artifact),
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "openvino": ("openvino", _openvino),
}
PEERS = tuple(kind for kind in _KINDS if kind != OWN)
DEFAULT_PEERS = ("onnxruntime",)


def check_peers(names: tuple[str, ...]) -> None:
    """Refuse unknown peers and those whose package is not installed.

    Raises:
        PipelineError: `unknown-peer`.
        MissingTool: `peer-missing`.
    """
    for name in names:
        if name not in PEERS:
            raise PipelineError("unknown-peer", f"unknown peer {name!r}", nearest(name, list(PEERS)))
        import_engine(name)


def import_engine(kind: str) -> None:
    """Import the library behind a candidate; raises `MissingTool` where it is not installed."""
    module = _KINDS[kind][0]
    try:
        importlib.import_module(module)
    except ImportError as err:
        raise MissingTool(
            "peer-missing", f"peer {kind} is not installed: {err}", f"pip install {module}"
        ) from err


def import_all(kind: str, path: Path) -> None:
    """Import everything that a candidate needs to load, the backend's modules of an artifact included."""
    import_engine(kind)
    if kind != OWN:
        return
    from ..compiler.artifact.read import read_manifest
    from ..compiler.registry import BACKENDS

    import_engine("onnxruntime")
    BACKENDS[read_manifest(path).engine.backend]()


def make_runner(kind: str, path: Path, threads: int) -> Runner:
    """Load a candidate and return what runs it once.

    Raises:
        ModelError: `peer-refused`.
        ArtifactError: the artifact is damaged.
    """
    return _KINDS[kind][1](path, threads)
