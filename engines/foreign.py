"""An engine without a sidecar that the user trusts: what it is has to be told from its tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from yolact_deploy.classes import COCO, PASCAL, numbered_classes
from yolact_deploy.errors import ModelFileError
from yolact_deploy.manifest import InputSpec, Manifest
from yolact_deploy.variants import VARIANTS, Variant

from .session import Engine

__all__ = ["assumed_manifest"]

_AXES = {"boxes": 2, "scores": 2, "coefficients": 2, "prototypes": 3}
"""The outputs, and their axes after the batch."""
_MEND = "Write its sidecar from the ONNX file that it was built from: yolact-deploy adopt {path} --onnx MODEL.onnx"


def assumed_manifest(path: Path, engine: Engine) -> Manifest:
    """A manifest that fits the engine's tensors, with the published classes of that number and ImageNet's normalisation.

    Variants that share their shapes share everything that running them needs, except Darknet's normalisation and mask rescoring: such an
    engine has to be adopted. Raises :class:`ModelFileError` where the tensors are not a YOLACT export's.
    """
    outputs = {tensor.name: tensor for tensor in engine.outputs}
    mend = _MEND.format(path=path)
    if not set(_AXES) <= outputs.keys():
        raise ModelFileError(f"{path} has the outputs {', '.join(outputs)}; {', '.join(sorted(_AXES))} were wanted.", mend)
    image = engine.inputs[0]
    if len(engine.inputs) != 1 or image.dtype != "float32" or image.shape[:1] != (3,) or image.shape[1:] != image.shape[-1:] * 2:
        told = ", ".join(f"{tensor.dtype} [B, {', '.join(map(str, tensor.shape))}]" for tensor in engine.inputs)
        raise ModelFileError(f"{path} takes {told}; float32 [B, 3, S, S] was wanted.", mend)
    for name, axes in _AXES.items():
        if len(outputs[name].shape) != axes:
            shape = ", ".join(map(str, outputs[name].shape))
            raise ModelFileError(f"The output {name} of {path} is [B, {shape}], {axes} axes after the batch were wanted.", mend)
    size, (priors, scored), prototypes = image.shape[-1], outputs["scores"].shape, outputs["prototypes"].shape[0]
    fitting = (outputs["boxes"].shape, outputs["coefficients"].shape) == ((priors, 4), (priors, prototypes)) and scored > 1
    variant = next((one for one in VARIANTS.values() if fitting and _fits(one, size, priors, prototypes)), None)
    if variant is None:
        raise ModelFileError(f"{path} has {priors} priors and {prototypes} prototypes at {size} px, as no built-in variant has.", mend)
    count = scored - 1
    classes = {len(COCO): COCO, len(PASCAL): PASCAL}.get(count) or numbered_classes(count)
    variant = replace(variant, num_classes=count + 1)
    return Manifest(
        kind="engine",
        variant=variant,
        classes=classes,
        input=InputSpec.of(variant),
        postprocess="none",
        inputs=engine.specs(engine.inputs),
        outputs=engine.specs(engine.outputs),
        precision={},
        source={"file": "unknown", "sha256": ""},
        versions={engine.tensorrt.backend: engine.tensorrt.version},
    )


def _fits(variant: Variant, size: int, priors: int, prototypes: int) -> bool:
    known = (variant.input_size, variant.prior_count, variant.num_prototypes)
    return known == (size, priors, prototypes) and not variant.mask_rescoring and variant.normalization == "imagenet"
