"""Training: matching, losses, augmentation and the loop that fits a network to a COCO-format data set."""

from yolact_deploy.training.loop import StepReport, Trainer, TrainSettings

__all__ = ["StepReport", "TrainSettings", "Trainer"]
