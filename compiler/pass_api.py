"""What a pass is: configuration in, a rewritten model and an account of it out."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from .errors import Cancelled

if TYPE_CHECKING:
    import onnx_ir as ir

    from .data import Samples
    from .target import Target


class Effect(enum.StrEnum):
    """What a pass may do to the numbers.

    EXACT: outputs are bit-equal. REORDERS: real arithmetic is equal, rounding may differ within the
    derived bound. LOSSY: the numbers change and the effect is measured.
    """

    EXACT = "exact"
    REORDERS = "reorders"
    LOSSY = "lossy"


@dataclass(frozen=True)
class Refusal:
    """A place that a pass looked at and left alone, and why."""

    node: str
    reason: str


@dataclass
class PassStats:
    """The account of one pass.

    Attributes:
        changed: rewrites done; 0 promises an untouched graph (the manager checks).
        refused: places left alone, with reasons.
        details: named facts for the report, such as `{"layers_quantized": 12}`.
        attachments: file name -> text, stored under `reports/` of the artifact (a quantization plan, say).
        notes: what the user should know though nothing failed, such as too few calibration samples.
    """

    changed: int = 0
    refused: list[Refusal] = field(default_factory=list)
    details: dict[str, int | float | str] = field(default_factory=dict)
    attachments: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _no_progress(label: str, done: int, total: int) -> None:
    """Progress callback that shows nothing."""


@dataclass(frozen=True)
class Context:
    """What a pass may know besides the model and its own fields.

    Attributes:
        calibration: representative inputs, or None.
        seed: for every random choice.
        decisions: what a backend chose by measuring when the artifact was first built; None: measure.
        threads: per inference, where a backend measures.
        engine_named: the user asked for the engine by name, so that it is used although another is faster.
        target: the device compiled for, or None.
        exclude: node names or regular expressions (full match) that lossy passes leave alone.
        progress: called as `progress(label, done, total)`; may be called from any thread.
        cancel: set to stop; passes call `check_cancelled()` in their loops.
        attachments: what earlier passes of the pipeline attached; how one hands findings on to another.
        original: the model before the first lossy pass of the pipeline, for passes that repair.
    """

    calibration: Samples | None = None
    seed: int = 0
    decisions: Mapping[str, str] | None = None
    threads: int = 1
    engine_named: bool = False
    target: Target | None = None
    exclude: tuple[str, ...] = ()
    progress: Callable[[str, int, int], None] = _no_progress
    cancel: threading.Event = field(default_factory=threading.Event)
    attachments: Mapping[str, str] = field(default_factory=dict)
    original: ir.Model | None = None

    def check_cancelled(self) -> None:
        """Raise `Cancelled` when the user asked to stop."""
        if self.cancel.is_set():
            raise Cancelled


class Pass(Protocol):
    """A rewrite of the model. Implementations are frozen dataclasses; the fields are the configuration."""

    name: ClassVar[str]
    effect: ClassVar[Effect]

    def apply(self, model: ir.Model, ctx: Context) -> PassStats:
        """Rewrite `model` in place (the manager hands in a clone) and account for it."""
        ...


PassTable = Mapping[str, Callable[[], type[Pass]]]
