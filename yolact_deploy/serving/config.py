"""A model's ``config.pbtxt``: made, printed and checked by Triton's schema (``tritonclient``), and by rules that the schema leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from yolact_deploy.errors import MissingDependencyError, ModelFileError
from yolact_deploy.manifest import TensorSpec

__all__ = ["BACKENDS", "ModelSettings", "check_config", "config_text", "parse_config", "valid_name"]

BackendName = Literal["tensorrt", "onnxruntime"]
BACKENDS: dict[str, tuple[str, str]] = {"tensorrt": ("tensorrt_plan", "model.plan"), "onnxruntime": ("onnxruntime_onnx", "model.onnx")}
"""Triton's backends for our models: platform, and the file in each version's folder."""
_DTYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_AGAIN = "Export the checkpoint again, or build the engine again."


@dataclass(frozen=True)
class ModelSettings:
    """Of one model's configuration.

    Attributes:
        name: the model's, and its folder's.
        backend: ``tensorrt`` or ``onnxruntime``.
        max_batch_size: 0 where the server shall not batch.
        inputs, outputs: as the server is to see them: without the batch axis where `max_batch_size` is above 0; -1 is any size.
        preferred_batch, queue_delay_us: of the dynamic batcher, which is there where `max_batch_size` is above 1.
        instances: of the model on each GPU, or on the CPU.
        kind: of the instances.
        gpus: to run on; none for all there are.
        parameters: texts for clients.
    """

    name: str
    backend: BackendName
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preferred_batch: tuple[int, ...] = ()
    queue_delay_us: int = 0
    instances: int = 1
    kind: Literal["KIND_AUTO", "KIND_GPU", "KIND_CPU"] = "KIND_AUTO"
    gpus: tuple[int, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)


def valid_name(name: str) -> bool:
    """Whether a model may be called so: Triton forbids ``/`` and ``..``; here it is what no URL or shell has to escape."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def config_text(settings: ModelSettings) -> str:
    """The text of ``config.pbtxt``, which was parsed again and checked.

    Raises :class:`MissingDependencyError` without tritonclient, :class:`ModelFileError` where the tensors do not make a configuration.
    """
    schema, text_format = _schema()
    config = schema.ModelConfig()
    try:
        _fill(config, settings)
        text = str(text_format.MessageToString(config, as_utf8=True))
    except (KeyError, TypeError, ValueError) as error:  # of tensors and texts that a damaged manifest names
        reason = (str(error).splitlines() or [""])[0][:120]
        raise ModelFileError(f"The model {settings.name} cannot be described to Triton ({reason}).", _AGAIN) from None
    again = parse_config(text)
    if again != config:
        raise ModelFileError(f"The configuration of {settings.name} is not the same when it is read again.", _AGAIN)
    check_config(again)
    return text


def _fill(config: Any, settings: ModelSettings) -> None:
    config.name, config.backend, config.platform = settings.name, settings.backend, BACKENDS[settings.backend][0]
    config.max_batch_size = settings.max_batch_size
    config.version_policy.latest.num_versions = 1
    for entries, tensors in ((config.input, settings.inputs), (config.output, settings.outputs)):
        for tensor in tensors:
            if tensor.dtype not in _DTYPES:
                raise ValueError(f"{tensor.name} is {tensor.dtype}, which Triton does not know")
            entries.add(name=tensor.name, data_type=_DTYPES[tensor.dtype], dims=list(tensor.shape))
    group = config.instance_group.add(count=settings.instances, kind=settings.kind)
    group.gpus.extend(settings.gpus)
    if settings.max_batch_size > 1:
        batching = config.dynamic_batching
        batching.preferred_batch_size.extend(settings.preferred_batch)
        batching.max_queue_delay_microseconds = settings.queue_delay_us
    for name, text in settings.parameters.items():
        config.parameters[name].string_value = text


def parse_config(text: str) -> Any:
    """The ``ModelConfig`` message of a configuration's text; :class:`ModelFileError` where it is none."""
    schema, text_format = _schema()
    try:
        return text_format.Parse(text, schema.ModelConfig())
    except text_format.ParseError as error:
        raise ModelFileError(f"This is no Triton model configuration ({str(error)[:120]}).", "Write it again.") from None


def check_config(config: Any) -> None:
    """What the server asks beyond the schema. Raises :class:`ModelFileError` with every fault."""
    faults = list(_faults(config))
    if faults:
        raise ModelFileError(f"Triton would refuse the configuration of {config.name or 'a model'}: {'; '.join(faults)}.", _AGAIN)


def _faults(config: Any) -> Iterable[str]:
    if not valid_name(config.name):
        yield f"the name {config.name!r}"
    if config.backend not in BACKENDS or config.platform != BACKENDS[config.backend][0]:
        yield f"backend {config.backend!r} with platform {config.platform!r}"
    if config.max_batch_size < 0:
        yield f"max_batch_size {config.max_batch_size}"
    for what, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            yield f"no {what}"
        for tensor in tensors:
            yield from _tensor_faults(what, tensor, batched=config.max_batch_size > 0)
    names = [tensor.name for tensor in (*config.input, *config.output)]
    yield from (f"{name} twice" for name in sorted({name for name in names if names.count(name) > 1}))
    if config.HasField("dynamic_batching"):
        yield from _batching_faults(config)
    for group in config.instance_group:
        kind = group.Kind.Name(group.kind)
        if group.count < 1:
            yield f"{group.count} instances"
        if group.gpus and kind != "KIND_GPU":
            yield f"GPUs with {kind}"
        if min(group.gpus, default=0) < 0 or len(set(group.gpus)) < len(group.gpus):
            yield f"the GPUs {list(group.gpus)}"


def _tensor_faults(what: str, tensor: Any, *, batched: bool) -> Iterable[str]:
    if not tensor.name:
        yield f"an {what} without a name"
    if tensor.data_type == 0:
        yield f"{what} {tensor.name} without a type"
    sizes = list(tensor.dims)
    free = sizes[:1] == [-1] and not batched  # a batch that the server leaves to its clients
    if not sizes or any(size < 1 for size in sizes[free:]):
        yield f"{what} {tensor.name} of {sizes}"


def _batching_faults(config: Any) -> Iterable[str]:
    sizes = list(config.dynamic_batching.preferred_batch_size)
    if config.max_batch_size < 2:
        yield f"dynamic batching of at most {config.max_batch_size}"
    if sizes != sorted(set(sizes)) or any(not 1 <= size <= config.max_batch_size for size in sizes):
        yield f"preferred batches {sizes} of at most {config.max_batch_size}"


def _schema() -> tuple[Any, Any]:
    """The schema's module and protobuf's text format."""
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        raise MissingDependencyError.of("tritonclient[grpc]", "triton", "Writing a Triton model repository") from None
    return model_config_pb2, text_format
