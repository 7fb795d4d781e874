"""The whole evaluation: every artifact over the same pictures, its figures, and what it lost against the reference and the hop before."""

from __future__ import annotations

import datetime as dt
import platform
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yolact_deploy
from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.engines.gpu import driver_report
from yolact_deploy.errors import BudgetMissedError, ConfigError, DatasetError, ModelFileError
from yolact_deploy.evaluation.failures import analyse
from yolact_deploy.evaluation.jobs import Job, ModelSource, Picture, cores
from yolact_deploy.evaluation.metrics import measure
from yolact_deploy.evaluation.parity import Parity, compare
from yolact_deploy.evaluation.parity_reasons import explain, heads_of, tolerance_between
from yolact_deploy.evaluation.records import ArtifactEvaluation, DatasetFacts, Evaluation, mask_differences
from yolact_deploy.evaluation.results_file import store_results
from yolact_deploy.evaluation.runner import run_model
from yolact_deploy.evaluation.store import ResultStore, StoreHeader
from yolact_deploy.files import sha256_of

if TYPE_CHECKING:
    from yolact_deploy.manifest import Manifest
    from yolact_deploy.runtime import Detector

__all__ = ["EvaluationOptions", "artifact_names", "check_drop", "evaluate", "in_order", "kind_of"]

_FRAMEWORKS = {"torch": "PyTorch", "onnxruntime": "ONNX", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Attributes:
        folder: where the stores are kept.
        workers: processes that share a model's pictures.
        limit: so many pictures, those of the lowest ids; None takes all.
        like_original: leave out pictures without annotations, as the original implementation does.
        skip_missing: leave out pictures that are not in the folder, and report them.
        fresh: run all pictures again, whatever earlier runs left.
        force: replace files that are no stores.
        max_drop: allowed drop of mask AP in points: for the record, see :func:`check_drop`.
        command: the command line, for the record.
    """

    folder: Path
    workers: int = 1
    limit: int | None = None
    like_original: bool = False
    skip_missing: bool = False
    fresh: bool = False
    force: bool = False
    max_drop: float | None = None
    command: str = ""


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many pictures are through, and how many there are."""


def evaluate(
    dataset: CocoDataset,
    models: Sequence[ModelSource],
    options: EvaluationOptions,
    *,
    reference: ModelSource | None = None,
    progress: Progress = lambda what, done, total: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Evaluation:
    """Evaluate `models`, in the order of the hops, and the `reference` before them, where it is given and not among them.

    `say` gets a sentence on everything worth knowing as it happens. Raises :class:`DatasetError` where no picture is left or some are
    missing, :class:`ConfigError` for an artifact of another data set, and what loading and running the models raises.
    """
    sources = in_order(models, reference)
    if not sources:
        raise ConfigError("No model was given.", "Name at least one checkpoint, ONNX file or results file.")
    facts = _chosen(dataset, options, need_pictures=not all(source.is_results for source in sources))
    artifacts: list[ArtifactEvaluation] = []
    manifests: list[Manifest | None] = []
    stores = [options.folder / f"{name}.{dataset.sha256[:8]}.jsonl" for name in _apart([source.path.name for source in sources])]
    for name, source, store in zip(artifact_names(sources), sources, stores, strict=True):
        artifact, manifest = _Artifact(name, source, store, dataset, facts, options, progress, say).evaluate()
        artifacts.append(artifact)
        manifests.append(manifest)
    if reference is not None:
        artifacts = _with_parity(artifacts, manifests, sources, dataset, facts.image_ids, progress)
    return Evaluation(
        facts,
        tuple(artifacts),
        artifacts[0].name if reference is not None else None,
        options.max_drop,
        options.command,
        _versions(),
        _machine(),
        dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        {"workers": options.workers, "limit": options.limit, "like_original": options.like_original},
    )


def check_drop(evaluation: Evaluation) -> None:
    """Raise :class:`BudgetMissedError` where an artifact's mask AP lies more than `max_drop` points below the reference's.

    Raises :class:`DatasetError` where an AP is not defined. Does nothing where no drop was set.
    """
    if evaluation.max_drop is None:
        return
    missed = []
    for place, artifact in enumerate(evaluation.artifacts):
        if artifact.name == evaluation.reference:
            continue
        difference, _ = mask_differences(evaluation, place)
        if difference is None:
            raise DatasetError(
                f"The drop of {artifact.name} cannot be told: mask AP is not defined without ground truth.",
                "Evaluate on pictures that are annotated.",
            )
        if -difference > evaluation.max_drop:
            missed.append(f"{artifact.name} by {-difference:.2f}")
    if missed:
        raise BudgetMissedError(
            f"Mask AP falls below the reference {evaluation.reference} more than the allowed {evaluation.max_drop:g} points: "
            f"{', '.join(missed)}.",
            "Use a more precise artifact, or allow a larger --max-drop.",
        )


def in_order(models: Sequence[ModelSource], reference: ModelSource | None) -> list[ModelSource]:
    """The reference first, then the models in their order; the reference stands there once, also where it is among the models."""
    if reference is None:
        return list(models)
    rest = list(models)
    for place, source in enumerate(rest):
        if source.path.resolve() == reference.path.resolve():
            del rest[place]
            break
    return [reference, *rest]


def artifact_names(sources: Sequence[ModelSource]) -> list[str]:
    """A name for each, fit for files: the stem, the file's whole name where stems are alike, with a number where those are alike too."""
    stems = Counter(source.path.stem for source in sources)
    return _apart([source.path.stem if stems[source.path.stem] == 1 else source.path.name for source in sources])


def _apart(names: Sequence[str]) -> list[str]:
    """The names, with numbers after those that come again."""
    taken: set[str] = set()
    result = []
    for name in names:
        free, number = name, 1
        while free in taken or (number > 1 and free in names):
            number += 1
            free = f"{name}-{number}"
        taken.add(free)
        result.append(free)
    return result


def kind_of(manifest: Manifest, backend: str) -> str:
    """``PyTorch``, ``ONNX FP32``, ``ONNX FP16``, ``ONNX INT8``, …: the framework and the coarsest precision inside."""
    if backend == "torch" or (backend == "tensorrt" and manifest.target.get("precision") not in ("fp32", "fp16", "int8")):
        return _FRAMEWORKS[backend]  # an adopted engine's builder may have chosen anything
    kinds = "+".join(manifest.precision.values())
    coarsest = next((word for kind, word in (("int8", "INT8"), ("float16", "FP16")) if kind in kinds), "FP32")
    return f"{_FRAMEWORKS.get(backend, backend)} {coarsest}"


def _chosen(dataset: CocoDataset, options: EvaluationOptions, *, need_pictures: bool) -> DatasetFacts:
    """The pictures to evaluate."""
    bare = set(dataset.unannotated)
    left_out = bare if options.like_original else set()
    missing = {image.id: image.file_name for image in dataset.missing_pictures()} if need_pictures else {}
    chosen: list[int] = []
    skipped: list[str] = []
    for image in sorted(dataset.images, key=lambda image: image.id):
        if image.id in left_out:
            continue
        if len(chosen) == (options.limit or len(dataset.images)):
            break
        if image.id in missing:
            skipped.append(image.file_name)
        if image.id not in missing or not options.skip_missing:
            chosen.append(image.id)
    if skipped and not options.skip_missing:
        raise DatasetError(
            f"{len(skipped)} of {len(chosen)} pictures are not in {dataset.folder}; the first is {skipped[0]}.",
            "Name their folder with --images, or pass --skip-missing to evaluate the others.",
        )
    if not chosen:
        why = f"{len(skipped)} are missing, {len(left_out)} have no annotations" if skipped or left_out else "the file names none"
        raise DatasetError(f"{dataset.annotations} leaves no picture to evaluate: {why}.", "Check the annotation file and the folder.")
    instances = [instance for image_id in chosen for instance in dataset.instances(image_id)]
    return DatasetFacts(
        annotations=str(dataset.annotations),
        sha256=dataset.sha256,
        pictures=len(chosen),
        image_ids=tuple(chosen),
        unannotated=len(bare.intersection(chosen)),
        left_out=len(left_out),
        missing=tuple(skipped),
        instances=sum(not instance.crowd for instance in instances),
        crowds=sum(instance.crowd for instance in instances),
        categories=dataset.classes.names,
        like_original=options.like_original,
        notes=dataset.notes,
    )


@dataclass(frozen=True)
class _Artifact:
    """One artifact on its way through the evaluation."""

    name: str
    source: ModelSource
    store_path: Path
    dataset: CocoDataset
    facts: DatasetFacts
    options: EvaluationOptions
    progress: Progress
    say: Callable[[str], None]

    def evaluate(self) -> tuple[ArtifactEvaluation, Manifest | None]:
        """The figures, and the manifest where it is a model."""
        if not self.source.path.is_file():
            raise ModelFileError(f"The model {self.source.path} does not exist or is no file.", "Check the path.")
        self.progress(f"opening {self.name}", 0, self.facts.pictures)
        if self.source.is_results:
            return self._figures(*self._read(), "results file"), None
        detector = self.source.open()
        self.say(f"{self.name}: {detector!r}, {self.facts.pictures} pictures")
        kind = kind_of(detector.manifest, detector.backend.name)
        store, notes, of_the_run = self._run(detector)
        return self._figures(store, notes, kind, of_the_run), detector.manifest

    def _read(self) -> tuple[ResultStore, tuple[str, ...]]:
        header = StoreHeader(self.source.path.name, sha256_of(self.source.path), self.dataset.sha256, self.dataset.classes)
        return store_results(self.source.path, self.dataset, header, self.store_path, self.facts.image_ids, force=self.options.force)

    def _run(self, detector: Detector) -> tuple[ResultStore, tuple[str, ...], tuple[str, ...]]:
        """The store, notes on the classes, and notes on how the pictures were run."""
        pictures = [Picture.of(self.dataset, image_id) for image_id in self.facts.image_ids]
        job = Job.of(self.source, detector, self.dataset, pictures)
        store, told = run_model(
            self.source,
            detector,
            job,
            self.store_path,
            workers=self.options.workers,
            fresh=self.options.fresh,
            force=self.options.force,
            progress=lambda done, total: self.progress(f"running {self.name}", done, total),
        )
        for sentence in told:
            self.say(sentence)
        size = max(map(len, job.groups), default=1)
        shared = [f"Pictures ran {size} at a time: each one's milliseconds are its share."] if size > 1 else []
        return store, job.class_map.notes, (*shared, *told)

    def _figures(self, store: ResultStore, notes: tuple[str, ...], kind: str, of_the_run: tuple[str, ...] = ()) -> ArtifactEvaluation:
        ids = self.facts.image_ids
        store = store.of(ids)
        self.progress(f"measuring {self.name}", 0, len(ids))
        box, mask = (measure(self.dataset.ground_truth, self.dataset.classes, store, iou_type, ids) for iou_type in ("bbox", "segm"))
        return ArtifactEvaluation(
            name=self.name,
            path=str(self.source.path),
            kind=kind,
            sha256=store.header.model_sha256,
            box=box,
            mask=mask,
            milliseconds=store.milliseconds,
            pictures=len(ids),
            detections=store.detection_count,
            bytes_per_picture=store.bytes_per_picture,
            store=store,
            notes=(*notes, *mask.notes, *of_the_run),
            failures=analyse(self.dataset, store, ids),
        )


def _with_parity(
    artifacts: Sequence[ArtifactEvaluation],
    manifests: Sequence[Manifest | None],
    sources: Sequence[ModelSource],
    dataset: CocoDataset,
    image_ids: Sequence[int],
    progress: Progress,
) -> list[ArtifactEvaluation]:
    """The artifacts with their parity to the first one, the reference, and to the one before each, explained."""
    names = {image.id: image.file_name for image in dataset.images}
    detectors: dict[int, Detector | None] = {}

    def between(before: int, after: int) -> Parity:
        ours, theirs = artifacts[before].store, artifacts[after].store
        parity = compare(ours, theirs, image_ids, names=names)
        if not parity.lone:
            return parity
        if before not in detectors:
            detectors[before] = None if sources[before].is_results else sources[before].open()
        detector = detectors[before]
        heads, why_not = heads_of(detector, dataset)
        settings = None if detector is None else detector.settings
        tolerance = tolerance_between(manifests[before], manifests[after])
        return explain(parity, ours, theirs, heads, tolerance, settings, why_not=why_not)

    result = [artifacts[0]]
    for place, artifact in enumerate(artifacts[1:], 1):
        progress(f"comparing {artifact.name}", place, len(artifacts))
        parity = between(0, place)
        hop = parity if place == 1 else between(place - 1, place)
        result.append(replace(artifact, parity=parity, hop=hop))
        detectors.pop(place - 1 if place > 1 else -1, None)  # one beside the reference's is held at a time
    return result


def _versions() -> dict[str, str]:
    found = {"yolact-deploy": yolact_deploy.__version__, "python": platform.python_version()}
    found |= {name: metadata.version(name) for name in ("numpy", "pycocotools")}
    modules: dict[str, Any] = {name: sys.modules.get(name) for name in ("onnxruntime", "torch")}
    return found | {name: str(module.__version__) for name, module in modules.items() if module is not None}


def _machine() -> dict[str, str]:
    found = {"system": f"{platform.system()} {platform.machine()}", "cores": str(cores())}
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8", errors="replace").splitlines() if information.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {**found, **({"cpu": model} if model else {}), **driver_report()}
