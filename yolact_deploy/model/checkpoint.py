"""Loading weights: published checkpoints and users' own, as ``.pth`` (tensors only) or ``.safetensors``."""

from __future__ import annotations

import dataclasses
import os.path
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolact_deploy.classes import COCO, PASCAL, ClassList, numbered_classes, read_classes
from yolact_deploy.errors import CheckpointError, ConfigError
from yolact_deploy.files import sha256_of
from yolact_deploy.model.embedded import Embedded, read_embedded
from yolact_deploy.model.network import Yolact
from yolact_deploy.variants import VARIANTS, Variant, get_variant, read_config, read_fields

__all__ = ["Checkpoint", "load_checkpoint", "read_tensors", "variant_from_name"]

_FILE_NAME = re.compile(r"(?P<variant>.+?)(_\d+_\d+(_interrupt)?)?")
_SHOWN_KEYS = 3


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode with its weights, and what is known of it.

    Attributes:
        network: the reference model, float32 on the CPU.
        variant: its variant, `num_classes` as the tensors have it.
        classes: names and category ids of the foreground classes.
        path: the file that was read.
        sha256: hexadecimal digest of that file.
    """

    network: Yolact
    variant: Variant
    classes: ClassList
    path: Path
    sha256: str


def load_checkpoint(
    path: str | Path,
    *,
    variant: str | None = None,
    config: str | Path | None = None,
    classes: str | None = None,
) -> Checkpoint:
    """Read weights and build the network that they belong to.

    The variant comes from `config` (a TOML file), else from `variant`, else from the description inside the file (``.safetensors``
    that ``yolact-deploy train`` wrote), else from its name (``<variant>_<epoch>_<iteration>.pth``); a name that is unknown is an
    error, never a guess. The number of classes is read from the tensors. `classes` is what
    :func:`yolact_deploy.classes.read_classes` takes; without it the names inside the file are used, else the list of COCO or
    PASCAL where its length fits, else numbered names.

    Raises :class:`CheckpointError` for a file that is missing, broken, foreign, holds code or NaN, or does not fit the variant;
    :class:`ConfigError` for an unknown variant, a bad configuration, or class names whose number does not fit.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path.is_file, it answers for any string
        kind = "are a folder, a file was wanted" if os.path.isdir(path) else "do not exist"
        raise CheckpointError(f"The weights {path} {kind}.", "Check the path.")
    embedded = read_embedded(path)
    if config is not None:
        chosen = read_config(Path(config), variant)
    elif embedded is not None and variant is None:
        chosen = embedded.variant
    else:
        chosen = get_variant(variant or variant_from_name(path))
    state = _without_leftovers(read_tensors(path), chosen)
    chosen = _with_class_count(chosen, state, path, fixed=config is not None and "num_classes" in read_fields(Path(config)))
    _check_fit(state, chosen, path)
    network = Yolact(chosen)
    wanted = {key: value.dtype for key, value in network.state_dict().items()}
    state = {key: value.to(wanted[key]) for key, value in state.items()}
    _check_finite(state, path)
    network.load_state_dict(state)
    network.eval()
    return Checkpoint(network, chosen, _class_list(classes, chosen, embedded), path, sha256_of(path))


def variant_from_name(path: Path) -> str:
    """The variant that a file's name carries; :class:`ConfigError` where it carries none that is known."""
    match = _FILE_NAME.fullmatch(path.stem)
    name = match["variant"] if match else path.stem
    if name not in VARIANTS:
        raise ConfigError(
            f"The file name {path.name} does not say a known variant (it reads as {name!r}).",
            f"Pass --variant (one of {', '.join(VARIANTS)}) or describe your own with --config FILE.toml.",
        )
    return name


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The plain tensors of a ``.pth`` or ``.safetensors`` file by name; :class:`CheckpointError` for anything else in it."""
    try:
        loaded = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - a hostile or broken file can make the readers raise anything
        raise CheckpointError(f"{path} is no readable weights file ({_first_line(error)}).", _READ_MEND) from None
    if not isinstance(loaded, dict) or not loaded:
        kind = "nothing" if isinstance(loaded, dict) else type(loaded).__name__
        raise CheckpointError(f"{path} holds {kind}, a state dict (names to tensors) was wanted.", _READ_MEND)
    for key, value in loaded.items():
        if fault := _fault(key, value):
            raise CheckpointError(f"{path} holds {fault}, plain tensors alone were wanted.", "Save model.state_dict() and use that file.")
    return loaded


def _fault(key: object, value: object) -> str:
    """What is wrong with an entry of a state dict, empty where nothing is."""
    if not isinstance(key, str):
        return f"a key that is {type(key).__name__}"
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} at {_printable(key)}"
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return f"a {value.dtype} tensor of an unusual layout at {_printable(key)}"
    if not value.is_floating_point() and not key.endswith("num_batches_tracked"):
        return f"{value.dtype} instead of floats at {_printable(key)}"
    return ""


def _printable(key: str) -> str:
    return key if key.isprintable() and len(key) <= 200 else repr(key[:200])


_READ_MEND = "Give a state dict saved by torch.save(model.state_dict(), …) or a .safetensors file; download it again if it was cut off."


def _load_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path, device="cpu")


def _load_pickle(path: Path) -> Any:
    if zipfile.is_zipfile(path) is False and path.stat().st_size < 64:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, too few for weights.", _READ_MEND)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "Unsupported global" in str(error) or ("WeightsUnpickler" in str(error) and "GLOBAL" in str(error)):
            raise CheckpointError(
                f"{path} holds Python objects beside tensors, which are not unpickled because they can run code.",
                "Save model.state_dict() alone, or convert it to .safetensors where you trust it.",
            ) from None
        raise


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = (lines[0] if lines else type(error).__name__)[:160].rstrip(".")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)  # it may quote the file


def _without_leftovers(state: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Drop what old checkpoints hold beside the network: ``backbone.layer<digit>`` and surplus FPN convolutions."""

    def stays(key: str) -> bool:
        if re.match(r"backbone\.layer\d", key):
            return False
        surplus = re.match(r"fpn\.downsample_layers\.(\d+)\.", key)
        return surplus is None or int(surplus[1]) < variant.extra_levels

    return {key: value for key, value in state.items() if stays(key)}


def _with_class_count(variant: Variant, state: dict[str, Tensor], path: Path, *, fixed: bool) -> Variant:
    """`variant` with the number of classes that the class layer has."""
    layer = state.get("prediction_layers.0.conf_layer.bias")
    if layer is None or layer.ndim != 1 or len(layer) % variant.priors_per_cell:
        return variant  # the check of all keys and shapes says it better
    found = len(layer) // variant.priors_per_cell
    if found == variant.num_classes or found < 2:
        return variant
    if fixed:
        raise ConfigError(
            f"The configuration says {variant.num_classes} classes with background, the tensors of {path} have {found}.",
            "Mend or drop num_classes in the configuration.",
        )
    return dataclasses.replace(variant, num_classes=found)


def expected_shapes(variant: Variant) -> dict[str, tuple[int, ...]]:
    """Shape of each state-dict entry of the variant, without allocating weights."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in Yolact(variant).state_dict().items()}


def _differences(state: dict[str, Tensor], variant: Variant) -> list[str]:
    wanted = expected_shapes(variant)
    found = {key: tuple(value.shape) for key, value in state.items()}
    optional = {key for key in wanted if key.endswith("num_batches_tracked")}
    result = [f"{key} is missing" for key in wanted if key not in found and key not in optional]
    result += [
        f"{key} is {list(found[key])} instead of {list(wanted[key])}" for key in wanted if key in found and found[key] != wanted[key]
    ]
    result += [f"{_printable(key)} is unknown" for key in found if key not in wanted]
    return result


def _check_fit(state: dict[str, Tensor], variant: Variant, path: Path) -> None:
    differences = _differences(state, variant)
    if not differences:
        _fill_counters(state, variant)
        return
    shown = "; ".join(differences[:_SHOWN_KEYS])
    more = len(differences) - _SHOWN_KEYS
    nearest, rest = _nearest_variant(state, path)
    if nearest is None:
        hint = "They look like no variant of YOLACT at all."
    elif rest:
        count = "1 difference" if rest == 1 else f"{rest} differences"
        hint = f"The nearest variant is {nearest} ({count}): describe your own with --config FILE.toml (base = {nearest!r})."
    else:
        hint = f"They fit {nearest}: pass --variant {nearest}."
    raise CheckpointError(f"The tensors of {path} do not fit {variant.name}: {shown}{f'; {more} more' if more > 0 else ''}.", hint)


def _fill_counters(state: dict[str, Tensor], variant: Variant) -> None:
    """Old checkpoints have no ``num_batches_tracked``, which inference does not use."""
    for key, shape in expected_shapes(variant).items():
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.zeros(shape, dtype=torch.int64)


def _nearest_variant(state: dict[str, Tensor], path: Path) -> tuple[str | None, int]:
    ranked = []
    for name, variant in VARIANTS.items():
        fitted = _with_class_count(variant, state, path, fixed=False)
        ranked.append((len(_differences(_without_leftovers(state, fitted), fitted)), name))
    differences, name = min(ranked)
    return (name, differences) if differences < len(expected_shapes(VARIANTS[name])) // 2 else (None, differences)


def _check_finite(state: dict[str, Tensor], path: Path) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path} holds NaN or infinity in {key}.", "The training diverged or the file is damaged: use an earlier checkpoint."
            )


def _class_list(source: str | None, variant: Variant, embedded: Embedded | None) -> ClassList:
    wanted = variant.num_classes - 1
    if source is None and embedded is not None and len(embedded.classes) == wanted:
        return embedded.classes
    if source is None:
        return next((known for known in (COCO, PASCAL) if len(known) == wanted), None) or numbered_classes(wanted)
    classes = read_classes(source)
    if len(classes) != wanted:
        raise ConfigError(
            f"{source} names {len(classes)} classes, the weights have {wanted} (without background).",
            "Give the class list that the model was trained with.",
        )
    return classes
