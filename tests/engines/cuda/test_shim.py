"""The shim that runs CUDA kernels on the CPU: what it computes, the mistakes it tells, and the driver over it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.host_driver import ORDERS, HostDriver, build_library, missing, run_sanitized
from tests.helpers.kernel_library import find_kernels
from yolact_deploy.engines.cuda.driver import DeviceBuffer, Stream
from yolact_deploy.errors import DeviceError

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

KERNELS = Path(__file__).with_name("shim_kernels.cuh")


class Bench:
    """Calls kernels of `folder` with NumPy arrays."""

    def __init__(self, folder: Path, order: str = "forward", seed: int = 0) -> None:
        self.driver = HostDriver(order, seed, sources=folder)
        self.module = self.driver.load_module(self.driver.image)
        self.stream = self.driver.create_stream()

    def put(self, values: np.ndarray) -> DeviceBuffer:
        buffer = self.driver.allocate(values.nbytes)
        self.driver.copy_to_device(buffer.pointer, values, self.stream)
        return buffer

    def get(self, buffer: DeviceBuffer) -> np.ndarray:
        values = np.empty(buffer.size // 4, np.int32)
        self.driver.copy_to_host(values, buffer.pointer, self.stream)
        return values

    def call(
        self,
        name: str,
        given: np.ndarray | None = None,
        *,
        room: int = 64,
        grid: tuple[int, int, int] = (1, 1, 1),
        threads: int = 64,
        count: int = 0,
        extra: int = 0,
        shared: int = 0,
    ) -> np.ndarray:
        """int32 [room] as the kernel leaves it, zero before."""
        source = np.zeros(1, np.int32) if given is None else given.astype(np.int32)
        with self.put(source) as values, self.put(np.zeros(room, np.int32)) as out:
            argument = struct.pack("QQii", values.pointer, out.pointer, count, extra)
            self.driver.launch(self.module.kernel(name), grid, threads, argument, self.stream, shared=shared)
            return self.get(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kernels")
    (made / KERNELS.name).write_bytes(KERNELS.read_bytes())
    (made / "all.cuh").write_text(f'#include "{KERNELS.name}"\n')
    return made


@pytest.fixture(params=[*ORDERS, "shuffled again"])
def bench(request: pytest.FixtureRequest, folder: Path) -> Iterator[Bench]:
    order, again, _ = str(request.param).partition(" again")
    bench = Bench(folder, order, len(again))
    yield bench
    assert bench.driver.live() == 0


@pytest.fixture
def forward(folder: Path) -> Bench:
    return Bench(folder)


def test_barriers_order_a_scan(bench: Bench) -> None:
    given = np.random.default_rng(0).integers(-99, 99, 3 * 256)
    found = bench.call("scan", given, room=given.size, grid=(3, 1, 1), threads=256)
    assert np.array_equal(found.reshape(3, 256), given.reshape(3, 256).cumsum(1))


def test_warps_go_on_by_themselves(bench: Bench) -> None:
    assert bench.call("reduce", np.arange(1024), threads=1024)[0] == 1024 * 1023 // 2


def test_atomics_count(bench: Bench) -> None:
    given = np.random.default_rng(0).integers(0, 16, 1000)
    assert np.array_equal(
        bench.call("histogram", given, room=16, grid=(8, 1, 1), threads=128, count=1000), np.bincount(given, minlength=16)
    )


def test_collectives_are_those_of_a_warp(bench: Bench) -> None:
    value, lane = np.random.default_rng(1).integers(0, 1 << 30, 32).astype(np.int32), np.arange(32)
    found = bench.call("collectives", value, room=32 * 12, threads=32, extra=int(value[7])).reshape(32, 12).T
    wanted = [
        value[(lane * 7 + 3) % 32],
        value[np.where(lane >= 3, lane - 3, lane)],
        value[np.where(lane % 16 + 5 < 16, lane + 5, lane) % 32],
        value[lane ^ 9],
        value[lane // 8 * 8 + 1],
        np.full(32, sum(1 << int(bit) for bit in np.flatnonzero(value % 3 == 0)), np.uint32).view(np.int32),
        np.full(32, 2),
        value[31 - lane],
        31 - lane,
        (value.astype(np.float32) / np.float32(3))[np.minimum(lane + 1, 31)].view(np.int32),
        value[np.where(lane % 8 >= 2, lane - 2, lane)],
        np.full(32, value[4]),
    ]
    for number, (one, other) in enumerate(zip(found, wanted)):
        assert np.array_equal(one, other), f"result {number}"


def test_intrinsics(forward: Bench) -> None:
    one = np.float32(1.0000001)
    rounded = int((np.float32(one * one) - np.float32(1.0000002)).view(np.int32))
    bits = [72, 32, 31, 63, 0, 4, 41, 1 << 30]
    numbers = [3, 2, 4, -1, 0, -1, 2**31 - 1, -(2**31), 0, rounded, 11]
    atomics = [5, 7, 6, 9, 4, 8, 3, 3, 1, 2, *np.array([1.5, 3.5], np.float32).view(np.int32).tolist()]
    wanted = [*bits, *numbers, *atomics]
    assert forward.call("intrinsics", np.array([11]), threads=32)[: len(wanted)].tolist() == wanted


def test_a_missing_barrier_shows_between_orders(folder: Path) -> None:
    results = [Bench(folder, order, seed).call("lacks_a_barrier").tolist() for order, seed in zip((*ORDERS, "shuffled"), (0, 0, 1, 2))]
    assert results[0] == [-1] * 32 + list(range(31, -1, -1))
    assert len({tuple(result) for result in results}) == 4


def test_blocks_and_threads_take_turns_as_asked(folder: Path) -> None:
    def turns(order: str, seed: int = 0) -> list[int]:
        return Bench(folder, order, seed).call("who_is_first", room=257, grid=(4, 1, 1), count=256)[:256].tolist()

    assert turns("forward") == [block * 1000 + thread for block in range(4) for thread in range(64)]
    assert turns("reverse") == turns("forward")[::-1]
    assert turns("shuffled") == turns("shuffled")
    assert len({tuple(turns("shuffled", seed)) for seed in range(4)}) == 4
    assert sorted(turns("shuffled")) == turns("forward")
    assert {first // 1000 for first in (turns("shuffled", seed)[0] for seed in range(20))} == {0, 1, 2, 3}


def test_a_grid_has_three_dimensions(bench: Bench) -> None:
    wanted = [x + 10 * y + 100 * z for z in range(2) for y in range(3) for x in range(4)]
    assert bench.call("where", grid=(4, 3, 2))[:24].tolist() == wanted


def test_dynamic_shared_memory_is_undefined_in_each_block(bench: Bench) -> None:
    assert bench.call("fresh_memory", grid=(3, 1, 1), shared=64)[0] == 0
    assert bench.driver.launches[-1] == ("fresh_memory", (3, 1, 1), 64, 64)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (0, ["kernel mistakes, block (0, 0, 0): not all threads reach a barrier", "63 threads", "1 thread (40) has ended"]),
        (
            1,
            [
                "not all threads reach a barrier",
                "32 threads (0 first) wait at the barrier shim_kernels.cuh:{A}",
                "32 threads (32 first)",
                "shim_kernels.cuh:{B}",
            ],
        ),
        (2, ["not all lanes of warp 0 reach a collective", "30 threads (0 first) wait at the warp collective", "2 threads (30 first)"]),
        (3, ["thread 0 at shim_kernels.cuh:", "the mask of a warp collective is not 0xffffffff"]),
        (4, ["width is a power of two"]),
        (5, ["not all lanes of warp 0", "1 thread (3) waits at the barrier", "31 threads (0 first) wait at the warp collective"]),
    ],
)
def test_mistakes_are_told(folder: Path, mistake: int, words: list[str]) -> None:
    lines = KERNELS.read_text().splitlines()
    sites = {name: next(number for number, line in enumerate(lines, 1) if f"site {name}" in line) for name in "AB"}
    bench = Bench(folder)
    with pytest.raises(AssertionError) as told:
        bench.call("mistakes", grid=(2, 1, 1), extra=mistake)
    for word in words:
        assert word.format(**sites) in str(told.value)
    assert bench.call("mistakes", extra=9).all(), "the next launch is not affected"


@pytest.mark.parametrize(
    ("grid", "threads", "shared"),
    [((1, 1, 1), 33, 0), ((1, 1, 1), 0, 0), ((1, 1, 1), 1056, 0), ((0, 1, 1), 32, 0), ((1, 65536, 1), 32, 0), ((1, 1, 1), 32, 1 << 17)],
)
def test_launches_that_a_gpu_refuses(forward: Bench, grid: tuple[int, int, int], threads: int, shared: int) -> None:
    with pytest.raises(AssertionError, match="kernel where: "):
        forward.call("where", grid=grid, threads=threads, shared=shared)


def test_a_kernel_takes_its_whole_argument(forward: Bench) -> None:
    with pytest.raises(AssertionError, match="takes 24 bytes, 8 given"):
        forward.driver.launch(forward.module.kernel("where"), (1, 1, 1), 32, bytes(8), forward.stream)


def test_an_unknown_kernel_or_module_is_told(forward: Bench) -> None:
    with pytest.raises(DeviceError, match="in_a_comment"):
        forward.module.kernel("in_a_comment")
    with pytest.raises(DeviceError):
        forward.driver.load_module(b"/no/such/library")
    forward.module.close()
    with pytest.raises(DeviceError):
        forward.module.kernel("where")


def test_every_kernel_is_in_the_table(tmp_path: Path, folder: Path) -> None:
    assert find_kernels(folder)["reduce"] == "yolact::Call"
    (tmp_path / "odd.cuh").write_text('extern "C" __global__ void takes_two(const int *a, int b) {}\n')
    with pytest.raises(AssertionError, match=r"odd\.cuh has 1 kernels; 0 read"):
        find_kernels(tmp_path)


def test_warnings_of_the_compiler_are_errors(tmp_path: Path) -> None:
    (tmp_path / "all.cuh").write_text('struct Call { int n; };\nextern "C" __global__ void idle(const Call call) { int unused; }\n')
    with pytest.raises(AssertionError, match="unused"):
        build_library(tmp_path)


def test_machines_without_a_switch_of_their_own_use_ucontext(folder: Path) -> None:
    bench = Bench(folder, "shuffled")
    bench.module = bench.driver.load_module(bytes(build_library(folder, flags=("-DSHIM_UCONTEXT",))))
    assert bench.call("reduce", np.arange(1024), threads=1024)[0] == 1024 * 1023 // 2


def test_a_capture_is_replayed(forward: Bench) -> None:
    driver, stream, other = forward.driver, forward.stream, forward.driver.create_stream()
    kernel, done = forward.module.kernel("histogram"), driver.create_event()
    given, found = np.zeros(4, np.int32), np.empty(2, np.int32)
    with driver.allocate(16) as values, driver.allocate(8) as out:

        def work() -> None:
            driver.copy_to_device(values.pointer, given, stream)
            driver.clear(out.pointer, 8, stream)
            driver.launch(kernel, (1, 1, 1), 32, struct.pack("QQii", values.pointer, out.pointer, 4, 0), stream)
            done.record(stream)
            other.wait(done)
            driver.copy_to_host(found, out.pointer, other)
            with pytest.raises(DeviceError, match="captured"):
                stream.synchronize()

        graph = driver.capture(stream, work)
        assert not driver.launches
        given[0] = 1
        graph.launch(other)
        assert found.tolist() == [3, 1]
        given[1] = 1
        graph.launch(stream)
        assert found.tolist() == [2, 2]
        assert len(driver.launches) == 2
        driver.clear(out.pointer, 8, other)
        driver.copy_to_host(found, out.pointer, other)
        assert not found.any(), "a stream that joined the capture runs again"


def test_a_capture_that_raises_is_ended(forward: Bench) -> None:
    def work() -> None:
        raise KeyError("here")

    with pytest.raises(KeyError):
        forward.driver.capture(forward.stream, work)
    forward.stream.synchronize()
    assert forward.call("where")[0] == 0


def test_memory_is_counted_and_undefined(forward: Bench) -> None:
    driver = HostDriver(memory=100)
    buffer, pinned = driver.allocate(60), driver.allocate_pinned(30)
    assert driver.live() == 2
    assert driver.free_memory() == 10
    assert (pinned.array == 0xA5).all()
    with pytest.raises(DeviceError, match=r"11 bytes.*10 are free"):
        driver.allocate(11)
    with pytest.raises(ValueError, match="one byte"):
        driver.allocate(0)
    target = np.zeros(60, np.uint8)
    driver.copy_to_host(target, buffer.pointer, forward.stream)
    assert (target == 0xA5).all()
    pinned.array[:] = 7
    driver.copy(buffer.pointer, pinned.array.ctypes.data, 30, forward.stream)
    driver.copy_to_host(target, buffer.pointer, forward.stream)
    assert target.tolist() == [7] * 30 + [0xA5] * 30
    buffer.close()
    buffer.close()
    pinned.close()
    assert driver.live() == 0


def test_streams_and_events(forward: Bench) -> None:
    driver = forward.driver
    first, second = driver.create_event(timing=True), driver.create_event(timing=True)
    with pytest.raises(DeviceError):
        second.milliseconds_since(first)
    first.record(forward.stream)
    second.record(forward.stream)
    assert second.milliseconds_since(first) >= 0
    borrowed: Stream = driver.borrow_stream(forward.stream.handle)
    assert borrowed.handle == forward.stream.handle
    with pytest.raises(TypeError):
        driver.borrow_stream("stream")
    borrowed.close()
    with pytest.raises(DeviceError, match="closed"):
        driver.clear(0, 0, borrowed)


def under_sanitizers(folder: str, calls: list[tuple[int, int]]) -> None:
    """For a child process: the correct kernels, one that is stopped in the middle, then `overruns` with each extra and count of `calls`."""
    for order in ORDERS:
        bench = Bench(Path(folder), order)
        test_barriers_order_a_scan(bench)
        test_warps_go_on_by_themselves(bench)
        test_collectives_are_those_of_a_warp(bench)
        test_mistakes_are_told(Path(folder), 2, [])
    for extra, count in calls:
        bench.call("overruns", extra=extra, count=count, shared=64)


def test_sanitizers_accept_what_is_right(folder: Path) -> None:
    run_sanitized("tests.engines.cuda.test_shim:under_sanitizers", {"folder": str(folder), "calls": [[extra, 0] for extra in range(6)]})


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (0, "heap-buffer-overflow"),
        (1, "heap-buffer-overflow"),
        (2, "out of bounds"),
        (3, "out of bounds"),
        (4, "out of bounds"),
        (5, "overflow"),
    ],
    ids=["global memory", "dynamic shared memory", "static shared memory", "a thread's own", "shared memory of a function", "arithmetic"],
)
def test_sanitizers_tell(folder: Path, extra: int, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        run_sanitized("tests.engines.cuda.test_shim:under_sanitizers", {"folder": str(folder), "calls": [[extra, 0], [extra, 1]]})
