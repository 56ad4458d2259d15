"""`pared bench`."""

from __future__ import annotations

from . import options
from .outcome import Outcome

MEASURE = "Measurement"


def bench(
    artifact: options.ArtifactPath,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Measure latency beside the float original in onnxruntime, interleaved and with pinned threads.

    [bold]Example:[/bold]  pared bench OUT --duration 10 --percentile 50,90,99 --json
    """
    raise NotImplementedError
