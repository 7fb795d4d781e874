"""COCO mAP of any artifact, what each hop costs against the reference, and the reports of it."""

from yolact_deploy.evaluation.document import to_document
from yolact_deploy.evaluation.harness import EvaluationOptions, check_drop, evaluate
from yolact_deploy.evaluation.jobs import ModelSource
from yolact_deploy.evaluation.records import ArtifactEvaluation, ClassMetrics, DatasetFacts, Evaluation, Metrics, mask_differences
from yolact_deploy.evaluation.store import ResultStore, StoreHeader

__all__ = [
    "ArtifactEvaluation",
    "ClassMetrics",
    "DatasetFacts",
    "Evaluation",
    "EvaluationOptions",
    "Metrics",
    "ModelSource",
    "ResultStore",
    "StoreHeader",
    "check_drop",
    "evaluate",
    "mask_differences",
    "to_document",
]
