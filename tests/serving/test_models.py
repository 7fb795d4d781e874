"""What a Triton server is told of each kind of model file, and the files and options that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.export.artifacts import Artifacts
from tests.helpers.fake_engines import write_engine
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.manifest import METADATA_KEY
from yolact_deploy.onnx_file import read_manifest
from yolact_deploy.serving.config import ModelSettings, config_text, valid_name
from yolact_deploy.serving.models import RepositoryOptions, name_of, read_models


def served(path: Path, **options: Any) -> ModelSettings:
    models = read_models(path, "m", RepositoryOptions(**options))
    for model in models:
        config_text(model.settings)
    return models[0].settings


def refused(path: Path, kind: type[Exception] = ModelFileError, **options: Any) -> str:
    with pytest.raises(kind) as found:
        served(path, **options)
    return str(found.value)


def rewritten(source: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of an ONNX file whose manifest was changed."""
    model = onnx.load(source)
    for prop in model.metadata_props:
        if prop.key == METADATA_KEY:
            fields = json.loads(prop.value)
            change(fields)
            prop.value = json.dumps(fields)
    onnx.save(model, path)
    return path


def sidecar_changed(engine: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    beside = Path(f"{engine}.json")
    fields = json.loads(beside.read_text(encoding="utf-8"))
    change(fields)
    beside.write_text(json.dumps(fields), encoding="utf-8")
    return engine


# Batches


def test_a_dynamic_onnx(artifacts: Artifacts) -> None:
    path = artifacts.onnx(batch="dynamic")
    found, manifest = served(path), read_manifest(path)
    assert (found.max_batch_size, found.backend, found.kind, found.gpus, found.instances) == (8, "onnxruntime", "KIND_AUTO", (), 1)
    assert [(one.name, one.dtype, ("batch", *one.shape)) for one in found.inputs] == [(x.name, x.dtype, x.shape) for x in manifest.inputs]
    assert [(one.name, one.dtype, ("batch", *one.shape)) for one in found.outputs] == [(x.name, x.dtype, x.shape) for x in manifest.outputs]
    assert served(path, max_batch=3).max_batch_size == 3
    assert served(path, max_batch=1).max_batch_size == 1
    assert served(path, preferred_batch=(16, 4)).max_batch_size == 16
    assert served(path, preferred_batch=(4, 2), queue_delay_us=5).max_batch_size == 8
    both = served(path, preferred_batch=(4, 2), queue_delay_us=5)
    assert (both.preferred_batch, both.queue_delay_us) == ((2, 4), 5)
    assert "--preferred-batch is 16, at most 8 pictures" in refused(path, ConfigError, preferred_batch=(16,), max_batch=8)
    assert served(path, preferred_batch=(8,), max_batch=8).preferred_batch == (8,)


def test_a_fixed_onnx(artifacts: Artifacts) -> None:
    path = artifacts.onnx(batch=3, opset=18, postprocess="nms", layout="raw")
    found, manifest = served(path), read_manifest(path)
    assert (found.max_batch_size, found.inputs, found.outputs) == (0, manifest.inputs, manifest.outputs)
    assert found.inputs[0].shape[0] == 3
    assert found.parameters["smallest_batch"] == "3"
    for options in ({"max_batch": 3}, {"preferred_batch": (1,)}, {"queue_delay_us": 0}):
        assert "but the server does not batch for" in refused(path, ConfigError, **options)
    told = refused(path, ConfigError, max_batch=2, queue_delay_us=1)
    assert f"--max-batch and --max-queue-delay-us given, but the server does not batch for {path}, whose batch is 3." in told
    assert "--max-queue-delay-us given" in refused(artifacts.onnx(batch="dynamic"), ConfigError, max_batch=1, queue_delay_us=1)
    assert "--preferred-batch given" in refused(artifacts.onnx(batch="dynamic"), ConfigError, max_batch=1, preferred_batch=(1,))


@pytest.mark.parametrize(
    ("batch", "most", "first", "smallest"),
    [
        ((1, 2, 16), 16, [], 1),
        ((1, 1, 1), 0, [1], 1),
        ((4, 4, 8), 0, [-1], 4),
        ((2, 4, 8), 0, [-1], 2),
        ((5, 5, 5), 0, [5], 5),
        ((2, 2, 2), 0, [2], 2),
    ],
)
def test_dynamic_engines(
    batch: tuple[int, int, int], most: int, first: list[int], smallest: int, artifacts: Artifacts, tmp_path: Path
) -> None:
    source = artifacts.onnx(batch="dynamic")
    engine = write_engine(source, tmp_path, BatchRange(*batch))
    found = served(engine)
    assert (found.max_batch_size, found.backend, found.kind) == (most, "tensorrt", "KIND_GPU")
    manifest = read_manifest(source)
    for ours, theirs in zip((*found.inputs, *found.outputs), (*manifest.inputs, *manifest.outputs), strict=True):
        assert (ours.name, ours.dtype, ours.shape) == (theirs.name, theirs.dtype, (*first, *theirs.shape[1:]))
    assert found.parameters["smallest_batch"] == str(smallest)
    assert found.parameters["built_for"] == "Stub GPU 0"
    if most == 16:
        assert served(engine, max_batch=16).max_batch_size == 16
        assert served(engine, max_batch=4).max_batch_size == 4
        assert f"--max-batch is 17, {engine} takes at most 16." in refused(engine, ConfigError, max_batch=17)
        assert "--preferred-batch is 17, at most 16" in refused(engine, ConfigError, preferred_batch=(4, 17))
    else:
        assert f"whose batch is {BatchRange(*batch)}." in refused(engine, ConfigError, preferred_batch=(1,))


def test_a_fixed_engine(artifacts: Artifacts, tmp_path: Path) -> None:
    engine = write_engine(artifacts.onnx(), tmp_path)
    found = served(engine, gpus=(1, 0), instances=2)
    assert (found.max_batch_size, found.inputs[0].shape[0], found.kind, found.gpus, found.instances) == (0, 1, "KIND_GPU", (1, 0), 2)
    sidecar_changed(engine, lambda fields: fields["target"].update(batch=[1, 1, 2]))
    assert "has the batch 1, its engine 1:1:2" in refused(engine)


# Mask rescoring


def test_the_mask_iou_net_is_a_model_of_its_own(artifacts: Artifacts, tmp_path: Path) -> None:
    source = artifacts.onnx(artifacts.plus)
    manifest = read_manifest(source)
    side, classes = manifest.variant.prototype_size, manifest.variant.num_classes - 1
    for path, most in ((source, 100), (write_engine(source, tmp_path), 100)):
        main, net = read_models(path, "m", RepositoryOptions(instances=2, gpus=(1,)))
        assert main.settings.parameters["mask_iou_model"] == net.settings.name == "m_maskiou"
        assert (net.settings.max_batch_size, net.settings.instances, net.settings.gpus) == (most, 2, (1,))
        assert [(one.name, one.dtype, one.shape) for one in net.settings.inputs] == [("masks", "float32", (1, side, side))]
        assert [(one.name, one.dtype, one.shape) for one in net.settings.outputs] == [("mask_ious", "float32", (classes,))]
        assert (net.settings.backend, net.settings.kind, net.labels) == (main.settings.backend, main.settings.kind, ())
        beside = next(iter(path.parent.glob(f"{path.stem}.maskiou.*")))
        assert (main.content, net.content) == (path.read_bytes(), beside.read_bytes())
        assert net.about["source"] == beside.name
    batched = artifacts.onnx(batch="dynamic")
    assert len(read_models(batched, "m", RepositoryOptions())) == 1


def test_an_onnx_mask_iou_net_takes_all_detections_of_a_picture(artifacts: Artifacts, tmp_path: Path) -> None:
    source = artifacts.onnx(artifacts.plus)
    shutil.copy(source.with_name(f"{source.stem}.maskiou.onnx"), tmp_path)
    path = rewritten(source, tmp_path / "a.onnx", lambda fields: fields["thresholds"].update(max_detections=30))
    assert read_models(path, "m", RepositoryOptions())[1].settings.max_batch_size == 30


def test_preferred_batches_are_of_pictures(artifacts: Artifacts, tmp_path: Path) -> None:
    path = artifacts.onnx(artifacts.plus, batch="dynamic")
    main, net = read_models(path, "m", RepositoryOptions(preferred_batch=(4,), queue_delay_us=9))
    assert (main.settings.preferred_batch, main.settings.queue_delay_us) == ((4,), 9)
    assert (net.settings.preferred_batch, net.settings.queue_delay_us, net.settings.parameters) == ((), 0, {"rescores": "m"})


def test_a_mask_iou_net_that_does_not_belong(artifacts: Artifacts, tmp_path: Path) -> None:
    source = artifacts.onnx(artifacts.plus)
    copy = Path(shutil.copy(source, tmp_path))
    assert "needs its mask-IoU net" in refused(copy)
    beside = tmp_path / f"{copy.stem}.maskiou.onnx"
    beside.write_bytes(b"other")
    assert "is no readable ONNX file" in refused(copy) or "is not the mask-IoU net" in refused(copy)
    engine = write_engine(source, tmp_path)
    net = tmp_path / f"{engine.stem}.maskiou.engine"
    net.write_bytes(net.read_bytes() + b"x")
    assert "is not the mask-IoU engine" in refused(engine)
    net.unlink()
    assert "needs its mask-IoU engine" in refused(engine)


# INT8 on a CPU


def test_an_int8_graph_for_the_cpu(artifacts: Artifacts, tmp_path: Path) -> None:
    path = rewritten(artifacts.onnx(), tmp_path / "a.int8.ort.onnx", lambda fields: fields["calibration"].update(target="onnxruntime"))
    assert served(path, instances=4).kind == "KIND_CPU"
    assert f"--gpus was given, {path} is the INT8 graph for ONNX Runtime on a CPU. Drop --gpus" in refused(path, ConfigError, gpus=(0,))
    other = rewritten(artifacts.onnx(), tmp_path / "a.int8.onnx", lambda fields: fields["calibration"].update(target="tensorrt"))
    assert served(other).kind == "KIND_AUTO"
    assert served(other, gpus=(0,)).kind == "KIND_GPU"
    engine = sidecar_changed(write_engine(artifacts.onnx(), tmp_path), lambda fields: fields["calibration"].update(target="onnxruntime"))
    assert served(engine).kind == "KIND_GPU"


# Files that will not do


def test_what_is_no_model(artifacts: Artifacts, tmp_path: Path) -> None:
    assert "is a checkpoint, an ONNX file or an engine was wanted. Run: yolact-deploy export" in refused(artifacts.weights)
    assert "is a checkpoint" in refused(tmp_path / "a.PTH")
    assert "ends in .txt, .onnx or .engine was wanted" in refused(tmp_path / "a.txt")
    assert "ends in nothing" in refused(tmp_path / "a")
    assert "does not exist" in refused(tmp_path / "a.onnx")
    assert "does not exist" in refused(tmp_path / "a.engine")
    (tmp_path / "b.onnx").write_bytes(b"\x08\x07junk")
    assert "is no readable ONNX file" in refused(tmp_path / "b.onnx")
    model = onnx.load(artifacts.onnx())
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "c.onnx")
    assert "has no yolact-deploy manifest" in refused(tmp_path / "c.onnx")
    large = onnx.load(artifacts.onnx())
    onnx.save(large, tmp_path / "d.onnx", save_as_external_data=True, location="d.data", size_threshold=0)
    assert "keeps weights in another file" in refused(tmp_path / "d.onnx")


def test_engines_that_will_not_do(artifacts: Artifacts, tmp_path: Path) -> None:
    engine = write_engine(artifacts.onnx(), tmp_path)
    good = Path(f"{engine}.json").read_bytes()
    Path(f"{engine}.json").unlink()
    told = refused(engine)
    assert f"{engine} has no sidecar {engine.name}.json" in told
    assert f"yolact-deploy adopt {engine.name} --onnx MODEL.onnx" in told
    assert "--trust" not in told
    (tmp_path / "e.engine").touch()
    assert "is empty" in refused(tmp_path / "e.engine")
    shutil.copy(artifacts.onnx(), tmp_path / "f.plan")
    assert "is an ONNX file, an engine was wanted" in refused(tmp_path / "f.plan")
    Path(f"{engine}.json").write_bytes(good[:-40])
    assert "is damaged" in refused(engine)
    Path(f"{engine}.json").write_bytes(good)
    plan = bytearray(engine.read_bytes())
    plan[-1] ^= 1
    engine.write_bytes(plan)
    assert "its SHA-256 differs" in refused(engine)
    engine.write_bytes(plan[:-1])
    assert "its sidecar says" in refused(engine)


def test_an_engine_of_tensorrt_rtx(artifacts: Artifacts, tmp_path: Path) -> None:
    engine = write_engine(artifacts.onnx(), tmp_path, backend="tensorrt-rtx")
    told = refused(engine)
    assert f"{engine} is an engine of TensorRT-RTX" in told
    assert "Triton's TensorRT backend loads those of TensorRT, which are another format." in told
    assert "--backend tensorrt; or serve the ONNX file" in told


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda fields: fields["outputs"].pop(0), "names no output boxes"),
        (lambda fields: fields["inputs"].append(fields["inputs"][0]), "not of one network"),
        (lambda fields: fields["inputs"].clear(), "not of one network"),
        (lambda fields: fields["inputs"][0].update(shape=[1, 3, 9, 9]), "not of one network (images [1, 3, 9, 9], boxes"),
        (lambda fields: fields["inputs"][0].update(shape=[]), "not of one network"),
        (lambda fields: fields["outputs"][0].update(shape=[2, 8, 4]), "not of one network"),
        (lambda fields: fields["outputs"][0].update(shape=[1, 0, 4]), "not of one network"),
        (lambda fields: fields["outputs"][0].update(shape=[1, 2**31, 4]), "not of one network"),
        (lambda fields: fields["outputs"][0].update(shape=[1, "rows", 4]), "not of one network"),
        (lambda fields: fields["outputs"][0].update(dtype="bfloat"), "boxes is bfloat, which Triton does not know"),
        (lambda fields: fields["outputs"][0].update(name="scores"), "names no output boxes"),
        (lambda fields: fields["outputs"].append(fields["outputs"][0]), "boxes twice"),
        (lambda fields: fields["classes"]["names"].__setitem__(0, "a\nb"), "names a class 'a\\nb', which is no line of text"),
        (lambda fields: fields["variant"].update(name="\ud800"), "cannot be described to Triton"),
        (lambda fields: [one["shape"].__setitem__(0, 0) for one in (*fields["inputs"], *fields["outputs"])], "has the batch 0"),
        (lambda fields: [one["shape"].__setitem__(0, "n") for one in (*fields["inputs"], *fields["outputs"])], "has the batch n"),
        (
            lambda fields: [one["shape"].__setitem__(0, 2) for one in (*fields["inputs"], *fields["outputs"])],
            "has the batch 2, its engine 1:1:1",
        ),
        (lambda fields: fields.pop("variant"), "is damaged"),
        (lambda fields: fields["target"].pop("batch"), "does not describe an engine"),
    ],
)
def test_damaged_sidecars(change: Callable[[dict[str, Any]], object], fault: str, artifacts: Artifacts, tmp_path: Path) -> None:
    assert fault in refused(sidecar_changed(write_engine(artifacts.onnx(), tmp_path), change))


def test_a_graph_at_odds_with_its_manifest(artifacts: Artifacts, tmp_path: Path) -> None:
    path = rewritten(artifacts.onnx(), tmp_path / "a.onnx", lambda fields: fields["outputs"][0].update(shape=[1, 7, 4]))
    assert "its manifest says boxes float32 [1, 7, 4]" in refused(path)


# Options and names


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"instances": 0}, "--instances is 0, a whole number from 1 on was wanted. Mend --instances."),
        ({"instances": 2**31}, "--instances is 2147483648"),
        ({"queue_delay_us": -1}, "--max-queue-delay-us is -1, a whole number from 0 on was wanted"),
        ({"queue_delay_us": 2**63}, "--max-queue-delay-us is"),
        ({"max_batch": 0}, "--max-batch is 0, a whole number from 1 on"),
        ({"gpus": (0, -1)}, "--gpus is -1, a whole number from 0 on"),
        ({"gpus": (1, 0, 1)}, "--gpus names 1 twice. Name each number once."),
        ({"preferred_batch": (0,)}, "--preferred-batch is 0, a whole number from 1 on"),
        ({"preferred_batch": (4, 4)}, "--preferred-batch names 4 twice"),
        ({"preferred_batch": (2**31,)}, "--preferred-batch is 2147483648"),
    ],
)
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as found:
        RepositoryOptions(**options)
    assert told in str(found.value)


def test_options_at_their_ends() -> None:
    RepositoryOptions(instances=2**31 - 1, queue_delay_us=2**63 - 1, gpus=(0, 2**31 - 1), preferred_batch=(1,), max_batch=2**31 - 1)
    assert replace(RepositoryOptions(), queue_delay_us=0).queue_delay_us == 0


@given(st.text(min_size=1, max_size=200).filter(lambda text: "/" not in text and "\0" not in text))
def test_names_of_files(text: str) -> None:
    path = Path("folder") / f"{text}.onnx"
    if not any(letter.isascii() and letter.isalnum() for letter in path.stem):
        with pytest.raises(ConfigError, match=r"makes no name for a model\. Give one with --name\."):
            name_of(path)
        return
    name = name_of(path)
    assert valid_name(name)
    assert name == path.stem or not valid_name(path.stem)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mine.fp16.trt10.16-sm90.engine", "mine.fp16.trt10.16-sm90"),
        ("a b (1).onnx", "a_b_1_"),
        (".hidden.onnx", "hidden"),
        ("a..b.onnx", "a.b"),
        ("x" * 140 + ".onnx", "x" * 128),
    ],
)
def test_some_names_of_files(file: str, name: str) -> None:
    assert name_of(Path(file)) == name


def test_given_names(artifacts: Artifacts) -> None:
    for name in ("", "a/b", "..", "a b"):
        with pytest.raises(ConfigError, match=r"The name .* was given, up to 128 letters.* Mend --name"):
            read_models(artifacts.onnx(), name, RepositoryOptions())
    with pytest.raises(ConfigError, match=r"has more than 128 letters\. Give a shorter --name"):
        read_models(artifacts.onnx(artifacts.plus), "a" * 121, RepositoryOptions())
    assert read_models(artifacts.onnx(artifacts.plus), "a" * 120, RepositoryOptions())[1].settings.name == "a" * 120 + "_maskiou"
