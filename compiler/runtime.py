"""Loads an artifact and runs it: dict of arrays in, dict of arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from .artifact.read import Artifact, open_artifact, steadily
from .backend import Array, Executable, HasDevices, RunsBatches, RunsTensors, Signature
from .errors import ArtifactError, TargetError
from .metering import DeviceMeter, Metered
from .streams import EventStream, Streams, window_of


class LoadedModel:
    """A checked artifact, ready to run. `run` may be called from several threads at once.

    with load("out") as model:
        scores = model.run({"image": image})["scores"]
    """

    def __init__(self, artifact: Artifact, executable: Executable) -> None:
        self.artifact = artifact
        self._executable: Executable | None = executable
        self._signature = artifact.signature

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order, with dtypes, shapes and layouts."""
        return self._signature

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            DataError: a wrong name, dtype or shape, naming the input, the need and the finding.
            ArtifactError: `artifact-closed`, after `close`.
        """
        return self._opened().run(inputs)

    def run_dlpack(
        self, inputs: Mapping[str, object], outputs: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        """Run once on tensors of other libraries (torch, cupy) and leave the outputs on the device.

        Args:
            inputs: tensors that speak DLPack, or arrays; those on its device in C order are not copied.
            outputs: tensors to write to; what is not named here is returned in new ones.

        Returns:
            Every output by name, for `torch.from_dlpack` and the like; all of them are computed.

        Raises:
            TargetError: `dlpack-unsupported`, the model's backend has no device memory.
            DataError: a wrong name, dtype, shape, device or order in memory, naming the input.
        """
        executable = self._opened()
        if not isinstance(executable, RunsTensors):
            backend = self.artifact.manifest.engine.backend
            raise TargetError(
                "dlpack-unsupported",
                f"{self.artifact.path} runs on backend {backend!r}, which takes arrays",
                "call run; it takes what NumPy can read",
            )
        return executable.run_dlpack(inputs, outputs)

    @property
    def best_rows(self) -> int:
        """How many samples a run should have where there are many: 1 unless it was compiled for batches."""
        executable = self._opened()
        opened = any(port.shape and isinstance(port.shape[0], str) for port in self._signature.inputs)
        return executable.sizes[-1] if opened and isinstance(executable, RunsBatches) else 1

    def meter(self, rows: int = 1) -> DeviceMeter | None:
        """Return what measures runs of `rows` samples on a device; None for the host's engines."""
        executable = self._opened()
        return executable.meter(rows) if isinstance(executable, Metered) else None

    def _opened(self) -> Executable:
        executable = self._executable
        if executable is None:
            raise ArtifactError("artifact-closed", f"{self.artifact.path} was closed", "load it again")
        return executable

    def stream(
        self, window: str = "10ms", *, strict: bool = False, clock_bits: int | None = None
    ) -> EventStream:
        """Open a stream of events or frames, which keeps its state between calls.

        Args:
            window: events of so much time are one frame, `10ms`.
            strict: a bad event (out of order, out of range) is refused; else it is dropped and counted.
            clock_bits: after how many bits the sensor's time stamps start again at 0; None: never.

        Raises:
            TargetError: `events-unsupported`, the model's backend takes whole samples only.
            DataError: `event-window`.
        """
        executable = self._opened()
        if not isinstance(executable, Streams):
            backend = self.artifact.manifest.engine.backend
            raise TargetError(
                "events-unsupported",
                f"{self.artifact.path} runs on backend {backend!r}, which takes whole samples",
                "compile it with --target event-cpu",
            )
        return executable.stream(window_us=window_of(window), strict=strict, clock_bits=clock_bits)

    def close(self) -> None:
        """Free the engine; later calls do nothing."""
        executable, self._executable = self._executable, None
        if executable is not None:
            executable.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(path: str | Path, threads: int | None = None, *, device: int | str | None = None) -> LoadedModel:
    """Open an artifact, check every hash, and make it ready to run.

    Args:
        path: the artifact's folder, or a zip of it.
        threads: per run; None takes every core this process may use.
        device: index of the GPU that runs it, or `emulated`; None takes `PARED_CUDA_DEVICE`, else the first
            that fits. Only for artifacts of backends that have devices.

    Raises:
        ArtifactError: missing, damaged, of an unknown version, or for a backend that this pared lacks.
        MissingTool: the engine is not installed; says how to install it.
        TargetError: `device-unsupported`, and what the backend says of the device.
        ValueError: `threads` below 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    place = Path(path)
    if place.is_dir():
        return steadily(place, lambda: _load(open_artifact(place), threads, device))
    return _load(open_artifact(place), threads, device)


def _load(artifact: Artifact, threads: int | None, device: int | str | None) -> LoadedModel:
    from .registry import BACKENDS

    engine = artifact.manifest.engine
    if engine.backend not in BACKENDS:
        raise ArtifactError(
            "artifact-backend",
            f"{artifact.path} is for backend {engine.backend!r}, this pared has {sorted(BACKENDS)}",
            "use the pared that wrote it",
        )
    backend = BACKENDS[engine.backend]()
    options: dict[str, object] = dict(engine.options)
    if device is not None:
        if not isinstance(backend, HasDevices):
            raise TargetError(
                "device-unsupported",
                f"{artifact.path} runs on backend {engine.backend!r}, which has no devices to choose from",
                "leave device out",
            )
        options["device"] = device
    executable = backend.load(artifact.path, engine.name, options, threads)
    if _essence(executable.signature) != _essence(artifact.signature):
        executable.close()
        raise ArtifactError(
            "artifact-signature",
            f"{artifact.path}: payload and manifest disagree on inputs or outputs",
            "compile it again",
        )
    return LoadedModel(artifact, executable)


def _essence(signature: Signature) -> tuple[list[tuple[str, str, int]], list[str]]:
    """Return what every engine reports alike: inputs by name, dtype and rank, outputs by name."""
    inputs = [(port.name, port.dtype, len(port.shape)) for port in signature.inputs]
    return inputs, [port.name for port in signature.outputs]
