"""The exception tree: every error that the package raises on purpose says what was found, what was wanted and the mend.

::

    YolactDeployError            exit code 1
    ├── CheckpointError          a weights file that is broken, foreign, or does not fit its variant
    ├── ConfigError              a variant, configuration file, class list or option that contradicts itself or the weights
    ├── DatasetError             an annotation file or picture folder that is broken, foreign, or contradicts itself
    ├── ModelFileError           an ONNX file or engine that is broken, foreign, or does not fit this machine
    ├── EngineBuildError         an engine that TensorRT could not build
    ├── DeviceError              a GPU that is missing, out of memory, or failed
    ├── PictureError             a picture that is missing, broken, empty or too large
    ├── OutputError              a file that may not or cannot be written
    ├── TrainingError            a training that diverged
    ├── VerificationError        an artifact whose outputs differ from the reference's
    ├── MissingDependencyError   a package that an extra would install
    └── BudgetMissedError        a measured budget was missed (exit code 3)
"""

from __future__ import annotations

__all__ = [
    "BudgetMissedError",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "DeviceError",
    "EngineBuildError",
    "MissingDependencyError",
    "ModelFileError",
    "OutputError",
    "PictureError",
    "TrainingError",
    "VerificationError",
    "YolactDeployError",
]


class YolactDeployError(Exception):
    """Root of the tree.

    ``message`` says what was found and what was wanted, in one line; ``mend`` is the sentence that tells what to do.
    ``str(error)`` is both. ``exit_code`` is what the command line returns.
    """

    exit_code = 1

    def __init__(self, message: str, mend: str = "") -> None:
        self.message = message
        self.mend = mend
        super().__init__(f"{message} {mend}".strip())


class CheckpointError(YolactDeployError):
    """A weights file that is broken, foreign, or does not fit its variant."""


class ConfigError(YolactDeployError):
    """A variant, configuration file, class list or option that contradicts itself or the weights."""


class DatasetError(YolactDeployError):
    """An annotation file or picture folder that is broken, foreign, or contradicts itself."""


class ModelFileError(YolactDeployError):
    """An ONNX file or engine that is broken, foreign, or does not fit this machine."""


class EngineBuildError(YolactDeployError):
    """An engine that TensorRT could not build."""


class DeviceError(YolactDeployError):
    """A GPU that is missing, out of memory, or failed."""


class PictureError(YolactDeployError):
    """A picture that is missing, broken, empty or too large."""


class OutputError(YolactDeployError):
    """A file that may not or cannot be written."""


class TrainingError(YolactDeployError):
    """A training that diverged."""


class VerificationError(YolactDeployError):
    """An artifact whose outputs differ from the reference's."""


class MissingDependencyError(YolactDeployError):
    """A package that one of the extras would install."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingDependencyError:
        """`purpose` needs `package`, which the extra `extra` installs."""
        return cls(f"{purpose} needs {package}, which is not installed.", f'Run: pip install "yolact-deploy[{extra}]"')


class BudgetMissedError(YolactDeployError):
    """A measured budget (a drop in mAP, a latency) was missed."""

    exit_code = 3
