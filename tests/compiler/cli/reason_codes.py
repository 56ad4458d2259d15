"""Collects every reason code from the source; prints docs/reasons.md.

python tests/compiler/cli/reason_codes.py > docs/reasons.md
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from pared.compiler.cli.boundary import OS_REASONS

ROOT = Path(__file__).parents[3]
FOLDERS = ("compiler", "passes", "backends", "targets", "bench")
ERRORS = frozenset(
    {
        "ParedError", "ModelError", "InvalidGraph", "UnsupportedOp", "DataError", "PipelineError",
        "PassFailed", "TargetError", "ArtifactError", "MissingTool", "SimulationError",
    }
)  # fmt: skip
PURPOSES = "`calibration-`, `test-` or `input-`"
HEADER = f"""# Reason codes

Every refusal has one: `error[CODE]: message` on stderr, or
`{{"error": {{"reason": CODE, ...}}}}` with `--json`.
Codes are stable; messages may change. `PURPOSE-` stands for {PURPOSES}.
`python tests/compiler/cli/reason_codes.py > docs/reasons.md` writes this file from the source.

| Code | Says | Next step |
|---|---|---|
"""


def collect() -> dict[str, tuple[str, str]]:
    """Return code -> (message, next step) with `…` for what is filled in; the first use of a code counts."""
    found: dict[str, tuple[str, str]] = {
        "cancelled": ("interrupted; nothing was written", "run the command again")
    }
    found |= {reason: ("…: …", step) for reason, step in OS_REASONS.values()}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for code, message, step in _in_file(ast.parse(path.read_text(encoding="utf-8"))):
                found.setdefault(code, (message, step))
    return dict(sorted(found.items()))


def _in_file(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not call.args:
            continue
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        if name in ERRORS:
            texts = [_text(argument) for argument in call.args[:3]] + ["", ""]
            for code in _codes(call.args[0]):
                yield code, texts[1], texts[2]


def _codes(argument: ast.expr) -> Iterator[str]:
    """Yield the codes an expression stands for; none for a variable, whose values are listed elsewhere."""
    if isinstance(argument, ast.IfExp):
        yield from _codes(argument.body)
        yield from _codes(argument.orelse)
        return
    text = _text(argument)
    if isinstance(argument, ast.JoinedStr):
        text = re.sub(r"^…", "PURPOSE", text)
    if re.fullmatch(r"(PURPOSE|[a-z0-9]+)(-([a-z0-9]+))*(-…)?", text):
        # The only open family is that of values that are not finite.
        yield from (text.replace("…", kind) for kind in (("nan", "inf") if "…" in text else ("",)))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"


def document() -> str:
    """Return the text of docs/reasons.md."""
    rows = (f"| `{code}` | {_cell(message)} | {_cell(step)} |" for code, (message, step) in collect().items())
    return HEADER + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(document(), end="")
