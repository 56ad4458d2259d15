"""Arrays in `.npz` files: no pickle, and the same bytes for the same arrays on every machine and day."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..backend import Array
from ..errors import ArtifactError


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Return an `.npz` of the arrays, in the given order.

    `numpy.savez` would do but for the dates and system marks that its zip entries may carry. Stored, not
    deflated: compressors differ between zlib builds.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            archive.writestr(entry, _npy_bytes(array))
    return buffer.getvalue()


def read_npz(path: Path) -> dict[str, Array]:
    """Read every array of an `.npz`.

    Raises:
        ArtifactError: not a zip, a damaged array, or one that needs pickle.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError) as err:
        raise ArtifactError(
            "artifact-arrays", f"{path}: cannot read its arrays: {err}", "compile it again"
        ) from err


def _npy_bytes(array: Array) -> bytes:
    buffer = io.BytesIO()
    # Strings (dtype object) become fixed-width text, which needs no pickle.
    plain = np.asarray(array).astype(str) if array.dtype == object else np.asarray(array)
    plain = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
    np.lib.format.write_array(buffer, np.asarray(plain, order="C"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
