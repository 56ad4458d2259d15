"""Batches of any size on programs of some sizes: cut, filled up, in flight together, exact to the row."""

from __future__ import annotations

import numpy as np
import pytest
from fake_driver import WIDTH, Fake, affine, floats, loaded, rows, want
from hypothesis import given
from hypothesis import strategies as st

from pared.backends.gpu.batches import cut
from pared.backends.gpu.driver import open_driver
from pared.backends.gpu.executable import GpuExecutable
from pared.backends.gpu.options import batch_sizes
from pared.compiler.errors import DataError, TargetError, UnsupportedOp
from pared.targets import load_target

_SIZES = st.lists(st.integers(1, 70), min_size=1, max_size=4, unique=True)


@given(st.integers(0, 300), _SIZES)
def test_pieces_cover_a_request_in_order_and_waste_less_than_half(count: int, sizes: list[int]) -> None:
    pieces = cut(count, sizes)
    assert [row for piece in pieces for row in range(piece.start, piece.start + piece.rows)] == [
        *range(count)
    ]
    assert all(piece.size in sizes and 0 < piece.rows <= piece.size for piece in pieces)
    assert all(2 * piece.rows > piece.size or piece.size == min(sizes) for piece in pieces)
    assert all(piece.rows == piece.size for piece in pieces[:-1])


@pytest.mark.parametrize("sizes", [(1,), (4,), (1, 4), (2, 4, 16)])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 15, 33])
def test_every_row_comes_out_whatever_the_pieces(fake: Fake, sizes: tuple[int, ...], count: int) -> None:
    model = loaded(fake, *sizes)
    got = model.run({"x": rows(count)})["y"]
    assert got.shape == (count, WIDTH)
    assert np.array_equal(got, want(rows(count)))


def test_rows_beyond_a_request_are_real_samples(fake: Fake) -> None:
    """An operator may not take what memory happens to hold, indices of Gather for example."""
    model, seen = loaded(fake, 4), []
    fake.kernel("double4", 2, lambda x, t: seen.append(floats(x, 4 * WIDTH).copy()))
    model = GpuExecutable(affine(4), bytes(256 + 4 * WIDTH), [b"\x7fELF", b""], open_driver())
    model.run({"x": rows(3)})
    assert np.array_equal(seen[0].reshape(4, WIDTH), np.vstack([rows(3), rows(3)[:1]]))


def test_the_next_piece_travels_before_this_one_is_collected(fake: Fake) -> None:
    """Two are in flight: the second is queued whole before the first is waited for."""
    model = loaded(fake, 1)
    model.run({"x": rows(1)})
    order: list[str] = []
    device = model._device
    for name in ("upload", "wait_for"):
        call = getattr(device, name)

        def noted(*args: object, name: str = name, call: object = call) -> object:
            order.append(name)
            return call(*args)  # type: ignore[operator]

        setattr(device, name, noted)
    model.run({"x": rows(4)})
    assert order == ["upload", "upload", "wait_for", "upload", "wait_for", "upload", "wait_for", "wait_for"]


def test_copies_and_launches_have_streams_of_their_own_in_long_batches_only(fake: Fake) -> None:
    model = loaded(fake, 4)
    model.run({"x": rows(4)})
    assert fake.live()["streams"] == 1
    model.run({"x": rows(9)})
    model.run({"x": rows(9)})
    assert fake.live()["streams"] == 3
    model.close()
    assert fake.live() == {}


def test_fixed_shapes_are_not_cut(fake: Fake) -> None:
    model = loaded(fake, 4, batched=False)
    assert np.array_equal(model.run({"x": rows(4)})["y"], want(rows(4)))
    with pytest.raises(DataError, match="shape"):
        model.run({"x": rows(3)})


@pytest.mark.parametrize(
    ("text", "sizes"), [("1,8,64", (1, 8, 64)), ("8, 1,8", (1, 8)), (16, (16,)), (None, (1,))]
)
def test_batch_sizes_are_read(text: object, sizes: tuple[int, ...]) -> None:
    options = {} if text is None else {"batches": text}
    target = load_target("gpu-cuda-sm90").model_copy(update={"options": options})
    assert batch_sizes(target) == sizes


@pytest.mark.parametrize("text", ["", "0", "1,,2", "-1", "1.5", "65537", "many", True])
def test_batch_sizes_that_mean_nothing_are_refused(text: object) -> None:
    target = load_target("gpu-cuda-sm90").model_copy(update={"options": {"batches": text}})
    with pytest.raises(TargetError, match="batches=1,8,64"):
        batch_sizes(target)


def test_an_unknown_option_is_refused_by_name() -> None:
    target = load_target("gpu-cuda-sm90").model_copy(update={"options": {"batch": 1}})
    with pytest.raises(TargetError, match="did you mean batches"):
        batch_sizes(target)


# --- compiled


def _compiled(sizes: tuple[int, ...]) -> tuple[GpuExecutable, object, int]:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from gpu_models import ARCH, model_of

    from pared.backends.gpu.emulate import EmulatedDevice, describe
    from pared.backends.gpu.kernels import build
    from pared.backends.gpu.place import make_programs
    from pared.backends.gpu.sizes import calls_of_sizes
    from pared.compiler.ir.export import signature_of

    rng = np.random.default_rng(0)
    model = model_of(
        """xr = DequantizeLinear(x, xs, xz)
           wr = DequantizeLinear(w, ws)
           c = Conv<pads = [1,1,1,1]>(xr, wr)
           y = QuantizeLinear(c, ys, yz)""",
        "uint8[N,3,5,5] x", "uint8[N,4,5,5] y", w=rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        xs=np.float32(0.02), xz=np.uint8(7), ws=np.float32(0.01), ys=np.float32(0.05), yz=np.uint8(120),
    )  # fmt: skip
    calls, batched = calls_of_sizes(model, sizes)
    functions = {name: f for size in calls for name, f in size.functions.items()}
    kernels = build(functions, ARCH)
    programs, weights = make_programs(calls, kernels.functions, signature_of(model), ARCH, batched=batched)
    device = EmulatedDevice(describe(functions, kernels.functions), ARCH)
    return GpuExecutable(programs, weights, [b"", b""], device), model, len(weights)


def test_programs_of_all_sizes_are_exact_and_share_their_constants() -> None:
    from pared.backends.reference import evaluate

    executable, model, weight_bytes = _compiled((1, 4))
    _, _, alone = _compiled((1,))
    assert weight_bytes == alone
    x = {"x": np.random.default_rng(1).integers(0, 256, (7, 3, 5, 5)).astype(np.uint8)}
    assert np.array_equal(executable.run(x)["y"], evaluate(model, x)["y"])
    assert executable.sizes == (1, 4)


def test_an_output_without_a_row_per_sample_is_refused_for_larger_batches() -> None:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from gpu_models import model_of

    from pared.backends.gpu.sizes import calls_of_sizes

    model = model_of("y = ReduceSum<keepdims = 0>(x, axes)", "float[N,3] x", "float[3] y", axes=[0])
    with pytest.raises(UnsupportedOp, match="not one row per sample"):
        calls_of_sizes(model, (2,))
