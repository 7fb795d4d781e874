"""The child process of `run_in`: puts the stand-in in the place of TensorRT, runs one function and writes down what came of it."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.engines.bindings import stand_ins


def main() -> None:
    request = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        # Real libraries of any version that may be installed would be loaded in the place of the stubs.
        sys.modules["tensorrt_libs"] = None
        real = importlib.import_module("tensorrt_rtx" if request["module"] == "tensorrt_rtx" else "tensorrt_bindings")
        sys.modules[request["module"]] = stand_ins.install(real, request["module"])
        module, _, function = request["target"].partition(":")
        answer = {"result": getattr(importlib.import_module(module), function)(*request["args"])}
        text = json.dumps(answer)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent raises it again
        text = json.dumps({"kind": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()})
    Path(request["answer"]).write_text(text)


if __name__ == "__main__":
    main()
