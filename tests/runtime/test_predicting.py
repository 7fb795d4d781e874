"""Pictures in, detections out: whatever the source, the backend, the batch and the graph, the same detections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.export.artifacts import Artifacts
from tests.helpers.weights import write_checkpoint
from yolact_deploy import Detections, Detector, load
from yolact_deploy.assembly import Heads, detect
from yolact_deploy.data import sample_picture
from yolact_deploy.errors import ConfigError, PictureError, YolactDeployError
from yolact_deploy.matching import FLOAT32, Tolerance, match_detections
from yolact_deploy.pictures import read_picture
from yolact_deploy.postprocess import PostprocessSettings
from yolact_deploy.preprocess import prepare, prepare_batch
from yolact_deploy.runtime.onnx_backend import choose_providers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
STAGES = {"read", "preprocess", "inference", "postprocess"}


@pytest.fixture(scope="module")
def onnx_detector(artifacts: Artifacts) -> Detector:
    return load(artifacts.onnx(batch="dynamic", opset=17), providers=["cpu"], threads=1)


@pytest.fixture(scope="module")
def torch_detector(artifacts: Artifacts) -> Detector:
    return load(artifacts.weights, device="cpu")


def pictures(count: int) -> list[np.ndarray]:
    return [sample_picture(200 + 40 * index, 150, seed=index) for index in range(count)]


def assert_identical(found: Detections, wanted: Detections) -> None:
    np.testing.assert_array_equal(found.labels, wanted.labels)
    for name in ("boxes", "scores", "mask_scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert found.counts == wanted.counts
    assert (found.width, found.height, found.class_names) == (wanted.width, wanted.height, wanted.class_names)


def assert_partners(found: Detections, wanted: Detections, heads: Heads, tolerance: Tolerance = FLOAT32) -> None:
    match = match_detections(wanted, found, heads, tolerance)
    assert match.passed, match.unexplained
    assert match.partners >= 0.9 * len(wanted)


def heads_of(detector: Detector, picture: np.ndarray) -> Heads:
    outputs = detector.backend.infer(prepare(picture, detector.manifest.input)[None])
    return Heads(*(outputs[name][0] for name in ("boxes", "scores", "coefficients", "prototypes")))


def test_one_picture_has_every_stages_time_and_its_own_size(onnx_detector: Detector) -> None:
    found = onnx_detector.predict(sample_picture(320, 200), channels="rgb")
    assert isinstance(found, Detections)
    assert len(found) == 100
    assert (found.width, found.height) == (320, 200)
    assert found.class_names == onnx_detector.classes.names
    assert set(found.milliseconds) == STAGES
    assert all(value >= 0 for value in found.milliseconds.values())
    assert found.milliseconds["inference"] > 0
    assert (np.diff(found.scores) <= 0).all()


def test_every_kind_of_source_gives_the_same(onnx_detector: Detector, tmp_path: Path) -> None:
    picture = sample_picture(300, 180, seed=3)
    Image.fromarray(picture).save(tmp_path / "a.png")
    wanted = onnx_detector.predict(picture, channels="rgb")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(picture)):
        assert_identical(onnx_detector.predict(source), wanted)
    assert_identical(onnx_detector.predict(np.ascontiguousarray(picture[..., ::-1]), channels="bgr"), wanted)
    assert not np.array_equal(onnx_detector.predict(picture, channels="bgr").scores, wanted.scores)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_gives_a_list_in_its_order(onnx_detector: Detector, kind: Any) -> None:
    many = pictures(11)  # more than are prepared at once
    found = onnx_detector.predict(kind(many), channels="rgb")
    assert isinstance(found, list)
    assert [item.width for item in found] == [picture.shape[1] for picture in many]
    for place in (0, 5, 10):
        single = onnx_detector.predict(many[place], channels="rgb")
        assert_partners(found[place], single, heads_of(onnx_detector, many[place]))
    assert all(set(item.milliseconds) == STAGES for item in found)


@pytest.mark.parametrize("batch", [1, 3, "dynamic"])
def test_no_pictures_give_no_detections(artifacts: Artifacts, batch: Any) -> None:
    detector = load(artifacts.onnx(batch=batch, **({"opset": 18, "postprocess": "nms", "layout": "raw"} if batch == 3 else {})))
    assert detector.predict([]) == []
    shape = detector.manifest.inputs[0].shape[1:]
    assert detector.predict_prepared(np.zeros((0, *(int(axis) for axis in shape)), detector.manifest.inputs[0].dtype), []) == []


def test_torch_and_onnx_runtime_agree(onnx_detector: Detector, torch_detector: Detector) -> None:
    for picture in pictures(3):
        wanted = torch_detector.predict(picture, channels="rgb")
        assert_partners(onnx_detector.predict(picture, channels="rgb"), wanted, heads_of(torch_detector, picture))


def test_torch_and_onnx_runtime_agree_on_photographs(onnx_detector: Detector, torch_detector: Detector, coco_mini: Path) -> None:
    named = [entry["file_name"] for entry in json.loads((coco_mini / "instances_val.json").read_text("utf-8"))["images"]]
    files = [path for name in named[:5] for path in sorted(coco_mini.rglob(Path(name).name))[:1]]
    assert len(files) == 5
    for path in files:
        wanted = torch_detector.predict(path)
        assert_partners(onnx_detector.predict(path), wanted, heads_of(torch_detector, read_picture(path)))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_checkpoints_of_every_suffix_load(torch_detector: Detector, tmp_path: Path, suffix: str) -> None:
    path = write_checkpoint(tmp_path, f"yolact_nano_3_99{suffix}", seed=1)
    detector = load(str(path), device="cpu")
    picture = sample_picture(200, 150)
    assert_identical(detector.predict(picture, channels="rgb"), torch_detector.predict(picture, channels="rgb"))
    assert repr(detector) == "Detector(yolact_nano 256px, 80 classes, torch on cpu)"


def test_a_detector_shows_what_it_is(onnx_detector: Detector) -> None:
    assert repr(onnx_detector) == "Detector(yolact_nano 256px, 80 classes, onnxruntime on CPU)"
    assert onnx_detector.manifest.postprocess == "none"
    assert onnx_detector.settings == PostprocessSettings()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_fixed_batch_is_padded(artifacts: Artifacts, count: int) -> None:
    fixed = load(artifacts.onnx(postprocess="nms", batch=3, opset=18, layout="raw"))
    single = load(artifacts.onnx(postprocess="nms", batch="dynamic", opset=18, layout="raw"))
    many = pictures(4)[:count]
    found = fixed.predict(many, channels="rgb")
    assert len(found) == count
    for item, picture in zip(found, many):
        alone = single.predict(picture, channels="rgb")
        assert len(item) == len(alone) == 100
        np.testing.assert_allclose(item.scores, alone.scores, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(np.sort(item.labels), np.sort(alone.labels))
        assert item.width == picture.shape[1]


@pytest.mark.parametrize("postprocess", ["nms", "masks"])
def test_graphs_with_nms_inside_give_the_same_detections(onnx_detector: Detector, artifacts: Artifacts, postprocess: str) -> None:
    inside = load(artifacts.onnx(postprocess=postprocess, batch=1))
    for picture in pictures(3):
        wanted = onnx_detector.predict(picture, channels="rgb")
        assert_partners(inside.predict(picture, channels="rgb"), wanted, heads_of(onnx_detector, picture))


@pytest.mark.parametrize("postprocess", ["none", "nms", "masks"])
def test_masks_are_rescored_alike_wherever_it_happens(artifacts: Artifacts, postprocess: str) -> None:
    batch = "dynamic" if postprocess == "masks" else 1
    detector = load(artifacts.onnx(artifacts.plus, postprocess=postprocess, batch=batch))
    reference = load(artifacts.plus_weights, config=artifacts.plus_config, device="cpu")
    picture = sample_picture(320, 240, seed=1)
    wanted, found = reference.predict(picture, channels="rgb"), detector.predict(picture, channels="rgb")
    assert_partners(found, wanted, heads_of(reference, picture))
    assert not np.array_equal(wanted.mask_scores, wanted.scores)
    np.testing.assert_allclose(np.sort(found.mask_scores), np.sort(wanted.mask_scores), rtol=0, atol=1e-3)


def test_only_scores_above_the_threshold_are_kept(onnx_detector: Detector) -> None:
    picture = sample_picture(320, 200)
    everything = onnx_detector.predict(picture, channels="rgb")
    middle = float(everything.scores[40])
    found = onnx_detector.predict(picture, channels="rgb", score_threshold=middle)
    assert_identical(found, everything[everything.scores > middle])
    assert 0 < len(found) <= 40
    nothing = onnx_detector.predict(picture, channels="rgb", score_threshold=1.0)
    assert len(nothing) == 0
    assert nothing.to_coco(1) == []


@pytest.mark.parametrize("kind", ["cross-class", "traditional"])
def test_settings_change_the_nms_outside_the_graph(artifacts: Artifacts, onnx_detector: Detector, kind: Any) -> None:
    settings = PostprocessSettings(nms=kind, iou_threshold=0.1, top_k=90)
    detector = load(artifacts.onnx(batch="dynamic", opset=17), settings=settings)
    found = detector.predict(sample_picture(), channels="rgb")
    heads = heads_of(onnx_detector, sample_picture())
    assert_identical(found, detect(heads, 640, 480, detector.classes, settings, input_size=256))
    assert found.counts != onnx_detector.predict(sample_picture(), channels="rgb").counts


@pytest.mark.parametrize("postprocess", ["nms", "masks"])
def test_settings_of_an_nms_in_the_graph_cannot_change(artifacts: Artifacts, postprocess: str) -> None:
    path = artifacts.onnx(postprocess=postprocess, batch=1)
    with pytest.raises(ConfigError, match=rf"NMS inside \(--postprocess {postprocess}\), so its settings cannot be changed"):
        load(path, settings=PostprocessSettings(score_threshold=0.2))
    assert load(path, settings=PostprocessSettings()).settings == PostprocessSettings()


def refusal(error: type[YolactDeployError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.mend
    return caught.value.message


@pytest.mark.parametrize("name", ["device", "variant", "config", "classes"])
def test_a_checkpoints_arguments_do_not_fit_an_onnx_file(artifacts: Artifacts, name: str) -> None:
    assert refusal(ConfigError, artifacts.onnx(), **{name: "cpu"}) == f"{name} cannot be given with an ONNX file."


def test_arguments_that_do_not_fit_are_refused(artifacts: Artifacts) -> None:
    assert "providers cannot be given with a checkpoint" in refusal(ConfigError, artifacts.weights, providers=["cpu"])
    assert "runs in onnxruntime, torch was asked for" in refusal(ConfigError, artifacts.onnx(), backend="torch")
    assert "runs in torch, onnxruntime was asked for" in refusal(ConfigError, artifacts.weights, backend="onnxruntime")
    assert "cannot use the device 'gpu9'" in refusal(ConfigError, artifacts.weights, device="gpu9")
    assert load(artifacts.onnx(), backend="onnxruntime").backend.name == "onnxruntime"


def test_a_gpu_that_is_not_there_is_refused(artifacts: Artifacts) -> None:
    count = torch.cuda.device_count()
    assert f"cannot use the device 'cuda:{count + 7}'" in refusal(ConfigError, artifacts.weights, device=f"cuda:{count + 7}")


def test_providers_are_named_short_or_whole(artifacts: Artifacts) -> None:
    assert choose_providers(["cpu"]) == choose_providers(["CPUExecutionProvider"]) == choose_providers(["CPU", "cpu"])
    assert choose_providers()[-1] == "CPUExecutionProvider"
    assert load(artifacts.onnx(), providers=["cpu"]).backend.device == "CPU"


@pytest.mark.parametrize(("names", "told"), [(["nonsense"], "nonsense"), ([], "(none named)"), (["cpu", "tpu"], "tpu")])
def test_a_provider_that_is_not_there_is_refused(artifacts: Artifacts, names: list[str], told: str) -> None:
    message = refusal(ConfigError, artifacts.onnx(), providers=names)
    assert f"has no provider {told}; it has " in message
    assert "CPUExecutionProvider" in message


def test_an_array_without_its_channel_order_is_refused(onnx_detector: Detector) -> None:
    with pytest.raises(PictureError, match="without the order of its channels"):
        onnx_detector.predict(sample_picture())


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 128, 128), np.float32),
        np.zeros((1, 256, 256, 3), np.uint8),
        np.zeros((1, 3, 256, 256), np.float64),
        np.zeros((3, 256, 256), np.float32),
        np.zeros((1, 1, 256, 256), np.float32),
    ],
    ids=lambda images: f"{images.dtype}{list(images.shape)}",
)
def test_images_that_do_not_fit_the_input_are_refused(images: np.ndarray, artifacts: Artifacts, torch_detector: Detector) -> None:
    for detector in (load(artifacts.onnx()), torch_detector):
        with pytest.raises(YolactDeployError, match=r"The input is \w+ \[.*\], float32 \[.*\] was wanted"):
            detector.predict_prepared(images, [(10, 10)] * len(images))


def test_more_images_than_a_fixed_batch_are_split(artifacts: Artifacts) -> None:
    detector = load(artifacts.onnx())
    images = prepare_batch(pictures(3), detector.manifest.input)
    sizes = [(640, 480), (320, 240), (64, 64)]
    together = detector.predict_prepared(images, sizes)
    alone = [detector.predict_prepared(images[place : place + 1], [size])[0] for place, size in enumerate(sizes)]
    assert [found.to_coco(0) for found in together] == [found.to_coco(0) for found in alone]
    assert len({str(found.to_coco(0)) for found in together}) == 3


def test_sizes_that_do_not_match_the_images_are_refused(artifacts: Artifacts) -> None:
    detector = load(artifacts.onnx())
    images = prepare_batch(pictures(1), detector.manifest.input)
    with pytest.raises(ConfigError, match="1 images and 2 sizes were given"):
        detector.predict_prepared(images[:1], [(10, 10)] * 2)
