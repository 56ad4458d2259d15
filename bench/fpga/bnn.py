"""Binary layers and small neurons, routed for ECP5 in several forms, for docs/results/fpga_bnn.md.

    python -m pared.bench.fpga.bnn pack [DESIGN.FORM ...]
    python -m pared.bench.fpga.bnn route [DESIGN.FORM ...]
    python -m pared.bench.fpga.bnn page

`pack` synthesizes and counts, `route` places and routes too; each keeps one JSON file per design and form,
and makes what is missing. `page` writes the page.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...backends.fpga.adders import open_ends, script
from ...backends.fpga.circuit import trace
from ...backends.fpga.devices import Device
from ...backends.fpga.graph import Ints
from ...backends.fpga.mst import Variables, grow, spanning_tree
from ...backends.fpga.route import route
from ...backends.fpga.tools import need_tool, run_tool
from ...backends.fpga.verilog import Rtl, harness, write_rtl
from ...compiler.errors import ParedError
from ...compiler.records import Json
from .bnn_layers import DESIGNS, Binary, Sparse

if TYPE_CHECKING:
    from da4ml.types import CombLogic

FOLDER = Path("bench/fpga/bnn")
_DEVICE = Device("25k", "CABGA256", 6)
_CUTOFF, _SEED, _TIMEOUT_S = 4.0, 1, 1800.0
Product = Callable[[Ints, Variables], Variables]


def shared(depth: int) -> Product:
    """Return da4ml's product; `depth` is its own bound on extra levels, -1 for none."""

    def product(rows: Ints, x: Variables) -> Variables:
        from da4ml.cmvm import solve

        ranges = [(float(v.low), float(v.high), float(v.step)) for v in x]
        matrix = np.ascontiguousarray(rows.T, np.float32)
        additions = solve(matrix, qintervals=ranges, hard_dc=depth, adder_size=1, carry_size=-1)
        return np.asarray(additions(x), object)

    return product


def independent(rows: Ints, x: Variables) -> Variables:
    """Return a balanced tree of adders per channel."""
    made = np.empty(len(rows), object)
    for channel, row in enumerate(rows):
        terms = [x[i] * int(row[i]) for i in np.flatnonzero(row)]
        while len(terms) > 1:
            pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
            terms = pairs + terms[2 * len(pairs) :]
        made[channel] = terms[0] if terms else x[0] * 0
    return made


def along(depth: int, product: Product) -> Product:
    """Return the product along a spanning tree of bounded depth, differences by `product`."""

    def tree_product(rows: Ints, x: Variables) -> Variables:
        tree = spanning_tree(rows, depth)
        return grow(tree, product(tree.deltas, x))

    return tree_product


FORMS: dict[str, tuple[str, Product]] = {
    "independent": ("independent channels", independent),
    "shared": ("shared subexpressions (da4ml)", shared(0)),
    "da4ml8": ("da4ml's own decomposition, 8 more levels", shared(8)),
    "da4ml": ("da4ml's own decomposition, any depth", shared(-1)),
    "mst2_plain": ("tree of 2 levels, differences independent", along(2, independent)),
    "mst1": ("tree of 1 level, differences shared", along(1, shared(0))),
    "mst2": ("tree of 2 levels, differences shared", along(2, shared(0))),
    "mst3": ("tree of 3 levels, differences shared", along(3, shared(0))),
    "mst99": ("tree of any depth, differences shared", along(99, shared(0))),
}


SPARSE_FORMS = ("adders", "tables")


def logic_of(layer: Binary, product: Product) -> CombLogic:
    """Return the layer as a circuit from bits to bits, compared with NumPy on 200 random inputs."""
    from da4ml.trace import FixedVariable, HWConfig, comb_trace

    x = np.empty(layer.rows.shape[1], object)
    x[:] = [FixedVariable(0.0, 1.0, 1.0, hwconf=HWConfig(1, -1, -1)) for _ in x]
    sums = product(layer.rows, x)
    # the bits stand for -1 and +1: rows @ (2 x - 1) >= threshold
    levels = -((layer.rows.sum(axis=1) + layer.thresholds) // -2)
    bits = [v >= int(level) for v, level in zip(sums, levels, strict=True)]
    logic = comb_trace(list(x), bits, keep_dead_inputs=True)
    data = np.random.default_rng(0).integers(0, 2, (200, x.size))
    got = np.rint(logic.predict(data.astype(np.float64), 1)).astype(np.int64)
    assert np.array_equal(got, (2 * data - 1) @ layer.rows.T >= layer.thresholds), layer.name
    return logic


def logic_for(design: Binary | Sparse, form: str) -> CombLogic:
    """Return a design in a form."""
    if isinstance(design, Binary):
        return logic_of(design, FORMS[form][1])
    return trace(design.network, tables=form == "tables").logic


def forms_of(design: Binary | Sparse) -> tuple[str, ...]:
    """Return the forms in which a design is measured."""
    return tuple(FORMS) if isinstance(design, Binary) else SPARSE_FORMS


def measure(design: Binary | Sparse, form: str, routed: bool) -> dict[str, object]:
    """Synthesize and pack one design in one form, or route it too."""
    logic = logic_for(design, form)
    rtl = write_rtl(logic, _CUTOFF)
    with tempfile.TemporaryDirectory(prefix="pared-bnn-") as folder:
        if routed:
            found = route(rtl, _DEVICE, Path(folder), _SEED, _TIMEOUT_S).to_json()
        else:
            found = _packed(rtl, Path(folder))
    facts = {"design": design.name, "form": form, "what": design.what, "da4ml_cost": float(logic.cost)}
    return {**facts, **found, "depth": max(logic.latency)}


def _packed(rtl: Rtl, folder: Path) -> dict[str, Json]:
    """Return what nextpnr counts before it places: LUT4 slots and flip-flops do not change behind that.

    `narrow` is the count without LUTs of more than four inputs, which yosys makes of several LUT4 for speed.
    """
    files = {**rtl.files, "top.v": harness(rtl)}
    for name, text in files.items():
        (folder / name).write_text(text)
    commands = script(" ".join(sorted(name for name in files if name.endswith(".v"))), folder)
    lut4, ff = _counted(commands, folder)
    narrow, _ = _counted(commands.replace("synth_ecp5 ", "synth_ecp5 -nowidelut "), folder)
    origin = "packed, harness included"
    return {"lut4": lut4, "narrow": narrow, "ff": ff, "latency_cycles": rtl.stages, "origin": origin}


def _counted(commands: str, folder: Path) -> tuple[int, int]:
    run_tool("synthesis", [need_tool("yosys"), "-p", commands], folder, _TIMEOUT_S)
    open_ends(folder / "top.json")
    command = [
        need_tool("nextpnr-ecp5"), f"--{_DEVICE.size}", "--package", _DEVICE.package, "--json", "top.json",
        "--pack-only", "--lpf-allow-unconstrained",
    ]  # fmt: skip
    log = run_tool("packing", command, folder, _TIMEOUT_S).log
    lut4, ff = (int(re.findall(rf"{kind}:\s+(\d+)/", log)[-1]) for kind in ("TRELLIS_COMB", "TRELLIS_FF"))
    return lut4, ff


def main() -> None:
    """Measure or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["pack", "route", "page"])
    parser.add_argument("names", nargs="*", help="patterns such as tfc_half.*; all for none")
    args = parser.parse_args()
    if args.what == "page":
        from .bnn_page import write

        write(FOLDER)
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for design in (made for make in DESIGNS if (made := make()) is not None):
        for form in forms_of(design):
            name = f"{design.name}.{form}"
            path = FOLDER / f"{name}.{args.what}.json"
            wanted = not args.names or any(fnmatch(name, pattern) for pattern in args.names)
            if wanted and not path.exists():
                _keep(path, design, form, args.what == "route")


def _keep(path: Path, design: Binary | Sparse, form: str, routed: bool) -> None:
    try:
        found = measure(design, form, routed)
    except ParedError as err:
        print(f"{design.name}.{form}: {err}", file=sys.stderr, flush=True)
        return
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(json.dumps(found, sort_keys=True), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
