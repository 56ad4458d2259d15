"""Laws of the source tree: import direction, no code that branches on a target's name, no pickle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pared", "compiler", "passes", "backends", "targets", "bench")

# What each folder may import of the others. compiler/ looks outward only in the modules listed below.
ALLOWED = {
    "pared": set(PACKAGES),
    "compiler": {"compiler"},
    "passes": {"passes", "compiler"},
    "backends": {"backends", "compiler"},
    "targets": {"targets", "compiler"},
    "bench": {"bench", "compiler", "pared", "targets"},
}
# Scripts of bench/ and its suites are clients of everything; its meters are not.
SEES_ALL = (
    "compiler/driver/",
    "compiler/registry.py",
    "compiler/rebuild.py",
    "compiler/cli/",
    "bench/cpu/",
    "bench/event/",
    "bench/fpga/",
    "bench/gpu/",
)
SCRIPT = 'if __name__ == "__main__"'
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name (`pared.` left out) of every import of our own code."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, a.name.removeprefix("pared.")) for a in node.names if a.name.startswith("pared")
            )
        elif isinstance(node, ast.ImportFrom) and node.level:
            parts = package if package[0] == "pared" else ("pared", *package)
            base = ".".join((*parts[: len(parts) - node.level + 1], node.module or "")).strip(".")
            names = [base] if node.module else [f"{base}.{a.name}" for a in node.names]
            yield from ((node.lineno, name.removeprefix("pared.")) for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pared"):
            names = [node.module or ""] if node.module != "pared" else [f"pared.{a.name}" for a in node.names]
            yield from ((node.lineno, name.removeprefix("pared.")) for name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    if relative.startswith(SEES_ALL):
        return
    here = relative.split("/")[0]
    if here == "bench" and SCRIPT in path.read_text():
        return
    outward = [
        f"{relative}:{line} imports {name}"
        for line, name in imports(path)
        if name.split(".")[0] in PACKAGES and name.split(".")[0] not in ALLOWED[here]
    ]
    assert not outward


def test_a_backend_does_not_import_another_but_the_reference() -> None:
    sideways = [
        f"{path}:{line} imports {name}"
        for path in (ROOT / "backends").rglob("*.py")
        for line, name in imports(path)
        if name.startswith("backends.")
        and name.split(".")[1] not in (path.relative_to(ROOT).parts[1], "reference")
    ]
    assert not sideways


def test_no_code_branches_on_a_target_name() -> None:
    branches = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                text = ast.unparse(node)
                if "target.name" in text:
                    branches.append(f"{path}:{node.lineno}: {text}")
    assert not branches


@pytest.mark.parametrize("banned", ["pickle", "cloudpickle", "dill", "marshal", "shelve"])
def test_nothing_loads_code_with_data(banned: str) -> None:
    guilty = [
        str(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == banned for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == banned)
    ]
    assert not guilty


def test_every_package_is_listed_for_the_wheel() -> None:
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(("pared", *path.parent.relative_to(ROOT).parts)) if path.parent.name != "pared" else "pared"
        for path in FILES
        if path.name == "__init__.py"
    }
    assert found == listed


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


def test_every_page_of_results_is_listed() -> None:
    folder = ROOT / "docs" / "results"
    listed = (folder / "README.md").read_text(encoding="utf-8")
    assert [
        p.name for p in folder.glob("*.md") if f"({p.name})" not in listed and p.name != "README.md"
    ] == []
