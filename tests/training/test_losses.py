"""Each loss term against its transcription in loops, and the cases at the edges: nothing positive, only crowds, too many masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.reference import losses as reference
from tests.training.problems import CLASSES, GRID, make_problem
from yolact_deploy.model.network import HeadOutputs, MaskIouNet
from yolact_deploy.training.losses import LossSettings, MultiBoxLoss, NetworkWithLoss, class_loss, crop_window, reduced_masks
from yolact_deploy.training.targets import Target, match_priors


def expected(problem, *, mask_priors=None) -> dict[str, float]:
    terms = dict.fromkeys(("box", "mask", "class", "semantic"), 0.0)
    positives = 0
    loc, logits, coefficients, prototypes, semantic = (value.double().numpy() for value in problem.outputs)
    for place, objects in enumerate(problem.objects):
        classes, owner = reference.match(objects, problem.priors)
        terms["class"] += reference.class_term(logits[place], classes)
        terms["semantic"] += reference.semantic_term(semantic[place], objects)
        for i, found in enumerate(classes):
            if found > 0:
                positives += 1
                wanted = reference.encode(objects.boxes[owner[i]], problem.priors[i])
                terms["box"] += sum(map(reference.smooth_l1, loc[place, i], wanted))
                j = owner[i]
                terms["mask"] += reference.mask_term(prototypes[place], coefficients[place, i], objects.boxes[j], objects.masks[j])
    factors = {"box": 1.5, "mask": 6.125, "class": 1.0, "semantic": 1.0}
    return {
        name: factors[name] * value / (len(problem.objects) if name == "semantic" else max(positives, 1)) for name, value in terms.items()
    }


@pytest.mark.parametrize("seed", range(6))
def test_terms_equal_the_loops(seed: int) -> None:
    problem = make_problem(seed)
    found = MultiBoxLoss()(problem.outputs, torch.from_numpy(problem.priors), problem.targets)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected(problem), rel=2e-5)


@pytest.mark.parametrize(("counts", "crowds"), [((0,), (0,)), ((0,), (2,)), ((0, 2), (0, 0)), ((1, 0), (0, 1))])
def test_pictures_without_objects_are_background(counts: tuple[int, ...], crowds: tuple[int, ...]) -> None:
    problem = make_problem(3, counts, crowds)
    outputs = HeadOutputs(*(value.clone().requires_grad_() for value in problem.outputs))
    found = MultiBoxLoss()(outputs, torch.from_numpy(problem.priors), problem.targets)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected(problem), rel=2e-5)
    sum(found.values()).backward()
    for value in outputs:
        assert value.grad is not None, "data-parallel training needs a gradient for each output"
        assert bool(torch.isfinite(value.grad).all())


def test_too_many_masks_are_drawn_and_scaled() -> None:
    problem = make_problem(1, (4,), (0,))
    priors = torch.from_numpy(problem.priors)

    def mask(limit: int, seed: int) -> float:
        loss = MultiBoxLoss(LossSettings(masks_per_picture=limit))
        return float(loss(problem.outputs, priors, problem.targets, torch.Generator().manual_seed(seed))["mask"])

    whole = mask(100, 0)
    few = [mask(2, seed) for seed in range(300)]
    assert mask(2, 7) == mask(2, 7)
    assert len(set(few)) > 5
    assert sum(few) / len(few) == pytest.approx(whole, rel=0.1), "the sample's mean estimates the whole"


def test_mask_iou_loss_by_hand() -> None:
    problem = make_problem(5, (3,), (0,))
    asked: list[Tensor] = []

    def net(masks: Tensor) -> Tensor:
        asked.append(masks)
        return torch.full((len(masks), CLASSES - 1), 0.25)

    found = MultiBoxLoss(mask_iou_net=net)(problem.outputs, torch.from_numpy(problem.priors), problem.targets)
    objects = problem.objects[0]
    classes, owner = reference.match(objects, problem.priors)
    total, count = 0.0, 0
    _, _, coefficients, prototypes, _ = (value.double().numpy() for value in problem.outputs)
    for i, found_class in enumerate(classes):
        if found_class <= 0:
            continue
        count += 1
        truth = reference.reduced(objects.masks[owner[i]], 2 * GRID) > 0
        if truth.sum() > 25:
            mask = reference.cropped(prototypes[0], coefficients[0, i], objects.boxes[owner[i]]) > 0.5
            total += reference.smooth_l1(0.25, (mask & truth).sum() / (mask | truth).sum())
    assert total > 0
    assert float(found["mask_iou"]) == pytest.approx(25 * total / count, rel=1e-5)
    assert asked[0].shape[1:] == (1, 2 * GRID, 2 * GRID)


def test_mask_iou_net_learns_its_class_and_moves_the_masks() -> None:
    net = MaskIouNet(CLASSES - 1)
    for value in net.parameters():
        value.data.abs_()  # no ReLU is closed
    problem = make_problem(5, (3,), (0,))
    prototypes = nn.functional.interpolate(problem.outputs.prototypes, (64, 64)).requires_grad_()
    outputs = problem.outputs._replace(prototypes=prototypes)
    MultiBoxLoss(mask_iou_net=net)(outputs, torch.from_numpy(problem.priors), problem.targets)["mask_iou"].backward()
    assert prototypes.grad is not None
    assert float(prototypes.grad.abs().sum()) > 0
    bias = net.maskiou_net[10].bias.grad
    labels = set(problem.objects[0].labels)
    assert {i for i in range(CLASSES - 1) if float(bias[i]) != 0} <= labels


def test_mask_iou_loss_without_large_masks_is_zero_with_gradients() -> None:
    net = MaskIouNet(CLASSES - 1)
    problem = make_problem(5, (0,), (0,))
    found = MultiBoxLoss(mask_iou_net=net)(problem.outputs, torch.from_numpy(problem.priors), problem.targets)["mask_iou"]
    assert float(found.detach()) == 0
    found.backward()
    assert all(value.grad is not None for value in net.parameters())


def test_the_hardest_background_is_chosen() -> None:
    logits = torch.zeros(1, 10, 2)
    logits[0, :, 1] = torch.arange(10.0)
    classes = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0, -1, 0]])
    found = float(class_loss(logits, classes, 3))
    hard = [9.0, 7.0, 6.0]  # 8 is neutral
    assert found == pytest.approx(math.log(2) + sum(math.log(1 + math.exp(value)) for value in hard), rel=1e-6)


def test_neutral_priors_never_fill_up_the_background() -> None:
    classes = torch.tensor([[1, 1, 0, -1, -1, -1, -1, -1]])
    assert float(class_loss(torch.zeros(1, 8, 2), classes, 3)) == pytest.approx(3 * math.log(2), rel=1e-6)


def test_small_boxes_count_and_empty_ones_do_not() -> None:
    problem = make_problem(4, (2,), (0,))
    (objects,) = problem.objects
    tiny, empty = [0.5, 0.5, 0.52, 0.53], [0.3, 0.3, 0.3, 0.4]
    priors = torch.from_numpy(problem.priors)

    def mask(boxes: list[list[float]]) -> float:
        target = Target(
            torch.tensor(boxes),
            torch.tensor(objects.labels[: len(boxes)]),
            torch.from_numpy(objects.masks[: len(boxes)]),
            torch.zeros(0, 4),
        )
        positives = int((match_priors(target, priors).classes > 0).sum())
        return float(MultiBoxLoss()(problem.outputs, priors, [target])["mask"]) * positives

    assert mask([tiny]) > 100, "an error of several pixels over a sixth of one"
    assert math.isfinite(mask([tiny, empty]))
    assert mask([tiny, empty]) == pytest.approx(mask([tiny]), rel=1e-5)


@pytest.mark.parametrize(("size", "reduction"), [(32, 8), (16, 16), (23, 10), (8, 16)])
def test_reduced_masks_equal_the_loops(size: int, reduction: int) -> None:
    masks = (torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.uint8)
    found = reduced_masks(masks, (reduction, reduction))
    assert torch.equal(found, torch.stack([torch.from_numpy(reference.reduced(mask.numpy(), reduction)) for mask in masks]).float())


def test_crop_window_keeps_one_pixel_of_padding() -> None:
    window = crop_window(torch.tensor([[0.25, 0.5, 0.5, 0.75], [0.5, 0.75, 0.25, 0.5]]), (8, 16))
    assert torch.equal(window[0], window[1]), "the smaller coordinate comes first"
    assert window[0].nonzero().amin(0).tolist() == [3, 3]
    assert window[0].nonzero().amax(0).tolist() == [6, 8]


@pytest.mark.parametrize("name", ["prototypes", "coefficients", "loc", "logits", "semantic"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_becomes_the_loss(name: str, value: float) -> None:
    problem = make_problem(3, (2,), (0,))
    bad = getattr(problem.outputs, name).clone()
    bad.view(-1)[:] = value
    outputs = problem.outputs._replace(**{name: bad})
    found = MultiBoxLoss()(outputs, torch.from_numpy(problem.priors), problem.targets)
    assert not math.isfinite(sum(float(term) for term in found.values()))


def test_losses_are_float32_whatever_the_network_computes_in() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            problem = make_problem(2)
            self.problem, self.priors = problem, torch.from_numpy(problem.priors)
            self.seen: list[torch.dtype] = []

        def forward(self, images: Tensor) -> HeadOutputs:
            self.seen.append((images @ images).dtype)
            return HeadOutputs(*(value.bfloat16() for value in self.problem.outputs))

    network = Network()
    module = NetworkWithLoss(network, LossSettings(), autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    terms = module(torch.ones(2, 2), network.problem.targets)
    assert network.seen == [torch.bfloat16]
    assert {value.dtype for value in terms.values()} == {torch.float32}
