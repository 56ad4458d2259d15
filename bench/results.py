"""Writes result pages: machine, versions, command and a table, so that a figure can be taken again."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

_PACKAGES = ("pared", "onnx", "onnx-ir", "onnxruntime", "numpy", "openvino")


@dataclass
class Page:
    """A Markdown page that is written anew after every row, so that an interrupted run keeps what it has."""

    path: Path
    title: str
    about: str
    headings: Sequence[str]
    rows: list[Sequence[object]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Add a row, print it and write the page."""
        assert len(cells) == len(self.headings), "one cell per heading"
        self.rows.append(cells)
        print(" | ".join(map(str, cells)), file=sys.stderr, flush=True)
        self.write()

    def remark(self, text: str) -> None:
        """Add a paragraph below the table."""
        self.remarks.append(text)
        self.write()

    def write(self) -> None:
        """Write the page."""
        lines = [f"# {self.title}", "", self.about.strip(), "", f"{machine()}.", ""]
        lines += [_line(self.headings), _line(["---"] * len(self.headings))]
        lines += [_line(row) for row in self.rows]
        lines += [f"\n{text}" for text in self.remarks]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def machine() -> str:
    """Return processor, usable cores and versions in one line."""
    versions = ", ".join(f"{name} {version}" for name in _PACKAGES if (version := _version(name)))
    return f"Machine: {_processor()}, Python {platform.python_version()}; {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    vector = [name for name in ("avx2", "avx512f", "avx512_vnni", "asimddp") if name in flags.split()]
    return f"{len(names)} core(s) of {names[0] if names else platform.machine()} ({', '.join(vector)})"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
