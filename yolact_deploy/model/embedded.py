"""What a ``.safetensors`` checkpoint of ours says of itself: variant and class names beside the tensors, so that one file is enough."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolact_deploy.classes import ClassList
from yolact_deploy.errors import CheckpointError, ConfigError
from yolact_deploy.files import atomic_output
from yolact_deploy.variants import Variant

__all__ = ["DESCRIPTION_KEY", "Embedded", "describe", "read_embedded", "save_checkpoint"]

DESCRIPTION_KEY = "yolact_deploy"
"""Key of the safetensors metadata under which the description lies, as JSON."""


@dataclass(frozen=True)
class Embedded:
    """Variant and classes as a file names them; `notes` are free words: how it was trained."""

    variant: Variant
    classes: ClassList
    notes: Mapping[str, Any]


def describe(variant: Variant, classes: ClassList, notes: Mapping[str, Any] | None = None) -> str:
    """The JSON text that :func:`read_embedded` reads."""
    fields = {"variant": variant.to_dict(), "names": classes.names, "category_ids": classes.category_ids, "notes": dict(notes or {})}
    return json.dumps(fields, ensure_ascii=False, sort_keys=True)


def save_checkpoint(
    path: Path,
    state: Mapping[str, Tensor],
    variant: Variant,
    classes: ClassList,
    *,
    notes: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write a state dict with its description, whole or not at all; floats become float16 where `half`, else float32."""
    from safetensors.torch import save

    dtype = torch.float16 if half else torch.float32
    tensors = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous() for key, value in state.items()
    }
    with atomic_output(path) as part:
        part.write_bytes(save(tensors, {DESCRIPTION_KEY: describe(variant, classes, notes)}))


def read_embedded(path: Path) -> Embedded | None:
    """The description inside a ``.safetensors`` file, None where there is none; :class:`CheckpointError` where it is damaged."""
    if path.suffix != ".safetensors":
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            text = (opened.metadata() or {}).get(DESCRIPTION_KEY)
    except (SafetensorError, OSError):
        return None  # the reader of the tensors says what is wrong
    if text is None:
        return None
    try:
        fields = json.loads(text)
        names, ids, notes = fields["names"], fields["category_ids"], fields["notes"]
        if not all(isinstance(name, str) for name in names) or not all(type(identifier) is int for identifier in ids):
            raise TypeError("names and category_ids")
        if not isinstance(notes, dict):
            raise TypeError("notes")
        found = Embedded(Variant.from_dict(fields["variant"]), ClassList(tuple(names), tuple(ids)), notes)
        if len(found.classes) != found.variant.num_classes - 1:
            raise ValueError(f"{len(found.classes)} names for {found.variant.num_classes - 1} classes")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, ConfigError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"The description inside {path} is damaged ({reason}).", "Save the checkpoint again.") from None
    return found
