"""Asks backend and target about every node before anything is lowered."""

from __future__ import annotations

from ..partition import partition
from ..registry import BACKENDS
from .job import Job
from .variants import Variants


def placement_notes(job: Job, variants: Variants) -> list[str]:
    """Return a note for every node that runs elsewhere than asked, with the reason.

    Raises:
        UnsupportedOp: a node has nowhere to run; lists nodes and reasons.
    """
    from ...targets import load_target

    fallback = load_target("cpu") if job.recipe.fallback == "cpu" else None
    backends = {
        name: BACKENDS[name]() for name in {job.target.backend, *([fallback.backend] if fallback else [])}
    }
    plan = partition(variants.models[variants.asked], backends, job.target, fallback)
    return [f"{p.node} ({p.op_type}) falls back to {p.backend}: {p.reason}" for p in plan.fallen_back]
