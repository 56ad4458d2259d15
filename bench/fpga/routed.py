"""Routes the designs of designs.py and keeps what was found, one JSON file each.

    python -m pared.bench.fpga.routed [NAME ...] [--again]

A design is routed anew where its Verilog, or how adders are mapped, has changed. Then
`python -m pared.bench.fpga.calibration` writes the page. Minutes each: placement runs in one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path

from ...backends.fpga import adders
from ...backends.fpga.circuit import trace
from ...backends.fpga.read import read_network
from ...backends.fpga.route import route
from ...backends.fpga.verilog import Rtl, write_rtl
from ...compiler.errors import ParedError
from .designs import Design, Made, make, named

FOLDER = Path("bench/fpga/routed")
_SEED = 1
_TIMEOUT_S = 7200.0


def digest(rtl: Rtl) -> str:
    """Return a digest of the Verilog and of what maps its adders."""
    mapping = Path(adders.__file__).read_text()
    text = mapping + "\n".join(f"{name}\n{rtl.files[name]}" for name in sorted(rtl.files))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def known(design: Design) -> dict[str, object]:
    """Return what was found before, or nothing."""
    path = FOLDER / f"{design.name}.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def measure(design: Design, made: Made, again: bool) -> dict[str, object]:
    """Trace, synthesize and route a design, unless its Verilog is the one that was routed before."""
    begin = time.monotonic()
    circuit = trace(read_network(made.model))
    rtl = write_rtl(circuit.logic, design.cutoff)
    traced = round(time.monotonic() - begin, 1)
    before = known(design)
    if before.get("verilog") == digest(rtl) and not again:
        return before
    with tempfile.TemporaryDirectory(prefix="pared-routed-") as folder:
        found = route(rtl, design.device, Path(folder), _SEED, _TIMEOUT_S).to_json()
    facts = {"name": design.name, "what": design.what, "cutoff": design.cutoff, "model": made.digest}
    cost = {
        "verilog": digest(rtl),
        "da4ml_cost": float(circuit.logic.cost),
        "trace_s": traced,
        "top1": made.top1,
    }
    return {**facts, **cost, **found, "ports": rtl.input_bits + rtl.output_bits}


def main() -> None:
    """Route what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--again", action="store_true", help="route also what has not changed")
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for design in named(args.names):
        made = make(design)
        if made is None:
            print(f"{design.name}: PARED_DATA has no {design.source}", file=sys.stderr)
            continue
        try:
            found = measure(design, made, args.again)
        except ParedError as err:
            print(f"{design.name}: {err}", file=sys.stderr, flush=True)
            continue
        (FOLDER / f"{design.name}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        print(json.dumps(found, sort_keys=True), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
