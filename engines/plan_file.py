"""What kind of file something called an engine is, told from its first bytes, without handing it to anything that runs it.

The version's place in a TensorRT plan was told by its makers (NVIDIA/TensorRT, issue 3073: bytes 24 to 27, from 8.6 on). TensorRT-RTX
keeps it there too, with the file's size at byte 16 and a mask of compute capabilities at byte 32; both were read off files of 1.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolact_deploy.errors import ModelFileError

from .targets import BackendName, Capability

__all__ = ["PlanFile", "identify"]

Kind = Literal["tensorrt", "tensorrt-rtx", "onnx", "checkpoint", "empty", "unknown"]

_HEAD = 64
_MAGIC: dict[bytes, BackendName] = {b"ftrt": "tensorrt", b"ptrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
_ONNX_FIELDS = {0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42}  # tags of the second field of a ModelProto
_RTX_BITS: tuple[Capability, ...] = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
_RTX_PORTABLE = 1 << 6  # capabilities after these; set where none was named


@dataclass(frozen=True)
class PlanFile:
    """The kind of a file and, for plans, what the header says.

    Attributes:
        kind: ``tensorrt`` and ``tensorrt-rtx`` are plans; ``unknown`` is none of the kinds told apart here.
        size: bytes of the file.
        version: of the TensorRT that wrote it, ``1.7.1.116``; empty where the header does not tell.
        declared_size: bytes that the file should have, None where the header does not tell.
        capabilities: that a TensorRT-RTX plan was built for; empty for a portable one and where the header does not tell.
    """

    kind: Kind
    size: int
    version: str = ""
    declared_size: int | None = None
    capabilities: tuple[Capability, ...] = ()

    @property
    def is_plan(self) -> bool:
        """Whether it is an engine of either kind."""
        return self.kind in ("tensorrt", "tensorrt-rtx")


def identify(path: Path) -> PlanFile:
    """Look at the first 64 bytes. Raises :class:`ModelFileError` where `path` is no file or cannot be read."""
    if not path.is_file():
        raise ModelFileError(f"The engine {path} {'is a folder' if path.is_dir() else 'does not exist'}.", "Check the path.")
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            head = handle.read(_HEAD)
    except OSError as error:
        raise ModelFileError(f"The engine {path} cannot be read: {error.strerror}.", "Check its permissions.") from None
    backend = _MAGIC.get(head[:4])
    if backend is not None:
        return _plan(backend, head, size)
    return PlanFile(_other_kind(head), size)


def _plan(backend: BackendName, head: bytes, size: int) -> PlanFile:
    version = ".".join(str(byte) for byte in head[24:28]) if len(head) >= 28 and any(head[24:28]) else ""
    if backend == "tensorrt" or len(head) < _HEAD:
        return PlanFile(backend, size, version)
    mask = int.from_bytes(head[32:40], "little")
    named = () if mask & _RTX_PORTABLE else tuple(capability for bit, capability in enumerate(_RTX_BITS) if mask >> bit & 1)
    return PlanFile(backend, size, version, int.from_bytes(head[16:24], "little"), named)


def _other_kind(head: bytes) -> Kind:
    if not head:
        return "empty"
    if head[:4] == b"PK\x03\x04" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32):
        return "checkpoint"
    if len(head) > 2 and head[0] == 0x08 and head[1] <= 0x1F and head[2] in _ONNX_FIELDS:
        return "onnx"
    return "unknown"
