"""`pared inspect`."""

from __future__ import annotations

from . import options
from .outcome import Outcome


def inspect(as_json: options.Json = False, quiet: options.Quiet = False) -> Outcome:
    """Look at a model."""
    raise NotImplementedError
