"""Serving a model by other programs: a model repository for Triton Inference Server, and what its clients have to know."""

from __future__ import annotations

from yolact_deploy.serving.parameters import ClientSpec
from yolact_deploy.serving.repository import RepositoryModel, RepositoryOptions, write_repository

__all__ = ["ClientSpec", "RepositoryModel", "RepositoryOptions", "write_repository"]
