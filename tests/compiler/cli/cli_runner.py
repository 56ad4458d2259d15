"""Run commands of the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from pared.compiler.records import Json


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Json]:
        return cast("dict[str, Json]", json.loads(self.out))


Run = Callable[..., Result]
