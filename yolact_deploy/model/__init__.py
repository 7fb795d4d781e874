"""The PyTorch reference: the network of every variant, its priors, and the loading of checkpoints."""

from yolact_deploy.model.checkpoint import Checkpoint, load_checkpoint
from yolact_deploy.model.network import HeadOutputs, Yolact, set_deformable_form
from yolact_deploy.model.priors import make_priors

__all__ = ["Checkpoint", "HeadOutputs", "Yolact", "load_checkpoint", "make_priors", "set_deformable_form"]
