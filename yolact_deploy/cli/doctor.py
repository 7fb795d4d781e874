"""``yolact-deploy doctor``: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any

import typer

from yolact_deploy.cli.common import console
from yolact_deploy.cli.doctor_engines import engine_facts

__all__ = ["doctor"]

_PACKAGES = {
    "base": (
        "numpy",
        "onnx",
        "onnxruntime-gpu",
        "onnxruntime",
        "opencv-python-headless",
        "pillow",
        "pycocotools",
        "safetensors",
        "filelock",
    ),
    "torch": ("torch", "torchvision", "onnxscript"),
    "report": ("jinja2", "matplotlib"),
    "all": ("supervision",),
}


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Report the machine, the packages, the GPU, and which commands work here."""
    facts = _facts()
    if json:
        typer.echo(json_module.dumps(facts, indent=2))
        return
    from rich.table import Table

    out = console()
    for title, rows in facts.items():
        table = Table(title=title, show_header=False, title_justify="left", title_style="bold", box=None)
        for name, value in rows.items():
            table.add_row(f"  {name}", str(value).replace("[", r"\["))
        out.print(table)


def _facts() -> dict[str, dict[str, Any]]:
    versions = {name: _version(name) for names in _PACKAGES.values() for name in names}
    runtimes = [name for name in ("onnxruntime-gpu", "onnxruntime") if versions[name]]
    if runtimes:
        del versions["onnxruntime" if "onnxruntime-gpu" in runtimes else "onnxruntime-gpu"]
    return {
        "machine": _machine(),
        "packages": {name: version or "not installed" for name, version in versions.items()},
        "GPU": _gpu(),
        "engines": engine_facts(),
        "what works here": _abilities(versions, bool(runtimes)),
    }


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    import os
    import platform

    from yolact_deploy import __version__

    return {
        "yolact-deploy": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _gpu() -> dict[str, Any]:
    from yolact_deploy.engines.gpu import driver_report

    return driver_report()


def _abilities(versions: dict[str, str | None], onnxruntime_there: bool) -> dict[str, str]:
    torch_mend = 'no. Run: pip install "yolact-deploy[torch]"'
    missing = [name for name in _PACKAGES["torch"] if not versions[name]]
    result = {
        "predict with an ONNX file": "yes" if onnxruntime_there else "no. Run: pip install onnxruntime-gpu",
        "export, and predict with a checkpoint": "yes" if not missing else f"{torch_mend} (missing: {', '.join(missing)})",
    }
    report = [name for name in _PACKAGES["report"] if not versions[name]]
    result["train"] = "yes" if not missing else torch_mend
    result["evaluate"] = "yes" if onnxruntime_there else "no. Run: pip install onnxruntime-gpu"
    result["evaluate --html"] = "yes" if not report else f'no. Run: pip install "yolact-deploy[report]" (missing: {", ".join(report)})'
    modelopt_mend = 'no. Run, in an environment of its own: pip install "yolact-deploy[modelopt]"'
    result["calibrate --quantizer modelopt"] = "yes" if _version("nvidia-modelopt") else modelopt_mend
    if onnxruntime_there:
        result["ONNX Runtime providers"] = _providers()
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        result["warning"] = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, then install one"
    return result


def _providers() -> str:
    try:
        import onnxruntime
    except ImportError as error:
        return f"onnxruntime does not import ({error}). Run: pip install --force-reinstall onnxruntime-gpu"
    from yolact_deploy.runtime.onnx_backend import choose_providers

    chosen = ", ".join(name.removesuffix("ExecutionProvider") for name in choose_providers())
    available = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    return f"{chosen} would be used, of {available}"
