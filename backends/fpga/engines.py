"""The engines of the FPGA backend: how a quantized model becomes hardware, one module each."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from ...compiler.errors import MissingTool, TargetError, nearest

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...compiler.backend import Executable, Payload
    from ...compiler.pass_api import Context
    from ...compiler.target import Target

# Values of an engine's options, from `[options]` of a target and `--engine-option`.
Option = str | int | float | bool
Options = Mapping[str, Option]


class Engine(Protocol):
    """What an engine's module has."""

    def lower(self, model: ir.Model, target: Target, options: Options, ctx: Context) -> Payload:
        """Lower a model for a target; `options` has every key of the engine's table entry."""
        ...

    def load(self, folder: Path, options: Mapping[str, object], threads: int | None) -> Executable:
        """Load what `lower` packed; `options` are the payload's."""
        ...


@dataclass(frozen=True)
class Entry:
    """One engine.

    Attributes:
        module: with `lower` and `load`, beside this file.
        needs: packages that must be importable.
        options: name -> default, whose type values must have.
    """

    module: str
    needs: tuple[str, ...] = ()
    options: Options = field(default_factory=dict)


ENGINES: Mapping[str, Entry] = {
    # latency_cutoff: adders between registers; sweep: several, such as 1,2,4, of which the least area times
    # latency is kept; seeds: of placement, from seed on; simulate: golden samples of each kind, compared in
    # the interpreter, and as many of them as take seconds in the Verilog; timeout_s: of each tool's run.
    "rtl": Entry("rtl", ("da4ml",), {
        "latency_cutoff": 4.0, "sweep": "", "seed": 1, "seeds": 1, "simulate": 256, "timeout_s": 600.0,
        "route": True,
    }),
    # multipliers and requantizers (0: the fastest that fits); simulate: samples compared with the Verilog
    "folded": Entry("folded.engine", (), {
        "lanes": 0, "units": 0, "simulate": 2, "seed": 1, "timeout_s": 600.0, "route": True,
    }),
    # the vendor's road and chip, how multipliers are shared, how far its tool goes: hls4ml/settings.py
    "hls4ml": Entry("hls4ml.engine", ("hls4ml",), {
        "tool": "vitis", "part": "", "clock_ns": 5.0, "io": "io_parallel", "strategy": "auto", "reuse": 0,
        "multipliers": 0, "vendor": "auto", "timeout_s": 600.0, "vendor_timeout_s": 7200.0,
    }),
}  # fmt: skip


def usable(target: Target) -> list[str]:
    """Return the target's engines whose packages are installed here, preferred first."""
    return [name for name in target.engines if name in ENGINES and not missing(name)]


def missing(name: str) -> list[str]:
    """Return the packages that an engine needs and this installation has not."""
    return [package for package in ENGINES[name].needs if importlib.util.find_spec(package) is None]


def module_of(name: str) -> Engine:
    """Return an engine's module.

    Raises:
        MissingTool: `unknown-engine`; `fpga-missing`, a package is not installed.
    """
    if name not in ENGINES:
        raise MissingTool(
            "unknown-engine", f"the fpga backend has no engine {name!r}", nearest(name, list(ENGINES))
        )
    lacking = missing(name)
    if lacking:
        raise MissingTool(
            "fpga-missing", f"package {lacking[0]} is not installed", 'pip install "pared[fpga]"'
        )
    module = importlib.import_module(f".{ENGINES[name].module}", __package__)
    return cast(Engine, module)


def option_names() -> frozenset[str]:
    """Return the options of all engines."""
    return frozenset(key for entry in ENGINES.values() for key in entry.options)


def options_of(name: str, target: Target) -> dict[str, Option]:
    """Return an engine's options: the defaults, and over them what the target says.

    Raises:
        TargetError: `engine-option`: an unknown name, or a value of another type; names it.
    """
    found = dict(ENGINES[name].options)
    for key, value in target.options.items():
        if key not in option_names():
            raise TargetError(
                "engine-option",
                f"the fpga backend has no engine option {key!r}",
                nearest(key, sorted(option_names())),
            )
        if key in found:
            found[key] = _typed(key, value, found[key])
    return found


def _typed(key: str, value: Option, default: Option) -> Option:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, float) and whole:
        return float(value)
    if type(value) is not type(default):
        raise TargetError(
            "engine-option",
            f"engine option {key} takes a {type(default).__name__} such as {default}, got {value!r}",
            "correct the value",
        )
    return value
