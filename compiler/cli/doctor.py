"""`pared doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import exitcodes, options, render
from .outcome import Outcome
from .units import bytes_text, plural

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..doctor import DoctorReport
    from ..machine import Machine


def doctor(as_json: options.Json = False, quiet: options.Quiet = False) -> Outcome:
    """Check versions, clashes, CPU features and what each extra would add.

    Exits 0 when everything fits together, 1 when a clash was found.

    [bold]Example:[/bold]  pared doctor --json
    """
    from ..doctor import examine

    report = examine()
    code = exitcodes.CLEAN if report.ok else exitcodes.FINDING
    return Outcome(report, lambda: show(report), as_json, quiet, code)


def show(report: DoctorReport) -> RenderableType:
    """Return the view of a report."""
    return render.page(
        render.section(f"pared {report.pared} on Python {report.python}", _packages(report)),
        render.section("Machine", _machine(report.machine)),
        render.section("Extras", _extras(report)),
        _verdict(report),
    )


def _packages(report: DoctorReport) -> RenderableType:
    names = [(p.name, p.version or "not installed") for p in report.packages if p.group == "core"]
    support = report.onnx_support
    if support is not None:
        names += [
            ("ONNX IR", f"onnx {support.onnx_ir_version}, onnxruntime {support.onnxruntime_ir_version}; "
                        f"pared writes at most {support.written_ir_version}"),
            ("ONNX opset", f"onnx {support.onnx_opset}, onnxruntime {support.onnxruntime_opset}"),
        ]  # fmt: skip
    return render.facts(names)


def _machine(machine: Machine) -> RenderableType:
    cores = f"{machine.cores_usable} usable of {machine.cores_total}"
    return render.facts(
        [
            ("system", f"{machine.system}, {machine.arch}"),
            ("CPU", machine.cpu),
            ("features", " ".join(machine.cpu_features) or "unknown"),
            ("cores", cores),
            ("memory", bytes_text(machine.memory_bytes)),
            (
                "energy",
                f"RAPL at {machine.rapl_how}" if machine.rapl else f"not readable: {machine.rapl_how}",
            ),
            (
                "C compiler",
                machine.c_compiler or "none; engine native links with one, or with the package ziglang",
            ),
            (
                "GPUs",
                ", ".join(machine.gpus) or "none that a CUDA driver shows; compiling for GPUs needs none",
            ),
            ("nvcc", machine.cuda_compiler or "not on the PATH; targets gpu-cuda-* are compiled with it"),
        ]
    )


def _extras(report: DoctorReport) -> RenderableType:
    rows = [
        (extra.name, "installed" if extra.installed else extra.install, extra.adds) for extra in report.extras
    ]
    return render.table(["extra", "state or how to add", "what it adds"], rows, flexible="what it adds")


def _verdict(report: DoctorReport) -> RenderableType:
    if report.ok:
        return render.styled("no clash found", "good")
    lines = [render.styled(f"{plural(len(report.clashes), 'problem')} found", "bad")]
    for clash in report.clashes:
        lines.append(render.styled(f"[{clash.reason}] {clash.message}", "plain"))
        lines.append(render.styled(f"  next: {clash.next_step}", "dim"))
    return render.page(*lines)
