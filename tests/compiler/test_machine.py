"""What is read from /proc and /sys, tried on texts of other machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from pared.compiler.machine import features_of, find_machine, memory_of, rapl_state, read_cpuinfo


def test_x86_flags_are_read_and_ordered() -> None:
    assert features_of({"flags": "fpu avx512_vnni avx2 lahf_lm"}) == ("avx2", "avx512_vnni")


def test_arm_features_are_read() -> None:
    assert features_of(read_cpuinfo("processor\t: 0\nFeatures\t: fp asimd asimddp")) == ("asimd", "asimddp")


def test_unknown_cpuinfo_gives_no_features() -> None:
    assert features_of(read_cpuinfo("")) == ()


def test_unknown_memory_is_none() -> None:
    assert memory_of("nothing here") is None


def test_a_missing_energy_counter_is_told(tmp_path: Path) -> None:
    assert rapl_state(tmp_path) == (False, f"no RAPL counter under {tmp_path}")


def test_a_readable_energy_counter_is_found(tmp_path: Path) -> None:
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    counter.write_text("1\n")
    assert rapl_state(tmp_path) == (True, str(counter))


def test_an_unreadable_energy_counter_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    counter.write_text("1\n")

    def refuse(self: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    readable, how = rapl_state(tmp_path)
    assert not readable
    assert "Permission denied" in how


def test_this_machine_has_cores() -> None:
    assert 1 <= find_machine().cores_usable <= find_machine().cores_total
