"""What runs in a process of its own for :mod:`.modelopt`: ModelOpt patches ONNX Runtime, logs to the standard streams and, where it fails,
leaves files behind.

The process works in one folder. It reads ``job.json`` and ``model.onnx`` there, adds a byte to ``done`` for each batch that was run, and
ends with ``quantized.onnx``, or with ``failure.json`` and exit code 1.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import PictureError
from yolact_deploy.manifest import InputSpec
from yolact_deploy.pictures import read_picture
from yolact_deploy.preprocess import prepare

__all__ = ["DONE", "FAILURE", "JOB", "MODEL", "QUANTIZED", "Job", "PictureReader", "main", "work"]

MODEL, JOB, DONE, QUANTIZED, FAILURE = "model.onnx", "job.json", "done", "quantized.onnx", "failure.json"


@dataclass(frozen=True)
class Job:
    """What ModelOpt is asked for.

    Attributes:
        method: ``max`` or ``entropy``.
        exclude: names of the nodes that stay in floats.
        input: name of the network's input.
        batch: pictures that the graph takes at once.
        pictures: paths, in order.
        spec: how a picture becomes the input.
    """

    method: str
    exclude: tuple[str, ...]
    input: str
    batch: int
    pictures: tuple[str, ...]
    spec: InputSpec

    def save(self, folder: Path) -> None:
        """Write ``job.json``."""
        (folder / JOB).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Job:
        """What :meth:`save` wrote."""
        found = json.loads((folder / JOB).read_text(encoding="utf-8"))
        return cls(**{**_with_tuples(found), "spec": InputSpec(**_with_tuples(found["spec"]))})


def _with_tuples(found: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


class PictureReader:
    """The calibration pictures as ModelOpt asks for them: a batch at a time, read when it is its turn, the last one filled up.

    `done` is a file that grows by a byte with each batch.
    """

    def __init__(self, job: Job, done: Path) -> None:
        self.job, self.done, self.place = job, done, 0

    def _batch(self, paths: Sequence[str]) -> dict[str, NDArray[Any]]:
        images = [prepare(read_picture(Path(path)), self.job.spec) for path in paths]
        return {self.job.input: np.stack([*images, *[images[-1]] * (self.job.batch - len(images))])}

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch by the name of the input, None after the last."""
        paths = self.job.pictures[self.place : self.place + self.job.batch]
        if not paths:
            return None
        self.place += self.job.batch
        with open(self.done, "ab") as handle:
            handle.write(b".")
        return self._batch(paths)

    def get_first(self) -> dict[str, NDArray[Any]]:
        """The first batch, for a trial; the next one stays the next one."""
        return self._batch(self.job.pictures[: self.job.batch])

    def rewind(self) -> None:
        """Begin again."""
        self.place = 0


def work(folder: Path) -> bool:
    """Do the job in `folder`; False where it failed, which ``failure.json`` tells of."""
    failure: dict[str, str]
    try:
        _quantize(folder)
    except PictureError as error:
        failure = {"kind": "picture", "message": error.message, "mend": error.mend}
    except ImportError as error:
        failure = {"kind": "import", "package": (error.name or "").partition(".")[0], "message": _first_line(error)}
    except Exception as error:  # noqa: BLE001 - whatever it is, it goes to who waits for this process
        failure = {"kind": "failed", "message": _first_line(error)}
    else:
        return True
    (folder / FAILURE).write_text(json.dumps(failure), encoding="utf-8")
    return False


def _quantize(folder: Path) -> None:
    from modelopt.onnx.quantization import quantize

    job = Job.load(folder)
    quantize(
        onnx_path=str(folder / MODEL),
        quantize_mode="int8",
        calibration_data_reader=PictureReader(job, folder / DONE),
        calibration_method=job.method,
        calibration_eps=["cpu"],
        nodes_to_exclude=[f"{re.escape(name)}$" for name in job.exclude],  # it matches them as patterns, from the name's beginning
        output_path=str(folder / QUANTIZED),
        log_level="ERROR",
        high_precision_dtype="fp32",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def main() -> None:
    """Do the job in the current folder."""
    raise SystemExit(0 if work(Path(os.getcwd())) else 1)
