"""Integers of the FPGA front and of its circuits against the reference, on real samples.

PARED_DATA=... python -m pared.bench.fpga.exact [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...backends.fpga.executable import CircuitExecutable
from ...backends.fpga.graph import Ints, Network, Requant
from ...backends.fpga.host import Host
from ...backends.fpga.read import read_network
from ...backends.fpga.simulate import simulate
from ...backends.reference import Evaluator
from ...compiler.errors import ParedError
from ...compiler.ir.export import signature_of
from ..results import Page
from .exact_models import Floats, Proof, proofs

HEADINGS = (
    "model", "quantized", "samples", "integers that differ", "largest output difference", "open thresholds",
    "circuit: integers that differ", "simulated Verilog", "s",
)  # fmt: skip
ABOUT = """`PARED_DATA=... python -m pared.bench.fpga.exact`. Integers that differ from `backends/reference`,
among all: every requantized value of every layer and the accumulators that leave, of the network as the front
reads it (backends/fpga/simulate.py). Output difference: after the host's part, in float, 0 where units are
powers of two. Open thresholds: those at which the reference's float rounding could decide otherwise for some
input. Circuit: da4ml's interpreter, which executes the operations of the netlist, and Verilog, against
those integers, the first 1000 samples; where the network is small enough to be traced in seconds."""
_CIRCUIT_SAMPLES = 1000
_BATCH = 100
_SIMULATED_COST = 20_000


@dataclass
class Tally:
    """What was compared."""

    samples: int = 0
    wrong: int = 0
    every: int = 0
    furthest: float = 0.0


def entering(proof: Proof, model: ir.Model) -> Iterator[Mapping[str, Floats]]:
    """Yield inputs in the batches that the model takes."""
    name = model.graph.inputs[0].name or ""
    shape = model.graph.inputs[0].shape
    sizes = [int(s) for s in list(shape or ())[1:] if isinstance(s, int)]
    data = proof.samples()
    for start in range(0, len(data), _BATCH):
        part = data[start : start + _BATCH]
        kind = model.graph.inputs[0].dtype
        assert kind is not None, "an input has a type"
        yield {name: np.ascontiguousarray(part.reshape(len(part), *sizes).astype(kind.numpy()))}


def compared(network: Network) -> list[str]:
    """Return the wires that are compared: requantized ones, and those that leave."""
    made = [layer.output.name for layer in network.layers if isinstance(layer, Requant)]
    return [*made, *(name for name in network.outputs if name not in made)]


def prove(proof: Proof, model: ir.Model, network: Network) -> tuple[Tally, dict[str, Ints]]:
    """Compare the front's integers with the reference's; return also the codes that enter."""
    host, tally, names = Host(network), Tally(), compared(network)
    outputs = [value.name or "" for value in model.graph.outputs]
    evaluator, kept = Evaluator(model, [*dict.fromkeys([*names, *outputs])]), []
    for inputs in entering(proof, model):
        codes = host.encode(inputs)
        wires = simulate(network, codes)
        want = evaluator.run(inputs)
        for name in names:
            truth = integers(network, name, want[name])
            tally.wrong += int(np.count_nonzero(truth != wires[name].reshape(truth.shape)))
            tally.every += truth.size
        got = host.decode({name: wires[name] for name in network.outputs})
        for name in outputs:
            off = np.abs(got[name].astype(np.float64) - want[name].astype(np.float64))
            tally.furthest = max(tally.furthest, float(off.max(initial=0.0)))
        tally.samples += len(next(iter(codes.values())))
        kept.append(codes)
    return tally, {name: np.concatenate([codes[name] for codes in kept]) for name in kept[0]}


def integers(network: Network, name: str, value: npt.NDArray[np.generic]) -> Ints:
    """Return the reference's value of a wire as the integers that it stands for."""
    wire = network.wires[name]
    if value.dtype.kind in "iu":
        return value.astype(np.int64)
    real = value.astype(np.float64).reshape(-1, *wire.shape)
    return np.asarray(np.rint((real - wire.offset) / wire.unit) + wire.zero, np.int64)


def circuit_cells(proof: Proof, model: ir.Model, network: Network, codes: dict[str, Ints]) -> tuple[str, str]:
    """Compare the traced circuit, and its Verilog where Verilator is here, with the front's integers."""
    if not proof.circuit:
        return "not traced: too large", ""
    from ...backends.fpga.circuit import trace
    from ...backends.fpga.simulation import ports, simulate_rtl, simulators
    from ...backends.fpga.verilog import write_rtl

    some = {name: part[:_CIRCUIT_SAMPLES] for name, part in codes.items()}
    want = simulate(network, some)
    try:
        circuit = trace(network)
    except ParedError as err:
        return f"refused: {err.reason}", ""
    got = CircuitExecutable(network, circuit, signature_of(model), 1).codes(some)
    first = _difference(network, got, want)
    if "verilator" not in simulators() or circuit.logic.cost > _SIMULATED_COST:
        return first, "not simulated: too large"
    rtl = write_rtl(circuit.logic, 4.0)
    raw = circuit.enter(network, some)
    left = circuit.leave(network, simulate_rtl(rtl, raw, ports(circuit.logic), "verilator", 1200))
    return first, f"Verilator: {_difference(network, left, want)}"


def _difference(network: Network, got: Mapping[str, Ints], want: Mapping[str, Ints]) -> str:
    wrong = sum(int(np.count_nonzero(got[name] != want[name])) for name in network.outputs)
    return f"{wrong} of {sum(want[name].size for name in network.outputs)}"


def row(proof: Proof) -> list[object]:
    """Prove one model and return the cells of its row."""
    begin = time.monotonic()
    try:
        model = proof.model()
        network = read_network(model)
    except ParedError as err:
        return [proof.name, proof.how, "", f"refused: {err}", "", "", "", "", ""]
    tally, codes = prove(proof, model, network)
    cells = circuit_cells(proof, model, network, codes)
    unproven = sum(layer.unproven for layer in network.layers if isinstance(layer, Requant))
    return [
        proof.name, proof.how, f"{tally.samples} {proof.data}", f"{tally.wrong} of {tally.every}",
        f"{tally.furthest:.2g}", unproven, *cells, round(time.monotonic() - begin),
    ]  # fmt: skip


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only models whose name or precision holds one of these")
    parser.add_argument("--page", type=Path, default=Path("docs/results/fpga_exact.md"))
    parser.add_argument("--keep", type=Path, help="rows found before, taken over and added to")
    args = parser.parse_args()
    kept = json.loads(args.keep.read_text()) if args.keep and args.keep.is_file() else {}
    page = Page(args.page, "FPGA integers against the reference", ABOUT, HEADINGS)
    for proof in proofs():
        key = f"{proof.name}: {proof.how}"
        wanted = not args.names or any(name in key for name in args.names)
        if key not in kept and wanted:
            kept[key] = row(proof)
            if args.keep:
                args.keep.write_text(json.dumps(kept, indent=1))
        if key in kept:
            page.add(*kept[key])


if __name__ == "__main__":
    main()
