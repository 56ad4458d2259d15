"""From a model to an artifact's payload: device code, constants, and what is launched on which buffers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ...compiler.backend import Payload
from ...compiler.cuda import cuda_devices, runs_on
from ...compiler.errors import MissingTool, UnsupportedOp
from ...compiler.ir.export import signature_of, to_bytes
from ...compiler.target import Target
from .options import batch_sizes
from .program import CODE, EMULATION, PROGRAM, WEIGHTS, Program, Programs

REPORT = "gpu.json"


def arch_of(target: Target) -> str:
    """Return the chip that a target names; raises `TargetError` for one that is no NVIDIA chip."""
    from ...compiler.errors import TargetError

    if not target.isa.arch.startswith("sm_"):
        raise TargetError(
            "gpu-arch",
            f"target {target.name}: isa.arch = {target.isa.arch!r}",
            'use "sm_80", "sm_89" or "sm_90"',
        )
    return target.isa.arch


def lower(model: ir.Model, target: Target, decisions: Mapping[str, str] | None = None) -> Payload:
    """Compile a model; `model` is not edited. The graph goes along as `model.onnx`, for comparing layers.

    `decisions` are the schedules of an artifact that is built again; None: choose.

    Raises:
        MissingTool: TVM or nvcc are not here.
        UnsupportedOp: a node that no kernel takes, with the reason; an open size.
    """
    from .choosing import choose_on_device, note_of
    from .emulate import describe
    from .kernels import build
    from .nvcc import compile_cubin, find_nvcc
    from .place import make_programs
    from .sizes import calls_of_sizes

    need_tvm()
    find_nvcc()
    arch = arch_of(target)
    calls, batched = calls_of_sizes(model, batch_sizes(target))
    functions = {name: f for size in calls for name, f in size.functions.items()}
    choices = choose_on_device(functions, arch, decisions)
    kernels = build(functions, arch, choices.wanted)
    programs, weights = make_programs(calls, kernels.functions, signature_of(model), arch, batched=batched)
    stored = Programs(programs=programs).model_dump_json(exclude_none=True).encode()
    files = {"model.onnx": to_bytes(model), PROGRAM: stored, WEIGHTS: weights}
    for name, source, contract in zip(CODE, kernels.sources, (True, False), strict=True):
        files |= {name: compile_cubin(source, arch, contract=contract)} if source else {}
    files[EMULATION] = describe(functions, kernels.functions).encode()
    notes = (note_of(choices, arch), *_emulated(arch))
    report = _report(programs) | {"schedules": dict(kernels.choices), "notes": notes}
    attachments = {REPORT: json.dumps(report, indent=1) + "\n", **choices.attachments()}
    return Payload("tvm", files, {"arch": arch}, attachments, choices.timed(), notes=notes)


def _emulated(arch: str) -> tuple[str, ...]:
    if any(runs_on(arch, chip) for chip in cuda_devices()):
        return ()
    return ("no GPU here: checked by emulation on this CPU, the mapping to threads has not run",)


def need_tvm() -> None:
    """Raise `MissingTool` where TVM is not installed."""
    import importlib.util

    if importlib.util.find_spec("tvm") is None:
        raise MissingTool(
            "tvm-missing", "backend gpu needs the package apache-tvm", "pip install 'pared[gpu]'"
        )


def one_sample(model: ir.Model, size: int = 1) -> tuple[ir.Model, bool]:
    """Return a model whose open first sizes are `size`, and whether there were any.

    Raises:
        UnsupportedOp: `gpu-shape`: other sizes are open, or the first size of some inputs only.
    """
    from ...compiler.ir.shapes import infer_shapes

    opened = [
        [axis for axis, size in enumerate(value.shape or ()) if not isinstance(size, int)]
        for value in model.graph.inputs
    ]
    if not any(opened):
        return model, False
    if any(axes != [0] for axes in opened):
        raise UnsupportedOp(
            "gpu-shape",
            "gpu: inputs have open sizes other than a first one that all share",
            "fix them with --shape",
        )
    draft = model.clone()
    for value in draft.graph.inputs:
        assert value.shape is not None, "an input without a shape"
        value.shape = ir.Shape([size, *list(value.shape)[1:]])
    for node in draft.graph:
        for output in node.outputs:
            output.shape = None
    infer_shapes(draft)
    return draft, True


def _report(programs: Sequence[Program]) -> dict[str, object]:
    arena = max(program.arena_bytes for program in programs)
    launches = {
        str(program.inputs[0].shape[0] if program.batched else "fixed"): [
            launch.model_dump(exclude={"buffers"}, exclude_none=True) for launch in program.launches
        ]
        for program in programs
    }
    return {
        "arch": programs[0].arch,
        "memory": {"arena_bytes": arena, "weight_bytes": programs[0].weight_bytes},
        "launches": launches,
    }
