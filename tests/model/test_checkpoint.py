"""Loading weights that are what they should be: formats, names, class counts, and what old checkpoints hold beside the network."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import tiny_variant
from tests.helpers.weights import write_checkpoint
from tests.model.conftest import Refusal
from yolact_deploy.classes import COCO, PASCAL
from yolact_deploy.errors import CheckpointError, ConfigError
from yolact_deploy.model import load_checkpoint
from yolact_deploy.model.checkpoint import expected_shapes, variant_from_name
from yolact_deploy.model.seeded import seeded_state
from yolact_deploy.variants import VARIANTS, Variant, get_variant

State = dict[str, Tensor]


def with_classes(count: int) -> State:
    """Weights of ``yolact_nano`` for `count` classes with background."""
    fields = {**get_variant("yolact_nano").to_dict(), "num_classes": count}
    return seeded_state(Variant.from_dict(fields))


def hollow(name: str) -> State:
    """Every tensor of a variant in its shape, stored as a single value: a file of a few KB."""
    return {
        key: torch.zeros(shape, dtype=torch.int64) if key.endswith("tracked") else torch.full((), 0.01).expand(shape)
        for key, shape in expected_shapes(get_variant(name)).items()
    }


@pytest.mark.parametrize(
    ("name", "legacy"), [("yolact_nano_1_10.pth", False), ("yolact_nano_1_10.pth", True), ("yolact_nano_1_10.safetensors", False)]
)
def test_every_format_gives_the_same_network(tmp_path: Path, nano_state: State, name: str, legacy: bool) -> None:
    path = write_checkpoint(tmp_path, name, nano_state, legacy=legacy)
    loaded = load_checkpoint(path)
    assert loaded.variant == get_variant("yolact_nano")
    assert loaded.classes == COCO
    assert loaded.path == path
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not loaded.network.training
    state = loaded.network.state_dict()
    assert state.keys() == nano_state.keys()
    assert all(torch.equal(state[key], value) for key, value in nano_state.items())


def test_a_folders_name_may_hold_spaces_and_any_letters(tmp_path: Path, nano_state: State) -> None:
    folder = tmp_path / "Größe 2 – 重み"
    folder.mkdir()
    for name in ("yolact_nano.pth", "yolact_nano.safetensors"):
        assert load_checkpoint(write_checkpoint(folder, name, nano_state)).variant.name == "yolact_nano"


def test_parameters_and_a_strange_suffix_load(tmp_path: Path, nano_state: State) -> None:
    state: dict[str, Any] = {key: torch.nn.Parameter(value, requires_grad=value.is_floating_point()) for key, value in nano_state.items()}
    loaded = load_checkpoint(str(write_checkpoint(tmp_path, "yolact_nano.weights", state)))
    assert torch.equal(loaded.network.fpn.lat_layers[0].weight, nano_state["fpn.lat_layers.0.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(tmp_path: Path, nano_state: State, dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in nano_state.items()}
    network = load_checkpoint(write_checkpoint(tmp_path, state=state)).network
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}
    key = "prediction_layers.0.bbox_layer.weight"
    np.testing.assert_array_equal(network.state_dict()[key], state[key].float())


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("pattern", ["{}.pth", "{}_54_800000.pth", "{}_0_7_interrupt.pth", "{}_54_800000.safetensors"])
def test_a_file_name_says_its_variant(variant: str, pattern: str) -> None:
    assert variant_from_name(Path("weights") / pattern.format(variant)) == variant


@pytest.mark.parametrize(
    "name", ["best.pth", "yolact.pth", "yolact_base_v2.pth", "yolact_base_54.pth", "my_yolact_base_1_2.pth", "Yolact_Base.pth", "_1_2.pth"]
)
def test_an_unknown_name_is_never_guessed(tmp_path: Path, nano_state: State, refused: Refusal, name: str) -> None:
    path = write_checkpoint(tmp_path, name, nano_state)
    with refused(ConfigError, name, "--variant", *VARIANTS):
        load_checkpoint(path)


def test_a_named_variant_goes_before_the_file_name(tmp_path: Path, nano_state: State, refused: Refusal) -> None:
    for name in ("best.pth", "yolact_base_1_2.pth"):
        path = write_checkpoint(tmp_path, name, nano_state)
        assert load_checkpoint(path, variant="yolact_nano").variant.name == "yolact_nano"
    with refused(ConfigError, "yolact_edge", "yolact_base"):
        load_checkpoint(path, variant="yolact_edge")


@pytest.mark.parametrize("foreground", [1, 3, 20, 80, 120])
def test_the_tensors_say_how_many_classes_there_are(tmp_path: Path, foreground: int) -> None:
    loaded = load_checkpoint(write_checkpoint(tmp_path, state=with_classes(foreground + 1)))
    assert loaded.variant.num_classes == foreground + 1
    assert loaded.network.variant == loaded.variant
    assert len(loaded.classes) == foreground
    expected = {20: PASCAL, 80: COCO}.get(foreground)
    if expected is not None:
        assert loaded.classes == expected
    else:
        assert loaded.classes.names == tuple(f"class {number}" for number in range(1, foreground + 1))


def test_class_names_are_taken_where_their_number_fits(tmp_path: Path, refused: Refusal) -> None:
    path = write_checkpoint(tmp_path, state=with_classes(4))
    names = tmp_path / "names.txt"
    names.write_text("nut\nbolt\nwasher\n")
    assert load_checkpoint(path, classes=str(names)).classes.names == ("nut", "bolt", "washer")
    with refused(ConfigError, "80 classes", "3 (without background)"):
        load_checkpoint(path, classes="coco")
    names.write_text("nut\nbolt\n")
    with refused(ConfigError, "2 classes", "3 (without background)"):
        load_checkpoint(path, classes=str(names))


def test_a_configuration_describes_a_network_of_ones_own(tmp_path: Path) -> None:
    variant = tiny_variant(dcn_blocks=(0, 1, 1, 1), prior_sizes=((8,), (16,), (32,), (64,)), aspect_ratios=((1, 3),) * 4)
    path = write_checkpoint(tmp_path, "parts.pth", seeded_state(variant))
    config = tmp_path / "parts.toml"
    config.write_text(
        'base = "yolact_base"\ninput_size = 128\nblocks = [1, 1, 1, 1]\nbackbone_width = 16\nfpn_width = 32\nnum_prototypes = 8\n'
        "dcn_blocks = [0, 1, 1, 1]\nprior_sizes = [8, 16, 32, 64]\naspect_ratios = [1, 3]\n# num_classes = 99 is what others have\n"
    )
    loaded = load_checkpoint(path, config=config)
    assert loaded.variant.name == "parts"
    assert loaded.variant.num_classes == 5
    assert loaded.variant.prior_count == variant.prior_count
    assert load_checkpoint(path, config=str(config), variant="yolact_base").variant == loaded.variant


def test_a_configuration_may_not_contradict_the_tensors(tmp_path: Path, refused: Refusal) -> None:
    path, config = write_checkpoint(tmp_path, state=with_classes(4)), tmp_path / "mine.toml"
    config.write_text('base = "yolact_nano"\nnum_classes = 4\n')
    assert load_checkpoint(path, config=config).variant.num_classes == 4
    config.write_text('base = "yolact_nano"\nnum_classes = 81\n')
    with refused(ConfigError, "81 classes", "have 4", "num_classes"):
        load_checkpoint(path, config=config)
    with refused(ConfigError, "'yolact_nano'", "'yolact_base'"):
        load_checkpoint(path, config=config, variant="yolact_base")
    with refused(ConfigError, "does not exist"):
        load_checkpoint(path, config=tmp_path / "none.toml")


def test_leftovers_of_old_checkpoints_are_dropped(tmp_path: Path, nano_state: State) -> None:
    surplus = {
        "backbone.layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1),
        "backbone.layer4.2.bn3.running_var": torch.full((2,), float("nan")),
        "fpn.downsample_layers.2.weight": torch.zeros(64, 64, 3, 3),
        "fpn.downsample_layers.11.bias": torch.zeros(64),
    }
    loaded = load_checkpoint(write_checkpoint(tmp_path, state=surplus | nano_state))
    assert loaded.network.state_dict().keys() == nano_state.keys()


def test_a_third_stride_two_layer_is_kept_where_the_variant_has_it(tmp_path: Path) -> None:
    levels = {"prior_sizes": [[8], [16], [32], [64], [128], [224]], "aspect_ratios": [[1, 0.5, 2]] * 6}
    variant = Variant.from_dict({**get_variant("yolact_nano").to_dict(), **levels})
    config = tmp_path / "six.toml"
    config.write_text('base = "yolact_nano"\nprior_sizes = [8, 16, 32, 64, 128, 224]\n')
    state = seeded_state(variant)
    loaded = load_checkpoint(write_checkpoint(tmp_path, state=state), config=config).network
    assert torch.equal(loaded.fpn.downsample_layers[2].weight, state["fpn.downsample_layers.2.weight"])


def test_counters_of_batches_may_be_missing(tmp_path: Path, nano_state: State) -> None:
    state = {key: value for key, value in nano_state.items() if not key.endswith("num_batches_tracked")}
    assert len(state) < len(nano_state)
    network = load_checkpoint(write_checkpoint(tmp_path, state=state)).network
    assert network.state_dict()["backbone.bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("held", "said", "hint"),
    [
        ("yolact_resnet50", "yolact_base", "They fit yolact_resnet50: pass --variant yolact_resnet50."),
        ("yolact_base", "yolact_plus_base", "They fit yolact_base: pass --variant yolact_base."),
        ("yolact_darknet53", "yolact_resnet50", "They fit yolact_darknet53: pass --variant yolact_darknet53."),
        ("yolact_plus_resnet50", "yolact_resnet50", "They fit yolact_plus_resnet50: pass --variant yolact_plus_resnet50."),
    ],
)
def test_the_variant_that_fits_is_named(tmp_path: Path, refused: Refusal, held: str, said: str, hint: str) -> None:
    path = write_checkpoint(tmp_path, f"{said}_54_800000.pth", hollow(held))
    with refused(CheckpointError, f"do not fit {said}", hint):
        load_checkpoint(path)


def test_the_first_differences_are_named_and_the_rest_counted(tmp_path: Path, nano_state: State, refused: Refusal) -> None:
    del nano_state["fpn.lat_layers.0.bias"]
    nano_state["proto_net.0.weight"] = nano_state["proto_net.0.weight"][:, :3].clone()
    nano_state |= {"ema.decay": torch.zeros(1), "ema.steps": torch.zeros(1), "z": torch.zeros(1)}
    first = "fpn.lat_layers.0.bias is missing; proto_net.0.weight is [64, 3, 3, 3] instead of [64, 64, 3, 3]; ema.decay is unknown; 2 more"
    with refused(CheckpointError, first, "The nearest variant is yolact_nano (5 differences)", "--config"):
        load_checkpoint(write_checkpoint(tmp_path, state=nano_state))


def test_a_network_of_another_kind_is_said_to_be_no_yolact(tmp_path: Path, refused: Refusal) -> None:
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)}
    for stage, block in np.ndindex(4, 2):
        width = 64 << stage
        state |= {f"layer{stage + 1}.{block}.conv{n}.weight": torch.zeros(()).expand(width, width, 3, 3) for n in (1, 2)}
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    with refused(CheckpointError, "do not fit yolact_nano", "no variant of YOLACT"):
        load_checkpoint(write_checkpoint(tmp_path, state=state))
