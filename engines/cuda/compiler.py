"""The CUDA kernels, compiled for one GPU architecture by NVRTC, which needs neither a CUDA toolkit nor a GPU, and kept in a cache."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from yolact_deploy.errors import DeviceError, MissingDependencyError, OutputError
from yolact_deploy.files import atomic_output, cache_folder

__all__ = ["UMBRELLA", "cached_kernels", "compile_kernels", "kernel_sources", "nvrtc_version"]

UMBRELLA = "all.cuh"
"""The file that includes all others."""

_PURPOSE = "Post-processing on the GPU"
_PROGRAM = "kernels.cu"
_OPTIONS = ("--std=c++17",)  # no fast math: what is computed here equals what the CPU computes, bit for bit
_OLD_GPU = "Use a GPU of compute capability 7.5 or newer."
_DIGEST = hashlib.sha256().digest_size


def kernel_sources() -> dict[str, str]:
    """The package's kernels: file name to text."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(__file__).with_name("kernels").glob("*.cuh"))}


def nvrtc_version() -> tuple[int, int]:
    """Of the NVRTC that would compile. Raises :class:`MissingDependencyError` where there is none."""
    return _version(_nvrtc())


def compile_kernels(capability: tuple[int, int], sources: Mapping[str, str] | None = None) -> bytes:
    """A cubin with the kernels of `sources`, :func:`kernel_sources` by default, for GPUs of compute capability `capability`.

    Raises :class:`MissingDependencyError` without cuda-bindings or NVRTC, and :class:`DeviceError` for an architecture that this NVRTC does
    not know, and with the compiler's log where the kernels do not compile.
    """
    return _compiled(_nvrtc(), capability, kernel_sources() if sources is None else sources)


def cached_kernels(capability: tuple[int, int], folder: Path | None = None) -> bytes:
    """:func:`compile_kernels` of the package's kernels, from `folder` where they were compiled before.

    A change of the kernels, the options or NVRTC's version leads to another file there; one that is damaged is made again, and where the
    folder cannot be written each call compiles. `folder` is ``yolact-deploy/kernels`` in the user's cache folder by default.
    """
    nvrtc, sources = _nvrtc(), kernel_sources()
    path = (folder or cache_folder("kernels")) / _file_name(nvrtc, capability, sources)
    image = _read(path)
    if image is None:
        image = _compiled(nvrtc, capability, sources)
        with contextlib.suppress(OutputError), atomic_output(path) as part:
            part.write_bytes(hashlib.sha256(image).digest() + image)
    return image


def _read(path: Path) -> bytes | None:
    """What a file of the cache holds, where it is whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    image = content[_DIGEST:]
    return image if image and hashlib.sha256(image).digest() == content[:_DIGEST] else None


def _file_name(nvrtc: Any, capability: tuple[int, int], sources: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for part in (_PROGRAM, UMBRELLA, *_OPTIONS, repr(_version(nvrtc)), *(text for item in sorted(sources.items()) for text in item)):
        digest.update(f"{len(part.encode())}:{part}".encode())
    return f"sm_{capability[0]}{capability[1]}.{digest.hexdigest()}.cubin"


def _nvrtc() -> Any:
    """``cuda.bindings.nvrtc``, whose library is there."""
    try:
        nvrtc = import_module("cuda.bindings.nvrtc")
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("cuda-bindings", "tensorrt", _PURPOSE) from error
    try:
        _version(nvrtc)
    except RuntimeError as error:  # cuda.pathfinder's DynamicLibNotFoundError is one, and so is what older cuda-bindings raise
        if metadata.version("cuda-bindings").startswith("12."):  # which the extra's NVRTC does not fit
            mend = "Run: pip install nvidia-cuda-nvrtc-cu12"
            raise MissingDependencyError(f"{_PURPOSE} needs NVRTC for CUDA 12, which is not installed.", mend) from error
        raise MissingDependencyError.of("NVRTC (nvidia-cuda-nvrtc)", "tensorrt", _PURPOSE) from error
    return nvrtc


def _version(nvrtc: Any) -> tuple[int, int]:
    code, major, minor = nvrtc.nvrtcVersion()
    if code:
        raise DeviceError(f"NVRTC does not tell its version: {code.name}.", "Run: pip install --force-reinstall nvidia-cuda-nvrtc")
    return int(major), int(minor)


def _compiled(nvrtc: Any, capability: tuple[int, int], sources: Mapping[str, str]) -> bytes:
    architecture = capability[0] * 10 + capability[1]
    known = sorted(int(number) for number in _answer(nvrtc, "nvrtcGetSupportedArchs"))
    if architecture not in known:
        major, minor = _version(nvrtc)
        raise DeviceError(
            f"NVRTC {major}.{minor} compiles for sm_{', sm_'.join(map(str, known))}, not for sm_{architecture} (compute capability "
            f"{capability[0]}.{capability[1]}).",
            _OLD_GPU if architecture < known[0] else "Run: pip install --upgrade nvidia-cuda-nvrtc",
        )
    with _program(nvrtc, sources) as program:
        options = [option.encode() for option in (f"--gpu-architecture=sm_{architecture}", *_OPTIONS)]
        (code,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if code:
            log = _text(nvrtc, "nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace").strip()
            raise DeviceError(f"The kernels do not compile for sm_{architecture} ({code.name}):\n{log}")
        return _text(nvrtc, "nvrtcGetCUBIN", program)


@contextlib.contextmanager
def _program(nvrtc: Any, sources: Mapping[str, str]) -> Iterator[Any]:
    """All kernels as one program, whose headers are in memory."""
    headers, names = [text.encode() for text in sources.values()], [name.encode() for name in sources]
    program = _answer(nvrtc, "nvrtcCreateProgram", f'#include "{UMBRELLA}"\n'.encode(), _PROGRAM.encode(), len(headers), headers, names)
    try:
        yield program
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _answer(nvrtc: Any, name: str, *arguments: Any) -> Any:
    """What NVRTC's function `name` answers."""
    code, *answers = getattr(nvrtc, name)(*arguments)
    if code:
        raise DeviceError(f"NVRTC: {name} failed with {code.name}.")
    return answers[0] if answers else None


def _text(nvrtc: Any, name: str, program: Any) -> bytes:
    """What the function `name` writes into bytes of the size that ``nameSize`` tells."""
    content = bytes(_answer(nvrtc, f"{name}Size", program))  # which NVRTC writes to, as its bindings have it
    _answer(nvrtc, name, program, content)
    return content
