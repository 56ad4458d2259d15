"""Random graphs, run thread by thread on this CPU, against the reference.

    python -m pared.bench.gpu.random_check [--count 300] [--seed 0] [--page docs/results/gpu_random.md]

*Simulated*, no GPU: the CUDA C++ that is compiled for sm_90, run thread by thread (backends/gpu/simulate) in
two opposite orders; an access outside of a buffer, a race and a missing barrier are errors. Graphs of one to
five operators on tensors of awkward sizes (bench/gpu/random_graphs.py); of int8 a quantizer stands behind
every operator. `wrong`: beyond the derived bound, of int8 any integer that differs from `backends/reference`;
with any, this script fails and names the seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...backends.reference import derive_bound, evaluate
from ...compiler.errors import ParedError, UnsupportedOp
from ..results import Page
from .random_graphs import KINDS, Draft, random_graph
from .threads import on_threads

HEADINGS = ("kind", "graphs", "kernels", "values", "that differ", "refused", "wrong")


def check(draft: Draft) -> Counter[str]:
    """Return counts of kernels, values, and values that differ; of graphs that are `refused` or `wrong`.

    Raises:
        ParedError: `simulation-failed`: a kernel did what no kernel may.
    """
    model, inputs = draft.model(), draft.inputs()
    try:
        program, _, device = on_threads(model)
    except UnsupportedOp:
        return Counter(refused=1)
    got = device.run(inputs)["y"]
    device.close()
    want, bound = evaluate(model, inputs)["y"], derive_bound(model, [inputs], seed=0)["y"]
    differ = int((got != want).sum())
    right = not differ if draft.kind == "int8" else bound.accepts(got, want)
    return Counter(kernels=len(program.launches), values=got.size, differ=differ, wrong=int(not right))


def run(kind: str, seeds: Sequence[int]) -> tuple[Counter[str], list[int]]:
    """Return counts over all graphs of a kind, and the seeds that are wrong."""
    total, wrong = Counter[str](), []
    for seed in seeds:
        draft = random_graph(seed, kind)
        try:
            found = check(draft)
        except ParedError as err:
            print(f"{kind} {seed}: {err} in {draft.steps}", file=sys.stderr)
            found = Counter(wrong=1)
        if found["wrong"]:
            wrong.append(seed)
        total += found
    return total, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run graphs of every kind and write the page; return 1 where any is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, default=Path("docs/results/gpu_random.md"))
    options = parser.parse_args(arguments)
    page = Page(options.page, "Random graphs thread by thread", __doc__ or "", HEADINGS)
    bad = False
    for kind in KINDS:
        seeds = range(options.seed, options.seed + options.count)
        total, wrong = run(kind, seeds)
        bad |= bool(wrong)
        counts = (total["kernels"], f"{total['values']:,}", total["differ"], total["refused"], total["wrong"])
        page.add(kind, len(seeds), *counts)
        if wrong:
            page.remark(f"Wrong as {kind}: seeds {', '.join(map(str, wrong))}.")
    return int(bad)


if __name__ == "__main__":
    raise SystemExit(main())
