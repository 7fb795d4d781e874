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

_MEND = "Write its sidecar from the ONNX file that it was built from: yolact-deploy adopt {path} --onnx MODEL.onnx"


def assumed_manifest(path: Path, engine: Engine) -> Manifest:
    """A manifest that fits the engine's tensors, with the published classes of that number and ImageNet's normalisation.

    Variants that share their shapes share everything that running them needs, except Darknet's normalisation and mask rescoring: such an
    engine has to be adopted. Raises :class:`ModelFileError` where the tensors are not a YOLACT export's.
    """
    outputs = {tensor.name: tensor for tensor in engine.outputs}
    mend = _MEND.format(path=path)
    heads = {"boxes", "scores", "coefficients", "prototypes"}
    if not heads <= outputs.keys() or len(engine.inputs) != 1 or engine.inputs[0].shape[:1] != (3,):
        raise ModelFileError(f"{path} has the outputs {', '.join(outputs)}; {', '.join(sorted(heads))} were wanted.", mend)
    size, scores, coefficients = engine.inputs[0].shape[-1], outputs["scores"].shape, outputs["coefficients"].shape
    variant = next((one for one in VARIANTS.values() if _fits(one, size, scores[0], coefficients[-1])), None)
    if variant is None:
        raise ModelFileError(f"{path} has {scores[0]} priors at {size} px, which no built-in variant has.", mend)
    count = scores[1] - 1
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
