"""The memory plan: never two live buffers in one place, never below the bound, in place only where legal."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.cpu.native.planner import Plan, plan
from pared.backends.cpu.native.program import Buffer, Program, Step
from pared.compiler.arena import Block, arrange, lower_bound, rivals

sizes = st.integers(1, 40).map(lambda n: 64 * n)


@st.composite
def block_lists(draw):
    blocks = []
    for _ in range(draw(st.integers(1, 14))):
        first = draw(st.integers(0, 12))
        blocks.append(Block(first, first + draw(st.integers(0, 5)), draw(sizes)))
    return blocks


@given(block_lists())
@settings(deadline=None)
def test_live_blocks_never_share_bytes(blocks):
    offsets = arrange(blocks, tries=30)
    for (a, x), (b, y) in itertools.combinations(zip(blocks, offsets, strict=True), 2):
        assert not a.meets(b) or x + a.bytes <= y or y + b.bytes <= x


@given(block_lists())
@settings(deadline=None)
def test_the_arena_is_never_below_the_bound(blocks):
    offsets = arrange(blocks, tries=30)
    assert max(o + b.bytes for o, b in zip(offsets, blocks, strict=True)) >= lower_bound(blocks)


@given(block_lists())
def test_the_bound_is_the_fullest_step(blocks):
    live = [sum(b.bytes for b in blocks if b.first <= t <= b.last) for t in range(20)]
    assert lower_bound(blocks) == max(live)


@given(block_lists())
def test_rivals_are_the_blocks_that_meet(blocks):
    near = rivals(blocks)
    for i, block in enumerate(blocks):
        assert set(near[i]) == {j for j, other in enumerate(blocks) if j != i and block.meets(other)}


def test_the_search_reaches_a_bound_that_greedy_misses():
    """Greedy by size puts the big blocks first and leaves a gap too small for the long one."""
    blocks = [Block(0, 1, 192), Block(1, 2, 256), Block(2, 3, 192), Block(0, 3, 64), Block(3, 4, 320)]
    blocks += [Block(4, 5, 256), Block(5, 6, 320), Block(3, 6, 128)]
    offsets = arrange(blocks)
    assert max(o + b.bytes for o, b in zip(offsets, blocks, strict=True)) == lower_bound(blocks)


def test_the_same_blocks_get_the_same_offsets():
    blocks = [Block(i, i + 2 + i % 3, 64 * (1 + i * 7 % 5)) for i in range(30)]
    assert arrange(blocks) == arrange(blocks)


# --- programs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    def tasks(self) -> int:
        return 1


def program(steps, sizes, inputs=("x",), outputs=("y",)):
    buffers = tuple(Buffer(name, "uint8", (count,)) for name, count in sizes.items())
    made = Program(tuple(steps), buffers, (), tuple(inputs), tuple(outputs))
    made.check()
    return made


def step(inputs, output, in_place=None, family="kernel", scratch=()):
    spec = None if family == "alias" else Spec()
    return Step(family, spec, tuple(inputs), (), (output,), in_place=in_place, scratch=tuple(scratch))


def place_of(made: Plan, name):
    return dict(made.places)[name]


def test_inputs_and_outputs_take_no_arena():
    made = plan(program([step("x", "y")], {"x": 100, "y": 100}))
    assert made.arena_bytes == made.naive_bytes == 0
    assert (place_of(made, "x").where, place_of(made, "y").where) == ("input", "output")


def test_a_chain_needs_two_neighbours():
    made = plan(
        program([step("x", "a"), step("a", "b"), step("b", "c"), step("c", "y")], dict.fromkeys("xabcy", 64))
    )
    assert (made.arena_bytes, made.bound_bytes, made.naive_bytes) == (128, 128, 192)


def test_an_alias_is_the_same_memory():
    steps = [step("x", "a"), step("a", "b", family="alias"), step("b", "y")]
    made = plan(program(steps, dict.fromkeys("xaby", 64)))
    assert place_of(made, "a") == place_of(made, "b")


def test_an_alias_of_an_output_lies_in_the_output():
    steps = [step("x", "a"), step("a", "y", family="alias")]
    assert place_of(plan(program(steps, dict.fromkeys("xay", 64))), "a").where == "output"


def test_an_alias_of_an_input_lies_in_the_input():
    steps = [step("x", "a", family="alias"), step("a", "y")]
    assert place_of(plan(program(steps, dict.fromkeys("xay", 64))), "a").where == "input"


def test_an_add_overwrites_an_operand_that_dies():
    steps = [step("x", "a"), step("a", "b"), step("ab", "c", in_place=0), step("c", "y")]
    made = plan(program(steps, dict.fromkeys("xabcy", 64)))
    assert place_of(made, "a") == place_of(made, "c")
    assert made.arena_bytes == 128


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([step("x", "a"), step("a", "b", 0), step("ab", "y")], id="read later"),
        pytest.param([step("x", "b", 0), step("xb", "y")], id="the caller's input"),
        pytest.param([step("x", "a"), step("aa", "b", 0), step("b", "y")], id="read twice"),
        pytest.param([step("x", "a"), step("a", "b"), step("b", "y")], id="not an in-place step"),
    ],
)
def test_nothing_else_is_overwritten(steps):
    names = {name: 64 for one in steps for name in one.touched}
    made = plan(program(steps, names))
    source = "a" if "a" in names else "x"
    assert place_of(made, "b") != place_of(made, source)


def test_a_smaller_operand_is_not_overwritten():
    steps = [step("x", "a"), step("a", "b", 0), step("b", "y")]
    made = plan(program(steps, {"x": 64, "a": 64, "b": 128, "y": 64}))
    assert made.arena_bytes == 192


def test_an_operand_read_under_another_shape_is_not_overwritten():
    steps = [step("x", "a"), step("a", "r", family="alias"), step("ar", "b", 0), step("b", "y")]
    made = plan(program(steps, dict.fromkeys("xarby", 64)))
    assert place_of(made, "a") != place_of(made, "b")


def test_scratch_lives_for_one_step():
    steps = [step("x", "a", scratch="s"), step("a", "b"), step("b", "y")]
    made = plan(program(steps, {"x": 64, "a": 64, "s": 640, "b": 640, "y": 64}))
    assert made.arena_bytes == 704


def test_offsets_are_aligned():
    steps = [step("x", "a"), step("a", "b"), step("ab", "c"), step("c", "y")]
    made = plan(program(steps, {"x": 3, "a": 3, "b": 70, "c": 1, "y": 1}))
    assert all(where.offset % 64 == 0 for _, where in made.places)


@st.composite
def programs(draw):
    """Random graphs: every step reads one or two earlier buffers; some alias, some may work in place."""
    sizes, steps = {"x": 64}, []
    for i in range(draw(st.integers(1, 12))):
        known = list(sizes)
        inputs = draw(st.lists(st.sampled_from(known), min_size=1, max_size=2))
        kind = draw(st.sampled_from(["kernel", "kernel", "in place", "alias"]))
        if kind == "alias":
            inputs = inputs[:1]
        count = sizes[inputs[0]] if kind != "kernel" else draw(st.integers(1, 400))
        sizes[f"v{i}"] = count
        steps.append(
            step(inputs, f"v{i}", 0 if kind == "in place" else None, "alias" if kind == "alias" else "kernel")
        )
    sizes["y"] = 64
    steps.append(step([list(sizes)[-2]], "y"))
    return program(steps, sizes)


def run_symbolically(made: Program, layout: Plan):
    """Run on memory cells that remember what was written; fail when a read finds another value's bytes."""
    memory: dict[tuple[str, int, int], str] = {}
    same = {buffer.name: buffer.name for buffer in made.buffers}

    def cells(name):
        where, count = dict(layout.places)[name], made.by_name[name].bytes
        return [(where.where, where.index, where.offset + k) for k in range(count)]

    memory.update({cell: name for name in made.inputs for cell in cells(name)})
    for one in made.steps:
        for name in one.inputs:
            assert {memory.get(cell) for cell in cells(name)} == {same[name]}, name
        if one.family == "alias":
            same[one.outputs[0]] = same[one.inputs[0]]
            continue
        memory.update({cell: name for name in one.outputs for cell in cells(name)})


@given(programs())
@settings(deadline=None, max_examples=200)
def test_every_read_finds_what_was_written(made):
    run_symbolically(made, plan(made, tries=20))


@given(programs())
@settings(deadline=None)
def test_plan_is_between_bound_and_naive(made):
    layout = plan(made, tries=20)
    assert layout.bound_bytes <= layout.arena_bytes <= layout.naive_bytes
