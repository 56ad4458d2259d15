"""Errors that a user can act on: each names the place, the need, the finding and the way out.

Only mistakes of the user, the input or the machine are `ParedError`s; the command line turns them into
exit code 2. Our own broken invariants are plain assertions.
"""

from __future__ import annotations


class ParedError(Exception):
    """A problem outside pared, with a stable reason code and the next step.

    Args:
        reason: stable kebab-case code such as `calibration-nan`; scripts match on it.
        message: one or two sentences that name the place, what was needed and what was found.
        next_step: what the user can do now; empty only when the message already says it.
    """

    def __init__(self, reason: str, message: str, next_step: str = "") -> None:
        super().__init__(f"{message} ({next_step})" if next_step else message)
        self.reason = reason
        self.message = message
        self.next_step = next_step


class ModelError(ParedError):
    """The model file or graph cannot be accepted."""


class InvalidGraph(ModelError):
    """The IR verifier found a broken graph; raised on import or after a pass."""


class UnsupportedOp(ModelError):
    """No kernel, rule or target entry for an operator."""


class DataError(ParedError):
    """Calibration, test or run-time arrays do not fit the model."""


class PipelineError(ParedError):
    """The pipeline text, recipe or an option is wrong."""


class PassFailed(ParedError):
    """A pass raised or produced an invalid graph; the caller's model is untouched."""


class TargetError(ParedError):
    """Unknown target, malformed target file, or the target cannot run this model."""


class ArtifactError(ParedError):
    """An artifact is missing, damaged, of an unknown version, or cannot be written."""


class MissingTool(ParedError):
    """An optional package, program or device is not there."""


class Cancelled(ParedError):
    """The user interrupted the work; nothing was written."""

    def __init__(self) -> None:
        super().__init__("cancelled", "interrupted; nothing was written", "run the command again")


def nearest(name: str, valid: list[str], limit: int = 3) -> str:
    """Return the valid names closest to a mistyped one, for error texts.

    Names that it is a part of are closer than those that look alike.

    >>> nearest("canonicalise", ["canonicalize", "quantize"])
    'did you mean canonicalize? valid: canonicalize, quantize'
    >>> nearest("gpu", ["cpu", "gpu-cuda-sm90"])
    'did you mean gpu-cuda-sm90? valid: cpu, gpu-cuda-sm90'
    """
    import difflib

    whole = [other for other in valid if len(name) > 2 and name.lower() in other.lower()][:limit]
    close = whole or difflib.get_close_matches(name, valid, n=limit, cutoff=0.5)
    listing = "valid: " + ", ".join(sorted(valid))
    return f"did you mean {' or '.join(close)}? {listing}" if close else listing
