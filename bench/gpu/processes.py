"""Processes with a time limit, one at a time or several; what outlives its limit goes with its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

State = dict[str, object]
_LOOK = 0.05


@dataclass(frozen=True)
class Task:
    """A command and its name, which its log is called by too."""

    name: str
    command: Sequence[str]


class _Running:
    def __init__(self, task: Task, logs: Path) -> None:
        self.task, self._begin = task, time.monotonic()
        self._log = logs / f"{task.name.replace(' ', '-')}.log"
        with self._log.open("wb") as out:
            # A session of its own, so that workers of a compiler end with it.
            self._process = subprocess.Popen(
                list(task.command), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def ended(self) -> State | None:
        """Return how it ended, or None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._sweep()
        return self._state("done" if code == 0 else f"failed with {code}")

    def stop(self, why: str) -> State:
        """End it now."""
        self._sweep()
        self._process.wait()
        return self._state(why)

    def _sweep(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _state(self, state: str) -> State:
        found: State = {"state": state, "seconds": round(time.monotonic() - self._begin, 1)}
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return found if state == "done" and not lines else found | {"log": lines[-8:]}


def run_one(task: Task, limit: float, logs: Path) -> State:
    """Run a command; `state` is `done`, `failed with N` or `stopped after N s`."""
    running = _Running(task, logs)
    end = time.monotonic() + limit
    while (ended := running.ended()) is None:
        if time.monotonic() > end:
            return running.stop(f"stopped after {limit:.0f} s")
        time.sleep(_LOOK)
    return ended


def run_all(
    tasks: Sequence[Task], jobs: int, limit: float, logs: Path, say: Callable[[str], None]
) -> dict[str, State]:
    """Run commands, `jobs` at a time, in order; at the limit those that run are stopped, others left out."""
    end = time.monotonic() + limit
    waiting, running, found = list(tasks), list[_Running](), dict[str, State]()
    while waiting or running:
        late = time.monotonic() > end
        while waiting and len(running) < jobs and not late:
            running.append(_Running(waiting.pop(0), logs))
        for one in list(running):
            state = one.stop("stopped: time was up") if late else one.ended()
            if state is not None:
                running.remove(one)
                found[one.task.name] = state
                say(f"{one.task.name}: {state['state']}, {state['seconds']} s")
        if late:
            found |= {task.name: {"state": "not started: time was up", "seconds": 0} for task in waiting}
            break
        time.sleep(_LOOK)
    return found
