"""What OpenVINO says about a model, without the places in its own sources that it says it from."""

from __future__ import annotations

import re

# Each stands before or around the sentence that tells something, several deep.
_NOISE = re.compile(
    r"Exception from \S+:\d+:?"
    r"|Check '.*?' failed at \S+:\d+:?"
    r"|While validating (?:ONNX )?node '.*?':"
    r"|FrontEnd API failed with \w+:?"
    r"|Model wasn't fully converted\.|Failed operations detailed log:|Summary:"
)
_OPERATOR = re.compile(r"-- (\S+?)(?:-\d+)? with a message:")
_NO_RULE = re.compile(r"-- No conversion rule found for operations: (.*)")
_MOST = 160


def reason_of(error: Exception) -> str:
    """Return one line: the operator where it is named, and what is wrong with it."""
    lines = [line for line in (raw.strip() for raw in _NOISE.sub("\n", str(error)).splitlines()) if line]
    if not lines:
        return "it gives no reason"
    if found := _NO_RULE.match(lines[0]):
        return f"it has no rule for {re.sub(r'-[0-9]+(?=,|$)', '', found[1])}"
    if (found := _OPERATOR.match(lines[0])) and len(lines) > 1:
        return _cut(f"{found[1]}: {lines[1]}")
    return _cut(lines[0])


def _cut(text: str) -> str:
    """Return a line that is not too long, cut between words."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST else f"{line[:_MOST].rsplit(' ', 1)[0]} ..."
