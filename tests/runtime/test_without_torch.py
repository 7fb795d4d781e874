"""An ONNX file runs where no training framework is installed, and says in one line what a checkpoint would need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.artifacts import Artifacts

ROOT = Path(__file__).resolve().parents[2]
_WITHOUT_TORCH = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "onnxscript", "onnx_ir"):
            raise ImportError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from yolact_deploy import YolactDeployError, load
from yolact_deploy.data import sample_picture

model, weights = sys.argv[1:]
detector = load(model, providers=["cpu"])
found = detector.predict([sample_picture(200, 150), sample_picture(90, 120, seed=1)], channels="rgb")
try:
    load(weights)
    message = ""
except YolactDeployError as error:
    message = str(error)
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"counts": [len(item) for item in found], "coco": len(found[0].to_coco(1)), "message": message, "loaded": loaded}))
"""


@pytest.mark.parametrize("postprocess", ["none", "nms", "masks"])
def test_an_onnx_file_runs_without_torch(artifacts: Artifacts, postprocess: str) -> None:
    plus = artifacts.onnx(artifacts.plus, postprocess=postprocess, batch="dynamic" if postprocess == "masks" else 1)
    model = plus if postprocess != "none" else artifacts.onnx(batch="dynamic", opset=17)
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, str(model), str(artifacts.weights)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert all(count > 0 for count in answer["counts"])
    assert answer["coco"] > 0
    assert not {"torch", "torchvision", "onnxscript"} & set(answer["loaded"])
    assert answer["message"].startswith(f"Running the checkpoint {artifacts.weights.name} needs torch, which is not installed.")
    assert answer["message"].endswith('Run: pip install "yolact-deploy[torch]"')
