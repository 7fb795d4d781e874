"""Where Q/DQ pairs go so that TensorRT fuses them, and where ONNX Runtime does on a CPU.

TensorRT (the rules; tests hold them against every variant's graph):

1. A quantized convolution reads its input and its weights through a pair. Biases have none.
2. A pair stands behind what fuses into the layer before it: behind the activation, never between a convolution and its activation.
3. Of an addition's two sides one is read through a pair, and never the side whose convolution the addition fuses into: that is the
   convolution which comes last. Where no quantized convolution leads into an addition, it gets no pair of its own.
4. A bilinear resize between two quantized values reads its input through a pair, so that it runs in int8.
5. A value that has a pair is read through it by everything but convolutions that are kept in floats: its float copy need not be stored.
6. No pair without a quantized reader (no islands); tanh, softmax, decoding and the outputs of the last layers have none.

ONNX Runtime's CPU kernels want every convolution's output, and every addition's three values, behind pairs of their own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .graph import GraphView

__all__ = ["Placement", "calibrated_values", "place_onnxruntime", "place_tensorrt"]

_PASSING = ("Relu", "LeakyRelu", "MaxPool")


@dataclass(frozen=True)
class Placement:
    """Where the pairs of one graph stand.

    Attributes:
        convolutions: indices of the quantized convolutions' nodes.
        pairs: for each value with a pair, in the graph's order, the (node, input) places that read it through the pair.
    """

    convolutions: tuple[int, ...]
    pairs: dict[str, tuple[tuple[int, int], ...]]


def place_tensorrt(view: GraphView, kept: Collection[str] = ()) -> Placement:
    """The pairs for TensorRT; layers named in `kept` stay in floats. See the module for the rules."""
    convolutions = _quantized(view, kept)
    chosen = {view.nodes[place].input[0] for place in convolutions}
    sides = {place: side for place in _additions(view) if (side := _paired_side(view, place, convolutions)) is not None}
    chosen |= {view.nodes[place].input[side] for place, side in sides.items()}
    for place, node in enumerate(view.nodes):
        if node.op_type != "Resize" or not view.in_network(place) or view.result_of(place) not in chosen:
            continue
        if _origin(view, node.input[0]) in convolutions | sides.keys():
            chosen.add(node.input[0])
    return Placement(tuple(sorted(convolutions)), _ordered(view, chosen, convolutions))


def place_onnxruntime(view: GraphView, kept: Collection[str] = ()) -> Placement:
    """The pairs for ONNX Runtime on a CPU; layers named in `kept` stay in floats."""
    convolutions = _quantized(view, kept)
    chosen: set[str] = set()
    for place in convolutions:
        chosen |= {view.nodes[place].input[0], *_results(view, place)}
    additions = set()
    for place in _additions(view):
        sides = list(view.nodes[place].input)
        if any(_origin(view, side) in convolutions for side in sides):
            additions.add(place)
            chosen |= {*sides, *_results(view, place)}
    for place, node in enumerate(view.nodes):
        if node.op_type in ("Resize", "MaxPool") and view.in_network(place) and _origin(view, node.input[0]) in convolutions | additions:
            chosen |= {node.input[0], *_results(view, place)}
    return Placement(tuple(sorted(convolutions)), _ordered(view, chosen, convolutions))


def calibrated_values(view: GraphView) -> tuple[str, ...]:
    """Every value whose range either placement can need, in the graph's order."""
    found = {**place_tensorrt(view).pairs, **place_onnxruntime(view).pairs}
    return tuple(_in_order(view, found))


def _quantized(view: GraphView, kept: Collection[str]) -> set[int]:
    return {place for layer in view.layers.values() if layer.name not in kept for place in layer.nodes}


def _additions(view: GraphView) -> list[int]:
    """Additions of two feature maps."""
    return [
        place
        for place, node in enumerate(view.nodes)
        if node.op_type == "Add" and view.in_network(place) and not any(name in view.initializers for name in node.input)
    ]


def _origin(view: GraphView, value: str) -> int | None:
    """The convolution or addition that `value` comes from, through activations and pooling alone."""
    place = view.producers.get(value)
    while place is not None and view.nodes[place].op_type in _PASSING:
        place = view.producers.get(view.nodes[place].input[0])
    return place


def _paired_side(view: GraphView, place: int, convolutions: set[int]) -> int | None:
    """Which input of an addition is read through a pair: the one that is not the last convolution before it; None for none."""
    fusing = []
    for side, value in enumerate(view.nodes[place].input):
        origin = view.producers.get(value)
        alone = view.readers(value) == [place] and value not in view.outputs
        if origin in convolutions and alone:
            fusing.append((origin, side))
    return 1 - max(fusing)[1] if fusing else None


def _results(view: GraphView, place: int) -> list[str]:
    """The value behind a node and its activation; of a leaky one, which has a kernel of its own, also the value before it."""
    after = view.activation_after(place)
    if after is None or view.nodes[after].op_type == "Relu":
        return [view.result_of(place)]
    return [view.nodes[place].output[0], view.nodes[after].output[0]]


def _ordered(view: GraphView, chosen: set[str], convolutions: set[int]) -> dict[str, tuple[tuple[int, int], ...]]:
    """The pairs in the graph's order with their readers, which convolutions that are kept in floats are not; none that nobody reads."""
    pairs = {}
    for value in _in_order(view, chosen):
        readers = tuple(
            (place, index) for place, index in view.consumers.get(value, ()) if view.nodes[place].op_type != "Conv" or place in convolutions
        )
        if readers or value in view.outputs:
            pairs[value] = readers
    return pairs


def _in_order(view: GraphView, values: Collection[str]) -> list[str]:
    return sorted(values, key=lambda value: (view.producers.get(value, -1), value))
