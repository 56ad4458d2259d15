"""The GPU backend against the reference, operator by operator, on the emulated device.

All cases of a group are one model, since what takes time is starting TVM's compiler. Nothing here has run on
a GPU: the functions are compiled for this CPU before their loops are mapped to threads.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from operator_cases import Array, Case, cases

from pared.backends.gpu.emulate import EmulatedDevice, describe
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.kernels import build
from pared.backends.gpu.module import calls_of, relax_module
from pared.backends.gpu.place import make_program
from pared.backends.reference import evaluate
from pared.compiler.differences import largest_difference
from pared.compiler.errors import UnsupportedOp
from pared.compiler.ir.export import signature_of
from pared.compiler.ir.importer import import_model

# Operators whose further inputs are data; of the others all but the first are constant, as in real models.
_DATA = frozenset(
    (
        "Add", "And", "Clip", "Concat", "Div", "Einsum", "Equal", "GatherElements", "Greater",
        "GreaterOrEqual", "Less", "LessOrEqual", "MatMul", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu",
        "Pow", "Sub", "Sum", "Where", "Xor",
    )
)  # fmt: skip
# Name -> what the refusal says.
REFUSED = {
    "MaxPool-float32-indices": "places of the maxima",
    "Range-int64": "no kernel",
    "NonZero-bool": "no kernel",
    "Shape-float32": "does not depend on any input",
    "Size-float32": "does not depend on any input",
}
CASES = {case.name: case for case in cases()}
TAKEN = [name for name in CASES if name not in REFUSED]
_GROUP = 40


def _constants(case: Case) -> list[str]:
    return [] if case.op in _DATA else list(case.feeds())[1:]


def _joined(group: list[Case]) -> tuple[ir.Model, dict[str, Array]]:
    """Return one model of several cases, `c3_x0` being input `x0` of the third, and its inputs."""
    graph, feeds = onnx.GraphProto(name="g"), {}
    for number, case in enumerate(group):
        proto, prefix = ir.to_proto(case.model()).graph, f"c{number}_"
        for node in proto.node:
            node.input[:] = [prefix + name if name else "" for name in node.input]
            node.output[:] = [prefix + name for name in node.output]
            node.name = case.name
        graph.node.extend(proto.node)
        for value in proto.input:
            array = np.asarray(case.feeds()[value.name])
            name = prefix + value.name
            if value.name in _constants(case):
                graph.initializer.append(numpy_helper.from_array(array, name))
            else:
                feeds[name] = array
                value.name = name
                graph.input.append(value)
        graph.output.extend(onnx.ValueInfoProto(name=prefix + value.name) for value in proto.output)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return import_model(model).model, feeds


def _emulated(model: ir.Model) -> GpuExecutable:
    calls = calls_of(relax_module(model))
    kernels = build(calls.functions, "sm_90")
    program, weights = make_program(calls, kernels.functions, signature_of(model), "sm_90", batched=False)
    emulation = describe(calls.functions, kernels.functions)
    return GpuExecutable(program, weights, [b"", b""], EmulatedDevice(emulation, "sm_90"))


@functools.lru_cache(None)
def _results(start: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return what the device and the reference give for the group of cases from `start`."""
    model, feeds = _joined([CASES[name] for name in TAKEN[start : start + _GROUP]])
    return dict(_emulated(model).run(feeds)), evaluate(model, feeds)


@pytest.mark.parametrize("name", TAKEN)
def test_the_gpu_agrees_with_the_reference(name: str) -> None:
    place, case = TAKEN.index(name), CASES[name]
    got, want = _results(place - place % _GROUP)
    mine = {key: array for key, array in want.items() if key.startswith(f"c{place % _GROUP}_")}
    assert len(mine) == case.outputs
    for key, array in mine.items():
        assert got[key].dtype == array.dtype
        assert got[key].shape == array.shape
        assert largest_difference(got[key], array) <= case.tolerance(array)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_gpu_does_not_take_is_refused_by_name(name: str) -> None:
    model, _ = _joined([CASES[name]])
    with pytest.raises(UnsupportedOp, match=REFUSED[name]):
        calls_of(relax_module(model))
