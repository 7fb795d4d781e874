"""Libraries that stand in for TensorRT's own, so that its Python bindings import where they are not installed.

The bindings link to a few C functions. Here each of them returns 0, so that every constructor of TensorRT fails, but names, signatures
and enumerations can be read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
    # The parsers for UFF and Caffe, which only 8.x has.
    "_ZN11nvuffparser15createUffParserEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
    "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
CACHE = Path(sys.prefix) / "bindings" / "stubs"


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return shutil.which("gcc") or shutil.which("cc")


def build(major: int, cache: Path = CACHE) -> Path:
    """A folder with the libraries that bindings of this major version load; compiled once, also where several processes ask at a time."""
    source = "".join(f"void *{function}(void) {{ return 0; }}\n" for function in FUNCTIONS)
    folder = cache / f"{major}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    gcc = compiler()
    if gcc is None:
        raise FileNotFoundError("no C compiler was found")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:
        code = Path(made, "stubs.c")
        code.write_text(source)
        target = Path(made, "libraries")
        target.mkdir()
        for library in LIBRARIES + (("nvparsers",) if major == 8 else ()):
            name = f"lib{library}.so.{major}"
            subprocess.run([gcc, "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", "-o", str(target / name), str(code)], check=True)
        try:
            os.replace(target, folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    return folder
