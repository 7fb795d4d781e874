"""Engines through `load`: the same detections as the ONNX file gives, and every refusal; a fake TensorRT and driver compute them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.export.artifacts import Artifacts
from tests.helpers.kernel_library import build_library
from tests.helpers.stub_cuda import missing, run_scenarios

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX, whose enums the fake uses, is not installed")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

RUNNING, REFUSING, PLACES = "tests.runtime.tensorrt_scenarios", "tests.runtime.tensorrt_refusals", "tests.runtime.postprocess_scenarios"
SCENARIOS: list[tuple[str, dict[str, Any], list[str]]] = [
    (RUNNING, {}, ["every_graph_gives_what_onnx_runtime_gives"]),
    (RUNNING, {}, ["a_batch_larger_than_the_usual_group", "lists_of_any_length", "a_fixed_batch_is_padded"]),
    (
        RUNNING,
        {},
        [
            "masks_are_rescored_by_an_engine_of_their_own",
            "a_backend_without_graphs",
            "no_mask_iou_engine_no_rescoring",
            "settings_change_the_nms_outside_the_graph",
            "threads_share_a_detector",
            "closing_gives_everything_back",
            "work_goes_to_the_callers_stream",
            "a_lean_runtime_is_handed_on",
            "options_that_do_not_fit_an_engine",
        ],
    ),
    (
        PLACES,
        {},
        [
            "detections_are_made_where_it_is_told",
            "what_only_the_host_does",
            "all_that_was_the_hosts_is_done_on_the_gpu",
            "masks_are_rescored_behind_nms_in_the_graph",
            "without_kernels_the_host_goes_on",
            "cross_class_nms_and_changing_settings",
            "prepared_pictures_give_the_same",
            "batches_of_any_size_on_the_gpu",
            "outputs_and_detections_take_turns",
            "closing_waits_for_detections",
            "heads_and_drivers_that_the_kernels_do_not_fit",
        ],
    ),
    (
        REFUSING,
        {},
        [
            "files_that_do_not_belong_together",
            "engines_of_another_machine",
            "tensors_that_differ_from_the_sidecar",
            "what_tensorrt_refuses",
            "mask_iou_engines_that_do_not_belong",
            "a_gpu_that_is_not_there",
            "trusted_engines",
            "trusted_engines_of_other_makers",
        ],
    ),
    (REFUSING, {}, ["without_the_backend"]),
    (REFUSING, {}, ["engines_of_tensorrt_rtx"]),
    (REFUSING, {"version": 12080}, ["a_driver_that_is_too_old"]),
    (REFUSING, {"devices": 0}, ["without_a_gpu"]),
    (REFUSING, {"devices": 2}, ["another_gpu"]),
    (REFUSING, {"memory": 3 << 20}, ["too_little_memory"]),
]
NAMES = [name for _, _, names in SCENARIOS for name in names]


@pytest.fixture(scope="module")
def onnx(artifacts: Artifacts) -> dict[str, str]:
    found = {
        "none": artifacts.onnx(),
        "nms": artifacts.onnx(postprocess="nms", batch=1),
        "masks": artifacts.onnx(postprocess="masks", batch=1),
        "raw": artifacts.onnx(layout="raw", channels="bgr"),
        "fp16 io": artifacts.onnx(fp16=True, fp16_io=True),
        "dynamic": artifacts.onnx(batch="dynamic"),
        "fixed 3": artifacts.onnx(postprocess="nms", batch=3, opset=18, layout="raw"),
        "plus": artifacts.onnx(artifacts.plus),
        "plus nms": artifacts.onnx(artifacts.plus, postprocess="nms", batch=1),
        "plus masks": artifacts.onnx(artifacts.plus, postprocess="masks", batch=1),
        "fp16 nms": artifacts.onnx(postprocess="nms", batch=1, fp16=True, fp16_io=True),
    }
    return {kind: str(path) for kind, path in found.items()}


@pytest.fixture(scope="module")
def outcomes(onnx: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each scenario's traceback, or "" where it went well; one process for each group, made when its first test asks."""
    return _Outcomes(onnx, tmp_path_factory.mktemp("engines"))


class _Outcomes(dict[str, str]):
    def __init__(self, onnx: dict[str, str], folder: Path) -> None:
        super().__init__()
        self.arguments = {"onnx": onnx, "folder": str(folder)}

    def __missing__(self, name: str) -> str:
        module, settings, names = next(group for group in SCENARIOS if name in group[2])
        self.update(run_scenarios(module, names, self.arguments, kernels=build_library(), **settings))
        return self[name]


@pytest.mark.parametrize("name", NAMES)
def test_scenario(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]
