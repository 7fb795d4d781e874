"""What several commands share: where things go, how they are told, and the demo model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_deploy.errors import MissingDependencyError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ARTIFACTS", "DEMO_VARIANT", "console", "demo_weights", "file_size", "is_terminal", "need_torch"]

ARTIFACTS = Path("artifacts")
"""Where commands write when nothing else is said."""
DEMO_VARIANT = "yolact_nano"
"""The variant that commands take when no model is named."""


def console(*, quiet: bool = False, stderr: bool = False) -> Console:
    """A rich console; a quiet one prints nothing. Tables are never narrower than 100 columns where there is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(quiet=quiet, stderr=stderr, highlight=False, width=width, soft_wrap=False)


def is_terminal() -> bool:
    """Whether progress bars make sense."""
    return sys.stderr.isatty()


def file_size(path: Path) -> str:
    """The file's size in words, MB of 10^6 bytes."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


def need_torch(purpose: str) -> None:
    """Raise :class:`MissingDependencyError` where torch cannot be imported."""
    try:
        import torch  # noqa: F401  # imported to see whether it is there
    except ImportError:
        raise MissingDependencyError.of("torch", "torch", purpose) from None


def demo_weights(folder: Path) -> Path:
    """Write the demo variant's seeded weights into `folder` and return the file: untrained, so its detections mean nothing."""
    need_torch("The demo model")
    from safetensors.torch import save

    from yolact_deploy.files import atomic_output
    from yolact_deploy.model.seeded import seeded_state
    from yolact_deploy.variants import get_variant

    path = folder / f"{DEMO_VARIANT}_0_0.safetensors"
    with atomic_output(path) as part:
        part.write_bytes(save(seeded_state(get_variant(DEMO_VARIANT)), {"note": "seeded, untrained"}))
    return path
