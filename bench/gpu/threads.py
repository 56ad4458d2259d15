"""Generated kernels of whole models, run thread by thread on this CPU, against the reference.

PARED_DATA=... python -m pared.bench.gpu.threads [NAME ...]
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...backends.gpu.executable import GpuExecutable
from ...backends.gpu.kernels import Kernels, build
from ...backends.gpu.lower import one_sample
from ...backends.gpu.module import calls_of, relax_module
from ...backends.gpu.place import make_program
from ...backends.gpu.program import Program
from ...backends.gpu.simulate import SimulatedDevice, images
from ...backends.reference import derive_bound, evaluate
from ...compiler.backend import Array, Arrays
from ...compiler.errors import ParedError
from ...compiler.inputs import DTYPES
from ...compiler.ir.export import signature_of
from ...compiler.ir.importer import import_model
from ...compiler.ir.quant import Rounding, view
from ..data import data_folder
from ..results import Page

ARCH = "sm_90"
# Of two neighbouring steps in float32, relative to a step of 1/255 beside 1.
_ROUNDING = 1e-4
MODELS = (
    "ad01_fc_autoencoder_int8_qdq", "kws01_dscnn_int8_qdq", "ic01_resnet8_int8_qdq",
    "vww01_mobilenetv1_int8_qdq", "sww_streaming_wakeword_int8_qdq", "tfc_1w1a_qonnx", "tfc_2w2a_qonnx",
    "finn_tfc_multithreshold", "espcn_subpixel_quant", "ad01_fc_autoencoder", "kws01_dscnn", "ic01_resnet8",
    "kws_cnn_s", "kws_crnn_s", "kws_dnn_s", "kws_ds_cnn_s", "kws_gru_s", "kws_lstm_s", "mnist_conv8",
    "resnet20_cifar10", "dtln_1", "magika_standard_v3_3", "stories260k",
)  # fmt: skip
HEADINGS = (
    "model", "launches", "schedules", "threads run", "values", "that differ", "largest difference", "bound",
    "beyond it", "of these beside a tie",
)  # fmt: skip
ABOUT = f"""`PARED_DATA=... python -m pared.bench.gpu.threads`. *Simulated*, no GPU: the CUDA C++ that is
compiled for {ARCH}, run thread by thread (backends/gpu/simulate), every launch in two opposite orders of
threads, warps and blocks, whose results were equal bit for bit. Random inputs, one sample, seed 0. Values
that differ from `backends/reference`, the largest difference and the derived bound, over all outputs. The
bound is of floats: beside a tie of a quantizer a last bit decides about a whole step. "Beside a tie": the
output is a quantizer's, the value is one step off, and what the reference rounds there lies no further from
the middle between two steps than that float's own derived bound."""


def inputs_of(program: Program, rng: np.random.Generator) -> dict[str, Array]:
    """Return normal floats, integers of the whole range of 8 bits, small ones (tokens) of wider types."""
    made: dict[str, Array] = {}
    for port in program.inputs:
        kind = np.dtype(DTYPES[port.dtype])
        if kind.kind in "iu" and kind.itemsize == 1:
            limits = np.iinfo(kind)
            made[port.name] = rng.integers(limits.min, limits.max + 1, port.shape).astype(kind)
        elif kind.kind == "f":
            made[port.name] = rng.normal(size=port.shape).astype(kind)
        else:
            made[port.name] = rng.integers(0, 10, port.shape).astype(kind)
    return made


def on_threads(model: ir.Model) -> tuple[Program, Kernels, GpuExecutable]:
    """Compile a model for one sample; its kernels run thread by thread.

    Raises:
        UnsupportedOp: `gpu-unsupported`, `gpu-shape`.
    """
    fixed, batched = one_sample(model)
    calls = calls_of(relax_module(fixed))
    kernels = build(calls.functions, ARCH)
    program, weights = make_program(calls, kernels.functions, signature_of(model), ARCH, batched=batched)
    device = GpuExecutable(program, weights, images(kernels.sources), SimulatedDevice(ARCH))
    return program, kernels, device


def run(page: Page, name: str, model: ir.Model) -> None:
    """Compile and run a model, and add its row."""
    program, kernels, device = on_threads(model)
    inputs = inputs_of(program, np.random.default_rng(0))
    got = device.run(inputs)
    device.close()
    threads = 2 * sum(prod(step.grid) * prod(step.block) for step in program.launches)
    schedules = Counter(choice.split("-")[0] for choice in kernels.choices.values())
    page.add(
        name, len(program.launches), ", ".join(f"{n} {kind}" for kind, n in schedules.most_common()),
        f"{threads:,}", *compared(model, inputs, got),
    )  # fmt: skip


def compared(model: ir.Model, inputs: Arrays, got: Mapping[str, Array]) -> tuple[object, ...]:
    """Return the cells from `values` on, over all outputs."""
    want, bounds = evaluate(model, inputs), derive_bound(model, [inputs], seed=0)
    furthest, allowed, differ, beyond, ties = 0.0, 0.0, 0, 0, 0
    for name, array in got.items():
        exact = want[name].astype(np.float64)
        bound = bounds[name].atol + bounds[name].rtol_of_max * float(np.abs(exact).max())
        far = np.abs(array.astype(np.float64) - exact)
        furthest, allowed = max(furthest, float(far.max())), max(allowed, bound)
        differ += int((array != want[name]).sum())
        outside = far > bound
        if outside.any():
            beyond += int(outside.sum())
            ties += int((outside & beside_a_tie(model, inputs, name, far)).sum())
    values = sum(a.size for a in got.values())
    return values, differ, f"{furthest:.3g}", f"{allowed:.3g}", beyond, ties if beyond else "-"


def beside_a_tie(
    model: ir.Model, inputs: Arrays, output: str, far: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Say where an output may be one step of its quantizer off.

    Args:
        model: its output is made by a Quant of one scale that rounds half to even; others may not be off.
        inputs: one sample.
        output: its name.
        far: how far its values are from the reference's.
    """
    draft = model.clone()
    value = next(v for v in draft.graph.outputs if v.name == output)
    quantizer, params = value.producer(), view(value)
    if quantizer is None or quantizer.op_type != "Quant" or params is None:
        return np.zeros(far.shape, bool)
    if params.scale.size > 1 or params.spec.rounding is not Rounding.ROUND:
        return np.zeros(far.shape, bool)
    source = quantizer.inputs[0]
    assert source is not None, "a quantizer without data"
    draft.graph.outputs[:] = [source]
    rounded = evaluate(draft, inputs)[str(source.name)].astype(np.float64)
    bound = derive_bound(draft, [inputs], seed=0)[str(source.name)]
    limit = bound.atol + bound.rtol_of_max * float(np.abs(rounded).max())
    scale = float(params.scale.reshape(()))
    steps = rounded / scale + float(params.zero_point.reshape(()))
    to_tie = np.abs(steps - np.floor(steps) - 0.5) * scale
    return (to_tie <= limit) & (far <= scale * (1 + _ROUNDING))


def main() -> None:
    """Write docs/results/gpu_threads.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=MODELS)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    page = Page(given.out / "gpu_threads.md", "GPU kernels thread by thread", ABOUT, HEADINGS)
    for name in given.names:
        try:
            run(page, name, import_model(data_folder() / "models" / f"{name}.onnx").model)
        except ParedError as err:
            page.remark(f"{name}: {err}")


if __name__ == "__main__":
    main()
