"""The fake driver and the fake library, compiled once per run and loaded anew for every test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_driver import HERE, Fake, compile_fake
from fake_library import FakeLibrary


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake(HERE / "fake_cuda.c", tmp_path_factory.mktemp("fake"))


@pytest.fixture
def fake(fake_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    library = Path(shutil.copy(fake_library, tmp_path / "libcuda-fake.so"))
    monkeypatch.setenv("PARED_CUDA_DRIVER", str(library))
    monkeypatch.setenv("PARED_CUBLASLT", "off")
    return Fake(library)


@pytest.fixture(scope="session")
def fake_cublaslt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake(HERE / "fake_cublaslt.c", tmp_path_factory.mktemp("fake"))


@pytest.fixture
def library(fake: Fake, fake_cublaslt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    path = Path(shutil.copy(fake_cublaslt, tmp_path / "libcublasLt-fake.so"))
    monkeypatch.setenv("PARED_CUBLASLT", str(path))
    return FakeLibrary(path, fake)
