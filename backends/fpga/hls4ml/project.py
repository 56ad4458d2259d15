"""A plan written as an hls4ml project folder."""

from __future__ import annotations

import contextlib
import io
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ....compiler.errors import ParedError
from ..graph import Ints
from .plan import Plan, Step
from .reuse import Reuse
from .settings import Settings
from .tables import KIND, register, write_header

if TYPE_CHECKING:
    from hls4ml.model.graph import ModelGraph

NAME = "net"
WEIGHTS = "firmware/weights"
# Of layers that hls4ml adds by itself: any integer of ours.
_WIDE = "fixed<34,34>"
_TAIL = 300
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Ends:
    """Sizes of the top function's arguments, in order."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def write_project(plan: Plan, reuse: Mapping[str, Reuse], settings: Settings, folder: Path) -> Ends:
    """Write the project into `folder`.

    Raises:
        ParedError: `fpga-hls4ml-failed`: hls4ml refused or changed what the plan says.
    """
    with _quiet() as said:
        try:
            graph = _graph(plan, reuse, settings, folder)
            graph.write()
            if any(step.kind == KIND for step in plan.steps):
                write_header(folder, streams=settings.road.streams)
            _make_steady(folder, str(graph.config.get_config_value("Stamp")))
        except (Exception, SystemExit) as err:  # hls4ml raises Exception itself
            raise ParedError(
                "fpga-hls4ml-failed",
                f"hls4ml ({settings.road.backend}, {settings.io}): {err!r} {said.getvalue()[-_TAIL:]}",
                "try --engine-option io=io_parallel or strategy=auto, or a target of the RTL road",
            ) from err
    _check_types(plan, graph)
    sizes = [
        tuple(int(np.prod(v.shape)) for v in found)
        for found in (graph.get_input_variables(), graph.get_output_variables())
    ]
    return Ends(sizes[0], sizes[1])


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Keep what hls4ml prints and warns."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield said


def _graph(plan: Plan, reuse: Mapping[str, Reuse], settings: Settings, folder: Path) -> ModelGraph:
    from hls4ml.backends import get_backend
    from hls4ml.model.graph import ModelGraph

    register(settings.road.backend)
    config = get_backend(settings.road.backend).create_initial_config(
        part=settings.part or None, clock_period=settings.clock_ns, io_type=settings.io
    )
    names = {step.name: _configured(step, reuse.get(step.name)) for step in plan.steps}
    model = {"Precision": _WIDE, "ReuseFactor": 1, "Strategy": "Latency", "BitExact": False}
    config.update(
        OutputDir=str(folder), ProjectName=NAME, Backend=settings.road.backend,
        HLSConfig={"Model": model, "LayerName": names},
    )  # fmt: skip
    layers = [_layer(step) for step in plan.steps]
    ends = [[port.step for port in ports] for ports in (plan.inputs, plan.outputs)]
    return ModelGraph.from_layer_list(config, layers, *ends)


def _configured(step: Step, reuse: Reuse | None) -> dict[str, object]:
    types = {name: form.text for name, form in step.types.items()}
    found: dict[str, object] = {"Precision": {**types, "result": step.output.text}}
    if reuse is not None:
        found |= {"Strategy": reuse.strategy.capitalize(), "ReuseFactor": reuse.factor}
    return found


def _layer(step: Step) -> dict[str, object]:
    arrays = {
        key: value.astype(np.float64) if isinstance(value, np.ndarray) else value
        for key, value in step.attributes.items()
    }
    found: dict[str, object] = {
        "name": step.name, "class_name": step.kind, "inputs": list(step.inputs) or ["input"], **arrays
    }  # fmt: skip
    if step.product is not None:  # hls4ml's Quartus writer asks convolutions too
        found |= {"n_in": step.product[0], "n_out": step.product[1]}
    return found


def _make_steady(folder: Path, stamp: str) -> None:
    """Take out what differs from run to run: hls4ml's random stamp and the folder's name."""
    for path in (folder / "hls4ml_config.yml", folder / "build_lib.sh"):
        if path.is_file():
            path.write_text(path.read_text().replace(stamp, "pared").replace(str(folder), "."))


def _check_types(plan: Plan, graph: ModelGraph) -> None:
    """Refuse where hls4ml took another type than the plan's for some layer."""
    for step in plan.steps:
        node = graph.graph.get(step.name)
        if node is None:
            continue  # a reshape that moves nothing
        have = node.get_output_variable().type.precision
        want = step.output
        same = (have.width, have.fractional, bool(have.signed)) == (want.bits, want.fraction, want.signed)
        if not same:
            raise ParedError(
                "fpga-hls4ml-failed",
                f"node {step.source!r}: hls4ml took {have}, its numbers need {want.text}",
                "use hls4ml 1.3, or a target of the RTL road",
            )


def write_golden(folder: Path, entering: Sequence[Ints], left: Sequence[Ints]) -> None:
    """Write numbers for the project's own test bench: a line per sample, its inputs in order; its outputs."""
    data = folder / "tb_data"
    data.mkdir(exist_ok=True)
    for name, arrays in (("tb_input_features.dat", entering), ("tb_output_predictions.dat", left)):
        np.savetxt(data / name, np.concatenate(arrays, axis=1), fmt="%d")


def zipped(folder: Path, left_out: tuple[str, ...] = (".so", ".gz", ".o")) -> bytes:
    """Return a folder as a zip file that is the same every time."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in left_out):
            info = zipfile.ZipInfo(str(path.relative_to(folder)), _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, path.read_bytes())
    return data.getvalue()
