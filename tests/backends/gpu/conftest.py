"""The fake driver, compiled once per run and loaded anew for every test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_driver import HERE, Fake, compile_fake


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake(HERE / "fake_cuda.c", tmp_path_factory.mktemp("fake"))


@pytest.fixture
def fake(fake_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    library = Path(shutil.copy(fake_library, tmp_path / "libcuda-fake.so"))
    monkeypatch.setenv("PARED_CUDA_DRIVER", str(library))
    return Fake(library)
