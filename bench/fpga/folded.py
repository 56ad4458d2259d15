"""Networks on the time-multiplexed engine: its Verilog simulated on real samples, and routed.

    python -m pared.bench.fpga.folded simulate [NAME ...]
    python -m pared.bench.fpga.folded route [NAME ...]
    python -m pared.bench.fpga.folded page

Findings are kept in bench/fpga/folded/, one JSON file each; `page` writes docs/results/fpga_folded.md of
them. PARED_DATA names the shared models and data. Routing takes minutes to an hour, by size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...backends.fpga.devices import Device, device_of
from ...backends.fpga.folded.folding import Design, choose
from ...backends.fpga.folded.program import lines_of
from ...backends.fpga.folded.rtl import files_of
from ...backends.fpga.folded.simulation import simulate_engine
from ...backends.fpga.folded.tasks import tasks_of
from ...backends.fpga.graph import Ints, Network
from ...backends.fpga.host import Host
from ...backends.fpga.read import read_network
from ...backends.fpga.route import route_files
from ...backends.fpga.simulate import simulate
from ...compiler.errors import ParedError
from ...targets import load_target
from ..results import Page
from .exact_models import Floats, digits, mfcc, mnist, published, quantized, shared, spectra

FOLDER, PAGE = Path("bench/fpga/folded"), Path("docs/results/fpga_folded.md")
_TIMEOUT_S, _SEED = 7200.0, 1


@dataclass(frozen=True)
class Case:
    """A network, a device and how many multipliers; 0 takes the fastest that fits.

    Attributes:
        samples: of the model's one input, how many of them are simulated.
    """

    name: str
    what: str
    target: str
    lanes: int
    model: Callable[[], ir.Model]
    data: Callable[[], Floats]
    samples: int


def _autoencoder() -> ir.Model:
    return published("ad01_fc_autoencoder_int8_qdq")


def _keywords() -> ir.Model:
    return quantized(shared("models/kws01_dscnn.onnx"), mfcc()[:200], "")


def _binary() -> ir.Model:
    return published("tfc_1w1a_qonnx")


def _residual() -> ir.Model:
    return quantized(Path("examples/models/digits_resnet.onnx"), digits()[:200], "")


_AD01, _KWS01 = "ad01 autoencoder int8, as published", "kws01 DS-CNN int8, own PTQ"
CASES = (
    Case("ad01_85k_32", _AD01, "fpga-ecp5-85k", 32, _autoencoder, spectra, 1000),
    Case("ad01_85k_64", _AD01, "fpga-ecp5-85k", 64, _autoencoder, spectra, 1000),
    Case("kws01_85k_32", _KWS01, "fpga-ecp5-85k", 32, _keywords, mfcc, 20),
    Case("kws01_85k_64", _KWS01, "fpga-ecp5-85k", 64, _keywords, mfcc, 20),
    Case("kws01_25k", _KWS01, "fpga-ecp5-25k", 0, _keywords, mfcc, 20),
    Case("tfc_85k", "tfc_1w1a (Brevitas, MNIST), as published", "fpga-ecp5-85k", 64, _binary, mnist, 1000),
    Case("resnet_85k_32", "digits residual CNN int8, own PTQ", "fpga-ecp5-85k", 32, _residual, digits, 20),
)


@dataclass(frozen=True, eq=False)
class Made:
    """A case's network, design and files."""

    network: Network
    design: Design
    files: dict[str, str]
    device: Device


def make(case: Case) -> Made:
    """Read a case's model and choose its design."""
    network = read_network(case.model())
    tasks, target = tasks_of(network), load_target(case.target)
    design = choose(tasks, lines_of(tasks), target.resources, case.lanes)
    return Made(network, design, files_of(design.program, design.image), device_of(target))


def simulated(case: Case) -> dict[str, object]:
    """Compare the Verilog with the golden integers on real samples, by Verilator."""
    made = make(case)
    codes = _codes(made.network, case.data()[: case.samples])
    want = simulate(made.network, codes)
    got = simulate_engine(
        made.design.program, made.design.image, made.files, codes, "verilator", timeout_s=_TIMEOUT_S
    )
    differing = sum(int((got.codes[key] != want[key]).sum()) for key in made.network.outputs)
    values = sum(int(want[key].size) for key in made.network.outputs)
    clocks = set(got.clocks) == {made.design.program.clocks}
    return {"samples": case.samples, "values": values, "differing": differing, "clocks_as_computed": clocks}


def _codes(network: Network, x: Floats) -> dict[str, Ints]:
    """Return the integers of samples; a model that takes integers gets them rounded to its own scale."""
    source, wire = network.head.graph.inputs[0], network.inputs[0]
    if source.dtype is not None and source.dtype.is_integer():
        q = np.clip(np.rint(x / wire.unit) + wire.zero, wire.least, wire.most)
        return {wire.name: q.astype(np.int64).reshape(-1, *wire.shape)}
    return Host(network).encode({source.name or "": x})


def routed(case: Case) -> dict[str, object]:
    """Synthesize, place and route."""
    made = make(case)
    program = made.design.program
    with tempfile.TemporaryDirectory(prefix="pared-routed-") as folder:
        found = route_files(
            made.files, program.clocks, made.device, Path(folder), _SEED, _TIMEOUT_S, ii=program.clocks,
            origin="post-route, no harness",
        ).to_json()  # fmt: skip
    shape = {"lanes": program.folding.lanes, "units": program.folding.units}
    return {**found, **shape, "clocks": program.clocks, "tables": digest(made.files)}


def digest(files: dict[str, str]) -> str:
    """Return a digest of the Verilog and its tables."""
    text = "\n".join(f"{name}\n{files[name]}" for name in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def page() -> None:
    """Write the page of what is known."""
    headings = (
        "network", "device", "multipliers", "LUT4", "FF", "BRAM", "DSP", "Fmax MHz", "clocks",
        "us per inference", "simulated, differing",
    )  # fmt: skip
    out = Page(PAGE, "Networks on shared multipliers", __doc__ or "", headings)
    for case in CASES:
        route_file, simulation_file = FOLDER / f"{case.name}.json", FOLDER / f"{case.name}.simulated.json"
        if not route_file.is_file():
            continue
        r = json.loads(route_file.read_text())
        seen = json.loads(simulation_file.read_text()) if simulation_file.is_file() else None
        differs = "-" if seen is None else f"{seen['differing']} of {seen['values']}"
        differs += "" if seen is None else f" ({seen['samples']} samples)"
        needs = make(case).design.needs
        expected = {"lut4": needs.lut, "bram": needs.bram, "dsp": needs.dsp}
        counts = [f"{r[key]} ({expected[key]})" for key in expected]
        out.add(
            case.what, case.target, f"{r['lanes']} + {r['units']}", counts[0], r["ff"], *counts[1:],
            r["fmax_mhz"], r["clocks"], round(r["latency_ns"] / 1e3, 1), differs,
        )  # fmt: skip
    out.remark(
        "Multipliers: lanes + requantizers. LUT4, FF, BRAM, DSP and Fmax are post-route (yosys, nextpnr, "
        "seed 1, speed grade 6), in brackets what was computed before synthesis: LUT4 is estimated, DSP "
        "counted, BRAM counted with all bits of the tables, of which synthesis drops constant ones. Clocks "
        "are computed, and those of the simulated Verilog were the same. Time is clocks / Fmax, from the "
        "first value in until the next may come. Simulated by Verilator: output values against the golden "
        "integers, on real samples. The longest path of the autoencoder is 5.6 ns out of a block memory (its "
        "own output register is not used) and 5.3 ns to the register behind it."
    )


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["simulate", "route", "page"])
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.what == "page":
        page()
        return
    run, ending = (simulated, ".simulated.json") if args.what == "simulate" else (routed, ".json")
    for case in (case for case in CASES if not args.names or case.name in args.names):
        try:
            found = run(case)
        except ParedError as err:
            print(f"{case.name}: {err}", file=sys.stderr, flush=True)
            continue
        (FOLDER / f"{case.name}{ending}").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        print(case.name, json.dumps(found, sort_keys=True), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
