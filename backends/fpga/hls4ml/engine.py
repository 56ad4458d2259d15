"""Engine `hls4ml`: a project for the vendors' HLS tools, and its bit-accurate emulation as the executable."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ....compiler.backend import Executable, Payload
from ....compiler.errors import UnsupportedOp
from ....compiler.temporary import folder_prefix
from ..graph import Ints, Network, Wire
from ..read import read_network
from ..simulate import simulate
from .emulate import LIBRARY, Library, build, need_compiler
from .executable import load as load_emulation
from .executable import pack
from .lower import make_plan
from .plan import Plan
from .project import WEIGHTS, Ends, write_golden, write_project, zipped
from .report import report_of
from .reuse import Reuse, choose_reuse
from .settings import Settings, settings_of
from .streams import check_streams

if TYPE_CHECKING:
    import onnx_ir as ir

    from ....compiler.pass_api import Context
    from ....compiler.target import Target
    from ..engines import Options

_TRIED = 64


@dataclass(frozen=True, eq=False)
class Project:
    """A written and compiled project, whose emulation gave the golden integers."""

    plan: Plan
    reuse: Mapping[str, Reuse]
    ends: Ends
    library: Path


def lower(model: ir.Model, target: Target, options: Options, ctx: Context) -> Payload:
    """Return the project's sources, its emulation, and a report with the vendor's figures where it runs here.

    Raises:
        UnsupportedOp: `fpga-...`: what the project cannot be, naming the node.
        TargetError: `engine-option`, `fpga-hls-unroll`, `fpga-does-not-fit`.
        MissingTool: g++ is not installed.
        ParedError: hls4ml, g++ or the vendor's tool failed.
    """
    from .vendor import synthesise

    settings = settings_of(options)
    need_compiler()
    network = read_network(model)
    ctx.check_cancelled()
    with tempfile.TemporaryDirectory(prefix=folder_prefix("hls")) as name:
        made = make_project(network, settings, Path(name))
        ctx.check_cancelled()
        sources = zipped(Path(name))
        vendor = synthesise(sources, settings)
        report = report_of(made.plan, made.reuse, settings, vendor)
        packed = pack(network, made.plan, made.ends, sources)
        # what the integers are compared with: `pared verify` evaluates it by the reference
        own = {LIBRARY: made.library.read_bytes()}
        files: dict[str, bytes | Path] = {**packed, **own}
    attachments = {"fpga.json": json.dumps(report, indent=1, sort_keys=True)}
    return Payload("hls4ml", files, {"arch": platform.machine()}, attachments=attachments, notes=vendor.notes)


def load(folder: Path, options: Mapping[str, object], threads: int | None) -> Executable:
    """Load the emulation from an artifact's folder; it runs on one thread."""
    return load_emulation(folder, options)


def make_project(network: Network, settings: Settings, folder: Path) -> Project:
    """Write a network as a project into `folder`, compile it, and compare it with the golden integers.

    Raises:
        UnsupportedOp: `fpga-hls-layer`, `fpga-hls-differs`.
        TargetError: `fpga-hls-unroll`, `fpga-does-not-fit`.
        ParedError: hls4ml or g++ failed.
    """
    plan = make_plan(network, depthwise=settings.road.depthwise)
    if settings.io == "io_stream":
        check_streams(plan, settings.road)
    reuse = choose_reuse(plan, settings)
    ends = write_project(plan, reuse, settings, folder)
    library = build(folder, ends, settings)
    _compare(network, plan, Library(library, folder / WEIGHTS, ends), folder)
    return Project(plan, reuse, ends, library)


def _compare(network: Network, plan: Plan, library: Library, folder: Path) -> None:
    """Try random codes; keep them for the project's test bench."""
    rng = np.random.default_rng(0)
    codes = {wire.name: _codes(wire, rng) for wire in network.inputs}
    wires = simulate(network, codes)
    entering = [port.enter(codes[port.wire.name]) for port in plan.inputs]
    left = library.run(entering)
    for port, numbers in zip(plan.outputs, left, strict=True):
        different = int((port.leave(numbers) != wires[port.wire.name]).sum())
        if different:
            raise UnsupportedOp(
                "fpga-hls-differs",
                f"output {port.wire.name!r}: {different} of {numbers.size} numbers of hls4ml's C++ are not "
                "the golden integers",
                "use --engine-option io=io_parallel, strategy=latency, or a target of the RTL road",
            )
    write_golden(folder, entering, left)


def _codes(wire: Wire, rng: np.random.Generator) -> Ints:
    steps = (wire.most - wire.least) // wire.step
    found: Ints = wire.least + wire.step * rng.integers(0, steps + 1, (_TRIED, *wire.shape))
    return found
