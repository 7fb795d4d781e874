"""The C++ library that the package brings: where it lies, and the CUDA kernels compiled for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.errors import ConfigError, ModelFileError
from yolact_deploy.files import atomic_outputs, refuse_overwrite

__all__ = ["SdkFolders", "sdk_folders", "write_kernels"]

_SOURCE = Path(__file__).parent / "engines" / "cpp"
_OF_EACH = ("cmake/yolact_deployConfig.cmake", "include/yolact_deploy/yolact.hpp", "CMakeLists.txt")
_ELF, _MACHINE, _CUDA = b"\x7fELF", slice(18, 20), b"\xbe\x00"


@dataclass(frozen=True)
class SdkFolders:
    """Of the C++ library.

    Attributes:
        cmake: with ``yolact_deployConfig.cmake``, for ``find_package``.
        include: the public headers'.
        source: with ``CMakeLists.txt``.
    """

    cmake: Path
    include: Path
    source: Path


def sdk_folders(source: Path = _SOURCE) -> SdkFolders:
    """Where the C++ library lies. Raises :class:`ModelFileError` where the package was installed without it."""
    missing = [name for name in _OF_EACH if not (source / name).is_file()]
    if missing:
        raise ModelFileError(
            f"The C++ library is not in {source}: {missing[0]} is missing there.",
            "Run: pip install --force-reinstall --no-deps yolact-deploy",
        )
    return SdkFolders(source / "cmake", source / "include", source)


def write_kernels(output: Path, capabilities: Sequence[tuple[int, int]], *, force: bool = False) -> list[Path]:
    """Compile the package's CUDA kernels by NVRTC, one cubin for each of `capabilities`, and write all of them or none.

    Of several, each file has its capability before the suffix: ``kernels.sm89.cubin`` of ``kernels.cubin``. Raises
    :class:`MissingDependencyError` without NVRTC, :class:`DeviceError` for a capability that it does not know (see
    :func:`yolact_deploy.engines.cuda.compiler.compile_kernels`), :class:`OutputError` where files cannot be written or may not be replaced.
    """
    from yolact_deploy.engines.cuda.compiler import compile_kernels

    wanted = list(dict.fromkeys(capabilities))
    if not wanted:
        raise ConfigError("No compute capability was named.", "Name those of your GPUs: --sm 89, or --sm 86,89.")
    named = [f".sm{major}{minor}{output.suffix}" if len(wanted) > 1 else output.suffix for major, minor in wanted]
    paths = [output.with_name(f"{output.stem}{ending}") for ending in named]
    for path in paths:
        refuse_overwrite(path, ours=_is_cubin(path), force=force)
    images = [compile_kernels(capability) for capability in wanted]
    with atomic_outputs(*paths) as parts:
        for part, image in zip(parts, images, strict=True):
            part.write_bytes(image)
    return paths


def _is_cubin(path: Path) -> bool:
    """Whether `path` is an ELF file for CUDA."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(_MACHINE.stop)
    except OSError:
        return False
    return head.startswith(_ELF) and head[_MACHINE] == _CUDA
