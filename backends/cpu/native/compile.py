"""Engine `native`, compile time: a whole model as one shared library. Needs the extra `tvm` and a linker."""

from __future__ import annotations

import importlib.util
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....compiler.backend import Payload, Verdict
from ....compiler.errors import MissingTool, TargetError, UnsupportedOp
from ....compiler.records import Json
from .isa import Isa, isa_of
from .link import compiler_for
from .timing import Decisions, deciding

if TYPE_CHECKING:
    import onnx_ir as ir

    from ....compiler.pass_api import Context
    from ....compiler.target import Target
    from .planner import Plan
    from .program import Program

REPORT = "native.json"


def installed() -> bool:
    """Tell whether models can be compiled here, without importing TVM; running them needs nothing."""
    return importlib.util.find_spec("tvm") is not None


def lower(model: ir.Model, target: Target, ctx: Context) -> Payload:
    """Compile a model; `model` is not edited.

    The graph goes along as `model.onnx`, the payload of engine `ort`: what the library is verified against,
    layer by layer, and what runs elsewhere. Loading the library does not need it.

    The attachment `native.json` lists the steps and says what the arena needs: the plan, the lower bound (the
    most bytes live at one step) and the sum of all buffers.

    Raises:
        MissingTool: the extra or a linker is not here.
        TargetError: `target-isa`: nothing can be generated for the target.
        UnsupportedOp: a node that no kernel takes, with the reason.
    """
    from .. import ort_engine

    isa = usable_isa(target)
    with deciding(Decisions(isa, ctx.decisions)) as decisions:
        built = build(model, isa)
    options: dict[str, str | bool] = {"isa": isa.text, "batched": built.batched}
    graph = ort_engine.lower(model)
    report = json.dumps(built.report, indent=1) + "\n"
    attachments = {**graph.attachments, REPORT: report, **decisions.attachments()}
    files = {**graph.files, **built.files}
    payload = Payload("native", files, options, attachments, decisions.timed(), notes=decisions.notes())
    # A large graph lies in a temporary folder that goes with its own payload.
    weakref.finalize(payload, lambda kept: None, graph)
    return payload


def usable_isa(target: Target) -> Isa:
    """Return what code for a target may use.

    Raises:
        MissingTool: the extra or a linker is not here.
        TargetError: `target-isa`: nothing can be generated for the target.
    """
    isa = isa_of(target)
    if isinstance(isa, Verdict):
        raise TargetError("target-isa", f"engine native: {isa.reason}", "use another engine")
    if not installed():
        raise MissingTool(
            "tvm-missing", "engine native needs the package apache-tvm", "pip install 'pared[tvm]'"
        )
    compiler_for(isa.arch)
    return isa


@dataclass(frozen=True)
class Built:
    """A compiled model or region.

    Attributes:
        files: library and header by name.
        batched: the library computes one sample of a batch.
        report: steps and memory.
    """

    files: Mapping[str, bytes]
    batched: bool
    report: Json


def build(model: ir.Model, isa: Isa) -> Built:
    """Compile a model; `model` is not edited.

    Raises:
        UnsupportedOp: a node that no kernel takes, with the reason.
    """
    from . import codegen
    from .planner import plan

    program, batched = make_program(model, isa)
    placed = plan(program)
    return Built(codegen.build(program, placed, isa), batched, _report(program, placed))


def make_program(model: ir.Model, isa: Isa) -> tuple[Program, bool]:
    """Lower a model without generating code; tell whether the program is that of one sample of a batch.

    Raises:
        UnsupportedOp: as `build`.
    """
    from .lower import lower as lower_model

    program = lower_model(model, isa)
    batched = _has_batch(model)
    if batched:
        _check_per_sample(program, lower_model(model, isa, batch=2))
    return program, batched


def _has_batch(model: ir.Model) -> bool:
    """Tell whether the first size of inputs and outputs is open: then samples are run one by one.

    Raises:
        UnsupportedOp: `native-batch`: it is open for some only.
    """
    ports = [*model.graph.inputs, *model.graph.outputs]
    sizes = {port.name: list(port.shape or [1])[:1] for port in ports}
    opened = {name: not all(isinstance(size, int) for size in first) for name, first in sizes.items()}
    if any(opened.values()) and not all(opened.values()):
        fixed = next(name for name, is_open in opened.items() if not is_open)
        raise UnsupportedOp(
            "native-batch",
            f"native: {fixed!r} has a fixed first size, other inputs or outputs an open one",
            "fix all sizes with --shape, or use the engine ort",
        )
    return any(opened.values())


def _check_per_sample(one: Program, two: Program) -> None:
    """Refuse a model whose samples meet: then a batch of two is more than the same steps on twice the data.

    Raises:
        UnsupportedOp: `native-batch`.
    """
    same = [s.family for s in one.steps] == [s.family for s in two.steps]
    # Weights may be packed otherwise for other tiles.
    same = same and [c.array.size for c in one.constants] == [c.array.size for c in two.constants]
    scratch = {name for step in one.steps for name in step.scratch}
    sizes = [[b.bytes for b in program.buffers if b.name not in scratch] for program in (one, two)]
    twice = [2 * size for size in sizes[0]] == sizes[1]
    if not (same and twice):
        raise UnsupportedOp(
            "native-batch",
            "native: samples of a batch are not computed one by one",
            "fix the batch with --shape, or use the engine ort",
        )


def _report(program: Program, placed: Plan) -> Json:
    from .program import constant_bytes

    memory: dict[str, Json] = {
        "arena_bytes": placed.arena_bytes,
        "bound_bytes": placed.bound_bytes,
        "naive_bytes": placed.naive_bytes,
        "constant_bytes": constant_bytes(program),
    }
    return {"memory": memory, "steps": program.summary()}
