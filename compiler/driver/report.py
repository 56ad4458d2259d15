"""What a compilation did, as records: printed, stored in the artifact and given as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..artifact.manifest import ChoiceRecord
from ..backend import RegionRecord, Signature, TimedChoice
from ..ir.stats import Counts
from ..manager import PassRecord
from ..pass_api import Refusal
from ..records import Metric, Origin

# Details of passes with this ending are times; they go where the other times are.
_TIME = "_seconds"


@dataclass(frozen=True)
class CandidateRecord:
    """One way to run the model, and why it was kept or not.

    Attributes:
        name: `<precision>/<engine>`, e.g. `int8/ort`.
        latency: median of one inference, or None with the reason in `verdict`.
        ratio_to_float: median of per-round ratios to the float model on its best engine; below 1 is faster.
        verified: whether outputs on the golden inputs lie within the bound; None when not checked.
        bound_used: largest |difference| / bound over outputs; above 1 fails.
        payload_bytes: size of the model files.
        chosen: exactly one candidate is.
        verdict: one line.
        timed: what its backend chose by measuring, kernels and regions.
        regions: what runs where; empty for a model in one piece.
    """

    name: str
    latency: Metric | None
    ratio_to_float: Metric | None
    verified: bool | None
    bound_used: float | None
    payload_bytes: int
    chosen: bool
    verdict: str
    timed: tuple[TimedChoice, ...] = ()
    regions: tuple[RegionRecord, ...] = ()


@dataclass(frozen=True)
class PassSummary:
    """One pass without its timing, so that it is the same on every run."""

    position: int
    text: str
    effect: str
    changed: int
    refused: tuple[Refusal, ...]
    details: dict[str, int | float | str]
    nodes: int
    weight_bytes: int
    sqnr_db: float | None

    @classmethod
    def of(cls, record: PassRecord) -> PassSummary:
        """Return what a run of the same inputs would repeat."""
        stats = record.stats
        return cls(
            record.position, record.text, str(record.effect), stats.changed, tuple(stats.refused),
            {key: value for key, value in stats.details.items() if not key.endswith(_TIME)},
            sum(record.after.ops.values()), record.after.weight_bytes, record.sqnr_db,
        )  # fmt: skip


def pass_seconds(records: Sequence[PassRecord]) -> dict[str, Metric]:
    """Return `pass-<position>-<name>` -> wall time; endings such as `-cpu` for times that passes tell."""
    found: dict[str, float] = {}
    for record in records:
        key = f"pass-{record.position}-{record.name}"
        found[key] = record.seconds
        for name, value in record.stats.details.items():
            if name.endswith(_TIME):
                found[f"{key}-{name.removesuffix(_TIME)}"] = float(value)
    return {name: Metric(name, value, "s", Origin.MEASURED, "one run") for name, value in found.items()}


@dataclass(frozen=True)
class CompileReport:
    """The account of a compilation.

    Attributes:
        source_bytes, payload_bytes: size of the model files before and after.
        original, compiled: counts of operators, parameters, bytes, MACs.
        passes: what each pass did.
        seconds: wall times of stages and passes, which differ from run to run.
        candidates: what was measured; empty when the choice was pinned.
        chosen: name of the kept candidate.
        notes: what a user should know, such as "int8 is slower than float here; kept float".
    """

    source: str | None
    source_sha256: str
    source_bytes: int
    payload_bytes: int
    target: str
    precision: str
    pipeline: str
    signature: Signature
    original: Counts
    compiled: Counts
    passes: tuple[PassSummary, ...]
    seconds: dict[str, Metric]
    candidates: tuple[CandidateRecord, ...]
    chosen: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Repeat:
    """What a rebuild takes over from the artifact, because measuring it again would give other numbers.

    Attributes:
        choice: the candidate that was kept, and why.
        decisions: what its backend chose by measuring.
        measured: text of `reports/measured.json`.
    """

    choice: ChoiceRecord
    decisions: Mapping[str, str]
    measured: str
