"""Programs of others: found, run with a time limit, and answered for with stage and log when they fail."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...compiler.errors import MissingTool, ParedError

# What installs each program.
INSTALL = {
    "yosys": 'pip install "pared[fpga]"',
    "nextpnr-ecp5": 'pip install "pared[fpga]"',
    "ecppack": 'pip install "pared[fpga]"',
    "nextpnr-ice40": 'pip install "pared[fpga]"',
    "icepack": 'pip install "pared[fpga]"',
    "verilator": "apt install verilator g++",
    "iverilog": "apt install iverilog",
    "vvp": "apt install iverilog",
}
_TAIL = 6


@dataclass(frozen=True)
class Run:
    """A finished run: seconds of wall time, the log's text."""

    seconds: float
    log: str


def find_tool(name: str) -> str | None:
    """Return the path of a program: a wheel of YoWASP beside this Python first, else the system's."""
    beside = Path(sys.executable).parent / f"yowasp-{name}"
    found = str(beside) if beside.is_file() else shutil.which(f"yowasp-{name}")
    return found or shutil.which(name)


def need_tool(name: str) -> str:
    """Return the path of a program.

    Raises:
        MissingTool: `fpga-tool-missing`, with the command that installs it.
    """
    found = find_tool(name)
    if found is None:
        raise MissingTool("fpga-tool-missing", f"program {name!r} was not found", INSTALL[name])
    return found


def run_tool(stage: str, command: Sequence[str], folder: Path, timeout_s: float) -> Run:
    """Run a program in `folder`; its output is kept in `<stage>.log` there.

    Raises:
        ParedError: `fpga-tool-failed` or `fpga-tool-timeout`; names stage, log and the command to run it
            again.
    """
    log, begin = folder / f"{stage}.log", time.monotonic()
    with log.open("wb") as out:
        # a process group of its own, so that a time limit ends its children too
        process = subprocess.Popen(
            [*command], cwd=folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as err:
            raise ParedError(
                "fpga-tool-timeout",
                f"stage {stage} took more than {timeout_s:g} s, see {log}",
                f"allow more time (--engine-option timeout_s={4 * timeout_s:g}); finished steps are kept. "
                f"By hand: cd {folder} && {' '.join(command)}",
            ) from err
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = log.read_text(errors="replace")
    if code != 0:
        last = " | ".join(text.strip().splitlines()[-_TAIL:])
        raise ParedError(
            "fpga-tool-failed",
            f"stage {stage} ended with {code}, see {log}: {last}",
            f"by hand: cd {folder} && {' '.join(command)}",
        )
    return Run(time.monotonic() - begin, text)


def run_step(stage: str, command: Sequence[str], folder: Path, timeout_s: float) -> Run:
    """Run a program in `folder` as `run_tool`, unless the same command finished there before."""
    stamp, text = folder / f"{stage}.done", "\n".join(command)
    if stamp.is_file():
        seconds, _, finished = stamp.read_text().partition("\n")
        if finished == text:
            return Run(float(seconds), (folder / f"{stage}.log").read_text(errors="replace"))
    done = run_tool(stage, command, folder, timeout_s)
    stamp.write_text(f"{done.seconds:.1f}\n{text}")
    return done
