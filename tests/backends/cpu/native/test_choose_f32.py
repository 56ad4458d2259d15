"""Kernels of float layers: clear cases are predicted, close ones timed, and a rebuild repeats the choice."""

from __future__ import annotations

import pytest

from pared.backends.cpu.native import choose_f32, timing
from pared.backends.cpu.native.choose_f32 import Candidate
from pared.backends.cpu.native.isa import Isa, isa_of
from pared.backends.cpu.native.kernels.gemm_f32 import GemmF32Spec
from pared.backends.cpu.native.kernels.strassen_f32 import StrassenF32Spec
from pared.backends.cpu.native.kernels.window import Window
from pared.backends.cpu.native.kernels.winograd_f32 import WinogradF32Spec
from pared.backends.cpu.native.timing import Decisions, Key, deciding
from pared.targets import load_target


def isa() -> Isa:
    found = isa_of(load_target("cpu-x86-avx512-vnni"))
    assert isinstance(found, Isa)
    return found


def winograd(size: int, channels: int) -> WinogradF32Spec:
    return WinogradF32Spec(Window(1, size, size, (3, 3), pads=(1, 1, 1, 1)), channels, channels)


def test_a_clear_case_is_predicted_and_not_recorded() -> None:
    with deciding(Decisions(isa(), recorded={})) as decisions:
        assert choose_f32.takes_winograd(winograd(56, 64), isa(), False)
        assert choose_f32.takes_strassen(StrassenF32Spec(196, 1024, 256), isa(), False)
    assert decisions.made == {}


@pytest.mark.parametrize(("chosen", "taken"), [("winograd_f32", True), ("conv_f32", False)])
def test_a_close_case_repeats_the_recorded_choice(chosen: str, taken: bool) -> None:
    spec = winograd(7, 512)
    key = Key("winograd_f32", repr(spec))
    with deciding(Decisions(isa(), recorded={key.text: chosen})) as decisions:
        assert choose_f32.takes_winograd(spec, isa(), False) is taken
    assert decisions.made == {key.text: chosen}


def test_a_dry_run_times_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "fastest", None)
    choose_f32.takes_winograd(winograd(7, 512), isa(), False, dry=True)


def test_a_size_that_does_not_halve_is_a_plain_product() -> None:
    assert not choose_f32.takes_strassen(StrassenF32Spec(196, 1000, 40), isa(), False)


def test_a_trial_runs_all_tasks_of_a_kernel() -> None:
    pytest.importorskip("tvm", reason="apache-tvm compiles the kernels (extra 'tvm')")
    from pared.backends.cpu.native.isa import host_isa

    here = host_isa()
    assert isinstance(here, Isa)
    run = choose_f32.ready(Candidate("gemm_f32", GemmF32Spec(120, 16, 32), False), here)
    arrays = run.args[1]  # type: ignore[attr-defined]
    before = arrays[-1].copy()
    run()
    assert (arrays[-1] != before).all()
