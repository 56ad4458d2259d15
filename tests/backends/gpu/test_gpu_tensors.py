"""Tensors of other libraries: in place where they fit, on a fake driver and on the emulated device."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_driver import IMAGE, WEIGHT_BYTES, WIDTH, Fake, affine, floats, loaded, rows, want

from pared.backends.gpu.dlpack import Borrowed, DeviceTensor
from pared.backends.gpu.driver import CudaDevice, open_driver
from pared.backends.gpu.executable import GpuExecutable
from pared.compiler.errors import DataError, ParedError


class Foreign:
    """A tensor of another library on a device: a view of a `DeviceTensor`, and what it was asked for."""

    def __init__(self, tensor: DeviceTensor, **changes: Any) -> None:
        self.shape = changes.pop("shape", tensor.shape)
        self._tensor, self._changes = tensor, changes
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._changes.get("place", self._tensor.__dlpack_device__())

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None) -> object:
        self.streams.append(stream)
        if self._changes.get("old") and max_version is not None:
            raise TypeError("no max_version")
        capsule = self._tensor.__dlpack__(stream=stream, max_version=max_version)
        if edit := self._changes.get("edit"):
            edit(_structure(capsule, versioned=max_version is not None))
        return capsule


def _structure(capsule: object, *, versioned: bool) -> Any:
    from pared.backends.gpu import dlpack

    name, kind = (dlpack._NEW, dlpack._Versioned) if versioned else (dlpack._PLAIN, dlpack._Managed)
    return kind.from_address(dlpack._python.PyCapsule_GetPointer(capsule, name))


def on_device(device: CudaDevice, values: np.ndarray, offset: int = 0) -> DeviceTensor:
    """Return a tensor on the fake device."""
    room = DeviceTensor(device, (values.size + offset,), "FLOAT")
    floats(room.address, values.size + offset)[offset:] = values.reshape(-1)
    room.shape = values.shape
    return room


@pytest.fixture
def device(fake: Fake) -> CudaDevice:
    return open_driver()


@pytest.fixture
def model(fake: Fake, device: CudaDevice) -> GpuExecutable:
    return loaded(fake, 1, 4, device=device)


def copies(fake: Fake) -> int:
    return sum(fake.calls(f"cuMemcpy{way}Async_v2") for way in ("HtoD", "DtoH", "DtoD"))


@pytest.mark.parametrize("old", [False, True])
def test_a_tensor_on_the_device_is_used_where_it_lies(
    fake: Fake, model: GpuExecutable, device: CudaDevice, old: bool
) -> None:
    x = Foreign(on_device(device, rows(4)), old=old)
    before = copies(fake)
    made = model.run_dlpack({"x": x})["y"]
    assert copies(fake) == before
    assert isinstance(made, DeviceTensor)
    assert np.array_equal(made.numpy(), want(rows(4)))
    assert set(x.streams) == {device.stream}


def test_arrays_come_back_for_device_tensors_too(model: GpuExecutable, device: CudaDevice) -> None:
    assert np.array_equal(model.run({"x": on_device(device, rows(4))})["y"], want(rows(4)))


def test_outputs_go_where_they_are_wanted(fake: Fake, model: GpuExecutable, device: CudaDevice) -> None:
    x, y = on_device(device, rows(4)), on_device(device, np.zeros((4, WIDTH), np.float32))
    before = fake.live()
    assert model.run_dlpack({"x": x}, {"y": y}) == {"y": y}
    assert np.array_equal(y.numpy(), want(rows(4)))
    assert fake.live() == before


def test_host_arrays_are_uploaded(model: GpuExecutable) -> None:
    assert np.array_equal(model.run_dlpack({"x": rows(5)})["y"].numpy(), want(rows(5)))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 11, 0])
@pytest.mark.parametrize("offset", [0, 1])
def test_pieces_of_a_batch_are_parts_of_the_tensor(
    model: GpuExecutable, device: CudaDevice, count: int, offset: int
) -> None:
    """Whole pieces that start at a multiple of 16 bytes in place, others through a buffer of the model's."""
    room = on_device(device, rows(count), offset)
    base = 4 * offset
    x = Foreign(room, edit=lambda s: setattr(s.tensor, "byte_offset", base))
    got = model.run_dlpack({"x": x})["y"].numpy()
    assert got.shape == (count, WIDTH)
    assert np.array_equal(got, want(rows(count)))


def test_rows_beyond_a_tensor_are_real_samples(fake: Fake, device: CudaDevice) -> None:
    """An operator may not take what memory happens to hold, indices of Gather for example."""
    seen: list[np.ndarray] = []
    fake.kernel("double4", 2, lambda x, t: seen.append(floats(x, 4 * WIDTH).copy()))
    fake.kernel("add4", 3, lambda t, w, y: None)
    model = GpuExecutable(affine(4), WEIGHT_BYTES, [IMAGE, b""], device)
    model.run_dlpack({"x": on_device(device, rows(3))})
    assert np.array_equal(seen[0].reshape(4, WIDTH), np.vstack([rows(3), rows(3)[:1]]))


def test_addresses_that_come_again_are_recorded(fake: Fake, model: GpuExecutable, device: CudaDevice) -> None:
    x, y = on_device(device, rows(4)), on_device(device, np.zeros((4, WIDTH), np.float32))
    for _ in range(5):
        model.run_dlpack({"x": x}, {"y": y})
    assert (fake.calls("cuLaunchKernel"), fake.calls("cuGraphLaunch")) == (4, 4)


def test_of_many_addresses_the_last_graphs_are_kept(
    fake: Fake, model: GpuExecutable, device: CudaDevice
) -> None:
    pairs = [(on_device(device, rows(4, s)), on_device(device, np.zeros((4, WIDTH)))) for s in range(12)]
    for _ in range(2):
        for x, y in pairs:
            for _ in range(2):
                model.run_dlpack({"x": x}, {"y": y})
    assert all(np.array_equal(y.numpy(), want(rows(4, s))) for s, (_, y) in enumerate(pairs))
    assert fake.live()["graphs"] == 8
    model.close()


def _transposed(structure: Any) -> None:
    structure.tensor.strides[0], structure.tensor.strides[1] = 1, 4


def _halves(structure: Any) -> None:
    structure.tensor.type.bits = 16


def _pairs(structure: Any) -> None:
    structure.tensor.type.lanes = 2


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"edit": _transposed}, "tensor-strides", "C order"),
        ({"edit": _halves}, "input-dtype", "needs FLOAT, the tensor is FLOAT16"),
        ({"edit": _pairs}, "input-dtype", "the tensor is ?"),
        ({"place": (2, 1)}, "tensor-device", r"\(2, 1\), the model is on \(2, 0\)"),
        ({"place": (10, 0)}, "tensor-device", r"\(10, 0\)"),
        ({"shape": (4, 3)}, "input-shape", r"needs shape \[batch, 8\], got \[4, 3\]"),
    ],
)
def test_what_cannot_be_used_in_place_is_refused(
    fake: Fake, model: GpuExecutable, device: CudaDevice, changes: dict[str, Any], reason: str, message: str
) -> None:
    x = on_device(device, rows(4))
    before = fake.live()
    with pytest.raises(DataError, match=message) as caught:
        model.run_dlpack({"x": Foreign(x, **changes)})
    assert caught.value.reason == reason
    assert fake.live() == before


def test_strides_of_single_rows_do_not_matter(model: GpuExecutable, device: CudaDevice) -> None:
    def edit(structure: Any) -> None:
        structure.tensor.strides[0] = 77

    x = Foreign(on_device(device, rows(1)), edit=edit)
    assert np.array_equal(model.run_dlpack({"x": x})["y"].numpy(), want(rows(1)))


def test_a_refusal_of_the_other_library_is_told(model: GpuExecutable, device: CudaDevice) -> None:
    def refuse(structure: Any) -> None:
        raise BufferError("requires grad")

    with pytest.raises(DataError, match="requires grad"):
        model.run_dlpack({"x": Foreign(on_device(device, rows(4)), edit=refuse)})


@pytest.mark.parametrize("shape", [(3, WIDTH), (4, WIDTH, 1)])
def test_outputs_of_another_shape_are_refused(
    model: GpuExecutable, device: CudaDevice, shape: tuple[int, ...]
) -> None:
    y = on_device(device, np.zeros(shape, np.float32))
    with pytest.raises(DataError, match=r"needs shape \[4, 8\]"):
        model.run_dlpack({"x": on_device(device, rows(4))}, {"y": y})


def test_outputs_of_unknown_names_on_the_host_or_read_only_are_refused(
    model: GpuExecutable, device: CudaDevice
) -> None:
    x, y = on_device(device, rows(4)), on_device(device, rows(4))
    with pytest.raises(DataError, match="unknown"):
        model.run_dlpack({"x": x}, {"z": y})
    with pytest.raises(DataError, match="no tensor of a device"):
        model.run_dlpack({"x": x}, {"y": np.zeros((4, WIDTH), np.float32)})
    with pytest.raises(DataError, match="read-only"):
        model.run_dlpack({"x": x}, {"y": Foreign(y, edit=lambda s: setattr(s, "flags", 1))})


def test_outputs_outlive_their_model_and_free_the_device_at_last(fake: Fake, device: CudaDevice) -> None:
    model = loaded(fake, 1, device=device)
    made = model.run_dlpack({"x": rows(2)})["y"]
    model.close()
    assert fake.live() == {"device": 1, "contexts": 1}
    assert np.array_equal(made.numpy(), want(rows(2)))
    del made
    gc.collect()
    assert fake.live() == {}


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_memory_stays_while_another_library_holds_it(
    fake: Fake, device: CudaDevice, version: tuple[int, int] | None
) -> None:
    tensor = DeviceTensor(device, (2, 3), "FLOAT")
    capsule = tensor.__dlpack__(stream=1, max_version=version)
    taken = Borrowed(_Handed(capsule), (2, 0), 5)
    assert (taken.shape, taken.dtype, taken.place, taken.contiguous) == ((2, 3), "FLOAT", (2, 0), True)
    del tensor, capsule
    gc.collect()
    assert fake.live()["device"] == 1
    taken.release()
    taken.release()
    assert "device" not in fake.live()


class _Handed:
    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self._capsule


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_a_capsule_that_nobody_takes_frees_its_offer(
    fake: Fake, device: CudaDevice, version: tuple[int, int] | None
) -> None:
    DeviceTensor(device, (2, 3), "FLOAT").__dlpack__(max_version=version)
    gc.collect()
    assert "device" not in fake.live()


def test_a_capsule_is_taken_once(device: CudaDevice) -> None:
    handed = _Handed(DeviceTensor(device, (2, 3), "FLOAT").__dlpack__())
    first = Borrowed(handed, (2, 0), 5)
    with pytest.raises(DataError, match="was used"):
        Borrowed(handed, (2, 0), 5)
    first.release()


@pytest.mark.parametrize("options", [{"stream": 0}, {"copy": True}, {"dl_device": (1, 0)}])
def test_offers_that_cannot_be_kept_are_refused(device: CudaDevice, options: dict[str, Any]) -> None:
    with pytest.raises(BufferError):
        DeviceTensor(device, (2, 3), "FLOAT").__dlpack__(**options)


def test_freeing_while_launches_are_recorded_waits_for_the_end(fake: Fake, device: CudaDevice) -> None:
    tensor = DeviceTensor(device, (4,), "FLOAT")
    device.begin_capture()
    del tensor
    gc.collect()
    assert fake.live()["device"] == 1
    device.forget(device.end_capture())
    assert "device" not in fake.live()


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_gives_tensors_back(fake: Fake, model: GpuExecutable, device: CudaDevice, fails: bool) -> None:
    before = fake.live()
    x = on_device(device, rows(4))
    if fails:
        fake.fail("cuLaunchKernel", 2, 999)
        with pytest.raises(ParedError, match="cuLaunchKernel"):
            model.run_dlpack({"x": x})
    else:
        model.run_dlpack({"x": x})
    del x
    gc.collect()
    assert fake.live() == before


# --- on the emulated device, whose memory is this machine's


@pytest.fixture(scope="module")
def relu() -> GpuExecutable:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from gpu_models import emulated, model_of

    return emulated(model_of("y = Relu(x)", "float[N,8] x", "float[N,8] y"))


def _numpy(values: np.ndarray) -> object:
    class Tensor:  # NumPy's own arrays are taken as arrays
        shape = values.shape
        __dlpack__ = values.__dlpack__
        __dlpack_device__ = values.__dlpack_device__

    return Tensor()


def _torch(values: np.ndarray) -> object:
    return pytest.importorskip("torch", reason="torch is not installed").from_numpy(values)


@pytest.mark.parametrize("library", [_numpy, _torch])
def test_tensors_of_this_machine_run_on_the_emulated_device(
    relu: GpuExecutable, library: Callable[[np.ndarray], object]
) -> None:
    model, x = relu, rows(3)
    assert np.array_equal(model.run({"x": library(x)})["y"], np.maximum(x, 0))
    made = model.run_dlpack({"x": library(x)})["y"]
    assert np.array_equal(np.from_dlpack(made), np.maximum(x, 0))


def test_torch_takes_outputs_over_and_gives_its_own(relu: GpuExecutable) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model, x = relu, torch.randn(3, 8)
    room = torch.zeros(3, 8)
    model.run_dlpack({"x": x}, {"y": room})
    assert torch.equal(room, torch.relu(x))
    taken = torch.from_dlpack(model.run_dlpack({"x": x})["y"])
    gc.collect()
    assert torch.equal(taken, torch.relu(x))


def test_torch_tensors_with_gradients_are_refused_with_the_way_out(relu: GpuExecutable) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(DataError, match="detach"):
        relu.run({"x": torch.randn(3, 8, requires_grad=True)})


def test_a_slice_with_strides_is_refused_in_place_and_copied_as_array(relu: GpuExecutable) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model, x = relu, torch.randn(3, 16)[:, ::2]
    with pytest.raises(DataError, match="contiguous"):
        model.run_dlpack({"x": x})
    assert np.array_equal(model.run({"x": x})["y"], torch.relu(x).numpy())
