"""`pared targets`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import options, render
from .outcome import Outcome

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..machine import Machine
    from ..records import Json


@dataclass(frozen=True)
class TargetInfo:
    """One target.

    Attributes:
        runs_here: code for it runs on this machine and so can be measured; `reason` says why not.
        details: everything its file says, defaults left out.
    """

    name: str
    description: str
    backend: str
    engines: tuple[str, ...]
    digest: str
    runs_here: bool
    reason: str
    details: dict[str, Json]


@dataclass(frozen=True)
class TargetList:
    """Every target that is shipped."""

    targets: tuple[TargetInfo, ...]


def targets(as_json: options.Json = False, quiet: options.Quiet = False) -> Outcome:
    """List the targets of `--target` and whether this machine runs them.

    [bold]Example:[/bold]  pared targets --json
    """
    from ...targets import target_names
    from ..machine import find_machine

    machine = find_machine()
    found = TargetList(tuple(_info(name, machine) for name in target_names()))
    return Outcome(found, lambda: show(found), as_json, quiet)


def _info(name: str, machine: Machine) -> TargetInfo:
    from ...targets import load_target

    target = load_target(name)
    here = target.runs_here(machine)
    return TargetInfo(
        name=target.name,
        description=target.description,
        backend=target.backend,
        engines=target.engines,
        digest=target.digest,
        runs_here=here.ok,
        reason=here.reason,
        details=target.to_json(),
    )


def show(found: TargetList) -> RenderableType:
    """Return the view of the targets."""
    rows = [
        (t.name, "yes" if t.runs_here else "no", f"{t.description} ({', '.join(t.engines)})")
        for t in found.targets
    ]
    return render.table(
        ["target", "runs here", "what it is (engines)"], rows, flexible="what it is (engines)"
    )
