"""Typed records of what was found and measured. The CLI, JSON and reports render these same objects."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class Origin(enum.StrEnum):
    """Where a number comes from; an estimate and a measurement never share a column."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    ESTIMATED = "estimated"


@dataclass(frozen=True)
class Metric:
    """One number with unit and origin; `value` is None when it could not be had, and `how` says why."""

    name: str
    value: float | None
    unit: str
    origin: Origin
    how: str


def to_json(record: object) -> Json:
    """Convert records (dataclasses, enums, paths, NumPy scalars, containers) to plain JSON values.

    Non-finite floats become None: JSON has no spelling for them.
    """
    if record is None or isinstance(record, bool | int | str):
        return record
    if isinstance(record, float):
        return record if np.isfinite(record) else None
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, np.generic | np.ndarray):
        return to_json(record.tolist())
    if isinstance(record, Path):
        return str(record)
    if isinstance(record, Mapping):
        return {str(key): to_json(value) for key, value in record.items()}
    if isinstance(record, Sequence | set | frozenset):
        return [to_json(item) for item in record]
    raise TypeError(f"no JSON form for {type(record).__name__}")
