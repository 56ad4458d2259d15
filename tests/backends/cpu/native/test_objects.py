import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed")

import toy_kernels as toy

from pared.backends.cpu.native import objects
from pared.backends.cpu.native.isa import Isa, host_isa
from pared.backends.cpu.native.kernels import move
from pared.backends.cpu.native.objects import Kernel, ObjectCache, compile_all

ISA = host_isa()
if not isinstance(ISA, Isa):
    pytest.skip("needs a CPU with kernels", allow_module_level=True)

KEY = "0" * 64


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A cache of its own, and sources that are old enough."""
    monkeypatch.setenv("PARED_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(objects, "source_digest", lambda: "sources")
    return tmp_path / "kernels-1"


def moves(count):
    side = move.Side("float32", 16, (16, 16, 16, 1))
    return [Kernel("move", move.MoveSpec((1, 1, 1, i + 1), side, side, "copy")) for i in range(count)]


def compiled(kernels, workers=1):
    return compile_all(kernels, ISA, lambda name: move, workers)


def test_what_was_compiled_once_is_not_compiled_again(cached, monkeypatch):
    first = compiled(moves(2))
    monkeypatch.setattr(move, "build", None)
    assert compiled(moves(2)) == first


def test_threads_give_the_same_objects_in_the_same_order(monkeypatch):
    monkeypatch.setenv("PARED_CACHE_DIR", "")
    assert compiled(moves(6), workers=3) == compiled(moves(6))


def test_an_error_in_one_thread_is_the_callers(monkeypatch):
    monkeypatch.setenv("PARED_CACHE_DIR", "")
    monkeypatch.setattr(move, "build", lambda spec, isa: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compiled(moves(4), workers=2)


def test_a_damaged_entry_is_compiled_anew(cached):
    good = compiled(moves(1))
    (entry,) = cached.iterdir()
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content)
    assert compiled(moves(1)) == good
    assert entry.read_bytes() != content


def test_an_entry_cut_short_counts_as_absent(tmp_path):
    store = ObjectCache(tmp_path / "k")
    store.put(KEY, b"code")
    (tmp_path / "k" / KEY).write_bytes(b"co")
    assert store.get(KEY) is None


def test_an_entry_under_another_key_counts_as_absent(tmp_path):
    store = ObjectCache(tmp_path / "k")
    store.put(KEY, b"code")
    (tmp_path / "k" / KEY).rename(tmp_path / "k" / ("1" * 64))
    assert store.get("1" * 64) is None


def test_the_folder_is_the_users_alone(tmp_path):
    ObjectCache(tmp_path / "k").put(KEY, b"code")
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o700


def test_a_folder_that_others_can_write_is_not_used(tmp_path):
    (tmp_path / "k").mkdir()
    (tmp_path / "k").chmod(0o777)
    store = ObjectCache(tmp_path / "k")
    store.put(KEY, b"code")
    assert store.get(KEY) is None
    assert not list((tmp_path / "k").iterdir())


def test_a_place_that_cannot_be_a_folder_is_no_error(tmp_path):
    (tmp_path / "k").write_text("")
    store = ObjectCache(tmp_path / "k")
    store.put(KEY, b"code")
    assert store.get(KEY) is None


def test_the_oldest_entries_go_first(tmp_path):
    store = ObjectCache(tmp_path)
    for index in range(10):
        store.put(f"{index:064}", bytes(68))
        os.utime(tmp_path / f"{index:064}", (index, index))
    store.prune(999)
    assert [path.name[-1] for path in sorted(tmp_path.iterdir())] == list("6789")


def test_within_the_limit_nothing_goes(tmp_path):
    store = ObjectCache(tmp_path)
    store.put(KEY, b"code")
    store.prune(36)
    assert store.get(KEY) == b"code"


@pytest.mark.parametrize(
    "other",
    [
        (Kernel("move", toy.ToySpec(2, 0.1)), ISA, "s"),
        (Kernel("toy", toy.ToySpec(2, 0.1), in_place=True), ISA, "s"),
        (Kernel("toy", toy.ToySpec(2, 0.1000000001)), ISA, "s"),
        (Kernel("toy", toy.ToySpec(2, 0.1)), Isa("x86_64", ("avx2", "fma")), "s"),
        (Kernel("toy", toy.ToySpec(2, 0.1)), ISA, "t"),
    ],
)
def test_whatever_decides_the_code_is_in_the_key(other):
    assert objects._key(Kernel("toy", toy.ToySpec(2, 0.1)), ISA, "s") != objects._key(*other)


def test_a_spec_that_hides_a_field_is_refused():
    @dataclass(frozen=True)
    class Hiding:
        a: int = field(repr=False)

    with pytest.raises(AssertionError, match=r"\['a'\] would not be part of the key"):
        assert Kernel("toy", Hiding(1)).text


def test_a_family_from_elsewhere_is_not_cached(cached):
    kernel = Kernel("toy", toy.ToySpec(2, 0.1))
    compile_all([kernel], ISA, lambda name: toy.FAMILY, 1)
    assert not list(cached.iterdir())


def test_sources_edited_since_this_process_began_switch_the_cache_off(monkeypatch):
    newest = max(path.stat().st_mtime for path in (Path(objects.__file__).parent / "kernels").glob("*.py"))
    objects.source_digest.cache_clear()
    monkeypatch.setattr(objects, "_LOADED", newest)
    assert objects.source_digest() is None
    objects.source_digest.cache_clear()
    monkeypatch.setattr(objects, "_LOADED", newest + 3600)
    assert len(objects.source_digest()) == 64
    objects.source_digest.cache_clear()
