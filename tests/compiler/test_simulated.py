"""Where an artifact runs by simulation, users are told."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import cast

import pytest

from pared.compiler.artifact.read import Artifact
from pared.compiler.machine import Machine, find_machine
from pared.compiler.simulated import simulation_of
from pared.targets import load_target


def artifact_for(target: str) -> Artifact:
    stored = SimpleNamespace(resolved=load_target(target).to_json())
    return cast(Artifact, SimpleNamespace(manifest=SimpleNamespace(target=stored)))


def machine(*gpus: str) -> Machine:
    return dataclasses.replace(find_machine(), arch="x86_64", gpus=gpus)


@pytest.mark.parametrize("target", ["gpu-cuda-sm90", "fpga-ecp5-25k", "event-speck2f"])
def test_what_is_for_another_device_is_said_to_be_simulated(target: str) -> None:
    (said,) = simulation_of(artifact_for(target), machine("sm_80"))
    assert load_target(target).isa.arch in said
    assert "x86_64 with sm_80: what runs here is a simulation" in said


@pytest.mark.parametrize(("target", "gpus"), [("cpu", ()), ("event-cpu", ()), ("gpu-cuda-sm90", ("sm_90",))])
def test_what_is_for_this_machine_is_not(target: str, gpus: tuple[str, ...]) -> None:
    assert simulation_of(artifact_for(target), machine(*gpus)) == ()
