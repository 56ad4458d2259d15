"""Suggestions in error texts."""

from __future__ import annotations

import pytest

from pared.compiler.errors import nearest

TARGETS = ["cpu", "event-cpu", "gpu-cuda-sm80", "gpu-cuda-sm90", "fpga-hls-vitis"]


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("gpu", "gpu-cuda-sm80 or gpu-cuda-sm90"),
        ("CUDA", "gpu-cuda-sm80 or gpu-cuda-sm90"),
        ("vitis", "fpga-hls-vitis"),
        ("gpu-cuda-sm91", "gpu-cuda-sm90 or gpu-cuda-sm80"),
        ("cpi", "cpu"),
    ],
)
def test_a_part_of_a_name_means_that_name_before_one_that_looks_alike(mistyped: str, meant: str) -> None:
    assert nearest(mistyped, TARGETS).startswith(f"did you mean {meant}? valid: ")


def test_two_letters_are_part_of_too_much() -> None:
    assert nearest("sm", TARGETS) == "valid: " + ", ".join(sorted(TARGETS))
