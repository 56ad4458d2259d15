"""What a simulation refuses or finds."""

from __future__ import annotations

from ....compiler.errors import ParedError


class SimulationError(ParedError):
    """A kernel did what no device permits, or something that is not simulated."""
