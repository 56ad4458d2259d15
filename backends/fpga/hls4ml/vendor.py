"""The vendor's HLS tool, where it is installed: steps that go on where they stopped, and its own report."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ....compiler.cache import VARIABLE, cache_folder
from ....compiler.errors import MissingTool, ParedError
from ....compiler.records import Json
from ..tools import run_tool
from .project import NAME
from .settings import Settings

Figures = Mapping[str, Json]
_ARGUMENTS = "reset=0 csim=0 synth={} cosim=0 validation=0 export=0 vsynth={} fifo_opt=0"


@dataclass(frozen=True)
class Vendor:
    """What the vendor's tool found.

    Attributes:
        program: its path; None where it did not run.
        figures: its report per step, as hls4ml reads it; None where it did not run.
        why_null: why there are none.
        folder: where it ran, with its logs.
        notes: for the user.
    """

    program: str | None
    figures: Figures | None
    why_null: str
    folder: str
    notes: tuple[str, ...]

    def to_json(self) -> Json:
        """Return the report's part."""
        if self.figures is None:
            nothing: dict[str, Json] = dict.fromkeys(("lut", "ff", "bram", "dsp", "latency_cycles", "ii"))
            return {**nothing, "why_null": self.why_null}
        origin = "the vendor's estimate after HLS (csynth), post-synthesis where the step is vsynth"
        return {"origin": origin, "program": self.program, "steps": dict(self.figures)}


def probe(settings: Settings) -> str | None:
    """Return the path of the vendor's program, None where it is not installed."""
    found = (shutil.which(name) for name in settings.road.programs)
    return next((path for path in found if path is not None), None)


def synthesise(project: bytes, settings: Settings) -> Vendor:
    """Run the vendor's tool on a zipped project, in a folder of the cache that another run goes on with.

    Raises:
        MissingTool: `fpga-tool-missing`, where a step was asked for.
        ParedError: `fpga-tool-failed`, `fpga-tool-timeout` (stage, log, command), `fpga-hls-report`.
    """
    program, names = probe(settings), " or ".join(settings.road.programs)
    reason = f"not synthesised: {names} ({settings.road.brings}) was not found"
    if settings.vendor == "off":
        return Vendor(None, None, "not synthesised: vendor=off", "", ())
    if program is None and settings.vendor == "auto":
        return Vendor(None, None, reason, "", (reason,))
    if program is None:
        raise MissingTool("fpga-tool-missing", reason, f"install {settings.road.brings}, or vendor=off")
    folder = _workplace(project)
    for step in ("csynth", "vsynth") if settings.vendor == "vsynth" else ("csynth",):
        _run(step, program, folder, settings)
    return Vendor(program, _read(folder, settings), "", str(folder), (f"{program} ran in {folder}",))


def _workplace(project: bytes) -> Path:
    """Return the folder of this very project, unpacked once."""
    # The report names this folder, so it is kept even where the cache is turned off.
    kept = {key: value for key, value in os.environ.items() if key != VARIABLE}
    user = cache_folder() or cache_folder(kept)
    assert user is not None, "without the variable there is a folder"
    folder = user.absolute() / "hls" / hashlib.sha256(project).hexdigest()[:16]
    if not (folder / "hls4ml_config.yml").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(io.BytesIO(project)) as file:
            file.extractall(folder)
    return folder


def _run(step: str, program: str, folder: Path, settings: Settings) -> None:
    """Run one step unless an earlier run finished it."""
    stamp = folder / f"{step}.done"
    if not stamp.is_file():
        run_tool(step, _command(step, program, folder, settings), folder, settings.vendor_timeout_s)
        stamp.write_text(program)


def _command(step: str, program: str, folder: Path, settings: Settings) -> list[str]:
    arguments = _ARGUMENTS.format(int(step == "csynth"), int(step == "vsynth"))
    if settings.tool == "vitis":
        options = "\n".join(word.replace("=", " ") for word in arguments.split())
        (folder / "build_opt.tcl").write_text(f"array set opt {{\n{options}\n}}\n")
        if program.endswith("vitis-run"):
            return [program, "--mode", "hls", "--tcl", "build_prj.tcl"]
        return [program, "-f", "build_prj.tcl"]
    if settings.tool == "vivado":
        return [program, "-f", "build_prj.tcl", arguments]
    if settings.tool == "quartus":
        more = ["QUARTUS_COMPILE=--quartus-compile"] if step == "vsynth" else []
        return ["make", f"{NAME}-fpga", "LOGGING_1=-v ", *more]
    return [
        program,
        "-product",
        "ultra",
        "-shell",
        "-f",
        "build_prj.tcl",
        "-eval",
        f'set ::argv "{arguments}"',
    ]


def _read(folder: Path, settings: Settings) -> Figures:
    """Read the reports with hls4ml's own parsers."""
    from hls4ml.report import parse_catapult_report, parse_quartus_report, parse_vivado_report

    parsers = {"quartus": parse_quartus_report, "catapult": parse_catapult_report}
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            found = parsers.get(settings.tool, parse_vivado_report)(str(folder))
    except (OSError, LookupError, ValueError, AttributeError, SyntaxError) as err:
        raise _no_report(folder, repr(err)) from err
    if not found:
        raise _no_report(folder, said.getvalue().strip())
    return {str(step): _plain(figures) for step, figures in found.items()}


def _no_report(folder: Path, finding: str) -> ParedError:
    return ParedError(
        "fpga-hls-report",
        f"the vendor's tool ended without a report in {folder}: {finding}",
        f"read the logs there; remove {folder}/csynth.done to run it again",
    )


def _plain(value: object) -> Json:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, int | float | bool) or value is None else str(value)
