"""What importing costs: deployment never needs torch, nothing needs a GPU's packages, and ``--help`` answers at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from tests.house.tree import PACKAGE, ROOT, modules

GPU_PACKAGES = ("tensorrt", "cuda", "pycuda", "cupy", "modelopt", "pynvml")  # and whatever starts with one of these names
TORCH_PACKAGES = ("torch", "torchvision", "onnxscript")
# The rooms that exist to work with torch; everything else must import without it.
TORCH_ROOMS = ("model", "export", "training", "runtime.torch_backend")
HEAVY_PACKAGES = {"cv2", "numpy", "onnx", "onnxruntime", "PIL", "pycocotools", "safetensors", "torch", "torchvision"}

_IMPORT_EACH = """
import importlib, json, sys

names, blocked = json.load(sys.stdin)

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith(tuple(blocked)):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps({"failed": failed, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""

_HELP = """
import json, sys

sys.argv = ["yolact-deploy", "--help"]
try:
    from yolact_deploy.cli import main

    main()
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def import_each(names: list[str], blocked: tuple[str, ...] = ()) -> tuple[dict[str, str], set[str]]:
    """Import `names` in one new process where `blocked` packages are missing: what failed and why, and which packages got loaded."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_EACH], input=json.dumps([names, blocked]), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["failed"], set(answer["loaded"])


def needs_torch(name: str) -> bool:
    return any(f"{name}.".startswith(f"{PACKAGE}.{room}.") for room in TORCH_ROOMS)


def importable() -> list[str]:
    return [module.name for module in modules() if not module.name.endswith("__main__")]


def test_every_module_imports_without_gpu_packages() -> None:
    failed, _ = import_each(importable(), GPU_PACKAGES)
    assert not failed, f"{failed}: import it inside the function that needs it"


def test_deployment_imports_without_torch() -> None:
    failed, _ = import_each([name for name in importable() if not needs_torch(name)], TORCH_PACKAGES)
    assert not failed, f"{failed}: import torch inside the function that needs it, or place the module in a room of TORCH_ROOMS"


def test_deployment_leaves_installed_torch_alone() -> None:
    _, loaded = import_each([name for name in importable() if not needs_torch(name)])
    found = loaded & set(TORCH_PACKAGES)
    assert not found, f"{sorted(found)} got loaded where it is installed, by an import that is guarded with try or made by a dependency"


def test_rooms_excused_from_this_need_torch() -> None:
    names = importable()
    excused = {room: [name for name in names if f"{name}.".startswith(f"{PACKAGE}.{room}.")] for room in TORCH_ROOMS}
    failed, _ = import_each([name for inside in excused.values() for name in inside], TORCH_PACKAGES)
    idle = [room for room, inside in excused.items() if inside and not failed.keys() & set(inside)]
    assert not idle, f"{idle} import without torch: take them off TORCH_ROOMS"


def test_a_blocked_package_is_found() -> None:
    failed, loaded = import_each(["json", "sqlite3.dbapi2"], ("sqlite",))
    assert failed == {"sqlite3.dbapi2": "ImportError: sqlite3 is not installed here"}
    assert "json" in loaded


def test_help_is_light_and_quick() -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", _HELP], cwd=ROOT, capture_output=True, text=True, timeout=60)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout
        heavy = HEAVY_PACKAGES & set(json.loads(done.stderr.splitlines()[-1]))
        assert not heavy, f"--help loads {sorted(heavy)}: import them inside the commands"
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5, f"--help took {min(seconds):.2f} s at best, 0.5 s are allowed"
