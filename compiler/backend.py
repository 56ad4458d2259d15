"""What a backend is: it says what it supports, lowers a region to a payload, and runs payloads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .records import Metric

if TYPE_CHECKING:
    import onnx_ir as ir

    from .pass_api import Context
    from .target import Target

# Attachment of a payload: what the backend chose by measuring, a JSON object of strings for rebuilds.
DECISIONS = "decisions.json"

# Option of a payload that runs a model in several regions: how many.
REGIONS = "regions"

Array = npt.NDArray[np.generic]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Port:
    """One input or output of a model.

    Attributes:
        name: the ONNX value name.
        dtype: ONNX spelling, e.g. `FLOAT`, `UINT8`.
        shape: fixed sizes as ints, symbolic ones by name.
        layout: `NCHW` and the like where the importer could tell, else empty.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: str = ""


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model, in graph order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether a backend takes a node on a target, and if not, why."""

    ok: bool
    reason: str = ""

    @classmethod
    def yes(cls) -> Verdict:
        """Return agreement."""
        return cls(True)

    @classmethod
    def no(cls, reason: str) -> Verdict:
        """Refuse with a reason that names the limit and the finding."""
        return cls(False, reason)


@dataclass(frozen=True)
class TimedChoice:
    """One choice that a backend took by measuring.

    Attributes:
        what: a kernel's layer, a region or the plan of the whole model.
        times: by option, measured side by side.
        chosen: the option taken.
    """

    what: str
    times: Mapping[str, Metric]
    chosen: str


@dataclass(frozen=True)
class RegionRecord:
    """A part of a model that runs as one piece.

    Attributes:
        engine: which one runs it.
        nodes: names, in graph order.
        reasons: why the preferred engine does not run it, each once; empty where it does.
    """

    engine: str
    nodes: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Payload:
    """What lowering produced.

    Attributes:
        engine: which engine of the backend runs it, e.g. `ort`.
        files: file name (starts with `model`) -> content. A `Path` is a file to be moved into the artifact.
        options: JSON-able engine options needed at load time.
        attachments: file name -> text, stored under `reports/` of the artifact (shortened names, say).
        timed: choices taken by measuring; a rebuild repeats them and measures none.
        regions: what runs where, in running order; empty for a model in one piece.
        notes: what the user should know.
    """

    engine: str
    files: Mapping[str, bytes | Path]
    options: Mapping[str, str | int | float | bool]
    attachments: Mapping[str, str] = field(default_factory=dict)
    timed: tuple[TimedChoice, ...] = ()
    regions: tuple[RegionRecord, ...] = ()
    notes: tuple[str, ...] = ()

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        content = self.files[name]
        return content if isinstance(content, bytes) else content.read_bytes()

    def move_to(self, folder: Path) -> dict[str, Path]:
        """Put every file into a folder, once, and return where each lies."""
        for name, content in self.files.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.move(content, folder / name)
        return {name: folder / name for name in self.files}


class Executable(Protocol):
    """Something that runs: `run({"name": array}) -> {"name": array}`."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order."""
        ...

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; raises `DataError` naming the input on a wrong name, shape or dtype."""
        ...

    def close(self) -> None:
        """Free what it holds; later calls of `run` raise."""
        ...


@runtime_checkable
class RunsBatches(Protocol):
    """An executable that is faster with several samples at once."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes it is made for, ascending; it takes any."""
        ...


@runtime_checkable
class RunsTensors(Protocol):
    """An executable with device memory, for tensors of other libraries."""

    def run_dlpack(
        self, inputs: Mapping[str, object], outputs: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        """Run once on tensors that speak DLPack; outputs stay on the device."""
        ...


class SampleJudge(Protocol):
    """Says how far outputs for one sample may be from the reference."""

    def judge(self, name: str, got: Array, want: Array, factor: float = 1.0) -> tuple[float, float]:
        """Return the difference of output `name` as a share of the sample's bound, and that bound.

        `factor` is how many engines may be off the reference.
        """
        ...


class BoundDeriver(Protocol):
    """Derives bounds for single samples of one model, from the reference alone."""

    def again(self, inputs: Arrays) -> SampleJudge:
        """Return the judge of one sample."""
        ...


class Backend(Protocol):
    """A family of engines for one kind of device."""

    name: ClassVar[str]

    def supports(self, node: ir.Node, target: Target) -> Verdict:
        """Say whether this backend runs `node` on `target`."""
        ...

    def engines(self, target: Target) -> Sequence[str]:
        """Return the engines usable on this machine for `target`, preferred first."""
        ...

    def lower(self, model: ir.Model, target: Target, engine: str, ctx: Context) -> Payload:
        """Lower a whole model (or a region made a model) for one engine; `model` is not edited."""
        ...

    def load(
        self, folder: Path, engine: str, options: Mapping[str, object], threads: int | None
    ) -> Executable:
        """Load payload files from `folder`; `threads` None lets the engine choose."""
        ...


@runtime_checkable
class Configurable(Protocol):
    """A backend whose engines have options."""

    option_names: ClassVar[frozenset[str]]


@runtime_checkable
class HasDevices(Protocol):
    """A backend whose `load` takes the option `device`: an index, or what the backend calls its devices."""

    devices: ClassVar[str]
