"""What `manifest.json` says: everything needed to check, run and rebuild an artifact. No time stamps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Self

import pydantic

from ..backend import Port, Signature
from ..errors import ArtifactError

SCHEMA = (1, 0)
NAME = "manifest.json"
SIZE_LIMIT = 16 << 20
FILE_LIMIT = 10_000

# Plain relative names of up to three levels: no drive, no "..", nothing hidden, nothing to quote in a shell.
_FILE = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,119}"
FILE_PATTERN = re.compile(rf"{_FILE}(/{_FILE}){{0,2}}")

FileName = Annotated[str, pydantic.Field(pattern=rf"^{_FILE}(/{_FILE}){{0,2}}$", max_length=250)]
Digest = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(pydantic.BaseModel):
    # Keys of later minor versions are passed over; JSON's numbers may stand for floats.
    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")


class FileRecord(_Record):
    """One file: sha256 of its bytes and their number."""

    sha256: Digest
    bytes: int = pydantic.Field(ge=0)


class Quantization(_Record):
    """What integers of a port mean: `real = (q - zero_point) * scale`, per element of `axis`."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None


class PortRecord(_Record):
    """One input or output; sizes are ints, symbolic ones names."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: str = ""
    quantization: Quantization | None = None


class SignatureRecord(_Record):
    """Inputs and outputs in graph order."""

    inputs: tuple[PortRecord, ...]
    outputs: tuple[PortRecord, ...]

    @classmethod
    def of(cls, signature: Signature, quantization: Mapping[str, Quantization] | None = None) -> Self:
        """Record a signature; `quantization` by port name."""
        known = quantization or {}

        def record(port: Port) -> PortRecord:
            fields = {"name": port.name, "dtype": port.dtype, "shape": port.shape, "layout": port.layout}
            return PortRecord(**fields, quantization=known.get(port.name))  # type: ignore[arg-type]

        return cls(inputs=tuple(map(record, signature.inputs)), outputs=tuple(map(record, signature.outputs)))

    def signature(self) -> Signature:
        """Return the plain signature."""

        def port(record: PortRecord) -> Port:
            return Port(record.name, record.dtype, record.shape, record.layout)

        return Signature(tuple(map(port, self.inputs)), tuple(map(port, self.outputs)))


class TargetRecord(_Record):
    """The target compiled for, resolved, so that a rebuild does not depend on the file it came from."""

    name: str
    digest: Digest
    resolved: dict[str, pydantic.JsonValue]


class SourceRecord(_Record):
    """The model file: path as it was given (None: from memory) and hashes of it and its external data."""

    path: str | None
    sha256: Digest
    external: dict[str, Digest] = {}


class CalibrationRecord(_Record):
    """The calibration data: path as it was given (None: from memory), digest of the arrays, samples used."""

    path: str | None
    digest: str
    samples: int


class EngineRecord(_Record):
    """What runs the payload: backend, one of its engines, options for loading."""

    backend: str
    name: str
    options: dict[str, str | int | float | bool] = {}


class BoundRecord(_Record):
    """Stated distance: `|got - want| <= atol + rtol_of_max * max|want|`; zeros: bit-exact."""

    atol: float = pydantic.Field(ge=0)
    rtol_of_max: float = pydantic.Field(ge=0)
    how: str = ""


class ChoiceRecord(_Record):
    """Why this candidate: its name, the precision kept, and the reason. Timings are in `reports/`."""

    candidate: str
    precision: str
    why: str


class Manifest(_Record):
    """The whole manifest. `files` covers every file but the manifest itself."""

    schema_version: str = f"{SCHEMA[0]}.{SCHEMA[1]}"
    name: str
    signature: SignatureRecord
    target: TargetRecord
    engine: EngineRecord
    choice: ChoiceRecord
    pipeline: str
    recipe: dict[str, pydantic.JsonValue]
    source: SourceRecord
    calibration: CalibrationRecord | None = None
    seed: int
    bounds: dict[str, BoundRecord]
    tools: dict[str, str]
    files: dict[FileName, FileRecord] = pydantic.Field(default={}, max_length=FILE_LIMIT)

    def text(self) -> str:
        """Return the JSON text: keys in declared order, ends with a newline, the same for equal manifests."""
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"

    @classmethod
    def parse(cls, text: bytes, where: str) -> Self:
        """Read a manifest.

        Raises:
            ArtifactError: `artifact-version` with both versions, `artifact-manifest` with key and finding.
        """
        _check_version(text, where)
        try:
            return cls.model_validate_json(text)
        except pydantic.ValidationError as err:
            first = err.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise _damaged(where, f"{key}: {first['msg']}") from err


def _check_version(text: bytes, where: str) -> None:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise _damaged(where, f"not JSON: {err}") from err
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", version) if isinstance(version, str) else None
    if found is None:
        raise _damaged(where, f"schema_version is {version!r}, expected 'major.minor'")
    if int(found.group(1)) != SCHEMA[0]:
        raise ArtifactError(
            "artifact-version",
            f"{where} has schema version {version}, this pared reads {SCHEMA[0]}.x",
            "compile it again, or use the pared that wrote it",
        )


def _damaged(where: str, finding: str) -> ArtifactError:
    return ArtifactError(
        "artifact-manifest", f"{where} is not a valid manifest: {finding}", "compile it again"
    )
