"""Kernel timings on disk: kept from build to build, shared by builds side by side, and never the reason that a good file is lost."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from tests.engines.bindings.run import ROOT, VERSIONS, run_in
from yolact_deploy.engines import timing_cache
from yolact_deploy.engines.gpu import Gpu
from yolact_deploy.engines.timing_cache import TimingCache, default_folder, file_name
from yolact_deploy.engines.versions import TensorRT
from yolact_deploy.errors import OutputError

H200 = Gpu("NVIDIA H200", (9, 0), 141 << 30)
HEADER = b"timings\n"
MEND = "Name another file with --timing-cache, or 'none'."


class Cache:
    """TensorRT's timings as lines behind a header."""

    def __init__(self, lines: set[str]) -> None:
        self.lines = lines

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.lines |= other.lines
        return True

    def serialize(self) -> bytearray:
        return bytearray(HEADER + "".join(f"{line}\n" for line in sorted(self.lines)).encode())


class Config:
    """Of a builder: bytes without the header make no cache, lines of another TensorRT's make one that is not taken."""

    def __init__(self) -> None:
        self.cache: Cache | None = None

    def create_timing_cache(self, blob: bytes) -> Cache | None:
        if blob and not (blob.startswith(HEADER) and blob.endswith(b"\n")):
            return None
        return Cache(set(blob.decode().splitlines()[1:]))

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if "foreign" in cache.lines:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.cache

    def measure(self, *lines: str) -> None:
        assert self.cache is not None
        self.cache.lines |= set(lines)


def build(path: Path, *measured: str) -> tuple[set[str], str]:
    """A whole build: what it knew before it measured, and its complaint."""
    cache, config = TimingCache(path), Config()
    cache.load(config)
    assert config.cache is not None
    known = set(config.cache.lines)
    config.measure(*measured)
    cache.store(config)
    return known, cache.complaint


def lines(path: Path) -> set[str]:
    data = path.read_bytes()
    assert data.startswith(HEADER)
    return set(data.decode().splitlines()[1:])


def only_the_cache(path: Path) -> bool:
    return {each.name for each in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}


def test_the_first_build_makes_the_file_and_the_second_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "timing.cache"
    assert build(path, "conv", "relu") == (set(), "")
    assert lines(path) == {"conv", "relu"}
    assert build(path, "softmax") == ({"conv", "relu"}, "")
    assert lines(path) == {"conv", "relu", "softmax"}
    assert only_the_cache(path)


def test_builds_that_overlap_keep_the_results_of_both(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    build(path, "old")
    one, other = (TimingCache(path), Config()), (TimingCache(path), Config())
    for cache, config in (one, other):
        cache.load(config)
    one[1].measure("one")
    other[1].measure("other")
    for cache, config in (one, other):
        cache.store(config)
    assert lines(path) == {"old", "one", "other"}


@pytest.mark.parametrize("content", [b"not timings", HEADER + b"cut sho", HEADER + b"foreign\n"])
def test_a_damaged_or_foreign_file_is_replaced_by_the_next_build(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(content)
    cache, config = TimingCache(path), Config()
    cache.load(config)
    assert cache.complaint == f"{path} was made by another TensorRT or GPU, or is damaged: it starts afresh."
    assert path.read_bytes() == content  # until there is something better
    config.measure("good")
    cache.store(config)
    assert "good" in lines(path)
    if b"foreign" not in content:
        assert lines(path) == {"good"}
        assert build(path) == ({"good"}, "")


def test_two_builds_that_found_the_same_damage_keep_the_results_of_both(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"not timings")
    pairs = [(TimingCache(path), Config()) for _ in range(2)]
    for number, (cache, config) in enumerate(pairs):
        cache.load(config)
        config.measure(str(number))
    for cache, config in pairs:
        cache.store(config)
    assert lines(path) == {"0", "1"}


def test_a_complaint_ends_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"not timings")
    cache, config = TimingCache(path), Config()
    cache.load(config)
    cache.store(config)
    assert cache.complaint
    cache.load(Config())
    assert cache.complaint == ""


CHILD = """
import sys
from pathlib import Path
from tests.engines.test_timing_cache import build
path, name, go = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
Path(f"{go}.{name}").touch()
while not go.exists():
    pass
for number in range(40):
    assert build(path, f"{name}-{number}")[1] == ""
"""


@pytest.fixture
def children(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def test_processes_at_once_lose_nothing(tmp_path: Path, children: list[subprocess.Popen[str]]) -> None:
    path, go = tmp_path / "cache" / "timing.cache", tmp_path / "go"
    for name in "abcd":
        command = [sys.executable, "-W", "error", "-c", CHILD, str(path), name, str(go)]
        children.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("go.*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    go.touch()
    seen = 0
    while any(child.poll() is None for child in children):
        if path.exists():
            now = len(lines(path))  # whole at every moment, and never fewer
            assert now >= seen
            seen = now
    for child in children:
        assert child.wait() == 0, child.stderr.read() if child.stderr else ""
    assert lines(path) == {f"{name}-{number}" for name in "abcd" for number in range(40)}
    assert only_the_cache(path)


def test_a_lock_that_another_process_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen[str]]) -> None:
    path = tmp_path / "timing.cache"
    build(path, "old")
    holder = f"import filelock, time\nwith filelock.FileLock({f'{path}.lock'!r}):\n    print('held', flush=True)\n    time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    children.append(child)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    monkeypatch.setattr(timing_cache, "_PATIENCE", 0.2)
    for work in (lambda: TimingCache(path).load(Config()), lambda: store(path)):
        with pytest.raises(OutputError) as caught:
            work()
        assert caught.value.message == (f"The timing cache {path} cannot be used: another process has held {path}.lock for 0 s.")
        assert caught.value.mend == MEND
    child.kill()
    child.wait()
    assert build(path) == ({"old"}, "")  # a lock does not outlive its process


def store(path: Path) -> None:
    config = Config()
    config.set_timing_cache(Cache({"new"}), False)
    TimingCache(path).store(config)


def test_the_lock_is_given_back_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.mkdir()
    with pytest.raises(OutputError):
        TimingCache(path).load(Config())
    with filelock.FileLock(f"{path}.lock", timeout=0):
        pass


def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.mkdir()
    for work in (lambda: TimingCache(path).load(Config()), lambda: store(path)):
        with pytest.raises(OutputError) as caught:
            work()
        assert caught.value.message.startswith(f"The timing cache {path} cannot be used: ")
        assert caught.value.mend == MEND


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    path = tmp_path / "file" / "timing.cache"
    with pytest.raises(OutputError) as caught:
        TimingCache(path).load(Config())
    assert caught.value.message.startswith(f"The timing cache {path} cannot be used: ")
    assert caught.value.mend == MEND


READ_ONLY = """
import os, sys
from pathlib import Path
from tests.engines.test_timing_cache import Config, TimingCache, store
from yolact_deploy.errors import OutputError
if os.geteuid() == 0:
    os.seteuid(65534)
path = Path(sys.argv[1])
for work in (lambda: TimingCache(path).load(Config()), lambda: store(path)):
    try:
        work()
    except OutputError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such mode on Windows")
def test_a_folder_that_may_not_be_written() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        path = Path(name, "timing.cache")
        path.parent.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
        )
        path.parent.chmod(0o755)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"The timing cache {path} cannot be used: Permission denied. {MEND}"] * 2


def test_names_tell_version_and_gpu() -> None:
    found = TensorRT("tensorrt", None, "10.16.1.11")
    assert file_name(found, H200) == "tensorrt-10.16.1.11.nvidia-h200.sm90.cache"
    assert file_name(TensorRT("tensorrt", None, "8.6.1"), Gpu("NVIDIA GeForce RTX™ 3080 (Ti)", (8, 6), 1)) == (
        "tensorrt-8.6.1.nvidia-geforce-rtx-3080-ti.sm86.cache"
    )
    assert file_name(found, Gpu("", (12, 0), 1)) == "tensorrt-10.16.1.11.gpu.sm120.cache"


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "yolact-deploy" / "timing"
    for unset in (lambda: monkeypatch.setenv("XDG_CACHE_HOME", ""), lambda: monkeypatch.delenv("XDG_CACHE_HOME")):
        unset()
        assert default_folder() == tmp_path / "home" / ".cache" / "yolact-deploy" / "timing"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert default_folder() == tmp_path / "local" / "yolact-deploy" / "timing"
    monkeypatch.delenv("LOCALAPPDATA")
    assert default_folder() == tmp_path / "home" / "AppData" / "Local" / "yolact-deploy" / "timing"


def interleaved(path: str) -> list[Any]:
    """In the child process: two builds of this TensorRT that overlap, and what was asked for."""
    from tests.engines.bindings import stand_ins
    from tests.engines.building_probes import Timings

    builds = []
    for name in "ab":
        timings = Timings(name)
        cache, config = TimingCache(Path(path)), stand_ins.stand_in("IBuilderConfig")
        cache.load(config)
        timings.measure()
        builds.append((timings, cache, config))
    for timings, cache, config in builds:
        stand_ins.configure("IBuilderConfig", create_timing_cache=timings.create, get_timing_cache=timings.current)
        cache.store(config)
    return stand_ins.journal_as_json()


@pytest.mark.parametrize("version", VERSIONS)
def test_overlapping_builds_on_each_version(version: str, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_text("before")
    journal = run_in(version, f"{__name__}:interleaved", str(path))
    assert path.read_text().splitlines() == ["a", "b", "before"]
    assert [arguments for _, name, arguments in journal if name == "ITimingCache.combine"] == [
        {"input_cache": "<ITimingCache>", "ignore_mismatch": False}
    ] * 2
