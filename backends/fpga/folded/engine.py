"""Engine `folded`: all layers on the same multipliers, one after another, weights in block memory.

For networks that do not fit unrolled. Running the layers one after another, not side by side, keeps every
multiplier busy in every layer, so that a given number of them gives the shortest time per inference; layers
side by side would have a share of them each and give no more results per second.

The artifact runs as the network's golden integers; its Verilog is simulated against them before it is
written, where a simulator is installed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ....compiler.backend import Executable, Payload
from ....compiler.errors import MissingTool, TargetError
from ....compiler.temporary import folder_prefix
from ..devices import device_of
from ..read import read_network
from ..route import route_files
from .checks import Checked, check
from .folding import Design, choose
from .golden import load as load_golden
from .golden import pack
from .program import Instruction, lines_of
from .rtl import files_of, whole
from .tasks import tasks_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from ....compiler.pass_api import Context
    from ....compiler.records import Json
    from ....compiler.target import Target
    from ..engines import Options


def lower(model: ir.Model, target: Target, options: Options, ctx: Context) -> Payload:
    """Return Verilog with its tables, the golden network, a report, and a bitstream where the tools are here.

    Raises:
        UnsupportedOp: `fpga-...`: what the engine cannot run, naming the layer.
        TargetError: `fpga-does-not-fit`, `fpga-device`, `fpga-folded-device`.
        ParedError: a simulator, yosys or nextpnr failed.
    """
    if device_of(target).family != "ecp5":
        raise TargetError(
            "fpga-folded-device",
            f"target {target.name}: engine folded has block memories and multipliers of ECP5 alone",
            "use engine rtl, or an ECP5 target",
        )
    network = read_network(model)
    tasks = tasks_of(network)
    ctx.check_cancelled()
    design = choose(tasks, lines_of(tasks), target.resources, int(options["lanes"]), int(options["units"]))
    files = files_of(design.program, design.image)
    ctx.check_cancelled()
    checked = check(network, design, files, ctx.calibration, options)
    ctx.check_cancelled()
    routed, bitstream, notes = _routed(design, files, target, options)
    payload: dict[str, bytes | Path] = {**pack(network), **whole(files)}
    if bitstream:
        payload["model.bit"] = bitstream
    report = {**_report(design, checked), "implementation": routed}
    attachments = {"fpga.json": json.dumps(report, indent=1, sort_keys=True)}
    return Payload("folded", payload, {}, attachments=attachments, notes=(*checked.notes, *notes))


def load(folder: Path, options: Mapping[str, object], threads: int | None) -> Executable:
    """Load the golden integers from an artifact's folder."""
    return load_golden(folder)


def _routed(
    design: Design, files: Mapping[str, str], target: Target, options: Options
) -> tuple[dict[str, Json], bytes, tuple[str, ...]]:
    clocks = design.program.clocks
    try:
        if not options["route"]:
            raise MissingTool("fpga-not-routed", "option route = false", "leave it out")
        with tempfile.TemporaryDirectory(prefix=folder_prefix("fpga")) as folder:
            how = int(options["seed"]), float(options["timeout_s"])
            routed = route_files(
                files,
                clocks,
                device_of(target),
                Path(folder),
                *how,
                ii=clocks,
                origin="post-route, no harness",
            )
    except MissingTool as err:
        reason = f"not routed: {err.message}"
        facts: dict[str, Json] = {
            "lut4": None, "fmax_mhz": None, "latency_cycles": clocks, "why_null": reason,
        }  # fmt: skip
        return facts, b"", (f"{reason} ({err.next_step})",)
    data = {key: value for key, value in routed.to_json().items() if not key.endswith("_s")}
    return data, routed.bitstream, ()


def _report(design: Design, checked: Checked) -> dict[str, Json]:
    program, needs = design.program, design.needs
    return {
        "engine": "folded",
        "lanes": program.folding.lanes,
        "units": program.folding.units,
        "clocks_per_inference": program.clocks,
        "needs": {"bram": needs.bram, "dsp": needs.dsp, "lut4_estimated": needs.lut},
        "simulated": checked.to_json(),
        "layers": [_layer(one, design) for one in program.instructions],
    }


def _layer(one: Instruction, design: Design) -> Json:
    target, task = one.target, one.task
    steps = one.window * one.target.pixels * design.program.folding.groups(target.channels)
    return {
        "name": one.name, "kind": "input" if task is None else "own" if task.own else "all",
        "output": target.name, "shape": [target.channels, target.height, target.width],
        "low": target.low, "high": target.high, "clocks": one.clocks, "steps": 0 if task is None else steps,
        "weight_memory_bits": design.image.widths.weight * one.weights.size,
        "refined_channels": sum(line.refine for line in one.lines),
    }  # fmt: skip
