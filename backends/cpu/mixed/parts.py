"""Regions as they are built and loaded while a plan is looked for; each is built once."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ....compiler.backend import Executable, Signature
from ....compiler.ir.export import signature_of
from ....compiler.onnx_payload import NAMES
from ....compiler.ort_run import PAYLOAD
from ....compiler.partition import Region
from ....compiler.records import Json
from ....compiler.temporary import folder_prefix
from .. import ort_engine
from ..native import compile as native_compile
from ..native.isa import Isa
from .divide import NATIVE
from .draft import Draft
from .engine import MixedExecutable, Part, load_part
from .extract import region_model

_Identity = tuple[str, frozenset[str]]


@dataclass(frozen=True)
class BuiltRegion:
    """A region in one engine.

    Attributes:
        path: its file, in a temporary folder.
        names: short name -> original name of an ort region, as text.
        report: steps and memory of a native region.
    """

    engine: str
    path: Path
    batched: bool
    names: str = ""
    report: Json = None


class Workshop:
    """Builds and loads regions of one draft."""

    def __init__(self, draft: Draft, isa: Isa, threads: int) -> None:
        self.draft, self.isa, self.threads = draft, isa, threads
        self.signature: Signature = signature_of(draft.model)
        self._built: dict[_Identity, BuiltRegion] = {}
        self._checked: set[_Identity] = set()
        folder = tempfile.TemporaryDirectory(prefix=folder_prefix("mixed"))
        weakref.finalize(self, folder.cleanup)
        self._folder = Path(folder.name)

    def build(self, region: Region, engine: str) -> BuiltRegion:
        """Return the region in an engine.

        Raises:
            UnsupportedOp: `native` refuses it after all.
        """
        key = _identity(region, engine)
        if key not in self._built:
            make = self._native if engine == NATIVE else self._ort
            self._built[key] = make(region, self._folder / str(len(self._built)))
        return self._built[key]

    def check(self, region: Region) -> None:
        """Make sure that `native` takes a region, without generating code.

        Raises:
            UnsupportedOp: it does not, with the reason.
        """
        key = _identity(region, NATIVE)
        if key not in self._checked and key not in self._built:
            native_compile.make_program(region_model(self.draft, region), self.isa)
            self._checked.add(key)

    def load(self, region: Region, engine: str) -> Executable:
        """Return the region ready to run."""
        built = self.build(region, engine)
        return load_part(part_of(region, built, ""), built.path, self.threads)

    def assemble(self, regions: Sequence[Region]) -> MixedExecutable:
        """Return the whole model ready to run, divided like this."""
        parts = []
        for region in regions:
            built = self.build(region, region.backend)
            parts.append((part_of(region, built, ""), self.load(region, region.backend)))
        return MixedExecutable(self.signature, parts)

    def _native(self, region: Region, stem: Path) -> BuiltRegion:
        built = native_compile.build(region_model(self.draft, region), self.isa)
        path = stem.with_suffix(".so")
        path.write_bytes(built.files["model.so"])
        return BuiltRegion(NATIVE, path, built.batched, report=built.report)

    def _ort(self, region: Region, stem: Path) -> BuiltRegion:
        payload = ort_engine.lower(region_model(self.draft, region))
        path = stem.with_suffix(".onnx")
        path.write_bytes(payload.read(PAYLOAD))
        return BuiltRegion("ort", path, False, names=payload.attachments[NAMES])


def _identity(region: Region, engine: str) -> _Identity:
    return engine, frozenset(node.name or "" for node in region.nodes)


def part_of(region: Region, built: BuiltRegion, file: str) -> Part:
    """Return what the plan says of a region."""
    return Part(built.engine, file, region.inputs, region.outputs, built.batched)
