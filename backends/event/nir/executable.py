"""Artifacts of backend `nir`, loaded: the stepper behind the model's own inputs and outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....compiler.backend import Array, Arrays, Signature
from ....compiler.errors import ArtifactError, ModelError
from ....compiler.inputs import InputChecker
from .encoding import FILE, Encoding, read_encoding, sequence_signature
from .plan import Plan, make_plan
from .read import read_nir
from .stepper import Stepper

# Samples at a time: a count of 255 levels is 255 neurons.
_NEURONS_AT_ONCE = 1 << 22


class NirExecutable:
    """A loaded network; with an encoding a quantized model in one step, else a network over time."""

    def __init__(self, plan: Plan, encoding: Encoding | None) -> None:
        self.plan = plan
        self.encoding = encoding
        self._stepper: Stepper | None = Stepper(plan)
        widest = max([int(np.prod(step.shape_out)) for step in plan.steps], default=1)
        self._samples = max(1, _NEURONS_AT_ONCE // widest)
        self._signature = (
            encoding.signature
            if encoding is not None
            else sequence_signature(plan.source, plan.shape_in, plan.sink, plan.shape_out)
        )
        self._check = InputChecker(self._signature)

    @property
    def signature(self) -> Signature:
        """Inputs and outputs in order; any number of samples."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once, from rest; raises `DataError` naming the input on a wrong name, shape or dtype."""
        if self._stepper is None:
            raise ArtifactError("artifact-closed", "the model was closed", "load it again")
        x = np.asarray(self._check(inputs)[self._signature.inputs[0].name])
        if self.encoding is None:
            return {self._signature.outputs[0].name: self._parts(x.astype(np.float32))}
        counts = self.encoding.enter(x).reshape(len(x), 1, *self.plan.shape_in)
        found = self._parts(counts.astype(np.float32))
        return self.encoding.leave(np.rint(found[:, 0]).astype(np.int64))

    def close(self) -> None:
        """Free the weights; later calls of `run` raise."""
        self._stepper = None

    def _parts(self, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Array:
        assert self._stepper is not None, "the caller looked"
        if not len(x):
            return np.zeros((0, x.shape[1], *self.plan.shape_out), np.float32)
        starts = range(0, len(x), self._samples)
        return np.concatenate([self._stepper.run(x[start : start + self._samples]) for start in starts])


def load(path: Path) -> NirExecutable:
    """Load `model.nir` with what lies beside it.

    Raises:
        ArtifactError: missing or damaged.
        MissingTool: h5py is not installed.
    """
    try:
        plan = make_plan(read_nir(path))
    except ModelError as err:
        raise ArtifactError("artifact-events", f"cannot read {path}: {err}", "compile it again") from err
    beside = path.with_name(FILE)
    return NirExecutable(plan, read_encoding(beside) if beside.is_file() else None)
