"""Schedules timed on a device: the fastest that computes the same; on a driver whose times are given."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from fake_driver import Fake, floats
from gpu_models import ARCH, model_of

import pared.backends.gpu.choosing as choosing
from pared.backends.gpu.choosing import Choices, choose_on_device, key_of, note_of, pick
from pared.backends.gpu.driver import CudaDevice, open_driver
from pared.backends.gpu.kernels import build
from pared.backends.gpu.module import calls_of, relax_module
from pared.backends.gpu.program import DeviceFunction, Kernel, Tensor
from pared.backends.gpu.schedules.base import chip_of
from pared.backends.gpu.schedules.table import alternatives
from pared.backends.gpu.trial import Trial, run_trial, tensors_of
from pared.compiler.timing_cache import TimingCache

COUNT = 16


@pytest.fixture(scope="module")
def relu() -> object:
    (function,) = calls_of(
        relax_module(model_of("y = Relu(x)", "float[16] x", "float[16] y"))
    ).functions.values()
    return function


@pytest.fixture(scope="module")
def product() -> object:
    """A product that the table has several schedules for."""
    rng = np.random.default_rng(0)
    model = model_of(
        "y = MatMul(x, w)",
        "float16[64,64] x",
        "float16[64,64] y",
        w=rng.normal(size=(64, 64)).astype(np.float16),
    )
    functions = calls_of(relax_module(model)).functions.values()
    return next(f for f in functions if len(list(alternatives(f, chip_of(ARCH)))) > 1)


def option(name: str, buffers: tuple[str, ...], scratch: bool = False) -> DeviceFunction:
    """Return a schedule of one kernel, or of two with memory between them."""
    middle = {"m": Tensor("m", (COUNT,), "float32")} if scratch else {}
    steps = [(buffers[0], "m"), ("m", buffers[1])] if scratch else [buffers]
    kernels = tuple(Kernel(name, 0, (1, 1, 1), (32, 1, 1), 0, tuple(step)) for step in steps)
    return DeviceFunction(buffers, kernels, middle)


def times(device: CudaDevice, given: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let graphs take so many ms, by their turn."""
    replayed: list[int] = []
    replay = device.replay

    def noted(graph: int) -> None:
        replayed.append(graph)
        replay(graph)

    def times_ms(queue: Callable[[], None], runs: int) -> list[float]:
        queue()
        order = list(dict.fromkeys(replayed))
        return [given[order.index(replayed[-1])]] * runs

    monkeypatch.setattr(device, "replay", noted)
    monkeypatch.setattr(device, "times_ms", times_ms)


def test_schedules_that_compute_the_same_are_timed_and_others_are_left_out(
    fake: Fake, relu: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(tensor.name for tensor in tensors_of(relu))
    fake.kernel("right", 2, lambda x, y: np.maximum(floats(x, COUNT), 0, out=floats(y, COUNT)))
    fake.kernel("wrong", 2, lambda x, y: np.copyto(floats(y, COUNT), floats(x, COUNT)))
    device = open_driver()
    handles = device.functions(b"\x7fELF", ["right", "wrong"])
    options = {
        "one": option("right", names),
        "bad": option("wrong", names),
        "two": option("right", names, True),
    }
    times(device, {0: 10.0, 1: 5.0}, monkeypatch)
    found = run_trial(Trial(relu, options, handles), device)
    assert found == {"one": pytest.approx(1e-3), "two": pytest.approx(5e-4)}
    device.close()
    assert fake.live() == {}


def test_a_trial_that_fails_leaves_nothing(fake: Fake, relu: object) -> None:
    names = tuple(tensor.name for tensor in tensors_of(relu))
    fake.kernel("right", 2, lambda x, y: np.maximum(floats(x, COUNT), 0, out=floats(y, COUNT)))
    device = open_driver()
    handles = device.functions(b"\x7fELF", ["right"])
    fake.fail("cuLaunchKernel", 3, 999)
    with pytest.raises(Exception, match="cuLaunchKernel"):
        run_trial(Trial(relu, {"one": option("right", names)}, handles), device)
    device.close()
    assert fake.live() == {}


def test_noise_does_not_decide() -> None:
    assert pick({"static": 1.0, "other": 0.985}) == "static"
    assert pick({"static": 1.0, "other": 0.97}) == "other"
    assert pick({"static": 2.0}) == "static"


def test_without_a_device_nothing_is_chosen(fake: Fake, product: object) -> None:
    fake.devices("sm_80")
    choices = choose_on_device({"f": product}, ARCH, None)
    assert choices == Choices()
    assert "static choice" in note_of(choices, ARCH)


def test_the_key_of_a_function_does_not_depend_on_its_name(relu: object, product: object) -> None:
    assert key_of(relu) == key_of(relu.with_attr("global_symbol", "other"))  # type: ignore[attr-defined]
    assert key_of(relu) != key_of(product)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace trials: the last schedule is the fastest. Returns what was timed."""
    asked: list[list[str]] = []

    def trial(trial: Trial, device: CudaDevice) -> dict[str, float]:
        asked.append(list(trial.options))
        return {name: 1e-6 * (len(trial.options) - n) for n, name in enumerate(trial.options)}

    monkeypatch.setattr(choosing, "run_trial", trial)
    monkeypatch.setattr(choosing, "compile_cubin", lambda source, arch, *, contract: b"\x7fELF")
    return asked


def test_the_fastest_is_taken_told_and_kept(
    fake: Fake, product: object, measured: list[list[str]], tmp_path: Path
) -> None:
    choices = choose_on_device({"f": product}, ARCH, None, TimingCache(tmp_path))
    names = [name for name, _ in alternatives(product, chip_of(ARCH))]
    assert measured == [names]
    assert choices.wanted == {"f": names[-1]}
    (timed,) = choices.timed()
    assert (timed.what, timed.chosen, list(timed.times)) == ("f", names[-1], names)
    assert "Fake 0 (sm_90)" in next(iter(timed.times.values())).how
    assert "timed on Fake 0" in note_of(choices, ARCH)
    assert build({"f": product}, ARCH, choices.wanted).choices == {"f": names[-1]}
    assert fake.live() == {}

    again = choose_on_device({"g": product}, ARCH, None, TimingCache(tmp_path))
    assert (again.wanted, len(measured)) == ({"g": names[-1]}, 1)


def test_a_rebuild_repeats_and_times_nothing(fake: Fake, product: object, measured: list[list[str]]) -> None:
    choices = choose_on_device({"f": product}, ARCH, {key_of(product): "dlight"})
    assert (choices.wanted, measured) == ({"f": "dlight"}, [])
    assert choices.attachments()["decisions.json"]
    assert choose_on_device({"f": product}, ARCH, {}).wanted == {}


def test_a_schedule_that_is_no_more_gives_way_to_the_static_choice(product: object) -> None:
    kernels = build({"f": product}, ARCH, {"f": "of another version"})
    assert kernels.choices == build({"f": product}, ARCH).choices


def test_wrong_schedules_are_remembered_and_never_taken(
    fake: Fake, product: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = next(name for name, _ in alternatives(product, chip_of(ARCH)))
    monkeypatch.setattr(choosing, "run_trial", lambda trial, device: {first: 1.0})
    monkeypatch.setattr(choosing, "compile_cubin", lambda source, arch, *, contract: b"\x7fELF")
    for _ in range(2):
        choices = choose_on_device({"f": product}, ARCH, None, TimingCache(tmp_path))
        assert choices.wanted == {"f": first}
        monkeypatch.setattr(choosing, "run_trial", lambda trial, device: pytest.fail("it is kept"))


def test_where_nothing_computes_right_the_static_choice_stands_and_the_note_says_so(
    fake: Fake, product: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(choosing, "run_trial", lambda trial, device: {})
    monkeypatch.setattr(choosing, "compile_cubin", lambda source, arch, *, contract: b"\x7fELF")
    choices = choose_on_device({"f": product}, ARCH, None, TimingCache(tmp_path))
    assert choices.wanted == {}
    assert "no schedule computes" in note_of(choices, ARCH)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_a_fault_while_timing_ends_it_and_the_static_choice_stands(
    fake: Fake, product: object, tmp_path: Path
) -> None:
    fake.fail("cuStreamSynchronize", 2, 700)
    choices = choose_on_device({"f": product, "g": product}, ARCH, None, TimingCache(tmp_path))
    assert choices.wanted == {}
    assert "device 0 is lost" in choices.trouble
