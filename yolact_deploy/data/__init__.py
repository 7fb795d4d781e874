"""Pictures to learn from, to calibrate with and to try things on."""

from __future__ import annotations

from yolact_deploy.data.sample import sample_picture

__all__ = ["sample_picture"]
