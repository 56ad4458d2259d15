"""Programs of pared as candidates: replayed by its own driver layer, or emulated in dry runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from ...backends.gpu.backend import GpuBackend
from ...backends.gpu.executable import GpuExecutable
from ...compiler.errors import MissingTool, ParedError
from .build import META, WANT, why_missing
from .candidate import Array, on_gpu, synchronize, wall_times_ms

# Torch's spelling of output types.
_DTYPES = {"FLOAT": torch.float32, "FLOAT16": torch.float16, "INT8": torch.int8, "INT32": torch.int32}


class OwnCandidate:
    """A loaded program.

    Args:
        folder: of `build.py`.
        x: input, in whatever float type.

    Raises:
        ParedError: it does not load here.
    """

    def __init__(self, folder: Path, x: Array) -> None:
        if not (folder / META).is_file():
            raise _missing(folder)
        meta = json.loads((folder / META).read_text())
        loaded = GpuBackend().load(folder, meta["engine"], meta["options"], None)
        assert isinstance(loaded, GpuExecutable), "an engine of its own"
        self._loaded = loaded
        (taken,), (given,) = loaded.signature.inputs, loaded.signature.outputs
        kind = {"FLOAT": np.float32, "FLOAT16": np.float16, "INT8": np.int8}[taken.dtype]
        self._name, self._output, self._x = taken.name, given.name, x.astype(kind)
        self.notes = [*meta["notes"], *loaded.notes]
        self.weight_bytes = (folder / "model.weights").stat().st_size
        stored = json.loads((folder / "model.json").read_text())
        self.launches = len(stored.get("programs", [stored])[0]["launches"])
        self.library_products = loaded.library_products
        self.wanted = dict(np.load(folder / WANT)) if (folder / WANT).exists() else None
        if on_gpu():
            sizes = [int(size) for size in given.shape]
            self._there = torch.from_numpy(self._x).cuda()
            self._result = torch.empty(sizes, dtype=_DTYPES[given.dtype], device="cuda")
            synchronize()

    def queue(self) -> None:
        """Queue one inference on tensors of torch's, no copies."""
        if not on_gpu():
            self.host()
            return
        self._loaded.run_on_device([self._there.data_ptr()], [self._result.data_ptr()])

    def times_ms(self, runs: int) -> list[float]:
        """Return the device's time of each inference, by CUDA events on the program's own stream."""
        return self._loaded.replay_ms(runs) if on_gpu() else wall_times_ms(self.host, runs)

    def host(self) -> Array:
        """Run from NumPy to NumPy, as a user does."""
        return self._loaded.run({self._name: self._x})[self._output]


def _missing(folder: Path) -> MissingTool:
    file = why_missing(folder.parent, folder.name)
    why = file.read_text().strip().splitlines()[0] if file.is_file() else "it was not compiled here"
    return MissingTool("program-missing", f"no program {folder.name}: {why}", "give one with --programs")


def why_not(err: Exception) -> str:
    """Return one line that says why a candidate is not there."""
    if isinstance(err, ParedError):
        return f"{err.reason}: {err}"[:300]
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__}: {lines[0] if lines else 'no message'}"[:300]
