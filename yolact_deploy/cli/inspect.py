"""``yolact-deploy inspect``: what a file is."""

from __future__ import annotations

import json as json_module
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolact_deploy.cli.common import console, counted, file_size
from yolact_deploy.errors import ModelFileError, YolactDeployError

if TYPE_CHECKING:
    from yolact_deploy.engines.sidecar import EngineTarget
    from yolact_deploy.manifest import Manifest

__all__ = ["inspect"]

_CHECKPOINTS = (".pth", ".pt", ".safetensors")


def inspect(
    file: Annotated[Path, typer.Argument(help="An ONNX file or an engine of this tool, or a checkpoint.")],
    variant: Annotated[str | None, typer.Option(help="For a checkpoint: its variant.", show_default=False)] = None,
    config: Annotated[Path | None, typer.Option(help="For a checkpoint: your own variant, TOML.", show_default=False)] = None,
    layers: Annotated[bool, typer.Option("--layers", help="For an engine, on its GPU: list every layer.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Open an engine without a sidecar: a plan is code.")] = False,
    lean_runtime: Annotated[
        str | None, typer.Option(help="For a version-compatible engine: its libnvinfer_lean.so.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a model file holds: tensors, precision of each module, size, and what it was made from."""
    from yolact_deploy.engines.targets import ENGINE_SUFFIXES

    suffix = file.suffix.lower()
    if suffix == ".onnx":
        facts = _onnx_facts(file)
    elif suffix in ENGINE_SUFFIXES:
        facts = _engine_facts(file, trust=trust, layers=layers, lean_runtime=lean_runtime)
    elif suffix in _CHECKPOINTS:
        facts = _checkpoint_facts(file, variant, config)
    else:
        raise ModelFileError(
            f"{file} ends in {suffix or 'nothing'}, .onnx, .engine, .pth or .safetensors was wanted.", "Name a file of one of these kinds."
        )
    if json:
        typer.echo(json_module.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print(facts)


def _onnx_facts(file: Path) -> dict[str, Any]:
    from yolact_deploy.onnx_file import manifest_of, read_onnx

    model = read_onnx(file)
    manifest = manifest_of(model, file)
    operators = Counter(node.op_type for node in model.graph.node)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    return {
        "file": str(file),
        "kind": f"ONNX, opset {opset}, {len(model.graph.node)} nodes",
        "size": file_size(file),
        **_common(manifest),
        **_inside(manifest),
        **({"measured": measured} if (measured := _measured(file)) else {}),
        "operators": dict(operators.most_common()),
    }


def _inside(manifest: Manifest) -> dict[str, Any]:
    """What the manifests of ONNX files and engines tell alike."""
    return {
        "postprocess in the graph": manifest.postprocess,
        "tensors": {
            tensor.name: f"{direction} {tensor.dtype} {list(tensor.shape)}"
            for direction, tensors in (("input", manifest.inputs), ("output", manifest.outputs))
            for tensor in tensors
        },
        "precision": manifest.precision,
        **({"calibration": _calibration(manifest.calibration)} if manifest.calibration else {}),
        "thresholds": vars(manifest.thresholds),
        "mask-IoU net": manifest.mask_iou or "none",
        "made from": manifest.source,
        "made with": manifest.versions,
        "checked": {
            **manifest.verification.get("largest_relative_difference", {}),
            **({"compared": manifest.verification["compared"]} if "compared" in manifest.verification else {}),
        },
    }


def _calibration(found: dict[str, Any]) -> dict[str, Any]:
    """Of an INT8 graph: how its ranges were found, and what stays in floats."""
    pictures, kept = found.get("pictures", {}), found.get("kept", [])
    return {
        "for": {"tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime on a CPU"}.get(str(found.get("target")), "unknown"),
        "quantizer": found.get("quantizer", "own"),
        "ranges": f"{found.get('method')}, of {pictures.get('count')} pictures",
        "corrections": ", ".join(found.get("corrections", [])) or "none",
        "in floats": ", ".join(kept) or "nothing of the network's convolutions",
        "floats become": found.get("rest"),
    }


def _measured(file: Path) -> dict[str, str]:
    """What the calibration's report beside an INT8 graph says of its accuracy."""
    from yolact_deploy.calibration.document import report_of
    from yolact_deploy.files import sha256_of

    rows = report_of(file, sha256_of(file)).get("accuracy", []) if ".int8." in file.name else []
    return {row["name"]: f"mask AP {row['mask_ap']:.2f} on {row['pictures']} pictures ({-row['drop']:+.2f})" for row in rows}


def _engine_facts(file: Path, *, trust: bool, layers: bool, lean_runtime: str | None) -> dict[str, Any]:
    """From the header and the sidecar; from the engine itself where it may and can be opened here."""
    from yolact_deploy.engines.plan_file import identify
    from yolact_deploy.engines.sidecar import read_plan, read_sidecar
    from yolact_deploy.engines.targets import TITLES

    sidecar = read_sidecar(file)
    read_plan(file, sidecar, trust=True)  # refuses what is no plan, cut short, or not the sidecar's
    header = identify(file)
    title = TITLES[header.kind]
    facts: dict[str, Any] = {"file": str(file), "kind": f"engine of {title} {header.version}".rstrip(), "size": file_size(file)}
    if sidecar is None:
        facts["sidecar"] = "none: the engine runs only with --trust, or after yolact-deploy adopt"
    else:
        manifest, target = sidecar
        facts |= {
            "runs on": target.where,
            "batch": str(target.batch),
            "built as": target.precision,
            **_common(manifest),
            **_inside(manifest),
            "built on": target.gpu or "a machine without using a GPU",
            "build": {**target.build, **{name: value for name, value in target.options.items() if value is not None}},
            "self-test": _selftest(file, target),
            "rebuild": target.rebuild,
            "SHA-256": f"{target.sha256} (as the file's)",
        }
    return facts | _opened(file, layers=layers, trust=trust, lean_runtime=lean_runtime, allowed=trust or sidecar is not None)


def _selftest(file: Path, target: EngineTarget) -> str:
    """What the self-test beside an engine holds, or why it cannot run."""
    from yolact_deploy.engines.selftest import read_selftest

    if not target.selftest:
        return "none"
    try:
        test = read_selftest(file, target)
    except ModelFileError as error:
        return f"does not run: {error.message}"
    height, width = test.picture.shape[:2]
    return (
        f"{target.selftest['file']}: {counted(test.wanted, 'detection')} to be found in a {width} x {height} picture, by {test.reference}"
    )


def _opened(file: Path, *, layers: bool, trust: bool, lean_runtime: str | None, allowed: bool) -> dict[str, Any]:
    """What the engine itself says of its layers."""
    from yolact_deploy.engines.gpu import gpus
    from yolact_deploy.engines.inspector import engine_layers, layer_precision

    if not allowed or not gpus():
        if layers:
            reason = "this machine has no GPU" if allowed else "it has no sidecar, and --trust was not given"
            raise ModelFileError(f"The layers of {file} cannot be listed: {reason}.", "Leave out --layers, or mend that.")
        return {"layers": "not read: this machine has no GPU"} if allowed else {}
    from yolact_deploy.engines.loading import load_engine

    try:
        loaded = load_engine(file, trust=trust, graphs=False, lean_runtime=lean_runtime)
    except YolactDeployError as error:  # it may be for another machine
        if layers:
            raise
        return {"layers": f"not read: {error.message}"}
    try:
        engine = loaded.session.engine
        with engine.driver.active():
            found = engine_layers(engine.tensorrt, engine.handle)
        told: dict[str, Any] = {
            "layers": len(found),
            "precision in the layers": layer_precision(found) or "rebuild with --detailed to see it",
        }
        if layers:
            told["layers"] = {layer.name: " ".join((layer.kind, layer.precision, *layer.modules)).strip() for layer in found}
        return told
    finally:
        loaded.close()


def _common(manifest: Manifest) -> dict[str, Any]:
    names = manifest.classes.names
    shown = ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
    spec = manifest.input
    return {
        "variant": manifest.variant.name,
        "classes": shown,
        "input": f"{spec.layout} {spec.channels} {spec.size} px, mean {list(spec.mean)}, std {list(spec.std)}",
    }


def _checkpoint_facts(file: Path, variant: str | None, config: Path | None) -> dict[str, Any]:
    from yolact_deploy.cli.common import need_torch

    need_torch("Inspecting a checkpoint")
    from yolact_deploy.model import load_checkpoint

    checkpoint = load_checkpoint(file, variant=variant, config=config)
    state = checkpoint.network.state_dict()
    modules: Counter[str] = Counter()
    for key, value in state.items():
        modules[key.split(".")[0]] += value.numel()
    fields = checkpoint.variant.to_dict()
    return {
        "file": str(file),
        "kind": "YOLACT checkpoint",
        "size": file_size(file),
        "sha256": checkpoint.sha256,
        "variant": fields.pop("name"),
        "classes": len(checkpoint.classes),
        "priors": checkpoint.variant.prior_count,
        "parameters": {**dict(modules), "all": sum(modules.values())},
        "configuration": fields,
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        lines = [f"{name}: {entry}" for name, entry in value.items()] if isinstance(value, dict) else [str(value)]
        for index, line in enumerate(lines or ["none"]):
            table.add_row(key if index == 0 else "", line.replace("[", r"\["))
    console().print(table)
