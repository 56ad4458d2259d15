"""Binary layers and small neurons, routed for ECP5 in several forms, for docs/results/fpga_bnn.md.

    python -m pared.bench.fpga.bnn route [LAYER.FORM ...]
    python -m pared.bench.fpga.bnn page

`route` keeps one JSON file per design and form, and routes what is missing; `page` writes the page.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...backends.fpga.devices import Device
from ...backends.fpga.graph import Ints
from ...backends.fpga.mst import Variables, grow, spanning_tree
from ...backends.fpga.route import route
from ...backends.fpga.verilog import write_rtl
from ...compiler.errors import ParedError
from .bnn_layers import LAYERS, Binary

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


def measure(layer: Binary, form: str) -> dict[str, object]:
    """Route one layer in one form."""
    logic = logic_of(layer, FORMS[form][1])
    rtl = write_rtl(logic, _CUTOFF)
    with tempfile.TemporaryDirectory(prefix="pared-bnn-") as folder:
        found = route(rtl, _DEVICE, Path(folder), _SEED, _TIMEOUT_S).to_json()
    return {"layer": layer.name, "form": form, "da4ml_cost": float(logic.cost), **found}


def main() -> None:
    """Route or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["route", "page"])
    parser.add_argument("names", nargs="*", help="patterns such as tfc_hidden.*; all for none")
    args = parser.parse_args()
    if args.what == "page":
        from .bnn_page import write

        write()
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for make in LAYERS:
        layer = make()
        for form in FORMS if layer is not None else ():
            assert layer is not None, "forms of a layer"
            name = f"{layer.name}.{form}"
            wanted = not args.names or any(fnmatch(name, pattern) for pattern in args.names)
            if wanted and not (FOLDER / f"{name}.json").exists():
                _keep(FOLDER / f"{name}.json", layer, form)


def _keep(path: Path, layer: Binary, form: str) -> None:
    try:
        found = measure(layer, form)
    except ParedError as err:
        found = {"layer": layer.name, "form": form, "failed": str(err)}
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(json.dumps(found, sort_keys=True), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
