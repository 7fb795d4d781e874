"""The memory and the numbers that the C++ library gives its kernels are those that Python's workspace has."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from tests.engines.cpp.test_detect import CASES, SMALL, recorded
from tests.engines.cpp.truth import NMS, noise, picture_line
from tests.helpers.cpp_library import CppLibrary, run_commands
from tests.helpers.host_driver import HostDriver
from tests.helpers.kernel_library import build_library as build_kernels
from tests.helpers.stub_cuda import c_library
from yolact_deploy.engines.cuda.driver import DeviceBuffer
from yolact_deploy.engines.cuda.problem import POINTERS, Problem
from yolact_deploy.engines.cuda.workspace import HeadShapes, Workspace

# Runs the kernels of the library KERNELS, after it looked whether the memory that a Problem points to is there: SIZES has an offset into it
# and the bytes wanted behind that pointer, for each that counts. Each Problem is added to the file PROBLEMS.
SPY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static void *real(const char *symbol) { return dlsym(dlopen(getenv("KERNELS"), RTLD_NOW), symbol); }
long shim_argument_size(const char *kernel) { return ((long (*)(const char *))real("shim_argument_size"))(kernel); }
const char *shim_launch(const char *kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared, int order, unsigned seed,
                        const void *argument) {
    static char told[200];
    const long size = shim_argument_size(kernel);
    if (size == atol(getenv("PROBLEM_SIZE"))) {
        typedef int Accessible(const void *, size_t);
        Accessible *accessible = (Accessible *)dlsym(dlopen("libcuda.so.1", RTLD_NOW), "stub_cuda_accessible");
        int place, read;
        long wanted;
        for (const char *at = getenv("SIZES"); sscanf(at, "%d:%ld%n", &place, &wanted, &read) == 2; at += read) {
            const void *pointer = *(void *const *)((const char *)argument + place);
            if (accessible(pointer, wanted)) continue;
            snprintf(told, sizeof told, "%s: less than %ld bytes behind the pointer at %d", kernel, wanted, place);
            return told;
        }
        FILE *file = fopen(getenv("PROBLEMS"), "ab");
        fwrite(argument, 1, size, file);
        fclose(file);
    }
    typedef const char *Launch(const char *, unsigned, unsigned, unsigned, unsigned, unsigned, int, unsigned, const void *);
    return ((Launch *)real("shim_launch"))(kernel, x, y, z, threads, shared, order, seed, argument);
}
"""
ANYWHERE = {*POINTERS, "mask_iou", "half_inputs"}  # pointers are checked by what is behind them


class Sized(HostDriver):
    """A host driver that knows how large its buffers are."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def allocate(self, size: int) -> DeviceBuffer:
        buffer = super().allocate(size)
        self.sizes[buffer.pointer] = size
        return buffer


def wanted_sizes(problem: Problem, driver: Sized) -> dict[str, int]:
    """Bytes from each pointer to the next one in its buffer, or to its end."""
    starts = {name: getattr(problem, name) for name in POINTERS if getattr(problem, name)}
    found = {}
    for name, start in starts.items():
        for base, size in driver.sizes.items():
            if base <= start < base + size:
                found[name] = min([other for other in starts.values() if start < other < base + size] + [base + size]) - start
    return found


@pytest.mark.parametrize("case", [*CASES, *NMS])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_kernels_get_what_pythons_get(
    library: CppLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, batch: int
) -> None:
    fields, options = CASES.get(case, (SMALL, {}))
    postprocess = options.get("postprocess", "none")
    options = {**options, "batch": batch}
    engine = recorded(library, tmp_path, fields, **options)
    numbers: dict[str, Any] = (
        {} if postprocess != "none" else {"score_threshold": 0.25, "iou_threshold": 0.375, "top_k": 13, "max_detections": 7}
    )
    if case in NMS:
        numbers["nms"] = case
    names = {"score_threshold": "score", "iou_threshold": "iou", "max_detections": "max"}
    told = " ".join(f"{names.get(name, name)}={NMS.index(value) if name == 'nms' else value}" for name, value in numbers.items())
    shapes = {name: rows.shape[1:] for name, rows in engine.outputs.items()}
    priors = shapes["boxes" if postprocess == "none" else "detections_boxes"][0]
    samples = (0, *shapes["detections_masks"][1:]) if postprocess == "masks" else shapes["prototypes"]
    driver = Sized()
    heads = HeadShapes(priors, len(engine.classes) + 1, *samples, graph=postprocess)
    workspace = Workspace(
        driver,
        heads,
        batch,
        engine.settings(**numbers),
        rle_bytes=99_999,
        bits=(70, 33),
        rescoring=engine.rescoring,
        input_size=engine.spec.size,
    )
    problem = workspace.problem
    problem.batch = batch
    sizes = wanted_sizes(problem, driver)
    assert {"counts", "rle_lengths", "pictures", "bits", "arena", "probabilities"} <= set(sizes)
    for name, value in {
        "KERNELS": str(build_kernels()),
        "PROBLEM_SIZE": str(ctypes.sizeof(Problem)),
        "SIZES": " ".join(f"{getattr(Problem, name).offset}:{size}" for name, size in sizes.items()),
        "PROBLEMS": str(tmp_path / "problems"),
    }.items():
        monkeypatch.setenv(name, value)
    chosen = ",".join("0" * batch)
    lines = [f"load path={engine.engine} masks=3 contexts=1 rle=99999 graphs=0 {told}", picture_line(tmp_path, "a", noise(70, 33))]
    _, _, found, left = run_commands(library, [*lines, f"detect pictures={chosen}"], kernels=c_library(SPY))
    assert isinstance(found, list), found
    assert left == ""
    content = (tmp_path / "problems").read_bytes()
    assert content
    for start in range(0, len(content), ctypes.sizeof(Problem)):
        given = Problem.from_buffer_copy(content, start)
        for name, *_ in Problem._fields_:
            if name not in ANYWHERE and (name, postprocess) not in {("top_k", "nms"), ("top_k", "masks")}:
                assert getattr(given, name) == getattr(problem, name), name
    workspace.close()
