"""Values that a pass divided per channel, and how they lead back to the values of the original.

Equalizing passes change what lies between two layers without changing the function. Their account of it,
stored as `reports/scaled_values.json`, lets such values still be compared with the original's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FILE = "scaled_values.json"


@dataclass(frozen=True)
class Scaled:
    """What a value is of the original's.

    Attributes:
        of: name of the value that it was.
        divisor: what that value was divided by, `[channels, 1, ...]`: broadcasts against the value.
    """

    of: str
    divisor: npt.NDArray[np.floating]


def read_scaled(text: str | None) -> dict[str, Scaled]:
    """Return name -> `Scaled` from an account; None is an empty one."""
    found: dict[str, Scaled] = {}
    for name, entry in json.loads(text or "{}").items():
        divisor = np.array(entry["divisor"]).reshape(-1, *[1] * entry["axes_after"])
        found[name] = Scaled(entry["of"], divisor)
    return found


def write_scaled(earlier: str | None, found: Mapping[str, Scaled]) -> str:
    """Return the account of an earlier pass with another pass's values put in; both may scale one value."""
    scaled = read_scaled(earlier)
    for name, new in found.items():
        old = scaled.pop(new.of, None)
        scaled[name] = new if old is None else Scaled(old.of, old.divisor * new.divisor)
    entries = {
        name: {
            "of": entry.of,
            "axes_after": entry.divisor.ndim - 1,
            # Nine digits tell every float32 apart.
            "divisor": [float(f"{factor:.9g}") for factor in entry.divisor.ravel()],
        }
        for name, entry in scaled.items()
    }
    return json.dumps(entries) + "\n"
