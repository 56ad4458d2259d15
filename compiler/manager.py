"""Runs passes on drafts: clone, apply, infer, verify, measure, commit; the caller's model stays as it is."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from .blas import one_blas_thread
from .errors import Cancelled, InvalidGraph, ParedError, PassFailed
from .ir.export import save
from .ir.pages import drop_all_pages, release_memory, spill
from .ir.shapes import infer_shapes
from .ir.stats import Counts, count
from .ir.text import fingerprint
from .ir.verifier import verify_graph
from .pass_api import Context, Effect, Pass, PassStats
from .pipeline import print_pass

Measure = Callable[[ir.Model, ir.Model], float | None]
"""Measures what a lossy pass did: SQNR in dB of the second model's outputs against the first's."""


@dataclass(frozen=True)
class PassRecord:
    """One pass as it ran: its account and what the manager measured."""

    position: int
    name: str
    text: str
    effect: Effect
    seconds: float
    stats: PassStats
    before: Counts
    after: Counts
    sqnr_db: float | None = None


@dataclass(frozen=True)
class PipelineResult:
    """The rewritten model and one record per pass."""

    model: ir.Model
    records: tuple[PassRecord, ...]

    @property
    def attachments(self) -> dict[str, str]:
        """Files that the passes want to see in `reports/`; a later pass replaces an earlier one's."""
        return {name: text for record in self.records for name, text in record.stats.attachments.items()}


@dataclass(frozen=True)
class Manager:
    """Runs a pipeline.

    Attributes:
        verify_each: after every pass the full check, and proof that "changed 0" changed nothing.
        dump_ir: folder that gets the model after the import and after every pass.
        measure: called for lossy passes that changed something.
        scratch: folder for constants that passes made and that would take much memory; it must outlive
            the models. None: they stay in memory.
    """

    verify_each: bool = False
    dump_ir: Path | None = None
    measure: Measure | None = None
    scratch: Path | None = None

    def run(self, model: ir.Model, passes: Sequence[Pass], ctx: Context, *, first: int = 1) -> PipelineResult:
        """Apply `passes` in order to a copy of `model`; their positions count from `first`.

        Raises:
            PassFailed: a pass raised or broke the graph; names pass, position, node and reproducer.
            Cancelled: the user interrupted.
        """
        with one_blas_thread():  # weights that a pass computes must not depend on the number of cores
            return self._run(model, passes, ctx, first)

    def _run(self, model: ir.Model, passes: Sequence[Pass], ctx: Context, first: int) -> PipelineResult:
        if first == 1:
            self._dump(model, 0, "input")
        counts = count(model)
        records: list[PassRecord] = []
        # A draft that a pass left as it was serves the next pass too.
        draft: ir.Model | None = None
        for position, p in enumerate(passes, start=first):
            ctx.check_cancelled()
            ctx.progress("passes", position - first, len(passes))
            draft = model.clone() if draft is None else draft
            if p.effect is Effect.LOSSY and ctx.original is None:
                ctx = replace(ctx, original=model)
            record = self._step(model, draft, p, position, counts, ctx)
            if record.stats.changed:
                spilled = 0 if self.scratch is None else spill(draft, self.scratch)
                drop_all_pages(model)  # what the pass read of mapped weights is read again if ever needed
                model, draft = draft, None
                if spilled:
                    release_memory()
            counts = record.after
            records.append(record)
            ctx = replace(ctx, attachments={**ctx.attachments, **record.stats.attachments})
            self._dump(model, position, p.name)
        verify_graph(model)
        ctx.progress("passes", len(passes), len(passes))
        return PipelineResult(model, tuple(records))

    def _step(
        self, model: ir.Model, draft: ir.Model, p: Pass, position: int, before: Counts, ctx: Context
    ) -> PassRecord:
        """Apply one pass to `draft`, an equal copy of `model`."""
        start = time.perf_counter()
        try:
            stats = p.apply(draft, ctx)
            self._check(model, draft, p, stats)
        except (Cancelled, PassFailed):
            raise
        except ParedError as err:
            if isinstance(err, InvalidGraph):
                raise self._failure(model, draft, p, position, err) from err
            raise
        except Exception as err:
            raise self._failure(model, draft, p, position, err) from err
        seconds = time.perf_counter() - start
        after = count(draft) if stats.changed else before
        lossy = stats.changed and p.effect is Effect.LOSSY and self.measure is not None
        sqnr = self.measure(model, draft) if lossy and self.measure is not None else None
        return PassRecord(position, p.name, print_pass(p), p.effect, seconds, stats, before, after, sqnr)

    def _check(self, model: ir.Model, draft: ir.Model, p: Pass, stats: PassStats) -> None:
        if stats.changed:
            infer_shapes(draft)
            verify_graph(draft, full=self.verify_each)
        elif self.verify_each and fingerprint(draft) != fingerprint(model):
            raise AssertionError(f"{p.name} reported no change but changed the graph")

    def _failure(
        self, model: ir.Model, draft: ir.Model, p: Pass, position: int, err: Exception
    ) -> PassFailed:
        folder = self.dump_ir or Path(tempfile.mkdtemp(prefix="pared-failed-pass-"))
        folder.mkdir(parents=True, exist_ok=True)
        before = folder / f"{position:02d}-{p.name}-before.onnx"
        save(model, before)
        try:
            save(draft, folder / f"{position:02d}-{p.name}-after.onnx")
        except Exception as unsaved:  # the draft is broken by definition; its absence is told, not hidden
            (folder / f"{position:02d}-{p.name}-after.txt").write_text(f"could not be written: {unsaved}\n")
        return PassFailed(
            "pass-failed",
            f"pass {position} ({print_pass(p)}) failed: {type(err).__name__}: {err}",
            f"reproduce: pared compile -m {before} --pipeline '{print_pass(p)}' --dry-run",
        )

    def _dump(self, model: ir.Model, position: int, name: str) -> None:
        if self.dump_ir is None:
            return
        path = self.dump_ir / f"{position:02d}-{name}.onnx"
        try:
            self.dump_ir.mkdir(parents=True, exist_ok=True)
            save(model, path)
        except OSError as err:
            raise OSError(err.errno, err.strerror, str(path)) from err  # a full disk names no file
