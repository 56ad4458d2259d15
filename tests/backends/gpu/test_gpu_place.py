"""Where buffers lie: nothing live is overwritten, what is dead gives room, everything starts at 256 bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pared.backends.gpu.module import Calls
from pared.backends.gpu.place import make_program, make_programs
from pared.backends.gpu.program import DeviceFunction, Kernel, Place, Program, Step, Tensor
from pared.compiler.backend import Port, Signature

_SIGNATURE = Signature((Port("x", "float32", (300,)),), (Port("y", "float32", (300,)),))
_STEP = 1280  # 300 floats, up to the next 256 bytes


def _function(inputs: int, **scratch: Tensor) -> DeviceFunction:
    """Return a function of some inputs and one output; with scratch, of two kernels that share it."""
    parameters = (*(f"i{n}" for n in range(inputs)), "o")
    names = ("first", "second") if scratch else ("only",)
    kernels = tuple(
        Kernel(f"k{inputs}_{name}", 0, (1, 1, 1), (32, 1, 1), 0, (*parameters, *scratch)) for name in names
    )
    return DeviceFunction(parameters, kernels, scratch)


def _calls(*steps: tuple[Sequence[str], str], **constants: npt.NDArray[np.generic]) -> Calls:
    """Return calls of `f1`, `f2`, ... by number of inputs, from `x` to `y`; every buffer has 300 floats."""
    made = tuple(Step(f"f{len(inputs)}", tuple(inputs), (output,)) for inputs, output in steps)
    names = {"x", "y", *(n for step in made for n in (*step.inputs, *step.outputs))} - set(constants)
    tensors = {name: Tensor(name, (300,), "float32") for name in names}
    tensors |= {name: Tensor(name, array.shape, str(array.dtype)) for name, array in constants.items()}
    return Calls({}, made, tensors, constants, ("x",), ("y",))


def _program(calls: Calls, **functions: DeviceFunction) -> tuple[Program, bytes]:
    known: Mapping[str, DeviceFunction] = {"f1": _function(1), "f2": _function(2)} | functions
    return make_program(calls, known, _SIGNATURE, "sm_90", batched=False)


def _places(program: Program) -> list[list[Place]]:
    """Return the places of every launch's buffers."""
    return [[program.places[index] for index in launch.buffers] for launch in program.launches]


def _arena(program: Program) -> list[list[int]]:
    return [[place.offset for place in places if place.where == "arena"] for places in _places(program)]


def test_an_input_and_an_output_are_the_callers_own_memory() -> None:
    program, _ = _program(_calls((["x"], "a"), (["a"], "y")))
    first, last = _places(program)
    assert first[0] == Place(where="input", offset=0)
    assert last[1] == Place(where="output", offset=0)


def test_an_output_that_is_read_again_is_no_working_memory() -> None:
    program, _ = _program(_calls((["x"], "y"), (["y"], "a")))
    assert _places(program)[1][0] == Place(where="output", offset=0)
    assert program.arena_bytes == _STEP


def test_what_a_kernel_reads_is_not_where_it_writes() -> None:
    program, _ = _program(_calls((["x"], "a"), (["a"], "b"), (["b"], "y")))
    (a,), (read, b), (last,) = _arena(program)
    assert (a, b) == (read, last)
    assert abs(a - b) >= _STEP


def test_what_is_read_last_gives_room_to_the_next_result() -> None:
    program, _ = _program(_calls((["x"], "a"), (["a"], "b"), (["b"], "c"), (["c"], "y")))
    assert program.arena_bytes == 2 * _STEP


def test_what_is_read_later_stays() -> None:
    program, _ = _program(_calls((["x"], "a"), (["a"], "b"), (["b"], "c"), (["a", "c"], "y")))
    assert program.arena_bytes == 3 * _STEP
    (a,), (_, b), (_, c), _ = _arena(program)
    assert len({a, b, c}) == 3


def test_working_memory_starts_at_whole_multiples_of_256_bytes() -> None:
    program, _ = _program(_calls((["x"], "a"), (["a"], "b"), (["b"], "c"), (["a", "c"], "y")))
    assert all(offset % 256 == 0 for offsets in _arena(program) for offset in offsets)
    assert program.arena_bytes % 256 == 0


def test_scratch_lies_beside_all_that_its_step_reads_and_writes() -> None:
    scratch = _function(1, s=Tensor("s", (300,), "float32"))
    program, _ = _program(_calls((["x"], "a"), (["a"], "b"), (["b"], "y")), f1=scratch)
    first, second = _arena(program)[2:4]
    assert first == second
    assert len(set(first)) == 3


def test_scratch_of_one_step_gives_room_to_the_next() -> None:
    scratch = _function(1, s=Tensor("s", (300,), "float32"))
    program, _ = _program(_calls((["x"], "a"), (["a"], "y")), f1=scratch)
    assert program.arena_bytes == 2 * _STEP


def test_scratch_has_its_own_size() -> None:
    scratch = _function(1, s=Tensor("s", (1000,), "float32"))
    program, _ = _program(_calls((["x"], "y")), f1=scratch)
    assert program.arena_bytes == 4096


def test_scratch_of_one_name_is_each_steps_own() -> None:
    large, small = (Tensor("s", (count,), "float32") for count in (1000, 300))
    functions = {"f1": _function(1, s=large), "f2": _function(2, s=small)}
    program, _ = _program(_calls((["x"], "a"), (["x", "a"], "y")), **functions)
    assert program.arena_bytes == 4096 + _STEP


def test_kernels_get_their_buffers_in_the_order_of_their_parameters() -> None:
    turned = DeviceFunction(
        ("i0", "i1", "o"), (Kernel("k", 0, (1, 1, 1), (32, 1, 1), 0, ("o", "i1", "i0")),), {}
    )
    program, _ = _program(_calls((["x", "w"], "y"), w=np.zeros(300, np.float32)), f2=turned)
    assert [place.where for place in _places(program)[0]] == ["output", "weights", "input"]


def test_constants_lie_where_their_bytes_are() -> None:
    arrays = {"v": np.arange(7, dtype=np.float32), "w": np.arange(300, dtype=np.int8)}
    calls = _calls((["x", "v"], "a"), (["a", "w"], "y"), **arrays)
    program, data = _program(calls)
    for places, array in zip(_places(program), arrays.values(), strict=True):
        (place,) = (p for p in places if p.where == "weights")
        assert place.offset % 256 == 0
        assert data[place.offset : place.offset + array.nbytes] == array.tobytes()
    assert len(data) == program.weight_bytes == 768


def test_equal_constants_are_stored_once() -> None:
    w = np.ones(300, np.float32)
    program, data = _program(_calls((["x", "v"], "a"), (["a", "w"], "y"), v=w, w=w.copy()))
    assert len(data) == _STEP
    assert _places(program)[0][1] == _places(program)[1][1]


def test_programs_of_several_batches_share_constants() -> None:
    calls = _calls((["x", "w"], "y"), w=np.ones(300, np.float32))
    programs, data = make_programs([calls, calls], {"f2": _function(2)}, _SIGNATURE, "sm_90", batched=True)
    assert len(data) == _STEP
    assert [program.weight_bytes for program in programs] == [_STEP, _STEP]
