"""From an ONNX file or an engine, checked as before it is run, to what a Triton server is told about it and the files that it gets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_deploy.engines.batches import DEFAULT_BATCHES, BatchRange
from yolact_deploy.engines.plan_file import identify
from yolact_deploy.engines.sidecar import read_mask_iou, read_plan, read_sidecar, sidecar_path
from yolact_deploy.engines.targets import ENGINE_SUFFIXES
from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.manifest import Manifest, TensorSpec
from yolact_deploy.serving.config import BackendName, ModelSettings, valid_name
from yolact_deploy.serving.parameters import client_parameters

if TYPE_CHECKING:
    from yolact_deploy.engines.sidecar import EngineTarget

__all__ = ["RepositoryOptions", "ServedModel", "name_of", "read_models"]

_CHECKPOINTS = (".pth", ".pt", ".safetensors")
_MOST = 2**31 - 1
_MOST_DELAY = 2**63 - 1
_MASKS = 100  # that the mask-IoU engine takes at once, as it is built
_AGAIN = "Export the checkpoint again, or build the engine again."


@dataclass(frozen=True)
class RepositoryOptions:
    """How models are to be served.

    Attributes:
        instances: of each model on each GPU, or on the CPU.
        gpus: to run on; none for all there are, or the CPU where a server has none and an ONNX file is served.
        queue_delay_us: that a request may wait for others to share a batch with; None leaves it to the server, which is 0.
        preferred_batch: sizes that the batcher aims for.
        max_batch: most pictures at once, of a model whose batch is dynamic. None: the engine's largest; 8, or the largest preferred, for
            an ONNX file.

    Raises :class:`ConfigError` for numbers that no server takes.
    """

    instances: int = 1
    gpus: tuple[int, ...] = ()
    queue_delay_us: int | None = None
    preferred_batch: tuple[int, ...] = ()
    max_batch: int | None = None

    def __post_init__(self) -> None:
        _within("--instances", self.instances, 1, _MOST)
        _within("--max-queue-delay-us", 0 if self.queue_delay_us is None else self.queue_delay_us, 0, _MOST_DELAY)
        _within("--max-batch", 1 if self.max_batch is None else self.max_batch, 1, _MOST)
        for name, numbers, least in (("--gpus", self.gpus, 0), ("--preferred-batch", self.preferred_batch, 1)):
            for number in numbers:
                _within(name, number, least, _MOST)
            twice = next((number for number in numbers if numbers.count(number) > 1), None)
            if twice is not None:
                raise ConfigError(f"{name} names {twice} twice.", "Name each number once.")


def _within(option: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{option} is {value}, a whole number from {least} on was wanted.", f"Mend {option}.")


@dataclass(frozen=True)
class ServedModel:
    """One folder of a model repository.

    Attributes:
        settings: of its configuration.
        content: of the model's file.
        labels: class names, by label; none for the mask-IoU net.
        about: for the JSON beside it: what it was made from.
    """

    settings: ModelSettings
    content: bytes = field(repr=False)
    labels: tuple[str, ...]
    about: dict[str, object]


@dataclass(frozen=True)
class _Source:
    """A model file that was read: `batch` is None for an ONNX file, `target` the engine's."""

    path: Path
    backend: BackendName
    manifest: Manifest
    content: bytes
    mask_iou: bytes | None
    batch: BatchRange | None = None
    target: EngineTarget | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether the graph was quantized for ONNX Runtime's CPU kernels."""
        return self.backend == "onnxruntime" and self.manifest.calibration.get("target") == "onnxruntime"


def name_of(path: Path) -> str:
    """The name that a model is served by where none is given: the file's, with ``_`` for what a model's name may not hold."""
    name = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem)).lstrip("_.-")[:128]
    if not valid_name(name):
        raise ConfigError(f"The file name {path.name} makes no name for a model.", "Give one with --name.")
    return name


def read_models(path: Path, name: str, options: RepositoryOptions) -> list[ServedModel]:
    """The model in `path` to be served as `name`, and its mask-IoU net as ``<name>_maskiou`` where it has one of its own.

    An ONNX file is opened in ONNX Runtime; an engine is held against its sidecar and not opened. Raises :class:`ModelFileError` for
    files that will not do, :class:`ConfigError` for options that contradict the model.
    """
    if not valid_name(name):
        raise ConfigError(
            f"The name {name!r} was given, up to 128 letters, digits, '_', '.' and '-' were wanted, a letter or digit first and no '..'.",
            "Mend --name.",
        )
    source = _read(path)
    _check_tensors(source)
    rescored = f"{name}_maskiou" if source.mask_iou is not None else ""
    if rescored and not valid_name(rescored):
        raise ConfigError(f"The name of the mask-IoU net, {rescored}, has more than 128 letters.", "Give a shorter --name.")
    settings = _settings(source, name, rescored, options)
    manifest = json.loads(source.manifest.to_json())
    about = {"source": path.name, "manifest": manifest}
    models = [ServedModel(settings, source.content, source.manifest.classes.names, about)]
    if source.mask_iou is not None:
        net = _mask_iou_settings(source.manifest, settings, rescored)
        models.append(ServedModel(net, source.mask_iou, (), {"source": Path(source.manifest.mask_iou["file"]).name, "rescores": name}))
    return models


def _read(path: Path) -> _Source:
    suffix = path.suffix.lower()
    if suffix in _CHECKPOINTS:
        raise ModelFileError(f"{path} is a checkpoint, an ONNX file or an engine was wanted.", f"Run: yolact-deploy export {path.name}")
    if suffix == ".onnx":
        return _read_onnx(path)
    if suffix in ENGINE_SUFFIXES:
        return _read_engine(path)
    raise ModelFileError(f"{path} ends in {suffix or 'nothing'}, .onnx or .engine was wanted.", "Name a file of one of these kinds.")


def _read_onnx(path: Path) -> _Source:
    from yolact_deploy.onnx_file import read_onnx
    from yolact_deploy.runtime.onnx_backend import OnnxBackend

    if any(tensor.external_data for tensor in read_onnx(path).graph.initializer):
        raise ModelFileError(f"{path} keeps weights in another file, one file was wanted.", "Export the checkpoint again.")
    backend = OnnxBackend(path, ["cpu"], threads=1)
    manifest = backend.manifest
    backend.close()
    beside = path.parent / Path(manifest.mask_iou["file"]).name if manifest.mask_iou else None
    return _Source(path, "onnxruntime", manifest, path.read_bytes(), None if beside is None else beside.read_bytes())


def _read_engine(path: Path) -> _Source:
    found, sidecar = identify(path), read_sidecar(path)
    if sidecar is None and found.is_plan:
        raise ModelFileError(
            f"{path} has no sidecar {sidecar_path(path).name}, which says what its tensors mean.",
            f"Copy both files; or, if trtexec built it from our ONNX: yolact-deploy adopt {path.name} --onnx MODEL.onnx",
        )
    plan = read_plan(path, sidecar)
    if sidecar is None:  # such a file was refused
        raise ModelFileError(f"{path} has no sidecar.", _AGAIN)
    manifest, target = sidecar
    if target.backend != "tensorrt":
        raise ModelFileError(
            f"{path} is an engine of {target.title}; Triton's TensorRT backend loads those of TensorRT, which are another format.",
            "Build one on the server's kind of GPU: yolact-deploy build-engine MODEL.onnx --backend tensorrt; or serve the ONNX file.",
        )
    return _Source(path, "tensorrt", manifest, plan, read_mask_iou(path, manifest, target), target.batch, target)


def _check_tensors(source: _Source) -> None:
    """That the manifest's tensors are those of such a model, with one and the same batch."""
    manifest, spec = source.manifest, source.manifest.input
    axes = {tensor.shape[0] if tensor.shape else None for tensor in (*manifest.inputs, *manifest.outputs)}
    wanted = (spec.size, spec.size, 3) if spec.layout == "raw" else (3, spec.size, spec.size)
    sizes = [size for tensor in (*manifest.inputs, *manifest.outputs) for size in tensor.shape[1:]]
    fits = len(manifest.inputs) == 1 and manifest.inputs[0].shape[1:] == wanted and len(axes) == 1
    if not fits or not all(isinstance(size, int) and 0 < size <= _MOST for size in sizes):
        told = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in (*manifest.inputs, *manifest.outputs))
        raise ModelFileError(f"The manifest of {source.path} names tensors that are not of one network ({told}).", _AGAIN)
    axis, batch = axes.pop(), source.batch
    if axis != "batch" and (not isinstance(axis, int) or (batch and (batch.minimum, batch.maximum) != (axis, axis))):
        raise ModelFileError(f"The manifest of {source.path} has the batch {axis}, its engine {batch or 'any'}.", _AGAIN)
    odd = next((name for name in manifest.classes.names if not name.isprintable()), None)
    if odd is not None:
        raise ModelFileError(f"The manifest of {source.path} names a class {odd!r}, which is no line of text.", _AGAIN)


def _settings(source: _Source, name: str, rescored: str, options: RepositoryOptions) -> ModelSettings:
    manifest = source.manifest
    if source.on_cpu and options.gpus:
        raise ConfigError(
            f"--gpus was given, {source.path} is the INT8 graph for ONNX Runtime on a CPU.", "Drop --gpus, or build an engine for the GPU."
        )
    axis, batches = manifest.inputs[0].shape[0], source.batch
    smallest = axis if isinstance(axis, int) else batches.minimum if batches else 1
    if isinstance(axis, int) or smallest > 1:  # Triton's batcher knows no smallest batch
        most, first = 0, [axis if isinstance(axis, int) else -1]
    else:
        most, first = _largest(source, options), []
    _check_batching(source, most, options)
    parameters = client_parameters(manifest, smallest_batch=smallest, mask_iou_model=rescored)
    if source.target is not None:
        parameters |= {"built_by": source.target.title, "built_for": source.target.where}
    return ModelSettings(
        name,
        source.backend,
        most,
        _served(manifest.inputs, first),
        _served(manifest.outputs, first),
        tuple(sorted(options.preferred_batch)),
        options.queue_delay_us or 0,
        options.instances,
        "KIND_CPU" if source.on_cpu else "KIND_GPU" if options.gpus or source.backend == "tensorrt" else "KIND_AUTO",
        options.gpus,
        parameters,
    )


def _served(tensors: Sequence[TensorSpec], first: list[int]) -> tuple[TensorSpec, ...]:
    return tuple(replace(tensor, shape=(*first, *tensor.shape[1:])) for tensor in tensors)


def _largest(source: _Source, options: RepositoryOptions) -> int:
    """Most pictures at once, of a model that takes single ones too."""
    if source.batch is None:
        return options.max_batch or max(DEFAULT_BATCHES.maximum, *options.preferred_batch, 1)
    largest = source.batch.maximum
    if (options.max_batch or 1) > largest:
        raise ConfigError(
            f"--max-batch is {options.max_batch}, {source.path} takes at most {largest}.",
            "Mend it, or build the engine for a larger --batch.",
        )
    return options.max_batch or largest


def _check_batching(source: _Source, most: int, options: RepositoryOptions) -> None:
    """That nothing is asked of a batcher which is not there."""
    asked = {
        "--max-batch": options.max_batch is not None and most == 0,
        "--preferred-batch": bool(options.preferred_batch) and most < 2,
        "--max-queue-delay-us": options.queue_delay_us is not None and most < 2,
    }
    vain = [name for name, given in asked.items() if given]
    if vain:
        taken = source.batch or source.manifest.inputs[0].shape[0] if most == 0 else most
        raise ConfigError(
            f"{' and '.join(vain)} given, but the server does not batch for {source.path}, whose batch is {taken}.",
            "Leave it out, or take a model with a dynamic batch from 1 on: export --batch dynamic, build-engine --batch 1:4:8.",
        )
    if options.preferred_batch and max(options.preferred_batch) > most:
        raise ConfigError(
            f"--preferred-batch is {max(options.preferred_batch)}, at most {most} pictures of {source.path} are batched.",
            "Prefer smaller batches, or take a model with a larger one.",
        )


def _mask_iou_settings(manifest: Manifest, main: ModelSettings, name: str) -> ModelSettings:
    """Masks of one picture's detections [N, 1, h, w] -> mask IoU of each class [N, C-1]; N is batched."""
    side = manifest.variant.prototype_size
    limit = manifest.thresholds.max_detections
    return replace(
        main,
        name=name,
        max_batch_size=_MASKS if main.backend == "tensorrt" else max(limit, 1),
        inputs=(TensorSpec("masks", "float32", (1, side, side)),),
        outputs=(TensorSpec("mask_ious", "float32", (manifest.variant.num_classes - 1,)),),
        preferred_batch=(),
        queue_delay_us=0,
        parameters={"rescores": main.name},
    )
