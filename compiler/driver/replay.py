"""Makes a compiled model again from its original, pipeline and plan, with some layers left in float."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ...passes.quantize.materialize import apply_plan
from ...passes.quantize.plan import QuantPlan
from ...passes.quantize.quantize import Quantize, name_nodes
from ..artifact.read import Artifact
from ..data import Samples
from ..errors import ArtifactError, DataError
from ..ir.scaled import FILE, read_scaled
from ..ir.shapes import infer_shapes
from ..manager import Manager
from ..pass_api import Context
from ..pipeline import parse_pipeline
from ..registry import MACROS, PASSES
from .sources import recorded_calibration

PLAN = "reports/quant_plan.json"


class Replay:
    """The pipeline up to `quantize` done once; the rest is done anew for every exclusion.

    Ranges come from the stored plan; only passes before it look at the calibration data, where there are
    any. Weights are rounded to nearest.

    Args:
        artifact: with a stored plan.
        original: the imported float original.
        notes: gets what differs from the real compilation.

    Raises:
        ArtifactError, DataError: a pass needs the calibration data, and they cannot be found again.
    """

    def __init__(self, artifact: Artifact, original: ir.Model, notes: list[str]) -> None:
        manifest = artifact.manifest
        passes = parse_pipeline(manifest.pipeline, PASSES, MACROS)
        at = next(index for index, p in enumerate(passes) if p.name == Quantize.name)
        quantize = passes[at]
        assert isinstance(quantize, Quantize), "the table maps a name to its class"
        if quantize.rounding != "nearest" or quantize.bias_correct:
            notes.append("bisect rounds weights to nearest, unlike the artifact")
        samples, lacking = _calibration(artifact)
        self._ctx = Context(seed=manifest.seed, calibration=samples)
        self._rest = passes[at + 1 :]
        self._plan = QuantPlan.from_json(artifact.read_text(PLAN))
        # A clone: the manager returns the caller's model when no pass changes anything.
        try:
            before = Manager().run(original, passes[:at], self._ctx)
        except DataError as err:
            raise (lacking or err) from err
        self._before = before.model.clone()
        self._scaled = read_scaled(before.attachments.get(FILE))
        name_nodes(self._before.graph)

    @property
    def nodes(self) -> Mapping[str, list[str]]:
        """Quantized nodes in graph order, each with the original's names of the values it makes."""
        planned = set(self._plan.nodes())
        return {
            node.name: [self._original_name(value.name) for value in node.outputs if value.name]
            for node in self._before.graph
            if node.name in planned
        }

    def _original_name(self, name: str) -> str:
        return self._scaled[name].of if name in self._scaled else name

    def without(self, excluded: frozenset[str]) -> ir.Model:
        """Return the model with these nodes in float."""
        draft = self._before.clone()
        apply_plan(draft, self._plan.without(excluded))
        infer_shapes(draft)
        return Manager().run(draft, self._rest, self._ctx).model


def _calibration(artifact: Artifact) -> tuple[Samples | None, ArtifactError | DataError | None]:
    """Return the calibration samples, or why they cannot be had; few pipelines need them."""
    try:
        return recorded_calibration(artifact.manifest, None), None
    except (ArtifactError, DataError) as err:
        return None, err
