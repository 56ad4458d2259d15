"""What regions and plans are timed on: one sample, and the values that it gives at every border."""

from __future__ import annotations

import numpy as np

from ....compiler.backend import Array, Port
from ....compiler.inputs import DTYPES
from ....compiler.ort import make_session, run_session
from ....compiler.partition import Region
from ....compiler.pass_api import Context
from .draft import Draft


class Samples:
    """One sample of calibration data, else random floats and zeros; worked out when first needed.

    Some layers are slower on numbers that never occur, so that real data are better.
    """

    def __init__(self, draft: Draft, ports: tuple[Port, ...], ctx: Context) -> None:
        self._draft, self._ports, self._ctx = draft, ports, ctx
        self._values: dict[str, Array] | None = None
        self._borders: set[str] = set()

    def expect(self, regions: tuple[Region, ...]) -> None:
        """Announce regions whose inputs will be asked for, so that one run gives them all."""
        self._borders |= {name for region in regions for name in region.inputs}

    @property
    def inputs(self) -> dict[str, Array]:
        """Return the model's inputs."""
        values = self._known()
        return {port.name: values[port.name] for port in self._ports}

    def of(self, region: Region) -> dict[str, Array]:
        """Return a region's inputs; `expect` must have been told of it."""
        values = self._known()
        return {name: values[name] for name in region.inputs}

    def _known(self) -> dict[str, Array]:
        if self._values is None:
            inputs = self._drawn()
            inner = sorted(self._borders - set(inputs))
            session = make_session(self._draft.model, optimize="basic", extra_outputs=inner)
            self._values = {**run_session(session, inputs), **inputs}
        return self._values

    def _drawn(self) -> dict[str, Array]:
        samples = self._ctx.calibration
        if samples is not None:
            return dict(next(iter(samples.batches(1))))
        rng = np.random.default_rng(self._ctx.seed)
        return {port.name: _random(self._draft.shapes[port.name], port.dtype, rng) for port in self._ports}


def _random(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> Array:
    kind = np.dtype(DTYPES[dtype])
    return rng.standard_normal(shape).astype(kind) if kind.kind == "f" else np.zeros(shape, kind)
