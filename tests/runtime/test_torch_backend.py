"""What is PyTorch's alone: the reference computes in whole float32, on the device that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.weights import write_checkpoint
from yolact_deploy.errors import ConfigError
from yolact_deploy.runtime.torch_backend import TorchBackend, torch_device


def test_convolutions_keep_all_bits_of_float32(tmp_path: Path) -> None:
    backend = TorchBackend(write_checkpoint(tmp_path), device="cpu")
    seen: list[bool] = []
    backend.graph.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    backend.infer(np.zeros((1, 3, 256, 256), np.float32))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 is before


def test_the_device_is_the_one_named() -> None:
    assert torch_device("cpu", 3) == torch.device("cpu")
    if not torch.cuda.is_available():
        assert torch_device(None, 1) == torch.device("cpu")
    with pytest.raises(ConfigError, match="cannot use the device 'nowhere'"):
        torch_device("nowhere")
