"""Loads an artifact and runs it: dict of arrays in, dict of arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from .artifact.read import Artifact, open_artifact, steadily
from .backend import Array, Executable, Signature
from .errors import ArtifactError, TargetError
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
        executable = self._executable
        if executable is None:
            raise ArtifactError("artifact-closed", f"{self.artifact.path} was closed", "load it again")
        return executable.run(inputs)

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
        executable = self._executable
        if executable is None:
            raise ArtifactError("artifact-closed", f"{self.artifact.path} was closed", "load it again")
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


def load(path: str | Path, threads: int | None = None) -> LoadedModel:
    """Open an artifact, check every hash, and make it ready to run.

    Args:
        path: the artifact's folder, or a zip of it.
        threads: per run; None takes every core this process may use.

    Raises:
        ArtifactError: missing, damaged, of an unknown version, or for a backend that this pared lacks.
        MissingTool: the engine is not installed; says how to install it.
        ValueError: `threads` below 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    place = Path(path)
    if place.is_dir():
        return steadily(place, lambda: _load(open_artifact(place), threads))
    return _load(open_artifact(place), threads)


def _load(artifact: Artifact, threads: int | None) -> LoadedModel:
    from .registry import BACKENDS

    engine = artifact.manifest.engine
    if engine.backend not in BACKENDS:
        raise ArtifactError(
            "artifact-backend",
            f"{artifact.path} is for backend {engine.backend!r}, this pared has {sorted(BACKENDS)}",
            "use the pared that wrote it",
        )
    executable = BACKENDS[engine.backend]().load(artifact.path, engine.name, engine.options, threads)
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
