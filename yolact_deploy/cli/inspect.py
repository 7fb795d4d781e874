"""``yolact-deploy inspect``: what a file is."""

from __future__ import annotations

import json as json_module
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolact_deploy.cli.common import console, file_size
from yolact_deploy.errors import ModelFileError

if TYPE_CHECKING:
    from yolact_deploy.manifest import Manifest

__all__ = ["inspect"]

_CHECKPOINTS = (".pth", ".pt", ".safetensors")


def inspect(
    file: Annotated[Path, typer.Argument(help="An ONNX file of this tool, or a checkpoint.")],
    variant: Annotated[str | None, typer.Option(help="For a checkpoint: its variant.", show_default=False)] = None,
    config: Annotated[Path | None, typer.Option(help="For a checkpoint: your own variant, TOML.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a model file holds: tensors, precision of each module, size, and what it was made from."""
    suffix = file.suffix.lower()
    if suffix == ".onnx":
        facts = _onnx_facts(file)
    elif suffix in _CHECKPOINTS:
        facts = _checkpoint_facts(file, variant, config)
    else:
        raise ModelFileError(
            f"{file} ends in {suffix or 'nothing'}, .onnx, .pth or .safetensors was wanted.", "Name a file of one of these kinds."
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
        "postprocess in the graph": manifest.postprocess,
        "tensors": {
            tensor.name: f"{direction} {tensor.dtype} {list(tensor.shape)}"
            for direction, tensors in (("input", manifest.inputs), ("output", manifest.outputs))
            for tensor in tensors
        },
        "precision": manifest.precision,
        "thresholds": vars(manifest.thresholds),
        "mask-IoU net": manifest.mask_iou or "none",
        "made from": manifest.source,
        "made with": manifest.versions,
        "checked": manifest.verification.get("largest_relative_difference", {}),
        "operators": dict(operators.most_common()),
    }


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
