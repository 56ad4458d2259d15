"""Engine `native`, compile time: a whole model as one shared library. Needs the extra `tvm` and a linker."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING

from ....compiler.backend import Payload, Verdict
from ....compiler.errors import MissingTool, TargetError
from .isa import isa_of
from .link import compiler_for

if TYPE_CHECKING:
    import onnx_ir as ir

    from ....compiler.target import Target
    from .planner import Plan
    from .program import Program

REPORT = "native.json"


def installed() -> bool:
    """Tell whether models can be compiled here, without importing TVM; running them needs nothing."""
    return importlib.util.find_spec("tvm") is not None


def lower(model: ir.Model, target: Target) -> Payload:
    """Compile a model; `model` is not edited.

    The attachment `native.json` lists the steps and says what the arena needs: the plan, the lower bound (the
    most bytes live at one step) and the sum of all buffers.

    Raises:
        MissingTool: the extra or a linker is not here.
        TargetError: `target-isa`: nothing can be generated for the target.
        UnsupportedOp: a node that no kernel takes, with the reason.
    """
    isa = isa_of(target)
    if isinstance(isa, Verdict):
        raise TargetError("target-isa", f"engine native: {isa.reason}", "use another engine")
    if not installed():
        raise MissingTool(
            "tvm-missing", "engine native needs the package apache-tvm", "pip install 'pared[tvm]'"
        )
    compiler_for(isa.arch)
    from . import codegen
    from .lower import lower as lower_model
    from .planner import plan

    program = lower_model(model, isa)
    placed = plan(program)
    options = {"isa": " ".join([isa.arch, *isa.features])}
    return Payload("native", codegen.build(program, placed, isa), options, {REPORT: _report(program, placed)})


def _report(program: Program, placed: Plan) -> str:
    from .program import constant_bytes

    memory = {
        "arena_bytes": placed.arena_bytes,
        "bound_bytes": placed.bound_bytes,
        "naive_bytes": placed.naive_bytes,
        "constant_bytes": constant_bytes(program),
    }
    return json.dumps({"memory": memory, "steps": program.summary()}, indent=1) + "\n"
