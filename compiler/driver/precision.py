"""Precision names and optimisation levels as pipeline text; nothing else knows what `-O2` means."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import PipelineError, TargetError

if TYPE_CHECKING:
    from ..pass_api import Pass
    from ..target import Target

_WIDTHS = re.compile(r"w(?P<weights>\d+)(?:a(?P<activations>\d+|bf16))?")
_BASES = re.compile(r"(?:b(?P<bases>[1-4])|ternary)(?P<activations>-?a8)?")
SPELLINGS = (
    "fp32, fp16, bf16, int8, int8-dynamic, int8-datafree, w8 (weights only), w4a8 (w<bits>a<bits>, 1-16 "
    "each), w4a16 and w4abf16 (weights of up to 8 bits beside half floats, on targets that have them), "
    "w4a8-dynamic, w2a8-dynamic, b2 (weights as sums of 1-4 binary bases), b2a8, ternary, ternary-a8"
)
_HALVES = {"fp16": "float16", "float16": "float16", "bf16": "bfloat16", "bfloat16": "bfloat16"}
# Of weights beside half floats: wider ones had better be half floats too.
_MOST_BESIDE_HALF = 8
_NAMED = {
    "int8": (8, "static"),
    "int8-dynamic": (8, "dynamic"),
    "int8-datafree": (8, "datafree"),
    "w4a8-dynamic": (4, "dynamic"),
    "w2a8-dynamic": (2, "dynamic"),
}


@dataclass(frozen=True)
class Precision:
    """Widths in bits.

    Attributes:
        weights: bits of weights.
        activations: bits of activations; None leaves them in float.
        ranges: where activation ranges come from: `static` calibration data, `dynamic` the values themselves
            at run time (in blocks beside weights of few bits), `datafree` the statistics in
            BatchNormalization nodes.
        half: `float16` or `bfloat16` where floats are half floats, else empty.
    """

    weights: int
    activations: int | None
    ranges: str = "static"
    bases: int = 0
    ternary: bool = False
    half: str = ""

    @property
    def needs_calibration(self) -> bool:
        """Whether activation ranges must be known before compiling."""
        return self.activations is not None and self.ranges == "static"


def parse_precision(text: str | None, halves: Collection[str] = ()) -> Precision | None:
    """Return the widths that a name such as `int8` or `w4a8` stands for; None for float.

    Args:
        text: the name.
        halves: half types that the target has: with float16, the a16 of `w4a16` are half floats, elsewhere
            integers of 16 bits.

    Raises:
        PipelineError: unknown spelling or widths outside 1-16.
    """
    if text in (None, "fp32", "float", "float32"):
        return None
    if text in _HALVES:
        return Precision(16, None, half=_HALVES[text])
    if text in _NAMED:
        return Precision(_NAMED[text][0], 8, _NAMED[text][1])
    if (match := _BASES.fullmatch(text or "")) is not None:
        activations = 8 if match["activations"] else None
        return Precision(8, activations, bases=int(match["bases"] or 1), ternary=match["bases"] is None)
    match = _WIDTHS.fullmatch(text or "")
    if match is None:
        raise PipelineError("unknown-precision", f"unknown precision {text!r}", f"valid: {SPELLINGS}")
    half = _half_beside(match, halves)
    widths = [int(bits) for bits in match.groups() if bits and bits != "bf16"]
    most = _MOST_BESIDE_HALF if half else 16
    if not all(1 <= bits <= most for bits in widths[:1]) or not all(1 <= bits <= 16 for bits in widths):
        raise PipelineError(
            "unknown-precision", f"precision {text!r} asks for widths outside 1-{most}", f"valid: {SPELLINGS}"
        )
    if half:
        return Precision(widths[0], None, half=half)
    return Precision(widths[0], widths[1] if len(widths) > 1 else None)


def _half_beside(match: re.Match[str], halves: Collection[str]) -> str:
    """Return the half type of activations beside weights in few bits, empty where they are integers."""
    if match["activations"] == "bf16":
        return "bfloat16"
    few = 1 <= int(match["weights"]) <= _MOST_BESIDE_HALF
    return "float16" if few and match["activations"] == "16" and "float16" in halves else ""


def check_halves(passes: Sequence[Pass], target: Target) -> None:
    """Refuse half floats that the target has no kernels for.

    Raises:
        TargetError: `half-target`, with the targets that have them.
    """
    from ...targets import load_target, target_names

    asked = next((str(getattr(p, "type", "")) for p in passes if p.name == "half"), "")
    if not asked or asked in target.numerics.halves:
        return
    others = [name for name in target_names() if asked in load_target(name).numerics.halves]
    raise TargetError(
        "half-target",
        f"target {target.name} computes floats in float32 and has no kernels for {asked}",
        f"use --target {', '.join(others)}, or --precision int8 or w8",
    )


def default_pipeline(precision: Precision | None, level: int, shrinking: str = "") -> str:
    """Return the pipeline of a precision at -O0..-O3.

    -O0 rewrites nothing that is not asked for, -O1 cleans up exactly, -O2 also folds and fuses (rounding may
    differ within the derived bound), -O3 also spends calibration time on rounding and ranges. `shrinking`
    is the text of passes that factor and prune; zeros stay zeros in what follows.
    """
    # BatchNorm statistics must be read before they are folded away.
    steps = ["estimate-ranges"] if precision is not None and precision.ranges == "datafree" else []
    steps += ["estimate-channels"] if "prune-datafree" in shrinking else []
    steps += [("", "canonicalize-exact", "canonicalize", "canonicalize")[level]]
    steps += [shrinking]
    if precision is not None:
        steps += ["balance"] if level >= 2 and precision.needs_calibration and not precision.bases else []
        steps += [_binarize(precision)] if precision.bases else []
        if precision.weights < 16 or not precision.half:
            steps += [_quantize(precision, level), _recurrent(precision), "relu-into-quantizer"]
        if precision.half:
            steps += ["half" if precision.half == "float16" else f"half{{type={precision.half}}}"]
    steps += ["compact-constants", "dead-code"] if level >= 1 else []
    return ",".join(step for step in steps if step)


def _recurrent(precision: Precision) -> str:
    """Recurrent weights are stored in 8 bits, or in 4 when that few were asked for; they compute in float."""
    return "quantize-recurrent{bits=4}" if precision.weights <= 4 else "quantize-recurrent"


def _binarize(precision: Precision) -> str:
    """Bases of the weights; what is left, first and last layers too, gets 8 bits by `quantize` behind it."""
    options = ["ternary=true"] if precision.ternary else [f"bases={precision.bases}"]
    options += ["ends=keep"] + (["format=int8"] if precision.activations is not None else [])
    return f"binarize{{{' '.join(options)}}}"


def _quantize(precision: Precision, level: int) -> str:
    options = []
    if precision.weights != 8:
        options.append(f"bits={precision.weights}")
    if precision.activations is None:
        options.append("act=none")
        # In blocks, as kernels dequantize them on their way to half products.
        options += ["weights=block"] if precision.half and precision.weights in (2, 4) else []
    elif precision.ranges == "dynamic":
        options += ["act=dynamic"] if precision.weights == 8 else ["act=dynamic", "weights=block"]
    elif precision.activations != 8:
        options.append(f"act_bits={precision.activations}")
    if level >= 3:
        options.append("rounding=gptq")
    return f"quantize{{{' '.join(options)}}}" if options else "quantize"
