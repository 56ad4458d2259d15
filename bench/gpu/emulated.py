"""Runs the compiled workloads at full size on the emulated device, and writes what agrees to a page.

python -m pared.bench.gpu.build --arch sm_90 --out programs --batch 1
python -m pared.bench.gpu.emulated --programs programs --out docs/results/gpu_emulated.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ..results import Page
from .build import META
from .candidate import on_gpu
from .check import judge, no_tf32, wanted
from .own import OwnCandidate, why_not
from .workloads import WORKLOADS, sample_of

_ABOUT = """`python -m pared.bench.gpu.build --arch sm_90 --out programs --batch 1`, then
`python -m pared.bench.gpu.emulated --programs programs --out docs/results/gpu_emulated.md`. The workloads
of [bench/gpu](../../bench/gpu/README.md) at full size: the same launches on the same addresses as on a GPU,
each kernel's function compiled for this CPU before its loops were mapped to threads. No time is meant. The
error is the largest difference as a share of the largest wanted value: of int8 networks from the rows that
the integer reference computes, of the others from torch in float32, of the GEMM from exact integers."""
_HEADINGS = (
    "workload",
    "precision",
    "batch",
    "kernels launched",
    "weights, MB",
    "error",
    "allowed",
    "agrees",
)


def main() -> None:
    """Run every program that is there, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    assert not on_gpu(), "a GPU is here: measure with bench/gpu/run.sh"
    torch.set_num_threads(1)
    no_tf32()
    page = Page(given.out, "GPU workloads on the emulated device", _ABOUT, _HEADINGS)
    for folder in sorted(given.programs.iterdir(), reverse=True):
        if (folder / META).is_file():
            page.add(*_row(folder))


def _row(folder: Path) -> tuple[object, ...]:
    meta = json.loads((folder / META).read_text())
    workload, batch = WORKLOADS[meta["workload"]], int(meta["batch"])
    what = workload.sized(tiny=meta["tiny"])
    head = (workload.title, meta["precision"], batch)
    try:
        program = OwnCandidate(folder, sample_of(what, batch))
        found = judge(what, program.host(), wanted(what, batch), program.wanted)
    except Exception as err:  # its own row says why
        return (*head, *[""] * 4, why_not(err))
    megabytes = f"{program.weight_bytes / 1e6:.1f}"
    agrees = f"{'yes' if found.ok else 'no'}, with {found.against}"
    return (*head, program.launches, megabytes, f"{found.error:.1e}", f"{found.limit:g}", agrees)


if __name__ == "__main__":
    main()
