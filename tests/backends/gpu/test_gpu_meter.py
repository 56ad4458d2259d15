"""Measuring on a device: events around replays, and the roofs, on a driver that is none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fake_driver import WIDTH, Fake, loaded

import pared.backends.gpu.roofs as roofs
from pared.backends.gpu.driver import open_driver
from pared.backends.gpu.roofs import measure_roofs, source
from pared.compiler.errors import ParedError, TargetError
from pared.compiler.metering import Metered


def test_single_replays_are_timed_each_by_itself(fake: Fake) -> None:
    fake.event_ms(2.0)
    model = loaded(fake, 1)
    assert isinstance(model, Metered)
    meter = model.meter(1)
    before = fake.calls("cuGraphLaunch")
    assert meter.times_ms(70) == [2.0] * 70
    assert fake.calls("cuGraphLaunch") - before == 70
    assert (meter.device, meter.bus_id) == ("Fake 0 (sm_90)", "0000:10:00.0")
    model.close()
    assert fake.live() == {}


def test_a_batch_is_timed_as_all_its_pieces(fake: Fake) -> None:
    meter = loaded(fake, 1, 4).meter(6)
    before = fake.calls("cuGraphLaunch")
    meter.times_ms(1)
    assert fake.calls("cuGraphLaunch") - before == 3
    assert meter.least_bytes() == 256 + 4 * WIDTH * (1 + 2 * 6)


def test_memory_is_what_was_allocated(fake: Fake) -> None:
    """Working memory, constants, and two lanes of an input and an output."""
    assert loaded(fake, 4).meter(4).memory_bytes == 256 + 4 * 4 * WIDTH + 256 + 4 * WIDTH + 4 * 4 * 4 * WIDTH


def test_an_emulated_device_has_no_time() -> None:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from gpu_models import emulated, model_of

    with pytest.raises(TargetError, match="no time"):
        emulated(model_of("y = Relu(x)", "float[3] x", "float[3] y")).meter(1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of 4 MiB, of 64 KiB at least: the fake driver does copy."""
    monkeypatch.setattr(roofs, "_COPIED", 1 << 22)
    monkeypatch.setattr(roofs, "_LEAST_COPIED", 1 << 16)


def test_roofs_are_bytes_and_operations_over_the_time_of_events(fake: Fake, small: None) -> None:
    """Per multiprocessor 4 blocks of 8 warps, 2048 x 8 products of 16 x 8 x 16 or 32; it has four."""
    fake.event_ms(2.0)
    device = open_driver()
    found = measure_roofs(device)
    assert found.bytes_per_s == 2 * (1 << 22) / 2e-3
    assert found.ops_per_s["half"] == 4 * 4 * 8 * 2048 * 8 * (2 * 16 * 8 * 16) / 2e-3
    assert found.ops_per_s["int8"] == 2 * found.ops_per_s["half"]
    assert found.missing == {}
    device.close()
    assert fake.live() == {}


def test_less_is_copied_where_memory_is_short(fake: Fake, small: None) -> None:
    fake.memory(1 << 22)
    found = measure_roofs(open_driver())
    assert "copies of 1 MiB" in found.how


def test_no_memory_at_all_is_refused(fake: Fake, small: None) -> None:
    fake.memory(1 << 15)
    device = open_driver()
    with pytest.raises(ParedError, match="OUT_OF_MEMORY"):
        measure_roofs(device)
    assert "device" not in fake.live()


def test_a_rate_whose_kernel_does_not_load_is_missing_with_the_reason(fake: Fake, small: None) -> None:
    fake.fail("cuModuleLoadData", 2, 218)
    found = measure_roofs(open_driver())
    assert list(found.ops_per_s) == ["half"]
    assert "cuModuleLoadData" in found.missing["int8"]


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="ptxas is not on the PATH")
@pytest.mark.parametrize("kind", ["half", "int8"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_kernels_assemble_and_all_their_blocks_run_at_once(kind: str, arch: str, tmp_path: Path) -> None:
    (tmp_path / "k.ptx").write_text(source(kind))
    done = subprocess.run(
        ["ptxas", "-v", f"-arch={arch}", "k.ptx", "-o", "k.cubin"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    used = int(done.stderr.split("Used ")[1].split()[0])
    assert 4 * 256 * used <= 65536
    assert "0 bytes spill stores" in done.stderr
