"""Engine `mixed`, run time: calls the regions in order. Imports neither TVM nor onnx nor the IR."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ....compiler.backend import Array, Arrays, Executable, Port, Signature
from ....compiler.errors import ArtifactError
from ....compiler.inputs import InputChecker
from ....compiler.ort_run import OrtExecutable
from ..native.engine import NativeExecutable, check_cpu, usable_cores

PLAN = "model_plan.json"


@dataclass(frozen=True)
class Part:
    """One region: its file in the artifact, and the values that it reads and makes.

    Attributes:
        engine: `native` or `ort`.
        batched: a native region that computes one sample of a batch.
    """

    engine: str
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batched: bool = False


class MixedExecutable:
    """Regions in running order; `run` may be called from several threads at once.

    Values between regions are arrays in ONNX layout; each lives until its last reader has run.
    """

    def __init__(self, signature: Signature, parts: Sequence[tuple[Part, Executable]]) -> None:
        self._signature = signature
        self._check = InputChecker(signature)
        self._outputs = [port.name for port in signature.outputs]
        self._parts: list[tuple[Executable, tuple[str, ...], tuple[str, ...]]] | None = [
            (executable, part.inputs, dead)
            for (part, executable), dead in zip(parts, self._dead([p for p, _ in parts]), strict=True)
        ]

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, dtype or shape."""
        parts = self._parts
        if parts is None:
            raise ArtifactError("artifact-closed", "the model was closed", "load it again")
        values = dict(self._check(inputs))
        for executable, needed, dead in parts:
            values.update(executable.run({name: values[name] for name in needed}))
            for name in dead:
                del values[name]
        return {name: values[name] for name in self._outputs}

    def close(self) -> None:
        """Free the regions."""
        parts, self._parts = self._parts or [], None
        for executable, _, _ in parts:
            executable.close()

    def _dead(self, parts: Sequence[Part]) -> list[tuple[str, ...]]:
        """Return which values nobody reads after each part."""
        dead, needed = [], set(self._outputs)
        for part in reversed(parts):
            touched = {*part.inputs, *part.outputs}
            dead.append(tuple(sorted(touched - needed)))
            needed |= touched
        return dead[::-1]


def load(folder: Path, options: Mapping[str, object], threads: int | None) -> MixedExecutable:
    """Load the payload from an artifact's folder.

    Args:
        folder: of the artifact.
        options: of the payload; `isa` lists what the native regions use, checked before any of it is mapped.
        threads: per run; None takes every core this process may use.

    Raises:
        ArtifactError: no payload, or it is not one of ours.
        TargetError: `cpu-feature-missing`, naming what this CPU lacks.
    """
    signature, parts = read_plan(_file(folder, PLAN))
    check_cpu(folder, options)
    with ExitStack() as stack:
        loaded = []
        for part in parts:
            executable = load_part(part, _file(folder, part.file), threads)
            stack.callback(executable.close)
            loaded.append((part, executable))
        stack.pop_all()
    return MixedExecutable(signature, loaded)


def load_part(part: Part, path: Path, threads: int | None) -> Executable:
    """Load one region."""
    if part.engine == "native":
        return NativeExecutable(path, threads if threads is not None else usable_cores(), part.batched)
    return OrtExecutable(path, threads)


def plan_text(signature: Signature, parts: Sequence[Part]) -> str:
    """Return the file that says what runs in which order."""
    ports = {
        kind: [[p.name, p.dtype, [*p.shape], p.layout] for p in found]
        for kind, found in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }
    rows = [[p.engine, p.file, [*p.inputs], [*p.outputs], p.batched] for p in parts]
    return json.dumps({**ports, "parts": rows}, indent=1) + "\n"


def read_plan(path: Path) -> tuple[Signature, list[Part]]:
    """Read what `plan_text` wrote.

    Raises:
        ArtifactError: it is something else.
    """
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        ports = [
            tuple(Port(name, dtype, tuple(shape), layout) for name, dtype, shape, layout in plan[kind])
            for kind in ("inputs", "outputs")
        ]
        parts = [
            Part(engine, file, tuple(inputs), tuple(outputs), batched)
            for engine, file, inputs, outputs, batched in plan["parts"]
        ]
    except (ValueError, KeyError, TypeError) as err:
        raise ArtifactError("artifact-plan", f"{path} is no plan of regions", "compile it again") from err
    return Signature(ports[0], ports[1]), parts


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ArtifactError("artifact-file-missing", f"{folder} has no {name}", "compile it again")
    return path
