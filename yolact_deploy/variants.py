"""The variants of the YOLACT family as data: what a checkpoint's tensors cannot tell about the network they belong to.

No torch here: a deployed ONNX file names its variant, and reading that must not need the training framework.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from yolact_deploy.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "VARIANTS", "Variant", "get_variant", "read_config", "read_fields"]

IMAGENET_MEAN = (123.68, 116.78, 103.94)
"""Mean of the training pictures, RGB, in 0 … 255."""
IMAGENET_STD = (58.40, 57.12, 57.38)
"""Standard deviation of the training pictures, RGB, in 0 … 255."""

_MAX_INPUT = 4096
_LATERAL_LEVELS = 3  # C3, C4 and C5 feed the FPN; further levels come from stride-2 convolutions


@dataclass(frozen=True)
class Variant:
    """One network of the family (arXiv:1904.02689, arXiv:1912.06218), complete enough to build it and its priors.

    Attributes:
        name: the variant's name, as checkpoints' file names carry it.
        input_size: height and width of the network's input in pixels.
        backbone: ``resnet`` (bottleneck blocks) or ``darknet``.
        blocks: residual blocks of each backbone stage.
        backbone_width: channels of the stem; stage widths are multiples of it.
        dcn_blocks, dcn_interval: deformable convolutions a stage, and their spacing (YOLACT++).
        num_classes: classes **with** background.
        fpn_width: channels of the FPN, the prototype net and the head's shared layer.
        num_prototypes: K, the prototypes and the coefficients of a detection.
        prior_sizes: for each FPN level the prior sizes in input pixels.
        aspect_ratios: for each FPN level the ratios width:height of its priors.
        square_priors: True reproduces the published weights' ``h = w``, whatever the ratio.
        normalization: ``imagenet`` (minus mean, over standard deviation) or ``unit`` (divided by 255).
        mask_rescoring: True where a mask-IoU net rescores masks (YOLACT++).

    Raises :class:`ConfigError` where fields contradict each other.
    """

    name: str
    input_size: int = 550
    backbone: Literal["resnet", "darknet"] = "resnet"
    blocks: tuple[int, ...] = (3, 4, 23, 3)
    backbone_width: int = 64
    dcn_blocks: tuple[int, ...] = (0, 0, 0, 0)
    dcn_interval: int = 1
    num_classes: int = 81
    fpn_width: int = 256
    num_prototypes: int = 32
    prior_sizes: tuple[tuple[float, ...], ...] = ((24,), (48,), (96,), (192,), (384,))
    aspect_ratios: tuple[tuple[float, ...], ...] = ((1, 1 / 2, 2),) * 5
    square_priors: bool = True
    normalization: Literal["imagenet", "unit"] = "imagenet"
    mask_rescoring: bool = False

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_priors()
        stages = {"resnet": 4, "darknet": 5}[self.backbone]
        self._require(len(self.blocks) == stages, "blocks", self.blocks, f"{stages} stages for a {self.backbone}")
        self._require(all(n >= 1 for n in self.blocks), "blocks", self.blocks, "at least one block a stage")
        self._require(len(self.dcn_blocks) == 4, "dcn_blocks", self.dcn_blocks, "one number for each of 4 stages")
        self._require(self.backbone == "resnet" or not any(self.dcn_blocks), "dcn_blocks", self.dcn_blocks, "zeros for a darknet")
        if self.mask_rescoring:
            self._require(self.prototype_size >= 63, "input_size", self.input_size, "prototypes of at least 63 pixels for mask rescoring")

    def _require(self, holds: bool, field: str, found: object, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"Variant {self.name}: {field} is {found!r}, {wanted} was wanted.", f"Mend {field} in the configuration.")

    def _check_kinds(self) -> None:
        self._require(self.backbone in ("resnet", "darknet"), "backbone", self.backbone, "'resnet' or 'darknet'")
        self._require(self.normalization in ("imagenet", "unit"), "normalization", self.normalization, "'imagenet' or 'unit'")
        self._require(32 <= self.input_size <= _MAX_INPUT, "input_size", self.input_size, f"32 to {_MAX_INPUT} pixels")
        self._require(2 <= self.num_classes <= 65536, "num_classes", self.num_classes, "2 to 65536 (background counts as one)")
        for field in ("backbone_width", "fpn_width", "num_prototypes", "dcn_interval"):
            self._require(1 <= getattr(self, field) <= 4096, field, getattr(self, field), "1 to 4096")

    def _check_priors(self) -> None:
        levels = len(self.prior_sizes)
        self._require(levels >= _LATERAL_LEVELS, "prior_sizes", self.prior_sizes, "at least 3 levels")
        self._require(len(self.aspect_ratios) == levels, "aspect_ratios", self.aspect_ratios, f"{levels} lists, as prior_sizes has")
        counts = {len(sizes) * len(ratios) for sizes, ratios in zip(self.prior_sizes, self.aspect_ratios, strict=True)}
        self._require(
            len(counts) == 1 and min(counts) > 0, "prior_sizes", self.prior_sizes, "the same number of priors a cell on each level"
        )
        values = [value for group in (*self.prior_sizes, *self.aspect_ratios) for value in group]
        self._require(all(0 < value < 1e6 for value in values), "prior_sizes / aspect_ratios", values, "positive numbers")

    @property
    def priors_per_cell(self) -> int:
        """Priors of each cell of a feature map (the same on each level, because all levels share one head)."""
        return len(self.prior_sizes[0]) * len(self.aspect_ratios[0])

    @property
    def extra_levels(self) -> int:
        """FPN levels made by stride-2 convolutions above the lateral ones (P6, P7)."""
        return len(self.prior_sizes) - _LATERAL_LEVELS

    @property
    def grids(self) -> tuple[int, ...]:
        """Rows (and columns) of each FPN level's feature map: every stride-2 step gives ``ceil(n / 2)``."""
        sizes = [-(-self.input_size // 2)]
        for _ in range(4 + self.extra_levels):
            sizes.append(-(-sizes[-1] // 2))
        return tuple(sizes[2 : 2 + len(self.prior_sizes)])

    @property
    def prior_count(self) -> int:
        """P, the priors of one picture."""
        return sum(n * n for n in self.grids) * self.priors_per_cell

    @property
    def prototype_size(self) -> int:
        """Height (and width) of the prototypes: twice P3's."""
        return 2 * self.grids[0]

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON and TOML hold them."""
        return {key: _listed(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Variant:
        """The inverse of :meth:`to_dict`; unknown or mistyped fields raise :class:`ConfigError`."""
        return _override(cls(name="custom"), fields)


_PLUS_SIZES = tuple(tuple(size * 2 ** (step / 3) for step in range(3)) for size in (24, 48, 96, 192, 384))


def _scaled_sizes(input_size: int) -> tuple[tuple[float, ...], ...]:
    return tuple((int(size / 550 * input_size),) for size in (24, 48, 96, 192, 384))


_R50 = (3, 4, 6, 3)
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("yolact_base"),
        Variant("yolact_im400", input_size=400, prior_sizes=_scaled_sizes(400)),
        Variant("yolact_im700", input_size=700, prior_sizes=_scaled_sizes(700)),
        Variant("yolact_resnet50", blocks=_R50),
        Variant("yolact_darknet53", backbone="darknet", blocks=(1, 2, 8, 8, 4), backbone_width=32, normalization="unit"),
        Variant(
            "yolact_resnet50_pascal",
            blocks=_R50,
            num_classes=21,
            prior_sizes=((32,), (64,), (128,), (256,), (512,)),
            square_priors=False,
        ),
        Variant(
            "yolact_plus_base",
            dcn_blocks=(0, 4, 23, 3),
            dcn_interval=3,
            prior_sizes=_PLUS_SIZES,
            square_priors=False,
            mask_rescoring=True,
        ),
        Variant(
            "yolact_plus_resnet50",
            blocks=_R50,
            dcn_blocks=(0, 4, 6, 3),
            prior_sizes=_PLUS_SIZES,
            square_priors=False,
            mask_rescoring=True,
        ),
        Variant(
            "yolact_nano",
            input_size=256,
            blocks=(2, 2, 2, 1),
            backbone_width=32,
            fpn_width=64,
            prior_sizes=((16,), (32,), (64,), (128,), (224,)),
            square_priors=False,
        ),
    )
}
"""The eight published variants and ``yolact_nano``, the small one that runs anywhere; by name."""


def get_variant(name: str) -> Variant:
    """The built-in variant of that name; :class:`ConfigError` lists the known ones otherwise."""
    if name not in VARIANTS:
        raise ConfigError(
            f"There is no variant {name!r}; known are {', '.join(VARIANTS)}.",
            "Pass --variant with one of these, or describe your own with --config FILE.toml.",
        )
    return VARIANTS[name]


_EXAMPLE = 'Example: base = "yolact_base", input_size = 550, prior_sizes = [[24], [48], [96], [192], [384]], square_priors = true.'


def read_fields(path: Path) -> dict[str, Any]:
    """What a TOML file says, unchecked; :class:`ConfigError` where it is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"The configuration {path} does not exist.", _EXAMPLE) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"The configuration {path} is not readable TOML ({error}).", _EXAMPLE) from None


def read_config(path: Path, base: str | None = None) -> Variant:
    """A user's own variant from a TOML file: ``base = "yolact_base"`` and any field of :class:`Variant` to override.

    `base` (from ``--variant``) stands in where the file names none. A flat ``aspect_ratios`` or ``prior_sizes`` list is one for
    all levels, or one size for each level. Raises :class:`ConfigError` for anything that is unknown, mistyped or missing.
    """
    fields = read_fields(path)
    named = fields.pop("base", base)
    if not isinstance(named, str):
        raise ConfigError(
            f"The configuration {path} does not say which variant it starts from.", f"Add a line base = … or --variant. {_EXAMPLE}"
        )
    if base is not None and named != base:
        raise ConfigError(f"The configuration {path} starts from {named!r}, --variant says {base!r}.", "Drop one of the two.")
    return _override(get_variant(named), {"name": path.stem, **fields})


def _override(variant: Variant, fields: dict[str, Any]) -> Variant:
    known = {field.name: getattr(variant, field.name) for field in dataclasses.fields(variant)}
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ConfigError(
            f"A variant has no field {', '.join(map(repr, unknown))}; it has {', '.join(known)}.", "Mend the name or drop the line."
        )
    levels = _level_count(fields, len(variant.prior_sizes))
    values = {key: _typed(key, value, known[key], levels) for key, value in fields.items()}
    if "prior_sizes" in values and "aspect_ratios" not in values and len(values["prior_sizes"]) != len(variant.aspect_ratios):
        values["aspect_ratios"] = (variant.aspect_ratios[0],) * levels
    return dataclasses.replace(variant, **values)


def _level_count(fields: dict[str, Any], default: int) -> int:
    sizes = fields.get("prior_sizes")
    return len(sizes) if isinstance(sizes, (list, tuple)) else default


def _typed(key: str, value: Any, example: Any, levels: int) -> Any:
    """`value` as the kind of `example`, or a :class:`ConfigError` that names both."""
    if key in ("prior_sizes", "aspect_ratios"):
        return _groups(key, value, levels)
    if isinstance(example, tuple):
        if isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
            return tuple(value)
        raise ConfigError(f"{key} is {value!r}, a list of whole numbers was wanted.", "Mend it in the configuration.")
    if type(value) is not type(example):
        raise ConfigError(f"{key} is {value!r}, a value like {example!r} was wanted.", "Mend it in the configuration.")
    return value


def _groups(key: str, value: Any, levels: int) -> tuple[tuple[float, ...], ...]:
    def is_number(item: object) -> bool:
        return isinstance(item, (int, float)) and not isinstance(item, bool)

    if isinstance(value, (list, tuple)) and value:
        if all(is_number(item) for item in value):
            flat = cast("list[float]", value)
            return tuple((item,) for item in flat) if key == "prior_sizes" else (tuple(flat),) * levels
        if all(isinstance(group, (list, tuple)) and group and all(is_number(item) for item in group) for group in value):
            return tuple(tuple(group) for group in value)
    raise ConfigError(f"{key} is {value!r}, a list of numbers for each FPN level was wanted.", "Mend it in the configuration.")


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value
