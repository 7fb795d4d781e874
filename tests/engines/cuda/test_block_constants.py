"""The numbers that Python repeats of kernels/blocks.cuh, which says what a block of each kernel is."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from yolact_deploy.engines.cuda import draw, preprocess, stages, workspace
from yolact_deploy.engines.cuda.compiler import kernel_sources
from yolact_deploy.engines.cuda.workspace import HeadShapes
from yolact_deploy.postprocess.settings import NmsKind

OWN_NAMES = {draw: {"_THREADS": "DRAW_THREADS"}, preprocess: {"_THREADS": "PREPROCESS_THREADS"}}
"""What a module calls otherwise than ``_`` and the constant's name."""


def block_constants() -> dict[str, int]:
    text = re.sub(r"//.*", "", kernel_sources()["blocks.cuh"])
    found: dict[str, int] = {}
    for names in re.findall(r"constexpr int ([^;]+);", text):
        for name, value in re.findall(r"(\w+) = ([\w */+-]+)", names):
            found[name] = eval(value.replace("/", "//"), {}, found)
    return found


def mirrored(module: ModuleType) -> dict[str, int]:
    """The constants that `module` repeats, by their names in the kernels."""
    own, constants = OWN_NAMES.get(module, {}), block_constants()
    named = {own.get(name, name.removeprefix("_")): value for name, value in vars(module).items() if name.startswith("_")}
    return {name: value for name, value in named.items() if name in constants}


@pytest.mark.parametrize(
    ("module", "count"), [(stages, 18), (preprocess, 3), (draw, 1), (workspace, 3)], ids=["stages", "preprocess", "draw", "workspace"]
)
def test_python_repeats_what_the_kernels_say(module: ModuleType, count: int) -> None:
    constants, found = block_constants(), mirrored(module)
    assert found == {name: constants[name] for name in found}
    assert len(found) == count, sorted(found)


@pytest.mark.parametrize(("nms", "graph"), [("fast", "none"), ("traditional", "none"), ("fast", "nms"), ("fast", "masks")])
@pytest.mark.parametrize("half", [False, True])
def test_a_launch_has_the_threads_that_the_kernel_was_compiled_for(nms: NmsKind, graph: workspace.GraphKind, half: bool) -> None:
    text, constants = "".join(kernel_sources().values()), block_constants()
    bounds = {kernel: constants[name] for name, kernel in re.findall(r"__launch_bounds__\(yolact::(\w+)\) (\w+)\(", text)}
    shapes = HeadShapes(100, 5, 0 if graph == "masks" else 33, 20, 24, graph)
    made = [
        *stages.launches(shapes, 2, 4, 9, nms=nms, half_scores=half, half_prototypes=half, rle=True, bits=True),
        stages.rescore(2, 9),
    ]
    assert {launch.kernel: launch.threads for launch in made} == {launch.kernel: bounds[launch.kernel] for launch in made}


STAGES = {
    ("fast", "none"): "select_float rank_float suppress best assemble_float_64 pack_bits encode_rle deliver",
    ("cross-class", "none"): "select_float rank_float suppress best assemble_float_64 pack_bits encode_rle deliver",
    ("traditional", "none"): "select_float greedy_float best assemble_float_64 pack_bits encode_rle deliver",
    ("traditional", "nms"): "given assemble_float_64 pack_bits encode_rle deliver",
    ("fast", "masks"): "given given_masks pack_bits encode_rle deliver",
}


@pytest.mark.parametrize(("nms", "graph"), STAGES)
def test_the_order_of_the_kernels(nms: NmsKind, graph: workspace.GraphKind) -> None:
    shapes = HeadShapes(100, 5, 0 if graph == "masks" else 33, 20, 24, graph)
    made = stages.launches(shapes, 2, 4, 9, nms=nms, half_scores=False, half_prototypes=False, rle=True, bits=True)
    assert " ".join(launch.kernel for launch in made) == STAGES[nms, graph]
