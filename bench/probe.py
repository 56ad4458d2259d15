"""Loads and runs one candidate in this fresh process and prints what it took: `python -m pared.bench.probe`.

Peak memory of a process that did other things before says nothing; hence one process per candidate.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..compiler.backend import Arrays
from ..compiler.errors import ParedError

_STATUS = Path("/proc/self/status")
_TIMEOUT = 600


@dataclass(frozen=True)
class Footprint:
    """What one fresh process needed.

    Attributes:
        import_ms: importing the engine's library, NumPy being there already.
        load_ms: from the file to ready to run.
        first_run_ms: first inference.
        peak_bytes: peak resident memory of the whole process.
        own_bytes: `peak_bytes` beyond what was resident when the libraries were imported; None where the
            system does not tell.
    """

    import_ms: float
    load_ms: float
    first_run_ms: float
    peak_bytes: int
    own_bytes: int | None


def probe(kind: str, path: Path, inputs: Arrays, threads: int) -> Footprint:
    """Measure a candidate in a fresh process.

    Args:
        kind: `pared` for an artifact, or the name of a peer.
        path: artifact or model file.
        inputs: one inference.
        threads: per inference.

    Raises:
        ParedError: `probe-failed`; the process could not load or run it.
    """
    with tempfile.TemporaryDirectory(prefix="pared-probe-") as folder:
        names = list(inputs)
        # Input names may hold characters that file names do not.
        for index, name in enumerate(names):
            np.save(Path(folder) / f"{index}.npy", inputs[name], allow_pickle=False)
        request = {"kind": kind, "path": str(path), "names": names, "folder": folder, "threads": threads}
        # -P: the working folder may hold a folder `pared`, as the source does, which would hide the package.
        command = [sys.executable, "-P", "-m", "pared.bench.probe"]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(request),
                capture_output=True,
                text=True,
                check=True,
                timeout=_TIMEOUT,
            )
        except subprocess.SubprocessError as err:
            detail = getattr(err, "stderr", "") or str(err)
            raise ParedError(
                "probe-failed", f"{path} could not be measured in a process of its own: {_last_line(detail)}"
            ) from err
        return Footprint(**json.loads(done.stdout))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def resident(field: str = "VmHWM") -> int | None:
    """Return peak (`VmHWM`) or present (`VmRSS`) resident memory in bytes, None where unknown.

    `ru_maxrss` will not do on Linux: it keeps the peak of the parent across exec.
    """
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _peak() -> int:
    if (found := resident()) is not None:
        return found
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def measure_here(kind: str, path: Path, inputs: Arrays, threads: int) -> Footprint:
    """Load and run in this process, which should have done nothing else."""
    from .meter import pinned
    from .peers import import_all, make_runner

    begin = time.perf_counter()
    import_all(kind, path)
    before = resident("VmRSS")
    with pinned(threads):
        start = time.perf_counter()
        run = make_runner(kind, path, threads)
        loaded = time.perf_counter()
        run(inputs)
        first = time.perf_counter()
    peak = _peak()
    return Footprint(
        import_ms=(start - begin) * 1e3,
        load_ms=(loaded - start) * 1e3,
        first_run_ms=(first - loaded) * 1e3,
        peak_bytes=peak,
        own_bytes=None if before is None else max(0, peak - before),
    )


def main(arguments: Sequence[str] = ()) -> None:
    """Read a request from stdin, print a `Footprint` as JSON."""
    request = json.load(sys.stdin)
    folder = Path(request["folder"])
    inputs = {name: np.load(folder / f"{i}.npy") for i, name in enumerate(request["names"])}
    found = measure_here(request["kind"], Path(request["path"]), inputs, request["threads"])
    print(json.dumps(found.__dict__))


if __name__ == "__main__":
    main()
