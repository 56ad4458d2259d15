"""A target is data: what a device offers and limits, read from a TOML file into frozen records."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import pydantic

from .backend import Verdict
from .cuda import runs_on
from .device import Device, part_of
from .errors import TargetError, nearest

if TYPE_CHECKING:
    import onnx_ir as ir

    from .machine import Machine
    from .records import Json

_SIZE_LIMIT = 1 << 20

Section = TypeVar("Section", bound="_Section")


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Isa(_Section):
    """The instruction set.

    Attributes:
        arch: as `uname -m` says it; `host` is the machine that compiles, `any` promises nothing.
        features: what the kernels may use, spelt as in /proc/cpuinfo.
    """

    arch: str = "any"
    features: tuple[str, ...] = ()


class Memory(_Section):
    """Bytes per tier; None where nothing limits it."""

    weights_bytes: int | None = pydantic.Field(default=None, gt=0)
    activations_bytes: int | None = pydantic.Field(default=None, gt=0)


class Numerics(_Section):
    """How integer arithmetic behaves.

    Attributes:
        accumulator_bits: of a dot product.
        pair_sum_bits: of the sum of two neighbouring uint8 x int8 products on the way to the accumulator.
            16 means that it saturates (x86 `vpmaddubsw`), so that weights must keep to 7 bits to be exact.
        rounding: of requantization.
        overflow: at the ends of a type.
        halves: half floats that kernels read and write, beside float32.
    """

    accumulator_bits: int = pydantic.Field(default=32, ge=8, le=64)
    pair_sum_bits: Literal[16, 32] = 32
    rounding: Literal["half-even", "half-up", "truncate"] = "half-even"
    overflow: Literal["saturate", "wrap"] = "saturate"
    halves: tuple[Literal["float16", "bfloat16"], ...] = ()

    @property
    def exact_weight_bits(self) -> int:
        """Return the widest weights whose uint8 dot products cannot saturate: 2 * 255 * 64 < 2**15."""
        return 7 if self.pair_sum_bits == 16 else 8


class OpLimit(_Section):
    """One operator that the target takes. A target without any such entry does not limit operators.

    Attributes:
        op: operator type, `*` for all.
        domain: of the operator, "" is standard ONNX.
        dtypes: ONNX spellings that inputs may have; empty allows all.
        max_rank: of the inputs, None for any.
        attributes: attribute name -> values allowed; an attribute that a node leaves out passes.
    """

    op: str
    domain: str = ""
    dtypes: tuple[str, ...] = ()
    max_rank: int | None = pydantic.Field(default=None, ge=0)
    attributes: dict[str, tuple[int | str | tuple[int, ...], ...]] = {}


class Resources(_Section):
    """Counts of what a spatial device has."""

    dsp: int | None = pydantic.Field(default=None, ge=0)
    lut: int | None = pydantic.Field(default=None, ge=0)
    ff: int | None = pydantic.Field(default=None, ge=0)
    bram: int | None = pydantic.Field(default=None, ge=0)
    cores: int | None = pydantic.Field(default=None, ge=0)
    axons: int | None = pydantic.Field(default=None, ge=0)
    synapses: int | None = pydantic.Field(default=None, ge=0)


class EnergyConstant(_Section):
    """Energy of one event, for estimates.

    Attributes:
        picojoules: per event.
        node_nm: of the process it was taken on.
        source: where the figure is from.
        includes: what it covers.
    """

    picojoules: float = pydantic.Field(gt=0)
    node_nm: int = pydantic.Field(gt=0)
    source: str = pydantic.Field(min_length=1)
    includes: str = ""


class Link(_Section):
    """How the device is reached: `local` runs in this process, `none` cannot be reached from here."""

    kind: Literal["local", "none"] = "none"


class Target(_Section):
    """A device to compile for.

    Attributes:
        name: file stem of the TOML file.
        backend: which backend lowers for it.
        engines: of that backend, preferred first.
        options: of these engines, where they have any; `--engine-option` goes over them.
        energy: what is done -> its energy.
        energy_missing: what is done -> why no energy stands for it.
        device: cores and layers of a neuromorphic device.
    """

    name: str = pydantic.Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str = pydantic.Field(min_length=1)
    backend: str
    engines: tuple[str, ...] = pydantic.Field(min_length=1)
    options: dict[str, str | int | float | bool] = {}
    isa: Isa = Isa()
    memory: Memory = Memory()
    numerics: Numerics = Numerics()
    ops: tuple[OpLimit, ...] = ()
    resources: Resources = Resources()
    energy: dict[str, EnergyConstant] = {}
    energy_missing: dict[str, str] = {}
    device: Device | None = None
    link: Link = Link()

    def to_json(self) -> dict[str, Json]:
        """Return the resolved target as JSON values; `from_json` reads them back.

        Defaults are left out, so that a key added to later versions leaves digests of old targets alone.
        """
        data: dict[str, Json] = self.model_dump(mode="json", exclude_defaults=True)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """Read what `to_json` gave; raises `TargetError` like a file."""
        return cls.validated(data, "stored target")

    @property
    def digest(self) -> str:
        """Return the sha256 of everything in the target."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def allows(self, node: ir.Node) -> Verdict:
        """Say whether the target's own limits take the node; backends add what they have kernels for."""
        if not self.ops:
            return Verdict.yes()
        entries = [
            limit for limit in self.ops if limit.op in ("*", node.op_type) and limit.domain == node.domain
        ]
        if not entries:
            taken = sorted({limit.op for limit in self.ops})
            return Verdict.no(f"target {self.name} has no {node.op_type}; it has {', '.join(taken)}")
        reasons = [_refusal(limit, node) for limit in entries]
        return Verdict.yes() if None in reasons else Verdict.no(f"target {self.name}: {reasons[0]}")

    def is_for(self, machine: Machine) -> bool:
        """Tell whether its code is for a processor of `machine`: elsewhere it is a simulation that runs."""
        arch = self.isa.arch
        return arch in ("host", "any", machine.arch) or any(runs_on(arch, chip) for chip in machine.gpus)

    def runs_here(self, machine: Machine) -> Verdict:
        """Say whether code for this target runs, and so can be measured, on `machine`."""
        if self.link.kind != "local":
            return Verdict.no(
                f"target {self.name} is not reachable from here (link.kind = {self.link.kind!r})"
            )
        if not self.is_for(machine):
            return Verdict.no(f"target {self.name} is {self.isa.arch}, this machine is {machine.name}")
        missing = [name for name in self.isa.features if name not in machine.cpu_features]
        if missing:
            return Verdict.no(f"target {self.name} needs {', '.join(missing)}, which this CPU lacks")
        return Verdict.yes()

    @classmethod
    def validated(cls, data: Mapping[str, object], where: str) -> Self:
        """Build a target, or raise `TargetError` that names `where`, the key and the finding."""
        try:
            # From TOML and JSON alike: arrays become tuples, nothing else is converted.
            return cls.model_validate_json(json.dumps(data))
        except (pydantic.ValidationError, TypeError) as err:
            raise _file_error(cls, where, err) from err


def read_target(path: Path, parents: Mapping[str, Path]) -> Target:
    """Read a target file with what it `extends`: one level, tables override the parent's key by key.

    Args:
        path: a TOML file.
        parents: built-in targets by name; `extends` names one of them, or a file beside `path`.

    Raises:
        TargetError: unreadable, not TOML, unknown or missing key, wrong value, extends more than one level.
    """
    data = _read_toml(path)
    parent = data.pop("extends", None)
    if parent is None:
        return Target.validated(data, str(path))
    base = _read_toml(_parent_path(path, parent, parents))
    if "extends" in base:
        raise TargetError(
            "target-extends",
            f"{path}: extends {parent!r}, which itself extends {base['extends']!r}",
            "extend one level",
        )
    return Target.validated(_merged(base, data), str(path))


def _parent_path(path: Path, parent: object, parents: Mapping[str, Path]) -> Path:
    if isinstance(parent, str) and parent in parents:
        return parents[parent]
    if isinstance(parent, str) and parent.endswith(".toml") and (path.parent / parent).is_file():
        return path.parent / parent
    raise TargetError(
        "target-extends",
        f"{path}: extends {parent!r}, which is no known target",
        nearest(str(parent), list(parents)),
    )


def _read_toml(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            text = file.read(_SIZE_LIMIT + 1)
        if len(text) > _SIZE_LIMIT:
            raise TargetError(
                "target-file", f"{path} is larger than {_SIZE_LIMIT} bytes", "a target is a short TOML file"
            )
        return tomllib.loads(text.decode())
    except OSError as err:
        raise TargetError(
            "target-file", f"cannot read target file {path}: {err.strerror}", "check the path"
        ) from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise TargetError("target-file", f"{path} is not TOML: {err}", "fix the line it names") from err


def _merged(base: Mapping[str, object], top: Mapping[str, object]) -> dict[str, object]:
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        result[key] = {**below, **value} if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _file_error(cls: type[_Section], where: str, err: Exception) -> TargetError:
    if not isinstance(err, pydantic.ValidationError):
        return TargetError(
            "target-file", f"{where}: {err}", "use strings, numbers, booleans, arrays and tables"
        )
    first = err.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        valid = _keys_at(cls, first["loc"][:-1])
        return TargetError(
            "target-key", f"{where}: unknown key {key!r}", nearest(str(first["loc"][-1]), valid)
        )
    if first["type"] == "missing":
        return TargetError("target-key", f"{where}: key {key!r} is missing", "add it")
    return TargetError(
        "target-value", f"{where}: {key!r}: {first['msg']}, got {first['input']!r}", "correct the value"
    )


def _keys_at(cls: type[_Section], place: Sequence[int | str]) -> list[str]:
    """Return the keys that a section takes, following a place such as `("ops", 0)`."""
    if len(place) > 1 and place[0] == "device":
        return sorted(part_of(place[1:]).model_fields)
    sections: dict[str, type[pydantic.BaseModel]] = {
        "isa": Isa, "memory": Memory, "numerics": Numerics, "ops": OpLimit,
        "resources": Resources, "energy": EnergyConstant, "link": Link, "device": Device,
    }  # fmt: skip
    found = sections.get(str(place[0]), cls) if place else cls
    return sorted(found.model_fields)


def _refusal(limit: OpLimit, node: ir.Node) -> str | None:
    for value in node.inputs:
        if value is None:
            continue
        if limit.dtypes and value.dtype is not None and value.dtype.name not in limit.dtypes:
            return f"{node.op_type} takes {', '.join(limit.dtypes)}, {value.name!r} is {value.dtype.name}"
        if limit.max_rank is not None and value.shape is not None and value.shape.rank() > limit.max_rank:
            return (
                f"{node.op_type} takes rank up to {limit.max_rank}, {value.name!r} has {value.shape.rank()}"
            )
    for name, allowed in limit.attributes.items():
        if name in node.attributes and _plain(node.attributes[name].value) not in allowed:
            have = _plain(node.attributes[name].value)
            return f"{node.op_type} takes {name} = {' or '.join(map(str, allowed))}, this one has {have}"
    return None


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else value
