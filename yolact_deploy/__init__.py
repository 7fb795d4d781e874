"""YOLACT instance segmentation, from a PyTorch checkpoint to exact detections on any machine.

The names below load on first use, so that importing the package (and ``yolact-deploy --help``) costs no heavy import:

* ``load(path)``: a :class:`Detector` for an ONNX file or a checkpoint.
* :class:`Detector`: pictures in, :class:`Detections` out.
* :class:`Detections`: boxes, scores, labels and masks of one picture.
* :class:`YolactDeployError`: the root of every error that the package raises.
"""

from __future__ import annotations

import os.path
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolact_deploy.detections import Detections
    from yolact_deploy.errors import YolactDeployError
    from yolact_deploy.runtime import Detector, load

__all__ = ["Detections", "Detector", "YolactDeployError", "__version__", "load"]

__version__ = "0.1.0"

for _room in ("export", "engines", "calibration"):
    if os.path.isfile(os.path.join(__path__[0], _room)):
        raise ImportError(
            f"{os.path.join(__path__[0], _room)} was checked out as a text file and has to be a symbolic link: "
            "clone again with: git clone -c core.symlinks=true"
        )

_HOME = {
    "Detections": "yolact_deploy.detections",
    "Detector": "yolact_deploy.runtime",
    "YolactDeployError": "yolact_deploy.errors",
    "load": "yolact_deploy.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
