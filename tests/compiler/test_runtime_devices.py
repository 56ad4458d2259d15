"""Loaded models and devices: what artifacts of the host refuse, what others are asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

import pared.compiler.registry as registry
import pared.compiler.runtime as runtime
from pared.compiler.backend import Array, Port, Signature
from pared.compiler.errors import TargetError
from pared.compiler.runtime import LoadedModel

SIGNATURE = Signature((Port("x", "FLOAT", ("n", 3)),), (Port("y", "FLOAT", ("n", 3)),))


class Plain:
    """Takes arrays."""

    signature = SIGNATURE

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": inputs["x"]}

    def close(self) -> None:
        return


class OnDevice(Plain):
    """Takes tensors and batches, and measures itself."""

    sizes = (1, 8)

    def run_dlpack(
        self, inputs: Mapping[str, object], outputs: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        return {"y": (inputs, outputs)}

    def meter(self, rows: int) -> tuple[str, int]:
        return "meter", rows


class Backend:
    def load(self, folder: Path, engine: str, options: Mapping[str, object], threads: int | None) -> Plain:
        found = OnDevice() if isinstance(self, Devices) else Plain()
        found.options = dict(options)  # type: ignore[attr-defined]
        return found


class Devices(Backend):
    devices: ClassVar[str] = "two of them"


def artifact(backend: str) -> SimpleNamespace:
    engine = SimpleNamespace(backend=backend, name="e", options={"arch": "a"})
    return SimpleNamespace(path=Path("out"), manifest=SimpleNamespace(engine=engine), signature=SIGNATURE)


@pytest.fixture(autouse=True)
def _backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BACKENDS", {"plain": Backend, "devices": Devices})


def loaded(backend: str, device: int | str | None = None) -> LoadedModel:
    return runtime._load(artifact(backend), None, device)  # type: ignore[arg-type]


def test_a_device_reaches_a_backend_that_has_them() -> None:
    assert loaded("devices", 1)._executable.options == {"arch": "a", "device": 1}  # type: ignore[union-attr]
    assert loaded("devices")._executable.options == {"arch": "a"}  # type: ignore[union-attr]


def test_a_device_is_refused_by_others() -> None:
    with pytest.raises(TargetError, match="no devices"):
        loaded("plain", 0)


def test_tensors_are_handed_on_or_refused_with_the_way_out() -> None:
    assert loaded("devices").run_dlpack({"x": 1}, {"y": 2}) == {"y": ({"x": 1}, {"y": 2})}
    with pytest.raises(TargetError, match="call run"):
        loaded("plain").run_dlpack({"x": np.zeros((1, 3))})


def test_batches_and_meters_are_those_of_the_executable() -> None:
    assert (loaded("devices").best_rows, loaded("plain").best_rows) == (8, 1)
    assert loaded("devices").meter(4) == ("meter", 4)
    assert loaded("plain").meter(4) is None
