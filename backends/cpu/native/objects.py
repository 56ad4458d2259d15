"""Kernels as object files: compiled on all usable cores, kept on disk under a name made of their content.

What decides an object is hashed into its key: the family, the spec, whether it works in place, the ISA, the
versions of TVM, and the source of everything in `kernels/`. Equal keys give equal bytes, so that a cache
changes the time of a compilation and nothing else. A cached object becomes code that is run: the folder
is the user's alone, entries are replaced whole, and one whose checksum is wrong counts as absent.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from ....compiler.cache import cache_folder
from ....compiler.files import write_file
from .isa import Isa
from .program import KernelSpec

if TYPE_CHECKING:
    import tvm

# Part of the folder's name: other versions of pared leave entries of another form alone.
FORMAT = 1
_LIMIT_BYTES = 256 << 20
_MOST_WORKERS = 16
# Sources edited since this process may have read them do not say what its kernels are.
_LOADED = time.time()
_READ_WITHIN_S = 30.0


class Family(Protocol):
    """A module of `kernels/`."""

    def build(self, spec: KernelSpec, isa: Isa) -> tvm.IRModule:
        """Return the scheduled function `main`."""
        ...


@dataclass(frozen=True)
class Kernel:
    """One kernel of a program.

    Attributes:
        name: of the family.
        spec: what it computes.
        in_place: of some step an output may be the memory of an input.
    """

    name: str
    spec: KernelSpec
    in_place: bool = False

    @property
    def symbol(self) -> str:
        """Name of the C function: the same in every model."""
        return "kernel_" + hashlib.sha256(self.text.encode()).hexdigest()[:24]

    @property
    def text(self) -> str:
        """Everything about the kernel in one line."""
        spec: object = self.spec
        assert is_dataclass(spec), f"{self.name}: the spec is no dataclass"
        hidden = [field.name for field in fields(spec) if not field.repr]
        assert not hidden, f"{self.name}: {hidden} would not be part of the key"
        return f"{self.name} {spec!r} {'in place' if self.in_place else 'apart'}"


def compile_all(
    kernels: Sequence[Kernel], isa: Isa, family_of: Callable[[str], Family], workers: int | None = None
) -> list[bytes]:
    """Return the object files of `kernels`, from the cache where it has them.

    Args:
        kernels: what to compile, without repetitions.
        isa: what the code may use.
        family_of: gives the module of a family.
        workers: threads; None takes one for every core this process may use.
    """
    folder = cache_folder()
    store = ObjectCache(None if folder is None else folder / f"kernels-{FORMAT}")

    def one(kernel: Kernel) -> bytes:
        return _compile(kernel, isa, family_of(kernel.name), store)

    count = min(workers or _usable_cores(), len(kernels), _MOST_WORKERS)
    if count <= 1:
        found = [one(kernel) for kernel in kernels]
    else:
        # TVM and LLVM let go of the interpreter's lock while they work.
        with ThreadPoolExecutor(count, "pared-kernel") as pool:
            found = _results(pool, one, kernels)
    store.prune(_LIMIT_BYTES)
    return found


def _results(
    pool: ThreadPoolExecutor, one: Callable[[Kernel], bytes], kernels: Sequence[Kernel]
) -> list[bytes]:
    futures = [pool.submit(one, kernel) for kernel in kernels]
    try:
        return [future.result() for future in futures]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _compile(kernel: Kernel, isa: Isa, family: Family, store: ObjectCache) -> bytes:
    from .kernels.common import compile_kernel
    from .kernels.math_f32 import vectors_of

    # A family from elsewhere is not covered by the digest of the sources.
    sources = source_digest() if isinstance(family, ModuleType) else None
    key = _key(kernel, isa, sources) if sources else None
    known = store.get(key) if key else None
    if known is not None:
        return known
    with vectors_of(isa):
        module = family.build(kernel.spec, isa)
    code = compile_kernel(module, isa, kernel.symbol, in_place=kernel.in_place)
    if key:
        store.put(key, code)
    return code


def _key(kernel: Kernel, isa: Isa, sources: str) -> str:
    parts = (kernel.text, isa.arch, *isa.features, *_versions(), sources)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _versions() -> tuple[str, ...]:
    return tuple(f"{name} {metadata.version(name)}" for name in ("apache-tvm", "apache-tvm-ffi"))


@cache
def source_digest() -> str | None:
    """Return the sha256 of all that makes kernels: families share helpers, so one stands for all.

    None when a source is so new that this process may have read an older one.
    """
    folder = Path(__file__).parent
    whole = hashlib.sha256()
    for path in (folder / "isa.py", *sorted((folder / "kernels").glob("*.py"))):
        if path.stat().st_mtime > _LOADED - _READ_WITHIN_S:
            return None
        content = path.read_bytes()
        whole.update(f"{path.name} {len(content)}\n".encode() + content)
    return whole.hexdigest()


class ObjectCache:
    """Object files by key in a folder; without one, or where it cannot be used, every `get` finds nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder if folder is not None and _is_private(folder) else None
        self._written = False

    def get(self, key: str) -> bytes | None:
        """Return what is kept under `key`; None when there is nothing or it is damaged."""
        if self._folder is None:
            return None
        path = self._folder / key
        try:
            content = path.read_bytes()
            os.utime(path)  # prune takes the oldest
        except OSError:
            return None
        checksum, code = content[:32], content[32:]
        return code if checksum == _checksum(key, code) else None

    def put(self, key: str, code: bytes) -> None:
        """Keep `code`; a folder that cannot be written is no error."""
        if self._folder is not None:
            with suppress(OSError):
                write_file(self._folder / key, _checksum(key, code) + code)
                self._written = True

    def prune(self, limit: int) -> None:
        """Once entries of this object have made the folder exceed `limit` bytes, forget the oldest half."""
        if self._folder is None or not self._written:
            return
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        keep = limit // 2 if total > limit else total
        for _, size, path in entries:
            if total <= keep:
                return
            with suppress(OSError):
                path.unlink()
            total -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        assert self._folder is not None, "prune looks"
        with suppress(OSError), os.scandir(self._folder) as found:
            for entry in found:
                with suppress(OSError):  # another process may prune too
                    seen = entry.stat(follow_symlinks=False)
                    yield seen.st_mtime, seen.st_size, Path(entry.path)


def _checksum(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + code).digest()


def _is_private(folder: Path) -> bool:
    """Make the folder if need be; tell whether nobody else can write what this user would run."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return False
    own = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    return own and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
