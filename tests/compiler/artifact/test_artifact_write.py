import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tiny_artifact import manifest, payload, write

from pared.compiler.artifact import place
from pared.compiler.artifact.read import open_artifact
from pared.compiler.artifact.write import ArtifactWriter, check_destination
from pared.compiler.errors import ArtifactError

HERE = Path(__file__).parent


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_content_gives_equal_bytes(tmp_path):
    assert content(write(tmp_path / "a")) == content(write(tmp_path / "b"))


def test_nothing_lies_beside_a_finished_artifact(tmp_path):
    write(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


def test_an_older_artifact_is_replaced_whole(tmp_path):
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.add("model.onnx", payload())
        writer.add("model.extra", b"old")
        writer.commit(manifest(seed=1))
    new = write(tmp_path / "out", seed=2)
    assert open_artifact(new).manifest.seed == 2
    assert "model.extra" not in content(new)
    assert os.listdir(tmp_path) == ["out"]


def test_missing_parents_are_made(tmp_path):
    assert open_artifact(write(tmp_path / "a" / "b" / "out")).manifest.name == "tiny"


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_is_followed(tmp_path):
    write(tmp_path / "real", seed=1)
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", seed=2)
    assert (tmp_path / "link").is_symlink()
    assert open_artifact(tmp_path / "real").manifest.seed == 2


def test_files_are_moved_in(tmp_path):
    source = tmp_path / "weights"
    source.write_bytes(b"w")
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.add("model.onnx", source)
        writer.commit(manifest())
    assert not source.exists()
    assert (tmp_path / "out/model.onnx").read_bytes() == b"w"


def test_files_from_another_file_system_are_copied(tmp_path, monkeypatch):
    source = tmp_path / "weights"
    source.write_bytes(b"w")

    def refuse(self, target):
        raise OSError(errno.EXDEV, "cross-device link")

    with ArtifactWriter(tmp_path / "out") as writer:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", refuse)
            writer.add("model.onnx", source)
        writer.commit(manifest())
    assert not source.exists()
    assert (tmp_path / "out/model.onnx").read_bytes() == b"w"


@pytest.mark.parametrize("name", ["out", "out/thesis.txt"])
def test_what_is_no_artifact_is_not_overwritten(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ArtifactError) as caught:
        ArtifactWriter(tmp_path / "out")
    assert caught.value.reason == "artifact-occupied"
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["note.txt", "manifest.json", "golden/more.npz"])
def test_an_artifact_with_something_of_the_users_is_not_overwritten(artifact, name):
    (artifact / name).write_text("mine")
    with pytest.raises(ArtifactError) as caught:
        ArtifactWriter(artifact)
    assert caught.value.reason == "artifact-occupied"
    assert (artifact / name).read_text() == "mine"


def test_an_artifact_of_a_later_version_may_be_replaced(artifact):
    path = artifact / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": "1.0"', '"schema_version": "9.0"'))
    write(artifact)
    assert open_artifact(artifact).manifest.schema_version == "1.0"


def test_an_unwritable_parent_is_refused_before_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError) as caught:
        check_destination(tmp_path / "file" / "out")
    assert caught.value.reason == "artifact-unwritable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="not a writable folder"):
        check_destination(tmp_path / "out")


def test_an_error_inside_the_block_leaves_no_trace(artifact):
    before = content(artifact)

    def interrupted() -> None:
        with ArtifactWriter(artifact) as writer:
            writer.add("model.onnx", b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert content(artifact) == before
    assert os.listdir(artifact.parent) == [artifact.name]


@pytest.mark.parametrize("step", ["add", "sync", "exchange"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_the_older_artifact_whole(artifact, monkeypatch, step, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    before = content(artifact)
    where = {"add": (Path, "write_bytes"), "sync": (os, "fsync"), "exchange": (place, "_swap")}[step]
    monkeypatch.setattr(*where, fail)
    with pytest.raises(ArtifactError, match="nothing was written") as caught:
        write(artifact, seed=5)
    monkeypatch.undo()
    assert caught.value.reason == ("artifact-disk-full" if code == errno.ENOSPC else "artifact-unwritable")
    assert content(artifact) == before
    assert os.listdir(artifact.parent) == [artifact.name]


def test_a_full_disk_is_refused(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(ArtifactError, match="no space left"), ArtifactWriter(disk / "out") as writer:
            writer.add("model.onnx", bytes(1 << 20))
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_without_an_atomic_exchange_two_renames_do(tmp_path, monkeypatch):
    write(tmp_path / "out", seed=1)
    monkeypatch.setattr(place, "_swap", place._swap_by_renames)
    write(tmp_path / "out", seed=2)
    assert open_artifact(tmp_path / "out").manifest.seed == 2
    assert os.listdir(tmp_path) == ["out"]


def test_a_failed_second_rename_is_taken_back(tmp_path):
    write(tmp_path / "out", seed=1)
    with pytest.raises(OSError, match="No such file"):
        place._swap_by_renames(tmp_path / "absent", tmp_path / "out")
    assert open_artifact(tmp_path / "out").manifest.seed == 1


KILLED = """
import sys, time
sys.path.insert(0, {here!r})
from tiny_artifact import manifest, payload
from pared.compiler.artifact import place
from pared.compiler.artifact.write import ArtifactWriter

def hang(*args):
    print("ready", flush=True)
    time.sleep(60)

place.{where} = hang
with ArtifactWriter({out!r}) as writer:
    writer.add("model.onnx", payload())
    writer.commit(manifest(seed=9))
"""


def start(code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("where", ["sync_tree", "exchange", "_swap"])
def test_kill_in_the_middle_leaves_the_older_artifact_whole(artifact, where):
    before = content(artifact)
    child = start(KILLED.format(here=str(HERE), where=where, out=str(artifact)))
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert content(artifact) == before
    assert len(os.listdir(artifact.parent)) == 2
    write(artifact, seed=3)
    assert os.listdir(artifact.parent) == [artifact.name], "the next writer removes what the killed one left"


def test_a_killed_first_compile_leaves_no_artifact(tmp_path):
    child = start(KILLED.format(here=str(HERE), where="exchange", out=str(tmp_path / "out")))
    assert child.stdout is not None
    child.stdout.readline()
    child.kill()
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "out").exists()


def test_the_staging_folder_of_a_living_writer_stays(tmp_path):
    with ArtifactWriter(tmp_path / "out") as slow:
        slow.add("model.onnx", payload())
        write(tmp_path / "out", seed=1)
        slow.commit(manifest(seed=2))
    assert open_artifact(tmp_path / "out").manifest.seed == 2
    assert os.listdir(tmp_path) == ["out"]


RACER = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from tiny_artifact import write
for seed in range(25):
    write(Path({out!r}), seed={base} + seed)
"""


@pytest.mark.timeout(120)
def test_two_writers_never_mix(tmp_path):
    out = tmp_path / "out"
    racers = [start(RACER.format(here=str(HERE), out=str(out), base=base)) for base in (0, 100)]
    while not out.exists():
        time.sleep(0.01)
    seen = set()
    while any(racer.poll() is None for racer in racers):
        found = open_artifact(out)
        seen.add(found.manifest.seed)
        assert found.manifest.recipe["seed"] == found.manifest.seed
    for racer in racers:
        assert racer.stdout is not None
        racer.stdout.close()
        assert racer.returncode == 0
    assert len(seen) > 1
    assert open_artifact(out).manifest.seed in (24, 124)
    assert os.listdir(tmp_path) == ["out"]
