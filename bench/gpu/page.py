"""Writes docs/results/gpu.md: from gpu.json what was measured, without it what data sheets let expect.

python -m pared.bench.gpu.page                              # docs/results/gpu.json -> docs/results/gpu.md
python -m pared.bench.gpu.page --json out/gpu.json --out out/gpu.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .products import Chain
from .sheets import DATA_SHEETS, Roof, load_of
from .workloads import WORKLOADS

Row = Sequence[object]
Found = Mapping[str, object]

RESULTS = Path(__file__).parents[2] / "docs" / "results"
_OWN, _RIVAL = "pared", "torch.compile"
# The goals: times as fast as torch.compile at batch 1, shares of the roofs.
END_TO_END, BANDWIDTH, TENSOR = 1.2, 0.85, 0.75
_ABOUT = """Written by `bench/gpu/page.py` from `gpu.json`, which `bench/gpu/run.sh` measures; see
[bench/gpu](../../bench/gpu/README.md). Networks have random weights, the same ones for every candidate,
BatchNorm folded in; "device" is the time between CUDA events, "host" the wall time from NumPy to NumPy;
medians of interleaved rounds in one process. A candidate whose result is wrong has no time."""
_NOTHING = f"""**Nothing on this page has been measured: no part of the GPU backend has run on a GPU yet.**
Whoever has one of these GPUs runs `bench/gpu/run.sh --out docs/results` (one call, below ten minutes;
[what it needs](../../bench/gpu/README.md)): it checks every result against torch in float32 or exact
integers, measures pared beside torch eager, torch.compile (max-autotune, CUDA graphs) and, where they are
installed, onnxruntime with CUDA and TensorRT, and writes this page anew.

Goals: at batch 1 at least {END_TO_END} times as fast as torch.compile from host to host; at least
{BANDWIDTH:.0%} of the memory bandwidth in the 4-bit GEMV; at least {TENSOR:.0%} of the int8 tensor-core rate
in the GEMM."""
_LEAST = """## Least time of one inference (estimated from the data sheets)

The longer one of computing (operations by rate) and moving (weights, input and output once, by bandwidth).
Activations between layers, launches and tails are not in it, so real times are longer; shorter ones are
possible only where weights stay in the L2 cache from one inference to the next. Of the GEMVs one product of
4096x4096, read from memory."""


def write_page(source: Path, page: Path) -> None:
    """Write the page of a JSON file, or the one without figures where there is none."""
    lines = measured(json.loads(source.read_text())) if source.is_file() else unmeasured()
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def unmeasured() -> list[str]:
    """Return the page as long as nobody has run it."""
    title = "# GPU: beside torch, onnxruntime and TensorRT"
    return [title, "", _NOTHING, "", *_sheets(), "", _LEAST, "", *_predictions()]


def _sheets() -> list[str]:
    rows = [(name, *_rates(roof), roof.source) for name, roof in DATA_SHEETS.items()]
    text = "## Roofs (data sheet)\n\nDense rates, without sparsity; none of them measured.\n"
    return [text, *table(("GPU", "memory", "fp16", "int8", "source"), rows)]


def _predictions() -> list[str]:
    rows: list[Row] = []
    h100 = next(iter(DATA_SHEETS.values()))
    for workload in WORKLOADS.values():
        what = workload.make()
        for batch in workload.batches:
            for precision in workload.precisions:
                load = load_of(what, precision, batch)
                cells = [_time(load.seconds(roof)) for roof in DATA_SHEETS.values()]
                rows.append((workload.title, precision, batch, *cells, load.bound(h100)))
    return table(("workload", "precision", "batch", *DATA_SHEETS, "bound (H100)"), rows)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def measured(data: Found) -> list[str]:
    """Return the page of one run."""
    dry = bool(data["dry"])
    head = "# GPU: beside torch, onnxruntime and TensorRT" + (
        " (dry run: no figure means anything)" if dry else ""
    )
    lines = [head, "", _ABOUT, "", _machine(data), ""]
    roof = None if dry else _roof(data)
    if not dry:
        lines += ["## Goals", "", *table(("goal", "found", "reached"), list(_goals(data, roof))), ""]
    if roof is not None:
        lines += ["## Roofs", "", *_roofs(data, roof), ""]
    for step in _steps(data):
        lines += [
            f"## {WORKLOADS[str(step['workload'])].title}, batch {step['batch']}",
            "",
            *_step(step, roof),
            "",
        ]
    return [*lines, *_notes(data)]


def _machine(data: Found) -> str:
    machine = _map(data.get("machine"))
    versions = ", ".join(f"{k} {v}" for k, v in _map(machine.get("versions")).items())
    parts = [f"{machine.get('device', 'unknown device')} ({machine.get('arch')})"]
    parts += [f"driver {machine['driver']}"] if machine.get("driver") else []
    parts += [f"CUDA {machine['cuda']}"] if machine.get("cuda") else []
    return (
        f"Machine: {', '.join(parts)}, Python {machine.get('python')}; {versions}. Took {data['seconds']} s."
    )


def _roof(data: Found) -> Roof | None:
    roofs = _map(data.get("roofs"))
    if not roofs:
        return None
    memory, fp16, int8 = (float(str(roofs[key])) for key in ("bytes_per_s", "fp16", "int8"))
    return Roof(memory, fp16, int8, str(roofs["source"]))


def _roofs(data: Found, roof: Roof) -> list[str]:
    rows = [("this device", *_rates(roof), roof.source)]
    arch = str(_map(data.get("machine")).get("arch"))
    rows += [
        (f"{name}, for comparison", *_rates(r), r.source) for name, r in DATA_SHEETS.items() if arch in name
    ]
    return table(("", "memory", "fp16", "int8", "source"), rows)


def _rates(roof: Roof) -> tuple[str, str, str]:
    memory, fp16, int8 = (rate / 1e12 for rate in (roof.bytes_per_s, roof.fp16, roof.int8))
    return f"{memory:.3g} TB/s", f"{fp16:.4g} TFLOP/s", f"{int8:.4g} TOP/s"


def _goals(data: Found, roof: Roof | None) -> Iterator[Row]:
    for step in _steps(data):
        workload, batch = WORKLOADS[str(step["workload"])], step["batch"]
        for precision in workload.precisions:
            own = f"{_OWN} {precision}"
            found = _candidate(step, own)
            if workload.name.startswith("gem"):
                yield _share_goal(workload.name, found, roof)
            elif batch == 1:
                over = _over(step, own)
                goal = f"{workload.title}, {precision}, batch 1: >= {END_TO_END} x {_RIVAL}"
                yield _verdict(goal, over, END_TO_END, " x", found)


def _share_goal(name: str, found: Found, roof: Roof | None) -> Row:
    title = WORKLOADS[name].title
    goal, need = (
        (f"{title}: >= {TENSOR:.0%} of the int8 rate", TENSOR)
        if name == "gemm"
        else (f"{title}: >= {BANDWIDTH:.0%} of the bandwidth", BANDWIDTH)
    )
    return _verdict(goal, _share(name, found, roof, "device_ms"), need, "", found)


def _verdict(goal: str, figure: float | None, need: float, unit: str, found: Found) -> Row:
    if figure is None:
        return goal, f"not measured: {found.get('reason') or found.get('state', 'no such step')}", "no"
    text = f"{figure:.2f}{unit}" if unit else f"{figure:.1%}"
    return goal, text, "yes" if figure >= need else "no"


def _over(step: Found, own: str) -> float | None:
    ratio = _map(_map(_candidate(step, _RIVAL).get("over")).get(own))
    return float(str(ratio["host"])) if ratio else None


def _share(name: str, found: Found, roof: Roof | None, key: str) -> float | None:
    """Return the share of the roof that bounds a product, by device time or by time inside kernels."""
    source = found if key == "device_ms" else _map(found.get("kernels"))
    if roof is None or source.get(key) is None:
        return None
    what = WORKLOADS[name].make()
    count = what.count if isinstance(what, Chain) else 1
    load = load_of(what, WORKLOADS[name].precisions[0], 1)
    return count * load.seconds(roof) / (float(str(source[key])) / 1e3)


def _step(step: Found, roof: Roof | None) -> list[str]:
    candidates = {str(k): _map(v) for k, v in _map(step.get("candidates")).items()}
    name = str(step["workload"])
    bound = name.startswith("gem")
    rows = [_row(name, who, found, step, roof, bound=bound) for who, found in candidates.items()]
    headings = ["", "device", "inside kernels", "host", f"{_RIVAL} takes (host)", "energy", "error"]
    headings += ["share of roof (device / kernels)"] if bound else []
    lines = table(headings, rows) if rows else [f"Not measured: {step['state']}."]
    return lines if step["state"] == "done" or not rows else [*lines, "", f"Not complete: {step['state']}."]


def _row(name: str, who: str, found: Found, step: Found, roof: Roof | None, *, bound: bool) -> Row:
    if found.get("state") != "measured":
        reason = str(found.get("reason") or step["state"])
        state = "not measured" if found.get("state") == "ready" else found.get("state")
        return (who, f"{state}: {reason}", *[""] * (6 if bound else 5))
    over = _over(step, who) if who.startswith(_OWN) else None
    energy = _map(found.get("energy"))
    joules = energy.get("joules")
    shares = [_share(name, found, roof, key) for key in ("device_ms", "kernel_ms")]
    cells: list[object] = [
        who, _ms(found["device_ms"]), _ms(_map(found.get("kernels")).get("kernel_ms")), _ms(found["host_ms"]),
        "" if over is None else f"{over:.2f} x",
        f"null: {energy.get('reason')}" if joules is None else f"{float(str(joules)) * 1e3:.3g} mJ",
        f"{float(str(found['error'])):.2g}",
    ]  # fmt: skip
    return cells + ([" / ".join("null" if s is None else f"{s:.1%}" for s in shares)] if bound else [])


def _notes(data: Found) -> Iterator[str]:
    """Yield what the tables cannot say: modes of torch.compile, a library's part, programs, idle power."""
    for step in _steps(data):
        modes = {
            str(_map(c).get("mode")) for c in _map(step.get("candidates")).values() if _map(c).get("mode")
        }
        quick = sorted(modes - {"max-autotune", "dry run"})
        if quick:
            yield f"{step['workload']}, batch {step['batch']}: torch.compile ran with mode"
            yield f"{', '.join(quick)}: its tuning did not end in time.\n"
    yield from _library(data)
    origins = sorted(set(map(str, _map(data.get("programs")).values())))
    yield f"Programs of pared: {'; '.join(origins) or 'none'}."
    idle = [
        float(str(watts))
        for step in _steps(data)
        for found in _map(step.get("candidates")).values()
        if (watts := _map(_map(found).get("energy")).get("idle_watts")) is not None
    ]
    if idle:
        yield f"\nEnergy is above idle power, which was {min(idle):.0f} to {max(idle):.0f} W (NVML)."


def _library(data: Found) -> Iterator[str]:
    """Yield which programs of pared leave products to cuBLASLt."""
    for step in _steps(data):
        for name, found in _map(step.get("candidates")).items():
            count, launches = (_map(found).get(key) for key in ("library_products", "launches"))
            if count:
                where = f"{name} ({step['workload']}, batch {step['batch']})"
                yield f"{where}: cuBLASLt was faster in {count} of {launches} launches and does them.\n"


def _steps(data: Found) -> list[Found]:
    steps = data["steps"]
    assert isinstance(steps, list), "steps are a list"
    return [_map(step) for step in steps]


def _candidate(step: Found, name: str) -> Found:
    return _map(_map(step.get("candidates")).get(name))


def _map(value: object) -> Found:
    return value if isinstance(value, dict) else {}


def _ms(value: object) -> str:
    return "null" if value is None else f"{float(str(value)):.4g} ms"


def table(headings: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.md")
    given = parser.parse_args()
    write_page(given.json, given.out)


if __name__ == "__main__":
    main()
