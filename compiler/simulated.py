"""Tells where an artifact runs by simulation: it is for a device that this machine is not."""

from __future__ import annotations

from .artifact.read import Artifact
from .machine import Machine, find_machine
from .target import Target


def simulation_of(artifact: Artifact, machine: Machine | None = None) -> tuple[str, ...]:
    """Return a sentence where `machine`, or this one, simulates the artifact's device; nothing elsewhere."""
    target, here = Target.from_json(artifact.manifest.target.resolved), machine or find_machine()
    if target.is_for(here):
        return ()
    return (
        f"the artifact is for {target.isa.arch}, this machine is {here.name}: what runs here is a simulation",
    )
