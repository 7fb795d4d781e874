"""All eight published variants export and pass the check; two of them, with the golden weights, give the golden detections."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from pycocotools import mask as coco_mask

from tests.helpers.weights import GOLDEN, golden_image, keyed_state, write_checkpoint
from yolact_deploy.detections import Detections
from yolact_deploy.engines import source
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.builder import build_engine
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.sidecar import read_plan, read_sidecar
from yolact_deploy.export import ExportResult, export_checkpoint
from yolact_deploy.model import load_checkpoint
from yolact_deploy.model.seeded import seeded_state
from yolact_deploy.runtime import load
from yolact_deploy.variants import VARIANTS

PUBLISHED = [name for name in VARIANTS if name != "yolact_nano"]
GOLDEN_VARIANTS = ("yolact_resnet50", "yolact_plus_resnet50")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]  # pycocotools


@pytest.fixture(scope="module")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExportResult]:
    """The export of the variant `request.param`; weights and files go when the next one comes, for they are large."""
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    state = keyed_state(name) if name in GOLDEN_VARIANTS else seeded_state(VARIANTS[name])
    weights = write_checkpoint(folder, f"{name}_0_0.safetensors", state)
    del state
    yield export_checkpoint(load_checkpoint(weights), folder / f"{name}.onnx")
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("exported", PUBLISHED, indirect=True)
def test_it_exports_and_equals_torch(exported: ExportResult) -> None:
    variant = exported.manifest.variant
    assert variant == VARIANTS[variant.name]
    assert exported.report.passed
    assert max(row.relative for row in exported.report.outputs) < 1e-4
    assert all(match.partners > 0 for match in exported.report.detections.values())
    assert exported.manifest.outputs[0].shape == (1, variant.prior_count, 4)
    assert (exported.mask_iou_path is not None) == variant.mask_rescoring
    if variant.name in GOLDEN_VARIANTS:
        check_golden(exported)


@pytest.mark.parametrize("exported", PUBLISHED, indirect=True)
def test_it_builds_into_engines(exported: ExportResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """FP32 and FP16 at batch 1; the other batches and graphs are built in tests/engines, unverified."""
    monkeypatch.setattr(source, "check_float16", lambda *_: {})  # drawn weights may reach further than float16 holds
    weights = sum(np.prod(tensor.dims) for tensor in onnx.load(exported.path).graph.initializer)
    for precision, least, most in (("graph", 3.6, 6.0), ("fp16", 1.8, 3.2)):
        result = build_engine(exported.path, exported.path.with_suffix(f".{precision}.engine"), BuildOptions(precision))
        assert read_plan(result.path, read_sidecar(result.path))
        assert least < result.target.size / weights < most
        assert result.target.batch == BatchRange(1, 1, 1)
        assert (result.mask_iou_path is not None) == exported.manifest.variant.mask_rescoring


def check_golden(exported: ExportResult) -> None:
    """The ONNX file's detections for the golden input are those of the original implementation."""
    detector = load(exported.path, providers=["cpu"])
    golden = np.load(GOLDEN / f"{exported.manifest.variant.name}.npz")
    (found,) = detector.predict_prepared(golden_image(exported.manifest.input.size), [(640, 427)])
    assert len(found) == len(golden["post_score"]) == 100
    partners = partners_of(found, golden)
    assert len(partners) >= 98  # places near a tie may be another's
    for theirs, ours in partners.items():
        assert abs(found.scores[ours] - golden["post_score"][theirs]) < 1e-4
        if "post_mask_score" in golden:
            assert abs(found.mask_scores[ours] - golden["post_mask_score"][theirs]) < 1e-3
        rle = {"size": [427, 640], "counts": str(golden["post_rle"][theirs]).encode()}
        differing = np.count_nonzero(coco_mask.decode(rle).astype(bool) != found.bitmap(ours))
        assert differing <= max(2, 0.005 * int(golden["post_area"][theirs]))


def partners_of(found: Detections, golden: dict[str, np.ndarray]) -> dict[int, int]:
    """Golden detection to ours: the class, and each truncated coordinate within one pixel; each of ours once."""
    boxes = np.trunc(found.boxes).astype(int)
    partners: dict[int, int] = {}
    for theirs in range(len(golden["post_score"])):
        near = (np.abs(boxes - golden["post_box"][theirs]).max(1) <= 1) & (found.labels == golden["post_class"][theirs])
        near &= np.abs(found.scores - golden["post_score"][theirs]) < 1e-3
        ours = next((int(place) for place in np.flatnonzero(near) if place not in partners.values()), None)
        if ours is not None:
            partners[theirs] = ours
    return partners
